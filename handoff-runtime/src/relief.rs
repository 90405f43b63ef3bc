//! Calls a thread in to stand in for another one that has gone to work (timerfd_create(2)).
//!
//! ```text
//!              in_a_moment           5 ms pass
//!   off duty ───────────────► due ───────────────► called     at_once: called, from each of them
//!    ▲    ▲      not_needed    │                     │
//!    │    └────────────────────┘                     │ take
//!    └───────────────────────────────────────────────┘
//! ```
//!
//! To wake a sleeping thread costs more than most of what is done within a handover, and the one that is woken takes a
//! processor from those that a client waits for. So who goes to work, and mostly is back at once, names a time instead: work
//! that is over by then has cost nobody a change of threads. Work that is not, be it as long as it will, is stood in for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::events;
use crate::sync::{AtomicBool, Ordering};
use crate::sys::{counter, poll};

/// Far below every interval of the protocol: whoever stands in has missed nothing. Above what most stores take to drain, to
/// seal or to open.
const AFTER: Duration = Duration::from_millis(5);
/// The shortest time that is one: none at all stops the timer.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// A handle to call with; its clones call the same thread.
#[derive(Debug, Clone)]
pub(crate) struct Relief {
    timer: Arc<OwnedFd>,
    /// Due or called: another call would change nothing.
    due: Arc<AtomicBool>,
}

impl Relief {
    /// Nobody is called yet.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { timer: Arc::new(counter::timer()?), due: Arc::new(AtomicBool::new(false)) })
    }

    /// Calls in 5 ms from now, unless it is to call earlier.
    pub(crate) fn in_a_moment(&self) {
        if !self.due.swap(true, Ordering::AcqRel) {
            self.set(AFTER);
        }
    }

    /// Calls now.
    pub(crate) fn at_once(&self) {
        self.due.swap(true, Ordering::AcqRel);
        self.set(AT_ONCE);
    }

    /// Does not call, unless it just has.
    pub(crate) fn not_needed(&self) {
        if self.due.swap(false, Ordering::AcqRel) {
            self.set(Duration::ZERO);
        }
    }

    /// Waits for the call. May return early, as after a signal: look whether there is something to stand in for.
    pub(crate) fn wait(&self) {
        events::pass_on();
        if let Err(error) = poll::wait(&mut [PollFd::new(self, PollFlags::IN)], None) {
            events::warn!(%error, "could not wait to be called; looking at everything again");
        }
        self.take();
    }

    /// Forgets the call. Take it first, then look at what it was for.
    pub(crate) fn take(&self) {
        if let Err(error) = counter::take(&self.timer) {
            events::warn!(%error, "a timerfd could not be read");
        }
        // After the read: whoever finds it due until here is seen by the look that follows.
        self.due.swap(false, Ordering::AcqRel);
    }

    fn set(&self, after: Duration) {
        if let Err(error) = counter::set_timer(&self.timer, after) {
            events::warn!(%error, "a timerfd could not be set");
        }
    }
}

impl AsFd for Relief {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::time::timerfd_gettime;

    use super::*;

    fn is_called(relief: &Relief) -> bool {
        let mut fds = [PollFd::new(relief, PollFlags::IN)];
        poll::wait(&mut fds, Some(Duration::ZERO)).unwrap();
        !fds[0].revents().is_empty()
    }

    fn is_due(relief: &Relief) -> bool {
        let left = timerfd_gettime(&relief.timer).unwrap().it_value;
        (left.tv_sec, left.tv_nsec) != (0, 0)
    }

    #[test]
    fn who_stands_in_is_called_when_the_work_goes_on_and_once() {
        let relief = Relief::new().unwrap();
        let theirs = relief.clone();
        let called = thread::spawn(move || theirs.wait());
        relief.in_a_moment();
        called.join().unwrap();
        assert!(!is_called(&relief) && !is_due(&relief));
    }

    #[test]
    fn a_second_wish_does_not_put_off_the_first() {
        let relief = Relief::new().unwrap();
        relief.in_a_moment();
        let mut before = timerfd_gettime(&relief.timer).unwrap().it_value.tv_nsec;
        while before > 0 {
            relief.in_a_moment();
            let left = timerfd_gettime(&relief.timer).unwrap().it_value.tv_nsec;
            assert!(left <= before);
            before = left;
        }
        relief.wait();
        assert!(!is_called(&relief) && !is_due(&relief));
    }

    #[test]
    fn nobody_is_called_when_the_work_is_over() {
        let relief = Relief::new().unwrap();
        relief.in_a_moment();
        relief.not_needed();
        assert!(!is_called(&relief) && !is_due(&relief));
        relief.at_once();
        relief.not_needed();
        assert!(!is_called(&relief) && !is_due(&relief));
        relief.in_a_moment();
        relief.wait();
    }

    #[test]
    fn called_at_once_in_place_of_later() {
        let relief = Relief::new().unwrap();
        relief.in_a_moment();
        relief.at_once();
        relief.wait();
        assert!(!is_called(&relief) && !is_due(&relief));
    }
}
