//! How a lock is taken: the settings, in one place, and the ways to wait.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use crate::data_dir_lock::DataDirLock;
use crate::error::LockError;
use crate::held_by::HeldBy;
use crate::pair::{Creation, Filesystems, Pair, PidfileUse, Settings};
use crate::shared_lock::{Reader, SharedLock};
use crate::unlocked::Unlocked;
use crate::waiting;

/// The settings with which a lock is taken.
///
/// [`DataDirLock::options`] gives the usual ones: not to wait, to create what is missing, for its owner only, with a pidfile, and
/// on no file system that other hosts can mount.
///
/// ```
/// use std::time::Duration;
///
/// use handoff_lock::DataDirLock;
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path().join("data");
/// # let dir = dir.as_path();
///
/// let lock = DataDirLock::options()
///     .timeout(Duration::from_secs(5)) // wait for who has it
///     .mode(0o750)                     // of a directory that has to be created: its group may read it
///     .pidfile(false)                  // `handoff_lock::holder` names the owner all the same
///     .acquire(dir)?;
/// # assert!(!dir.join(".handoff.pidfile").exists());
/// lock.release()?;
///
/// // A disk that is not mounted is no empty data dir.
/// let missing = dir.join("missing");
/// assert!(DataDirLock::options().create(false).acquire(&missing).is_err());
/// assert!(!missing.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "settings take no lock"]
pub struct LockOptions {
    timeout: Duration,
    create: bool,
    mode: u32,
    pidfile: bool,
    any_filesystem: bool,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { timeout: Duration::ZERO, create: true, mode: 0o700, pidfile: true, any_filesystem: false }
    }
}

impl LockOptions {
    /// How long to wait for who holds the lock. Zero, the usual setting, is not at all; [`Duration::MAX`] is for ever.
    pub fn timeout(mut self, wait: Duration) -> Self {
        self.timeout = wait;
        self
    }

    /// Whether to create a directory that is missing. If not, it is an error ([`LockError::Io`], not found): an empty directory
    /// in the place of one that is not mounted has no data and no epoch. (An empty mount point is a directory that is there.)
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// The permissions of a directory that is created, as chmod(1) has them, less the umask. 0700 is the usual setting: others
    /// that may read the directory [can lock it](crate::exposure). One that is there is left as it is, and so is the lock file,
    /// which is always its owner's only.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Whether the owner writes its pid into `.handoff.pidfile`, for people and for older tools. If not, one that an earlier
    /// owner has left is removed all the same when the lock is released.
    pub fn pidfile(mut self, pidfile: bool) -> Self {
        self.pidfile = pidfile;
        self
    }

    /// Whether a file system is fine that other hosts can mount. The caller vouches then that none of them uses the directory,
    /// or that flock(2) excludes it.
    ///
    /// ```
    /// use handoff_lock::DataDirLock;
    /// # let scratch = tempfile::tempdir()?;
    /// # let dir = scratch.path();
    ///
    /// // Say, an NFS mount of this host alone.
    /// let _lock = DataDirLock::options().allow_any_filesystem(true).acquire(dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn allow_any_filesystem(mut self, allow: bool) -> Self {
        self.any_filesystem = allow;
        self
    }

    /// Takes the lock of `dir`.
    ///
    /// # Errors
    /// [`LockError::Held`] if somebody else holds it until the time is over, this process included, and
    /// [`LockError::BeingRead`] if somebody [reads](SharedLock);
    /// [`LockError::UnsupportedFilesystem`] where flock(2) does not exclude other hosts; [`LockError::Io`]; one of the others if
    /// the lock's files can't be trusted. All but the first come at once.
    pub fn acquire(&self, dir: &Path) -> Result<DataDirLock, LockError> {
        waiting::within(self.open(dir)?, self.timeout, None)
    }

    /// The same for who wants to know for whom it waits: `tell` is called when the waiting starts and each time that another
    /// one is found to hold the lock (who does is looked up some ten times a second), on this thread. It ends the wait by
    /// [`ControlFlow::Break`]. It is never called if the lock is free, or the [timeout](Self::timeout) is zero.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use std::time::Duration;
    ///
    /// use handoff_lock::{DataDirLock, LockError};
    /// # let scratch = tempfile::tempdir()?;
    /// # let dir = scratch.path();
    /// # let _other = DataDirLock::acquire(dir)?;
    ///
    /// let patient = DataDirLock::options().timeout(Duration::MAX);
    /// let mut told = 0;
    /// let waited = patient.acquire_telling(dir, |held_by| {
    ///     eprintln!("the data dir is {held_by}"); // "locked by pid 4711 (stored) since …"
    ///     told += 1;
    ///     ControlFlow::Break(()) // or Continue(()), unless, say, SIGTERM came
    /// });
    /// assert!(matches!(waited, Err(LockError::Held { .. })));
    /// assert_eq!(told, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), also if `tell` ended the wait.
    pub fn acquire_telling(
        &self,
        dir: &Path,
        mut tell: impl FnMut(&HeldBy) -> ControlFlow<()>,
    ) -> Result<DataDirLock, LockError> {
        waiting::within(self.open(dir)?, self.timeout, Some(&mut tell))
    }

    /// Takes the lock of who only reads `dir`, together with others that do. Nothing is created: of the settings, the
    /// [timeout](Self::timeout) counts and whether [any file system](Self::allow_any_filesystem) will do.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use handoff_lock::DataDirLock;
    /// # let scratch = tempfile::tempdir()?;
    /// # let dir = scratch.path();
    ///
    /// let reading = DataDirLock::options().timeout(Duration::from_secs(5)).acquire_shared(dir)?;
    /// // Copy the data.
    /// reading.release()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); [`LockError::Io`] if there is no such directory.
    pub fn acquire_shared(&self, dir: &Path) -> Result<SharedLock, LockError> {
        waiting::within(Reader::open(dir, self.settings().filesystems)?, self.timeout, None)
    }

    /// Opens the directory and its lock file and does not lock them, as [`Unlocked::open`] does. The timeout has no meaning here.
    ///
    /// # Errors
    /// As [`Unlocked::open`].
    pub fn open(&self, dir: &Path) -> Result<Unlocked, LockError> {
        Ok(Unlocked { pair: Pair::open(dir, self.settings())? })
    }

    fn settings(&self) -> Settings {
        Settings {
            filesystems: if self.any_filesystem { Filesystems::Any } else { Filesystems::Local },
            creation: if self.create { Creation::WithMode(self.mode) } else { Creation::Never },
            pidfile: if self.pidfile { PidfileUse::Write } else { PidfileUse::Without },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Attempt;

    fn options() -> LockOptions {
        DataDirLock::options()
    }

    #[test]
    fn a_missing_directory_is_created_with_the_mode_that_was_asked_for_or_not_at_all() {
        let base = tempfile::tempdir().unwrap();
        let [made, missing] = ["parent/made", "missing"].map(|name| base.path().join(name));
        let _lock = options().mode(0o710).acquire(&made).unwrap();
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o7777, 0o710);
        let lock_file = fs::metadata(made.join(crate::LOCK_FILE)).unwrap();
        assert_eq!(lock_file.permissions().mode() & 0o7777, 0o600);
        let refused = options().create(false).acquire(&missing).unwrap_err();
        assert!(matches!(&refused, LockError::Io { path, .. } if *path == missing), "{refused}");
        assert!(refused.to_string().contains("mount"), "{refused}");
        assert!(!missing.exists());
        drop(options().create(false).acquire(&made).unwrap_err());
    }

    #[test]
    fn without_a_pidfile_none_is_written_and_an_old_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let pidfile = dir.path().join(".handoff.pidfile");
        let mut lock = options().pidfile(false).acquire(dir.path()).unwrap();
        lock.announce();
        assert!(!pidfile.exists());
        assert_eq!(crate::holder(dir.path()).unwrap().map(|holder| holder.pid), Some(std::process::id()));
        fs::write(&pidfile, i32::MAX.to_string()).unwrap();
        lock.release().unwrap();
        assert!(!pidfile.exists());
        let Attempt::Locked(claim) = options().pidfile(false).open(dir.path()).unwrap().try_lock() else {
            panic!("held")
        };
        let _lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
        assert!(!pidfile.exists());
    }
}
