//! What a supervisor does when it is started again: it finds out who serves, ends what is left of a handover that nobody
//! will finish, and never starts a second daemon beside a living one (promise 7).
//!
//! ```text
//!             ┌──────────────── gone, or Active after all ───────────────┐
//!             ▼                                                          │
//!  Idle ─▶ Looking ── a successor of the journal, not Active ─▶ Ending: Stopping ─▶ Looking ─▶ Killed
//!             │ ▲  └─ a leftover of ours has the lock ───────────▲           the lease decides
//!             │ │ again          10 s ─┐                         │
//!             │ └── Waiting ◀── somebody has the lock ───────────┘
//!             ▼
//!           Over: somebody serves · nobody lives · a stranger has the lock
//! ```
//!
//! Ours is whoever the journal names, and whoever was told to leave earlier. No other process is ever ended, and one of ours
//! only while the lease, looked at when the process stands still, does not say that it serves.

use std::time::Duration;

use crate::ending::{Act, SEE_AGAIN, Stage, Unread, sign};
use crate::lease::{LeaseState, LeaseView, ProcessId};
use crate::machine::{Machine, Timing};
use crate::message::Phase;
use crate::supervisor::{LeaseReading, Stopped};

/// All that can be seen from outside. Dead processes are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Findings {
    /// What the journal says, if it says anything.
    pub journal: Option<Journaled>,
    /// The lease, if its owner lives.
    pub lease: Option<LeaseView>,
    /// The daemon that was started or adopted last, by the service's own record.
    pub daemon: Option<ProcessId>,
    /// Those that were told to leave, by the same record: the journal knows only the last handover.
    pub leaving: Vec<ProcessId>,
    /// Who answers on the control path.
    pub answers: Option<ProcessId>,
    /// Who holds the data-dir lock.
    pub lock_holder: Option<u32>,
}

/// A handover in the journal, with those of its processes that live.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Journaled {
    /// How far it came.
    pub phase: Phase,
    /// The process that owned the data when it began.
    pub incumbent: Option<ProcessId>,
    /// The process that was to take over.
    pub successor: Option<ProcessId>,
}

/// What can happen to a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// Begin.
    Start,
    /// Result of [`Effect::Look`].
    Found(Findings),
    /// Result of [`Effect::Stop`] and [`Effect::LookIfStopped`].
    Stopped(Stopped),
    /// Result of [`Effect::ReadLease`].
    Lease(LeaseReading),
    /// The process that is being ended is dead.
    Gone,
    /// A timer has run out.
    Fired(Timer),
    /// The driver's own loop was late.
    WokeLate,
}

/// What a recovery asks its driver to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Find out all that can be seen.
    Look,
    /// SIGSTOP to this process, and look whether it has stopped; from now on its death is told.
    Stop(ProcessId),
    /// Look whether it has stopped by now.
    LookIfStopped(ProcessId),
    /// Look at the lease. Without a data directory the answer is [`LeaseReading::Nobody`].
    ReadLease,
    /// SIGCONT to it, whether or not it was stopped.
    Continue(ProcessId),
    /// SIGKILL to it.
    Kill(ProcessId),
    /// Start, or start again, a timer.
    Arm(Timer, Duration),
    /// Stop a timer.
    Disarm(Timer),
    /// It is settled.
    Finish(Verdict),
}

/// The timers of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// Look at everything again.
    Again,
    /// Whoever holds the lock without a word had time enough.
    Patience,
    /// Look again at a process that was sent SIGSTOP.
    Stopping,
    /// The process that is being ended should be gone.
    Ended,
}

impl Timer {
    /// Every one: none of them runs when a recovery is over.
    pub const ALL: [Self; 4] = [Self::Again, Self::Patience, Self::Stopping, Self::Ended];
}

/// What a recovery came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// This process serves, or will by itself: adopt it.
    Serving(ProcessId),
    /// Nobody lives: a daemon may be started.
    Nobody,
    /// This process holds the lock and is not ours to end: start nothing, and name it.
    HeldBy(u32),
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    timing: Timing,
    patience: Patience,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Idle,
    Looking,
    Waiting,
    Ending { process: ProcessId, stage: Stage },
    Over,
}

/// Whether an unnamed holder of the lock still gets time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Patience {
    Left,
    Exhausted,
}

/// What the findings call for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Decision {
    End(ProcessId),
    Wait,
    Finish(Verdict),
}

impl Recovery {
    /// One that has not begun.
    pub fn new(timing: Timing) -> Self {
        Self { timing, patience: Patience::Left, state: State::Idle }
    }

    fn look(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Looking;
        effects.push(Effect::Look);
    }

    fn found(&mut self, findings: &Findings, effects: &mut Vec<Effect>) {
        if self.state != State::Looking {
            return;
        }
        match decide(findings, self.patience) {
            Decision::End(process) => self.go_on_ending(process, Some(Stage::begin()), effects),
            Decision::Wait => {
                self.state = State::Waiting;
                effects.push(Effect::Arm(Timer::Again, self.timing.limbo_poll));
            }
            Decision::Finish(verdict) => self.finish(verdict, effects),
        }
    }

    fn finish(&mut self, verdict: Verdict, effects: &mut Vec<Effect>) {
        self.state = State::Over;
        effects.extend(Timer::ALL.map(Effect::Disarm));
        // A supervisor or an incumbent may have died right after it told this process to stand still.
        if let Verdict::Serving(process) = verdict {
            effects.push(Effect::Continue(process));
        }
        effects.push(Effect::Finish(verdict));
    }

    fn stopped(&mut self, stopped: Stopped, effects: &mut Vec<Effect>) {
        if let State::Ending { process, stage } = self.state {
            self.go_on_ending(process, stage.seen(stopped), effects);
        }
    }

    fn judged(&mut self, reading: &LeaseReading, effects: &mut Vec<Effect>) {
        if let State::Ending { process, stage } = self.state {
            self.go_on_ending(process, stage.judged(sign(reading, process)), effects);
        }
    }

    fn go_on_ending(&mut self, process: ProcessId, next: Option<(Stage, Act)>, effects: &mut Vec<Effect>) {
        let Some((stage, act)) = next else { return };
        self.state = State::Ending { process, stage };
        match act {
            Act::Stop => {
                effects.push(Effect::Arm(Timer::Ended, self.timing.settle));
                effects.push(Effect::Stop(process));
            }
            Act::See => effects.push(Effect::LookIfStopped(process)),
            Act::SeeLater => effects.push(Effect::Arm(Timer::Stopping, SEE_AGAIN)),
            Act::Read => effects.push(Effect::ReadLease),
            Act::ReadLater => effects.push(Effect::Arm(Timer::Stopping, self.timing.limbo_poll)),
            Act::LetGoOn => {
                self.disarm_ending(effects);
                effects.push(Effect::Continue(process));
                self.look(effects);
            }
            Act::Kill => {
                effects.push(Effect::Disarm(Timer::Stopping));
                effects.push(Effect::Arm(Timer::Ended, self.timing.settle));
                effects.push(Effect::Kill(process));
            }
        }
    }

    fn disarm_ending(&self, effects: &mut Vec<Effect>) {
        effects.push(Effect::Disarm(Timer::Stopping));
        effects.push(Effect::Disarm(Timer::Ended));
    }

    fn gone(&mut self, effects: &mut Vec<Effect>) {
        if let State::Ending { .. } = self.state {
            self.disarm_ending(effects);
            self.look(effects);
        }
    }

    fn fired(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        match timer {
            Timer::Again => {
                if self.state == State::Waiting {
                    self.look(effects);
                }
            }
            Timer::Patience => self.patience = Patience::Exhausted,
            Timer::Stopping => self.look_at_ending(effects),
            Timer::Ended => self.end_overdue(effects),
        }
    }

    fn look_at_ending(&mut self, effects: &mut Vec<Effect>) {
        if let State::Ending { process, stage } = self.state {
            self.go_on_ending(process, stage.again(), effects);
        }
    }

    /// One whose lease can't be read is left alone here, unlike in a handover: no incumbent is known to be there for the data.
    fn end_overdue(&mut self, effects: &mut Vec<Effect>) {
        let State::Ending { process, stage } = self.state else { return };
        match stage.overdue(Unread::Spares) {
            Some((_, Act::LetGoOn)) => {
                effects.push(Effect::Continue(process));
                self.finish(Verdict::HeldBy(process.pid), effects);
            }
            Some(next) => {
                effects.push(Effect::Arm(Timer::Ended, self.timing.settle));
                self.go_on_ending(process, Some(next), effects);
            }
            None => self.finish(Verdict::HeldBy(process.pid), effects),
        }
    }

    fn woke_late(&self, effects: &mut Vec<Effect>) {
        match self.state {
            State::Looking | State::Waiting if self.patience == Patience::Left => {
                effects.push(Effect::Arm(Timer::Patience, self.timing.liveness));
            }
            State::Ending { .. } => effects.push(Effect::Arm(Timer::Ended, self.timing.settle)),
            State::Idle | State::Looking | State::Waiting | State::Over => {}
        }
    }
}

impl Machine for Recovery {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Start => {
                if let State::Idle | State::Over = self.state {
                    self.patience = Patience::Left;
                    effects.push(Effect::Arm(Timer::Patience, self.timing.liveness));
                    self.look(&mut effects);
                }
            }
            Input::Found(findings) => self.found(&findings, &mut effects),
            Input::Stopped(stopped) => self.stopped(stopped, &mut effects),
            Input::Lease(reading) => self.judged(&reading, &mut effects),
            Input::Gone => self.gone(&mut effects),
            Input::Fired(timer) => self.fired(timer, &mut effects),
            Input::WokeLate => self.woke_late(&mut effects),
        }
        effects
    }
}

/// The rules, in order of precedence.
fn decide(findings: &Findings, patience: Patience) -> Decision {
    if let Some(successor) = unfinished_successor(findings) {
        return Decision::End(successor);
    }
    match serving(findings) {
        Some(process) => Decision::Finish(Verdict::Serving(process)),
        None => findings.lock_holder.map_or(Decision::Finish(Verdict::Nobody), |pid| held(findings, pid, patience)),
    }
}

/// A successor that was never committed and has not taken over by itself: neither by the lease nor, for one of version 1
/// that keeps none, by the control path.
fn unfinished_successor(findings: &Findings) -> Option<ProcessId> {
    let journal = findings.journal.as_ref().filter(|journal| journal.phase != Phase::Committed)?;
    let successor = journal.successor?;
    (active(findings) != Some(successor) && findings.answers != Some(successor)).then_some(successor)
}

/// Who serves or will serve by itself, the surest sign first.
fn serving(findings: &Findings) -> Option<ProcessId> {
    let journaled = findings.journal.as_ref().and_then(|journal| match journal.phase {
        Phase::Committed => journal.successor,
        Phase::Negotiating | Phase::Draining | Phase::Sealing | Phase::AwaitingReady | Phase::ResumingAfterAbort => {
            journal.incumbent
        }
    });
    let owner = findings.lease.map(|lease| lease.owner);
    active(findings).or(findings.answers).or(owner).or(journaled).or_else(|| starting(findings))
}

/// A daemon that has not come to its lease yet. One that was replaced is none, even if the record does not say so yet.
fn starting(findings: &Findings) -> Option<ProcessId> {
    let replaced = findings.journal.as_ref().filter(|journal| journal.phase == Phase::Committed);
    findings.daemon.filter(|daemon| replaced.and_then(|journal| journal.incumbent) != Some(*daemon))
}

fn active(findings: &Findings) -> Option<ProcessId> {
    findings.lease.filter(|lease| lease.state == LeaseState::Active).map(|lease| lease.owner)
}

/// Nobody who is known serves, and still the lock is held: by one of ours that is stuck, or by a stranger.
fn held(findings: &Findings, pid: u32, patience: Patience) -> Decision {
    let journaled = findings.journal.iter().flat_map(|journal| [journal.incumbent, journal.successor]).flatten();
    let ours = journaled.chain(findings.leaving.iter().copied()).find(|process| process.pid == pid);
    match (patience, ours) {
        (Patience::Left, _) => Decision::Wait,
        (Patience::Exhausted, Some(leftover)) => Decision::End(leftover),
        (Patience::Exhausted, None) => Decision::Finish(Verdict::HeldBy(pid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::HandoffId;

    const O: ProcessId = ProcessId { pid: 100, start_time: 1 };
    const N: ProcessId = ProcessId { pid: 200, start_time: 2 };

    fn lease(owner: ProcessId, state: LeaseState) -> LeaseView {
        LeaseView { epoch: 4, owner, state, handoff_id: Some(HandoffId::from_bytes([1; 16])) }
    }

    fn journal(phase: Phase, incumbent: Option<ProcessId>, successor: Option<ProcessId>) -> Option<Journaled> {
        Some(Journaled { phase, incumbent, successor })
    }

    fn looked(findings: Findings) -> (Recovery, Vec<Effect>) {
        let mut recovery = Recovery::new(Timing::default());
        assert!(recovery.step(Input::Start).contains(&Effect::Look));
        let effects = recovery.step(Input::Found(findings));
        (recovery, effects)
    }

    fn verdict(effects: &[Effect]) -> Option<Verdict> {
        effects.iter().find_map(|effect| match effect {
            Effect::Finish(verdict) => Some(*verdict),
            _ => None,
        })
    }

    #[test]
    fn whoever_the_lease_calls_active_is_adopted() {
        let findings = Findings { lease: Some(lease(O, LeaseState::Active)), ..Findings::default() };
        assert_eq!(verdict(&looked(findings).1), Some(Verdict::Serving(O)));
    }

    #[test]
    fn who_is_adopted_does_not_go_on_standing_still() {
        let findings = Findings { lease: Some(lease(N, LeaseState::Active)), ..Findings::default() };
        assert!(
            looked(findings).1.contains(&Effect::Continue(N)),
            "a supervisor died between SIGSTOP and its decision"
        );
    }

    #[test]
    fn an_active_successor_is_committed_in_every_phase() {
        for phase in [Phase::Draining, Phase::AwaitingReady, Phase::Committed, Phase::ResumingAfterAbort] {
            let journal = journal(phase, Some(O), Some(N));
            let findings = Findings { journal, lease: Some(lease(N, LeaseState::Active)), ..Findings::default() };
            assert_eq!(verdict(&looked(findings).1), Some(Verdict::Serving(N)), "{phase:?}");
        }
    }

    #[test]
    fn a_successor_that_is_not_active_is_ended_and_then_the_incumbent_adopted() {
        for state in [LeaseState::Opening, LeaseState::Sealed] {
            let owner = if state == LeaseState::Opening { N } else { O };
            let findings = Findings {
                journal: journal(Phase::AwaitingReady, Some(O), Some(N)),
                lease: Some(lease(owner, state)),
                ..Findings::default()
            };
            let (mut recovery, effects) = looked(findings);
            assert!(effects.contains(&Effect::Stop(N)));
            assert_eq!(recovery.step(Input::Stopped(Stopped::Yes)), [Effect::ReadLease]);
            let killed = recovery.step(Input::Lease(LeaseReading::Found(lease(owner, state))));
            assert!(killed.contains(&Effect::Kill(N)));
            assert!(recovery.step(Input::Gone).contains(&Effect::Look));
            let left = Findings {
                journal: journal(Phase::AwaitingReady, Some(O), None),
                lease: Some(lease(O, LeaseState::Sealed)),
                ..Findings::default()
            };
            assert_eq!(verdict(&recovery.step(Input::Found(left))), Some(Verdict::Serving(O)));
        }
    }

    #[test]
    fn one_that_became_active_meanwhile_runs_on() {
        let journal = journal(Phase::AwaitingReady, None, Some(N));
        let (mut recovery, _) = looked(Findings { journal, ..Findings::default() });
        let _ = recovery.step(Input::Stopped(Stopped::Yes));
        let effects = recovery.step(Input::Lease(LeaseReading::Found(lease(N, LeaseState::Active))));
        assert!(effects.contains(&Effect::Continue(N)) && effects.contains(&Effect::Look));
    }

    #[test]
    fn a_committed_successor_is_never_ended() {
        let findings = Findings { journal: journal(Phase::Committed, Some(O), Some(N)), ..Findings::default() };
        assert_eq!(verdict(&looked(findings).1), Some(Verdict::Serving(N)));
    }

    #[test]
    fn version_1_is_known_by_its_answer_or_by_the_journal() {
        let answering = Findings { answers: Some(O), lock_holder: Some(O.pid), ..Findings::default() };
        assert_eq!(verdict(&looked(answering).1), Some(Verdict::Serving(O)));
        let new_one = Findings {
            journal: journal(Phase::AwaitingReady, Some(O), Some(N)),
            answers: Some(N),
            ..Findings::default()
        };
        assert_eq!(verdict(&looked(new_one).1), Some(Verdict::Serving(N)));
        let busy = Findings { journal: journal(Phase::Draining, Some(O), None), ..Findings::default() };
        assert_eq!(verdict(&looked(busy).1), Some(Verdict::Serving(O)));
    }

    #[test]
    fn a_daemon_that_only_starts_is_adopted_and_one_that_was_replaced_is_not() {
        let starting = Findings { daemon: Some(O), lock_holder: Some(O.pid), ..Findings::default() };
        assert_eq!(verdict(&looked(starting.clone()).1), Some(Verdict::Serving(O)));
        let replaced =
            Findings { journal: journal(Phase::Committed, Some(O), None), daemon: Some(O), ..Findings::default() };
        assert_eq!(verdict(&looked(replaced).1), Some(Verdict::Nobody));
    }

    #[test]
    fn nobody_is_nobody() {
        assert_eq!(verdict(&looked(Findings::default()).1), Some(Verdict::Nobody));
        let after_all_died = Findings { journal: journal(Phase::Sealing, None, None), ..Findings::default() };
        assert_eq!(verdict(&looked(after_all_died).1), Some(Verdict::Nobody));
    }

    #[test]
    fn a_stranger_with_the_lock_is_named_and_never_ended() {
        let findings = Findings { lock_holder: Some(999), ..Findings::default() };
        let (mut recovery, effects) = looked(findings.clone());
        assert_eq!(verdict(&effects), None);
        let _ = recovery.step(Input::Fired(Timer::Patience));
        assert_eq!(recovery.step(Input::Fired(Timer::Again)), [Effect::Look]);
        assert_eq!(verdict(&recovery.step(Input::Found(findings))), Some(Verdict::HeldBy(999)));
    }

    #[test]
    fn a_leftover_that_keeps_the_lock_is_ended() {
        let held = Findings { lock_holder: Some(O.pid), ..Findings::default() };
        let of_the_journal = Findings { journal: journal(Phase::Committed, Some(O), None), ..held.clone() };
        let told_to_leave_earlier = Findings { leaving: vec![N, O], ..held };
        for findings in [of_the_journal, told_to_leave_earlier] {
            let (mut recovery, effects) = looked(findings.clone());
            assert_eq!(effects, [Effect::Arm(Timer::Again, Timing::default().limbo_poll)]);
            let _ = recovery.step(Input::Fired(Timer::Patience));
            let _ = recovery.step(Input::Fired(Timer::Again));
            assert!(recovery.step(Input::Found(findings)).contains(&Effect::Stop(O)));
        }
    }

    /// The open file with the directory's lock is shared by those who passed it on: whoever of them is shown as its holder is no
    /// owner by that.
    #[test]
    fn who_only_shares_the_directory_with_the_owner_is_neither_named_nor_ended() {
        let serving = Some(lease(N, LeaseState::Active));
        for (phase, leaving) in [(Phase::AwaitingReady, vec![]), (Phase::Committed, vec![O])] {
            let journal = journal(phase, Some(O), Some(N));
            let findings =
                Findings { journal, lease: serving, leaving, lock_holder: Some(O.pid), ..Findings::default() };
            let (_, effects) = looked(findings);
            assert_eq!(verdict(&effects), Some(Verdict::Serving(N)), "{phase:?}");
            assert!(!effects.iter().any(|effect| matches!(effect, Effect::Stop(_) | Effect::Kill(_))), "{effects:?}");
        }
        // Before the successor has a lease, the incumbent's seal is the newest one: it takes its data back by itself.
        let sealed = Findings {
            journal: journal(Phase::AwaitingReady, Some(O), None),
            lease: Some(lease(O, LeaseState::Sealed)),
            lock_holder: Some(N.pid),
            ..Findings::default()
        };
        assert_eq!(verdict(&looked(sealed).1), Some(Verdict::Serving(O)));
    }

    #[test]
    fn one_that_was_told_to_leave_and_serves_after_all_is_adopted() {
        let findings = Findings {
            lease: Some(lease(O, LeaseState::Active)),
            leaving: vec![O],
            lock_holder: Some(O.pid),
            ..Findings::default()
        };
        assert_eq!(verdict(&looked(findings).1), Some(Verdict::Serving(O)));
    }

    #[test]
    fn one_that_can_not_be_judged_is_named_and_does_not_stay_stopped() {
        let journal = journal(Phase::AwaitingReady, None, Some(N));
        let (mut recovery, _) = looked(Findings { journal, ..Findings::default() });
        let _ = recovery.step(Input::Stopped(Stopped::Yes));
        let again = recovery.step(Input::Lease(LeaseReading::Unreadable("EIO".into())));
        assert_eq!(again, [Effect::Arm(Timer::Stopping, Timing::default().limbo_poll)]);
        let effects = recovery.step(Input::Fired(Timer::Ended));
        assert!(effects.contains(&Effect::Continue(N)) && !effects.contains(&Effect::Kill(N)), "{effects:?}");
        assert_eq!(verdict(&effects), Some(Verdict::HeldBy(N.pid)));
    }

    #[test]
    fn one_that_can_not_be_ended_in_time_is_named() {
        let journal = journal(Phase::AwaitingReady, None, Some(N));
        let (mut recovery, _) = looked(Findings { journal, ..Findings::default() });
        let _ = recovery.step(Input::Fired(Timer::Ended));
        let _ = recovery.step(Input::Lease(LeaseReading::Nobody));
        assert_eq!(verdict(&recovery.step(Input::Fired(Timer::Ended))), Some(Verdict::HeldBy(N.pid)));
    }
}
