//! What must hold in every state, whatever has crashed or frozen.

use handoff_proto::LeaseState;

use super::World;
use super::process::{Life, Process, Resume, Role, Service, Slot, Store};

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Broken {
    /// Two processes have the store open (promise 1).
    TwoWriters,
    /// A process has the store open without the lock: released before the seal, or never had (promises 1 and 2).
    WritesWithoutLock,
    /// A machine takes the lock for its own, and it is not (promise 1).
    BelievesWithoutLock,
    /// The data were taken back although somebody newer owned them (promise 1).
    TookBackFromNewer,
    /// A successor took the data when it was not its turn (promise 1).
    TookOutOfTurn,
    /// A daemon went on with what it remembered from before another one wrote (promise 3).
    WritesLost,
    /// Clients are served by a process whose lease is not Active (promise 5).
    ServesUnannounced,
    /// A successor said that it is ready, and its lease is not Active (promise 5).
    ReadyBeforeActive,
    /// A process that serves was taken for one that never came to it, and ended (promise 8).
    ActiveEnded,
    /// `resume_after_abort` ran although no drain was left to undo (promise 9).
    ResumedTwice,
    /// A handover was undone without a resume (promise 9).
    NeverResumed,
    /// An incumbent was said to serve that still owed its resume.
    SaidToServe,
    /// A handover was undone, and an incumbent that could still have said whether it serves was not waited for.
    NotWaitedFor,
    /// A deadline passed while the incumbent stood still, and the successor that could have served was ended for it (promise 8).
    EndedForSilence,
    /// An opening that hung was ended by the deadline of the whole handover, and not by its own bound.
    OpeningUnbounded,
    /// The incumbent is dead, and its successor has as long to warm up as if it lived.
    WarmsWhileNobodyServes,
    /// The supervisor waits for the incumbent's hook, which has failed, as long as the resume takes.
    FailureKeptBack,
    /// Two hooks ran at once (promise 9).
    HooksOverlap,
    /// A second daemon on the same data got both locks while the owner lived (promise 8).
    SlippedIn,
    /// A machine took a call of its daemon for a misuse: the world is at fault.
    Misuse,
}

impl World {
    /// What is broken here, if anything is.
    pub fn broken(&self) -> Option<Broken> {
        self.broken.or_else(|| self.broken_by_state())
    }

    /// Whether clients get their writes acknowledged.
    pub fn is_serving(&self) -> bool {
        (0..self.processes.len()).any(|slot| {
            let process = &self.processes[slot];
            process.runs() && process.service == Service::Serves && self.is_active_owner(slot)
        })
    }

    /// Whether a process was told to stand still by a supervisor that does nothing more, so that nobody tells it to go on.
    pub fn is_left_standing_still(&self) -> bool {
        let is_stopped = self.processes.iter().any(|process| process.life == Life::Stopped);
        is_stopped && self.supervisor.life != Life::Running
    }

    /// Whether nobody is left who could start or serve anything: no process, and no supervisor that does anything more.
    pub fn is_empty(&self) -> bool {
        self.supervisor.life != Life::Running && self.processes.iter().all(|process| !process.is_alive())
    }

    fn broken_by_state(&self) -> Option<Broken> {
        let mut writers = 0;
        for (slot, process) in self.processes.iter().enumerate() {
            if process.life == Life::Dead {
                continue;
            }
            if process.store == Store::Open {
                writers += 1;
                if !self.has_lock(slot) {
                    return Some(Broken::WritesWithoutLock);
                }
            }
            if process.service == Service::Serves && !(self.is_active_owner(slot)) {
                return Some(Broken::ServesUnannounced);
            }
            if let Some(broken) = self.broken_in_machine(slot, process) {
                return Some(broken);
            }
        }
        (writers > 1).then_some(Broken::TwoWriters).or_else(|| self.waits_in_vain())
    }

    fn broken_in_machine(&self, slot: Slot, process: &Process) -> Option<Broken> {
        let Role::Incumbent(role) = &process.role else { return None };
        // A result that was not told yet is the machine's very next input.
        if !role.drive.results.is_empty() {
            return None;
        }
        if role.drive.machine.believes_to_hold_lock() && !self.has_lock(slot) {
            return Some(Broken::BelievesWithoutLock);
        }
        let is_done = role.drive.machine.is_serving() && role.drive.is_waiting();
        (is_done && role.resume == Resume::Owed).then_some(Broken::NeverResumed)
    }

    /// Whether the lease says that this process is the Active owner, and the kernel agrees.
    pub(super) fn is_active_owner(&self, slot: Slot) -> bool {
        let is_named = self.lease.owner == self.processes[slot].id && self.lease.state == LeaseState::Active;
        self.has_lock(slot) && is_named
    }
}
