//! Performs what the machine asks for, one system-level act for each effect, and brings back the result.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use handoff_proto::incumbent::{Effect, Input, Milestone, SessionId, Why};
use handoff_proto::{HandoffId, Message, Phase, ProtoVersion, StatusReport, WireError, revisions};

use tracing::Level;

use super::driver::{Alarm, Driver, Writing};
use super::lock_slot::LockSlot;
use crate::channel::{Channel, FDS_PER_MESSAGE_MAX};
use crate::control;
use crate::crash_here;
use crate::drainable::{Resume, StateSnapshot};
use crate::events;
use crate::listeners::{self, Retained};
use crate::process::Process;
use crate::worker::{Job, panic_text};

/// The version that knows the messages which only the driver can fill in.
const VERSION_2: ProtoVersion = 2;

impl Driver {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send(session, version, message) => self.send(session, version, &message),
            Effect::SendWithNext(session, version, message) => self.send_with_next(session, version, &message),
            Effect::SendHeartbeat(session, version) => {
                self.send(session, version, &Message::Heartbeat { ts_ms: unix_ms() });
            }
            Effect::SendStatus { session, phase, epoch } => self.send_status(session, phase, epoch),
            Effect::SendListeners(session) => self.send_listeners(session),
            Effect::Close(session, why) => self.close(session, why),

            Effect::RunDrain { grace } => self.jobs.run(Job::Drain { deadline: deadline_in(grace) }),
            Effect::RunSeal => self.jobs.run(Job::Seal),
            Effect::CancelHook => self.jobs.cancel(),
            Effect::RunResume { state_may_have_changed, epoch } => {
                self.jobs.run(Job::Resume(Resume::new(state_may_have_changed, epoch)));
                self.catch_up();
            }

            Effect::PassDirectory(session) => self.pass_directory(session),
            Effect::StampLease(id) => self.bring(|driver| Input::Stamped(driver.lock_slot().stamp(id))),
            Effect::ReleaseLock(directory) => {
                self.bring(|driver| Input::Released(driver.move_lock(|lock| lock.seal(directory))));
            }
            Effect::ReadLease => self.bring(|driver| Input::LeaseRead(driver.lock_slot().read_lease())),
            Effect::FindHolder => self.bring(|driver| Input::HolderFound(driver.lock_slot().holder())),
            Effect::TryLock => self.bring(|driver| Input::LockTried(driver.lock_slot().try_lock())),
            Effect::ClaimLease => self.bring(|driver| Input::Claimed(driver.move_lock(LockSlot::claim))),
            Effect::ActivateLease => {
                self.bring(|driver| Input::Activated(driver.lock_slot().activate(&driver.build_id)));
            }
            Effect::Unlock => self.move_lock(LockSlot::unlock),

            Effect::WatchSuccessor { pid, parent } => self.watch_successor(pid, parent),
            Effect::ForgetSuccessor => self.successor = None,
            Effect::StopSuccessor => self.signal_successor("stop", Process::stop),
            Effect::ContinueSuccessor => self.signal_successor("continue", Process::cont),
            Effect::SeeSuccessor => self.see_successor(),
            Effect::KillSuccessor => self.kill_successor(),

            Effect::RememberListenerFlags => listeners::remember_flags(),
            Effect::RestoreListenerFlags => listeners::restore_flags(),
            Effect::AskControlPath => self.ask_control_path(),
            Effect::StopAsking => self.asked = None,
            Effect::PublishControl => self.publish_control(),

            Effect::Arm(timer, after) => self.timers.arm(Alarm::Machine(timer), after),
            Effect::Disarm(timer) => self.timers.disarm(Alarm::Machine(timer)),
            Effect::Reached(handoff_id, milestone) => reached(handoff_id, milestone),
            Effect::Leave(leaving) => self.left = Some(leaving),
        }
    }

    fn bring(&mut self, act: impl FnOnce(&mut Self) -> Input) {
        let result = act(self);
        self.results.push_back(result);
    }

    /// Takes the lock, or gives it away; the control path goes with it.
    fn move_lock<T>(&mut self, act: impl FnOnce(&mut LockSlot) -> T) -> T {
        let mut slot = self.lock_slot();
        let done = act(&mut slot);
        let is_held = slot.is_held();
        drop(slot);
        self.owns_path = is_held;
        done
    }

    /// The channel has served its purpose then, and is closed.
    fn pass_directory(&mut self, session: SessionId) {
        let channel = self.session(session).and_then(|session| session.transfer.take());
        let passed = match channel {
            Some(channel) => self.lock_slot().pass_directory(channel.as_fd()),
            None => Err("no channel came with the message that announced it".into()),
        };
        if let Err(reason) = &passed {
            events::warn!(
                reason,
                "the directory's lock can't be passed to the successor: a stranger may slip in between"
            );
        }
        self.results.push_back(Input::DirectoryPassed(passed));
    }

    fn send(&mut self, session: SessionId, version: ProtoVersion, message: &Message) {
        self.write(session, |channel| channel.send(version, message));
    }

    /// If the next one takes its time, so that the other thread is called in to wait, that one finds it waiting and sends it.
    /// One that waits already would have to be woken for it: then it goes at once.
    fn send_with_next(&mut self, session: SessionId, version: ProtoVersion, message: &Message) {
        match self.watched {
            Some(_) => self.send(session, version, message),
            None => self.write(session, |channel| channel.send_with_next(version, message)),
        }
    }

    fn write(&mut self, session: SessionId, write: impl FnOnce(&mut Channel) -> Result<(), WireError>) {
        if let Some(session) = self.session(session)
            && session.writing == Writing::Works
            && let Err(error) = write(&mut session.channel)
        {
            unwritable(&mut session.writing, &error);
        }
    }

    fn send_status(&mut self, session: SessionId, phase: Option<Phase>, epoch: u64) {
        let drainable = &self.drainable;
        let snapshot = catch_unwind(AssertUnwindSafe(|| drainable.snapshot_state())).unwrap_or_else(|panic| {
            events::error!(panic = panic_text(&*panic), "snapshot_state panicked");
            StateSnapshot::default()
        });
        let StateSnapshot { shard_count, open_conns, last_revision_per_shard } = snapshot;
        let report = |last_revision_per_shard| {
            Message::StatusReport(StatusReport { phase, shard_count, open_conns, last_revision_per_shard, epoch })
        };
        let mut message = report(last_revision_per_shard);
        if !revisions::fits_a_frame(VERSION_2, &message) {
            message = report(Vec::new());
        }
        self.send(session, VERSION_2, &message);
    }

    /// The last message is the one that is not full, so that its reader knows that it has them all.
    fn send_listeners(&mut self, session: SessionId) {
        let retained = listeners::retained();
        let Some(session) = self.session(session) else { return };
        let mut send = |chunk: &[Retained]| {
            let names = chunk.iter().map(|kept| kept.name.clone()).collect();
            let fds: Vec<_> = chunk.iter().map(AsFd::as_fd).collect();
            session.channel.send_with_fds(VERSION_2, &Message::Listeners { names }, &fds)
        };
        let sent = messages_of(&retained).try_for_each(&mut send);
        if let Err(error) = sent {
            unwritable(&mut session.writing, &error);
        }
    }

    fn close(&mut self, id: SessionId, why: Why) {
        match why {
            Why::Violation | Why::Busy | Why::Late => events::warn!(session = id.0, ?why, "session closed"),
            Why::Silent | Why::Crowded | Why::Failed => events::info!(session = id.0, ?why, "session closed"),
        }
        self.sessions.retain(|session| session.id != id);
    }

    fn watch_successor(&mut self, pid: u32, parent: u32) {
        match child_of(pid, parent) {
            Ok(process) => {
                self.successor = Some(process);
                self.results.push_back(Input::SuccessorWatched);
            }
            Err(reason) => events::info!(pid, reason, "the successor can't be watched"),
        }
    }

    fn signal_successor(&self, doing: &str, signal: impl Fn(&Process) -> crate::Result<()>) {
        if let Some(process) = &self.successor
            && let Err(error) = signal(process)
        {
            events::warn!(%error, doing, "the successor got no signal");
        }
    }

    fn see_successor(&mut self) {
        let stopped = self.successor.as_ref().is_some_and(|process| process.is_stopped().unwrap_or(false));
        self.results.push_back(if stopped { Input::SuccessorStopped } else { Input::SuccessorRunning });
    }

    fn kill_successor(&mut self) {
        self.signal_successor("end", Process::kill);
        if let Some(process) = &self.successor {
            control::remove_staging(self.control.path(), process.pid());
        }
    }

    fn ask_control_path(&mut self) {
        match control::connect(self.control.path()) {
            Ok(channel) => self.asked = Some(channel),
            Err(_) => self.results.push_back(Input::PathAnswered(None)),
        }
    }

    fn publish_control(&mut self) {
        let published = self.control.publish_again();
        if let Err(error) = &published {
            events::warn!(%error, "the control path can't be published again; it is tried later");
        }
        self.path_watch.again(self.control.path());
        self.results.push_back(Input::ControlPublished(published.map_err(|error| error.to_string())));
    }
}

/// What goes into each message: full ones, and a last one that is not full, be it empty.
fn messages_of<T>(listeners: &[T]) -> impl Iterator<Item = &[T]> {
    let full = listeners.chunks_exact(FDS_PER_MESSAGE_MAX);
    let last = full.remainder();
    full.chain(std::iter::once(last))
}

fn unwritable(writing: &mut Writing, error: &WireError) {
    events::info!(%error, "a client can't be written to");
    *writing = Writing::Failed;
}

/// Only the supervisor's own child can be a successor that we may ever end: a pid in a message proves nothing.
fn child_of(pid: u32, parent: u32) -> Result<Process, String> {
    let opened = Process::open_with_parent(pid).map_err(|error| error.to_string())?;
    let (process, found) = opened.ok_or("there is no such process")?;
    match found {
        Some(found) if found == parent => Ok(process),
        Some(found) => Err(format!("it is a child of {found}, not of the supervisor {parent}")),
        None => Err("/proc hides whose child it is".into()),
    }
}

/// The target of the events of a handover; with the names below it is an interface (`docs/operating.md`).
const EVENTS: &str = "handoff::incumbent";

/// What a milestone means outside the machine: a point at which a test lets the process die, and an event.
fn reached(handoff_id: HandoffId, milestone: Milestone) {
    crash_at(milestone);
    let step = name(milestone);
    match milestone {
        // Nothing more: the successor waits.
        Milestone::LockReleased => {}
        Milestone::Prepared
        | Milestone::DrainedSent
        | Milestone::SealStarted
        | Milestone::SealCompleteSent
        | Milestone::CommitReceived
        | Milestone::Resumed => {
            tell(Level::INFO, move || tracing::info!(target: EVENTS, %handoff_id, step, "handover"));
        }
        Milestone::Aborted | Milestone::InLimbo | Milestone::LockRetaken | Milestone::Superseded => {
            tell(Level::WARN, move || tracing::warn!(target: EVENTS, %handoff_id, step, "handover"));
        }
        Milestone::ResumeFailed => {
            tell(Level::ERROR, move || tracing::error!(target: EVENTS, %handoff_id, step, "handover"));
        }
    }
}

/// Most of them are reached within the pause.
fn tell(level: Level, emit: impl FnOnce() + Send + 'static) {
    if events::is_wanted(level) {
        events::leave(emit);
    }
}

/// The stable name of a milestone in the log.
const fn name(milestone: Milestone) -> &'static str {
    match milestone {
        Milestone::Prepared => "prepared",
        Milestone::DrainedSent => "drained_sent",
        Milestone::SealStarted => "seal_started",
        Milestone::LockReleased => "lock_released",
        Milestone::SealCompleteSent => "seal_complete_sent",
        Milestone::CommitReceived => "commit_received",
        Milestone::Aborted => "aborted",
        Milestone::InLimbo => "in_limbo",
        Milestone::LockRetaken => "lock_retaken",
        Milestone::ResumeFailed => "resume_failed",
        Milestone::Resumed => "resumed",
        Milestone::Superseded => "superseded",
    }
}

fn crash_at(milestone: Milestone) {
    match milestone {
        Milestone::DrainedSent => crash_here!(crate::crash::points::O_AFTER_DRAINED_SENT),
        Milestone::LockReleased => crash_here!(crate::crash::points::O_AFTER_SEAL_FLOCK_RELEASED),
        Milestone::SealCompleteSent => crash_here!(crate::crash::points::O_AFTER_SEAL_COMPLETE_SENT),
        Milestone::CommitReceived => crash_here!(crate::crash::points::O_AFTER_COMMIT_RECV),
        Milestone::Prepared
        | Milestone::SealStarted
        | Milestone::Aborted
        | Milestone::InLimbo
        | Milestone::LockRetaken
        | Milestone::ResumeFailed
        | Milestone::Resumed
        | Milestone::Superseded => {}
    }
}

/// The farthest moment that can be told, if it is farther than that.
fn deadline_in(grace: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(grace).unwrap_or(now)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_of_listeners_is_the_one_that_is_not_full() {
        let lengths = |count| messages_of(&vec![(); count]).map(<[()]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(0), [0]);
        assert_eq!(lengths(1), [1]);
        assert_eq!(lengths(252), [252]);
        assert_eq!(lengths(253), [253, 0]);
        assert_eq!(lengths(1000), [253, 253, 253, 241]);
    }

    #[test]
    fn only_a_child_of_the_supervisor_counts_as_its_successor() {
        let own_pid = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert_eq!(child_of(child.id(), own_pid).unwrap().pid(), child.id());
        assert!(child_of(child.id(), 1).unwrap_err().contains("not of the supervisor 1"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(child_of(child.id(), own_pid).unwrap_err().contains("no such process"));
    }
}
