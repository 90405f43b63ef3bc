//! The two inodes that make up the lock: the lock file and the directory itself.
//!
//! ```text
//!               directory   lock file
//!   try_lock    1st  ─────► 2nd         who gets the directory but not the file gives both up before it tries again
//!   unlock      2nd  ◄───── 1st
//! ```
//!
//! The directory excludes those who come by a replaced file; the file excludes peers that lock only the file. While somebody
//! has the directory, nobody who comes by this crate touches the file. After locking, both paths must still name the inodes
//! that were locked, else it starts over. No lock is ever broken by unlinking.
//!
//! This file says in which order the inodes are locked and written; how one is opened stands in `opened_file`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, statat};
use rustix::io::{Errno, retry_on_intr};

use crate::durable::{sync_bytes, sync_names};
use crate::error::{Inode, LockError};
use crate::filesystem;
use crate::flock::{Access, flock_within, is_no_lock_for_directories, try_flock, unflock};
use crate::holder;
use crate::lease::{Lease, LeaseState, Numbered, Owner};
use crate::lock_file::{self, Contents, MARK_BYTES, MARK_OFFSET};
use crate::mark::Marks;
use crate::opened_file::{LOCK_FILE, open_file, open_to_read, read_contents, settled_lease, write_all};
use crate::pidfile;
use crate::sys::{self, End, GuardedFd};

mod passing;
pub(crate) mod place;

use place::Place;

/// On which file systems a lock is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filesystems {
    Local,
    Any,
}

impl Filesystems {
    /// Some of those that need the caller's word lock no directories: NFS wants a descriptor open for writing.
    pub(crate) fn is_file_enough(self, error: Errno) -> bool {
        self == Self::Any && is_no_lock_for_directories(error)
    }
}

/// Whether a directory that is missing is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Creation {
    Never,
    /// With these permissions, less the umask.
    WithMode(u32),
}

/// Whether an owner writes its pid for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PidfileUse {
    Write,
    Without,
}

/// How a lock is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) filesystems: Filesystems,
    pub(crate) creation: Creation,
    pub(crate) pidfile: PidfileUse,
}

/// Both descriptors. Dropping a pair that holds the lock releases it as [`Pair::unlock`] does, unless it is to be kept; in a
/// forked child it does nothing at all.
#[derive(Debug)]
pub(crate) struct Pair {
    /// As given, for messages.
    data_dir: PathBuf,
    place: Place,
    settings: Settings,
    holding: Holding,
    pidfile: Pidfile,
    sharing: Sharing,
    identity: Identity,
    marks: Marks,
    end: End,
    // Closed in the order in which they are unlocked: who gets the directory finds the file free.
    file: GuardedFd,
    file_inode: Inode,
    dir: GuardedFd,
    dir_inode: Inode,
}

#[derive(Debug)]
enum Holding {
    Nothing,
    /// Locked; nothing written.
    Lock,
    /// Locked and owned: what the lock file must hold, whichever inode it is.
    Ownership(Box<Record>),
}

/// Who has the open file description of the directory, to which its flock belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// This process alone.
    Alone,
    /// A peer too, or a message in flight. An unlock would undo it for all, so the directory is only ever closed: its lock ends
    /// with the last copy.
    Shared,
}

/// Which directory is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// The one that has the name at the time of a try.
    Name,
    /// The one that is open, which this process has owned, or shares with its owner.
    Inode,
}

/// What an owner knows of the pidfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pidfile {
    /// Ours, or what a dead owner has left.
    MayBeThere,
    Removed,
}

/// What an owner wrote last.
#[derive(Debug, Clone)]
struct Record {
    newest: Numbered,
    mark: u64,
}

pub(crate) enum Locking {
    Locked(Contents),
    Busy,
}

pub(crate) const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How often a start over is worth it: each means that somebody replaced the file or the directory in this very moment.
pub(crate) const ROUNDS_MAX: u32 = 8;
/// Pauses, in microseconds, before both are tried again by one who got the directory but not the file. A process that dies
/// loses the two one after the other.
pub(crate) const FILE_RETRIES_US: [u64; 6] = [100, 200, 400, 800, 1_600, 3_200];
/// Pauses of an owner whose lock file was replaced: a peer that locks the file alone may be trying the new one.
const REPLACED_RETRIES_US: [u64; 8] = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800];

impl Pair {
    pub(crate) fn open(data_dir: &Path, settings: Settings) -> Result<Self, LockError> {
        // A daemon may change its working directory later; the checks below must go on naming the same directory.
        let path = std::path::absolute(data_dir).map_err(|error| LockError::io(data_dir, error))?;
        match (Self::open_existing(data_dir, &path, settings), settings.creation) {
            (Err(LockError::Io { source, .. }), Creation::WithMode(mode))
                if source.kind() == io::ErrorKind::NotFound =>
            {
                create_dir(&path, mode).map_err(|error| LockError::io(data_dir, error))?;
                Self::open_existing(data_dir, &path, settings)
            }
            (opened, _) => opened,
        }
    }

    fn open_existing(data_dir: &Path, path: &Path, settings: Settings) -> Result<Self, LockError> {
        let dir = GuardedFd::open(|| Ok(retry_on_intr(|| openat(CWD, path, DIR_FLAGS, Mode::empty()))?));
        let dir = dir.map_err(|error| LockError::io(data_dir, error))?;
        if settings.filesystems == Filesystems::Local {
            let opened = dir.get().map_err(|error| LockError::io(data_dir, error))?;
            filesystem::check_opened(opened, data_dir)?;
        }
        let dir_inode = inode_of(&dir).map_err(|error| LockError::io(data_dir, error))?;
        let place = Place::of(path, dir.get().map_err(|error| LockError::io(data_dir, error))?, dir_inode);
        let (file, file_inode) = open_file(&dir, &data_dir.join(LOCK_FILE))?;
        // Asked now, so that a claim, which may be on somebody's pause, need not, and can't be one of nobody.
        Owner::ask().map_err(|error| LockError::io("/proc/self/stat", error))?;
        Ok(Self {
            data_dir: data_dir.into(),
            place,
            settings,
            holding: Holding::Nothing,
            pidfile: Pidfile::MayBeThere,
            sharing: Sharing::Alone,
            identity: Identity::Name,
            marks: Marks::Trusted,
            end: End::Close,
            file,
            file_inode,
            dir,
            dir_inode,
        })
    }

    /// As the caller named it.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.data_dir.join(LOCK_FILE)
    }

    pub(crate) fn dir(&self) -> Result<BorrowedFd<'_>, LockError> {
        self.dir.get().map_err(|error| LockError::io(&self.data_dir, error))
    }

    pub(crate) fn file(&self) -> Result<BorrowedFd<'_>, LockError> {
        self.file.get().map_err(|error| LockError::io(self.lock_path(), error))
    }

    pub(crate) fn try_lock(&mut self) -> Result<Locking, LockError> {
        let locking = self.try_lock_in_place();
        if !matches!(locking, Ok(Locking::Locked(_))) {
            self.unlock()?;
        }
        locking
    }

    fn try_lock_in_place(&mut self) -> Result<Locking, LockError> {
        for _ in 0..ROUNDS_MAX {
            let locked = self.lock_both()?;
            if !self.is_dir_in_place()? {
                self.open_what_the_path_names()?;
            } else if !self.is_file_in_place()? {
                self.unlock()?;
                (self.file, self.file_inode) = open_file(&self.dir, &self.lock_path())?;
            } else if locked {
                return read_contents(self.file()?, &self.lock_path()).map(Locking::Locked);
            } else {
                return Ok(Locking::Busy);
            }
        }
        Err(LockError::KeepsBeingReplaced { path: self.lock_path() })
    }

    fn open_what_the_path_names(&mut self) -> Result<(), LockError> {
        match self.identity {
            Identity::Name => *self = Self::open_existing(&self.data_dir, self.place.path(), self.settings)?,
            Identity::Inode => return Err(self.is_elsewhere(self.dir()?)),
        }
        Ok(())
    }

    /// Whether both are locked now; else neither is, and between two tries nothing is, but a directory that is shared.
    fn lock_both(&mut self) -> Result<bool, LockError> {
        let mut pauses = FILE_RETRIES_US.iter();
        loop {
            if !self.lock_dir()? {
                return Ok(false);
            }
            self.holding = Holding::Lock;
            if try_flock(self.file()?).map_err(|error| LockError::io(self.lock_path(), error))? {
                return Ok(true);
            }
            self.unlock()?;
            match pauses.next() {
                Some(pause_us) => sys::pause(Duration::from_micros(*pause_us)),
                None => return Ok(false),
            }
        }
    }

    fn lock_dir(&self) -> Result<bool, LockError> {
        match try_flock(self.dir()?) {
            Err(error) if self.is_file_enough(error) => Ok(true),
            locked => locked.map_err(|error| LockError::io(&self.data_dir, error)),
        }
    }

    fn unlock_dir(&self) -> Result<(), LockError> {
        match self.sharing {
            Sharing::Alone => self.unflock_dir(),
            Sharing::Shared => Ok(()),
        }
    }

    fn unflock_dir(&self) -> Result<(), LockError> {
        match unflock(self.dir()?) {
            Err(error) if self.is_file_enough(error) => Ok(()),
            unlocked => unlocked.map_err(|error| LockError::io(&self.data_dir, error)),
        }
    }

    fn is_file_enough(&self, error: Errno) -> bool {
        self.settings.filesystems.is_file_enough(error)
    }

    /// Releases the lock, the file first: who gets the directory finds the file free. A pidfile goes before, else it could be
    /// the next owner's. A directory that is shared stays locked.
    ///
    /// # Errors
    /// Nothing was released.
    pub(crate) fn unlock(&mut self) -> Result<(), LockError> {
        if let Holding::Nothing = self.holding {
            return Ok(());
        }
        if !self.file.is_at_home() {
            return Err(LockError::io(&self.data_dir, sys::not_at_home()));
        }
        if let Holding::Ownership(_) = self.holding {
            self.remove_pidfile()?;
            self.note_release();
        }
        unflock(self.file()?).map_err(|error| LockError::io(self.lock_path(), error))?;
        if let Err(error) = self.unlock_dir()
            && try_flock(self.file()?).is_ok_and(|locked| locked)
        {
            return Err(error);
        }
        // If the file is another's by now, that one is the owner, and the directory comes free when its descriptor is closed.
        self.holding = Holding::Nothing;
        Ok(())
    }

    /// Whether the kernel says that the descriptors have the lock, in the process that took it.
    pub(crate) fn is_held(&self) -> bool {
        let is_locked = |fd: Result<BorrowedFd<'_>, LockError>| {
            fd.is_ok_and(|fd| sys::is_locked(fd, Access::Exclusive).unwrap_or(true))
        };
        // Where the caller vouches for the file system, the directory may have no lock.
        let is_dir_locked = || self.settings.filesystems == Filesystems::Any || is_locked(self.dir());
        self.file.is_at_home() && is_locked(self.file()) && is_dir_locked()
    }

    /// Which directory is open.
    pub(crate) fn inode(&self) -> Inode {
        self.dir_inode
    }

    /// Which lock file is open, as a lease in it says it.
    pub(crate) fn file_number(&self) -> u64 {
        self.file_inode.number
    }

    /// Whether the path still leads to the directory that is open; if not, which two they are.
    pub(crate) fn check_dir_in_place(&self) -> Result<(), LockError> {
        if self.is_dir_in_place()? { Ok(()) } else { Err(self.is_elsewhere(self.dir()?)) }
    }

    fn is_dir_in_place(&self) -> Result<bool, LockError> {
        self.place.leads_to(self.dir_inode).map_err(|error| LockError::io(&self.data_dir, error))
    }

    fn is_file_in_place(&self) -> Result<bool, LockError> {
        match statat(self.dir()?, LOCK_FILE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok(Inode::of(&named) == self.file_inode),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(LockError::io(self.lock_path(), error)),
        }
    }

    /// The lease that the lock file has at this moment, whichever inode it is. Opens a descriptor only if it was replaced.
    pub(crate) fn read_lease(&self) -> Result<Option<Lease>, LockError> {
        if self.is_file_in_place()? {
            return Ok(settled_lease(self.file()?, &self.lock_path())?.map(|newest| newest.lease));
        }
        let path = self.lock_path();
        let opened = open_to_read(self.dir()?, LOCK_FILE.as_ref(), &path)?;
        let newest = opened.map_or(Ok(None), |(file, _)| settled_lease(file.as_fd(), &path))?;
        Ok(newest.map(|newest| newest.lease))
    }

    /// Becomes the owner: writes the first lease of an acquisition, one above `found`.
    pub(crate) fn own(&mut self, found: &Contents, mark: u64, lease: Lease) -> Result<(), LockError> {
        let last = found.newest.as_ref().map_or(0, |newest| newest.sequence);
        let newest = Numbered { sequence: last.wrapping_add(1), file: self.file_inode.number, released: false, lease };
        self.write(&newest.encode(), lock_file::slot_offset(newest.sequence))?;
        self.holding = Holding::Ownership(Box::new(Record { newest, mark }));
        self.pidfile = Pidfile::MayBeThere;
        self.identity = Identity::Inode;
        Ok(())
    }

    /// Writes the owner's next lease. On an error the last one stands.
    pub(crate) fn write_lease(&mut self, lease: Lease) -> Result<(), LockError> {
        self.check_dir_in_place()?;
        self.keep_in_place()?;
        let Holding::Ownership(record) = &self.holding else { return Ok(()) };
        let sequence = record.newest.sequence.wrapping_add(1);
        let newest = Numbered { sequence, file: self.file_inode.number, released: false, lease };
        self.write(&newest.encode(), lock_file::slot_offset(newest.sequence))?;
        if let Holding::Ownership(record) = &mut self.holding {
            record.newest = newest;
        }
        Ok(())
    }

    /// Says in the lock file that the owner let go, for those who can't ask the kernel who holds a lock; best effort. A seal
    /// says so itself.
    fn note_release(&self) {
        let Holding::Ownership(record) = &self.holding else { return };
        if record.newest.lease.state == LeaseState::Sealed {
            return;
        }
        let sequence = record.newest.sequence.wrapping_add(1);
        let file = self.file_inode.number;
        let noted = Numbered { sequence, file, released: true, ..record.newest.clone() };
        let _ = self.write(&noted.encode(), lock_file::slot_offset(sequence));
    }

    /// Writes the mark into the lock file; it is durable on return.
    ///
    /// # Errors
    /// No mark is left there: who reads one uses it at once. The second copy, which is durable, tells the next one.
    pub(crate) fn write_mark(&mut self, mark: u64) -> Result<(), LockError> {
        self.keep_in_place()?;
        let written = self.write(&lock_file::encode_mark(mark), MARK_OFFSET).and_then(|()| self.sync_bytes());
        if let Err(error) = written {
            let _ = self.write(&[0; MARK_BYTES], MARK_OFFSET);
            return Err(error);
        }
        if let Holding::Ownership(record) = &mut self.holding {
            record.mark = mark;
        }
        Ok(())
    }

    pub(crate) fn marks(&self) -> Marks {
        self.marks
    }

    pub(crate) fn set_marks(&mut self, marks: Marks) {
        self.marks = marks;
    }

    /// Makes the lock file's bytes durable, and its name, which may be new.
    pub(crate) fn sync(&self) -> Result<(), LockError> {
        self.sync_bytes()?;
        sync_names(self.dir()?).map_err(|error| LockError::io(&self.data_dir, error))
    }

    fn sync_bytes(&self) -> Result<(), LockError> {
        sync_bytes(self.file()?).map_err(|error| LockError::io(self.lock_path(), error))
    }

    /// An owner whose lock file was removed or replaced creates, locks and fills the new one: a peer that locks only the file
    /// stays excluded, and who takes the lock next finds the lease.
    pub(crate) fn keep_in_place(&mut self) -> Result<(), LockError> {
        for _ in 0..ROUNDS_MAX {
            let Holding::Ownership(record) = &self.holding else { return Ok(()) };
            if self.is_file_in_place()? {
                return Ok(());
            }
            let path = self.lock_path();
            let (file, inode) = open_file(&self.dir, &path)?;
            let new = file.get().map_err(|error| LockError::io(&path, error))?;
            if !flock_within(new, &REPLACED_RETRIES_US).map_err(|error| LockError::io(&path, error))? {
                return Err(LockError::LockFileTaken { path, holder: holder::of_file(new) });
            }
            let newest = Numbered { file: inode.number, ..record.newest.clone() };
            write_all(new, &lock_file::image(&newest, record.mark), 0).map_err(|error| LockError::io(&path, error))?;
            (self.file, self.file_inode) = (file, inode);
        }
        Err(LockError::KeepsBeingReplaced { path: self.lock_path() })
    }

    /// What a drop does: release the lock, or keep it until the process exits.
    pub(crate) fn set_end(&mut self, end: End) {
        self.end = end;
    }

    /// Best effort, as all about the pidfile.
    pub(crate) fn write_pidfile(&mut self) {
        if self.settings.pidfile == PidfileUse::Without {
            return;
        }
        self.pidfile = Pidfile::MayBeThere;
        if let Ok(dir) = self.dir.get() {
            pidfile::write_own(dir);
        }
    }

    /// Best effort too. Only for an owner.
    ///
    /// # Errors
    /// The calling process is a forked child.
    pub(crate) fn remove_pidfile(&mut self) -> Result<(), LockError> {
        if self.pidfile == Pidfile::MayBeThere {
            pidfile::remove(self.dir()?);
            self.pidfile = Pidfile::Removed;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), LockError> {
        write_all(self.file()?, bytes, at).map_err(|error| LockError::io(self.lock_path(), error))
    }
}

/// Nobody but its owner needs to read a data dir, and who may read it can lock it. Directories above it are as anybody would
/// have made them: others may have to pass through.
fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    let create = || match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created,
    };
    match (create(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            create()
        }
        (created, _) => created,
    }
}

pub(crate) fn inode_of(dir: &GuardedFd) -> io::Result<Inode> {
    Ok(Inode::of(&fstat(dir.get()?)?))
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.file.is_at_home() {
            return;
        }
        if self.end == End::Keep {
            self.dir.set_end(End::Keep);
            self.file.set_end(End::Keep);
            return;
        }
        // Nobody is left to hear of a failure; the kernel frees what remains when the descriptors close.
        let _ = self.keep_in_place();
        let _ = self.unlock();
    }
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
