//! The descriptors that count: eventfd(2), timerfd_create(2).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use super::poll::timespec;

/// How often a count is tried.
const TRIES_MAX: u32 = 3;

/// A descriptor that is readable once it was [counted up](count_up).
///
/// # Errors
/// No descriptor can be had.
pub(crate) fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes an event readable. False: it could not be.
pub(crate) fn count_up(event: &OwnedFd) -> bool {
    // A wake-up that is lost is a loop that sleeps on: a passing failure must not cost it.
    for _ in 0..TRIES_MAX {
        match retry_on_intr(|| write(event, &1u64.to_ne_bytes())) {
            // Full: it is readable already.
            Ok(_) | Err(Errno::AGAIN) => return true,
            Err(error) => tracing::warn!(%error, "an eventfd could not be written"),
        }
    }
    false
}

/// A descriptor that is readable once the time is over that was [set](set_timer).
///
/// # Errors
/// No descriptor can be had.
pub(crate) fn timer() -> io::Result<OwnedFd> {
    Ok(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?)
}

/// Lets a timer run out so long from now, once, and forgets what it was set to; no time at all stops it.
pub(crate) fn set_timer(timer: &OwnedFd, after: Duration) {
    let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(after) };
    if let Err(error) = timerfd_settime(timer, TimerfdTimerFlags::empty(), &once) {
        tracing::warn!(%error, "a timerfd could not be set");
    }
}

/// Reads a counter, so that it is not readable any more until it counts again. Never blocks on one that was opened so.
pub(crate) fn take(counter: impl AsFd) {
    let mut count = [0; 8];
    match retry_on_intr(|| read(&counter, &mut count)) {
        Ok(_) | Err(Errno::AGAIN) => {}
        Err(error) => tracing::warn!(%error, "an eventfd or a timerfd could not be read"),
    }
}
