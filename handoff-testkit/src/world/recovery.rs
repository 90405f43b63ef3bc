//! A supervisor that was started again: it performs the effects of the recovery's machine.
//!
//! What it finds, and what it does with the verdict, are written here by hand after the runtime: see the [world](super).
//!
//! What it finds is looked up in one act: between two looks nothing is remembered but what it has decided.

use handoff_proto::recovery::{self, Findings, Journaled, Verdict};
use handoff_proto::supervisor::{LeaseReading, Stopped};
use handoff_proto::{LeaseState, Phase, ProcessId, Timing};

use super::drive::Drive;
use super::ledger::Named;
use super::process::{Life, Slot};
use super::sabotage::Sabotage;
use super::supervisor::{Job, Record, Supervisor};
use super::{SLOTS, World};

pub(super) type RecoveryDrive = Drive<recovery::Recovery, recovery::Input, recovery::Effect, recovery::Timer>;

/// The timers that run out in this world.
pub(super) const RECOVERY_TIMERS: [recovery::Timer; 2] = [recovery::Timer::Again, recovery::Timer::Patience];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Recovering {
    pub(super) drive: RecoveryDrive,
    /// The process that is being ended.
    pub(super) ending: Option<Slot>,
}

impl World {
    pub(super) fn supervisor_restarts(&mut self) {
        let mut drive = Drive::new(recovery::Recovery::new(Timing::default()));
        drive.feed(recovery::Input::Start);
        *self.supervisor_mut() = Supervisor {
            life: Life::Running,
            job: Job::Recovering(Box::new(Recovering { drive, ending: None })),
            daemon: None,
            unheard: None,
            retiring: [false; SLOTS],
        };
    }

    pub(super) fn recovery_hears(&mut self, recovering: Recovering) -> bool {
        let Recovering { mut drive, ending } = recovering;
        let input = if let Some(result) = drive.results.pop_front() {
            (result, ending)
        } else if let Some(slot) = ending
            && !self.processes[slot].is_alive()
        {
            (recovery::Input::Gone, None)
        } else {
            return false;
        };
        drive.feed(input.0);
        self.supervisor_mut().job = Job::Recovering(Box::new(Recovering { drive, ending: input.1 }));
        true
    }

    pub(super) fn perform_in_recovery(&mut self, job: &mut Recovering, effect: recovery::Effect) -> Option<Job> {
        use recovery::{Effect, Input};
        match effect {
            Effect::Look => job.drive.results.push_back(Input::Found(self.findings())),
            Effect::Stop(id) => match self.living(id) {
                Some(slot) => {
                    job.ending = Some(slot);
                    self.stop(slot);
                    job.drive.results.push_back(Input::Stopped(Stopped::Yes));
                }
                None => job.drive.results.push_back(Input::Gone),
            },
            Effect::LookIfStopped(_) => job.drive.results.push_back(Input::Stopped(Stopped::Yes)),
            Effect::ReadLease => job.drive.results.push_back(Input::Lease(LeaseReading::Found(self.lease))),
            Effect::Continue(id) => {
                job.ending = None;
                if let Some(slot) = self.living(id) {
                    self.wake_stopped(slot);
                }
            }
            Effect::Kill(_) => {
                if let Some(slot) = job.ending {
                    self.end_successor(slot);
                }
            }
            Effect::Arm(timer, _) => job.drive.arm(timer, &RECOVERY_TIMERS),
            Effect::Disarm(timer) => job.drive.disarm(timer),
            Effect::Finish(verdict) => return Some(self.recovered(verdict)),
        }
        None
    }

    fn recovered(&mut self, verdict: Verdict) -> Job {
        let serving = match verdict {
            Verdict::Serving(id) => self.living(id),
            Verdict::Nobody => None,
            // It ends with an error; whoever started it starts it again.
            Verdict::HeldBy(_) => {
                self.supervisor_mut().life = Life::Dead;
                return Job::Nothing;
            }
        };
        let old = self.journal.and_then(|record| self.left_behind(record, serving));
        let is_ours = |slot| self.is_written_down(slot) || old == Some(slot);
        let retiring = std::array::from_fn(|slot| is_ours(slot) && Some(slot) != serving);
        let supervisor = self.supervisor_mut();
        (supervisor.daemon, supervisor.retiring) = (serving, retiring);
        self.journal = self.journal.filter(|record| record.phase == Phase::Committed || old.is_some());
        if let Some(record) = &mut self.journal {
            record.phase = Phase::Committed;
        }
        Job::Settling
    }

    /// The old process of a handover whose successor serves.
    fn left_behind(&self, record: Record, serving: Option<Slot>) -> Option<Slot> {
        let serving = serving.map(|slot| self.processes[slot].id);
        let over = record.phase == Phase::Committed || (serving.is_some() && record.successor == serving);
        record.incumbent.filter(|old| over && Some(*old) != serving).and_then(|old| self.living(old))
    }

    /// The pid that the system shows for the lock: whoever has the file, else one that has the directory.
    pub(super) fn lock_holder(&self) -> Option<u32> {
        self.lock.or(self.directory.holder()).map(|slot| self.processes[slot].id.pid)
    }

    fn findings(&self) -> Findings {
        let alive = |id: Option<ProcessId>| id.filter(|id| self.living(*id).is_some());
        let lease = Some(self.lease).filter(|lease| self.living(lease.owner).is_some());
        let journal = self.journal.map(|record| Journaled {
            phase: record.phase,
            incumbent: alive(record.incumbent),
            successor: alive(record.successor).filter(|_| !self.sabotage.is_some_and(Sabotage::spares_leftovers)),
        });
        let answers = match lease {
            Some(lease) if lease.state == LeaseState::Active => None,
            Some(_) | None => self.who_answers().map(|slot| self.processes[slot].id),
        };
        let daemon = self.written_down(Named::Daemon).next();
        let leaving = self.written_down(Named::Leaving).collect();
        let lock_holder = self.lock_holder();
        Findings { journal, lease, daemon, leaving, answers, lock_holder }
    }
}
