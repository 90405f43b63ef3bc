//! The epoch high-water mark: which epoch comes next, and what must be on the disk before it is used.
//!
//! The mark is reserved ahead: no epoch above it was ever used. It is kept twice, in the lock file and in a file beside it, so
//! that neither a torn sector nor a removed lock file makes an epoch go back.
//!
//! Invariants: a mark in the lock file is only ever one that the second copy holds durably, or a later one does; an epoch is
//! used only up to the mark of the lock file. So the higher one of the readable marks bounds all epochs ever used.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fdatasync, fsync, openat, renameat};
use rustix::io::{Errno, pread, pwrite};

use crate::error::LockError;
use crate::lock_file::{Contents, Found, MARK_BYTES, encode_mark, parse_mark};

/// The second copy's name in the data dir.
pub(crate) const SECOND_COPY: &str = ".handoff.epoch";
const STAGING: &str = ".handoff.epoch.new";

/// How many epochs are reserved with one sync.
pub(crate) const RESERVED_AHEAD: u64 = 1024;

/// The epoch of an acquisition, and the mark that must be durable before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextEpoch {
    pub(crate) epoch: u64,
    pub(crate) mark: u64,
}

/// Why there is no next epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoEpoch {
    /// Something is there, but no mark can be read: any number could be one that was used.
    MarkLost,
    Exhausted,
}

/// The next epoch if the lock file alone is certain about it: the last lease is known, and its mark, which is durable, has
/// room.
pub(crate) fn next_if_reserved(contents: &Contents) -> Option<NextEpoch> {
    let Found::Mark(mark) = contents.mark else { return None };
    let last = contents.newest.as_ref().filter(|newest| newest.lease.is_certainly_last())?.lease.epoch;
    (last < mark).then(|| NextEpoch { epoch: last + 1, mark })
}

/// The next epoch in all other cases; its mark has yet to be reserved. It may skip epochs, and never goes back.
pub(crate) fn next_above_all(contents: &Contents, second_copy: Found) -> Result<NextEpoch, NoEpoch> {
    let marks = [contents.mark, second_copy];
    let mark =
        marks.into_iter().filter_map(|found| if let Found::Mark(mark) = found { Some(mark) } else { None }).max();
    if mark.is_none() && marks.contains(&Found::Unreadable) {
        return Err(NoEpoch::MarkLost);
    }
    let last = contents.newest.as_ref().map_or(0, |newest| newest.lease.epoch);
    let epoch = last.max(mark.unwrap_or(0));
    let epoch = epoch.checked_add(1).ok_or(NoEpoch::Exhausted)?;
    let mark = epoch.checked_add(RESERVED_AHEAD).ok_or(NoEpoch::Exhausted)?;
    Ok(NextEpoch { epoch, mark })
}

/// Whether the second copy is as high as the mark of the lock file.
pub(crate) fn covers(second_copy: Found, mark: u64) -> bool {
    matches!(second_copy, Found::Mark(second) if second >= mark)
}

/// Reads the second copy.
pub(crate) fn read_second_copy(dir: BorrowedFd<'_>, data_dir: &Path) -> Result<Found, LockError> {
    let path = data_dir.join(SECOND_COPY);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match openat(dir, SECOND_COPY, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(Errno::LOOP) => return Ok(Found::Unreadable),
        Err(error) => return Err(LockError::io(path, error)),
    };
    let mut bytes = [0; MARK_BYTES];
    match pread(&file, &mut bytes, 0) {
        Ok(len) => Ok(parse_mark(&bytes[..len])),
        Err(Errno::ISDIR) => Ok(Found::Unreadable),
        Err(error) => Err(LockError::io(path, error)),
    }
}

/// Writes the second copy; it is durable on return.
///
/// In place if there is one that is readable: its sector is written whole or torn, and then the lock file still has the mark
/// of before. Else it is replaced by rename, so that a power failure leaves none or a whole one.
pub(crate) fn write_second_copy(dir: BorrowedFd<'_>, data_dir: &Path, mark: u64) -> Result<(), LockError> {
    let in_place = matches!(read_second_copy(dir, data_dir)?, Found::Mark(_));
    let name = if in_place { SECOND_COPY } else { STAGING };
    write_mark_file(dir, name, mark).map_err(|error| LockError::io(data_dir.join(name), error))?;
    if in_place {
        return Ok(());
    }
    renameat(dir, STAGING, dir, SECOND_COPY)
        .and_then(|()| fsync(dir))
        .map_err(|error| LockError::io(data_dir.join(SECOND_COPY), error))
}

fn write_mark_file(dir: BorrowedFd<'_>, name: &str, mark: u64) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    match pwrite(&file, &encode_mark(mark), 0)? {
        MARK_BYTES => fdatasync(&file),
        _ => Err(Errno::NOSPC),
    }
}
