//! The collection index: which items each collection holds.
//!
//! The engine has every membership; a collection's bitmap is its copy in memory, loaded when the collection is first asked
//! about, so that a question is answered without the engine.
//!
//! Invariants:
//!
//! - An item is put into the engine's batch first and into the bitmap second; a bitmap never holds what the batch, or what
//!   lies below it, does not.
//! - Bitmaps are a cache: bounded, never written anywhere, and whole for their collection or not there.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use super::batch::{Batch, Row, Rows};
use super::points::crash_point;

/// The greatest item: a whole collection then fits into 2 MiB.
pub const ITEM_MAX: u32 = (1 << 24) - 1;
/// How many collections have a bitmap in memory at once.
const BITMAPS_MAX: usize = 1024;

/// Items of one collection: in a batch those that were added since the last checkpoint, in the engine all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Members(RoaringBitmap);

impl Members {
    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `item` is one of them.
    pub fn contains(&self, item: u32) -> bool {
        self.0.contains(item)
    }

    /// The items in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter()
    }

    /// Says whether it was not there yet.
    pub(crate) fn insert(&mut self, item: u32) -> bool {
        self.0.insert(item)
    }
}

impl Row for Members {
    const TABLE: &'static str = "collections";
    const IS_WHOLE: bool = false;

    fn rows(batch: &Batch) -> &Rows<Self> {
        &batch.members
    }

    fn rows_mut(batch: &mut Batch) -> &mut Rows<Self> {
        &mut batch.members
    }

    fn encode(&self, out: &mut Vec<u8>) {
        // Writing into memory does not fail.
        let _ = self.0.serialize_into(out);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let bitmap = RoaringBitmap::deserialize_from(&mut rest).ok()?;
        rest.is_empty().then_some(Self(bitmap))
    }

    fn over(self, older: Self) -> Self {
        Self(self.0 | older.0)
    }
}

/// The bitmaps in memory.
#[derive(Debug, Default)]
pub(crate) struct Bitmaps {
    whole: HashMap<Box<str>, Members>,
}

impl Bitmaps {
    pub(crate) fn get(&self, collection: &str) -> Option<&Members> {
        self.whole.get(collection)
    }

    /// Keeps what a collection was found to hold.
    pub(crate) fn keep(&mut self, collection: &str, members: Members) {
        if self.whole.len() >= BITMAPS_MAX {
            self.whole.clear();
        }
        self.whole.insert(collection.into(), members);
    }
}

/// Puts `item` into the engine's batch, then into the collection's bitmap. Says whether it was not there yet; the bitmap must
/// have been loaded.
pub(crate) fn add(batch: &mut Batch, bitmaps: &mut Bitmaps, collection: &str, item: u32) -> bool {
    batch.members.entry(collection.into()).or_default().insert(item);
    crash_point!(CollectionIndexUpdate);
    bitmaps.whole.entry(collection.into()).or_default().insert(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_lie_over_what_was_there() {
        let (mut older, mut newer) = (Members::default(), Members::default());
        older.insert(1);
        newer.insert(ITEM_MAX);
        let both = newer.over(older);
        assert_eq!(both.iter().collect::<Vec<_>>(), [1, ITEM_MAX]);
        let mut bytes = Vec::new();
        both.encode(&mut bytes);
        assert_eq!(Members::decode(&bytes), Some(both));
        assert_eq!(Members::decode(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn bitmaps_are_bounded() {
        let mut bitmaps = Bitmaps::default();
        for number in 0..3 * BITMAPS_MAX {
            bitmaps.keep(&number.to_string(), Members::default());
            assert!(bitmaps.whole.len() <= BITMAPS_MAX);
        }
    }
}
