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

/// Makes an event readable.
///
/// # Errors
/// The system's, three times in a row.
pub(crate) fn count_up(event: &OwnedFd) -> io::Result<()> {
    // A wake-up that is lost is a loop that sleeps on: a passing failure must not cost it.
    let mut tries_left = TRIES_MAX;
    loop {
        tries_left -= 1;
        match retry_on_intr(|| write(event, &1u64.to_ne_bytes())) {
            // Full: it is readable already.
            Ok(_) | Err(Errno::AGAIN) => return Ok(()),
            Err(_) if tries_left > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A descriptor that is readable once the time is over that was [set](set_timer).
///
/// # Errors
/// No descriptor can be had.
pub(crate) fn timer() -> io::Result<OwnedFd> {
    Ok(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?)
}

/// Lets a timer run out so long from now, once, and forgets what it was set to; no time at all stops it.
///
/// # Errors
/// The system's.
pub(crate) fn set_timer(timer: &OwnedFd, after: Duration) -> io::Result<()> {
    let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(after) };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// Reads a counter, so that it is not readable any more until it counts again. Never blocks on one that was opened so.
///
/// # Errors
/// The system's.
pub(crate) fn take(counter: impl AsFd) -> io::Result<()> {
    let mut count = [0; 8];
    match retry_on_intr(|| read(&counter, &mut count)) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
