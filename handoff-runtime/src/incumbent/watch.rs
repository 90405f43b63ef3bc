//! What an incumbent waits for: its own copy of the descriptors, so that it can wait while another thread works on them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use handoff_proto::incumbent::SessionId;
use rustix::event::{PollFd, PollFlags};

use crate::events;
use crate::sys::poll;
use crate::timers::now_ns;

/// Descriptors and a moment. A descriptor in it stays open until this is dropped, and its number nobody else's.
#[derive(Clone)]
pub(super) struct Watch {
    sources: Vec<Source>,
    until: Until,
}

/// When to stop waiting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Until {
    /// Something that has arrived is not dealt with yet.
    Now,
    /// At this moment of CLOCK_MONOTONIC, in nanoseconds.
    At(u64),
    Never,
}

#[derive(Clone)]
struct Source {
    what: What,
    fd: Arc<dyn AsFd + Send + Sync>,
    events: PollFlags,
}

/// What a descriptor stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Waker,
    Clients,
    Session(SessionId),
    Path,
    /// By its pid.
    Successor(u32),
    Asked,
    Parting,
}

/// What has become ready.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found(Vec<What>);

impl Watch {
    pub(super) fn new(until: Until) -> Self {
        Self { sources: Vec::with_capacity(8), until }
    }

    pub(super) fn add<Fd: AsFd + Send + Sync + 'static>(&mut self, what: What, fd: Arc<Fd>, events: PollFlags) {
        self.sources.push(Source { what, fd, events });
    }

    /// Whether who waits for this would also see what the other one is for, and in time, and keeps open nothing that was
    /// closed. An eye on the path too many does no harm.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let has = |watch: &Self, wanted: &Source| watch.sources.iter().any(|source| source.is_same(wanted));
        let is_closed = |ours: &Source| ours.what != What::Path && !has(other, ours);
        self.until <= other.until
            && other.sources.iter().all(|theirs| has(self, theirs))
            && !self.sources.iter().any(is_closed)
    }

    /// All of it.
    pub(super) fn all(&self) -> Found {
        Found(self.sources.iter().map(|source| source.what).collect())
    }

    /// Waits.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn wait(&self) -> io::Result<Found> {
        let timeout = match self.until {
            Until::Now => Some(Duration::ZERO),
            Until::At(at_ns) => Some(Duration::from_nanos(at_ns.saturating_sub(now_ns()))),
            Until::Never => None,
        };
        let mut fds: Vec<_> = self.sources.iter().map(Source::polled).collect();
        events::pass_on();
        poll::wait(&mut fds, timeout)?;
        let ready = self.sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(Found(ready.map(|(source, _)| source.what).collect()))
    }
}

impl Source {
    fn is_same(&self, other: &Self) -> bool {
        let number = |source: &Self| source.fd.as_fd().as_raw_fd();
        self.what == other.what && self.events == other.events && number(self) == number(other)
    }

    fn polled(&self) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.fd.as_fd(), self.events)
    }
}

impl Found {
    pub(super) fn has(&self, what: What) -> bool {
        self.0.contains(&what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::waker::Waker;

    fn watch(until: Until, wakers: &[&Waker]) -> Watch {
        let mut watch = Watch::new(until);
        wakers.iter().for_each(|waker| watch.add(What::Waker, waker.polled(), PollFlags::IN));
        watch
    }

    #[test]
    fn finds_what_is_ready() {
        let (one, other) = (Waker::new().unwrap(), Waker::new().unwrap());
        let mut watch = watch(Until::Never, &[&one]);
        watch.add(What::Path, other.polled(), PollFlags::IN);
        other.wake();
        let found = watch.wait().unwrap();
        assert!(found.has(What::Path) && !found.has(What::Waker));
        assert!(watch.all().has(What::Waker));
    }

    #[test]
    fn covers_what_comes_later_and_from_descriptors_of_its_own() {
        let (one, other) = (Waker::new().unwrap(), Waker::new().unwrap());
        let sleeping = watch(Until::At(10), &[&one]);
        for (until, wakers, is_covered) in [
            (Until::At(10), vec![&one], true),
            (Until::At(11), vec![&one], true),
            (Until::Never, vec![&one], true),
            (Until::At(9), vec![&one], false),
            (Until::Now, vec![&one], false),
            (Until::At(10), vec![], false),
            (Until::At(10), vec![&one, &other], false),
            (Until::At(10), vec![&other], false),
        ] {
            assert_eq!(sleeping.covers(&watch(until, &wakers)), is_covered);
        }
        let mut with_path = watch(Until::At(10), &[&one]);
        with_path.add(What::Path, other.polled(), PollFlags::IN);
        assert!(with_path.covers(&sleeping) && !sleeping.covers(&with_path));
    }
}
