//! The revisions of many shards: how a list that does not fit one frame travels.
//!
//! Version 2 sends it in `Revisions` messages ahead of the message that it belongs to: from shard 0 upwards, without a gap,
//! and the message's own list goes on where they ended. Version 1 has no such messages: what does not fit is refused, and
//! must be refused before the lock is released. Lists are bounded by [`SHARDS_MAX`], so a peer can't fill our memory.

use crate::frame;
use crate::message::Message;
use crate::version::ProtoVersion;

/// The most shards that a report may have.
pub const SHARDS_MAX: usize = 1 << 20;

/// How many revisions travel in one message. postcard takes at most 10 bytes for each, so this is well below a frame.
const PER_MESSAGE_MAX: usize = 64 * 1024;

/// A list of revisions as it goes out: send `ahead` first, then the message itself with `rest` as its own list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Split {
    /// `Revisions` messages; none when the list is short or the version is 1.
    pub ahead: Vec<Message>,
    /// What is left for the message itself.
    pub rest: Vec<u64>,
}

/// Splits a list for the wire. Under version 1 nothing is split; ask [`fits_a_frame`] about the message.
pub fn split(version: ProtoVersion, revisions: Vec<u64>) -> Split {
    let mut split = Split { ahead: Vec::new(), rest: revisions };
    if version < 2 {
        return split;
    }
    let mut first_shard = 0;
    while split.rest.len() > PER_MESSAGE_MAX {
        let behind = split.rest.split_off(PER_MESSAGE_MAX);
        split.ahead.push(Message::Revisions { first_shard, revisions: std::mem::replace(&mut split.rest, behind) });
        first_shard += PER_MESSAGE_MAX as u32;
    }
    split
}

/// Whether a message can be sent at all.
pub fn fits_a_frame(version: ProtoVersion, message: &Message) -> bool {
    frame::encode(version, message).is_ok()
}

/// What has arrived ahead of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Parts {
    revisions: Vec<u64>,
}

/// A list that is no list: a gap, an overlap, or more shards than [`SHARDS_MAX`]. The peer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error(
    "revisions of shard {first_shard} came where those of shard {expected} were due, or there are too many of them"
)]
pub struct NotContiguous {
    /// The shard that the part began with.
    pub first_shard: u32,
    /// The shard that was due.
    pub expected: usize,
}

impl Parts {
    /// Takes the fields of one `Revisions` message.
    ///
    /// # Errors
    /// [`NotContiguous`]: the peer misbehaves, end the session.
    pub fn push(&mut self, first_shard: u32, revisions: &[u64]) -> Result<(), NotContiguous> {
        let expected = self.revisions.len();
        if first_shard as usize != expected || expected + revisions.len() > SHARDS_MAX {
            return Err(NotContiguous { first_shard, expected });
        }
        self.revisions.extend_from_slice(revisions);
        Ok(())
    }

    /// Whether nothing has arrived ahead.
    pub fn is_empty(&self) -> bool {
        self.revisions.is_empty()
    }

    /// The whole list, with the message's own part at its end; afterwards nothing is kept.
    pub fn complete(&mut self, rest: &[u64]) -> Vec<u64> {
        let mut all = std::mem::take(&mut self.revisions);
        all.extend_from_slice(rest);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn travel(count: u64) -> (usize, Vec<u64>) {
        let sent: Vec<u64> = (0..count).map(|n| u64::MAX - n).collect();
        let split = split(2, sent.clone());
        let mut parts = Parts::default();
        for message in &split.ahead {
            assert!(fits_a_frame(2, message));
            let Message::Revisions { first_shard, revisions } = message else { panic!("{message:?}") };
            parts.push(*first_shard, revisions).unwrap();
        }
        let arrived = parts.complete(&split.rest);
        assert_eq!(arrived, sent);
        assert!(parts.is_empty());
        (split.ahead.len(), split.rest)
    }

    #[test]
    fn lists_of_any_length_arrive_whole() {
        let limit = PER_MESSAGE_MAX as u64;
        assert_eq!(travel(0).0, 0);
        assert_eq!(travel(limit).0, 0);
        assert_eq!(travel(limit + 1), (1, vec![u64::MAX - limit]));
        assert_eq!(travel(SHARDS_MAX as u64).0, SHARDS_MAX / PER_MESSAGE_MAX - 1);
    }

    #[test]
    fn version_1_splits_nothing_and_says_what_does_not_fit() {
        let split = split(1, vec![u64::MAX; 2 * PER_MESSAGE_MAX]);
        assert!(split.ahead.is_empty());
        assert!(!fits_a_frame(1, &Message::Revisions { first_shard: 0, revisions: split.rest }));
    }

    #[test]
    fn gaps_overlaps_and_floods_are_refused() {
        let mut parts = Parts::default();
        parts.push(0, &[1, 2]).unwrap();
        assert_eq!(parts.push(3, &[4]), Err(NotContiguous { first_shard: 3, expected: 2 }));
        assert_eq!(parts.push(1, &[4]), Err(NotContiguous { first_shard: 1, expected: 2 }));
        assert!(parts.push(2, &vec![0; SHARDS_MAX - 1]).is_err());
        assert_eq!(parts.complete(&[3]), [1, 2, 3]);
    }
}
