//! The file's format, and the pure choice of the slot that is read and of the slot that is written.
//!
//! ```text
//! file   slot 0 | slot 1 | slot 2             each SLOT_BYTES long, so each on disk blocks of its own
//! slot   magic (8) | version u32 | length u32 | sequence u64 | record (length bytes) | CRC-32C u32 of all before it
//! ```
//!
//! All integers are little-endian. Every later version keeps this frame, so that it is recognised for what it is; the version
//! names the record's encoding. An all-zero file, or an empty one, was never written to.
//!
//! Invariants:
//!
//! * The slot with the highest sequence among those whose checksum is right is the newest record, also when this build does
//!   not know what it says: an older one would be a wrong answer. No two have the same sequence.
//! * A write goes neither to the newest record **nor to the last one that was synced**. So a torn write leaves the newest
//!   whole, and after a power loss the file gives the last synced record or one written after it: two slots could not keep
//!   both promises once two records in a row are not synced.
//!
//! Nothing here does I/O.

use std::path::Path;

use crc::{CRC_32_ISCSI, Crc};

use crate::error::Result;
use crate::record::{self, RECORD_BYTES_MAX, StateJournal};

/// How many slots a file has.
pub(crate) const SLOTS: usize = 3;

/// The last of them. In a blank file it stands for the newest, so that the first write goes to the first slot.
pub(crate) const LAST: Slot = SLOTS - 1;

/// The room of one slot in bytes: a multiple of every common sector and page size up to 8 KiB.
pub(crate) const SLOT_BYTES: usize = 8192;

/// The whole file in bytes.
pub(crate) const FILE_BYTES: usize = SLOTS * SLOT_BYTES;

/// The version of the record's encoding that this build writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"hndoffJ\n";
/// A record a microsecond reaches half of the range in 292,000 years: more is nobody's count, and could not be counted on.
const SEQUENCE_END: u64 = u64::MAX / 2;
const HEADER_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 4;
static CRC_32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

const _: () = assert!(HEADER_BYTES + RECORD_BYTES_MAX + CHECKSUM_BYTES <= SLOT_BYTES);

/// A slot by its place in the file, below [`SLOTS`].
pub(crate) type Slot = usize;

/// The newest record of a file, or that there can't be one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing was ever written.
    Blank,
    /// The newest record, `None` if it says that no handover is under way.
    Newest { slot: Slot, sequence: u64, state: Option<StateJournal> },
    /// The newest record is in a later version of the format.
    NewerVersion(u32),
    /// The newest record is whole, and nothing that this build knows.
    Unknown,
    /// There are bytes, and no record.
    Unreadable,
}

/// Where a slot begins in the file.
pub(crate) const fn offset(slot: Slot) -> u64 {
    (slot * SLOT_BYTES) as u64
}

/// The slot that the next write goes to.
pub(crate) fn slot_to_write(newest: Slot, synced: Slot) -> Slot {
    (1..SLOTS).map(|step| (newest + step) % SLOTS).find(|&slot| slot != synced).unwrap_or(newest)
}

/// Fills the front of `out` with a slot and gives the number of bytes to write. What lies behind them in the file is stale
/// and never read.
pub(crate) fn encode(
    path: &Path,
    sequence: u64,
    state: Option<&StateJournal>,
    out: &mut [u8; SLOT_BYTES],
) -> Result<usize> {
    let length = record::encode(path, state, &mut out[HEADER_BYTES..HEADER_BYTES + RECORD_BYTES_MAX])?;
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&(length as u32).to_le_bytes());
    out[16..24].copy_from_slice(&sequence.to_le_bytes());
    let end = HEADER_BYTES + length;
    let checksum = CRC_32C.checksum(&out[..end]);
    out[end..end + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(end + CHECKSUM_BYTES)
}

/// The newest record among the slots of a file. Takes any bytes of any length; bytes behind the last slot only keep a file of
/// zeros from being blank.
pub(crate) fn newest(file: &[u8]) -> Content {
    if file.len() <= FILE_BYTES && file.iter().all(|&byte| byte == 0) {
        return Content::Blank;
    }
    let whole = file.chunks(SLOT_BYTES).take(SLOTS).enumerate().filter_map(|(slot, bytes)| Some((slot, open(bytes)?)));
    match whole.max_by_key(|(_, found)| found.sequence) {
        None => Content::Unreadable,
        Some((_, Opened { record: Record::Later(version), .. })) => Content::NewerVersion(version),
        Some((_, Opened { record: Record::Unknown, .. })) => Content::Unknown,
        Some((slot, Opened { sequence, record: Record::Known(state) })) => Content::Newest { slot, sequence, state },
    }
}

/// A slot whose checksum is right.
struct Opened {
    sequence: u64,
    record: Record,
}

enum Record {
    Known(Option<StateJournal>),
    Later(u32),
    /// Such as one with a phase or a field that was appended later.
    Unknown,
}

/// What a slot holds; `None` if it is torn, damaged, blank or foreign.
fn open(slot: &[u8]) -> Option<Opened> {
    let header: &[u8; HEADER_BYTES] = slot.first_chunk()?;
    let [version, length] =
        [8, 12].map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    let sequence = u64::from_le_bytes(*header.last_chunk()?);
    let end = HEADER_BYTES.checked_add(usize::try_from(length).ok()?)?;
    let checksum: &[u8; CHECKSUM_BYTES] = slot.get(end..)?.first_chunk()?;
    if !header.starts_with(&MAGIC) || CRC_32C.checksum(&slot[..end]) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let record = match version {
        later if later > VERSION => Record::Later(later),
        VERSION if sequence < SEQUENCE_END => {
            record::decode(&slot[HEADER_BYTES..end]).map_or(Record::Unknown, Record::Known)
        }
        _ => Record::Unknown,
    };
    Some(Opened { sequence, record })
}
