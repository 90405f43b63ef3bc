//! Opening the lock file, reading and writing its bytes. What they mean stands in `lock_file` and `lease`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use crate::error::{Inode, LockError};
use crate::lease::Numbered;
use crate::lock_file::{self, Contents, FILE_BYTES, Found};
use crate::sys::GuardedFd;

/// The lock file's name in the data dir.
pub const LOCK_FILE: &str = ".handoff.lock";

const FILE_FLAGS: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);
/// How often a torn lease is read again.
const TORN_READS_MAX: u32 = 64;

/// Opens the lock file to look at it: `name` in `dir`, which is `path` for people. `None` if it is missing.
pub(crate) fn open_to_read(
    dir: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
) -> Result<Option<(OwnedFd, Inode)>, LockError> {
    match retry_on_intr(|| openat(dir, name, OFlags::RDONLY | FILE_FLAGS, Mode::empty())) {
        Ok(file) => check_is_file(file.as_fd(), path).map(|inode| Some((file, inode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(refused_open(dir, name, path, error)),
    }
}

/// Reads a lease beside its writer: two writes within one read can leave neither slot whole, so it reads again.
pub(crate) fn settled_lease(file: BorrowedFd<'_>, path: &Path) -> Result<Option<Numbered>, LockError> {
    for _ in 0..TORN_READS_MAX {
        match read_contents(file, path)? {
            Contents { newest: Some(newest), .. } => return Ok(Some(newest)),
            Contents { mark: Found::Nothing, .. } => return Ok(None),
            Contents { newest: None, .. } => std::thread::yield_now(),
        }
    }
    Ok(None)
}

/// What the lock file holds. Read beside its writer, a slot may be torn.
pub(crate) fn read_contents(file: BorrowedFd<'_>, path: &Path) -> Result<Contents, LockError> {
    let mut bytes = [0; FILE_BYTES];
    let len = read_all(file, &mut bytes).map_err(|error| LockError::io(path, error))?;
    lock_file::parse(&bytes[..len]).map_err(|newer| newer.at(path))
}

/// Opens the lock file to lock it and to write it; creates it if it is missing.
pub(crate) fn open_file(dir: &GuardedFd, path: &Path) -> Result<(GuardedFd, Inode), LockError> {
    let flags = OFlags::RDWR | OFlags::CREATE | FILE_FLAGS;
    let open = || {
        let dir = dir.get()?;
        Ok(retry_on_intr(|| openat(dir, LOCK_FILE, flags, Mode::RUSR | Mode::WUSR))?)
    };
    let failed = |error: io::Error| LockError::io(path, error);
    let file = match (GuardedFd::open(open), dir.get()) {
        (Ok(file), _) => file,
        (Err(error), Ok(dir)) => return Err(refused_open(dir, LOCK_FILE.as_ref(), path, error)),
        (Err(_), Err(error)) => return Err(failed(error)),
    };
    let inode = check_is_file(file.get().map_err(failed)?, path)?;
    Ok((file, inode))
}

fn check_is_file(file: BorrowedFd<'_>, path: &Path) -> Result<Inode, LockError> {
    let stat = fstat(file).map_err(|error| LockError::io(path, error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Inode::of(&stat)),
        _ => Err(LockError::NotALockFile { path: path.into() }),
    }
}

fn refused_open(dir: BorrowedFd<'_>, name: &Path, path: &Path, error: impl Into<io::Error>) -> LockError {
    let error = error.into();
    let is_there = || statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    match Errno::from_io_error(&error) {
        // FreeBSD says EMLINK of a link. A loop of links on the way to it is not its own.
        Some(Errno::LOOP | Errno::MLINK | Errno::ISDIR) if is_there() => LockError::NotALockFile { path: path.into() },
        _ => LockError::io(path, error),
    }
}

pub(crate) fn write_all(fd: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<(), Errno> {
    // A short write is a full disk. It is not continued: the slot must come by one write.
    if retry_on_intr(|| pwrite(fd, bytes, at))? == bytes.len() { Ok(()) } else { Err(Errno::NOSPC) }
}

fn read_all(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize, Errno> {
    let mut len = 0;
    while len < bytes.len() {
        match retry_on_intr(|| pread(fd, &mut bytes[len..], len as u64))? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}
