//! What can go wrong with the data-dir lock, in words that say what to do about it.
//!
//! An error never carries a lock: who gets one holds nothing, unless the function gives the lock back beside it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Stat;

use crate::held_by::HeldBy;
use crate::holder::Holder;

/// Why a lock was not taken, or a step under the lock was not done: one variant for each cause.
///
/// ```
/// use handoff_lock::{DataDirLock, LockError};
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path();
/// # std::os::unix::fs::symlink("elsewhere", dir.join(".handoff.lock"))?;
///
/// match DataDirLock::acquire(dir) {
///     Ok(_lock) => { /* open the data */ }
///     Err(LockError::Held { holder: Some(holder) }) => println!("pid {} serves already", holder.pid),
///     Err(LockError::NewerFormat { .. }) => println!("this build is too old for the data"),
///     Err(LockError::NotALockFile { path }) => println!("what is {}?", path.display()),
///     Err(error) => println!("{error}"), // each says what to do
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds the lock. Nobody's fault: wait, or stop that process.
    #[error("the data dir is {}", HeldBy::Owner(holder.clone()))]
    Held {
        /// Who holds it, as far as the system tells.
        holder: Option<Holder>,
    },
    /// Nobody holds the lock, and somebody [reads](crate::SharedLock) the data. Nobody's fault: wait, or stop them.
    #[error("the data dir is {}", HeldBy::Readers(readers.clone()))]
    BeingRead {
        /// Who reads, up to eight of them.
        readers: Vec<Holder>,
    },
    /// [`acquire_or_break_stale`](crate::DataDirLock::acquire_or_break_stale) found that the lock is not stale: somebody
    /// still holds it, and a lock that is held is never broken (promise 1).
    #[error("the lock of the data dir is not stale and was not broken: the data dir is {}", HeldBy::Owner(holder.clone()))]
    StaleLockBreakRefused {
        /// Who holds it, as far as the system tells.
        holder: Option<Holder>,
    },
    /// The data dir is on a file system where flock(2) does not reliably exclude other hosts.
    #[error(
        "data dir {path} is on {filesystem}, where flock does not exclude other hosts; put it on a local disk, or allow it \
         in the program (LockOptions::allow_any_filesystem)",
        path = path.display()
    )]
    UnsupportedFilesystem {
        /// The data dir.
        path: PathBuf,
        /// The file system's name, as in mount(8).
        filesystem: String,
    },
    /// The data dir's path leads to another directory than the one that this process, or the peer that it takes over from, has
    /// locked: a link was switched, or a directory renamed or mounted over. What is opened by that path is not the data that
    /// the lock guards. The operator's to mend.
    #[error("{}", Elsewhere { path, named: named.as_ref(), wanted, wanted_path: wanted_path.as_deref() })]
    AnotherDirectory {
        /// The data dir.
        path: PathBuf,
        /// Where the path leads now; `None` if there is nothing, or it can't be seen.
        named: Option<Inode>,
        /// The directory that is locked.
        wanted: Inode,
        /// Its path, if the system tells.
        wanted_path: Option<PathBuf>,
    },
    /// In the place of the lock file is a link, a directory or the like. The operator's to mend: remove it.
    #[error("{path}: it is not a regular file, so it is no lock file; remove it", path = path.display())]
    NotALockFile {
        /// What is there.
        path: PathBuf,
    },
    /// A newer build wrote the file, and it says that this one can't read it. Nobody's fault: start that build.
    #[error(
        "{path}: it was written by a newer build (format {format}), which this one does not understand; start that one",
        path = path.display()
    )]
    NewerFormat {
        /// The lock file, or the second copy of the epoch mark.
        path: PathBuf,
        /// The format that it says.
        format: u16,
    },
    /// The lock file was replaced while this process owned it, and another process locked the new one. The lock is still held,
    /// by the directory; the step is not done. The operator's to mend: end that process.
    #[error("{path}: it was replaced, and the new one was locked by {}", Intruder(holder.as_ref()), path = path.display())]
    LockFileTaken {
        /// The lock file.
        path: PathBuf,
        /// Who locked the new one, as far as the system tells.
        holder: Option<Holder>,
    },
    /// The lock file was replaced each time that it was looked at. The operator's to mend.
    #[error("{path}: it is replaced again and again; find out by whom and end that", path = path.display())]
    KeepsBeingReplaced {
        /// The lock file.
        path: PathBuf,
    },
    /// Neither copy of the epoch mark can be read: any number could be an epoch that was used. The operator's to mend.
    #[error(
        "{path}: neither it nor {second} tells which epochs were used; restore one of them from a backup, or remove both if \
         no data carries epochs",
        path = path.display(),
        second = second_copy.display()
    )]
    EpochMarkLost {
        /// The lock file.
        path: PathBuf,
        /// The second copy of the mark.
        second_copy: PathBuf,
    },
    /// There is no epoch above the last one. The operator's to mend.
    #[error(
        "{path}: the epochs are used up; remove it and {second}, if no data carries epochs",
        path = path.display(),
        second = second_copy.display()
    )]
    EpochsUsedUp {
        /// The lock file.
        path: PathBuf,
        /// The second copy of the mark, which says the same.
        second_copy: PathBuf,
    },
    /// A system call failed.
    #[error("can't use {path} for the data-dir lock: {source}{advice}", path = path.display(), advice = advice(source))]
    Io {
        /// The file or directory that the call was about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl LockError {
    pub(crate) fn io(path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source: source.into() }
    }

    /// What kind of error it is to who knows only those of the standard library.
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Held { .. }
            | Self::BeingRead { .. }
            | Self::StaleLockBreakRefused { .. }
            | Self::LockFileTaken { .. } => io::ErrorKind::WouldBlock,
            Self::UnsupportedFilesystem { .. } | Self::NewerFormat { .. } => io::ErrorKind::Unsupported,
            Self::AnotherDirectory { named: None, .. } => io::ErrorKind::NotFound,
            Self::NotALockFile { .. } | Self::EpochMarkLost { .. } | Self::EpochsUsedUp { .. } => {
                io::ErrorKind::InvalidData
            }
            Self::AnotherDirectory { .. } | Self::KeepsBeingReplaced { .. } => io::ErrorKind::Other,
            Self::Io { source, .. } => source.kind(),
        }
    }
}

/// For a function that returns [`io::Error`]. A failed system call keeps its kind; a lock that is held is
/// [`WouldBlock`](io::ErrorKind::WouldBlock), as in [`File::try_lock`](std::fs::File::try_lock). The error itself is inside.
///
/// ```
/// use std::io;
/// use std::path::Path;
///
/// use handoff_lock::{DataDirLock, LockError};
///
/// fn open(dir: &Path) -> io::Result<DataDirLock> {
///     Ok(DataDirLock::acquire(dir)?)
/// }
/// # let scratch = tempfile::tempdir()?;
///
/// let _lock = open(scratch.path())?;
/// let error = open(scratch.path()).unwrap_err();
/// assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
/// let inside = error.get_ref().and_then(|inside| inside.downcast_ref::<LockError>());
/// assert!(matches!(inside, Some(LockError::Held { .. })));
/// # Ok::<(), io::Error>(())
/// ```
impl From<LockError> for io::Error {
    fn from(error: LockError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// A file or a directory, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    /// The device, as stat(2) has it.
    pub device: u64,
    /// The inode's number there.
    pub number: u64,
}

impl Inode {
    // The types differ between systems.
    #[allow(clippy::unnecessary_cast)]
    pub(crate) fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev as u64, number: stat.st_ino as u64 }
    }
}

impl std::fmt::Display for Inode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inode {} of device {:#x}", self.number, self.device)
    }
}

/// Both directories, and what to do.
struct Elsewhere<'a> {
    path: &'a Path,
    named: Option<&'a Inode>,
    wanted: &'a Inode,
    wanted_path: Option<&'a Path>,
}

impl std::fmt::Display for Elsewhere<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, named, wanted, wanted_path } = self;
        write!(f, "data dir {} ", path.display())?;
        match named {
            Some(named) => write!(f, "is {named}")?,
            None => f.write_str("leads nowhere")?,
        }
        write!(f, ", and the directory that is locked is {wanted}")?;
        if let Some(wanted_path) = wanted_path {
            write!(f, ", {}", wanted_path.display())?;
        }
        f.write_str(
            "; let the path lead to that one again, or stop the service before another directory takes its place",
        )
    }
}

/// What to do about a failed system call, where that is not plain from its name.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        // An error without a number is one of this crate's own, and says it itself.
        _ if source.raw_os_error().is_none() => "",
        io::ErrorKind::NotFound => "; create it, or mount what it is on",
        io::ErrorKind::PermissionDenied => "; let this user read and write it",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable, or use another data dir",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space",
        io::ErrorKind::NotADirectory => "; a data dir must be a directory",
        _ => "",
    }
}

/// Who locked a file that replaced the lock file of another, and what to do about it.
struct Intruder<'a>(Option<&'a Holder>);

impl std::fmt::Display for Intruder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(holder) => write!(f, "{holder}; end that process"),
            None => f.write_str("another process, which can't be seen from here; end that process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(alive: bool) -> Holder {
        Holder { pid: 4711, alive, command: Some("stored --data /x".into()), since_unix_ms: Some(0), inherited: false }
    }

    fn lock_file() -> PathBuf {
        "/srv/4711/.handoff.lock".into()
    }

    #[test]
    fn a_system_error_keeps_its_kind_and_its_words_as_an_io_error() {
        let refused = LockError::io("/srv/4711", io::Error::from_raw_os_error(13));
        let words = refused.to_string();
        let error = io::Error::from(refused);
        assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::PermissionDenied, words));
        assert_eq!(io::Error::from(LockError::NotALockFile { path: lock_file() }).kind(), io::ErrorKind::InvalidData);
        assert_eq!(io::Error::from(LockError::Held { holder: None }).kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn each_error_is_one_line_that_names_its_subject() {
        let errors = [
            LockError::Held { holder: Some(holder(true)) },
            LockError::BeingRead { readers: vec![holder(true), holder(false)] },
            LockError::StaleLockBreakRefused { holder: Some(holder(false)) },
            LockError::UnsupportedFilesystem { path: "/srv/4711".into(), filesystem: "nfs".into() },
            LockError::AnotherDirectory {
                path: "/srv/data".into(),
                named: None,
                wanted: Inode { device: 0x801, number: 7 },
                wanted_path: Some("/srv/4711".into()),
            },
            LockError::NotALockFile { path: lock_file() },
            LockError::NewerFormat { path: lock_file(), format: 2 },
            LockError::LockFileTaken { path: "/srv/.handoff.lock".into(), holder: Some(holder(true)) },
            LockError::LockFileTaken { path: lock_file(), holder: None },
            LockError::KeepsBeingReplaced { path: lock_file() },
            LockError::EpochMarkLost { path: lock_file(), second_copy: "/srv/.handoff.epoch".into() },
            LockError::EpochsUsedUp { path: lock_file(), second_copy: "/srv/.handoff.epoch".into() },
            LockError::io("/srv/4711", io::Error::from(io::ErrorKind::PermissionDenied)),
        ];
        for error in errors {
            let line = error.to_string();
            assert!(line.contains("4711") && !line.contains('\n'), "{line}");
        }
        let words = |alive| LockError::Held { holder: Some(holder(alive)) }.to_string();
        assert!(words(true).contains("stop that process") && words(false).contains("try again"));
        let unknown = LockError::Held { holder: None }.to_string();
        assert!(unknown.contains("can't be seen"), "{unknown}");
    }

    #[test]
    fn errors_cross_threads() {
        fn assert_error<E: std::error::Error + Send + Sync + 'static>() {}
        assert_error::<LockError>();
    }
}
