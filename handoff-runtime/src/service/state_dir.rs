//! The state directory: one supervisor at a time, by `flock` on `<state-dir>/supervisor.lock` (flock(2)). One that is there
//! first and silent is ended; see [`alone`](super::alone).
//!
//! The file is never removed while the directory is in use: two supervisors could then each lock a file of that name. A link in
//! its place is not followed: the file that it leads to would be emptied.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::alone::{self, First, Silence};
use super::error::ServiceError;
use super::own_file;

const LOCK_FILE: &str = "supervisor.lock";

/// The state directory, ours until this is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct StateDir {
    _lock: File,
    /// Set while it is new and would be removed again.
    on_trial: Option<PathBuf>,
}

impl StateDir {
    /// Takes a directory that was used before; none if it was not. Creates nothing.
    ///
    /// # Errors
    /// [`ServiceError::StateDirTaken`] names the supervisor that holds it and is not silent.
    pub(super) fn take_existing(dir: &Path, silence: Silence) -> Result<Option<Self>, ServiceError> {
        match own_file::open(&dir.join(LOCK_FILE), OpenOptions::new().read(true).write(true)) {
            Ok(file) => Ok(Some(Self { _lock: Self::lock(file, dir, silence)?, on_trial: None })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ServiceError::StateDir { path: dir.to_owned(), source: error }),
        }
    }

    /// Creates the directory where it is missing, and takes it. A new one is removed again when this is dropped, unless
    /// [`keep`](Self::keep) was called: a service that could not start leaves no trace.
    ///
    /// # Errors
    /// As [`take_existing`](Self::take_existing).
    pub(super) fn create(dir: &Path, visitors: Visitors, silence: Silence) -> Result<Self, ServiceError> {
        let mode = match visitors {
            Visitors::OwnUserOnly => 0o700,
            Visitors::OtherUsers => 0o711,
        };
        let on_trial = (!dir.exists()).then(|| dir.to_owned());
        let file = DirBuilder::new().recursive(true).mode(mode).create(dir).and_then(|()| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            own_file::open(&dir.join(LOCK_FILE), &mut options)
        });
        let file = file.map_err(|source| ServiceError::StateDir { path: dir.to_owned(), source })?;
        Ok(Self { _lock: Self::lock(file, dir, silence)?, on_trial })
    }

    /// The service has started: the directory stays.
    pub(crate) fn keep(&mut self) {
        self.on_trial = None;
    }

    fn lock(mut file: File, dir: &Path, silence: Silence) -> Result<File, ServiceError> {
        let failed = |source: io::Error| ServiceError::StateDir { path: dir.to_owned(), source };
        if !try_lock(&file).map_err(failed)? {
            let pid = read_pid(&mut file);
            let taken = || ServiceError::StateDirTaken { path: dir.to_owned(), pid };
            let first = pid.ok_or_else(taken)?;
            if alone::outlive(first, &file, &dir.join("admin.sock"), silence)? == First::Stays {
                return Err(taken());
            }
            // Another one may have been as patient.
            if !try_lock(&file).map_err(failed)? {
                return Err(ServiceError::StateDirTaken { path: dir.to_owned(), pid: read_pid(&mut file) });
            }
        }
        write_pid(&mut file).map_err(failed)?;
        Ok(file)
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let Some(dir) = self.on_trial.take() else { return };
        // Whatever can't be removed keeps the directory, which is then found by the next start.
        for entry in dir.read_dir().into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        let _ = std::fs::remove_dir(&dir);
    }
}

/// Who must be able to reach the sockets in a new state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visitors {
    /// Nobody else: mode 0700.
    OwnUserOnly,
    /// The admin socket checks them: mode 0711.
    OtherUsers,
}

/// Whether the directory could be made or written, looking only.
pub(crate) fn check_creatable(dir: &Path) -> Result<(), ServiceError> {
    let refused = |source: io::Error| ServiceError::StateDir { path: dir.to_owned(), source };
    let nearest = dir.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok());
    let nearest: PathBuf = nearest.map_or_else(|| PathBuf::from("/"), Path::to_owned);
    if !nearest.is_dir() {
        return Err(refused(Errno::NOTDIR.into()));
    }
    rustix::fs::access(&nearest, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|error| refused(error.into()))
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_taker_is_told_who_was_first_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let silence = Silence::default();
        assert!(StateDir::take_existing(&path, silence).unwrap().is_none());
        assert!(!path.exists());
        drop(StateDir::create(&path, Visitors::OwnUserOnly, silence).unwrap());
        assert!(!path.exists(), "who could not start leaves no trace");
        let mut first = StateDir::create(&path, Visitors::OwnUserOnly, silence).unwrap();
        first.keep();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        for second in [
            StateDir::take_existing(&path, silence).unwrap_err(),
            StateDir::create(&path, Visitors::OtherUsers, silence).unwrap_err(),
        ] {
            let own = std::process::id();
            assert!(matches!(second, ServiceError::StateDirTaken { pid: Some(pid), .. } if pid == own), "{second}");
        }
        drop(first);
        assert!(StateDir::take_existing(&path, silence).unwrap().is_some());
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::write(&precious, "another's").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join(LOCK_FILE)).unwrap();
        for taken in [
            StateDir::take_existing(dir.path(), Silence::default()).map(drop),
            StateDir::create(dir.path(), Visitors::OwnUserOnly, Silence::default()).map(drop),
        ] {
            let error = taken.unwrap_err().to_string();
            assert!(error.contains("supervisor.lock is not a regular file"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "another's");
    }

    #[test]
    fn a_directory_below_a_file_can_not_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = check_creatable(&file.join("state")).unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
        check_creatable(&dir.path().join("x/y")).unwrap();
        assert!(!dir.path().join("x").exists());
    }
}
