//! Forgets what can't matter any more, so that states that behave alike are one state.

use handoff_proto::incumbent::Timer;
use handoff_proto::{LeaseState, LeaseView, successor};

use super::process::{End, Life, Memory, Process, Resume, Role, Service, Slot, Store};
use super::supervisor::Job;
use super::{Clock, Limits, SLOTS, World, process_id};

impl World {
    pub(super) fn tidy(&mut self) {
        self.reap();
        for slot in 0..SLOTS {
            self.tidy_process(slot);
        }
        self.forget_the_dead();
        for handover in 1..=self.handovers {
            if !self.is_timed(handover) {
                self.clocks[usize::from(handover) - 1] = Clock::InTime;
            }
        }
        if self.broken.is_none() {
            self.start_afresh();
        }
    }

    /// The service notices that a process on its way out has left. It may have told the daemon to stand still before.
    fn reap(&mut self) {
        let is_watching = self.supervisor.life == Life::Running;
        let left = |slot: &Slot| self.supervisor.retiring[*slot] && !self.processes[*slot].is_alive();
        for slot in (0..SLOTS).filter(left).collect::<Vec<_>>() {
            if is_watching {
                self.supervisor_mut().retiring[slot] = false;
                if let Some(daemon) = self.supervisor.daemon {
                    self.wake_stopped(daemon);
                }
            }
        }
    }

    fn tidy_process(&mut self, slot: Slot) {
        let process = &self.processes[slot];
        if process.channel.is_some() || !process.sessions.is_empty() {
            let process = self.process_mut(slot);
            if let (Role::Incumbent(_), Some(channel)) = (&process.role, &mut process.channel) {
                channel.to_process.clear();
                if channel.supervisor_end != End::Open {
                    process.channel = None;
                }
            }
            process.tidy();
        }
        if let Role::Incumbent(role) = &self.processes[slot].role
            && role.handover.is_some()
            && role.drive.machine.is_serving()
            && role.drive.is_waiting()
            && let Role::Incumbent(role) = &mut self.process_mut(slot).role
        {
            (role.handover, role.read) = (None, None);
        }
        let process = &self.processes[slot];
        if !process.is_alive() && process.channel.is_none() && process.sessions.is_empty() {
            let nobody = Process::nobody(process_id(slot, 0));
            if **process != nobody {
                *self.process_mut(slot) = nobody;
            }
        }
    }

    /// Nobody asks for a dead process: neither at the end of the control path nor from what is written down.
    fn forget_the_dead(&mut self) {
        self.tidy_ledger();
        self.path = self.path.filter(|slot| self.processes[*slot].is_alive());
        if self.supervisor.unheard.is_some_and(|id| self.living(id).is_none()) {
            self.supervisor_mut().unheard = None;
        }
        if let Some(record) = &mut self.journal {
            let processes = &self.processes;
            let lives = |id: &_| processes.iter().any(|process| process.id == *id && process.is_alive());
            record.incumbent = record.incumbent.filter(lives);
            record.successor = record.successor.filter(lives);
            if record.incumbent.is_none() && record.successor.is_none() {
                self.journal = None;
            }
        }
    }

    /// Whether anybody still goes by this handover's time.
    pub(super) fn is_timed(&self, handover: u8) -> bool {
        use handoff_proto::supervisor::Timer as SupervisorTimer;
        let by_supervisor = match &self.supervisor.job {
            Job::HandingOver(job) if handover == self.handovers => {
                let timers = [SupervisorTimer::Deadline, SupervisorTimer::Late, SupervisorTimer::Resumed];
                timers.into_iter().any(|timer| job.drive.is_armed(timer))
            }
            _ => false,
        };
        by_supervisor
            || self.processes.iter().any(|process| match &process.role {
                Role::Nobody | Role::Starting(_) => false,
                Role::Successor(role) => {
                    let is_told = process.channel.as_ref().is_some_and(|pipe| !pipe.to_process.is_empty());
                    role.handover == handover && (is_told || role.drive.is_armed(successor::Timer::Deadline))
                }
                Role::Incumbent(role) => {
                    let is_its = role.handover.is_some_and(|id| id.as_bytes()[0] == handover);
                    is_its && (role.drive.is_armed(Timer::Deadline) || role.drive.is_armed(Timer::Late))
                }
            })
    }

    /// When all is quiet, nothing but who serves is left of what was. It counts as the first daemon then, under the first
    /// epoch: its machine behaves as a new one.
    fn start_afresh(&mut self) {
        let Job::Idle = self.supervisor.job else { return };
        let Some(daemon) = self.supervisor.daemon else { return };
        let others_live = (0..SLOTS).any(|slot| slot != daemon && self.is_somebody(slot));
        if others_live || !self.is_at_rest(daemon) || self.supervisor.life != Life::Running {
            return;
        }
        self.assert_behaves_as_new(daemon);
        let fresh = Self::new(self.sabotage);
        *self = Self { handovers: self.handovers, faults: self.faults, ..fresh };
    }

    /// What a machine remembers of earlier handovers would be lost here, and no walk would ever see what it does with it.
    fn assert_behaves_as_new(&self, slot: Slot) {
        let process = &self.processes[slot];
        let Role::Incumbent(role) = &process.role else { return };
        let machine = &*role.drive.machine;
        assert_eq!(*machine, process.new_incumbent(machine.epoch()), "at rest an incumbent remembers something");
    }

    /// Whether all handovers are over and nothing is left of them.
    pub fn is_over(&self, limits: &Limits) -> bool {
        let fresh = Self { handovers: self.handovers, faults: self.faults, ..Self::new(self.sabotage) };
        self.handovers >= limits.handovers && self.fingerprint() == fresh.fingerprint()
    }

    fn is_somebody(&self, slot: Slot) -> bool {
        let process = &self.processes[slot];
        process.is_alive() || process.channel.is_some() || !process.sessions.is_empty()
    }

    /// Whether this process serves, and nobody talks to it.
    fn is_at_rest(&self, slot: Slot) -> bool {
        let process = &self.processes[slot];
        let Role::Incumbent(role) = &process.role else { return false };
        let serves = process.runs()
            && process.service == Service::Serves
            && process.store == Store::Open
            && process.memory == Memory::AsOnDisk;
        let is_new = role.drive.machine.is_serving()
            && role.drive.is_waiting()
            && role.drive.armed().is_empty()
            && role.hook.is_none()
            && role.watched.is_none()
            && role.resume == Resume::NotOwed;
        let LeaseView { owner, state, .. } = self.lease;
        let owns = self.has_lock(slot) && owner == process.id && state == LeaseState::Active;
        serves && is_new && owns && process.channel.is_none() && process.sessions.is_empty() && self.path == Some(slot)
    }
}
