//! What the contract of the machines asks of a driver with its timers and results, and a check of it in debug builds.
//!
//! The contract ([`crate::machine`], "Nothing of the past") forbids a driver to obey a timer that does not run and to give in a
//! result that nobody waits for. A machine can't tell: a timer names no handover and a result no process. So whoever feeds one
//! feeds it through [`Checked`], which keeps account of both.

use std::fmt::Debug;
use std::ops::Deref;

use crate::machine::Machine;

/// What one input or one effect means to the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clause<T> {
    /// The timer runs from now on.
    Arms(T),
    /// The timer does not run any more.
    Disarms(T),
    /// The timer has run out.
    Fires(T),
    /// A result of this name is due.
    Asks(&'static str),
    /// The result of this name has come.
    Answers(&'static str),
    /// No result of this name is wanted any more.
    Waives(&'static str),
    /// The machine is done: nothing runs and nothing is due.
    Ends,
    /// Neither.
    Nothing,
}

/// A machine whose inputs and effects are told apart for the account.
pub trait Contract: Machine {
    /// Its timers.
    type Timer: Copy + PartialEq + Debug;

    /// What this input means to it.
    fn of_input(input: &Self::Input) -> Clause<Self::Timer>;

    /// What this effect means to it.
    fn of_effect(effect: &Self::Effect) -> Clause<Self::Timer>;
}

/// A machine as its driver feeds it. In debug builds it panics when the driver breaks the contract; else it is the machine alone.
#[derive(Debug, Clone)]
pub struct Checked<M: Contract> {
    machine: M,
    #[cfg(debug_assertions)]
    account: Account<M::Timer>,
}

impl<M: Contract> Checked<M> {
    /// A machine that has taken no input yet.
    pub fn new(machine: M) -> Self {
        Self {
            machine,
            #[cfg(debug_assertions)]
            account: Account { running: Vec::new(), due: Vec::new() },
        }
    }

    /// One step of the machine.
    ///
    /// # Panics
    /// In debug builds: the input is a timer that does not run or a result that is not due. The driver is at fault.
    #[must_use = "effects do nothing until they are performed"]
    pub fn step(&mut self, input: M::Input) -> Vec<M::Effect> {
        #[cfg(debug_assertions)]
        self.account.enter(M::of_input(&input));
        let effects = self.machine.step(input);
        #[cfg(debug_assertions)]
        effects.iter().for_each(|effect| self.account.enter(M::of_effect(effect)));
        effects
    }
}

impl<M: Contract> Deref for Checked<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.machine
    }
}

#[cfg(debug_assertions)]
#[derive(Debug, Clone)]
struct Account<T> {
    running: Vec<T>,
    due: Vec<&'static str>,
}

#[cfg(debug_assertions)]
impl<T: Copy + PartialEq + Debug> Account<T> {
    fn enter(&mut self, clause: Clause<T>) {
        match clause {
            Clause::Arms(timer) => {
                self.running.retain(|running| *running != timer);
                self.running.push(timer);
            }
            Clause::Disarms(timer) => self.running.retain(|running| *running != timer),
            Clause::Fires(timer) => {
                let at = self.running.iter().position(|running| *running == timer);
                assert!(at.is_some(), "the driver obeys a timer that does not run: {timer:?}");
                at.map(|at| self.running.remove(at));
            }
            Clause::Asks(result) => self.due.push(result),
            Clause::Answers(result) => {
                let at = self.due.iter().position(|due| *due == result);
                assert!(at.is_some(), "the driver gives in a result that is not due: {result}");
                at.map(|at| self.due.remove(at));
            }
            Clause::Waives(result) => self.due.retain(|due| *due != result),
            Clause::Ends => (self.running, self.due) = (Vec::new(), Vec::new()),
            Clause::Nothing => {}
        }
    }
}

mod roles {
    //! What the inputs and effects of each machine mean to the account.

    use super::{Clause, Contract};
    use crate::{incumbent, recovery, successor, supervisor};

    impl Contract for supervisor::Supervisor {
        type Timer = supervisor::Timer;

        fn of_input(input: &supervisor::Input) -> Clause<Self::Timer> {
            use supervisor::Input;
            match input {
                Input::Connected(_) | Input::ConnectFailed(_) => Clause::Answers("connect"),
                Input::Spawned(_) | Input::SpawnFailed(_) => Clause::Answers("spawn"),
                Input::JournalSynced => Clause::Answers("sync"),
                Input::Lease(_) => Clause::Answers("lease"),
                Input::ControlPath(_) => Clause::Answers("control path"),
                Input::SuccessorStopped(_) => Clause::Answers("stopped"),
                Input::Fired(timer) => Clause::Fires(*timer),
                _ => Clause::Nothing,
            }
        }

        fn of_effect(effect: &supervisor::Effect) -> Clause<Self::Timer> {
            use supervisor::Effect;
            match effect {
                Effect::ConnectIncumbent => Clause::Asks("connect"),
                Effect::SpawnSuccessor(_) => Clause::Asks("spawn"),
                Effect::SyncJournal => Clause::Asks("sync"),
                Effect::ReadLease => Clause::Asks("lease"),
                Effect::AskControlPath => Clause::Asks("control path"),
                Effect::StopSuccessor | Effect::LookIfStopped => Clause::Asks("stopped"),
                Effect::Arm(timer, _) => Clause::Arms(*timer),
                Effect::Disarm(timer) => Clause::Disarms(*timer),
                Effect::Finish(_) => Clause::Ends,
                _ => Clause::Nothing,
            }
        }
    }

    impl Contract for recovery::Recovery {
        type Timer = recovery::Timer;

        fn of_input(input: &recovery::Input) -> Clause<Self::Timer> {
            use recovery::Input;
            match input {
                Input::Found(_) => Clause::Answers("findings"),
                Input::Stopped(_) => Clause::Answers("stopped"),
                Input::Lease(_) => Clause::Answers("lease"),
                Input::Gone => Clause::Waives("stopped"),
                Input::Fired(timer) => Clause::Fires(*timer),
                Input::Start | Input::WokeLate => Clause::Nothing,
            }
        }

        fn of_effect(effect: &recovery::Effect) -> Clause<Self::Timer> {
            use recovery::Effect;
            match effect {
                Effect::Look => Clause::Asks("findings"),
                Effect::Stop(_) | Effect::LookIfStopped(_) => Clause::Asks("stopped"),
                Effect::ReadLease => Clause::Asks("lease"),
                Effect::Arm(timer, _) => Clause::Arms(*timer),
                Effect::Disarm(timer) => Clause::Disarms(*timer),
                Effect::Finish(_) => Clause::Ends,
                Effect::Continue(_) | Effect::Kill(_) => Clause::Nothing,
            }
        }
    }

    impl Contract for incumbent::Incumbent {
        type Timer = incumbent::Timer;

        fn of_input(input: &incumbent::Input) -> Clause<Self::Timer> {
            use incumbent::Input;
            match input {
                Input::DrainEnded(_) => Clause::Answers("drain"),
                Input::SealEnded(_) => Clause::Answers("seal"),
                Input::ResumeEnded(_) => Clause::Answers("resume"),
                Input::DirectoryPassed(_) => Clause::Answers("directory"),
                Input::Stamped(_) => Clause::Answers("stamp"),
                Input::Released(_) => Clause::Answers("release"),
                Input::LeaseRead(_) => Clause::Answers("lease"),
                Input::HolderFound(_) => Clause::Answers("holder"),
                Input::LockTried(_) => Clause::Answers("lock"),
                Input::Claimed(_) => Clause::Answers("claim"),
                Input::Activated(_) => Clause::Answers("activate"),
                Input::SuccessorWatched => Clause::Answers("watch"),
                Input::SuccessorStopped | Input::SuccessorRunning => Clause::Answers("stopped"),
                Input::PathAnswered(_) => Clause::Answers("control path"),
                Input::ControlPublished(_) => Clause::Answers("publish"),
                Input::Fired(timer) => Clause::Fires(*timer),
                _ => Clause::Nothing,
            }
        }

        fn of_effect(effect: &incumbent::Effect) -> Clause<Self::Timer> {
            use incumbent::Effect;
            match effect {
                Effect::RunDrain { .. } => Clause::Asks("drain"),
                Effect::RunSeal => Clause::Asks("seal"),
                Effect::RunResume { .. } => Clause::Asks("resume"),
                Effect::PassDirectory(_) => Clause::Asks("directory"),
                Effect::StampLease(_) => Clause::Asks("stamp"),
                Effect::ReleaseLock(_) => Clause::Asks("release"),
                Effect::ReadLease => Clause::Asks("lease"),
                Effect::FindHolder => Clause::Asks("holder"),
                Effect::TryLock => Clause::Asks("lock"),
                Effect::ClaimLease => Clause::Asks("claim"),
                Effect::ActivateLease => Clause::Asks("activate"),
                Effect::WatchSuccessor { .. } => Clause::Asks("watch"),
                Effect::ForgetSuccessor => Clause::Waives("watch"),
                Effect::SeeSuccessor => Clause::Asks("stopped"),
                Effect::AskControlPath => Clause::Asks("control path"),
                Effect::StopAsking => Clause::Waives("control path"),
                Effect::PublishControl => Clause::Asks("publish"),
                Effect::Arm(timer, _) => Clause::Arms(*timer),
                Effect::Disarm(timer) => Clause::Disarms(*timer),
                Effect::Leave(_) => Clause::Ends,
                _ => Clause::Nothing,
            }
        }
    }

    impl Contract for successor::Successor {
        type Timer = successor::Timer;

        fn of_input(input: &successor::Input) -> Clause<Self::Timer> {
            use successor::Input;
            match input {
                Input::Did(_) => Clause::Answers("errand"),
                Input::Fired(timer) => Clause::Fires(*timer),
                _ => Clause::Nothing,
            }
        }

        fn of_effect(effect: &successor::Effect) -> Clause<Self::Timer> {
            use successor::Effect;
            match effect {
                Effect::Do(_) => Clause::Asks("errand"),
                Effect::Arm(timer, _) | Effect::ArmAt(timer, _) => Clause::Arms(*timer),
                Effect::Disarm(timer) => Clause::Disarms(*timer),
                _ => Clause::Nothing,
            }
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;
    use crate::machine::Timing;
    use crate::recovery::{Findings, Input, Recovery, Timer, Verdict};
    use crate::supervisor::LeaseReading;

    fn started() -> Checked<Recovery> {
        let mut checked = Checked::new(Recovery::new(Timing::default()));
        let _ = checked.step(Input::Start);
        checked
    }

    #[test]
    fn a_driver_that_keeps_the_contract_gets_the_machines_effects() {
        let mut checked = started();
        let found = checked.step(Input::Found(Findings { lock_holder: Some(9), ..Findings::default() }));
        assert!(!found.is_empty());
        let _ = checked.step(Input::Fired(Timer::Patience));
        let _ = checked.step(Input::Fired(Timer::Again));
        let end = checked.step(Input::Found(Findings::default()));
        assert!(end.contains(&crate::recovery::Effect::Finish(Verdict::Nobody)));
    }

    #[test]
    #[should_panic(expected = "a timer that does not run: Again")]
    fn a_timer_that_does_not_run_is_noticed() {
        let _ = started().step(Input::Fired(Timer::Again));
    }

    #[test]
    #[should_panic(expected = "a timer that does not run: Patience")]
    fn a_timer_runs_out_once() {
        let mut checked = started();
        let _ = checked.step(Input::Fired(Timer::Patience));
        let _ = checked.step(Input::Fired(Timer::Patience));
    }

    #[test]
    #[should_panic(expected = "a result that is not due: findings")]
    fn a_result_comes_once() {
        let mut checked = started();
        let findings = Findings { lock_holder: Some(9), ..Findings::default() };
        let _ = checked.step(Input::Found(findings.clone()));
        let _ = checked.step(Input::Found(findings));
    }

    #[test]
    #[should_panic(expected = "a result that is not due: lease")]
    fn a_result_that_nobody_asked_for_is_noticed() {
        let _ = started().step(Input::Lease(LeaseReading::Nobody));
    }

    #[test]
    #[should_panic(expected = "a timer that does not run: Patience")]
    fn nothing_of_what_is_over_comes_after_its_end() {
        let mut checked = started();
        let _ = checked.step(Input::Found(Findings::default()));
        let _ = checked.step(Input::Fired(Timer::Patience));
    }
}
