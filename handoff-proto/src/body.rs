//! The body of a frame: plain postcard, and quick where a report lists the revisions of many shards.
//!
//! A serializer is asked for one number at a time, which makes it the slow part of a report of 100,000 shards. So the messages
//! with such a list are put together from three parts: what stands before the list, the list, and what stands behind it.
//! `tests/wire.rs` holds every message against postcard's own bytes.

use serde::Serialize;

use crate::message::{Message, StatusReport};

/// The most bytes of a `u64`: seven bits in each.
const VARINT_BYTES_MAX: usize = 10;
/// How many numbers are put together before they are appended: few enough to stay in the first cache.
const CHUNK: usize = 64;

/// Appends the body of a message. On an error a part of it may have been appended.
pub(crate) fn append(out: &mut Vec<u8>, message: &Message) -> postcard::Result<()> {
    match message {
        Message::SealComplete { handoff_id, last_revision_per_shard, data_dir_fingerprint } => {
            append_part(out, &(6u32, handoff_id))?;
            append_list(out, last_revision_per_shard);
            out.extend_from_slice(data_dir_fingerprint);
            Ok(())
        }
        Message::Ready { handoff_id, listening_on, healthz_ok, advertised_revision_per_shard } => {
            append_part(out, &(9u32, handoff_id, listening_on, healthz_ok))?;
            append_list(out, advertised_revision_per_shard);
            Ok(())
        }
        Message::BeginWith {
            handoff_id,
            mode,
            sealed_revision_per_shard,
            data_dir_fingerprint,
            epoch,
            deadline_ns,
            open_ms,
        } => {
            append_part(out, &(15u32, handoff_id, mode))?;
            append_list(out, sealed_revision_per_shard);
            out.extend_from_slice(data_dir_fingerprint);
            append_varints(out, &[*epoch, *deadline_ns, *open_ms]);
            Ok(())
        }
        Message::StatusReport(StatusReport { phase, shard_count, open_conns, last_revision_per_shard, epoch }) => {
            append_part(out, &(21u32, phase, shard_count, open_conns))?;
            append_list(out, last_revision_per_shard);
            append_part(out, epoch)
        }
        Message::Revisions { first_shard, revisions } => {
            append_part(out, &(22u32, first_shard))?;
            append_list(out, revisions);
            Ok(())
        }
        short => append_part(out, short),
    }
}

fn append_part(out: &mut Vec<u8>, part: &impl Serialize) -> postcard::Result<()> {
    postcard::to_extend(part, Tail(out)).map(|_| ())
}

/// Lets postcard append to a buffer that it does not own.
struct Tail<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Tail<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

fn append_list(out: &mut Vec<u8>, values: &[u64]) {
    append_varints(out, &[values.len() as u64]);
    append_varints(out, values);
}

fn append_varints(out: &mut Vec<u8>, values: &[u64]) {
    let mut bytes = [0; CHUNK * VARINT_BYTES_MAX];
    for values in values.chunks(CHUNK) {
        // Numbers of one byte come in crowds: young stores, idle shards.
        if values.iter().all(|&value| value < 1 << 7) {
            out.extend(values.iter().map(|&value| value as u8));
            continue;
        }
        let mut length = 0;
        for &value in values {
            if let Some(room) = bytes[length..].first_chunk_mut() {
                length += put_varint(room, value);
            }
        }
        out.extend_from_slice(&bytes[..length]);
    }
}

/// Writes a varint and gives its length. Only the longest are told apart by a branch: all others come in no order that a
/// processor could foresee.
#[inline]
fn put_varint(out: &mut [u8; VARINT_BYTES_MAX], value: u64) -> usize {
    // The low 56 bits, seven to a byte: halves apart by four bits, quarters by two, eighths by one.
    let halves = (value & 0x0fff_ffff) | (value & 0x00ff_ffff_f000_0000) << 4;
    let quarters = (halves & 0x0000_3fff_0000_3fff) | (halves & 0x0fff_c000_0fff_c000) << 2;
    let eighths = (quarters & 0x007f_007f_007f_007f) | (quarters & 0x3f80_3f80_3f80_3f80) << 1;
    // Each byte but the last has its top bit set.
    if value < 1 << 56 {
        let unused_bits = (eighths | 1).leading_zeros() & !7;
        let follows = 0x0080_8080_8080_8080 >> unused_bits;
        out[..8].copy_from_slice(&(eighths | follows).to_le_bytes());
        return 8 - unused_bits as usize / 8;
    }
    out[..8].copy_from_slice(&(eighths | 0x8080_8080_8080_8080).to_le_bytes());
    let top_bit = (value >> 63) as u8;
    out[8] = (value >> 56) as u8 & 0x7f | top_bit << 7;
    out[9] = top_bit;
    9 + usize::from(top_bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_of_every_length_is_postcards() {
        for bits in 0..=64 {
            let top = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
            for value in [top, top / 2 + 1, top & 0x5555_5555_5555_5555, top & 0xaaaa_aaaa_aaaa_aaaa] {
                let mut out = [0xff; VARINT_BYTES_MAX];
                let length = put_varint(&mut out, value);
                assert_eq!(out[..length], postcard::to_allocvec(&value).unwrap(), "{value:#x}");
            }
        }
    }

    #[test]
    fn a_list_longer_than_a_chunk_is_postcards() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK + 3] {
            for values in [vec![0; length], vec![u64::MAX; length], (0..length as u64).map(|n| n * n * n).collect()] {
                let mut out = Vec::new();
                append_list(&mut out, &values);
                assert_eq!(out, postcard::to_allocvec(&values).unwrap());
            }
        }
    }
}
