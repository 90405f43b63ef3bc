//! What a service that is started again knows besides the journal: its daemon, and who is to leave. The journal knows only the
//! last handover.
//!
//! A copy by hand of the service's record: see the [world](super).
//!
//! Written at a start, and as an act of its own after a commit and after a recovery; so it can be missing after a crash.

use handoff_proto::ProcessId;

use super::process::Slot;
use super::{SLOTS, World};

/// What it says of each process.
pub(super) type Ledger = [Option<Named>; SLOTS];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Named {
    Daemon,
    Leaving,
}

/// The first daemon serves, and nobody is to leave.
pub(super) const FIRST: Ledger = [Some(Named::Daemon), None, None, None];

impl World {
    pub(super) fn write_down(&mut self) {
        let supervisor = &self.supervisor;
        let named = |slot| match supervisor.daemon == Some(slot) {
            true => Some(Named::Daemon),
            false => supervisor.retiring[slot].then_some(Named::Leaving),
        };
        self.ledger = std::array::from_fn(named);
    }

    pub(super) fn is_written_down(&self, slot: Slot) -> bool {
        self.ledger[slot].is_some()
    }

    pub(super) fn written_down(&self, as_what: Named) -> impl Iterator<Item = ProcessId> {
        (0..SLOTS).filter(move |slot| self.ledger[*slot] == Some(as_what)).map(|slot| self.processes[slot].id)
    }

    /// A process that is dead is nobody any more.
    pub(super) fn tidy_ledger(&mut self) {
        for slot in (0..SLOTS).filter(|slot| !self.processes[*slot].is_alive()) {
            self.ledger[slot] = None;
        }
    }
}
