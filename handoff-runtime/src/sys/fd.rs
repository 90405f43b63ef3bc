//! Taking over descriptors that this process was started with.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// Owns descriptor `raw`, close-on-exec from now on, if this process was started with it and `inspect` finds in it what the
/// caller wants; else it stays as it is.
///
/// The caller's duty: nobody else in this process takes it for his own.
pub(crate) fn claim_inherited<T>(
    raw: RawFd,
    inspect: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<(OwnedFd, T)> {
    look_at_inherited(raw, |fd| {
        let found = inspect(fd)?;
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        // SAFETY: it is open, and by the caller's duty nobody else owns it; from here on this is its only owner.
        Ok((unsafe { OwnedFd::from_raw_fd(raw) }, found))
    })
}

/// Lends descriptor `raw` to `look`, if this process was started with it.
///
/// What a program opens by itself is close-on-exec, as the standard library opens everything; what came with the program can't
/// be, or it would not have come. So no descriptor of the daemon's own is ever taken for an inherited one, nor one twice.
pub(crate) fn look_at_inherited<T>(raw: RawFd, look: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
    // SAFETY: fcntl(2) with F_GETFD reads one flag of any number and says EBADF for one that is not open.
    let flags = unsafe { libc::fcntl(raw, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::other("this process has opened it itself"));
    }
    // SAFETY: it is open. A program that closes what it was started with, while it asks for its role, gets an error of the
    // kernel's (EBADF), or a look at another of its files.
    look(unsafe { BorrowedFd::borrow_raw(raw) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_the_program_has_opened_itself_is_never_claimed() {
        let own = File::open("/dev/null").unwrap();
        assert!(claim_inherited(own.as_raw_fd(), |_| Ok(())).is_err());
        let inherited = own.try_clone().unwrap();
        fcntl_setfd(&inherited, FdFlags::empty()).unwrap();
        let raw = std::os::fd::IntoRawFd::into_raw_fd(inherited);
        assert!(claim_inherited(raw, |_| Err::<(), _>(io::Error::other("not wanted"))).is_err());
        let (claimed, ()) = claim_inherited(raw, |_| Ok(())).unwrap();
        assert!(claim_inherited(raw, |_| Ok(())).is_err(), "not twice");
        assert_eq!(claimed.as_raw_fd(), raw);
    }
}
