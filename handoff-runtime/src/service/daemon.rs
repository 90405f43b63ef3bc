//! The daemon as the service sees it, and when it is started again.
//!
//! ```text
//!              answers on the control path
//!   Starting ───────────────────────────────► Serving ◄── committed: another process
//!      │ ▲                                       │
//!      │ └───────────── BackingOff ◄─────────────┤ leaves, and is to be started again
//!      └── leaves ───────────▲   │               │
//!                                ▼               ▼
//!                              Gone: not to be started again
//! ```

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::config::Restart;
use crate::process::Process;

/// A daemon that ran this long has proved itself: its next failure counts as the first.
const PROVED_AFTER: Duration = Duration::from_secs(10);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The one daemon of a service.
#[derive(Debug)]
pub(super) enum Daemon {
    /// Started, or found alive; not heard yet.
    Starting(Living),
    /// It serves.
    Serving(Living),
    /// None lives; one will be started.
    BackingOff,
    /// None lives, and none will be started.
    Gone(Option<ExitStatus>),
}

/// A living daemon.
#[derive(Debug)]
pub(super) struct Living {
    pub(super) process: Process,
    pub(super) started: Instant,
    /// When the service saw it serve.
    pub(super) serving_since_unix_ms: u64,
    /// As it said on the control path.
    pub(super) build_id: Option<Vec<u8>>,
    pub(super) origin: Origin,
}

/// How a daemon came to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// By a start or a handover: it has opened its data before it answers.
    Ours,
    /// Found alive: it may be about to take its data back.
    Adopted,
}

impl Living {
    pub(super) fn new(process: Process, origin: Origin) -> Self {
        Self { process, started: Instant::now(), serving_since_unix_ms: unix_ms(), build_id: None, origin }
    }
}

impl Daemon {
    /// It, while it lives.
    pub(super) fn living(&self) -> Option<&Living> {
        match self {
            Self::Starting(living) | Self::Serving(living) => Some(living),
            Self::BackingOff | Self::Gone(_) => None,
        }
    }

    /// It, if it lives; nobody lives then, as far as this knows.
    pub(super) fn take(&mut self) -> Option<Living> {
        match std::mem::replace(self, Self::BackingOff) {
            Self::Starting(living) | Self::Serving(living) => Some(living),
            nobody @ (Self::BackingOff | Self::Gone(_)) => {
                *self = nobody;
                None
            }
        }
    }

    /// It was told to serve again, and nobody has heard that it does.
    pub(super) fn has_to_be_heard(&mut self) {
        if let Some(living) = self.take() {
            *self = Self::Starting(Living { origin: Origin::Adopted, ..living });
        }
    }

    /// Whether it may be on its way back from a handover, so that its Hello does not mean that it serves.
    pub(super) fn may_be_on_its_way_back(&self) -> bool {
        matches!(self, Self::Starting(living) if living.origin == Origin::Adopted)
    }

    /// The process on the control path has said who it is; false if it is another one than ours.
    pub(super) fn heard(&mut self, pid: u32, build: Vec<u8>) -> bool {
        if self.living().is_none_or(|living| living.process.pid() != pid) {
            return false;
        }
        let is_new = matches!(self, Self::Starting(_));
        if let Some(mut living) = self.take() {
            living.build_id = Some(build);
            if is_new {
                living.serving_since_unix_ms = unix_ms();
            }
            *self = Self::Serving(living);
        }
        true
    }
}

/// Whether a daemon that left is started again. `None`: it is not our child, so nobody knows how it left.
pub(super) fn is_to_be_started_again(policy: Restart, status: Option<ExitStatus>) -> bool {
    match policy {
        Restart::Always => true,
        Restart::Never => false,
        Restart::OnFailure => !status.is_some_and(|status| status.success()),
    }
}

/// How long to wait before the next start: nothing at first, then longer and longer.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts one more end of a daemon that ran this long.
    pub(super) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= PROVED_AFTER {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        match self.failures {
            1 => Duration::ZERO,
            more => SHORTEST_PAUSE.saturating_mul(1 << (more - 2).min(16)).min(LONGEST_PAUSE),
        }
    }

    /// How often in a row it has failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn own_process() -> Living {
        Living::new(Process::open(std::process::id()).unwrap().unwrap(), Origin::Ours)
    }

    #[test]
    fn a_daemon_that_is_heard_serves_and_stays_the_same_process() {
        let own = std::process::id();
        let mut daemon = Daemon::Starting(own_process());
        assert!(!daemon.heard(own + 1, b"b".to_vec()) && matches!(daemon, Daemon::Starting(_)));
        for _ in 0..2 {
            assert!(daemon.heard(own, b"b".to_vec()));
            assert!(matches!(&daemon, Daemon::Serving(living) if living.build_id.as_deref() == Some(b"b")));
        }
        let mut gone = Daemon::Gone(None);
        assert!(!gone.heard(own, Vec::new()) && gone.take().is_none() && matches!(gone, Daemon::Gone(None)));
    }

    #[test]
    fn the_policy_decides_by_the_exit_status() {
        let (good, bad, killed) = (ExitStatus::from_raw(0), ExitStatus::from_raw(256), ExitStatus::from_raw(9));
        for status in [Some(good), Some(bad), Some(killed), None] {
            assert!(is_to_be_started_again(Restart::Always, status));
            assert!(!is_to_be_started_again(Restart::Never, status));
        }
        assert!(!is_to_be_started_again(Restart::OnFailure, Some(good)));
        for status in [Some(bad), Some(killed), None] {
            assert!(is_to_be_started_again(Restart::OnFailure, status));
        }
    }

    #[test]
    fn the_first_start_is_at_once_and_the_pauses_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let short = Duration::from_millis(1);
        let pauses: Vec<_> = (0..5).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800]);
        assert_eq!((0..100).map(|_| backoff.after(short)).max(), Some(LONGEST_PAUSE));
        assert_eq!(backoff.after(PROVED_AFTER), Duration::ZERO, "who ran for a while starts afresh");
    }
}
