//! What bounds the supervisor's waits, and whether it waits for what has a bound of its own. The world has no clock: of two bounds it
//! knows which one is the shorter.

use std::time::Duration;

use handoff_proto::{Message, Timing, supervisor};

use super::process::{Hook, Life, Role, Slot};
use super::sabotage::Sabotage;
use super::supervisor::{HandingOver, Job, TIMERS};
use super::{Broken, Clock, World, handoff_id};

/// How long a successor may warm up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Warmth {
    AsPlanned,
    /// While nobody serves.
    Short,
}

impl World {
    pub(super) fn arm(&mut self, job: &mut HandingOver, timer: supervisor::Timer, after: Duration) {
        use supervisor::Timer;
        match (timer, self.sabotage) {
            (Timer::Open, Some(Sabotage::LeaveOpeningUnbounded))
            | (Timer::Resumed, Some(Sabotage::LeaveResumeUnbounded)) => return,
            (Timer::Warm, Some(Sabotage::WarmAsPlannedForTheDead)) if job.drive.is_armed(timer) => return,
            (Timer::Warm, _) if after <= Timing::default().promotion => job.warmth = Warmth::Short,
            (Timer::Deadline, _) => self.clocks[usize::from(self.handovers) - 1] = Clock::InTime,
            _ => {}
        }
        job.drive.arm(timer, &TIMERS);
    }

    /// A deadline has passed; whether that ends a successor whose turn has not come, while the incumbent stands still.
    pub(super) fn deadline_fired(&mut self) {
        let sabotage = self.sabotage;
        let Job::HandingOver(job) = &mut self.supervisor_mut().job else { return };
        if sabotage == Some(Sabotage::TakeDeadlineForLife) {
            job.drive.feed(supervisor::Input::FromIncumbent(Message::Heartbeat { ts_ms: 0 }));
        }
        let ends = job.drive.todo.contains(&supervisor::Effect::KillSuccessor);
        let incumbent = job.incumbent;
        if ends && incumbent.is_some_and(|slot| self.processes[slot].life == Life::Frozen) {
            self.broken = Some(Broken::EndedForSilence);
        }
    }

    /// A successor has had the whole time of the handover; one whose opening hangs has a bound of its own.
    pub(super) fn slack_fired(&mut self) {
        let Job::HandingOver(job) = &self.supervisor.job else { return };
        if job.successor.is_some_and(|slot| self.processes[slot].hangs()) {
            self.broken = self.broken.or(Some(Broken::OpeningUnbounded));
        }
    }

    /// What the supervisor waits for without need, if it waits.
    pub(super) fn waits_in_vain(&self) -> Option<Broken> {
        let Job::HandingOver(job) = &self.supervisor.job else { return None };
        if self.supervisor.life != Life::Running || !job.drive.is_waiting() || self.next_news(job).is_some() {
            return None;
        }
        let is_dead = job.record.incumbent.is_some() && job.incumbent.is_none();
        if is_dead && job.drive.is_armed(supervisor::Timer::Warm) && job.warmth == Warmth::AsPlanned {
            return Some(Broken::WarmsWhileNobodyServes);
        }
        let awaits_hook = job.drive.is_armed(supervisor::Timer::IncumbentSilent)
            && job.drive.is_armed(supervisor::Timer::Deadline)
            && self.incumbent_would_hear(job);
        let resumes = |slot: Slot| match &self.processes[slot].role {
            Role::Incumbent(role) => {
                let is_on_its_way_back = matches!(role.hook, Some(Hook::Resume | Hook::EndlessResume));
                is_on_its_way_back && role.handover == Some(handoff_id(self.handovers)) && role.drive.is_waiting()
            }
            _ => false,
        };
        (awaits_hook && job.incumbent.is_some_and(resumes)).then_some(Broken::FailureKeptBack)
    }
}
