//! What a daemon implements to be handed over: [`Drainable`], its contexts and its reports.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Why a hook failed; its text reaches the supervisor's operator.
pub type HookError = Box<dyn StdError + Send + Sync>;

/// The daemon's side of a handover. An `Incumbent` calls these hooks on one worker thread, one at a
/// time. A hook may take long: heartbeats are sent meanwhile. A hook that panics is a hook that failed.
///
/// **Once the lock was released, memory is worthless.** When [`Resume::state_may_have_changed`] is true, a successor may
/// have written: [`resume_after_abort`](Drainable::resume_after_abort) must re-read its state from disk before it serves.
pub trait Drainable: Send + Sync {
    /// Stops taking new work, finishes the work in hand, and makes every acknowledged write durable (promise 3).
    ///
    /// Should return by [`DrainContext::deadline`], and soon after [`DrainContext::cancelled`] turns true. After an error
    /// `resume_after_abort` follows.
    ///
    /// # Errors
    /// Anything; the handover is then off and the text is its reason.
    fn drain(&self, cx: &DrainContext) -> Result<DrainReport, HookError>;

    /// Flushes and closes the writer: after it this process can write no more. The lock is released right after it
    /// returned `Ok` (promise 2), and never else.
    ///
    /// # Errors
    /// Anything; the lock is kept, the handover is off, and `resume_after_abort` follows.
    fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError>;

    /// Serves again after a drain that did not end in a commit. Succeeds exactly once for each such drain (promise 9); a
    /// failure is retried with a growing pause.
    ///
    /// Re-read the state from disk when [`Resume::state_may_have_changed`] says so.
    ///
    /// # Errors
    /// Anything. [`StateNotReadable`] says that a newer build wrote what this one can't read: `serve` then gives the data
    /// up instead of trying again.
    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError>;

    /// How the daemon stands, for people. Called at any time; must not block.
    fn snapshot_state(&self) -> StateSnapshot;
}

/// What a drain may take.
#[derive(Debug, Clone)]
pub struct DrainContext {
    deadline: Instant,
    cancelled: Arc<AtomicBool>,
}

impl DrainContext {
    pub(crate) fn new(deadline: Instant, cancelled: Arc<AtomicBool>) -> Self {
        Self { deadline, cancelled }
    }

    /// A context that nobody cancels, to call a hook from a unit test.
    pub fn for_test(deadline: Instant) -> Self {
        Self::new(deadline, Arc::default())
    }

    /// When the drain should have returned.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long that is from now; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the handover is off already, so that the hook may return at once.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// Where a seal's progress goes: shards sealed, shards in all, last revision.
type ProgressSink = Arc<dyn Fn(u32, u32, u64) + Send + Sync>;

/// What a seal may ask and tell.
#[derive(Clone)]
pub struct SealContext {
    cancelled: Arc<AtomicBool>,
    progress: ProgressSink,
}

impl fmt::Debug for SealContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealContext").field("cancelled", &self.cancelled()).finish_non_exhaustive()
    }
}

impl SealContext {
    pub(crate) fn new(cancelled: Arc<AtomicBool>, progress: ProgressSink) -> Self {
        Self { cancelled, progress }
    }

    /// A context that nobody cancels and whose progress goes nowhere, to call a hook from a unit test.
    pub fn for_test() -> Self {
        Self::new(Arc::default(), Arc::new(|_, _, _| {}))
    }

    /// Reports that `sealed` of `total` shards are sealed, the last of them at `revision`. Never blocks.
    pub fn progress(&self, sealed: u32, total: u32, revision: u64) {
        (self.progress)(sealed, total, revision);
    }

    /// Whether the handover is off already, so that the hook may return at once with an error.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// What a daemon must know to serve again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resume {
    /// False only when the lock was held throughout. True: re-read the state from disk.
    pub state_may_have_changed: bool,
    /// The epoch to write under from now on.
    pub epoch: u64,
}

impl Resume {
    /// What a daemon is told; public so that a unit test can call the hook.
    pub fn new(state_may_have_changed: bool, epoch: u64) -> Self {
        Self { state_may_have_changed, epoch }
    }
}

/// The error with which `resume_after_abort` says: a newer build wrote what this one can't read; start that one again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("state not readable: {reason}")]
pub struct StateNotReadable {
    /// What can't be read.
    pub reason: String,
}

/// What a drain achieved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Client connections that stay open.
    pub open_conns_remaining: u32,
    /// Whether no new ones are taken.
    pub accept_closed: bool,
}

/// What a seal left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealReport {
    /// The last revision of each shard; a successor must open at least these (promise 3).
    pub last_revision_per_shard: Vec<u64>,
    /// What identifies the sealed data, in whatever way the daemon likes.
    pub data_dir_fingerprint: [u8; 32],
}

/// How the daemon stands right now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateSnapshot {
    /// How many shards it has.
    pub shard_count: u32,
    /// How many client connections are open.
    pub open_conns: u32,
    /// The last revision of each shard.
    pub last_revision_per_shard: Vec<u64>,
}

/// How a successor stands when it is about to serve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadinessSnapshot {
    /// Addresses that it will serve.
    pub listening_on: Vec<String>,
    /// Whether it is fit to serve; if not, the incumbent resumes.
    pub healthz_ok: bool,
    /// The last revision of each shard that it opened.
    pub advertised_revision_per_shard: Vec<u64>,
    /// What identifies the data that it opened, if the daemon can tell. What was sealed under another
    /// [fingerprint](SealReport::data_dir_fingerprint) is not taken over (promise 3).
    pub data_dir_fingerprint: Option<[u8; 32]>,
}
