//! Making bytes and names durable. A sync that failed proves nothing ever after: the kernel may have dropped what it could not
//! write and taken it for clean, fsync(2), so a later one succeeds. Who gets an error here writes the bytes again before it
//! relies on them.

use std::os::fd::BorrowedFd;

use rustix::fs::fsync;
use rustix::io::{Errno, retry_on_intr};

#[cfg(not(test))]
use crate::sys::sync_bytes as sync_file;
#[cfg(test)]
use tests::sync_file;

/// A file's bytes.
pub(crate) fn sync_bytes(file: BorrowedFd<'_>) -> Result<(), Errno> {
    retry_on_intr(|| sync_file(file))
}

/// The names in a directory.
pub(crate) fn sync_names(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    #[cfg(test)]
    tests::fail_if_told()?;
    retry_on_intr(|| fsync(dir))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::sys;

    thread_local! {
        /// How many syncs of this thread come before the one that fails.
        static UNTIL_FAILURE: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Lets one sync of this thread fail, after `before` that don't.
    pub(crate) fn fail_after(before: u32) {
        UNTIL_FAILURE.set(Some(before));
    }

    /// Whether it has failed.
    pub(crate) fn has_failed() -> bool {
        UNTIL_FAILURE.replace(None).is_none()
    }

    pub(super) fn fail_if_told() -> Result<(), Errno> {
        match UNTIL_FAILURE.get() {
            Some(0) => {
                UNTIL_FAILURE.set(None);
                Err(Errno::IO)
            }
            Some(before) => {
                UNTIL_FAILURE.set(Some(before - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn sync_file(file: BorrowedFd<'_>) -> Result<(), Errno> {
        fail_if_told()?;
        sys::sync_bytes(file)
    }
}
