//! Wakes a role's loop from another thread (eventfd(2)). Carries no data and never blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, retry_on_intr, write};

/// How often a wake-up is tried.
const TRIES_MAX: u32 = 3;

/// A handle to wake with; its clones wake the same loop.
#[derive(Debug, Clone)]
pub(crate) struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    /// A waker that nobody has used yet.
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// The descriptor, to wait for it.
    pub(crate) fn polled(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.event)
    }

    /// Makes the descriptor readable until the next [`drain`](Self::drain).
    pub(crate) fn wake(&self) {
        // A wake-up that is lost is a loop that sleeps on: a passing failure must not cost it.
        for _ in 0..TRIES_MAX {
            match retry_on_intr(|| write(&self.event, &1u64.to_ne_bytes())) {
                // Full: it is readable already.
                Ok(_) | Err(Errno::AGAIN) => return,
                Err(error) => tracing::warn!(%error, "an eventfd could not be written"),
            }
        }
    }

    /// Forgets the wake-ups so far. Drain first, then look at what they were for.
    pub(crate) fn drain(&self) {
        let mut count = [0u8; 8];
        match retry_on_intr(|| read(&self.event, &mut count)) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => tracing::warn!(%error, "an eventfd could not be read"),
        }
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
