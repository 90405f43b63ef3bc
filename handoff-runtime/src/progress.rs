//! Looking at a handover from another thread, and calling it off.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handoff_proto::HandoffId;
use handoff_proto::supervisor::Milestone;

use crate::waker::Waker;

/// A handover has come this far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) handoff_id: HandoffId,
    /// Once it was started.
    pub(crate) successor_pid: Option<u32>,
    /// CLOCK_MONOTONIC.
    pub(crate) at_ns: u64,
    /// The same, since the handover began.
    pub(crate) after: Duration,
    pub(crate) step: Step,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Reached(Milestone),
    /// The successor has said what build it is.
    SuccessorBuild(Vec<u8>),
    /// The incumbent has sealed this much of several shards. The incumbent bounds how often it says so.
    Sealed(Sealed),
}

/// How far a seal is, as the daemon reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) shards: u32,
    pub(crate) total: u32,
    pub(crate) last_revision: u64,
}

/// Who watches a handover, on the handover's own thread.
pub(crate) trait Onlooker {
    /// It has come farther; in order, one after the other. What is not seen when it is over comes with the outcome.
    fn see(&self, news: Vec<Progress>);

    /// The successor has just been started, and works by itself for a while: the time for what costs time.
    fn successor_started(&self) {}

    /// Asked before the journal is made durable, and so before the incumbent is told to drain: returns when whatever else must
    /// be on record by then is there.
    fn before_sync(&self) {}
}

/// One that only sees.
impl<F: Fn(Vec<Progress>)> Onlooker for F {
    fn see(&self, news: Vec<Progress>) {
        self(news);
    }
}

/// Calls a handover off, from any thread. Its loop polls the descriptor and takes the reason.
#[derive(Debug, Clone)]
pub(crate) struct Cancel {
    reason: Arc<Mutex<Option<String>>>,
    waker: Waker,
}

impl Cancel {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { reason: Arc::default(), waker: Waker::new()? })
    }

    /// Calls it off. What is committed stays committed.
    #[cfg(any(feature = "service", test))]
    pub(crate) fn cancel(&self, reason: &str) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        self.waker.wake();
    }

    /// Why it is called off, if it is; told once.
    pub(crate) fn take(&self) -> Option<String> {
        self.waker.drain();
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once() {
        let cancel = Cancel::new().unwrap();
        assert_eq!(cancel.take(), None);
        cancel.clone().cancel("stop");
        assert_eq!(cancel.take().as_deref(), Some("stop"));
        assert_eq!(cancel.take(), None);
    }
}
