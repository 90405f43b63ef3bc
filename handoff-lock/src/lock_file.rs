//! What the lock file holds, byte by byte. Pure: no I/O, no clock.
//!
//! ```text
//! offset    0   512                 4096
//!           ┌───┬───────────────────┬──────┐
//!           │ 0 │ 1                 │ mark │      0, 1: the two slots of the lease, written in turn, not synced
//!           └───┴───────────────────┴──────┘      mark: the epoch high-water mark, in a sector of its own, synced
//! ```
//!
//! Invariants: lease `n` is in slot `n % 2`, so a write never touches the newest lease; no lease write touches the sector of
//! the mark, also on a disk with sectors of 4096 bytes, so a power failure during one never tears the other.

use crate::lease::{CRC, Numbered, SLOT_BYTES, Slot};

/// All that is ever read of a lock file.
pub(crate) const FILE_BYTES: usize = MARK_OFFSET as usize + MARK_BYTES;
pub(crate) const MARK_OFFSET: u64 = 4096;
pub(crate) const MARK_BYTES: usize = 24;
const SLOT_STRIDE: usize = 512;

/// What was found in a lock file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    /// The newest whole lease.
    pub(crate) newest: Option<Numbered>,
    pub(crate) mark: Found,
}

/// What was found in the place of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// An empty file, or none.
    Nothing,
    /// No epoch above this one was ever used.
    Mark(u64),
    /// Something that is no mark.
    Unreadable,
}

/// A file of a newer build, which this one must not touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewerFormat(pub(crate) u32);

/// Where the lease of this sequence number is written.
pub(crate) fn slot_offset(sequence: u64) -> u64 {
    (sequence % 2) * SLOT_STRIDE as u64
}

/// Reads a lock file. `bytes` may be shorter than [`FILE_BYTES`] if the file is.
pub(crate) fn parse(bytes: &[u8]) -> Result<Contents, NewerFormat> {
    let mut newest: Option<Numbered> = None;
    for parity in 0..2 {
        let at = parity as usize * SLOT_STRIDE;
        match Slot::decode(bytes.get(at..).unwrap_or_default()) {
            Slot::Valid(slot) if slot.sequence % 2 != parity => {}
            Slot::Valid(slot) if newest.as_ref().is_some_and(|newest| newest.sequence > slot.sequence) => {}
            Slot::Valid(slot) => newest = Some(slot),
            Slot::Unreadable => {}
            Slot::Newer(format) => return Err(NewerFormat(format)),
        }
    }
    let mark = match bytes {
        [] => Found::Nothing,
        _ => parse_mark(bytes.get(MARK_OFFSET as usize..).unwrap_or_default()).into_unreadable_if_nothing(),
    };
    Ok(Contents { newest, mark })
}

const MARK_MAGIC: &[u8; 8] = b"handmark";

/// The mark's bytes, the same in the lock file and in the second copy.
pub(crate) fn encode_mark(mark: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(MARK_MAGIC);
    bytes[8..16].copy_from_slice(&mark.to_le_bytes());
    let checksum = CRC.checksum(&bytes[..16]);
    bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Reads a mark from the start of `bytes`.
pub(crate) fn parse_mark(bytes: &[u8]) -> Found {
    if bytes.is_empty() {
        return Found::Nothing;
    }
    let Some(bytes) = bytes.first_chunk::<MARK_BYTES>() else { return Found::Unreadable };
    let mut mark = [0; 8];
    mark.copy_from_slice(&bytes[8..16]);
    let mark = u64::from_le_bytes(mark);
    if encode_mark(mark) == *bytes { Found::Mark(mark) } else { Found::Unreadable }
}

impl Found {
    /// In a lock file that holds anything, a missing mark is a lost one.
    fn into_unreadable_if_nothing(self) -> Self {
        match self {
            Self::Nothing => Self::Unreadable,
            found => found,
        }
    }
}

/// All bytes of a lock file with this newest lease and this mark.
pub(crate) fn image(newest: &Numbered, mark: u64) -> [u8; FILE_BYTES] {
    let mut bytes = [0; FILE_BYTES];
    let at = slot_offset(newest.sequence) as usize;
    bytes[at..at + SLOT_BYTES].copy_from_slice(&newest.encode());
    bytes[MARK_OFFSET as usize..].copy_from_slice(&encode_mark(mark));
    bytes
}
