//! A successor's process: it performs the effects of its machine, and is the daemon that opens the store. Also a daemon that
//! is started cold, which has no machine before it serves: its steps are written here by hand, see the [world](super).

use handoff_proto::successor::{
    Age, Answer, Call, Effect, Errand, Found, Input, LockShown, Outcome, Report, Timer, Wire,
};
use handoff_proto::{LeaseState, LeaseView, Message};

use super::process::{Activation, Daemon, End, Memory, Process, Role, Service, Slot, Starting, Store, SuccessorRole};
use super::sabotage::Sabotage;
use super::{Broken, Class, Clock, Performed, World, handoff_id};

/// The timers that run out in this world.
pub(super) const TIMERS: [Timer; 4] = [Timer::Hello, Timer::Supervisor, Timer::Deadline, Timer::LockRetry];

impl World {
    /// Tells the machine the next thing that has happened; false when there is nothing.
    pub(super) fn successor_hears(&mut self, slot: Slot) -> bool {
        let process = self.process_mut(slot);
        let Role::Successor(role) = &mut process.role else { return false };
        let input = if let Some(result) = role.drive.results.pop_front() {
            result
        } else if let Some(pipe) = process.channel.as_mut().filter(|pipe| pipe.process_end == End::Open) {
            if let Some(message) = pipe.to_process.pop_front() {
                if let Message::BeginWith { epoch, .. } = &message {
                    role.begun_epoch = *epoch;
                }
                Input::Wire(Wire::Message(message))
            } else if pipe.supervisor_end == End::Closed {
                pipe.supervisor_end = End::Noticed;
                Input::Wire(Wire::Closed)
            } else {
                return false;
            }
        } else {
            return false;
        };
        role.drive.feed(input);
        true
    }

    pub(super) fn class_of_successor(&self, process: &Process, effect: &Effect) -> Class {
        let is_heard = process.channel.as_ref().is_some_and(|pipe| pipe.supervisor_end == End::Open);
        match effect {
            Effect::Send(..) | Effect::HangUp if is_heard => Class::Seen,
            Effect::Do(Errand::StageControl) => Class::Unseen,
            Effect::Do(_) => Class::Seen,
            Effect::Send(..)
            | Effect::HangUp
            | Effect::Heartbeat(_)
            | Effect::Arm(..)
            | Effect::ArmAt(..)
            | Effect::Disarm(_)
            | Effect::Reached(_)
            | Effect::Answer(_) => Class::Unseen,
        }
    }

    pub(super) fn successor_acts(&mut self, slot: Slot, performed: Performed) {
        let process = self.process_mut(slot);
        let Role::Successor(role) = &mut process.role else { return };
        let Some(effect) = role.drive.todo.pop_front() else {
            // Its daemon has nothing more to do: the exit unlocks.
            return self.kill(slot);
        };
        match effect {
            Effect::Send(_, message) => {
                let is_ready = matches!(message, Message::Ready { healthz_ok: true, .. });
                if let Some(pipe) = &mut process.channel {
                    pipe.send_to_supervisor(message);
                }
                if is_ready && !self.is_active_owner(slot) {
                    self.broken = Some(Broken::ReadyBeforeActive);
                }
            }
            Effect::HangUp => {
                if let Some(pipe) = &mut process.channel {
                    pipe.process_closes();
                }
            }
            Effect::Arm(timer, _) | Effect::ArmAt(timer, _) => role.drive.arm(timer, &TIMERS),
            Effect::Disarm(timer) => role.drive.disarm(timer),
            Effect::Heartbeat(_) | Effect::Reached(_) => {}
            Effect::Answer(answer) => self.daemon_returns(slot, answer),
            Effect::Do(errand) => self.run_errand(slot, errand, performed),
        }
    }

    /// What the daemon does with the answer of its call.
    fn daemon_returns(&mut self, slot: Slot, answer: Answer) {
        let epoch = self.lease.epoch;
        let process = self.process_mut(slot);
        let Role::Successor(role) = &mut process.role else { return };
        match answer {
            Answer::Greeted { .. } if role.daemon == Daemon::Hangs => {}
            Answer::Greeted { .. } => {
                role.daemon = Daemon::Calls;
                role.drive.results.push_back(Input::Daemon(Call::WaitForBegin));
            }
            Answer::Begun { .. } => role.drive.results.push_back(Input::Daemon(Call::Lock)),
            Answer::Locked { .. } => {
                role.daemon = Daemon::OpensStore { epoch };
                process.memory = Memory::AsOnDisk;
                self.opens_store(slot);
            }
            Answer::Announced => process.becomes_incumbent(epoch),
            Answer::GaveUp(_) => {
                role.daemon = Daemon::Exits;
                process.store = Store::Closed;
            }
            Answer::Done | Answer::Misuse => self.broken = Some(Broken::Misuse),
        }
    }

    /// The daemon has opened its store, or could not.
    pub(super) fn store_opened(&mut self, slot: Slot, performed: Performed) {
        let Role::Successor(role) = &mut self.process_mut(slot).role else { return };
        let Daemon::OpensStore { epoch } = role.daemon else { return };
        role.daemon = Daemon::Calls;
        let healthz_ok = performed == Performed::Well;
        let report = Report { healthz_ok, advertised_revision_per_shard: vec![1], ..Report::default() };
        let lock = LockShown { epoch, handoff_id: Some(handoff_id(role.handover)) };
        role.drive.feed(Input::Daemon(Call::Announce { report, lock }));
    }

    fn run_errand(&mut self, slot: Slot, errand: Errand, performed: Performed) {
        let outcome = match performed {
            Performed::Well => self.perform_errand(slot, errand),
            Performed::Failing => {
                // A failed claim has unlocked.
                if let Errand::ClaimLease { .. } = errand {
                    self.unlock(slot);
                }
                Some(Outcome::Failed { reason: String::new() })
            }
        };
        let Role::Successor(role) = &mut self.process_mut(slot).role else { return };
        match outcome {
            Some(outcome) => role.drive.results.push_back(Input::Did(outcome)),
            None => role.drive.todo.push_front(Effect::Do(errand)),
        }
    }

    /// `None`: it is half done.
    fn perform_errand(&mut self, slot: Slot, errand: Errand) -> Option<Outcome> {
        Some(match errand {
            Errand::TryLock if self.try_lock(slot) => Outcome::Locked(self.found(self.lease_for(slot))),
            Errand::TryLock => Outcome::Held(self.found(self.lease_for(slot))),
            Errand::ClaimLease { handoff_id } => {
                if !self.is_its_turn(slot) {
                    self.broken = Some(Broken::TookOutOfTurn);
                }
                let epoch = self.claim(slot, Some(handoff_id));
                Outcome::Claimed { epoch }
            }
            Errand::Unlock => {
                self.unlock(slot);
                Outcome::Done
            }
            Errand::StageControl => Outcome::Done,
            Errand::PublishControl => {
                self.path = Some(slot);
                Outcome::Done
            }
            Errand::ActivateLease { .. } => return self.activate(slot),
        })
    }

    /// It looks at the clock, and then it writes.
    fn activate(&mut self, slot: Slot) -> Option<Outcome> {
        let clocks = self.clocks;
        let Role::Successor(role) = &mut self.process_mut(slot).role else { return None };
        match role.activation {
            Activation::NotLooked if clocks[usize::from(role.handover) - 1] != Clock::InTime => Some(Outcome::TooLate),
            Activation::NotLooked => {
                role.activation = Activation::InTime;
                None
            }
            Activation::InTime => {
                self.lease.state = LeaseState::Active;
                Some(Outcome::Done)
            }
        }
    }

    fn found(&self, lease: LeaseView) -> Found {
        Found::Lease { lease, age: Age::BeforeBegin }
    }

    fn lease_for(&self, slot: Slot) -> LeaseView {
        match (&self.processes[slot].role, self.sabotage) {
            (
                Role::Successor(SuccessorRole { begun_epoch: epoch, .. }),
                Some(Sabotage::SpareLeftoversAndIgnoreEpoch),
            ) => LeaseView { epoch: *epoch, ..self.lease },
            _ => self.lease,
        }
    }

    /// The rule of the successor: its incumbent has sealed for it, or is dead.
    fn is_its_turn(&self, slot: Slot) -> bool {
        let Role::Successor(role) = &self.processes[slot].role else { return false };
        let its_id = Some(handoff_id(role.handover));
        let is_sealed_for_it = self.lease.state == LeaseState::Sealed && self.lease.handoff_id == its_id;
        let is_orphaned = self.living(self.lease.owner).is_none() && self.lease.epoch == role.begun_epoch;
        is_sealed_for_it || is_orphaned
    }

    /// The next step of a daemon that is started cold.
    pub(super) fn starting_acts(&mut self, slot: Slot, stage: Starting) {
        let next = match stage {
            Starting::Locking if self.try_lock(slot) => Starting::Claiming,
            Starting::Locking => return self.kill(slot),
            Starting::Claiming => {
                self.claim(slot, None);
                self.process_mut(slot).memory = Memory::AsOnDisk;
                self.opens_store(slot);
                Starting::Publishing
            }
            Starting::Publishing => {
                self.path = Some(slot);
                Starting::Activating
            }
            Starting::Activating => {
                self.lease.state = LeaseState::Active;
                let epoch = self.lease.epoch;
                return self.process_mut(slot).becomes_incumbent(epoch);
            }
        };
        let process = self.process_mut(slot);
        process.role = Role::Starting(next);
        process.service = Service::Silent;
    }
}
