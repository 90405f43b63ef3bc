//! The lease of a data dir for who reads it again and again: the lock file is opened once.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, lstat};

use crate::error::{Inode, LockError};
use crate::lease::Lease;
use crate::opened_file::{LOCK_FILE, open_to_read, settled_lease};

/// Reads the lease of one data dir, from outside and without the lock, with two system calls.
///
/// It locks nothing. A lock file that is replaced is opened anew.
#[derive(Debug)]
pub struct WatchedLease {
    /// Absolute: the working directory may change.
    path: PathBuf,
    /// The lock file, once there is one.
    open: Option<(OwnedFd, Inode)>,
}

impl WatchedLease {
    /// Of the data dir `dir`, which need not exist yet. Opens nothing.
    pub fn new(dir: &Path) -> Self {
        // Without a working directory, which is the one way to fail, there is nothing better than the path as it is.
        let path = std::path::absolute(dir).unwrap_or_else(|_| dir.into()).join(LOCK_FILE);
        Self { path, open: None }
    }

    /// The lease at this moment, as [`read_lease`](crate::read_lease) gives it.
    ///
    /// # Errors
    /// As [`read_lease`](crate::read_lease).
    pub fn read(&mut self) -> Result<Option<Lease>, LockError> {
        if !self.is_in_place() {
            self.open = None;
            self.open = open_to_read(CWD, &self.path, &self.path)?;
        }
        match &self.open {
            Some((file, _)) => Ok(settled_lease(file.as_fd(), &self.path)?.map(|newest| newest.lease)),
            None => Ok(None),
        }
    }

    fn is_in_place(&self) -> bool {
        self.open.as_ref().is_some_and(|(_, open)| lstat(&self.path).is_ok_and(|named| Inode::of(&named) == *open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataDirLock;

    fn epoch(watched: &mut WatchedLease) -> Option<u64> {
        watched.read().unwrap().map(|lease| lease.epoch)
    }

    #[test]
    fn a_loop_of_links_on_the_way_is_no_fault_of_the_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        std::os::unix::fs::symlink(&a, &b).unwrap();
        std::os::unix::fs::symlink(&b, &a).unwrap();
        assert!(matches!(WatchedLease::new(&a).read(), Err(LockError::Io { .. })));
        std::os::unix::fs::symlink(&a, dir.path().join(LOCK_FILE)).unwrap();
        assert!(matches!(WatchedLease::new(dir.path()).read(), Err(LockError::NotALockFile { .. })));
    }

    #[test]
    fn sees_every_owner_and_a_file_that_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let mut watched = WatchedLease::new(&dir.path().join("data"));
        assert_eq!(epoch(&mut watched), None);
        let mut watched = WatchedLease::new(dir.path());
        assert_eq!(epoch(&mut watched), None);
        DataDirLock::acquire(dir.path()).unwrap().release().unwrap();
        assert_eq!(epoch(&mut watched), Some(1));
        let mut lock = DataDirLock::acquire(dir.path()).unwrap();
        assert_eq!(epoch(&mut watched), Some(2));
        std::fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(epoch(&mut watched), None);
        lock.activate(b"").unwrap();
        assert_eq!(epoch(&mut watched), Some(2), "its owner has put it back");
        assert_eq!(watched.read().unwrap().as_ref(), Some(lock.lease()));
    }
}
