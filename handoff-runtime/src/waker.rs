//! Wakes a role's loop from another thread (eventfd(2)). Carries no data and never blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::events;
use crate::sync::{AtomicBool, Ordering};
use crate::sys::counter;

/// A handle to wake with; its clones wake the same loop.
#[derive(Debug, Clone)]
pub(crate) struct Waker {
    event: Arc<OwnedFd>,
    /// The descriptor is readable: another wake-up would cost a system call and change nothing.
    awake: Arc<AtomicBool>,
}

impl Waker {
    /// A waker that nobody has used yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { event: Arc::new(counter::event()?), awake: Arc::new(AtomicBool::new(false)) })
    }

    /// The descriptor, to wait for it.
    pub(crate) fn polled(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.event)
    }

    /// Makes the descriptor readable until the next [`drain`](Self::drain).
    pub(crate) fn wake(&self) {
        if self.awake.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = counter::count_up(&self.event) {
            self.awake.store(false, Ordering::Release);
            events::warn!(%error, "an eventfd could not be written");
        }
    }

    /// Forgets the wake-ups so far. Drain first, then look at what they were for.
    pub(crate) fn drain(&self) {
        if let Err(error) = counter::take(&self.event) {
            events::warn!(%error, "an eventfd could not be read");
        }
        // After the read: who wakes between the two writes nothing, and what it is for is looked at next. Before it, that one's
        // write would be read away, and later ones believe that the descriptor is still readable.
        self.awake.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::sys::poll;

    fn is_readable(waker: &Waker) -> bool {
        let mut fds = [PollFd::new(waker, PollFlags::IN)];
        poll::wait(&mut fds, Some(Duration::ZERO)).unwrap();
        fds[0].revents().contains(PollFlags::IN)
    }

    #[test]
    fn stays_awake_until_drained() {
        let waker = Waker::new().unwrap();
        assert!(!is_readable(&waker));
        waker.wake();
        waker.wake();
        assert!(is_readable(&waker));
        waker.drain();
        assert!(!is_readable(&waker));
        waker.drain();
    }

    #[test]
    fn wakes_a_sleeping_loop_from_another_thread() {
        let waker = Waker::new().unwrap();
        let remote = waker.clone();
        let thread = std::thread::spawn(move || remote.wake());
        let mut fds = [PollFd::new(&waker, PollFlags::IN)];
        poll::wait(&mut fds, Some(Duration::from_secs(30))).unwrap();
        assert!(fds[0].revents().contains(PollFlags::IN));
        thread.join().unwrap();
    }
}
