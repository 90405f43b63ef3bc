//! The cohort ledger: how many events each group of keys has had lately, in two tiers. A key's cohort is what stands before
//! its first `:`.
//!
//! Invariants:
//!
//! - The hot tier counts by the minute for an hour, the warm tier by the hour for two days; every event is in both, once.
//! - It is a pure function of the increments in log order, as the [ledger](super::ledger) is.

use super::batch::{Batch, Row, Rows};
use super::ledger::Event;
use super::points::crash_point;
use super::record::u64_at;

/// The cohort of keys without a `:`.
pub const COHORT_OF_THE_REST: &str = "-";

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const MINUTES: usize = 60;
const HOURS: usize = 48;

/// The cohort that `key` belongs to.
pub fn cohort_of(key: &str) -> &str {
    match key.split_once(':') {
        Some((cohort, _)) if !cohort.is_empty() => cohort,
        _ => COHORT_OF_THE_REST,
    }
}

/// One cohort's counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cohort {
    /// How many events there ever were.
    pub events: u64,
    hot: Window<MINUTES>,
    warm: Window<HOURS>,
}

impl Cohort {
    /// How many events there were in the hour before `at_ms`.
    pub fn last_hour(&self, at_ms: u64) -> u64 {
        self.hot.total(at_ms / MINUTE_MS)
    }

    /// How many events there were in the two days before `at_ms`.
    pub fn last_two_days(&self, at_ms: u64) -> u64 {
        self.warm.total(at_ms / HOUR_MS)
    }

    pub(crate) fn apply(&mut self, event: Event) {
        self.events += 1;
        self.hot.count(event.at_ms / MINUTE_MS);
        crash_point!(CohortLedgerUpdate);
        self.warm.count(event.at_ms / HOUR_MS);
    }
}

impl Row for Cohort {
    const TABLE: &'static str = "cohorts";

    fn rows(batch: &Batch) -> &Rows<Self> {
        &batch.cohorts
    }

    fn rows_mut(batch: &mut Batch) -> &mut Rows<Self> {
        &mut batch.cohorts
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let fields = [self.events, self.hot.newest, self.warm.newest];
        for field in fields.iter().chain(&self.hot.counts).chain(&self.warm.counts) {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| u64_at(bytes, 8 * index);
        let mut cohort = Self { events: field(0)?, ..Self::default() };
        cohort.hot.newest = field(1)?;
        cohort.warm.newest = field(2)?;
        let counts = cohort.hot.counts.iter_mut().chain(&mut cohort.warm.counts);
        for (index, count) in counts.enumerate() {
            *count = field(3 + index)?;
        }
        (bytes.len() == 8 * (3 + MINUTES + HOURS)).then_some(cohort)
    }
}

/// Counts in the last `N` slots of time; slots are numbered from the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window<const N: usize> {
    /// The number of the newest slot.
    newest: u64,
    /// Slot `n` is at `n % N`.
    counts: [u64; N],
}

impl<const N: usize> Default for Window<N> {
    fn default() -> Self {
        Self { newest: 0, counts: [0; N] }
    }
}

impl<const N: usize> Window<N> {
    /// Counts one event in `slot`, which is never older than the newest: the log's times don't go back.
    fn count(&mut self, slot: u64) {
        let fresh = slot.saturating_sub(self.newest).min(N as u64);
        for passed in 0..fresh {
            self.counts[((slot - passed) % N as u64) as usize] = 0;
        }
        self.newest = self.newest.max(slot);
        self.counts[(slot % N as u64) as usize] += 1;
    }

    fn total(&self, now: u64) -> u64 {
        let oldest = (now + 1).saturating_sub(N as u64);
        let kept = (self.newest + 1).saturating_sub(N as u64);
        (oldest.max(kept)..=self.newest.min(now)).map(|slot| self.counts[(slot % N as u64) as usize]).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_what_stands_before_its_colon() {
        assert_eq!(["de:likes", "likes", ":x", "a:b:c"].map(cohort_of), ["de", "-", "-", "a"]);
    }

    #[test]
    fn events_leave_the_hot_tier_before_the_warm_one() {
        let mut cohort = Cohort::default();
        let start = 1_700_000_000_000;
        for minute in 0..90 {
            cohort.apply(Event { sequence: minute + 1, at_ms: start + minute * MINUTE_MS });
        }
        let now = start + 89 * MINUTE_MS;
        assert_eq!((cohort.events, cohort.last_hour(now), cohort.last_two_days(now)), (90, 60, 90));
        assert_eq!(cohort.last_hour(now + HOUR_MS), 0, "an hour later all of them are old");
        assert_eq!(cohort.last_two_days(now + 72 * HOUR_MS), 0);
        cohort.apply(Event { sequence: 91, at_ms: now + 72 * HOUR_MS });
        assert_eq!(cohort.last_two_days(now + 72 * HOUR_MS), 1, "what a long silence passed over is forgotten");
    }

    #[test]
    fn it_comes_back_from_its_bytes() {
        let mut cohort = Cohort::default();
        cohort.apply(Event { sequence: 1, at_ms: 1_700_000_000_000 });
        let mut bytes = Vec::new();
        cohort.encode(&mut bytes);
        assert_eq!(Cohort::decode(&bytes), Some(cohort));
        assert_eq!(Cohort::decode(&bytes[1..]), None);
    }
}
