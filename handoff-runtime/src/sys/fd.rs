//! Taking over descriptors that this process was started with.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// Owns descriptor `raw`, close-on-exec from now on, if it is open and `inspect` finds in it what the caller wants; else it
/// stays as it is.
///
/// The caller's duty: this process was started with `raw` for the caller's use, and it is claimed once.
pub(crate) fn claim_inherited<T>(
    raw: RawFd,
    inspect: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<(OwnedFd, T)> {
    // SAFETY: fcntl(2) with F_GETFD reads one flag of any number and says EBADF for one that is not open.
    if unsafe { libc::fcntl(raw, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the caller's duty nobody else owns it, so nobody closes it meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    let found = inspect(borrowed)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: as above; from here on this is its only owner.
    Ok((unsafe { OwnedFd::from_raw_fd(raw) }, found))
}
