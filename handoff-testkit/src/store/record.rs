//! The log's bytes: one header, then records. Pure: no file, no clock.
//!
//! ```text
//! log     = header record*
//! header  = "handoffstore" format:u32
//! record  = body_bytes:u32 crc:u32 body          crc = CRC-32C of body_bytes and body
//! body    = kind:u8 epoch:u64 sequence:u64 durable:u64 at_ms:u64 payload
//! payload = increment: key_bytes:u16 key token | add: item:u32 collection | engage: a_bytes:u16 a b
//!         | start: chain:u32 | marker: checkpoint:u64 | snapshot: a batch | footer: snapshot_at:u64 chain:u32 checkpoint:u64
//! ```
//!
//! Integers are little-endian. Invariants:
//!
//! - Only writes (increment, add, engage) take a sequence, each the one after the last; every other record carries that of
//!   the last write.
//! - Each segment of the log but the very first begins with a start, which says what the segment follows.
//! - A marker is written after the engine has committed everything up to its `checkpoint`.
//! - `epoch` is the data-dir lock's, and `at_ms` (Unix time) is the event's; neither goes back along the log.
//! - `durable` is a sequence that was on disk when the record was written. A record behind a hole whose `durable` lies in
//!   the hole proves that the hole was acknowledged: damage, and no torn tail.
//! - A footer is the last record of a sealed log, has a fixed size, and everything before it but the snapshot was on disk
//!   when it was written.
//! - `chain` is a checksum over the checksums of all writes so far: two logs with the same chain hold the same writes.

use crc::{CRC_32_ISCSI, Crc, Table};

/// CRC-32C, Castagnoli's polynomial.
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

const MAGIC: &[u8; 12] = b"handoffstore";
/// The format that this build writes and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 16;
const PREFIX_BYTES: usize = 8;
const STAMP_BYTES: usize = 1 + 4 * 8;
/// The whole of a footer's record.
pub(crate) const FOOTER_BYTES: usize = PREFIX_BYTES + STAMP_BYTES + 20;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 256;
/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 128;
/// The whole of the longest write's record: an engagement of the two longest keys.
const WRITE_BYTES_MAX: usize = PREFIX_BYTES + STAMP_BYTES + 2 + 2 * KEY_BYTES_MAX;

const KIND_INCREMENT: u8 = 1;
const KIND_SNAPSHOT: u8 = 2;
const KIND_FOOTER: u8 = 3;
const KIND_ADD: u8 = 4;
const KIND_ENGAGE: u8 = 5;
const KIND_START: u8 = 6;
const KIND_MARKER: u8 = 7;

/// What every record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) durable: u64,
    pub(crate) at_ms: u64,
}

/// One change of the store's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write<'a> {
    /// One event of `key`; `token` names this write.
    Increment { key: &'a str, token: &'a str },
    /// `item` is in `collection` from now on.
    Add { collection: &'a str, item: u32 },
    /// Somebody engaged with `a` and `b`.
    Engage { a: &'a str, b: &'a str },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Payload {
    Increment { key: String, token: String },
    Add { collection: String, item: u32 },
    Engage { a: String, b: String },
    Start { chain: u32 },
    Marker { checkpoint: u64 },
    Snapshot(Vec<u8>),
    Footer(Footer),
}

impl Payload {
    /// The change that this record makes, if it makes one.
    pub(crate) fn write(&self) -> Option<Write<'_>> {
        match self {
            Self::Increment { key, token } => Some(Write::Increment { key, token }),
            Self::Add { collection, item } => Some(Write::Add { collection, item: *item }),
            Self::Engage { a, b } => Some(Write::Engage { a, b }),
            Self::Start { .. } | Self::Marker { .. } | Self::Snapshot(_) | Self::Footer(_) => None,
        }
    }
}

/// Where the batch is that belongs to the end of a sealed log, and which checkpoint it lies over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) snapshot_at: u64,
    pub(crate) chain: u32,
    pub(crate) checkpoint: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) stamp: Stamp,
    pub(crate) payload: Payload,
    pub(crate) crc: u32,
}

/// What the first bytes of a log say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// Not written to its end; the log holds nothing.
    Torn,
    /// Another program's file.
    Foreign,
    /// This format.
    Format(u32),
}

pub(crate) fn header() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..MAGIC.len()].copy_from_slice(MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(&FORMAT.to_le_bytes());
    bytes
}

/// Reads the header out of a log's first bytes, at most [`HEADER_BYTES`] of them.
pub(crate) fn read_header(bytes: &[u8]) -> Header {
    match bytes.split_first_chunk::<12>() {
        Some((magic, rest)) if magic == MAGIC => {
            rest.try_into().map_or(Header::Torn, |format| Header::Format(u32::from_le_bytes(format)))
        }
        Some((magic, _)) if magic.iter().any(|byte| *byte != 0) => Header::Foreign,
        None if !MAGIC.starts_with(bytes) => Header::Foreign,
        _ => Header::Torn,
    }
}

/// Appends a write's record to `out` and returns its checksum. Names have the caller's word for their size.
pub(crate) fn encode_write(out: &mut Vec<u8>, stamp: Stamp, write: Write<'_>) -> u32 {
    let kind = match write {
        Write::Increment { .. } => KIND_INCREMENT,
        Write::Add { .. } => KIND_ADD,
        Write::Engage { .. } => KIND_ENGAGE,
    };
    encode(out, kind, stamp, |out| match write {
        Write::Increment { key, token } => encode_pair(out, key, token),
        Write::Engage { a, b } => encode_pair(out, a, b),
        Write::Add { collection, item } => {
            out.extend_from_slice(&item.to_le_bytes());
            out.extend_from_slice(collection.as_bytes());
        }
    })
}

fn encode_pair(out: &mut Vec<u8>, first: &str, second: &str) {
    out.extend_from_slice(&(first.len() as u16).to_le_bytes());
    out.extend_from_slice(first.as_bytes());
    out.extend_from_slice(second.as_bytes());
}

/// Appends the record with which a segment begins.
pub(crate) fn encode_start(out: &mut Vec<u8>, stamp: Stamp, chain: u32) {
    encode(out, KIND_START, stamp, |out| out.extend_from_slice(&chain.to_le_bytes()));
}

/// Appends a checkpoint's marker to `out`.
pub(crate) fn encode_marker(out: &mut Vec<u8>, stamp: Stamp, checkpoint: u64) {
    encode(out, KIND_MARKER, stamp, |out| out.extend_from_slice(&checkpoint.to_le_bytes()));
}

/// Appends a snapshot's record to `out`; `fill` appends the batch.
pub(crate) fn encode_snapshot(out: &mut Vec<u8>, stamp: Stamp, fill: impl FnOnce(&mut Vec<u8>)) {
    encode(out, KIND_SNAPSHOT, stamp, fill);
}

/// Appends a footer's record to `out`.
pub(crate) fn encode_footer(out: &mut Vec<u8>, stamp: Stamp, footer: Footer) {
    encode(out, KIND_FOOTER, stamp, |out| {
        out.extend_from_slice(&footer.snapshot_at.to_le_bytes());
        out.extend_from_slice(&footer.chain.to_le_bytes());
        out.extend_from_slice(&footer.checkpoint.to_le_bytes());
    });
}

fn encode(out: &mut Vec<u8>, kind: u8, stamp: Stamp, payload: impl FnOnce(&mut Vec<u8>)) -> u32 {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    out.push(kind);
    for field in [stamp.epoch, stamp.sequence, stamp.durable, stamp.at_ms] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    payload(out);
    let body_bytes = ((out.len() - start - PREFIX_BYTES) as u32).to_le_bytes();
    let crc = checksum(body_bytes, &out[start + PREFIX_BYTES..]);
    out[start..start + 4].copy_from_slice(&body_bytes);
    out[start + 4..start + PREFIX_BYTES].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// The record's size as the first eight bytes claim it, if a record can have that size.
pub(crate) fn record_bytes(prefix: [u8; PREFIX_BYTES]) -> Option<usize> {
    let body_bytes = u32_at(&prefix, 0)? as usize;
    (body_bytes >= STAMP_BYTES).then_some(PREFIX_BYTES + body_bytes)
}

/// Reads the record that fills `bytes` exactly; `None` when they are anything else.
pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
    let (prefix, body) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
    let crc = u32_at(prefix, 4)?;
    let claimed: [u8; 4] = prefix[..4].try_into().ok()?;
    if record_bytes(*prefix)? != bytes.len() || checksum(claimed, body) != crc {
        return None;
    }
    let (stamp_bytes, payload) = body.split_at_checked(STAMP_BYTES)?;
    let field = |index: usize| u64_at(stamp_bytes, 1 + 8 * index);
    let stamp = Stamp { epoch: field(0)?, sequence: field(1)?, durable: field(2)?, at_ms: field(3)? };
    let payload = match stamp_bytes[0] {
        KIND_INCREMENT => decode_pair(payload).map(|(key, token)| Payload::Increment { key, token })?,
        KIND_ENGAGE => decode_pair(payload).map(|(a, b)| Payload::Engage { a, b })?,
        KIND_ADD => Payload::Add { item: u32_at(payload, 0)?, collection: text(payload.get(4..)?)? },
        KIND_START if payload.len() == 4 => Payload::Start { chain: u32_at(payload, 0)? },
        KIND_MARKER if payload.len() == 8 => Payload::Marker { checkpoint: u64_at(payload, 0)? },
        KIND_SNAPSHOT => Payload::Snapshot(payload.to_vec()),
        KIND_FOOTER if payload.len() == 20 => Payload::Footer(Footer {
            snapshot_at: u64_at(payload, 0)?,
            chain: u32_at(payload, 8)?,
            checkpoint: u64_at(payload, 12)?,
        }),
        _ => return None,
    };
    Some(Record { stamp, payload, crc })
}

fn decode_pair(payload: &[u8]) -> Option<(String, String)> {
    let (first_bytes, rest) = payload.split_first_chunk::<2>()?;
    let (first, second) = rest.split_at_checked(u16::from_le_bytes(*first_bytes).into())?;
    Some((text(first)?, text(second)?))
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

/// The first whole write in `bytes`, at whatever offset it lies: what stands behind a hole. Returns its offset and size.
pub(crate) fn find_write(bytes: &[u8]) -> Option<(usize, usize, Record)> {
    (0..bytes.len().saturating_sub(PREFIX_BYTES)).find_map(|offset| {
        let rest = &bytes[offset..];
        let size = record_bytes(*rest.first_chunk()?)?;
        let kind = *rest.get(PREFIX_BYTES)?;
        if size > WRITE_BYTES_MAX || !matches!(kind, KIND_INCREMENT | KIND_ADD | KIND_ENGAGE) {
            return None;
        }
        Some((offset, size, decode(rest.get(..size)?)?))
    })
}

/// The chain after a write with this checksum.
pub(crate) fn chain(before: u32, crc: u32) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&before.to_le_bytes());
    digest.update(&crc.to_le_bytes());
    digest.finalize()
}

fn checksum(body_bytes: [u8; 4], body: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&body_bytes);
    digest.update(body);
    digest.finalize()
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAMP: Stamp = Stamp { epoch: 3, sequence: 9, durable: 7, at_ms: 1_700_000_000_000 };

    fn increment(key: &str, token: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_write(&mut bytes, STAMP, Write::Increment { key, token });
        bytes
    }

    #[test]
    fn records_come_back() {
        let payload = Payload::Increment { key: "likes".into(), token: "c1.2".into() };
        let record = decode(&increment("likes", "c1.2")).expect("a record");
        assert_eq!((record.stamp, record.payload), (STAMP, payload));

        let writes = [Write::Add { collection: "pins", item: 7 }, Write::Engage { a: "x", b: "yy" }];
        for write in writes {
            let mut bytes = Vec::new();
            encode_write(&mut bytes, STAMP, write);
            assert_eq!(decode(&bytes).expect("a record").payload.write(), Some(write));
            assert!(find_write(&bytes).is_some());
        }
        let mut bytes = Vec::new();
        encode_start(&mut bytes, STAMP, 5);
        assert_eq!(decode(&bytes).expect("a record").payload, Payload::Start { chain: 5 });
        bytes.clear();
        encode_marker(&mut bytes, STAMP, 9);
        assert_eq!(decode(&bytes).expect("a record").payload, Payload::Marker { checkpoint: 9 });

        let mut bytes = Vec::new();
        let footer = Footer { snapshot_at: 77, chain: 5, checkpoint: 8 };
        encode_footer(&mut bytes, STAMP, footer);
        assert_eq!(bytes.len(), FOOTER_BYTES);
        assert_eq!(decode(&bytes).expect("a record").payload, Payload::Footer(footer));
    }

    #[test]
    fn the_longest_write_is_found() {
        let mut bytes = Vec::new();
        let longest = "k".repeat(KEY_BYTES_MAX);
        encode_write(&mut bytes, STAMP, Write::Engage { a: &longest, b: &longest });
        assert_eq!(bytes.len(), WRITE_BYTES_MAX);
        assert!(find_write(&bytes).is_some());
    }

    #[test]
    fn a_header_tells_its_format() {
        assert_eq!(read_header(&header()), Header::Format(FORMAT));
        assert_eq!(read_header(b""), Header::Torn);
        assert_eq!(read_header(&header()[..13]), Header::Torn);
        assert_eq!(read_header(&header()[..5]), Header::Torn);
        assert_eq!(read_header(&[0; HEADER_BYTES]), Header::Torn, "a file grown by a crash is zeros");
        assert_eq!(read_header(b"#!/bin/sh\nexit 0"), Header::Foreign);
        assert_eq!(read_header(b"#!"), Header::Foreign);
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(decode(&[0; 64]), None);
        assert_eq!(find_write(&[0; 4096]), None);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_seen(bit in 0_usize..8 * 60) {
            let mut bytes = increment("some-key", "client-1.00001");
            let byte = bit / 8;
            prop_assume!(byte < bytes.len());
            bytes[byte] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = find_write(&bytes);
            let _ = read_header(&bytes);
        }

        #[test]
        fn what_stands_behind_a_hole_is_found(hole in proptest::collection::vec(any::<u8>(), 0..100)) {
            let record = increment("k", "t");
            let mut bytes = hole.clone();
            bytes.extend_from_slice(&record);
            let (offset, size, _) = find_write(&bytes).expect("it is there");
            prop_assert_eq!((offset, size), (hole.len(), record.len()));
        }
    }
}
