//! Clients that write in a loop, as the fault table measures by: what was acknowledged, when, and whether anybody was
//! refused.

use std::io;
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::subject::{Subject, Written};

/// One attempt takes no longer: a process that froze with our request in hand must not hide that another one serves.
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between two writes.
const THINK: Duration = Duration::from_millis(2);

/// What the writing clients have seen.
#[derive(Debug, Default)]
pub(super) struct Writer {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    /// Token and time, in order.
    acknowledged: Vec<(u64, Instant)>,
    refused: u64,
    stopped: bool,
}

/// What the log on disk says about what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Audit {
    pub(super) acked_lost: u64,
    pub(super) two_writers: u64,
    pub(super) duplicated: u64,
}

impl Writer {
    /// One client that writes its tokens until all are stopped.
    pub(super) fn run(&self, subject: &dyn Subject, address: SocketAddr, tokens: impl Iterator<Item = u64>) {
        for token in tokens {
            let written = subject.write(address, token, ATTEMPT);
            let mut seen = self.seen();
            match written {
                Ok(()) => seen.acknowledged.push((token, Instant::now())),
                Err(error) => seen.refused += u64::from(error.kind() == io::ErrorKind::ConnectionRefused),
            }
            self.changed.notify_all();
            let thought = self.changed.wait_timeout_while(seen, THINK, |seen| !seen.stopped);
            if thought.unwrap_or_else(PoisonError::into_inner).0.stopped {
                return;
            }
        }
    }

    /// Lets the clients finish.
    pub(super) fn stop(&self) {
        self.seen().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until this many writes more were acknowledged; false when they were not in time.
    pub(super) fn wait_for(&self, more: usize, patience: Duration) -> bool {
        let seen = self.seen();
        let wanted = seen.acknowledged.len() + more;
        let waited = self.changed.wait_timeout_while(seen, patience, |seen| seen.acknowledged.len() < wanted);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The longest time without an acknowledgement that reaches into the time since `from`.
    pub(super) fn outage_since(&self, from: Instant) -> Duration {
        let seen = self.seen();
        let gaps = seen.acknowledged.windows(2).filter(|pair| pair[1].1 > from);
        gaps.map(|pair| pair[1].1 - pair[0].1).max().unwrap_or_default()
    }

    pub(super) fn refused(&self) -> u64 {
        self.seen().refused
    }

    /// Compares what was acknowledged with what is on disk.
    pub(super) fn audit(&self, written: &[Written]) -> Audit {
        let mut on_disk: Vec<u64> = written.iter().map(|write| write.token).collect();
        on_disk.sort_unstable();
        let lost = |(token, _): &&(u64, Instant)| on_disk.binary_search(token).is_err();
        let epochs = written.iter().filter_map(|write| write.epoch);
        let newest = epochs.clone().scan(0, |newest, epoch| {
            *newest = epoch.max(*newest);
            Some(*newest)
        });
        Audit {
            acked_lost: self.seen().acknowledged.iter().filter(lost).count() as u64,
            two_writers: epochs.zip(newest).filter(|(epoch, newest)| epoch < newest).count() as u64,
            duplicated: on_disk.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_disk(writes: &[(u64, u64)]) -> Vec<Written> {
        writes.iter().map(|(epoch, token)| Written { token: *token, epoch: Some(*epoch) }).collect()
    }

    #[test]
    fn the_audit_counts_what_is_missing_mixed_and_doubled() {
        let writer = Writer::default();
        writer.seen().acknowledged = [1, 2, 3].map(|token| (token, Instant::now())).to_vec();
        let audit = |writes: &[(u64, u64)]| {
            let audit = writer.audit(&on_disk(writes));
            (audit.acked_lost, audit.two_writers, audit.duplicated)
        };
        assert_eq!(audit(&[(1, 1), (1, 2), (2, 3), (2, 4)]), (0, 0, 0));
        assert_eq!(audit(&[(1, 1), (2, 3)]), (1, 0, 0));
        assert_eq!(audit(&[(1, 1), (2, 2), (1, 3), (2, 4)]), (0, 1, 0));
        assert_eq!(audit(&[(1, 1), (1, 2), (2, 3), (2, 3)]), (0, 0, 1));
    }

    #[test]
    fn the_longest_gap_counts_in_its_whole_length() {
        let writer = Writer::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        writer.seen().acknowledged = vec![(1, at(0)), (2, at(100)), (3, at(130)), (4, at(180))];
        assert_eq!(writer.outage_since(at(0)), Duration::from_millis(100));
        assert_eq!(writer.outage_since(at(110)), Duration::from_millis(50));
        assert_eq!(writer.outage_since(at(500)), Duration::ZERO);
    }
}
