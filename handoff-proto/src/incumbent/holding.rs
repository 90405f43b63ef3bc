//! The handover while the lock is held: drain, seal, release; and the way back to serving.
//!
//! Nothing here gives the lock away but one [`Effect::ReleaseLock`], after a seal that succeeded and a report that can be
//! sent (promise 2). A resume never starts before the hook that runs has returned.

use super::limbo::UndoStep;
use super::sessions::Order;
use super::{
    Channel, Clock, Daemon, Directory, Drain, Effect, Effects, Handover, Incumbent, Judging, Leaving, Memory,
    Milestone, Prepare, Progress, Reply, ResumeEnd, Seal, State, Successor, Timer, Undo, Why, backoff,
};
use crate::bounded::brief;
use crate::message::Message;
use crate::revisions::{self, SHARDS_MAX};

use std::time::Duration;

/// The least time between two reports of a seal's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A list of revisions of this length fits a frame whatever they are.
const FITS_SURELY: usize = 64 * 1024;

/// What was asked for beyond the drain before the drain was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Early {
    NotAsked,
    /// The seal (version 2).
    Asked,
    /// The end of a handover that has not begun.
    CalledOff,
}

/// When the next report of the seal's progress may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pace {
    AtOnce,
    OnTimer,
    /// On the timer, and this one waits.
    Waiting(Progress),
}

impl Incumbent {
    /// Begins a handover. The state is `Serving`, or as good as that.
    pub(super) fn accept(&mut self, prepare: Prepare, out: &mut Effects) {
        out.push(Effect::Disarm(Timer::Session(prepare.link.session)));
        let handover = Handover {
            id: prepare.id,
            link: Some(prepare.link),
            successor: Successor::Unwatched(prepare.successor_pid),
            directory: Directory::Released,
            late: Clock::InTime,
            deadline_judges: Judging::AtOnce,
            late_judges: Judging::AtOnce,
        };
        match prepare.early {
            Early::CalledOff => self.end_undrained(handover, Reply::Resumed, out),
            Early::NotAsked | Early::Asked => {
                // While the daemon serves: it adds nothing to the pause.
                out.push(match prepare.channel {
                    Channel::Came => Effect::PassDirectory(prepare.link.session),
                    Channel::None => Effect::StampLease(prepare.id),
                });
                self.state = State::Stamping(handover, prepare);
            }
        }
    }

    /// A successor without a part in the directory's lock can't take it from us but through a moment in which it is a
    /// stranger's to take. Nobody waits yet, so the handover is refused instead.
    pub(super) fn directory_passed(&mut self, result: Result<(), String>, out: &mut Effects) {
        match (self.take_state(), result) {
            (State::Stamping(handover, prepare), Ok(())) => {
                out.push(Effect::StampLease(prepare.id));
                self.state = State::Stamping(Handover { directory: Directory::Passed, ..handover }, prepare);
            }
            (State::Stamping(handover, _), Err(error)) => {
                let error = format!("the lock of the data directory can't be passed to the successor: {error}");
                self.end_undrained(handover, Reply::DrainFailed(brief(error)), out);
            }
            (state, Ok(()) | Err(_)) => self.state = state,
        }
    }

    pub(super) fn stamped(&mut self, result: Result<(), String>, out: &mut Effects) {
        match self.take_state() {
            State::Stamping(handover, prepare) => match (result, handover.link) {
                (Ok(()), Some(_)) => self.start_drain(handover, prepare, out),
                (Ok(()), None) => self.end_undrained(handover, Reply::Nothing, out),
                (Err(error), _) => {
                    let error = format!("the lease can't be written: {error}");
                    self.end_undrained(handover, Reply::DrainFailed(brief(error)), out);
                }
            },
            state => self.state = state,
        }
    }

    /// Ends a handover that did not come to its drain. An earlier one may still be owed its resume.
    fn end_undrained(&mut self, mut handover: Handover, reply: Reply, out: &mut Effects) {
        match self.daemon {
            Daemon::Serves => {
                self.answer(&mut handover, reply, out);
                self.end_handover(handover, out);
            }
            Daemon::Drained => self.undo_holding(handover, reply, out),
        }
    }

    fn start_drain(&mut self, handover: Handover, prepare: Prepare, out: &mut Effects) {
        handover.reached(Milestone::Prepared, out);
        out.push(Effect::Arm(Timer::Deadline, prepare.deadline));
        out.push(Effect::Arm(Timer::Late, prepare.deadline.saturating_add(self.config.timing.limbo_slack)));
        out.push(Effect::RememberListenerFlags);
        let (pid, supervisor) = (prepare.successor_pid, self.peer_pid(prepare.link.session));
        if let Some(parent) = supervisor
            && ![0, 1, self.config.me.pid, parent].contains(&pid)
        {
            out.push(Effect::WatchSuccessor { pid, parent });
        }
        // The hook last: until then the daemon serves.
        self.daemon = Daemon::Drained;
        out.push(Effect::RunDrain { grace: prepare.grace });
        self.state = State::Draining(handover, prepare.early);
    }

    pub(super) fn drain_ended(&mut self, result: Result<Drain, String>, out: &mut Effects) {
        match (self.take_state(), result) {
            (State::Draining(handover, early), Ok(drain)) => {
                let Drain { open_conns_remaining, accept_closed } = drain;
                let drained = Message::Drained { open_conns_remaining, accept_closed };
                match early {
                    Early::Asked => {
                        handover.send_with_next(drained, out);
                        handover.reached(Milestone::DrainedSent, out);
                        self.start_seal(handover, out);
                    }
                    Early::NotAsked | Early::CalledOff => {
                        handover.send(drained, out);
                        handover.reached(Milestone::DrainedSent, out);
                        self.state = State::Drained(handover);
                    }
                }
            }
            (State::Draining(handover, _), Err(error)) => {
                self.undo_holding(handover, Reply::DrainFailed(brief(error)), out);
            }
            (State::Undoing(undo, UndoStep::Cancelling), Ok(_) | Err(_)) => self.run_resume(undo, out),
            (state, Ok(_) | Err(_)) => self.state = state,
        }
    }

    fn start_seal(&mut self, handover: Handover, out: &mut Effects) {
        out.push(Effect::RunSeal);
        handover.reached(Milestone::SealStarted, out);
        self.state = State::Sealing(handover, Pace::AtOnce);
    }

    pub(super) fn seal_progressed(&mut self, progress: Progress, out: &mut Effects) {
        if let State::Sealing(handover, pace) = &mut self.state {
            *pace = match *pace {
                Pace::AtOnce => {
                    handover.send(progress_message(progress), out);
                    out.push(Effect::Arm(Timer::Progress, PROGRESS_INTERVAL));
                    Pace::OnTimer
                }
                Pace::OnTimer | Pace::Waiting(_) => Pace::Waiting(progress),
            };
        }
    }

    pub(super) fn progress_due(&mut self, out: &mut Effects) {
        if let State::Sealing(handover, pace) = &mut self.state {
            *pace = match *pace {
                Pace::Waiting(progress) => {
                    handover.send(progress_message(progress), out);
                    out.push(Effect::Arm(Timer::Progress, PROGRESS_INTERVAL));
                    Pace::OnTimer
                }
                Pace::AtOnce | Pace::OnTimer => Pace::AtOnce,
            };
        }
    }

    pub(super) fn seal_ended(&mut self, result: Result<Seal, String>, out: &mut Effects) {
        match self.take_state() {
            State::Sealing(handover, pace) => {
                if pace != Pace::AtOnce {
                    out.push(Effect::Disarm(Timer::Progress));
                }
                match result.and_then(|seal| sendable(&handover, seal)) {
                    Ok(seal) => {
                        out.push(Effect::ReleaseLock(handover.directory));
                        self.state = State::Releasing(handover, seal);
                    }
                    Err(error) => self.undo_holding(handover, Reply::SealFailed(brief(error)), out),
                }
            }
            // A seal that ends after an abort keeps the lock.
            State::Undoing(undo, UndoStep::Cancelling) => self.run_resume(undo, out),
            state => self.state = state,
        }
    }

    pub(super) fn released(&mut self, result: Result<(), String>, out: &mut Effects) {
        match (self.take_state(), result) {
            (State::Releasing(handover, seal), Ok(())) => {
                self.memory = Memory::Stale;
                handover.reached(Milestone::LockReleased, out);
                send_sealed(&handover, seal, out);
                handover.reached(Milestone::SealCompleteSent, out);
                out.push(Effect::Disarm(Timer::Deadline));
                match (handover.link, handover.late) {
                    (Some(_), Clock::InTime) => self.state = State::Sealed(handover),
                    (None, _) => self.enter_limbo(handover, Reply::Nothing, out),
                    (Some(link), Clock::Late) => {
                        self.state = State::Sealed(handover);
                        self.dismiss(link.session, Why::Late, out);
                    }
                }
            }
            (State::Releasing(handover, _), Err(error)) => {
                let error = format!("the lease can't be written: {error}");
                self.undo_holding(handover, Reply::SealFailed(brief(error)), out);
            }
            (state, Ok(()) | Err(_)) => self.state = state,
        }
    }

    /// Does what the supervisor says to the handover under way, or closes the session if it is not its turn.
    pub(super) fn obey(&mut self, order: Order, out: &mut Effects) {
        match (self.take_state(), order) {
            (State::Draining(handover, Early::NotAsked), Order::Seal) if handover.version() >= 2 => {
                self.state = State::Draining(handover, Early::Asked);
            }
            (State::Drained(handover), Order::Seal) => self.start_seal(handover, out),
            (State::Sealed(handover), Order::Commit) => self.commit(handover, out),
            (State::Draining(handover, _) | State::Sealing(handover, _), Order::Undo) => {
                self.cancel(handover, Reply::Resumed, out);
            }
            (State::Drained(handover), Order::Undo) => self.undo_holding(handover, Reply::Resumed, out),
            (State::Sealed(handover), Order::Undo) => self.enter_limbo(handover, Reply::Resumed, out),
            (State::Undoing(undo, step), Order::Undo) => {
                self.state = State::Undoing(Undo { reply: Reply::Resumed, ..undo }, step);
            }
            // It was on its way when we gave up by ourselves.
            (State::Undoing(undo, step), Order::Seal) if undo.handover.version() >= 2 => {
                self.state = State::Undoing(undo, step);
            }
            (state, Order::Seal | Order::Commit | Order::Undo) => {
                self.state = state;
                if let Some(link) = self.handover().and_then(|handover| handover.link) {
                    self.dismiss(link.session, Why::Violation, out);
                }
            }
        }
    }

    /// The handover's session is gone; nobody is left to answer.
    pub(super) fn supervisor_lost(&mut self, out: &mut Effects) {
        match self.take_state() {
            State::Draining(handover, _) => self.cancel(handover, Reply::Nothing, out),
            State::Sealing(handover, _) => self.cancel(handover, Reply::Nothing, out),
            State::Drained(handover) => self.undo_holding(handover, Reply::Nothing, out),
            State::Sealed(handover) => self.enter_limbo(handover, Reply::Nothing, out),
            // Their result decides.
            state @ (State::Stamping(..) | State::Releasing(..) | State::Committing(..) | State::Undoing(..)) => {
                self.state = state;
            }
            state @ (State::Serving | State::Left) => self.state = state,
        }
    }

    pub(super) fn deadline_passed(&mut self, out: &mut Effects) {
        let liveness = self.config.timing.liveness;
        if let Some(handover) = self.handover_mut()
            && handover.deadline_judges == Judging::AfterFreshInterval
        {
            handover.deadline_judges = Judging::AtOnce;
            return out.push(Effect::Arm(Timer::Deadline, liveness));
        }
        match self.take_state() {
            State::Draining(handover, _) => {
                self.cancel(handover, Reply::DrainFailed("the drain ran past the deadline".into()), out);
            }
            State::Sealing(handover, _) => {
                self.cancel(handover, Reply::SealFailed("the seal ran past the deadline".into()), out);
            }
            State::Drained(handover) => {
                let link = handover.link;
                self.state = State::Drained(handover);
                if let Some(link) = link {
                    self.dismiss(link.session, Why::Late, out);
                }
            }
            state @ (State::Stamping(..) | State::Releasing(..) | State::Sealed(_) | State::Committing(..)) => {
                self.state = state;
            }
            state @ (State::Undoing(..) | State::Serving | State::Left) => self.state = state,
        }
    }

    /// Ends a handover whose hook is running: the hook first.
    fn cancel(&mut self, handover: Handover, reply: Reply, out: &mut Effects) {
        out.push(Effect::CancelHook);
        out.push(Effect::Disarm(Timer::Progress));
        handover.reached(Milestone::Aborted, out);
        self.state = State::Undoing(Undo { handover, reply, tries: 0 }, UndoStep::Cancelling);
    }

    /// Ends a handover while the lock is held and no hook runs.
    fn undo_holding(&mut self, handover: Handover, reply: Reply, out: &mut Effects) {
        handover.reached(Milestone::Aborted, out);
        self.run_resume(Undo { handover, reply, tries: 0 }, out);
    }

    /// Lets the daemon serve again. The lock is held, the lease is Active, and no hook runs.
    pub(super) fn run_resume(&mut self, mut undo: Undo, out: &mut Effects) {
        let state_may_have_changed = self.memory == Memory::Stale;
        // The flags first: the daemon accepts clients as soon as the hook says so.
        out.push(Effect::RestoreListenerFlags);
        out.push(Effect::RunResume { state_may_have_changed, epoch: self.config.epoch });
        if state_may_have_changed {
            out.push(Effect::PublishControl);
        }
        self.tell_failure(&mut undo, out);
        self.state = State::Undoing(undo, UndoStep::Resuming);
    }

    /// A resume may hang, and from version 2 on the supervisor bounds it, from the failure on: it asks for the resume, and waits for
    /// `Resumed`. One of version 1 has nothing to wait for and may try again at once, so it hears of the failure after the resume.
    fn tell_failure(&mut self, undo: &mut Undo, out: &mut Effects) {
        if undo.handover.version() >= 2
            && let Reply::DrainFailed(_) | Reply::SealFailed(_) = undo.reply
        {
            let failure = std::mem::replace(&mut undo.reply, Reply::Nothing);
            self.answer(&mut undo.handover, failure, out);
        }
    }

    pub(super) fn resume_ended(&mut self, end: ResumeEnd, out: &mut Effects) {
        match (self.take_state(), end) {
            (State::Undoing(mut undo, UndoStep::Resuming), ResumeEnd::Serving) => {
                self.memory = Memory::Good;
                self.daemon = Daemon::Serves;
                undo.handover.reached(Milestone::Resumed, out);
                self.answer(&mut undo.handover, undo.reply, out);
                self.end_handover(undo.handover, out);
            }
            (State::Undoing(undo, UndoStep::Resuming), ResumeEnd::Failed(error)) => {
                self.resume_failed(undo, error, out);
            }
            (State::Undoing(undo, UndoStep::Resuming), ResumeEnd::NotReadable(reason)) => {
                undo.handover.reached(Milestone::ResumeFailed, out);
                out.push(Effect::Unlock);
                self.leave(Leaving::NotReadable(reason), out);
            }
            (state, ResumeEnd::Serving | ResumeEnd::Failed(_) | ResumeEnd::NotReadable(_)) => self.state = state,
        }
    }

    fn resume_failed(&mut self, mut undo: Undo, error: String, out: &mut Effects) {
        undo.handover.reached(Milestone::ResumeFailed, out);
        let suffix = format!("; the resume failed too and is tried again: {error}");
        let reply = match undo.reply {
            Reply::DrainFailed(text) => Reply::DrainFailed(brief(text + &suffix)),
            Reply::SealFailed(text) => Reply::SealFailed(brief(text + &suffix)),
            reply @ (Reply::Nothing | Reply::Resumed) => reply,
        };
        // "Resumed" would not be true yet; a failure is.
        undo.reply = if reply == Reply::Resumed {
            reply
        } else {
            self.answer(&mut undo.handover, reply, out);
            Reply::Nothing
        };
        out.push(Effect::Arm(Timer::Retry, backoff(undo.tries)));
        undo.tries = undo.tries.saturating_add(1);
        self.state = State::Undoing(undo, UndoStep::ResumeFailed);
        if let Some(prepare) = self.pending.take() {
            self.give_up_resume(out);
            self.accept(prepare, out);
        }
    }

    /// A new handover takes over from a resume that keeps failing.
    pub(super) fn give_up_resume(&mut self, out: &mut Effects) {
        if let State::Undoing(undo, _) = self.take_state() {
            out.push(Effect::Disarm(Timer::Retry));
            self.disarm_handover(undo.handover, out);
        }
        self.state = State::Serving;
    }

    fn end_handover(&mut self, handover: Handover, out: &mut Effects) {
        self.disarm_handover(handover, out);
        self.state = State::Serving;
        if let Some(prepare) = self.pending.take() {
            self.accept(prepare, out);
        }
    }

    fn disarm_handover(&mut self, handover: Handover, out: &mut Effects) {
        out.push(Effect::Disarm(Timer::Deadline));
        out.push(Effect::Disarm(Timer::Late));
        out.push(Effect::ForgetSuccessor);
        self.release_session(handover.link, handover.id, out);
    }

    fn answer(&mut self, handover: &mut Handover, reply: Reply, out: &mut Effects) {
        let handoff_id = handover.id;
        match reply {
            Reply::Nothing => {}
            Reply::Resumed if handover.version() < 2 => {}
            Reply::Resumed => handover.send(Message::Resumed { handoff_id }, out),
            Reply::DrainFailed(error) if handover.version() >= 2 => {
                handover.send(Message::DrainFailed { handoff_id, error }, out);
            }
            Reply::DrainFailed(_) => {
                if let Some(link) = handover.link.take() {
                    self.dismiss(link.session, Why::Failed, out);
                }
            }
            Reply::SealFailed(error) => {
                handover.send(Message::SealFailed { handoff_id, error, partial_state: String::new() }, out);
            }
        }
    }
}

fn progress_message(progress: Progress) -> Message {
    let Progress { shards_sealed, shards_total, last_revision } = progress;
    Message::SealProgress { shards_sealed, shards_total, last_revision }
}

/// Refuses a report that can't be sent, as long as the lock is held.
fn sendable(handover: &Handover, seal: Seal) -> Result<Seal, String> {
    let shards = seal.last_revision_per_shard.len();
    if shards > SHARDS_MAX {
        return Err(format!("the seal reports {shards} shards, at most {SHARDS_MAX} can be handed over"));
    }
    if handover.version() < 2 && shards > FITS_SURELY {
        let message = complete(handover, seal.last_revision_per_shard.clone(), seal.data_dir_fingerprint);
        if !revisions::fits_a_frame(handover.version(), &message) {
            return Err(format!(
                "the seal reports {shards} shards, which do not fit one frame of protocol version 1; upgrade the supervisor"
            ));
        }
    }
    Ok(seal)
}

fn send_sealed(handover: &Handover, seal: Seal, out: &mut Effects) {
    let split = revisions::split(handover.version(), seal.last_revision_per_shard);
    for part in split.ahead {
        handover.send(part, out);
    }
    handover.send(complete(handover, split.rest, seal.data_dir_fingerprint), out);
}

fn complete(handover: &Handover, last_revision_per_shard: Vec<u64>, data_dir_fingerprint: [u8; 32]) -> Message {
    Message::SealComplete { handoff_id: handover.id, last_revision_per_shard, data_dir_fingerprint }
}
