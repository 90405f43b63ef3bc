//! The daemon's hooks as jobs, one at a time.
//!
//! A hook that panics is a hook that failed. Knows nothing of the protocol, and of no thread: who has the [`Bench`] performs.

use std::any::Any;
use std::collections::VecDeque;
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use handoff_proto::incumbent::{Drain, Input, Progress, ResumeEnd, Seal};

use crate::crash::{fail_here, points};
use crate::crash_here;
use crate::drainable::{DrainContext, Drainable, HookError, Resume, SealContext, StateNotReadable};
use crate::events;
use crate::sys::signals::Mask;
use crate::waker::Waker;

/// What is to be run, and how far it is.
pub(crate) struct Jobs {
    queue: VecDeque<Order>,
    progress: Arc<Mutex<Option<Progress>>>,
    cancelled: Arc<AtomicBool>,
}

/// What is run.
pub(crate) enum Job {
    /// The drain hook, which should return by then.
    Drain { deadline: Instant },
    /// The seal hook.
    Seal,
    /// `resume_after_abort`.
    Resume(Resume),
    /// Something of ours that may take long.
    Errand(Box<dyn FnOnce() + Send>),
}

impl Jobs {
    /// Nothing is to be run. Whoever performs does it at the bench, which wakes `waker` when there is progress to be
    /// [taken](Self::take_progress). Hooks find the signal mask of the calling thread, and so does all that they start.
    pub(crate) fn new(drainable: Arc<dyn Drainable>, waker: Waker) -> (Self, Bench) {
        let progress = Arc::default();
        let mask = Mask::of_this_thread();
        let bench = Bench { drainable, waker, progress: Arc::clone(&progress), mask };
        (Self { queue: VecDeque::new(), progress, cancelled: Arc::default() }, bench)
    }

    /// Orders a hook to be run; at most one at a time.
    pub(crate) fn run(&mut self, job: Job) {
        // A fresh flag for each hook: one that is late must not look at the next one's.
        self.cancelled = Arc::default();
        self.give(job);
    }

    /// Queues an errand behind what runs.
    pub(crate) fn run_errand(&mut self, errand: impl FnOnce() + Send + 'static) {
        self.give(Job::Errand(Box::new(errand)));
    }

    /// Tells the hook that runs that the handover is off.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// The newest progress that was not taken yet.
    pub(crate) fn take_progress(&self) -> Option<Input> {
        lock(&self.progress).take().map(Input::SealProgress)
    }

    /// What is to be performed next.
    pub(crate) fn next(&mut self) -> Option<Order> {
        self.queue.pop_front()
    }

    /// Whether nothing is to be performed.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn give(&mut self, job: Job) {
        self.queue.push_back(Order { job, cancelled: Arc::clone(&self.cancelled) });
    }
}

/// A job, and whether it was called off meanwhile.
pub(crate) struct Order {
    job: Job,
    cancelled: Arc<AtomicBool>,
}

/// What jobs are performed with.
pub(crate) struct Bench {
    drainable: Arc<dyn Drainable>,
    waker: Waker,
    progress: Arc<Mutex<Option<Progress>>>,
    mask: Mask,
}

impl Bench {
    /// Performs a job to its end; how a hook ended, if it was one. What it reported last is out of date then.
    pub(crate) fn perform(&self, order: Order) -> Option<Input> {
        let ended = self.run(order)?;
        lock(&self.progress).take();
        Some(ended)
    }

    fn run(&self, Order { job, cancelled }: Order) -> Option<Input> {
        let _as_the_daemon = match job {
            Job::Drain { .. } | Job::Seal | Job::Resume(_) => Some(self.mask.adopt()),
            Job::Errand(_) => None,
        };
        match job {
            Job::Drain { deadline } => {
                let cx = DrainContext::new(deadline, cancelled);
                let report = caught(|| {
                    let report = self.drainable.drain(&cx)?;
                    crash_here!(points::O_IN_DRAIN);
                    fail_here!(points::O_IN_DRAIN)?;
                    Ok(report)
                })
                .map_err(|error| error.to_string());
                Some(Input::DrainEnded(report.map(|report| Drain {
                    open_conns_remaining: report.open_conns_remaining,
                    accept_closed: report.accept_closed,
                })))
            }
            Job::Seal => {
                let cx = SealContext::new(cancelled, self.progress_sink());
                let report = caught(|| {
                    let report = self.drainable.seal(&cx)?;
                    crash_here!(points::O_IN_SEAL);
                    fail_here!(points::O_IN_SEAL)?;
                    Ok(report)
                })
                .map_err(|error| error.to_string());
                Some(Input::SealEnded(report.map(|report| Seal {
                    last_revision_per_shard: report.last_revision_per_shard,
                    data_dir_fingerprint: report.data_dir_fingerprint,
                })))
            }
            Job::Resume(resume) => Some(Input::ResumeEnded(
                match caught(|| {
                    crash_here!(points::O_IN_RESUME);
                    fail_here!(points::O_IN_RESUME)?;
                    self.drainable.resume_after_abort(&resume)
                }) {
                    Ok(()) => ResumeEnd::Serving,
                    Err(error) if is_not_readable(error.as_ref()) => ResumeEnd::NotReadable(error.to_string()),
                    Err(error) => {
                        events::error!(%error, "resume_after_abort failed");
                        ResumeEnd::Failed(error.to_string())
                    }
                },
            )),
            Job::Errand(errand) => {
                errand();
                None
            }
        }
    }

    /// Keeps the newest report only, and wakes the loop for the first that it has not taken yet.
    fn progress_sink(&self) -> Arc<dyn Fn(u32, u32, u64) + Send + Sync> {
        let (slot, waker) = (Arc::clone(&self.progress), self.waker.clone());
        Arc::new(move |shards_sealed, shards_total, last_revision| {
            let before = lock(&slot).replace(Progress { shards_sealed, shards_total, last_revision });
            if before.is_none() {
                waker.wake();
            }
        })
    }
}

/// Whether an error, or what caused it, says that the state can't be read.
fn is_not_readable(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<StateNotReadable>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A panic of a hook as an error.
fn caught<T>(hook: impl FnOnce() -> Result<T, HookError>) -> Result<T, HookError> {
    catch_unwind(AssertUnwindSafe(hook))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic)).into()))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::drainable::{DrainReport, SealReport, StateSnapshot};
    use crate::sys::poll;

    /// Its drain waits for a cancel, its seal reports a thousand times, its resume says what it is told to.
    struct Hooks(Mutex<Vec<HookError>>);

    impl Drainable for Hooks {
        fn drain(&self, cx: &DrainContext) -> Result<DrainReport, HookError> {
            while !cx.cancelled() {
                std::thread::yield_now();
            }
            panic!("drain {}", "gave up")
        }

        fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError> {
            assert!(!cx.cancelled(), "the cancel was for the hook before");
            (0..1000).for_each(|n| cx.progress(n, 1000, u64::from(n)));
            Ok(SealReport::default())
        }

        fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
            lock(&self.0).pop().map_or(Ok(()), Err)
        }

        fn snapshot_state(&self) -> StateSnapshot {
            StateSnapshot::default()
        }
    }

    fn start(errors: Vec<HookError>) -> (Jobs, Bench, Waker) {
        let waker = Waker::new().unwrap();
        let (jobs, bench) = Jobs::new(Arc::new(Hooks(Mutex::new(errors))), waker.clone());
        (jobs, bench, waker)
    }

    fn blocked_here() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_owned()
    }

    /// What a hook starts must not find every signal blocked, and what the daemon has blocked must not reach a hook.
    #[test]
    fn a_hook_has_the_mask_of_whoever_serves_and_an_errand_that_of_its_thread() {
        struct Looks(Mutex<Vec<String>>);
        impl Drainable for Looks {
            fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
                lock(&self.0).push(blocked_here());
                Ok(DrainReport::default())
            }
            fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
                lock(&self.0).push(blocked_here());
                Ok(SealReport::default())
            }
            fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
                lock(&self.0).push(blocked_here());
                Ok(())
            }
            fn snapshot_state(&self) -> StateSnapshot {
                StateSnapshot::default()
            }
        }
        let looks = Arc::new(Looks(Mutex::default()));
        let drainable: Arc<dyn Drainable> = Arc::clone(&looks) as _;
        let (mut jobs, bench) = Jobs::new(drainable, Waker::new().unwrap());
        for job in [Job::Drain { deadline: Instant::now() }, Job::Seal, Job::Resume(Resume::new(true, 1))] {
            jobs.run(job);
        }
        let helper = crate::helper::Helper::start().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        jobs.run_errand(move || tell.send(blocked_here()).unwrap());
        helper.give(move || {
            while let Some(order) = jobs.next() {
                bench.perform(order);
            }
        });
        helper.join();
        assert_eq!(*lock(&looks.0), vec![blocked_here(); 3]);
        assert_ne!(told.recv().unwrap(), blocked_here());
    }

    #[test]
    fn a_cancel_reaches_the_hook_that_runs_and_a_panic_is_a_failure() {
        let (mut jobs, bench, waker) = start(Vec::new());
        jobs.run(Job::Drain { deadline: Instant::now() });
        let order = jobs.next().unwrap();
        let ended = std::thread::scope(|scope| {
            let hook = scope.spawn(|| bench.perform(order));
            jobs.cancel();
            hook.join().unwrap()
        });
        assert_eq!(ended, Some(Input::DrainEnded(Err("panicked: drain gave up".into()))));

        jobs.run(Job::Seal);
        let order = jobs.next().unwrap();
        let (ended, reports) = std::thread::scope(|scope| {
            let hook = scope.spawn(|| bench.perform(order));
            let mut reports = 0;
            while !hook.is_finished() {
                let mut fds = [PollFd::new(&waker, PollFlags::IN)];
                poll::wait(&mut fds, Some(Duration::from_millis(1))).unwrap();
                reports += u32::from(jobs.take_progress().is_some());
            }
            (hook.join().unwrap(), reports)
        });
        assert!(matches!(ended, Some(Input::SealEnded(Ok(_)))));
        assert!(reports <= 1000);
        assert_eq!(jobs.take_progress(), None, "the last one is out of date");
    }

    #[test]
    fn a_state_that_cant_be_read_is_told_apart() {
        #[derive(Debug, thiserror::Error)]
        #[error("while opening")]
        struct Wrapped(#[source] StateNotReadable);

        let not_readable = || StateNotReadable { reason: "format 9".into() };
        let (mut jobs, bench, _) = start(vec![Wrapped(not_readable()).into(), not_readable().into(), "disk".into()]);
        let mut resume = || {
            jobs.run(Job::Resume(Resume::new(true, 1)));
            bench.perform(jobs.next().unwrap()).unwrap()
        };
        assert_eq!(resume(), Input::ResumeEnded(ResumeEnd::Failed("disk".into())));
        assert!(matches!(resume(), Input::ResumeEnded(ResumeEnd::NotReadable(_))));
        assert!(matches!(resume(), Input::ResumeEnded(ResumeEnd::NotReadable(_))));
        assert_eq!(resume(), Input::ResumeEnded(ResumeEnd::Serving));
    }

    #[test]
    fn an_errand_has_no_end_to_tell() {
        let (mut jobs, bench, _) = start(Vec::new());
        jobs.run_errand(|| {});
        assert_eq!(bench.perform(jobs.next().unwrap()), None);
        assert!(jobs.next().is_none());
    }
}
