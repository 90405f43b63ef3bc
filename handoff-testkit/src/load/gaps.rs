//! The gaps between replies: what a handover's pause looks like to the clients. Bounded: only the latest gaps are kept, and
//! only those that are long enough to be told apart.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shorter gaps are not kept.
const SHORTEST: Duration = Duration::from_micros(50);
/// Older gaps are forgotten: 16 MiB of them, some minutes of a busy load.
const GAPS_MAX: usize = 1 << 19;

/// When replies came, as the gaps between them over all clients.
#[derive(Debug)]
pub struct Gaps {
    state: Mutex<State>,
    replied: Condvar,
}

#[derive(Debug)]
struct State {
    last: Instant,
    gaps: VecDeque<(Instant, Instant)>,
}

impl Gaps {
    pub(crate) fn new() -> Self {
        let state = State { last: Instant::now(), gaps: VecDeque::new() };
        Self { state: Mutex::new(state), replied: Condvar::new() }
    }

    /// A reply came, now. The time is taken under the lock, so that it never goes back.
    pub(crate) fn reply(&self) {
        let mut state = self.state();
        let now = Instant::now();
        state.take(now);
        drop(state);
        self.replied.notify_all();
    }

    /// The longest gap that reaches into the time from `from` to `to`, in its whole length. What has not happened yet is no gap: one
    /// that is still open counts up to `to`, and never beyond now. [`longest_around`](Self::longest_around) waits until it is closed.
    pub fn longest_between(&self, from: Instant, to: Instant) -> Duration {
        let state = self.state();
        let inside = state.gaps.iter().rev().take_while(|(_, end)| *end >= from).filter(|(start, _)| *start <= to);
        let open = to.min(Instant::now()).saturating_duration_since(state.last);
        inside.map(|(start, end)| *end - *start).max().unwrap_or_default().max(open)
    }

    /// The same of a span that may not be over yet: waits until a reply has come after it, so that every gap in it is closed.
    /// `None` when none has come within `patience`.
    pub fn longest_around(&self, from: Instant, to: Instant, patience: Duration) -> Option<Duration> {
        self.wait_for_reply_after(to, patience).then(|| self.longest_between(from, to))
    }

    /// Waits until a reply has come after `at`; false when none has within `patience`.
    pub fn wait_for_reply_after(&self, at: Instant, patience: Duration) -> bool {
        let waited = self.replied.wait_timeout_while(self.state(), patience, |state| state.last <= at);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, now: Instant) {
        if now - self.last >= SHORTEST {
            if self.gaps.len() == GAPS_MAX {
                self.gaps.pop_front();
            }
            self.gaps.push_back((self.last, now));
        }
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gaps with replies at these milliseconds after the returned instant.
    fn replies(at_ms: &[u64]) -> (Gaps, impl Fn(u64) -> Instant) {
        let gaps = Gaps::new();
        let start = gaps.state().last;
        let after = move |ms| start + Duration::from_millis(ms);
        for ms in at_ms {
            gaps.state().take(after(*ms));
        }
        (gaps, after)
    }

    #[test]
    fn the_longest_gap_that_touches_the_window_counts_whole() {
        let (gaps, at) = replies(&[1, 2, 30, 31, 50, 51]);
        let longest = |from, to| gaps.longest_between(at(from), at(to)).as_millis();
        assert_eq!(longest(0, 51), 28);
        assert_eq!(longest(10, 12), 28, "it began before and ended after");
        assert_eq!(longest(31, 51), 19);
        assert_eq!(longest(0, 1), 1);
    }

    #[test]
    fn an_open_gap_counts_up_to_the_end_of_the_window() {
        let (gaps, at) = replies(&[1]);
        while Instant::now() < at(100) {
            std::thread::park_timeout(at(100) - Instant::now());
        }
        assert_eq!(gaps.longest_between(at(0), at(100)).as_millis(), 99);
    }

    #[test]
    fn a_span_in_the_future_holds_no_gap_that_has_not_happened() {
        let gaps = Gaps::new();
        gaps.reply();
        let before = Instant::now();
        let hour = Duration::from_secs(3600);
        let longest = gaps.longest_between(before, before + hour);
        assert!(longest <= before.elapsed() + (before - gaps.state().last), "{longest:?}");
    }

    #[test]
    fn a_span_that_is_not_over_is_waited_for() {
        let gaps = Gaps::new();
        let from = Instant::now();
        let to = from + Duration::from_millis(20);
        assert_eq!(gaps.longest_around(from, to, Duration::ZERO), None, "no reply has come after it");
        let longest = std::thread::scope(|scope| {
            scope.spawn(|| {
                while Instant::now() <= to {
                    gaps.reply();
                    std::thread::yield_now();
                }
                gaps.reply();
            });
            gaps.longest_around(from, to, Duration::from_secs(20))
        });
        let whole = gaps.longest_between(from, to);
        assert_eq!(longest, Some(whole), "every gap in it was closed when it was measured");
    }

    #[test]
    fn waiting_ends_with_a_reply() {
        let gaps = Gaps::new();
        let now = Instant::now();
        assert!(!gaps.wait_for_reply_after(now, Duration::ZERO));
        gaps.reply();
        assert!(gaps.wait_for_reply_after(now, Duration::ZERO));
    }
}
