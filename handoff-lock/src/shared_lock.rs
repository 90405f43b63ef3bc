//! The lock of who only reads a data dir, while nobody writes there.
//!
//! It is the same two inodes, locked in the same order, and shared: the directory, then the lock file. It writes nothing and
//! creates nothing.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, openat, statat};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Inode, LockError};
use crate::filesystem;
use crate::flock::{self, Access, unflock};
use crate::held_by::HeldBy;
use crate::holder;
use crate::lease::Lease;
use crate::opened_file::{LOCK_FILE, open_to_read, settled_lease};
use crate::pair::place::Place;
use crate::pair::{DIR_FLAGS, FILE_RETRIES_US, Filesystems, ROUNDS_MAX, inode_of};
use crate::sys::{self, GuardedFd};
use crate::waiting::{Contender, Outcome};

/// A data dir that this process reads. Many may at a time, and while one does, nobody owns it; while somebody owns it, nobody
/// does.
///
/// ```
/// use handoff_lock::{DataDirLock, LockError};
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path();
/// # let mut lock = DataDirLock::acquire(dir)?;
/// # lock.activate(b"build 1")?;
/// # lock.release()?;
///
/// let backup = DataDirLock::acquire_shared(dir)?;
/// let checker = DataDirLock::acquire_shared(dir)?;
/// println!("the data as the owner of epoch {:?} left it", backup.lease()?.map(|lease| lease.epoch));
///
/// let refused = DataDirLock::acquire(dir).unwrap_err();
/// assert!(matches!(refused, LockError::BeingRead { .. }), "{refused}"); // "the data dir is being read by pid 4711 …"
/// drop((backup, checker));
///
/// let _owner = DataDirLock::acquire(dir)?;
/// assert!(matches!(DataDirLock::acquire_shared(dir), Err(LockError::Held { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What it means
///
/// - **No owner lives.** The data is as the last owner left it: sealed or released, or as a crash left it, and then nobody has
///   repaired it yet. A reader must not: others read beside it. [`lease`](Self::lease) says which of them it is.
/// - **It leaves no trace.** No epoch, no lease, no pidfile, no file and no directory. A reader is never the
///   [`holder`](crate::holder()): who is refused because of one is told by [`LockError::BeingRead`].
/// - **The directory decides.** Whoever takes the lock by this crate needs it, so a reader excludes them all. The lock file is
///   locked as well if it is there and this user may read it. If not, a peer that locks the file alone and creates it is not
///   excluded.
/// - **It keeps a service from starting.** Keep it short. In a handover whose directory is [passed
///   on](crate::DataDirLock::seal_and_pass) no reader comes between; in one by a plain [`seal`](crate::DataDirLock::seal) one can, and both
///   sides wait for it.
/// - **It never becomes the other lock.** flock(2) would let go in between, so a reader that wants to write releases it,
///   acquires, and looks at the epoch again.
///
/// Dropping it releases it. A forked child has no part in it, and neither has what is executed, as with [`DataDirLock`].
///
/// [`DataDirLock`]: crate::DataDirLock
/// [`DataDirLock::seal_and_pass`]: crate::DataDirLock::seal_and_pass
/// [`DataDirLock::seal`]: crate::DataDirLock::seal
#[derive(Debug)]
#[must_use = "dropping the lock releases it"]
pub struct SharedLock {
    reader: Reader,
}

impl SharedLock {
    /// The directory, as given.
    pub fn data_dir(&self) -> &Path {
        &self.reader.data_dir
    }

    /// The lease of the last owner; `None` if there was none, or its file may not be read by this user. It does not change while
    /// the lock is held.
    ///
    /// # Errors
    /// [`LockError::NewerFormat`]; [`LockError::Io`] if it can't be read.
    pub fn lease(&self) -> Result<Option<Lease>, LockError> {
        let Some(file) = &self.reader.file else { return Ok(None) };
        let path = self.reader.lock_path();
        let file = file.get().map_err(|error| LockError::io(&path, error))?;
        Ok(settled_lease(file, &path)?.map(|newest| newest.lease))
    }

    /// Whether this process still has the lock, as [`DataDirLock::is_held`](crate::DataDirLock::is_held) says it.
    pub fn is_held(&self) -> bool {
        self.reader.dir.is_at_home() && self.reader.fds().all(|fd| sys::is_locked(fd, Access::Shared).unwrap_or(true))
    }

    /// Whether the path still leads to the directory that is locked, as with
    /// [`DataDirLock::check_in_place`](crate::DataDirLock::check_in_place): what is opened by that path is what is locked.
    pub fn is_in_place(&self) -> bool {
        self.reader.is_dir_in_place().is_ok_and(|in_place| in_place)
    }

    /// Releases the lock as a drop does, and tells if something failed.
    ///
    /// # Errors
    /// The unlock failed; the descriptors are closed in any case.
    pub fn release(mut self) -> Result<(), LockError> {
        self.reader.unlock()
    }
}

/// The descriptors of who reads or wants to. Dropping it unlocks, in the process that opened them.
#[derive(Debug)]
pub(crate) struct Reader {
    data_dir: PathBuf,
    place: Place,
    filesystems: Filesystems,
    /// Opened at each try, if it is there and may be read.
    file: Option<GuardedFd>,
    dir: GuardedFd,
    dir_inode: Inode,
}

/// What one go at both inodes came to.
enum Go {
    Locked,
    /// Somebody has the directory.
    DirectoryHeld,
    /// Somebody has the file alone, for now or for long.
    FileHeld,
    /// A name has come to lead elsewhere.
    Moved,
}

impl Reader {
    /// Creates nothing.
    pub(crate) fn open(data_dir: &Path, filesystems: Filesystems) -> Result<Self, LockError> {
        let path = std::path::absolute(data_dir).map_err(|error| LockError::io(data_dir, error))?;
        Self::open_at(data_dir, &path, filesystems)
    }

    fn open_at(data_dir: &Path, path: &Path, filesystems: Filesystems) -> Result<Self, LockError> {
        let failed = |error: io::Error| LockError::io(data_dir, error);
        let dir = GuardedFd::open(|| Ok(retry_on_intr(|| openat(CWD, path, DIR_FLAGS, Mode::empty()))?));
        let dir = dir.map_err(failed)?;
        if filesystems == Filesystems::Local {
            filesystem::check_opened(dir.get().map_err(failed)?, data_dir)?;
        }
        let dir_inode = inode_of(&dir).map_err(failed)?;
        let place = Place::of(path, dir.get().map_err(failed)?, dir_inode);
        Ok(Self { data_dir: data_dir.into(), place, filesystems, file: None, dir, dir_inode })
    }

    fn lock_path(&self) -> PathBuf {
        self.data_dir.join(LOCK_FILE)
    }

    fn dir(&self) -> Result<BorrowedFd<'_>, LockError> {
        self.dir.get().map_err(|error| LockError::io(&self.data_dir, error))
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // Where the caller vouches for the file system, the directory may have no lock.
        let dir = Some(&self.dir).filter(|_| self.filesystems == Filesystems::Local);
        self.file.iter().chain(dir).filter_map(|fd| fd.get().ok())
    }

    fn is_dir_in_place(&self) -> Result<bool, LockError> {
        self.place.leads_to(self.dir_inode).map_err(|error| LockError::io(&self.data_dir, error))
    }

    /// Whether both are locked now; else neither is.
    fn try_lock(&mut self) -> Result<bool, LockError> {
        let (mut rounds, mut pauses) = (0..ROUNDS_MAX, FILE_RETRIES_US.iter());
        loop {
            let gone = self.go();
            if !matches!(gone, Ok(Go::Locked)) {
                self.unlock()?;
            }
            match gone? {
                Go::Locked => return Ok(true),
                Go::DirectoryHeld => return Ok(false),
                Go::FileHeld => match pauses.next() {
                    Some(pause_us) => sys::pause(Duration::from_micros(*pause_us)),
                    None => return Ok(false),
                },
                Go::Moved if rounds.next().is_some() => {
                    *self = Self::open_at(&self.data_dir, self.place.path(), self.filesystems)?;
                }
                Go::Moved => return Err(LockError::KeepsBeingReplaced { path: self.lock_path() }),
            }
        }
    }

    fn go(&mut self) -> Result<Go, LockError> {
        if !self.lock_dir()? {
            return Ok(Go::DirectoryHeld);
        }
        if !self.is_dir_in_place()? {
            return Ok(Go::Moved);
        }
        // As nobody owns the directory, nobody who comes by this crate replaces the file.
        let Some(inode) = self.open_file()? else { return Ok(Go::Locked) };
        if !self.lock_file()? {
            return Ok(Go::FileHeld);
        }
        let named = statat(self.dir()?, LOCK_FILE, AtFlags::SYMLINK_NOFOLLOW).map(|stat| Inode::of(&stat));
        Ok(if named == Ok(inode) { Go::Locked } else { Go::Moved })
    }

    fn lock_dir(&self) -> Result<bool, LockError> {
        match flock::try_flock_as(Access::Shared, self.dir()?) {
            Err(error) if self.filesystems.is_file_enough(error) => Ok(true),
            locked => locked.map_err(|error| LockError::io(&self.data_dir, error)),
        }
    }

    fn lock_file(&self) -> Result<bool, LockError> {
        let failed = |error: io::Error| LockError::io(self.lock_path(), error);
        let Some(file) = &self.file else { return Ok(true) };
        flock::try_flock_as(Access::Shared, file.get().map_err(failed)?).map_err(|error| failed(error.into()))
    }

    /// `None` if the directory alone is locked: nobody has made a lock file yet, or it is not for this user to read.
    fn open_file(&mut self) -> Result<Option<Inode>, LockError> {
        let (path, dir) = (self.lock_path(), self.dir()?);
        let is_dir_enough = self.filesystems == Filesystems::Local;
        let open = || match open_to_read(dir, LOCK_FILE.as_ref(), &path) {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) if is_dir_enough => Err(None),
            Ok(None) => Err(Some(LockError::io(&path, Errno::NOENT))),
            Err(LockError::Io { source, .. }) if is_dir_enough && source.kind() == io::ErrorKind::PermissionDenied => {
                Err(None)
            }
            Err(error) => Err(Some(error)),
        };
        match GuardedFd::open_with(open, |error| Some(LockError::io(&path, error))) {
            Ok((file, inode)) => {
                self.file = Some(file);
                Ok(Some(inode))
            }
            Err(error) => error.map_or(Ok(None), Err),
        }
    }

    /// The file first, as an owner does. Explicitly: a child that is just being spawned has copies of the descriptors.
    fn unlock(&mut self) -> Result<(), LockError> {
        if !self.dir.is_at_home() {
            return Err(LockError::io(&self.data_dir, sys::not_at_home()));
        }
        if let Some(file) = self.file.take() {
            let unlocked = file.get().and_then(|file| Ok(unflock(file)?));
            unlocked.map_err(|error| LockError::io(self.lock_path(), error))?;
        }
        match unflock(self.dir()?) {
            Err(error) if self.filesystems.is_file_enough(error) => Ok(()),
            unlocked => unlocked.map_err(|error| LockError::io(&self.data_dir, error)),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.dir.is_at_home() {
            // Nobody is left to hear of a failure; the kernel frees what remains when the descriptors close.
            let _ = self.unlock();
        }
    }
}

impl Contender for Reader {
    type Lock = SharedLock;

    fn attempt(mut self) -> Outcome<Self> {
        match self.try_lock() {
            Ok(true) => Outcome::Taken(SharedLock { reader: self }),
            Ok(false) => Outcome::Held(self),
            Err(error) => Outcome::Failed(error),
        }
    }

    fn held_by(&self) -> HeldBy {
        holder::in_the_way_at(&self.data_dir)
    }
}

#[cfg(test)]
#[path = "shared_lock_tests.rs"]
mod tests;
