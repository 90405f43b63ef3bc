//! What changed since the last checkpoint: the rows of every table that a later checkpoint has to commit. Pure: no file.
//!
//! Invariants:
//!
//! - A row is either *whole*, and then hides what older layers hold under its key, or a set of additions to it.
//! - Its size is bounded by how often checkpoints are made, not by how much the store holds; so a seal can write all of it.

use std::collections::HashMap;

use super::co_engagement::Neighbours;
use super::cohorts::Cohort;
use super::collections::Members;
use super::ledger::Signal;
use super::record::{u32_at, u64_at};

/// Rows of one table, by key.
pub(crate) type Rows<V> = HashMap<Box<str>, V>;

/// A row of one of the tables.
pub(crate) trait Row: Clone + Default + Sized {
    /// The table's name in the engine.
    const TABLE: &'static str;
    /// Whether it hides what older layers hold under its key.
    const IS_WHOLE: bool = true;

    fn rows(batch: &Batch) -> &Rows<Self>;
    fn rows_mut(batch: &mut Batch) -> &mut Rows<Self>;
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads what [`encode`](Self::encode) wrote; `None` when it is anything else.
    fn decode(bytes: &[u8]) -> Option<Self>;

    /// What is there when this row lies over `older`.
    fn over(self, _older: Self) -> Self {
        self
    }
}

/// The rows of all tables that changed.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Batch {
    pub(crate) signals: Rows<Signal>,
    pub(crate) cohorts: Rows<Cohort>,
    pub(crate) members: Rows<Members>,
    pub(crate) neighbours: Rows<Neighbours>,
}

impl Batch {
    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.signals.len() + self.cohorts.len() + self.members.len() + self.neighbours.len()
    }

    /// Lays this batch over an older one.
    pub(crate) fn over(self, mut older: Self) -> Self {
        lay(self.signals, &mut older.signals);
        lay(self.cohorts, &mut older.cohorts);
        lay(self.members, &mut older.members);
        lay(self.neighbours, &mut older.neighbours);
        older
    }

    /// Appends all rows to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        encode_rows(&self.signals, out);
        encode_rows(&self.cohorts, out);
        encode_rows(&self.members, out);
        encode_rows(&self.neighbours, out);
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` when it is anything else.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let batch = Self {
            signals: decode_rows(&mut bytes)?,
            cohorts: decode_rows(&mut bytes)?,
            members: decode_rows(&mut bytes)?,
            neighbours: decode_rows(&mut bytes)?,
        };
        bytes.is_empty().then_some(batch)
    }
}

fn lay<V: Row>(newer: Rows<V>, older: &mut Rows<V>) {
    for (key, row) in newer {
        let below = if V::IS_WHOLE { None } else { older.remove(&key) };
        older.insert(key, below.map_or_else(|| row.clone(), |below| row.clone().over(below)));
    }
}

fn encode_rows<V: Row>(rows: &Rows<V>, out: &mut Vec<u8>) {
    out.extend_from_slice(&(rows.len() as u64).to_le_bytes());
    for (key, row) in rows {
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(key.as_bytes());
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        row.encode(out);
        let row_bytes = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&row_bytes.to_le_bytes());
    }
}

fn decode_rows<V: Row>(bytes: &mut &[u8]) -> Option<Rows<V>> {
    let count = usize::try_from(u64_at(bytes, 0)?).ok().filter(|count| *count <= bytes.len())?;
    let mut rest = &bytes[8..];
    let mut rows = Rows::with_capacity(count);
    for _ in 0..count {
        let key = take_part(&mut rest)?;
        let row = take_part(&mut rest)?;
        rows.insert(std::str::from_utf8(key).ok()?.into(), V::decode(row)?);
    }
    *bytes = rest;
    Some(rows)
}

/// Takes a length and that many bytes from the front.
fn take_part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32_at(bytes, 0)? as usize;
    let (part, rest) = bytes.get(4..)?.split_at_checked(length)?;
    *bytes = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Event;
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::default();
        let event = Event { sequence: 1, at_ms: 5 };
        batch.signals.entry("a".into()).or_default().apply(event);
        batch.signals.entry("schlüssel".into()).or_default().apply(event);
        batch.cohorts.entry("all".into()).or_default().apply(event);
        batch.members.entry("pins".into()).or_default().insert(7);
        batch.neighbours.entry("a".into()).or_default().engage("b", 1);
        batch
    }

    #[test]
    fn it_comes_back_from_its_bytes() {
        let batch = batch();
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        assert_eq!(Batch::decode(&bytes).as_ref(), Some(&batch));
        for cut in 0..bytes.len() {
            assert_eq!(Batch::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        bytes.push(0);
        assert_eq!(Batch::decode(&bytes), None, "nothing may follow");
    }

    #[test]
    fn whole_rows_hide_and_additions_add() {
        let (older, mut newer) = (batch(), Batch::default());
        newer.signals.entry("a".into()).or_default().count = 9;
        newer.members.entry("pins".into()).or_default().insert(8);
        let both = newer.over(older);
        assert_eq!(both.signals["a"].count, 9);
        assert_eq!(both.signals["schlüssel"].count, 1);
        assert_eq!(both.members["pins"].len(), 2);
    }
}
