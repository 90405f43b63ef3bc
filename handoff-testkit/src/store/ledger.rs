//! The hot tier: every signal's count and decay scores, in memory.
//!
//! Invariants:
//!
//! - It is a pure function of the increments in log order: the time of an event comes with it from the log, never from a
//!   clock, and events of one key are applied in the order of their sequences. So a replay gives equal bits.
//! - It never holds what is not in the log.

use std::collections::HashMap;

#[cfg(feature = "crash-points")]
use crate::crash::{CrashPoint, check_crash_point};

use super::record::{u32_at, u64_at};

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

    fn apply(&mut self, event: Event) {
        let age_ms = event.at_ms.saturating_sub(self.updated_ms);
        self.count += 1;
        for (index, score) in self.scores.iter_mut().enumerate() {
            #[cfg(feature = "crash-points")]
            if index > 0 {
                check_crash_point(CrashPoint::SignalAggregationUpdate);
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

/// Where in the log and when an increment was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) sequence: u64,
    pub(crate) at_ms: u64,
}

/// All signals.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    signals: HashMap<Box<str>, Signal>,
}

impl Ledger {
    /// The signal of `key`, if it was ever incremented.
    pub fn get(&self, key: &str) -> Option<&Signal> {
        self.signals.get(key)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.signals.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.signals.is_empty()
    }

    /// All keys with their signals, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Signal)> {
        self.signals.iter().map(|(key, signal)| (&**key, signal))
    }

    /// Counts one event of `key`; returns the count.
    pub(crate) fn apply(&mut self, key: &str, event: Event) -> u64 {
        if let Some(signal) = self.signals.get_mut(key) {
            signal.apply(event);
            return signal.count;
        }
        let mut signal = Signal { updated_ms: event.at_ms, ..Signal::default() };
        signal.apply(event);
        self.signals.insert(key.into(), signal);
        signal.count
    }

    /// Appends the whole ledger to `out`: the number of scores and of keys, then each key with its signal.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(SCORES as u32).to_le_bytes());
        out.extend_from_slice(&(self.signals.len() as u64).to_le_bytes());
        for (key, signal) in &self.signals {
            out.extend_from_slice(&(key.len() as u32).to_le_bytes());
            out.extend_from_slice(key.as_bytes());
            let scores = signal.scores.map(f64::to_bits);
            for field in [signal.count, signal.updated_ms, signal.sequence].iter().chain(&scores) {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` when it is anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let count = usize::try_from(u64_at(bytes, 4)?).ok()?;
        if u32_at(bytes, 0)? as usize != SCORES || count > bytes.len() {
            return None;
        }
        let mut signals = HashMap::with_capacity(count);
        let mut rest = bytes.get(12..)?;
        for _ in 0..count {
            let key_bytes = u32_at(rest, 0)? as usize;
            let (key, after) = rest.get(4..)?.split_at_checked(key_bytes)?;
            let field = |index: usize| u64_at(after, 8 * index);
            let mut signal =
                Signal { count: field(0)?, updated_ms: field(1)?, sequence: field(2)?, ..Signal::default() };
            for (index, score) in signal.scores.iter_mut().enumerate() {
                *score = f64::from_bits(field(3 + index)?);
            }
            signals.insert(std::str::from_utf8(key).ok()?.into(), signal);
            rest = &after[8 * (3 + SCORES)..];
        }
        rest.is_empty().then_some(Self { signals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(events: &[(&str, u64)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (sequence, (key, at_ms)) in (1..).zip(events) {
            ledger.apply(key, Event { sequence, at_ms: *at_ms });
        }
        ledger
    }

    #[test]
    fn scores_halve_in_their_half_life() {
        let ledger = ledger(&[("a", 1_000), ("a", 1_000 + HALF_LIVES_MS[0])]);
        let signal = ledger.get("a").expect("counted");
        assert_eq!(signal.count, 2);
        assert_eq!(signal.scores[0], 1.5);
        assert!(signal.scores[1] > 1.98 && signal.scores[1] < 2.0, "{:?}", signal.scores);
        assert_eq!(signal.scores_at(signal.updated_ms + HALF_LIVES_MS[0])[0], 0.75);
    }

    #[test]
    fn the_same_events_give_the_same_bits() {
        let events = [("a", 5), ("b", 17), ("a", 90_001), ("a", 90_001), ("b", 4_000_000)];
        assert_eq!(ledger(&events), ledger(&events));
        assert_ne!(ledger(&events), ledger(&events[1..]));
    }

    #[test]
    fn it_comes_back_from_its_bytes() {
        let ledger = ledger(&[("a", 5), ("schlüssel", 17), ("a", 90_001)]);
        let mut bytes = Vec::new();
        ledger.encode(&mut bytes);
        assert_eq!(Ledger::decode(&bytes), Some(ledger));
        for cut in 0..bytes.len() {
            assert_eq!(Ledger::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        bytes.push(0);
        assert_eq!(Ledger::decode(&bytes), None, "nothing may follow");
    }
}
