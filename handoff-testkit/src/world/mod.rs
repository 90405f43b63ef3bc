//! The shipped role machines in one small world: processes that crash and freeze, connections that keep their order, one
//! lock, one lease, one journal, one store, and a clock that knows only "in time", "late", and "very late".
//!
//! The machines of the three roles and of a supervisor's recovery are those of [`handoff_proto`], not copies. The world does
//! what their drivers do, one effect at a time: whatever others could see of an effect is a [`Move`] of its own, and between any
//! two of them any process may crash, freeze, or be overtaken by all others. A frozen process that wakes up goes on with what it
//! had decided to do.
//!
//! **Copies, written by hand after `handoff_runtime`**, because no machine that ships takes these decisions: the steps of a
//! daemon that is started cold (in `successor`), when the service starts one or ends a frozen one and who must leave (in
//! `moves` and `supervisor`), its record of them (in `ledger`), and what a restarted supervisor finds and makes of the verdict
//! (in `recovery`). A change there changes nothing here. They go when the service has a machine of its own. Its restart policy,
//! probation and builds are not in this world at all.
//!
//! What is left out, because it changes nothing that a promise speaks of, or is proven elsewhere: heartbeats (silence is
//! that the peer stands still), progress and status messages, the contents of reports, a try of the lock that is half done, version 1, and the file systems' failures. A slow process is one that freezes and wakes up.
//!
//! Time is abstract. The deadline and the slack of a handover pass at any moment; a timer of silence runs out when the other
//! side stands still. Input comes before time, as every driver does it.

mod bounds;
mod directory;
mod drive;
mod incumbent;
mod ledger;
mod moves;
mod print;
mod process;
mod promises;
mod recovery;
mod sabotage;
mod successor;
mod supervisor;
mod tidy;

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use handoff_proto::{HandoffId, LeaseState, LeaseView, ProcessId};

pub use directory::{Outsider, Strangers};
pub use moves::{Actor, Move};
pub use process::Slot;
pub use promises::Broken;
pub use sabotage::Sabotage;

use directory::Directory;
use ledger::Ledger;
use process::{Life, Memory, Process, Role, Store};
use supervisor::{Job, Record, Supervisor};

/// The first daemon, one successor for each of two handovers, and one that is started cold.
pub(crate) const SLOTS: usize = 4;

/// Every supervisor has the same pid here: nobody compares it with another supervisor's.
const SUPERVISOR_PID: u32 = 10;

/// What may happen in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// How many handovers are started, one after the other; at most two.
    pub handovers: u8,
    /// How many faults happen: a crash or a freeze of any process, a failed hook, a failed call.
    pub faults: u8,
    /// What becomes of a supervisor that died or froze.
    pub init: Init,
    /// Who is after the directory besides the service.
    pub strangers: Strangers,
    /// A rule that is broken on purpose.
    pub sabotage: Option<Sabotage>,
}

/// Who started the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Init {
    /// One that ends a frozen supervisor and starts a dead one again.
    Replaces,
    /// Nobody cares for it.
    LeavesAlone,
}

/// One state of everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    supervisor: Arc<Supervisor>,
    processes: [Arc<Process>; SLOTS],
    /// Who holds the lock file, by the kernel's word. It decides between the processes of the service.
    lock: Option<Slot>,
    directory: Directory,
    lease: LeaseView,
    journal: Option<Record>,
    /// The service's own record.
    ledger: Ledger,
    /// Whose socket the control path leads to.
    path: Option<Slot>,
    /// The time of each handover.
    clocks: [Clock; SLOTS - 2],
    /// How many were started.
    handovers: u8,
    /// How many faults have happened.
    faults: u8,
    sabotage: Option<Sabotage>,
    broken: Option<Broken>,
}

/// How late it is in a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Clock {
    InTime,
    /// Past the deadline.
    Late,
    /// Past the deadline and every slack.
    VeryLate,
}

/// Who can see an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Nobody: it is done at once.
    Unseen,
    /// Only who comes after a crash of this process: nobody else needs to move before it is done.
    Own,
    /// Others.
    Seen,
}

/// Whether a call works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Performed {
    Well,
    Failing,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint());
    }
}

impl World {
    /// A daemon serves, and an idle supervisor knows it.
    pub fn new(sabotage: Option<Sabotage>) -> Self {
        let ids: [ProcessId; SLOTS] = std::array::from_fn(|slot| process_id(slot, 0));
        let mut processes = ids.map(Process::nobody);
        processes[0] = Process { memory: Memory::AsOnDisk, store: Store::Open, ..Process::new(ids[0], Role::Nobody) };
        processes[0].becomes_incumbent(1);
        Self {
            supervisor: Arc::new(Supervisor {
                life: Life::Running,
                job: Job::Idle,
                daemon: Some(0),
                unheard: None,
                retiring: [false; SLOTS],
            }),
            processes: processes.map(Arc::new),
            lock: Some(0),
            directory: Directory::of_first(),
            lease: LeaseView { epoch: 1, owner: ids[0], state: LeaseState::Active, handoff_id: None },
            journal: None,
            ledger: ledger::FIRST,
            path: Some(0),
            clocks: [Clock::InTime; SLOTS - 2],
            handovers: 0,
            faults: 0,
            sabotage,
            broken: None,
        }
    }

    /// How many faults have happened so far.
    pub fn faults(&self) -> u8 {
        self.faults
    }

    /// One number for this state; texts do not count.
    pub fn fingerprint(&self) -> u64 {
        let Self { supervisor, processes, lock, directory, lease, journal, ledger, path, clocks, .. } = self;
        let Self { handovers, faults, broken, .. } = self;
        let first = (supervisor, processes, lock, directory, lease, journal, ledger);
        print::fingerprint(&(first, path, clocks, handovers, faults, broken))
    }

    /// A line for people: who stands where.
    pub fn summary(&self) -> String {
        let mut text = format!("S {:?} {}", self.supervisor.life, self.supervisor.job.name());
        for (slot, process) in self.processes.iter().enumerate() {
            if process.is_alive() {
                let owner = if self.lock == Some(slot) { ", holds the lock" } else { "" };
                text += &format!(" | P{slot} {:?} {}{owner}", process.life, process.role.name());
            }
        }
        let LeaseView { epoch, owner, state, .. } = self.lease;
        text += &format!(" | {:?}", self.directory);
        text + &format!(" | lease {epoch} {state:?} of P{}, {} faults", owner.pid - PID_BASE, self.faults)
    }

    fn process_mut(&mut self, slot: Slot) -> &mut Process {
        Arc::make_mut(&mut self.processes[slot])
    }

    fn supervisor_mut(&mut self) -> &mut Supervisor {
        Arc::make_mut(&mut self.supervisor)
    }

    /// Where this very process is, if it lives.
    fn living(&self, id: ProcessId) -> Option<Slot> {
        self.processes.iter().position(|process| process.id == id && process.is_alive())
    }

    /// A process id for this place that nobody could take for one that was there before.
    fn fresh_id(&self, slot: Slot) -> ProcessId {
        let is_known = |id: ProcessId| {
            let journaled = self.journal.is_some_and(|record| [record.incumbent, record.successor].contains(&Some(id)));
            let watched = self.processes.iter().any(|process| match &process.role {
                Role::Incumbent(role) => role.watched == Some(id),
                _ => false,
            });
            self.lease.owner == id || journaled || watched
        };
        let ids = (0..).map(|generation| process_id(slot, generation));
        ids.into_iter().find(|id| !is_known(*id)).unwrap_or(process_id(slot, 0))
    }

    /// SIGKILL, or a crash.
    fn kill(&mut self, slot: Slot) {
        if self.lock == Some(slot) {
            self.lock = None;
        }
        self.directory.closed_by(slot);
        self.process_mut(slot).dies();
    }

    /// Who answers with a Hello on the control path.
    fn who_answers(&self) -> Option<Slot> {
        let slot = self.path?;
        let process = &self.processes[slot];
        (process.runs() && matches!(process.role, Role::Incumbent(_))).then_some(slot)
    }

    /// This process has the store open from now on: what others remember of it is worth nothing.
    fn opens_store(&mut self, slot: Slot) {
        for other in (0..SLOTS).filter(|other| *other != slot) {
            if self.processes[other].memory == Memory::AsOnDisk {
                self.process_mut(other).memory = Memory::Outdated;
            }
        }
        self.process_mut(slot).store = Store::Open;
    }

    /// Writes the next epoch as Opening.
    fn claim(&mut self, slot: Slot, handoff_id: Option<HandoffId>) -> u64 {
        let epoch = self.lease.epoch + 1;
        let owner = self.processes[slot].id;
        self.lease = LeaseView { epoch, owner, state: LeaseState::Opening, handoff_id };
        epoch
    }

    fn clock(&self, handover: u8) -> Clock {
        self.clocks[usize::from(handover) - 1]
    }
}

const PID_BASE: u32 = 100;

fn process_id(slot: Slot, generation: u64) -> ProcessId {
    ProcessId { pid: PID_BASE + slot as u32, start_time: generation }
}

fn handoff_id(handover: u8) -> HandoffId {
    HandoffId::from_bytes([handover; 16])
}
