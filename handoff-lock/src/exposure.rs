//! Who else may read a data dir, and so lock it. It says so and refuses nothing: some services want to be read.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, fstat, stat};

use crate::error::LockError;

/// A data dir that other users may read.
///
/// flock(2) needs no more than a descriptor that is open for reading: any of these users can lock the directory. While a
/// service lives, and while it [passes the lock on](crate::DataDirLock::seal_and_pass), it has that lock and nothing happens.
/// While no process of it lives, whoever locks the directory keeps it from starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The data dir.
    pub path: PathBuf,
    /// Its permissions, as chmod(1) has them.
    pub mode: u32,
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, mode) = (self.path.display(), self.mode);
        write!(
            f,
            "other users may read the data dir {path} (mode {mode:04o}), so they can lock it and keep the service from \
             starting; chmod 0700 {path}"
        )
    }
}

/// Whether other users than its owner may read a data dir; `None` if not. For a program that says so once, at the start.
/// Takes no lock and opens nothing.
///
/// # Errors
/// [`LockError::Io`] if there is no such directory, or it can't be seen.
pub fn exposure(dir: &Path) -> Result<Option<Exposure>, LockError> {
    stat(dir).map(|stat| of(&stat, dir)).map_err(|error| LockError::io(dir, error))
}

/// The same of a directory that is open.
pub(crate) fn of_open(opened: BorrowedFd<'_>, path: &Path) -> Result<Option<Exposure>, LockError> {
    fstat(opened).map(|stat| of(&stat, path)).map_err(|error| LockError::io(path, error))
}

// The type differs between systems.
#[allow(clippy::unnecessary_cast)]
fn of(stat: &Stat, path: &Path) -> Option<Exposure> {
    // With an access control list, the group's bits are the most that any entry of it allows, acl(5).
    const READABLE_BY_OTHERS: u32 = 0o044;
    let mode = stat.st_mode as u32 & 0o7777;
    (mode & READABLE_BY_OTHERS != 0).then(|| Exposure { path: path.into(), mode })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{DataDirLock, Unlocked};

    #[test]
    fn a_directory_is_exposed_if_others_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, exposed) in [(0o700, false), (0o733, false), (0o711, false), (0o740, true), (0o755, true)] {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let expected = exposed.then(|| Exposure { path: dir.path().into(), mode });
            assert_eq!(exposure(dir.path()).unwrap(), expected, "{mode:o}");
            assert_eq!(Unlocked::open(dir.path()).unwrap().exposure().unwrap(), expected);
            assert_eq!(DataDirLock::acquire(dir.path()).unwrap().exposure().unwrap(), expected);
        }
        let line = exposure(dir.path()).unwrap().unwrap().to_string();
        assert!(line.contains("mode 0755") && line.contains(&format!("chmod 0700 {}", dir.path().display())), "{line}");
        assert!(exposure(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_directory_that_is_created_is_its_owners_only() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        fs::create_dir(dir.path().join("usual")).unwrap();
        let lock = DataDirLock::acquire(&dir.path().join("parent/data")).unwrap();
        assert_eq!((mode(lock.data_dir()), lock.exposure().unwrap()), (0o700, None));
        assert_eq!(mode(&dir.path().join("parent")), mode(&dir.path().join("usual")), "others may pass through it");
    }
}
