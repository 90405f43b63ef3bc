//! The data-dir lock in whatever condition it is, as the machine's effects move it.
//!
//! When the slot is dropped with the lock in it, `serve` has failed: the lock then stays until the process exits, because
//! the daemon's store may still be open (promise 1). A lock that was taken back is again one that a drop keeps.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use handoff_lock::{Attempt, Claim, LockError, ServingLock, Unlocked};
use handoff_proto::incumbent::{Directory, LockTried};
use handoff_proto::{HandoffId, LeaseView};

use crate::drainable::{
    DrainContext, DrainReport, Drainable, HookError, Resume, SealContext, SealReport, StateSnapshot,
};
use crate::events;
use crate::ownership;
use crate::transfer;

/// The lock and what may be done with it.
#[derive(Debug)]
pub(super) struct LockSlot {
    condition: Condition,
    data_dir: PathBuf,
}

#[derive(Debug)]
enum Condition {
    Held(ServingLock),
    /// Taken, and nothing written yet.
    Claimed(Claim),
    /// The descriptors are open, so that taking it needs no new one.
    Free(Unlocked),
    /// Given up for good.
    Released,
}

impl LockSlot {
    pub(super) fn new(lock: ServingLock) -> Self {
        let data_dir = lock.data_dir().to_owned();
        Self { condition: Condition::Held(lock), data_dir }
    }

    /// Writes a handover's id into the lease. The daemon still serves: what the release will need is done now.
    pub(super) fn stamp(&mut self, id: HandoffId) -> Result<(), String> {
        let lock = self.held()?;
        lock.stamp(Some(*id.as_bytes())).map_err(text)?;
        lock.withdraw();
        Ok(())
    }

    /// Says in the lease that we serve.
    pub(super) fn activate(&mut self, build_id: &[u8]) -> Result<(), String> {
        self.held()?.activate(build_id).map_err(text)
    }

    /// Whether this process owns the data.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.condition, Condition::Held(_))
    }

    /// Whether the directory's name still leads to what is held.
    fn check_in_place(&self) -> Result<(), LockError> {
        match &self.condition {
            Condition::Held(lock) => lock.check_in_place(),
            Condition::Claimed(_) | Condition::Free(_) | Condition::Released => Ok(()),
        }
    }

    /// Names this process to people.
    pub(super) fn announce(&mut self) {
        if let Condition::Held(lock) = &mut self.condition {
            lock.announce();
        }
    }

    /// Reserves epochs ahead, durably.
    pub(super) fn reserve_epochs(&mut self) -> Result<(), String> {
        self.held()?.reserve_epochs().map_err(text)
    }

    /// Gives who has the other end of `channel` a part in the directory's lock.
    pub(super) fn pass_directory(&mut self, channel: BorrowedFd<'_>) -> Result<(), String> {
        let directory = self.held()?.directory().map_err(text)?;
        transfer::pass_directory(channel, directory.as_fd()).map_err(|error| error.to_string())
    }

    /// Writes the lease as Sealed and unlocks.
    pub(super) fn seal(&mut self, directory: Directory) -> Result<(), String> {
        let seal = match directory {
            Directory::Released => ServingLock::seal,
            Directory::Passed => ServingLock::seal_and_pass,
        };
        let (next, result) = match self.take() {
            Condition::Held(lock) => match seal(lock) {
                Ok(unlocked) => (Condition::Free(unlocked), Ok(())),
                Err((lock, error)) => (Condition::Held(lock), Err(text(error))),
            },
            other => (other, Err(not_held())),
        };
        self.condition = next;
        result
    }

    /// Reads the lease without the lock.
    pub(super) fn read_lease(&self) -> Result<Option<LeaseView>, String> {
        match &self.condition {
            Condition::Free(unlocked) => {
                let lease = unlocked.read_lease().map_err(text)?;
                Ok(lease.as_ref().and_then(ownership::view))
            }
            Condition::Held(lock) => Ok(ownership::view(lock.lease())),
            Condition::Claimed(claim) => Ok(claim.found().and_then(ownership::view)),
            Condition::Released => Err(not_held()),
        }
    }

    /// The pid that holds the lock, or keeps it from being taken, if the system shows it.
    pub(super) fn holder(&self) -> Option<u32> {
        ownership::in_the_way(&self.data_dir).ok().flatten()
    }

    /// Tries to take it.
    pub(super) fn try_lock(&mut self) -> LockTried {
        let (next, tried) = match self.take() {
            Condition::Free(unlocked) => match unlocked.try_lock() {
                Attempt::Locked(claim) => {
                    let found = claim.found().and_then(ownership::view);
                    (Condition::Claimed(claim), LockTried::Locked(found))
                }
                Attempt::Held(unlocked) => (Condition::Free(unlocked), LockTried::Held),
                Attempt::Failed(unlocked, error) => {
                    events::warn!(%error, "the data-dir lock could not be tried");
                    (Condition::Free(unlocked), LockTried::Failed)
                }
            },
            other => (other, LockTried::Failed),
        };
        self.condition = next;
        tried
    }

    /// Becomes the owner under the next epoch; [`announce`](Self::announce) follows when the daemon serves.
    pub(super) fn claim(&mut self) -> Result<u64, String> {
        let (next, result) = match self.take() {
            Condition::Claimed(claim) => match claim.claim_quietly(None) {
                Ok(lock) => {
                    let epoch = lock.epoch();
                    (Condition::Held(lock.for_serving()), Ok(epoch))
                }
                Err((unlocked, error)) => (Condition::Free(unlocked), Err(text(error))),
            },
            other => (other, Err(not_held())),
        };
        self.condition = next;
        result
    }

    /// Lets go of it, writing nothing.
    pub(super) fn unlock(&mut self) {
        self.condition = match self.take() {
            Condition::Claimed(claim) => Condition::Free(claim.unlock()),
            Condition::Held(lock) => {
                if let Err(error) = lock.release() {
                    events::warn!(%error, "the data-dir lock was not released cleanly");
                }
                Condition::Released
            }
            other => other,
        };
    }

    fn held(&mut self) -> Result<&mut ServingLock, String> {
        match &mut self.condition {
            Condition::Held(lock) => Ok(lock),
            Condition::Claimed(_) | Condition::Free(_) | Condition::Released => Err(not_held()),
        }
    }

    fn take(&mut self) -> Condition {
        std::mem::replace(&mut self.condition, Condition::Released)
    }
}

/// The daemon's hooks, of which the resume is not called while the data directory's name leads to another directory, or to none: a daemon
/// opens its data by that name, and would go on with a copy (promise 3).
pub(super) struct InItsPlace {
    pub(super) hooks: Arc<dyn Drainable>,
    pub(super) lock: Arc<Mutex<LockSlot>>,
}

impl Drainable for InItsPlace {
    fn drain(&self, cx: &DrainContext) -> Result<DrainReport, HookError> {
        self.hooks.drain(cx)
    }

    fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError> {
        self.hooks.seal(cx)
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).check_in_place()?;
        self.hooks.resume_after_abort(resume)
    }

    fn snapshot_state(&self) -> StateSnapshot {
        self.hooks.snapshot_state()
    }
}

fn text(error: LockError) -> String {
    events::warn!(%error, "the data-dir lock");
    error.to_string()
}

fn not_held() -> String {
    "the data-dir lock is not held".into()
}
