//! The directory's descriptor on its way from one process to the next, and with it the lock.
//!
//! flock(2) belongs to the open file description. A descriptor that is sent to a peer (SCM_RIGHTS, unix(7)) is one more copy of
//! it: the lock is the peer's too, also while the message is in flight, and ends when the last copy is closed. So the
//! directory goes over without an instant in which a stranger could lock it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, fstat, openat, stat};
use rustix::io::{FdFlags, fcntl_setfd, retry_on_intr};

use super::{DIR_FLAGS, Identity, Pair, Sharing};
use crate::error::{Inode, LockError};
use crate::sys::{self, GuardedFd};

impl Pair {
    /// From now on the directory is closed, and never unlocked.
    pub(crate) fn share(&mut self) {
        self.sharing = Sharing::Shared;
        self.identity = Identity::Inode;
    }

    /// A copy of the directory's descriptor, which shares its lock.
    pub(crate) fn copy_dir(&mut self) -> Result<OwnedFd, LockError> {
        let copy = self.dir()?.try_clone_to_owned().map_err(|error| LockError::io(&self.data_dir, error))?;
        self.share();
        Ok(copy)
    }

    /// Uses a peer's descriptor of the same directory in place of the own one.
    pub(crate) fn adopt_dir(&mut self, passed: OwnedFd) -> Result<(), LockError> {
        let failed = |error| LockError::io(&self.data_dir, error);
        self.dir()?;
        if Inode::of(&fstat(&passed).map_err(failed)?) != self.dir_inode {
            return Err(self.is_elsewhere(passed.as_fd()));
        }
        self.check_dir_in_place()?;
        // Whoever received it may have forgotten to ask for it.
        fcntl_setfd(&passed, FdFlags::CLOEXEC).map_err(failed)?;
        self.dir = GuardedFd::adopt(passed).map_err(|error| LockError::io(&self.data_dir, error))?;
        self.share();
        Ok(())
    }

    /// A descriptor with an open file description of its own, not locked, for one that is shared to be left to those who have
    /// it. `None` if it is not shared.
    pub(crate) fn open_dir_apart(&self) -> Result<Option<GuardedFd>, LockError> {
        if self.sharing == Sharing::Alone {
            return Ok(None);
        }
        let apart = GuardedFd::open(|| {
            let shared = self.dir.get()?;
            Ok(retry_on_intr(|| openat(shared, ".", DIR_FLAGS, Mode::empty()))?)
        });
        apart.map(Some).map_err(|error| LockError::io(&self.data_dir, error))
    }

    /// Closes the shared descriptor.
    pub(crate) fn leave_shared_dir(&mut self, apart: GuardedFd) {
        self.dir = apart;
        self.sharing = Sharing::Alone;
    }

    /// What to say if the path does not lead to `wanted`.
    pub(super) fn is_elsewhere(&self, wanted: BorrowedFd<'_>) -> LockError {
        match fstat(wanted) {
            Ok(stat_of_wanted) => LockError::AnotherDirectory {
                path: self.data_dir.clone(),
                named: stat(self.place.path()).ok().map(|stat| Inode::of(&stat)),
                wanted: Inode::of(&stat_of_wanted),
                wanted_path: sys::path_of(wanted),
            },
            Err(error) => LockError::io(&self.data_dir, error),
        }
    }
}

#[cfg(test)]
#[path = "passing_tests.rs"]
mod tests;
