//! Group commit: many writers wait, one of them syncs for all.
//!
//! ```text
//!   Idle ──a waiter finds its record not durable: it becomes the leader──▶ Syncing
//!     ▲                                                                      │
//!     ├── synced: everything appended before the sync began is durable ◀─────┤
//!     │                                                                      │ the sync failed
//!   Closed (sealed)                                                          ▼
//!                                                            Failed: for good, every waiter is told
//! ```
//!
//! Invariants:
//!
//! - [`GroupCommit::wait`] returns `Ok` for a sequence only after a sync that *began* after that record was appended
//!   succeeded. A record appended while a sync runs waits for the next one.
//! - After a failed sync nothing is acknowledged any more: the kernel may have dropped the dirty pages and say yes to the
//!   next sync without having written them (fsync(2), notes).
//! - There is no thread of its own: the leader is the writer that came first.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::error::{Result, StoreError};
use super::wal::LogFile;

#[derive(Debug)]
pub(crate) struct GroupCommit {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    appended: u64,
    durable: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Idle(Arc<dyn LogFile>),
    Syncing,
    Failed(String),
    Closed,
}

impl GroupCommit {
    /// Everything up to `durable` is on disk in `file` already.
    pub(crate) fn new(file: Arc<dyn LogFile>, durable: u64) -> Self {
        let state = State { appended: durable, durable, phase: Phase::Idle(file) };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The last sequence that is on disk.
    ///
    /// # Errors
    /// A sync has failed: append nothing more.
    pub(crate) fn durable(&self) -> Result<u64> {
        let state = self.state();
        match &state.phase {
            Phase::Failed(reason) => Err(StoreError::poisoned(reason)),
            _ => Ok(state.durable),
        }
    }

    /// The record with this sequence is in the file. Called in the order of sequences.
    pub(crate) fn appended(&self, sequence: u64) {
        self.state().appended = sequence;
    }

    /// Returns when everything up to `sequence` is on disk; syncs for all who wait, if nobody else does.
    ///
    /// # Errors
    /// This sync or an earlier one failed.
    pub(crate) fn wait(&self, sequence: u64) -> Result<()> {
        let mut state = self.state();
        loop {
            if let Phase::Failed(reason) = &state.phase {
                return Err(StoreError::poisoned(reason));
            }
            if state.durable >= sequence {
                return Ok(());
            }
            state = match &state.phase {
                Phase::Idle(file) => {
                    let file = Arc::clone(file);
                    self.lead(state, file)
                }
                Phase::Syncing => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Phase::Failed(_) | Phase::Closed => return Err(StoreError::Sealed),
            };
        }
    }

    /// Goes on with `file`. Everything that was appended so far must be durable.
    pub(crate) fn go_on_in(&self, file: Arc<dyn LogFile>) {
        let waited = self.changed.wait_while(self.state(), |state| matches!(state.phase, Phase::Syncing));
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if let Phase::Idle(current) = &mut state.phase {
            *current = file;
        }
    }

    /// Lets go of the file. What is not durable by now never will be.
    pub(crate) fn close(&self) {
        let waited = self.changed.wait_while(self.state(), |state| matches!(state.phase, Phase::Syncing));
        waited.unwrap_or_else(PoisonError::into_inner).phase = Phase::Closed;
        self.changed.notify_all();
    }

    /// Syncs without the lock, so that others append meanwhile, and tells all who wait.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>, file: Arc<dyn LogFile>) -> MutexGuard<'a, State> {
        let covered = state.appended;
        state.phase = Phase::Syncing;
        drop(state);
        let synced = file.sync();
        let mut state = self.state();
        state.phase = match synced {
            Ok(()) => {
                state.durable = covered;
                Phase::Idle(file)
            }
            Err(error) => Phase::Failed(format!("syncing the log failed: {error}")),
        };
        self.changed.notify_all();
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
