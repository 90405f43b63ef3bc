//! What can go wrong with the data-dir lock, in words that say what to do about it.
//!
//! An error never carries a lock: who gets one holds nothing, unless the function gives the lock back beside it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Stat;

use crate::holder::Holder;

/// Why a lock was not taken, or a step under the lock was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds the lock. Nobody's fault: wait, or stop that process.
    #[error("the data dir is locked by {}", Named(holder.as_ref()))]
    Held {
        /// Who holds it, as far as the system tells.
        holder: Option<Holder>,
    },
    /// [`acquire_or_break_stale`](crate::DataDirLock::acquire_or_break_stale) found that the lock is not stale: somebody
    /// still holds it, and a lock that is held is never broken (promise 1).
    #[error("the lock of the data dir is not stale and was not broken: it is held by {}", Named(holder.as_ref()))]
    StaleLockBreakRefused {
        /// Who holds it, as far as the system tells.
        holder: Option<Holder>,
    },
    /// The data dir is on a file system where flock(2) does not reliably exclude other hosts.
    #[error(
        "data dir {path} is on {filesystem}, where flock does not exclude other hosts; put it on a local disk, or allow it \
         with acquire_on_any_filesystem",
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
    /// The lock's own files are not what this crate leaves there, or the step is not allowed in the lease's present state.
    #[error("{path}: {reason}", path = path.display())]
    Lease {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
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

    pub(crate) fn lease(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Lease { path: path.as_ref().to_path_buf(), reason: reason.into() }
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
        io::ErrorKind::PermissionDenied => "; let this user read and write it",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable, or use another data dir",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space",
        io::ErrorKind::NotADirectory => "; a data dir must be a directory",
        _ => "",
    }
}

/// The holder and what to do about it, in one line.
struct Named<'a>(Option<&'a Holder>);

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(holder) if holder.alive => write!(f, "{holder}; stop that process or use another data dir"),
            Some(holder) => write!(f, "{holder}; the kernel may still be freeing it, try again"),
            None => f.write_str(
                "a process that can't be seen from here (another user's or another container's); stop it or use another data dir",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(alive: bool) -> Holder {
        Holder { pid: 4711, alive, command: Some("stored --data /x".into()), since_unix_ms: Some(0), inherited: false }
    }

    #[test]
    fn each_error_is_one_line_that_names_its_subject() {
        let errors = [
            LockError::Held { holder: Some(holder(true)) },
            LockError::StaleLockBreakRefused { holder: Some(holder(false)) },
            LockError::UnsupportedFilesystem { path: "/srv/4711".into(), filesystem: "nfs".into() },
            LockError::AnotherDirectory {
                path: "/srv/data".into(),
                named: None,
                wanted: Inode { device: 0x801, number: 7 },
                wanted_path: Some("/srv/4711".into()),
            },
            LockError::lease("/srv/4711/.handoff.lock", "bad"),
            LockError::io("/srv/4711", io::Error::from(io::ErrorKind::PermissionDenied)),
        ];
        for error in errors {
            let line = error.to_string();
            assert!(line.contains("4711") && !line.contains('\n'), "{line}");
        }
        let unknown = LockError::Held { holder: None }.to_string();
        assert!(unknown.contains("can't be seen"), "{unknown}");
    }

    #[test]
    fn errors_cross_threads() {
        fn assert_error<E: std::error::Error + Send + Sync + 'static>() {}
        assert_error::<LockError>();
    }
}
