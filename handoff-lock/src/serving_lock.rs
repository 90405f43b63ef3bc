//! The lock of a program that serves: it is let go by a call, and never by a drop.

use std::ops::{Deref, DerefMut};

use crate::data_dir_lock::DataDirLock;
use crate::error::LockError;
use crate::unlocked::Unlocked;

/// The lock of a data dir of which threads of this process serve. Dropping it keeps the lock until the process exits.
///
/// An early return or a panic drops what `main` has in its hands, and the threads that it started go on writing meanwhile. Had
/// the drop released the lock, another process could write beside them (promise 1). So letting go is an explicit call:
/// [`seal`](Self::seal) or [`seal_and_pass`](Self::seal_and_pass) in a handover, [`release`](Self::release) when no thread
/// writes any more. Whatever happens, the kernel frees the lock when the process exits.
///
/// All that is done under the lock is done by the methods of [`DataDirLock`].
///
/// ```
/// use handoff_lock::{DataDirLock, LockError};
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path();
///
/// let mut lock = DataDirLock::acquire(dir)?.for_serving();
/// lock.activate(b"build 1")?;
/// drop(lock); // by mistake: threads may still write
/// assert!(matches!(DataDirLock::acquire(dir), Err(LockError::Held { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping the lock keeps it until the process exits"]
pub struct ServingLock {
    lock: DataDirLock,
}

impl DataDirLock {
    /// The same lock, for a process that serves from now on: a drop keeps it until the process exits.
    pub fn for_serving(mut self) -> ServingLock {
        self.keep_when_dropped();
        ServingLock { lock: self }
    }
}

impl ServingLock {
    /// As [`DataDirLock::seal`]: the data is sealed, nothing of this process writes any more. A lock that is taken back with
    /// what it returns is a plain one again.
    ///
    /// # Errors
    /// As there; the lock that comes back is one for serving.
    #[allow(clippy::result_large_err)]
    pub fn seal(self) -> Result<Unlocked, (Self, LockError)> {
        self.into_plain().seal().map_err(|(lock, error)| (lock.for_serving(), error))
    }

    /// As [`DataDirLock::seal_and_pass`]; a lock that is taken back with what it returns is a plain one again.
    ///
    /// # Errors
    /// As there; the lock that comes back is one for serving.
    #[allow(clippy::result_large_err)]
    pub fn seal_and_pass(self) -> Result<Unlocked, (Self, LockError)> {
        self.into_plain().seal_and_pass().map_err(|(lock, error)| (lock.for_serving(), error))
    }

    /// Releases the lock. For a process in which nothing writes any more.
    ///
    /// # Errors
    /// As [`DataDirLock::release`].
    pub fn release(self) -> Result<(), LockError> {
        self.into_plain().release()
    }

    /// The same lock as one that a drop releases: for a process in which nothing writes any more, or nothing does yet.
    pub fn into_plain(self) -> DataDirLock {
        let mut lock = self.lock;
        lock.release_when_dropped();
        lock
    }
}

impl From<DataDirLock> for ServingLock {
    fn from(lock: DataDirLock) -> Self {
        lock.for_serving()
    }
}

impl Deref for ServingLock {
    type Target = DataDirLock;

    fn deref(&self) -> &DataDirLock {
        &self.lock
    }
}

impl DerefMut for ServingLock {
    fn deref_mut(&mut self) -> &mut DataDirLock {
        &mut self.lock
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Attempt, LeaseState, holder, read_lease};

    fn serving(dir: &Path) -> ServingLock {
        let mut lock = DataDirLock::acquire(dir).unwrap().for_serving();
        lock.activate(b"build").unwrap();
        lock
    }

    fn is_held(dir: &Path) -> bool {
        matches!(DataDirLock::acquire(dir), Err(LockError::Held { .. }))
    }

    #[test]
    fn a_drop_keeps_the_lock_and_says_nothing_of_leaving() {
        let dir = tempfile::tempdir().unwrap();
        let lock = serving(dir.path());
        let lease = lock.lease().clone();
        drop(lock);
        assert!(is_held(dir.path()));
        assert_eq!(read_lease(dir.path()).unwrap(), Some(lease));
        assert!(dir.path().join(".handoff.pidfile").exists());
        assert!(holder(dir.path()).unwrap().is_some_and(|holder| holder.pid == std::process::id()));
    }

    #[test]
    fn a_panic_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let lock = serving(dir.path());
        let panicked = std::thread::spawn(move || {
            let _lock = lock;
            std::panic::resume_unwind(Box::new("a hook's panic"));
        });
        assert!(panicked.join().is_err());
        assert!(is_held(dir.path()));
    }

    #[test]
    fn a_call_lets_go_of_it() {
        let dir = tempfile::tempdir().unwrap();
        serving(dir.path()).release().unwrap();
        drop(serving(dir.path()).into_plain());
        drop(serving(dir.path()).seal().unwrap());
        drop(serving(dir.path()).seal_and_pass().unwrap());
        // A child that is just being spawned beside this test has a copy of the directory that was passed.
        let patience = std::time::Duration::from_secs(60);
        assert_eq!(DataDirLock::acquire_timeout(dir.path(), patience).unwrap().epoch(), 5);
    }

    #[test]
    fn what_is_taken_back_is_a_plain_lock() {
        let dir = tempfile::tempdir().unwrap();
        let Attempt::Locked(claim) = serving(dir.path()).seal().unwrap().try_lock() else { panic!("it is held") };
        drop(claim.claim(None).unwrap());
        assert!(!is_held(dir.path()));
    }

    #[test]
    fn a_lock_whose_seal_failed_is_kept_by_a_drop() {
        let dir = tempfile::tempdir().unwrap();
        let lock = serving(dir.path());
        std::fs::remove_file(dir.path().join(crate::LOCK_FILE)).unwrap();
        let peer = std::fs::File::create(dir.path().join(crate::LOCK_FILE)).unwrap();
        rustix::fs::flock(&peer, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let Err((lock, _)) = lock.seal() else { panic!("sealed") };
        assert_eq!(lock.lease().state, LeaseState::Active);
        drop(lock);
        rustix::fs::flock(&peer, rustix::fs::FlockOperation::Unlock).unwrap();
        assert!(is_held(dir.path()));
    }
}
