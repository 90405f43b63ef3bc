//! Undoing a handover: the successor is ended, the incumbent resumes (promise 6).
//!
//! ```text
//!  before Begin: ResumeAfterAbort to O at once ── N: kill ───────────────────────────────────┐
//!                                                                                            ▼
//!  after Begin:  N of version 1, or no lease:  Asking who listens ── N itself ─▶ committed  Killed ─▶ Over ─▶ resume O
//!                                                   │ not N                          ▲       ▲
//!                                                   ▼                                │       │
//!                else:                          Stopping ─▶ Looking at the lease ── Active   │
//!                                                                 └─ not Active ─────────────┘
//! ```
//!
//! A successor that has begun is not told of the abort: it might obey after it was found to serve.

use std::time::Duration;

use crate::bounded::brief;
use crate::ending::{Act, SEE_AGAIN, Sign, Stage, Unread, sign};
use crate::machine::Timing;
use crate::message::{HandoffId, Message, Phase};

use super::checks::{not_ready, unfit};
use super::handover::{Begun, Handover, Step};
use super::peer::Link;
use super::{Effect, LeaseReading, Milestone, Outcome, Ownership, Standing, Stopped, Timer};

/// A handover that is being undone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Undoing {
    reason: String,
    /// The successor's turn, if it had come.
    begun: Option<Begun>,
    ending: Ending,
    resuming: Resuming,
}

/// How far the successor's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ending {
    /// Who listens on the control path? A successor of version 1 leaves no trace in the lease.
    Asking,
    /// It said that it leaves: it has a moment for its last words.
    Leaving,
    /// It is stopped, looked at, and killed if it does not serve.
    ByForce(Stage),
    /// It is gone.
    Gone,
    /// It was sent SIGKILL and the kernel still holds it.
    Lingers,
}

/// How far the incumbent's return is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Resuming {
    /// It is told when the successor is gone.
    Later,
    /// It was told and will answer.
    Awaited,
    /// It is left to itself: it takes its data back, and nobody has heard that it did.
    Alone,
    /// It serves, or it is dead.
    Over,
}

impl Undoing {
    /// Whether this message ends the wait for the incumbent. What crossed our own message on its way is dropped.
    pub(super) fn take_answer(&self, message: &Message, id: HandoffId) -> bool {
        matches!(message, Message::Resumed { handoff_id } if *handoff_id == id && self.resuming == Resuming::Awaited)
    }

    /// A Ready that was under way when the successor's end was decided: why it must not serve, if so.
    pub(super) fn take_late_ready(&mut self, message: Message, id: HandoffId) -> Option<String> {
        let begun = self.begun.as_mut()?;
        match message {
            Message::Revisions { first_shard, revisions } => {
                begun.report.push(first_shard, &revisions).err().map(|error| error.to_string())
            }
            Message::NotReady { handoff_id, reason } if handoff_id == id => Some(not_ready(&reason)),
            Message::Ready { handoff_id, healthz_ok, advertised_revision_per_shard, .. } if handoff_id == id => {
                let advertised = begun.report.complete(&advertised_revision_per_shard);
                unfit(healthz_ok, &advertised, begun.seal.as_ref())
            }
            _ => None,
        }
    }

    pub(super) fn fresh_intervals(&self, timing: &Timing, resume: Duration, effects: &mut Vec<Effect>) {
        match self.ending {
            Ending::Leaving => effects.push(Effect::Arm(Timer::Ended, timing.parting)),
            Ending::ByForce(_) => effects.push(Effect::Arm(Timer::Ended, timing.settle)),
            Ending::Asking | Ending::Gone | Ending::Lingers => {}
        }
        match self.resuming {
            Resuming::Awaited => {
                effects.push(Effect::Arm(Timer::Resumed, resume));
                effects.push(Effect::Arm(Timer::IncumbentSilent, timing.liveness));
            }
            Resuming::Later | Resuming::Alone | Resuming::Over => {}
        }
    }
}

impl Handover {
    /// Ends the successor and lets the incumbent resume, whatever the step.
    pub(super) fn undo(&mut self, reason: String, effects: &mut Vec<Effect>) {
        match &mut self.step {
            Step::Connecting | Step::GreetingIncumbent | Step::Spawning => self.refuse(reason, effects),
            Step::GreetingSuccessor | Step::Preparing { .. } => self.undo_untold(reason, effects),
            Step::Draining | Step::Sealing { .. } | Step::Looking { .. } => {
                self.undo_started(effects);
                let resuming = self.tell_resume(effects);
                self.end_before_begin(reason, resuming, effects);
            }
            Step::AwaitingReady(begun) | Step::AwaitingPath(begun) => {
                let begun = std::mem::take(begun);
                self.undo_started(effects);
                self.end_after_begin(reason, begun, effects);
            }
            Step::Undoing(_) | Step::Over => {}
        }
    }

    /// The same for a successor that says itself that nothing will come of it, and is on its way out.
    pub(super) fn undo_given_up(&mut self, reason: String, effects: &mut Vec<Effect>) {
        self.undo_started(effects);
        let (begun, resuming) = match &mut self.step {
            Step::AwaitingReady(begun) | Step::AwaitingPath(begun) => (Some(std::mem::take(begun)), Resuming::Later),
            Step::Draining | Step::Sealing { .. } | Step::Looking { .. } => (None, self.tell_resume(effects)),
            _ => (None, Resuming::Over),
        };
        self.step = Step::Undoing(Undoing { reason, begun, ending: Ending::Gone, resuming });
        if self.successor_link() == Link::Gone {
            return self.go_on_undoing(effects);
        }
        self.set_ending(Ending::Leaving);
        effects.push(Effect::Arm(Timer::Ended, self.timing.parting));
    }

    /// The same for an incumbent that needs not be told: it was never asked to drain, or has resumed by itself.
    pub(super) fn undo_untold(&mut self, reason: String, effects: &mut Vec<Effect>) {
        self.undo_started(effects);
        self.end_before_begin(reason, Resuming::Over, effects);
    }

    /// A successor that fails the checks must not serve, whatever its lease says: it is not looked at.
    pub(super) fn undo_unfit(&mut self, reason: String, begun: Begun, effects: &mut Vec<Effect>) {
        self.undo_started(effects);
        let undoing = Undoing { reason, begun: Some(begun), ending: Ending::Gone, resuming: Resuming::Later };
        self.step = Step::Undoing(undoing);
        self.kill_or_go_on(effects);
    }

    fn undo_started(&mut self, effects: &mut Vec<Effect>) {
        self.overdue = None;
        let timers = [
            Timer::Hello,
            Timer::Warm,
            Timer::DrainGrace,
            Timer::Deadline,
            Timer::Late,
            Timer::Open,
            Timer::IncumbentSilent,
            Timer::SuccessorSilent,
            Timer::AskPath,
        ];
        effects.extend(timers.map(Effect::Disarm));
        effects.push(Effect::Reached(Milestone::UndoStarted));
    }

    fn end_before_begin(&mut self, reason: String, resuming: Resuming, effects: &mut Vec<Effect>) {
        let told = Message::Abort { handoff_id: self.plan.handoff_id, reason: brief(reason.clone()) };
        self.tell_successor(told, effects);
        self.step = Step::Undoing(Undoing { reason, begun: None, ending: Ending::Gone, resuming });
        self.kill_or_go_on(effects);
    }

    fn end_after_begin(&mut self, reason: String, begun: Begun, effects: &mut Vec<Effect>) {
        let leaves_a_trace = self.successor_version() >= 2 && self.plan.ownership == Ownership::ByLease;
        let undoing = Undoing { reason, begun: Some(begun), ending: Ending::Gone, resuming: Resuming::Later };
        self.step = Step::Undoing(undoing);
        match (self.successor_link(), leaves_a_trace) {
            (Link::Gone, _) => self.go_on_undoing(effects),
            (Link::Open | Link::Closing | Link::Cut, true) => self.go_on_ending(Some(Stage::begin()), effects),
            (Link::Open | Link::Closing | Link::Cut, false) => {
                self.set_ending(Ending::Asking);
                effects.push(Effect::AskControlPath);
            }
        }
    }

    fn kill_or_go_on(&mut self, effects: &mut Vec<Effect>) {
        if self.successor_link() == Link::Gone {
            self.go_on_undoing(effects);
        } else {
            self.kill(effects);
        }
    }

    fn kill(&mut self, effects: &mut Vec<Effect>) {
        self.set_ending(Ending::ByForce(Stage::Killed));
        effects.push(Effect::Disarm(Timer::Look));
        effects.push(Effect::Arm(Timer::Ended, self.timing.settle));
        effects.push(Effect::KillSuccessor);
    }

    /// The late word of a successor that is being ended shows that it must not serve.
    pub(super) fn condemn(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if let Step::Undoing(undoing) = &mut self.step {
            match undoing.ending {
                Ending::Asking | Ending::ByForce(Stage::Stopping | Stage::Looking) => {
                    undoing.reason = reason;
                    self.kill(effects);
                }
                Ending::Leaving | Ending::ByForce(Stage::Killed) | Ending::Gone | Ending::Lingers => {}
            }
        }
    }

    pub(super) fn successor_answers(&mut self, effects: &mut Vec<Effect>) {
        if self.ending() == Some(Ending::Asking) {
            self.found_active(effects);
        }
    }

    pub(super) fn successor_does_not_answer(&mut self, effects: &mut Vec<Effect>) {
        if self.ending() == Some(Ending::Asking) {
            self.go_on_ending(Some(Stage::begin()), effects);
        }
    }

    pub(super) fn successor_stopped(&mut self, stopped: Stopped, effects: &mut Vec<Effect>) {
        let next = self.stage().and_then(|stage| stage.seen(stopped));
        self.go_on_ending(next, effects);
    }

    pub(super) fn looked_at_stopped(&mut self, reading: &LeaseReading, effects: &mut Vec<Effect>) {
        let sign = self.successor.as_ref().map_or(Sign::Ends, |peer| sign(reading, peer.process));
        let next = self.stage().and_then(|stage| stage.judged(sign));
        self.go_on_ending(next, effects);
    }

    pub(super) fn look_if_stopped(&mut self, effects: &mut Vec<Effect>) {
        let next = self.stage().and_then(Stage::again);
        self.go_on_ending(next, effects);
    }

    fn stage(&self) -> Option<Stage> {
        match self.ending() {
            Some(Ending::ByForce(stage)) => Some(stage),
            Some(Ending::Asking | Ending::Leaving | Ending::Gone | Ending::Lingers) | None => None,
        }
    }

    fn go_on_ending(&mut self, next: Option<(Stage, Act)>, effects: &mut Vec<Effect>) {
        let Some((stage, act)) = next else { return };
        self.set_ending(Ending::ByForce(stage));
        match act {
            Act::Stop => {
                effects.push(Effect::Arm(Timer::Ended, self.timing.settle));
                effects.push(Effect::StopSuccessor);
            }
            Act::See => effects.push(Effect::LookIfStopped),
            Act::SeeLater => effects.push(Effect::Arm(Timer::Look, SEE_AGAIN)),
            Act::Read => match self.plan.ownership {
                Ownership::ByLease => effects.push(Effect::ReadLease),
                // It does not answer on the control path, and no lease says otherwise.
                Ownership::ByControlPath => self.kill(effects),
            },
            Act::ReadLater => effects.push(Effect::Arm(Timer::Look, self.timing.limbo_poll)),
            Act::LetGoOn => {
                effects.push(Effect::ContinueSuccessor);
                self.found_active(effects);
            }
            Act::Kill => self.kill(effects),
        }
    }

    fn found_active(&mut self, effects: &mut Vec<Effect>) {
        if let Step::Undoing(undoing) = &self.step {
            let epoch = undoing.begun.as_ref().and_then(|begun| begun.epoch);
            effects.push(Effect::Reached(Milestone::FoundActive));
            self.commit(epoch, effects);
        }
    }

    /// A lease that can't be read decides nothing: the incumbent has not left, so nobody's data hang on this successor.
    pub(super) fn end_overdue(&mut self, effects: &mut Vec<Effect>) {
        match self.ending() {
            Some(Ending::ByForce(stage)) => match stage.overdue(Unread::Kills) {
                Some(next) => {
                    effects.push(Effect::Arm(Timer::Ended, self.timing.settle));
                    self.go_on_ending(Some(next), effects);
                }
                None => self.leave_lingering(effects),
            },
            Some(Ending::Leaving) => self.kill(effects),
            Some(Ending::Asking | Ending::Gone | Ending::Lingers) | None => {}
        }
    }

    /// The kernel holds the killed process, and with it perhaps the lock. An incumbent that waits for the lock waits by
    /// itself once its session has ended.
    fn leave_lingering(&mut self, effects: &mut Vec<Effect>) {
        effects.push(Effect::Reached(Milestone::SuccessorLingers));
        self.set_ending(Ending::Lingers);
        if let Step::Undoing(undoing) = &mut self.step
            && undoing.resuming == Resuming::Later
        {
            undoing.resuming = Resuming::Alone;
            self.cut_incumbent(effects);
        }
        self.go_on_undoing(effects);
    }

    /// The successor is gone.
    pub(super) fn ended(&mut self, effects: &mut Vec<Effect>) {
        self.set_ending(Ending::Gone);
        effects.push(Effect::Disarm(Timer::Look));
        effects.push(Effect::Disarm(Timer::Ended));
        self.go_on_undoing(effects);
    }

    pub(super) fn resumed(&mut self, effects: &mut Vec<Effect>) {
        self.plan.unheard = None;
        effects.push(Effect::Reached(Milestone::ResumedReceived));
        self.await_no_resume(Resuming::Over, effects);
    }

    /// Nobody has heard that it serves again, and it can't be ended.
    pub(super) fn resume_unanswered(&mut self, effects: &mut Vec<Effect>) {
        effects.push(Effect::Reached(Milestone::ResumeUnanswered));
        self.await_no_resume(Resuming::Alone, effects);
    }

    pub(super) fn is_resume_awaited(&self) -> bool {
        matches!(&self.step, Step::Undoing(undoing) if undoing.resuming == Resuming::Awaited)
    }

    /// The incumbent can't answer any more.
    pub(super) fn incumbent_lost(&mut self, effects: &mut Vec<Effect>) {
        self.await_no_resume(Resuming::Alone, effects);
    }

    /// The incumbent is dead.
    pub(super) fn incumbent_died(&mut self, effects: &mut Vec<Effect>) {
        self.await_no_resume(Resuming::Over, effects);
    }

    /// Nothing more is expected of the incumbent.
    fn await_no_resume(&mut self, resuming: Resuming, effects: &mut Vec<Effect>) {
        if let Step::Undoing(undoing) = &mut self.step {
            if undoing.resuming != Resuming::Over {
                undoing.resuming = resuming;
            }
            effects.push(Effect::Disarm(Timer::Resumed));
            effects.push(Effect::Disarm(Timer::IncumbentSilent));
            self.go_on_undoing(effects);
        }
    }

    fn go_on_undoing(&mut self, effects: &mut Vec<Effect>) {
        let Step::Undoing(Undoing { ending, resuming, .. }) = self.step else { return };
        match (ending, resuming) {
            (Ending::Gone, Resuming::Later) => {
                let resuming = self.tell_resume(effects);
                if let Step::Undoing(undoing) = &mut self.step {
                    undoing.resuming = resuming;
                }
                if resuming != Resuming::Awaited {
                    self.go_on_undoing(effects);
                }
            }
            (Ending::Gone, Resuming::Over) => self.close_undone(Effect::RecordUndone, effects),
            // One of them may come to hold the lock without a word: the journal must know it for one of ours.
            (Ending::Gone | Ending::Lingers, Resuming::Alone) | (Ending::Lingers, Resuming::Over) => {
                self.close_undone(Effect::Record(Phase::ResumingAfterAbort), effects);
            }
            (Ending::Asking | Ending::Leaving | Ending::ByForce(_), _)
            | (Ending::Gone | Ending::Lingers, Resuming::Awaited)
            | (Ending::Lingers, Resuming::Later) => {}
        }
    }

    fn tell_resume(&self, effects: &mut Vec<Effect>) -> Resuming {
        match self.incumbent_link() {
            Link::Open => {
                let resume = Message::ResumeAfterAbort { handoff_id: self.plan.handoff_id };
                self.tell_incumbent(resume, effects);
                effects.push(Effect::Reached(Milestone::ResumeSent));
                effects.push(Effect::Record(Phase::ResumingAfterAbort));
                if self.incumbent_version() < 2 {
                    return Resuming::Alone;
                }
                effects.push(Effect::Arm(Timer::Resumed, self.plan.resume));
                effects.push(Effect::Arm(Timer::IncumbentSilent, self.timing.liveness));
                Resuming::Awaited
            }
            Link::Closing | Link::Cut => Resuming::Alone,
            Link::Gone => Resuming::Over,
        }
    }

    fn close_undone(&mut self, record: Effect, effects: &mut Vec<Effect>) {
        if let Step::Undoing(undoing) = &mut self.step {
            let (reason, resuming) = (std::mem::take(&mut undoing.reason), undoing.resuming);
            let incumbent = self.standing(resuming);
            effects.push(record);
            self.finish(Outcome::Aborted { reason, incumbent }, effects);
        }
    }

    /// What is known of the incumbent. One that was not asked for anything may still be on its way back from the handover before.
    fn standing(&self, resuming: Resuming) -> Standing {
        let in_doubt = self.incumbent.as_ref().is_some_and(|peer| self.plan.unheard == Some(peer.process));
        match (self.incumbent_link(), resuming) {
            (Link::Gone, _) => Standing::Dead,
            (_, Resuming::Over) if !in_doubt => Standing::Serves,
            (_, Resuming::Over | Resuming::Later | Resuming::Awaited | Resuming::Alone) => Standing::NotHeard,
        }
    }

    fn ending(&self) -> Option<Ending> {
        match &self.step {
            Step::Undoing(undoing) => Some(undoing.ending),
            Step::Connecting
            | Step::GreetingIncumbent
            | Step::Spawning
            | Step::GreetingSuccessor
            | Step::Preparing { .. }
            | Step::Draining
            | Step::Sealing { .. }
            | Step::Looking { .. }
            | Step::AwaitingReady(_)
            | Step::AwaitingPath(_)
            | Step::Over => None,
        }
    }

    fn set_ending(&mut self, ending: Ending) {
        if let Step::Undoing(undoing) = &mut self.step {
            undoing.ending = ending;
        }
    }
}
