//! A data dir whose lock is not held, and the try that takes it.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::data_dir_lock::{Claim, DataDirLock};
use crate::error::{Inode, LockError};
use crate::exposure::{self, Exposure};
use crate::held_by::HeldBy;
use crate::holder;
use crate::lease::Lease;
use crate::pair::{Locking, Pair};
use crate::waiting::{Contender, Outcome};

/// A data dir whose lock is not held, with all that is needed to take it: no descriptor and no file has to be made for it.
///
/// Open it ahead of time, [`try_lock`](Unlocked::try_lock) it when the turn has come. Dropping it changes nothing,
/// but that a directory [passed on](crate::DataDirLock::seal_and_pass) or [adopted](Unlocked::adopt_directory) is no longer
/// locked by this process.
#[derive(Debug)]
pub struct Unlocked {
    pub(crate) pair: Pair,
}

/// What came of [`Unlocked::try_lock`].
#[derive(Debug)]
#[must_use = "dropping a locked Claim unlocks it"]
pub enum Attempt {
    /// The lock is held by this process. Nothing is written yet.
    Locked(Claim),
    /// Somebody else holds it.
    Held(Unlocked),
    /// It could not be tried, or its lease could not be read; it is not held.
    Failed(Unlocked, LockError),
}

impl Unlocked {
    /// With the usual settings of [`LockOptions::open`](crate::LockOptions::open): opens the directory and its lock file, both of which are created if they are missing: the directory for its owner only
    /// (mode 0700), directories above it as mkdir(1) with `-p` does.
    ///
    /// # Errors
    /// [`LockError::UnsupportedFilesystem`] where flock(2) does not exclude other hosts, [`LockError::NotALockFile`] if the
    /// lock file is not a regular file, [`LockError::Io`] for the rest. None of them is this process's to mend at run time.
    pub fn open(dir: &Path) -> Result<Self, LockError> {
        DataDirLock::options().open(dir)
    }

    /// The directory, as given.
    pub fn data_dir(&self) -> &Path {
        self.pair.data_dir()
    }

    /// Whether other users may read the directory, and so lock it: for the program to say once.
    ///
    /// # Errors
    /// [`LockError::Io`] if the directory can't be looked at.
    pub fn exposure(&self) -> Result<Option<Exposure>, LockError> {
        exposure::of_open(self.pair.dir()?, self.data_dir())
    }

    /// Which directory is open, whatever its path leads to. Two processes that open the same data dir see the same one.
    pub fn inode(&self) -> Inode {
        self.pair.inode()
    }

    /// Whether the path still leads to the directory that is open.
    ///
    /// # Errors
    /// As [`DataDirLock::check_in_place`](crate::DataDirLock::check_in_place).
    pub fn check_in_place(&self) -> Result<(), LockError> {
        self.pair.check_dir_in_place()
    }

    /// The lease at this moment, read without the lock. By the time that the caller looks at it, it may be another: decide
    /// only by what [`Claim::found`] says.
    ///
    /// # Errors
    /// [`LockError::Io`], [`LockError::NotALockFile`], [`LockError::NewerFormat`].
    pub fn read_lease(&self) -> Result<Option<Lease>, LockError> {
        self.pair.read_lease()
    }

    /// Takes over the directory's lock that a peer passes on: `passed` is what it sent of its
    /// [`DataDirLock::directory`](crate::DataDirLock::directory). It is used in place of the own descriptor from now on, and
    /// is closed in forked children like that one. The lock file is still to be [locked](Self::try_lock).
    ///
    /// If the peer has the directory's lock, this process has it too, at once and for as long as it keeps this. If nobody has
    /// it, a try takes it; if a stranger has it, a try is refused.
    ///
    /// Adopt it right after it was received: a child that is forked between would keep a copy.
    ///
    /// # Errors
    /// [`LockError::AnotherDirectory`] if it is not the directory that the path leads to: the peer has locked another one, or
    /// a name was switched. `passed` is closed then. [`LockError::Io`] if one can't be looked at.
    pub fn adopt_directory(&mut self, passed: OwnedFd) -> Result<(), LockError> {
        self.pair.adopt_dir(passed)
    }

    /// Tries to take the lock. Does not wait for a holder; only, where the directory is free and the file is not, for the
    /// moment that the kernel needs to free the second after the first (some 6 ms at most). Nothing is held between the tries.
    ///
    /// If the path has come to lead to another directory, that one is locked, unless this process has owned the one that is
    /// open, or shares it with its owner: then the try fails with [`LockError::AnotherDirectory`].
    ///
    /// A handful of system calls, none of which syncs. In a forked child of the process that opened it, it fails.
    pub fn try_lock(mut self) -> Attempt {
        match self.pair.try_lock() {
            Ok(Locking::Locked(contents)) => Attempt::Locked(Claim::new(self.pair, contents)),
            Ok(Locking::Busy) => Attempt::Held(self),
            Err(error) => Attempt::Failed(self, error),
        }
    }
}

impl Contender for Unlocked {
    type Lock = DataDirLock;

    fn attempt(self) -> Outcome<Self> {
        match self.try_lock() {
            Attempt::Locked(claim) => match claim.claim(None) {
                Ok(lock) => Outcome::Taken(lock),
                Err((_, error)) => Outcome::Failed(error),
            },
            Attempt::Held(unlocked) => Outcome::Held(unlocked),
            Attempt::Failed(_, error) => Outcome::Failed(error),
        }
    }

    fn held_by(&self) -> HeldBy {
        holder::in_the_way(&self.pair)
    }
}
