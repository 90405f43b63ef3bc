//! What the supervisor does when a timer has run out, and what it grants its peers when it was late itself.

use std::time::Duration;

use super::handover::{Handover, Step, Warmth, Watched};
use super::peer::Link;
use super::{Effect, Milestone, Timer, Watchdog};
use crate::message::Message;

impl Handover {
    pub(super) fn fired(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        match timer {
            Timer::Hello => self.hello_overdue(effects),
            Timer::Warm => self.warm_overdue(effects),
            Timer::DrainGrace => self.drain_overdue(effects),
            Timer::Deadline => self.deadline_passed(effects),
            Timer::Late => self.successor_late(effects),
            Timer::Open => self.open_overdue(effects),
            Timer::IncumbentSilent => self.incumbent_silent(effects),
            Timer::SuccessorSilent => self.successor_silent(effects),
            Timer::Heartbeat => self.heartbeat(effects),
            Timer::IncumbentClosed => self.incumbent_still_alive(effects),
            Timer::SuccessorClosed => self.successor_still_alive(effects),
            Timer::AskPath => self.ask_path_again(effects),
            Timer::Look => self.look_if_stopped(effects),
            Timer::Ended => self.end_overdue(effects),
            Timer::Resumed => self.resume_overdue(effects),
        }
    }

    fn hello_overdue(&mut self, effects: &mut Vec<Effect>) {
        if self.step == Step::GreetingIncumbent {
            self.refuse(format!("the incumbent did not say Hello within {:?}", self.timing.hello), effects);
        } else if self.step == Step::GreetingSuccessor {
            let within = self.greeting_bound();
            let reason = match self.incumbent_link() {
                Link::Gone => {
                    format!("the incumbent died, and the successor did not say Hello within {within:?} of that")
                }
                Link::Open | Link::Closing | Link::Cut => format!("the successor did not say Hello within {within:?}"),
            };
            self.undo(reason, effects);
        }
    }

    /// How long a successor may take to say Hello: with the incumbent dead nobody serves meanwhile.
    pub(super) fn greeting_bound(&self) -> Duration {
        match self.incumbent_link() {
            Link::Gone => self.timing.promotion.min(self.timing.hello),
            Link::Open | Link::Closing | Link::Cut => self.timing.hello,
        }
    }

    fn warm_overdue(&mut self, effects: &mut Vec<Effect>) {
        if let Step::Preparing { warmth: Warmth::Warming, .. } = self.step {
            let within = self.warm_bound();
            let reason = match self.incumbent_link() {
                Link::Gone => format!("the incumbent died, and the successor was not warmed within {within:?} of that"),
                Link::Open | Link::Closing | Link::Cut => format!("the successor was not warmed within {within:?}"),
            };
            self.undo(reason, effects);
        }
    }

    fn drain_overdue(&mut self, effects: &mut Vec<Effect>) {
        if self.step == Step::Draining {
            let reason = format!("the incumbent did not drain within {:?}", self.plan.drain_grace);
            self.incumbent_overdue(reason, effects);
        }
    }

    /// Nobody is ended for the incumbent's lateness before it is known whether it lives: its successor may be the only one that can
    /// serve. It is asked, and the handover is undone at its next word; if none comes, the watchdog decides.
    fn incumbent_overdue(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if self.overdue.is_none() && self.incumbent_version() >= 2 {
            self.tell_incumbent(Message::Heartbeat { ts_ms: 0 }, effects);
        }
        self.overdue.get_or_insert(reason);
    }

    /// How long a successor may warm up: with the incumbent dead nobody serves meanwhile.
    pub(super) fn warm_bound(&self) -> Duration {
        match self.incumbent_link() {
            Link::Gone => self.timing.promotion.min(self.plan.warm),
            Link::Open | Link::Closing | Link::Cut => self.plan.warm,
        }
    }

    fn deadline_passed(&mut self, effects: &mut Vec<Effect>) {
        match &self.step {
            Step::Draining | Step::Sealing { .. } => {
                let reason = format!("the incumbent was not done within the deadline of {:?}", self.plan.deadline);
                self.incumbent_overdue(reason, effects);
            }
            Step::Looking { .. } => self.undo(format!("nobody had begun within {:?}", self.plan.deadline), effects),
            Step::AwaitingReady(_) | Step::AwaitingPath(_) => {
                effects.push(Effect::Arm(Timer::Late, self.timing.successor_slack));
            }
            Step::Connecting
            | Step::GreetingIncumbent
            | Step::Spawning
            | Step::GreetingSuccessor
            | Step::Preparing { .. }
            | Step::Undoing(_)
            | Step::Over => {}
        }
    }

    fn successor_late(&mut self, effects: &mut Vec<Effect>) {
        if let Step::AwaitingReady(_) | Step::AwaitingPath(_) = self.step {
            let reason = format!("the successor was not ready within the deadline of {:?}", self.plan.deadline);
            self.undo(reason, effects);
        }
    }

    fn open_overdue(&mut self, effects: &mut Vec<Effect>) {
        if let Step::AwaitingReady(_) = self.step {
            let within = self.plan.open;
            self.undo(format!("the successor was still opening after {within:?}, without a word of progress"), effects);
        }
    }

    fn incumbent_silent(&mut self, effects: &mut Vec<Effect>) {
        if !self.incumbent_must_beat() || self.ends_incumbent(effects) {
            return;
        }
        match self.step {
            Step::Undoing(_) => self.resume_unanswered(effects),
            _ => {
                let silent = || format!("the incumbent was silent for {:?}", self.timing.liveness);
                let reason = self.overdue.take().unwrap_or_else(silent);
                self.undo(reason, effects);
            }
        }
    }

    pub(super) fn resume_overdue(&mut self, effects: &mut Vec<Effect>) {
        if self.is_resume_awaited() && !self.ends_incumbent(effects) {
            self.resume_unanswered(effects);
        }
    }

    /// Ends an incumbent that counts as dead. False: it is to be spared, or was sent SIGKILL before and the kernel still holds it.
    fn ends_incumbent(&mut self, effects: &mut Vec<Effect>) -> bool {
        let ends = self.plan.watchdog == Watchdog::Ends && self.watchdog == Watched::Spared;
        if ends {
            self.watchdog = Watched::Ended;
            effects.push(Effect::Reached(Milestone::WatchdogFired));
            effects.push(Effect::KillIncumbent);
            effects.push(Effect::Disarm(Timer::Resumed));
            effects.push(Effect::Arm(Timer::IncumbentSilent, self.timing.settle));
        }
        ends
    }

    /// Where an incumbent is busy for us, it says that it lives; one that is to serve again does so in version 2.
    pub(super) fn incumbent_must_beat(&self) -> bool {
        matches!(self.step, Step::Draining | Step::Sealing { .. }) || self.is_resume_awaited()
    }

    fn successor_silent(&mut self, effects: &mut Vec<Effect>) {
        if self.successor_must_beat() {
            self.undo(format!("the successor was silent for {:?}", self.timing.liveness), effects);
        }
    }

    /// A successor of version 2 sends heartbeats from its greeting on, one of version 1 when its turn has come.
    pub(super) fn successor_must_beat(&self) -> bool {
        match self.step {
            Step::Preparing { .. } | Step::Draining | Step::Sealing { .. } | Step::Looking { .. } => {
                self.successor_version() >= 2
            }
            Step::AwaitingReady(_) => true,
            Step::Connecting
            | Step::GreetingIncumbent
            | Step::Spawning
            | Step::GreetingSuccessor
            | Step::AwaitingPath(_)
            | Step::Undoing(_)
            | Step::Over => false,
        }
    }

    /// An incumbent that waits for us must not take our silence for our death.
    fn heartbeat(&self, effects: &mut Vec<Effect>) {
        if self.incumbent_link() == Link::Open && self.step != Step::Over {
            self.tell_incumbent(Message::Heartbeat { ts_ms: 0 }, effects);
            effects.push(Effect::Arm(Timer::Heartbeat, self.timing.heartbeat));
        }
    }

    fn ask_path_again(&self, effects: &mut Vec<Effect>) {
        if let Step::AwaitingPath(_) = self.step {
            effects.push(Effect::AskControlPath);
        }
    }

    /// Whoever is due to be heard gets a full fresh interval. A successor that has begun was told its deadline and knows
    /// for itself whether it is late, so that one stays.
    pub(super) fn woke_late(&self, effects: &mut Vec<Effect>) {
        let mut arm = |timer, after| effects.push(Effect::Arm(timer, after));
        match &self.step {
            Step::GreetingIncumbent => arm(Timer::Hello, self.timing.hello),
            Step::GreetingSuccessor => arm(Timer::Hello, self.greeting_bound()),
            Step::Preparing { warmth: Warmth::Warming, .. } => arm(Timer::Warm, self.warm_bound()),
            Step::Draining => {
                arm(Timer::DrainGrace, self.drain_grace_and_slack());
                arm(Timer::Deadline, self.plan.deadline);
                arm(Timer::IncumbentSilent, self.timing.liveness);
            }
            Step::Sealing { .. } => {
                arm(Timer::Deadline, self.plan.deadline);
                arm(Timer::IncumbentSilent, self.timing.liveness);
            }
            Step::Undoing(undoing) => undoing.fresh_intervals(&self.timing, self.plan.resume, effects),
            Step::AwaitingReady(_) => arm(Timer::Open, self.plan.open),
            Step::Connecting
            | Step::Spawning
            | Step::Preparing { warmth: Warmth::Warm, .. }
            | Step::Looking { .. }
            | Step::AwaitingPath(_)
            | Step::Over => {}
        }
        if self.successor_must_beat() {
            effects.push(Effect::Arm(Timer::SuccessorSilent, self.timing.liveness));
        }
        for (link, timer) in
            [(self.incumbent_link(), Timer::IncumbentClosed), (self.successor_link(), Timer::SuccessorClosed)]
        {
            if link == Link::Closing {
                effects.push(Effect::Arm(timer, self.timing.closed_grace));
            }
        }
    }
}
