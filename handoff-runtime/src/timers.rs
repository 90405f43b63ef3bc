//! The timers of one role's loop: what its machine armed, in the order in which it runs out.
//!
//! Never fires anything by itself: the loop asks how long it may sleep, then whether it woke up late, then which timers had
//! run out by then. What runs out later, while the loop takes what has arrived, waits for its next turn: this process, or
//! the whole machine, may have been paused in between, and then there is input to be taken first. A role has about ten
//! timers, so a list that is searched is the fastest form.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use crate::sys::clock;

/// How much later than asked a loop may wake up before it counts as late, in nanoseconds. A pause of the machine that is
/// longer than a peer is waited for by less than this is taken for the peer's silence, so it is short; and it is longer than
/// what a busy machine makes of every sleep, so that a frozen peer is still found there.
const LATE_AFTER_NS: u64 = 100_000_000;

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now_ns() -> u64 {
    clock::monotonic_ns()
}

/// Armed timers. Each name runs at most once at a time.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    armed: Vec<(u64, T)>,
    /// When the loop woke up last.
    woke_ns: u64,
}

impl<T: Copy + Eq + Debug> Timers<T> {
    /// No timer is armed.
    pub(crate) const fn new() -> Self {
        Self { armed: Vec::new(), woke_ns: 0 }
    }

    /// Lets `timer` run out `after` from now; a running one starts anew.
    pub(crate) fn arm(&mut self, timer: T, after: Duration) {
        self.arm_at(timer, later(now_ns(), after));
    }

    /// Lets `timer` run out at `at_ns` of CLOCK_MONOTONIC; a running one is replaced.
    pub(crate) fn arm_at(&mut self, timer: T, at_ns: u64) {
        self.disarm(timer);
        // Behind all that run out earlier or at the same time: equal times fire in the order of their arming.
        let place = self.armed.partition_point(|&(at, _)| at <= at_ns);
        self.armed.insert(place, (at_ns, timer));
    }

    /// Stops `timer`, if it runs.
    pub(crate) fn disarm(&mut self, timer: T) {
        self.armed.retain(|&(_, armed)| armed != timer);
    }

    /// How long the loop may sleep; `None`: until a descriptor wakes it.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout_from(now_ns())
    }

    /// Takes the earliest timer that had run out when the loop woke up; see [`woke_late`](Self::woke_late).
    pub(crate) fn pop_expired(&mut self) -> Option<T> {
        self.pop_expired_by(self.woke_ns)
    }

    /// When `timer` runs out, in nanoseconds of CLOCK_MONOTONIC, if it runs.
    pub(crate) fn at_ns(&self, timer: T) -> Option<u64> {
        self.armed.iter().find(|&&(_, armed)| armed == timer).map(|&(at, _)| at)
    }

    /// When the earliest timer runs out, in nanoseconds of CLOCK_MONOTONIC.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.armed.first().map(|&(at, _)| at)
    }

    /// The loop wakes up. Whether it is late itself: the earliest timer ran out a while ago and nobody looked. Ask right
    /// after each wait, before anything is taken.
    pub(crate) fn woke_late(&mut self) -> bool {
        self.woke_ns = now_ns();
        self.is_late_at(self.woke_ns)
    }

    fn timeout_from(&self, now_ns: u64) -> Option<Duration> {
        let (at, _) = self.armed.first()?;
        Some(Duration::from_nanos(at.saturating_sub(now_ns)))
    }

    fn pop_expired_by(&mut self, now_ns: u64) -> Option<T> {
        let (at, _) = self.armed.first()?;
        (*at <= now_ns).then(|| self.armed.remove(0).1)
    }

    fn is_late_at(&self, now_ns: u64) -> bool {
        self.armed.first().is_some_and(|(at, _)| now_ns.saturating_sub(*at) > LATE_AFTER_NS)
    }
}

/// The moment that is `after` from now. A bound is a person's number: one that no clock can show is as good as a century.
pub(crate) fn instant_after(after: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(after).unwrap_or_else(|| now + CENTURY)
}

/// `now_ns` and `after`, at most the end of time.
fn later(now_ns: u64, after: Duration) -> u64 {
    now_ns.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Name {
        A,
        B,
        C,
    }

    fn popped_by(timers: &mut Timers<Name>, now_ns: u64) -> Vec<Name> {
        std::iter::from_fn(|| timers.pop_expired_by(now_ns)).collect()
    }

    #[test]
    fn runs_out_in_order_of_time_and_then_of_arming() {
        let mut timers = Timers::new();
        timers.arm_at(Name::B, 20);
        timers.arm_at(Name::C, 10);
        timers.arm_at(Name::A, 20);
        assert_eq!(popped_by(&mut timers, 9), []);
        assert_eq!(popped_by(&mut timers, 20), [Name::C, Name::B, Name::A]);
        assert_eq!(timers.timeout_from(20), None);
    }

    #[test]
    fn arming_again_replaces() {
        let mut timers = Timers::new();
        timers.arm_at(Name::A, 10);
        timers.arm_at(Name::A, 30);
        assert_eq!(timers.at_ns(Name::A), Some(30));
        assert_eq!(popped_by(&mut timers, 29), []);
        assert_eq!(popped_by(&mut timers, 30), [Name::A]);
        assert_eq!(timers.at_ns(Name::A), None);
    }

    #[test]
    fn a_disarmed_timer_never_fires() {
        let mut timers = Timers::new();
        timers.arm_at(Name::A, 10);
        timers.disarm(Name::A);
        timers.disarm(Name::B);
        assert_eq!(popped_by(&mut timers, u64::MAX), []);
    }

    #[test]
    fn sleeps_until_the_earliest_and_not_at_all_when_it_has_passed() {
        let mut timers = Timers::new();
        assert_eq!(timers.timeout_from(0), None);
        timers.arm_at(Name::A, 50);
        timers.arm_at(Name::B, 40);
        assert_eq!(timers.timeout_from(10), Some(Duration::from_nanos(30)));
        assert_eq!(timers.timeout_from(60), Some(Duration::ZERO));
    }

    #[test]
    fn late_only_when_far_behind() {
        let mut timers = Timers::new();
        assert!(!timers.is_late_at(u64::MAX));
        timers.arm_at(Name::A, 1_000);
        assert!(!timers.is_late_at(0));
        assert!(!timers.is_late_at(1_000 + LATE_AFTER_NS));
        assert!(timers.is_late_at(1_001 + LATE_AFTER_NS));
    }

    #[test]
    fn what_runs_out_after_the_loop_woke_up_waits_for_its_next_turn() {
        let mut timers = Timers::new();
        timers.arm(Name::A, Duration::ZERO);
        assert_eq!(timers.pop_expired(), None, "the loop has not woken up yet");
        assert!(!timers.woke_late());
        timers.arm(Name::B, Duration::ZERO);
        assert_eq!((timers.pop_expired(), timers.pop_expired()), (Some(Name::A), None));
        assert!(!timers.woke_late());
        assert_eq!(timers.pop_expired(), Some(Name::B));
    }

    #[test]
    fn the_longest_interval_is_the_end_of_time() {
        assert_eq!(later(5, Duration::MAX), u64::MAX);
        assert_eq!(later(5, Duration::from_nanos(7)), 12);
    }

    #[test]
    fn the_real_clock_goes_forward() {
        let mut timers = Timers::new();
        let before = now_ns();
        timers.arm(Name::A, Duration::from_secs(3600));
        timers.arm(Name::B, Duration::ZERO);
        assert!(timers.at_ns(Name::A) >= Some(before + 3_600_000_000_000));
        assert!(!timers.woke_late());
        assert_eq!(timers.pop_expired(), Some(Name::B));
        assert_eq!(timers.pop_expired(), None);
        assert!(timers.timeout() <= Some(Duration::from_secs(3600)));
    }

    #[test]
    fn the_end_of_time_is_not_reached() {
        let now = Instant::now();
        assert!(instant_after(Duration::MAX) > now + CENTURY / 2);
        assert!(instant_after(Duration::ZERO) >= now);
        assert_eq!(later(u64::MAX - 1, Duration::MAX), u64::MAX);
    }
}
