//! The descriptors that count: eventfd(2), timerfd_create(2).

use std::os::fd::AsFd;

use rustix::io::{Errno, read, retry_on_intr};

/// Reads a counter, so that it is not readable any more until it counts again. Never blocks on one that was opened so.
pub(crate) fn take(counter: impl AsFd) {
    let mut count = [0; 8];
    match retry_on_intr(|| read(&counter, &mut count)) {
        Ok(_) | Err(Errno::AGAIN) => {}
        Err(error) => tracing::warn!(%error, "an eventfd or a timerfd could not be read"),
    }
}
