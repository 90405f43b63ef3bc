//! The ledger's rows: one key's count and decay scores.
//!
//! Invariants:
//!
//! - A signal is a pure function of its key's increments in log order: the time of an event comes with it from the log, never
//!   from a clock. So a replay gives equal bits.

use super::batch::{Batch, Row, Rows};
use super::points::crash_point;
use super::record::u64_at;

/// After how long one event counts half in each of a signal's scores, in milliseconds: a minute, an hour, a day.
pub const HALF_LIVES_MS: [u64; 3] = [60_000, 3_600_000, 86_400_000];

const SCORES: usize = HALF_LIVES_MS.len();

/// One key's count and scores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signal {
    /// How often it was incremented.
    pub count: u64,
    /// The sum over its events of one half to the power of their age in half-lives, as of [`updated_ms`](Self::updated_ms).
    pub scores: [f64; SCORES],
    /// When the last event was, in milliseconds since the Unix epoch.
    pub updated_ms: u64,
    /// The last event's sequence in the log.
    pub sequence: u64,
}

impl Signal {
    /// The scores as of `at_ms`.
    pub fn scores_at(&self, at_ms: u64) -> [f64; SCORES] {
        let age_ms = at_ms.saturating_sub(self.updated_ms);
        std::array::from_fn(|index| decayed(self.scores[index], age_ms, HALF_LIVES_MS[index]))
    }

    pub(crate) fn apply(&mut self, event: Event) {
        let age_ms = event.at_ms.saturating_sub(self.updated_ms);
        self.count += 1;
        for (index, score) in self.scores.iter_mut().enumerate() {
            if index > 0 {
                crash_point!(SignalAggregationUpdate);
            }
            *score = decayed(*score, age_ms, HALF_LIVES_MS[index]) + 1.0;
        }
        self.updated_ms = event.at_ms;
        self.sequence = event.sequence;
    }
}

fn decayed(score: f64, age_ms: u64, half_life_ms: u64) -> f64 {
    score * (-(age_ms as f64) / half_life_ms as f64).exp2()
}

/// Where in the log and when a write was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) sequence: u64,
    pub(crate) at_ms: u64,
}

impl Row for Signal {
    const TABLE: &'static str = "signals";

    fn rows(batch: &Batch) -> &Rows<Self> {
        &batch.signals
    }

    fn rows_mut(batch: &mut Batch) -> &mut Rows<Self> {
        &mut batch.signals
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let scores = self.scores.map(f64::to_bits);
        for field in [self.count, self.updated_ms, self.sequence].iter().chain(&scores) {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| u64_at(bytes, 8 * index);
        let mut signal = Self { count: field(0)?, updated_ms: field(1)?, sequence: field(2)?, ..Self::default() };
        for (index, score) in signal.scores.iter_mut().enumerate() {
            *score = f64::from_bits(field(3 + index)?);
        }
        (bytes.len() == 8 * (3 + SCORES)).then_some(signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(times_ms: &[u64]) -> Signal {
        let mut signal = Signal::default();
        for (sequence, at_ms) in (1..).zip(times_ms) {
            signal.apply(Event { sequence, at_ms: *at_ms });
        }
        signal
    }

    #[test]
    fn scores_halve_in_their_half_life() {
        let signal = signal(&[1_000, 1_000 + HALF_LIVES_MS[0]]);
        assert_eq!(signal.count, 2);
        assert_eq!(signal.scores[0], 1.5);
        assert!(signal.scores[1] > 1.98 && signal.scores[1] < 2.0, "{:?}", signal.scores);
        assert_eq!(signal.scores_at(signal.updated_ms + HALF_LIVES_MS[0])[0], 0.75);
    }

    #[test]
    fn the_same_events_give_the_same_bits() {
        let times_ms = [5, 17, 90_001, 90_001, 4_000_000];
        assert_eq!(signal(&times_ms), signal(&times_ms));
        assert_ne!(signal(&times_ms), signal(&times_ms[1..]));
    }

    #[test]
    fn it_comes_back_from_its_bytes() {
        let signal = signal(&[5, 90_001]);
        let mut bytes = Vec::new();
        signal.encode(&mut bytes);
        assert_eq!(Signal::decode(&bytes), Some(signal));
        assert_eq!(Signal::decode(&bytes[1..]), None);
    }
}
