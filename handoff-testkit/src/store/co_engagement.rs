//! The co-engagement index: which keys are engaged with together, as weighted edges from each key to its neighbours.
//!
//! Invariants:
//!
//! - A key has at most [`NEIGHBOURS_MAX`] neighbours. What goes beyond it is evicted at once: the lightest edge, among equals
//!   the one that was engaged longest ago, but never the one that was engaged just now.
//! - Who is evicted follows from the log alone, so a replay gives the same edges in the same order.

use super::batch::{Batch, Row, Rows};
use super::points::crash_point;
use super::record::{u32_at, u64_at};

/// How many neighbours a key keeps.
pub const NEIGHBOURS_MAX: usize = 16;

/// One edge of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// To which key.
    pub key: Box<str>,
    /// How often the two were engaged with together since the edge is there.
    pub weight: u64,
    /// The last time's sequence in the log.
    pub sequence: u64,
}

/// The edges of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbours(Vec<Neighbour>);

impl Neighbours {
    /// All of them, in the order in which the edges came.
    pub fn iter(&self) -> impl Iterator<Item = &Neighbour> {
        self.0.iter()
    }

    /// The edge to `key`.
    pub fn get(&self, key: &str) -> Option<&Neighbour> {
        self.0.iter().find(|neighbour| &*neighbour.key == key)
    }

    /// Strengthens or makes the edge to `key`; returns its weight. [`evict`](Self::evict) has to follow.
    pub(crate) fn engage(&mut self, key: &str, sequence: u64) -> u64 {
        if let Some(known) = self.0.iter_mut().find(|neighbour| &*neighbour.key == key) {
            known.weight += 1;
            known.sequence = sequence;
            return known.weight;
        }
        self.0.push(Neighbour { key: key.into(), weight: 1, sequence });
        1
    }

    /// Brings the edges back within the bound; the one that was engaged at `sequence` stays.
    pub(crate) fn evict(&mut self, sequence: u64) {
        while self.0.len() > NEIGHBOURS_MAX {
            let others = self.0.iter().enumerate().filter(|(_, neighbour)| neighbour.sequence != sequence);
            let lightest = others.min_by_key(|(_, neighbour)| (neighbour.weight, neighbour.sequence));
            let Some((index, _)) = lightest else { return };
            self.0.remove(index);
        }
    }
}

/// Inserts the edges between `a` and `b`, then evicts what is too much; returns the weight of the one from `a`.
pub(crate) fn engage(batch: &mut Batch, a: &str, b: &str, sequence: u64) -> u64 {
    let weight = batch.neighbours.entry(a.into()).or_default().engage(b, sequence);
    batch.neighbours.entry(b.into()).or_default().engage(a, sequence);
    crash_point!(CoEngagementUpdate);
    for key in [a, b] {
        batch.neighbours.entry(key.into()).or_default().evict(sequence);
    }
    weight
}

impl Row for Neighbours {
    const TABLE: &'static str = "co_engagement";

    fn rows(batch: &Batch) -> &Rows<Self> {
        &batch.neighbours
    }

    fn rows_mut(batch: &mut Batch) -> &mut Rows<Self> {
        &mut batch.neighbours
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for Neighbour { key, weight, sequence } in &self.0 {
            out.extend_from_slice(&(key.len() as u32).to_le_bytes());
            out.extend_from_slice(&weight.to_le_bytes());
            out.extend_from_slice(&sequence.to_le_bytes());
            out.extend_from_slice(key.as_bytes());
        }
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut neighbours = Vec::new();
        while !bytes.is_empty() {
            let (weight, sequence) = (u64_at(bytes, 4)?, u64_at(bytes, 12)?);
            let (key, rest) = bytes.get(20..)?.split_at_checked(u32_at(bytes, 0)? as usize)?;
            neighbours.push(Neighbour { key: std::str::from_utf8(key).ok()?.into(), weight, sequence });
            bytes = rest;
        }
        Some(Self(neighbours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lightest_and_oldest_edge_goes_and_the_newest_stays() {
        let mut batch = Batch::default();
        let mut sequence = 0;
        let mut engage = |b: &str| {
            sequence += 1;
            super::engage(&mut batch, "hub", b, sequence)
        };
        for number in 0..NEIGHBOURS_MAX {
            engage(&number.to_string());
        }
        assert_eq!(engage("0"), 2, "the oldest is heavier now");
        assert_eq!(engage("late"), 1);
        let hub = &batch.neighbours["hub"];
        assert_eq!(hub.iter().count(), NEIGHBOURS_MAX);
        assert!(hub.get("1").is_none(), "the oldest of the lightest is gone");
        assert!(hub.get("0").is_some() && hub.get("late").is_some());
        assert!(batch.neighbours["1"].get("hub").is_some(), "each key keeps its own bound");
    }

    #[test]
    fn it_comes_back_from_its_bytes() {
        let mut neighbours = Neighbours::default();
        neighbours.engage("b", 1);
        neighbours.engage("schlüssel", 2);
        let mut bytes = Vec::new();
        neighbours.encode(&mut bytes);
        assert_eq!(Neighbours::decode(&bytes), Some(neighbours));
        assert_eq!(Neighbours::decode(&bytes[..bytes.len() - 1]), None);
    }
}
