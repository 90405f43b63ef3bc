//! What the role machines see of the data-dir lock's lease.
//!
//! The lock crate has a richer type of its own and does not depend on this one; the runtime converts. A lease that names an
//! owner of an earlier boot is shown to the machines as no lease at all: that owner is not alive.

use crate::message::HandoffId;

/// A process, by a pid that can't be mistaken for a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks after boot (field 22 of `/proc/PID/stat`, proc(5)).
    pub start_time: u64,
}

/// How far the owner of a lease has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// It holds the lock and opens its data; it acknowledges nothing yet (promise 5).
    Opening,
    /// It serves.
    Active,
    /// It sealed its data and released the lock (promise 2).
    Sealed,
}

/// One reading of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseView {
    /// The fencing token: one higher at every acquisition, never lower again.
    pub epoch: u64,
    /// Who wrote it.
    pub owner: ProcessId,
    /// How far that owner has come.
    pub state: LeaseState,
    /// The handover that it belongs to, if any.
    pub handoff_id: Option<HandoffId>,
}
