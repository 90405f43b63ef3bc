//! The thread that runs the daemon's hooks, one at a time, so that the loop goes on meanwhile.
//!
//! It exists before its process owns the data: a successor that can't have it must fail while somebody else serves, and
//! between Prepare and Commit nothing is spawned. A hook that panics is a hook that failed. Knows nothing of the protocol.

use std::any::Any;
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use handoff_proto::incumbent::{Drain, Input, Progress, ResumeEnd, Seal};

use crate::crash::{fail_here, points};
use crate::crash_here;
use crate::drainable::{DrainContext, Drainable, HookError, Resume, SealContext, StateNotReadable};
use crate::error::{Error, Result};
use crate::waker::Waker;

/// The loop's end of the thread. Dropping it lets the thread end when the hook that runs has returned.
pub(crate) struct Worker {
    jobs: Sender<Order>,
    ended: Receiver<Input>,
    progress: Arc<Mutex<Option<Progress>>>,
    cancelled: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// The thread without a daemon whose hooks it could run, and what wakes the loop. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct IdleWorker {
    employer: Sender<Arc<dyn Drainable>>,
    jobs: Sender<Order>,
    ended: Receiver<Input>,
    progress: Arc<Mutex<Option<Progress>>>,
    thread: JoinHandle<()>,
    waker: Waker,
}

/// What the thread runs.
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

/// The thread is gone although hooks can't end it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone;

impl IdleWorker {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or no descriptor can be had.
    pub(crate) fn start() -> Result<Self> {
        let waker = Waker::new().map_err(|error| Error::io("make an eventfd for the control loop", error))?;
        let (employer, employed) = channel();
        let (jobs, queue) = channel();
        let (results, ended) = channel();
        let progress = Arc::default();
        let (shared, loops) = (Arc::clone(&progress), waker.clone());
        let work = move || {
            if let Ok(drainable) = employed.recv() {
                work(&queue, &results, &Bench { drainable, waker: loops, progress: shared });
            }
        };
        let thread = Builder::new().name("handoff-hooks".into()).spawn(work);
        let thread = thread.map_err(|error| Error::io("start the thread of the hooks", error))?;
        Ok(Self { employer, jobs, ended, progress, thread, waker })
    }

    /// Gives it a daemon. The waker is woken whenever there is something to [`take`](Worker::take).
    pub(crate) fn employ(self, drainable: Arc<dyn Drainable>) -> (Worker, Waker) {
        let Self { employer, jobs, ended, progress, thread, waker } = self;
        // A thread that is gone shows at the first job.
        let _ = employer.send(drainable);
        (Worker { jobs, ended, progress, cancelled: Arc::default(), thread }, waker)
    }
}

impl Worker {
    /// Starts a job; at most one hook runs at a time.
    pub(crate) fn run(&mut self, job: Job) -> std::result::Result<(), Gone> {
        // A fresh flag for each hook: one that is late must not look at the next one's.
        self.cancelled = Arc::default();
        self.give(job)
    }

    /// Queues an errand behind what runs.
    pub(crate) fn run_errand(&mut self, errand: impl FnOnce() + Send + 'static) -> std::result::Result<(), Gone> {
        self.give(Job::Errand(Box::new(errand)))
    }

    /// Tells the hook that runs that the handover is off.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// The newest progress, then the end of a hook.
    pub(crate) fn take(&mut self) -> std::result::Result<Option<Input>, Gone> {
        if let Some(progress) = lock(&self.progress).take() {
            return Ok(Some(Input::SealProgress(progress)));
        }
        match self.ended.try_recv() {
            Ok(ended) => Ok(Some(ended)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Gone),
        }
    }

    /// Ends the thread, and waits for it: no hook may be running.
    pub(crate) fn finish(self) {
        drop(self.jobs);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the hooks has panicked");
        }
    }

    fn give(&self, job: Job) -> std::result::Result<(), Gone> {
        self.jobs.send(Order { job, cancelled: Arc::clone(&self.cancelled) }).map_err(|_| Gone)
    }
}

struct Order {
    job: Job,
    cancelled: Arc<AtomicBool>,
}

/// What the thread works with.
struct Bench {
    drainable: Arc<dyn Drainable>,
    waker: Waker,
    progress: Arc<Mutex<Option<Progress>>>,
}

fn work(queue: &Receiver<Order>, results: &Sender<Input>, bench: &Bench) {
    while let Ok(order) = queue.recv() {
        if let Some(ended) = bench.perform(order) {
            // The last progress is out of date now.
            lock(&bench.progress).take();
            if results.send(ended).is_err() {
                return;
            }
            bench.waker.wake();
        }
    }
}

impl Bench {
    fn perform(&self, Order { job, cancelled }: Order) -> Option<Input> {
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
                        tracing::error!(%error, "resume_after_abort failed");
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
fn caught<T>(hook: impl FnOnce() -> std::result::Result<T, HookError>) -> std::result::Result<T, HookError> {
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
        fn drain(&self, cx: &DrainContext) -> std::result::Result<DrainReport, HookError> {
            while !cx.cancelled() {
                std::thread::yield_now();
            }
            panic!("drain {}", "gave up")
        }

        fn seal(&self, cx: &SealContext) -> std::result::Result<SealReport, HookError> {
            assert!(!cx.cancelled(), "the cancel was for the hook before");
            (0..1000).for_each(|n| cx.progress(n, 1000, u64::from(n)));
            Ok(SealReport::default())
        }

        fn resume_after_abort(&self, _: &Resume) -> std::result::Result<(), HookError> {
            lock(&self.0).pop().map_or(Ok(()), Err)
        }

        fn snapshot_state(&self) -> StateSnapshot {
            StateSnapshot::default()
        }
    }

    fn start(errors: Vec<HookError>) -> (Worker, Waker) {
        IdleWorker::start().unwrap().employ(Arc::new(Hooks(Mutex::new(errors))))
    }

    fn next(worker: &mut Worker, waker: &Waker) -> Input {
        loop {
            if let Some(input) = worker.take().unwrap() {
                return input;
            }
            poll::wait(&mut [PollFd::new(waker, PollFlags::IN)], Some(Duration::from_secs(30))).unwrap();
            waker.drain();
        }
    }

    #[test]
    fn a_cancel_reaches_the_hook_that_runs_and_a_panic_is_a_failure() {
        let (mut worker, waker) = start(Vec::new());
        worker.run(Job::Drain { deadline: Instant::now() }).unwrap();
        worker.cancel();
        assert_eq!(next(&mut worker, &waker), Input::DrainEnded(Err("panicked: drain gave up".into())));
        worker.run(Job::Seal).unwrap();
        let mut reports = 0;
        while let Input::SealProgress(_) = next(&mut worker, &waker) {
            reports += 1;
        }
        assert!(reports <= 1000);
        worker.finish();
    }

    #[test]
    fn a_state_that_cant_be_read_is_told_apart() {
        #[derive(Debug, thiserror::Error)]
        #[error("while opening")]
        struct Wrapped(#[source] StateNotReadable);

        let not_readable = || StateNotReadable { reason: "format 9".into() };
        let (mut worker, waker) = start(vec![Wrapped(not_readable()).into(), not_readable().into(), "disk".into()]);
        let mut resume = || {
            worker.run(Job::Resume(Resume::new(true, 1))).unwrap();
            next(&mut worker, &waker)
        };
        assert_eq!(resume(), Input::ResumeEnded(ResumeEnd::Failed("disk".into())));
        assert!(matches!(resume(), Input::ResumeEnded(ResumeEnd::NotReadable(_))));
        assert!(matches!(resume(), Input::ResumeEnded(ResumeEnd::NotReadable(_))));
        assert_eq!(resume(), Input::ResumeEnded(ResumeEnd::Serving));
    }
}
