//! flock(2) by descriptor. It never waits in the kernel: there is no flock that waits for a bounded time.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use crate::sys;

/// For whom else a lock leaves room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nobody.
    Exclusive,
    /// Others of this kind.
    Shared,
}

pub(crate) fn try_flock(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    try_flock_as(Access::Exclusive, fd)
}

pub(crate) fn try_flock_as(access: Access, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let operation = match access {
        Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Access::Shared => FlockOperation::NonBlockingLockShared,
    };
    match retry_on_intr(|| flock(fd, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Tries again after each of these pauses: there is no flock that waits for a bounded time.
pub(crate) fn flock_within(fd: BorrowedFd<'_>, pauses_us: &[u64]) -> Result<bool, Errno> {
    for pause_us in pauses_us {
        if try_flock(fd)? {
            return Ok(true);
        }
        sys::pause(Duration::from_micros(*pause_us));
    }
    try_flock(fd)
}

/// Explicitly and not by closing: a process that is just being spawned has a copy of the descriptor until its exec.
pub(crate) fn unflock(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    retry_on_intr(|| flock(fd, FlockOperation::Unlock))
}

pub(crate) fn is_no_lock_for_directories(error: Errno) -> bool {
    [Errno::BADF, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP].contains(&error)
}
