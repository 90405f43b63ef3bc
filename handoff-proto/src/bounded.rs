//! Lists of a peer, bounded before they are kept: a frame of many empty strings would cost thirty times its own size.
//!
//! A list that is longer than its bound is a malformed message, and the peer's fault. Memory follows what has arrived, and not the
//! length that is claimed.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::revisions::SHARDS_MAX;

/// The most descriptors that go with one message (SCM_MAX_FD of the kernel, unix(7)), and so the most names.
pub(crate) const NAMES_MAX: usize = 253;
/// The most addresses that a report may name.
pub(crate) const ADDRESSES_MAX: usize = 4096;
/// The longest error text that travels, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// So many elements are made room for on the word of the length alone.
const AHEAD: usize = 1024;

/// The names of listeners.
pub(crate) fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_seq(AtMost::new(NAMES_MAX))
}

/// Addresses that a successor serves.
pub(crate) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_seq(AtMost::new(ADDRESSES_MAX))
}

/// The revisions of shards.
pub(crate) fn revisions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    deserializer.deserialize_seq(AtMost::new(SHARDS_MAX))
}

struct AtMost<T> {
    max: usize,
    of: PhantomData<T>,
}

impl<T> AtMost<T> {
    fn new(max: usize) -> Self {
        Self { max, of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for AtMost<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {}", self.max)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let claimed = list.size_hint().unwrap_or_default();
        if claimed > self.max {
            return Err(A::Error::invalid_length(claimed, &self));
        }
        let mut kept = Vec::new();
        kept.reserve_exact(claimed.min(AHEAD));
        while let Some(element) = list.next_element()? {
            if kept.len() == kept.capacity() {
                // Twice what has arrived, and never more than what is claimed.
                let room = claimed.saturating_sub(kept.len()).min(kept.len());
                kept.reserve_exact(room.max(1));
            }
            if kept.len() == self.max {
                return Err(A::Error::invalid_length(kept.len() + 1, &self));
            }
            kept.push(element);
        }
        Ok(kept)
    }
}

/// A text that surely fits a frame.
pub(crate) fn brief(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let mut end = TEXT_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
