//! Waiting for descriptors and time together.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

/// How often a wait is tried that the kernel has no memory for.
const TRIES_MAX: u32 = 3;

/// Waits until a descriptor is ready, `timeout` is over, or a signal arrives (ppoll(2)).
///
/// `None` waits without a limit. A signal is no error: the descriptors are then all shown as not ready, and a loop that
/// looks at its timers and waits again does the right thing. Nor is it one that the kernel has no memory for a moment: no
/// loop may end for that.
pub(crate) fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(timespec);
    let mut tries_left = TRIES_MAX;
    loop {
        tries_left -= 1;
        match poll(fds, timeout.as_ref()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {
                fds.iter_mut().for_each(PollFd::clear_revents);
                return Ok(());
            }
            Err(Errno::NOMEM) if tries_left > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The farthest that can be told, if it is farther than that.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() }
}
