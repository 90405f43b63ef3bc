//! After the lock was released: commit, limbo, and taking the data back.
//!
//! Nothing here is decided on what was read before the lock was had: whoever has just got it looks at the lease again
//! (promise 1). The lock is not even tried while the lease says that somebody else owns the data, and limbo ends only when
//! somebody serves: a newer owner, or this process.

use std::time::Duration;

use super::{
    Clock, Effect, Effects, Handover, Incumbent, Judging, Leaving, LockTried, Milestone, Reply, State, Successor,
    Timer, Undo, Why, backoff,
};
use crate::ending::{Act, SEE_AGAIN, Sign, Stage};
use crate::lease::{LeaseState, LeaseView};
use crate::message::HandoffId;
use crate::supervisor::Stopped;

/// How long somebody on the control path gets to say Hello.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// How a Commit is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum CommitStep {
    Reading,
    /// The lease is still our seal: has anybody taken over at all?
    Locking,
}

/// How far the way back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum UndoStep {
    /// The lock is held; a hook has yet to return.
    Cancelling,
    /// The lock is held; `resume_after_abort` runs.
    Resuming,
    /// The lock is held; `resume_after_abort` failed and is tried again on a timer.
    ResumeFailed,
    /// Limbo: until the timer, or until the successor ends.
    Waiting,
    Reading,
    /// The lease says that our successor, this pid, is Active.
    FindingHolder(u32),
    Locking(Basis),
    /// The lock is held, but the lease is still our seal: does another process answer on the control path?
    Asking,
    /// The late successor is stopped, looked at, and killed if it is none that serves.
    Ending(Stage),
    Claiming,
    /// The lock is held; the lease is to be written as Active.
    Activating,
    /// The lock is held; that failed and is tried again on a timer.
    ActivateFailed,
}

/// What the lease said when it permitted a try of the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Basis {
    OwnSeal,
    Opening(u32),
    Active {
        /// Who holds the lock, if the system shows it.
        holder: Option<u32>,
    },
}

/// Who owns the data, by one reading of the lease.
enum Owner {
    /// Nobody since we sealed.
    OwnSeal,
    /// The successor of our handover, on its way.
    Opening(u32),
    /// The successor of our handover, serving, if it holds the lock.
    Active(u32),
    /// Somebody of another handover, or started anew.
    Another,
}

impl UndoStep {
    pub(super) fn holds_lock(self) -> bool {
        match self {
            Self::Cancelling
            | Self::Resuming
            | Self::ResumeFailed
            | Self::Claiming
            | Self::Activating
            | Self::ActivateFailed => true,
            Self::Waiting
            | Self::Reading
            | Self::FindingHolder(_)
            | Self::Locking(_)
            | Self::Asking
            | Self::Ending(_) => false,
        }
    }

    /// Whether a new handover may begin in the middle of this.
    pub(super) fn takes_prepare(self) -> bool {
        self == Self::ResumeFailed
    }
}

impl Incumbent {
    pub(super) fn commit(&mut self, handover: Handover, out: &mut Effects) {
        handover.reached(Milestone::CommitReceived, out);
        out.push(Effect::ReadLease);
        self.state = State::Committing(handover, CommitStep::Reading);
    }

    /// Takes the data back if nobody else owns them, and finds out who does.
    pub(super) fn enter_limbo(&mut self, handover: Handover, reply: Reply, out: &mut Effects) {
        let milestone = if reply == Reply::Nothing { Milestone::InLimbo } else { Milestone::Aborted };
        handover.reached(milestone, out);
        self.look(Undo { handover, reply, tries: 0 }, out);
    }

    fn look(&mut self, undo: Undo, out: &mut Effects) {
        out.push(Effect::ReadLease);
        self.state = State::Undoing(undo, UndoStep::Reading);
    }

    fn wait(&mut self, undo: Undo, out: &mut Effects) {
        out.push(Effect::Arm(Timer::Poll, self.config.timing.limbo_poll));
        self.state = State::Undoing(undo, UndoStep::Waiting);
    }

    pub(super) fn lease_read(&mut self, lease: Result<Option<LeaseView>, String>, out: &mut Effects) {
        match self.take_state() {
            State::Committing(handover, CommitStep::Reading) => match self.owner_by(lease, handover.id) {
                Some(Owner::OwnSeal) => {
                    out.push(Effect::TryLock);
                    self.state = State::Committing(handover, CommitStep::Locking);
                }
                Some(Owner::Opening(_) | Owner::Active(_) | Owner::Another) | None => self.committed(out),
            },
            State::Undoing(undo, UndoStep::Reading) => match self.owner_by(lease, undo.handover.id) {
                None => self.wait(undo, out),
                Some(Owner::OwnSeal) => self.try_lock(undo, Basis::OwnSeal, out),
                Some(Owner::Opening(pid)) => self.try_lock(undo, Basis::Opening(pid), out),
                Some(Owner::Active(pid)) => {
                    out.push(Effect::FindHolder);
                    self.state = State::Undoing(undo, UndoStep::FindingHolder(pid));
                }
                Some(Owner::Another) => self.superseded(&undo, out),
            },
            State::Undoing(undo, UndoStep::Ending(stage)) => {
                let sign = self.sign(lease, &undo.handover);
                self.go_on_ending(undo, stage, stage.judged(sign), out);
            }
            state => self.state = state,
        }
    }

    pub(super) fn holder_found(&mut self, holder: Option<u32>, out: &mut Effects) {
        match self.take_state() {
            State::Undoing(undo, UndoStep::FindingHolder(owner)) if holder == Some(owner) => {
                self.superseded(&undo, out)
            }
            State::Undoing(undo, UndoStep::FindingHolder(_)) => self.try_lock(undo, Basis::Active { holder }, out),
            state => self.state = state,
        }
    }

    fn try_lock(&mut self, undo: Undo, basis: Basis, out: &mut Effects) {
        out.push(Effect::TryLock);
        self.state = State::Undoing(undo, UndoStep::Locking(basis));
    }

    pub(super) fn lock_tried(&mut self, tried: LockTried, out: &mut Effects) {
        match (self.take_state(), tried) {
            (State::Committing(handover, CommitStep::Locking), LockTried::Locked(lease)) => {
                self.locked_at_commit(handover, lease, out);
            }
            (State::Committing(_, CommitStep::Locking), LockTried::Held | LockTried::Failed) => self.committed(out),
            (State::Undoing(undo, UndoStep::Locking(_)), LockTried::Locked(lease)) => self.locked(undo, lease, out),
            (State::Undoing(undo, UndoStep::Locking(_)), LockTried::Failed) => self.wait(undo, out),
            (State::Undoing(undo, UndoStep::Locking(basis)), LockTried::Held) => self.held(undo, basis, out),
            (state, LockTried::Locked(_) | LockTried::Held | LockTried::Failed) => self.state = state,
        }
    }

    /// Nobody holds the lock although we were told to leave.
    fn locked_at_commit(&mut self, mut handover: Handover, lease: Option<LeaseView>, out: &mut Effects) {
        match self.owner(lease, handover.id) {
            // Nobody ever took over: who says Commit lies.
            Owner::OwnSeal => {
                let link = handover.link.take();
                out.push(Effect::ClaimLease);
                self.state = State::Undoing(Undo { handover, reply: Reply::Nothing, tries: 0 }, UndoStep::Claiming);
                if let Some(link) = link {
                    self.dismiss(link.session, Why::Violation, out);
                }
            }
            Owner::Opening(_) | Owner::Active(_) | Owner::Another => {
                out.push(Effect::Unlock);
                self.committed(out);
            }
        }
    }

    /// The lock is ours; only now does the lease count.
    fn locked(&mut self, undo: Undo, lease: Option<LeaseView>, out: &mut Effects) {
        match self.owner(lease, undo.handover.id) {
            Owner::OwnSeal | Owner::Opening(_) | Owner::Active(_) => {
                out.push(Effect::ClaimLease);
                self.state = State::Undoing(undo, UndoStep::Claiming);
            }
            Owner::Another => {
                out.push(Effect::Unlock);
                self.superseded(&undo, out);
            }
        }
    }

    fn held(&mut self, undo: Undo, basis: Basis, out: &mut Effects) {
        match basis {
            Basis::OwnSeal => {
                out.push(Effect::AskControlPath);
                out.push(Effect::Arm(Timer::Ask, ASK_INTERVAL));
                self.state = State::Undoing(undo, UndoStep::Asking);
            }
            Basis::Opening(pid) if undo.handover.may_end(pid) => self.stop(undo, out),
            Basis::Opening(_) => self.wait(undo, out),
            // Another process has the lock and has not written its lease yet.
            Basis::Active { holder: Some(_) } => self.wait(undo, out),
            Basis::Active { holder: None } if undo.handover.successor == Successor::Gone => self.wait(undo, out),
            // The system does not show holders, and the owner is not known to be dead: it holds it.
            Basis::Active { holder: None } => self.superseded(&undo, out),
        }
    }

    pub(super) fn path_answered(&mut self, pid: Option<u32>, out: &mut Effects) {
        match self.take_state() {
            State::Undoing(undo, UndoStep::Asking) => {
                out.push(Effect::Disarm(Timer::Ask));
                out.push(Effect::StopAsking);
                match (pid, undo.handover.successor) {
                    // A successor of version 1, which writes no lease.
                    (Some(pid), _) if pid != self.config.me.pid => self.superseded(&undo, out),
                    (Some(_) | None, Successor::Watched(watched)) if undo.handover.may_end(watched) => {
                        self.stop(undo, out);
                    }
                    (Some(_) | None, Successor::Watched(_) | Successor::Unwatched(_)) => self.wait(undo, out),
                    (Some(_) | None, Successor::Gone) => self.wait(undo, out),
                }
            }
            state => self.state = state,
        }
    }

    fn stop(&mut self, undo: Undo, out: &mut Effects) {
        self.go_on_ending(undo, Stage::Stopping, Some(Stage::begin()), out);
    }

    pub(super) fn successor_seen(&mut self, stopped: Stopped, out: &mut Effects) {
        match self.take_state() {
            State::Undoing(undo, UndoStep::Ending(stage)) => {
                self.go_on_ending(undo, stage, stage.seen(stopped), out);
            }
            state => self.state = state,
        }
    }

    pub(super) fn stopping_due(&mut self, out: &mut Effects) {
        match self.take_state() {
            State::Undoing(undo, UndoStep::Ending(stage)) => {
                self.go_on_ending(undo, stage, stage.again(), out);
            }
            state => self.state = state,
        }
    }

    /// A lease that can't be read is read again, however long: a supervisor may count on that the successor stands still.
    fn go_on_ending(&mut self, undo: Undo, before: Stage, next: Option<(Stage, Act)>, out: &mut Effects) {
        self.state = State::Undoing(undo, UndoStep::Ending(next.map_or(before, |(stage, _)| stage)));
        match next.map(|(_, act)| act) {
            Some(Act::Stop) => out.extend([Effect::StopSuccessor, Effect::SeeSuccessor]),
            Some(Act::See) => out.push(Effect::SeeSuccessor),
            Some(Act::SeeLater) => out.push(Effect::Arm(Timer::Stopping, SEE_AGAIN)),
            Some(Act::Read) => out.push(Effect::ReadLease),
            Some(Act::ReadLater) => out.push(Effect::Arm(Timer::Stopping, self.config.timing.limbo_poll)),
            Some(Act::LetGoOn) => self.decided(Effect::ContinueSuccessor, out),
            Some(Act::Kill) => self.decided(Effect::KillSuccessor, out),
            None => {}
        }
    }

    fn decided(&mut self, effect: Effect, out: &mut Effects) {
        out.push(effect);
        match self.take_state() {
            State::Undoing(undo, _) => self.wait(undo, out),
            state => self.state = state,
        }
    }

    /// What the lease says of our late successor, which is the only one that is ever ended.
    fn sign(&self, lease: Result<Option<LeaseView>, String>, handover: &Handover) -> Sign {
        match self.owner_by(lease, handover.id) {
            Some(Owner::OwnSeal) => Sign::Ends,
            Some(Owner::Opening(pid)) if handover.may_end(pid) => Sign::Ends,
            Some(Owner::Opening(_) | Owner::Active(_) | Owner::Another) => Sign::Spares,
            None => Sign::None,
        }
    }

    pub(super) fn claimed(&mut self, result: Result<u64, String>, out: &mut Effects) {
        match (self.take_state(), result) {
            (State::Undoing(undo, UndoStep::Claiming), Ok(epoch)) => {
                self.config.epoch = epoch;
                undo.handover.reached(Milestone::LockRetaken, out);
                out.push(Effect::ActivateLease);
                self.state = State::Undoing(undo, UndoStep::Activating);
            }
            (State::Undoing(undo, UndoStep::Claiming), Err(_)) => self.wait(undo, out),
            (state, Ok(_) | Err(_)) => self.state = state,
        }
    }

    pub(super) fn activated(&mut self, result: Result<(), String>, out: &mut Effects) {
        match (self.take_state(), result) {
            (State::Undoing(undo, UndoStep::Activating), Ok(())) => {
                // We hold the lock, so it is not Active; left alive it might take the lock in the next handover.
                if let Successor::Watched(_) = undo.handover.successor {
                    out.push(Effect::KillSuccessor);
                }
                self.run_resume(Undo { tries: 0, ..undo }, out);
            }
            (State::Undoing(mut undo, UndoStep::Activating), Err(_)) => {
                out.push(Effect::Arm(Timer::Retry, backoff(undo.tries)));
                undo.tries = undo.tries.saturating_add(1);
                self.state = State::Undoing(undo, UndoStep::ActivateFailed);
            }
            (state, Ok(()) | Err(_)) => self.state = state,
        }
    }

    pub(super) fn retry_due(&mut self, out: &mut Effects) {
        match self.take_state() {
            State::Undoing(undo, UndoStep::ActivateFailed) => {
                out.push(Effect::ActivateLease);
                self.state = State::Undoing(undo, UndoStep::Activating);
            }
            State::Undoing(undo, UndoStep::ResumeFailed) => self.run_resume(undo, out),
            state => self.state = state,
        }
    }

    pub(super) fn poll_due(&mut self, out: &mut Effects) {
        match self.take_state() {
            State::Undoing(undo, UndoStep::Waiting) => self.look(undo, out),
            state => self.state = state,
        }
    }

    pub(super) fn slack_passed(&mut self, out: &mut Effects) {
        let liveness = self.config.timing.liveness;
        let Some(handover) = self.handover_mut() else { return };
        if handover.late_judges == Judging::AfterFreshInterval {
            handover.late_judges = Judging::AtOnce;
            return out.push(Effect::Arm(Timer::Late, liveness));
        }
        handover.late = Clock::Late;
        if let State::Sealed(handover) = &self.state
            && let Some(link) = handover.link
        {
            self.dismiss(link.session, Why::Late, out);
        }
    }

    pub(super) fn successor_watched(&mut self) {
        if let Some(handover) = self.handover_mut()
            && let Successor::Unwatched(pid) = handover.successor
        {
            handover.successor = Successor::Watched(pid);
        }
    }

    pub(super) fn successor_exited(&mut self, out: &mut Effects) {
        if let Some(handover) = self.handover_mut() {
            handover.successor = Successor::Gone;
        }
        match self.take_state() {
            State::Undoing(undo, UndoStep::Waiting) => {
                out.push(Effect::Disarm(Timer::Poll));
                self.look(undo, out);
            }
            State::Undoing(undo, UndoStep::Asking) => {
                out.push(Effect::Disarm(Timer::Ask));
                out.push(Effect::StopAsking);
                self.look(undo, out);
            }
            State::Undoing(undo, UndoStep::Ending(_)) => {
                out.push(Effect::Disarm(Timer::Stopping));
                self.look(undo, out);
            }
            state => self.state = state,
        }
    }

    fn committed(&mut self, out: &mut Effects) {
        self.leave(Leaving::Committed, out);
    }

    fn superseded(&mut self, undo: &Undo, out: &mut Effects) {
        // Who told it to stand still, this process or a supervisor, may have died before it decided.
        if let Successor::Watched(_) = undo.handover.successor {
            out.push(Effect::ContinueSuccessor);
        }
        undo.handover.reached(Milestone::Superseded, out);
        self.leave(Leaving::Superseded, out);
    }

    fn owner_by(&self, lease: Result<Option<LeaseView>, String>, id: HandoffId) -> Option<Owner> {
        lease.ok().map(|lease| self.owner(lease, id))
    }

    /// Every decision about ownership rests on this alone.
    fn owner(&self, lease: Option<LeaseView>, id: HandoffId) -> Owner {
        let Some(lease) = lease else { return Owner::OwnSeal };
        let ours = lease.epoch == self.config.epoch && lease.owner == self.config.me;
        if ours || lease.epoch < self.config.epoch {
            return Owner::OwnSeal;
        }
        match (lease.handoff_id == Some(id), lease.state) {
            (true, LeaseState::Opening) => Owner::Opening(lease.owner.pid),
            (true, LeaseState::Active) => Owner::Active(lease.owner.pid),
            (true, LeaseState::Sealed) | (false, _) => Owner::Another,
        }
    }
}

impl Handover {
    /// Whether this process is our own successor, and so late that it may be ended.
    fn may_end(&self, pid: u32) -> bool {
        self.late == Clock::Late && self.successor == Successor::Watched(pid)
    }
}
