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

use std::path::PathBuf;

use crate::error::LockError;
use crate::lease::{CRC, Newer, Numbered, SLOT_BYTES, Slot};

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

/// What a newer build wrote, and this one does not understand and must not touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewerFormat(pub(crate) u16);

impl NewerFormat {
    /// Of the file at this path.
    pub(crate) fn at(self, path: impl Into<PathBuf>) -> LockError {
        LockError::NewerFormat { path: path.into(), format: self.0 }
    }
}

/// Where the lease of this sequence number is written.
pub(crate) fn slot_offset(sequence: u64) -> u64 {
    (sequence % 2) * SLOT_STRIDE as u64
}

/// Reads a lock file. `bytes` may be shorter than [`FILE_BYTES`] if the file is.
///
/// # Errors
/// The newest lease, or the mark, is a newer build's. An older lease that is one does not matter any more.
pub(crate) fn parse(bytes: &[u8]) -> Result<Contents, NewerFormat> {
    let mut newest: Option<Numbered> = None;
    let mut newer: Option<Newer> = None;
    for parity in 0..2 {
        let at = parity as usize * SLOT_STRIDE;
        match Slot::decode(bytes.get(at..).unwrap_or_default()) {
            Slot::Valid(slot) if slot.sequence % 2 != parity => {}
            Slot::Valid(slot) if newest.as_ref().is_some_and(|newest| newest.sequence > slot.sequence) => {}
            Slot::Valid(slot) => newest = Some(slot),
            Slot::Unreadable => {}
            Slot::Newer(slot) if newer.is_some_and(|newer| newer.sequence > slot.sequence) => {}
            Slot::Newer(slot) => newer = Some(slot),
        }
    }
    let is_passed = |newer: &Newer| newest.as_ref().is_some_and(|newest| newest.sequence > newer.sequence);
    if let Some(newer) = newer.filter(|newer| !is_passed(newer)) {
        return Err(NewerFormat(newer.format));
    }
    let mark = match bytes {
        [] => Found::Nothing,
        _ => parse_mark(bytes.get(MARK_OFFSET as usize..).unwrap_or_default())?.into_unreadable_if_nothing(),
    };
    Ok(Contents { newest, mark })
}

const MARK_MAGIC: &[u8; 8] = b"handmark";

/// As of a lease: where magic, mark, format, `readable_by` and checksum are is the same in all formats.
const MARK_FORMAT: u16 = 1;
const MARK_READABLE_BY: u16 = 1;
const MARK_CHECKED_BYTES: usize = MARK_BYTES - 4;

/// The mark's bytes, the same in the lock file and in the second copy.
pub(crate) fn encode_mark(mark: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(MARK_MAGIC);
    bytes[8..16].copy_from_slice(&mark.to_le_bytes());
    bytes[16..18].copy_from_slice(&MARK_FORMAT.to_le_bytes());
    bytes[18..20].copy_from_slice(&MARK_READABLE_BY.to_le_bytes());
    let checksum = CRC.checksum(&bytes[..MARK_CHECKED_BYTES]);
    bytes[MARK_CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Reads a mark from the start of `bytes`.
///
/// # Errors
/// It is whole, and a newer build's.
pub(crate) fn parse_mark(bytes: &[u8]) -> Result<Found, NewerFormat> {
    if bytes.is_empty() {
        return Ok(Found::Nothing);
    }
    let Some(bytes) = bytes.first_chunk::<MARK_BYTES>() else { return Ok(Found::Unreadable) };
    let (checked, checksum) = bytes.split_at(MARK_CHECKED_BYTES);
    let [m0, m1, m2, m3, m4, m5, m6, m7, f0, f1, r0, r1] = checked[8..] else { return Ok(Found::Unreadable) };
    if checked[..8] != *MARK_MAGIC || checksum != CRC.checksum(checked).to_le_bytes() {
        return Ok(Found::Unreadable);
    }
    if u16::from_le_bytes([r0, r1]) > MARK_FORMAT {
        return Err(NewerFormat(u16::from_le_bytes([f0, f1])));
    }
    Ok(Found::Mark(u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7])))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lease::tests::{any_lease, lease, of_the_future};

    fn numbered(sequence: u64) -> Numbered {
        Numbered { sequence, file: 7, released: false, lease: lease(sequence) }
    }

    /// A lock file after leases 1 to `last`.
    fn written(last: u64, mark: u64) -> [u8; FILE_BYTES] {
        let mut bytes = image(&numbered(last), mark);
        if last > 1 {
            let at = slot_offset(last - 1) as usize;
            bytes[at..at + SLOT_BYTES].copy_from_slice(&numbered(last - 1).encode());
        }
        bytes
    }

    /// The file while the next lease is written and only the bytes for which `arrived` says so have arrived.
    fn torn(before: &[u8; FILE_BYTES], next: &Numbered, arrived: impl Fn(usize) -> bool) -> [u8; FILE_BYTES] {
        let mut bytes = *before;
        let at = slot_offset(next.sequence) as usize;
        for (index, byte) in next.encode().into_iter().enumerate().filter(|(index, _)| arrived(*index)) {
            bytes[at + index] = byte;
        }
        bytes
    }

    fn assert_old_or_new(bytes: &[u8; FILE_BYTES], last: u64, what: &str) {
        let contents = parse(bytes).unwrap();
        let newest = contents.newest.unwrap_or_else(|| panic!("no lease: {what}"));
        assert!(newest == numbered(last) || newest == numbered(last + 1), "{what}: {newest:?}");
        assert_eq!(contents.mark, Found::Mark(1024), "{what}");
    }

    #[test]
    fn of_every_subset_of_a_torn_write_the_old_or_the_new_lease_is_read() {
        const PIECES: usize = 12;
        let piece = |index: usize| index * PIECES / SLOT_BYTES;
        let before = written(4, 1024);
        for subset in 0..1_u32 << PIECES {
            let bytes = torn(&before, &numbered(5), |index| subset & (1 << piece(index)) != 0);
            assert_old_or_new(&bytes, 4, &format!("pieces {subset:#b}"));
        }
    }

    #[test]
    fn of_every_range_of_a_torn_write_the_old_or_the_new_lease_is_read() {
        let before = written(3, 1024);
        for start in 0..SLOT_BYTES {
            for end in start..=SLOT_BYTES {
                let bytes = torn(&before, &numbered(4), |index| (start..end).contains(&index));
                assert_old_or_new(&bytes, 3, &format!("bytes {start}..{end}"));
            }
        }
    }

    proptest! {
        #[test]
        fn of_any_bytes_of_a_torn_write_the_old_or_the_new_lease_is_read(
            old in any_lease(), new in any_lease(), sequence in 1..u64::MAX, arrived in any::<[[bool; 32]; 5]>(),
        ) {
            let (old, new) = (Numbered { sequence, file: 7, released: false, lease: old }, Numbered { sequence: sequence + 1, file: 7, released: false, lease: new });
            let bytes = torn(&image(&old, 7), &new, |index| arrived[index / 32][index % 32]);
            let newest = parse(&bytes).unwrap().newest.unwrap();
            prop_assert!(newest == old || newest == new);
        }

        #[test]
        fn any_file_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..FILE_BYTES)) {
            let contents = parse(&bytes).unwrap();
            prop_assert_eq!(contents.newest, None);
            prop_assert_eq!(contents.mark, if bytes.is_empty() { Found::Nothing } else { Found::Unreadable });
        }

        #[test]
        fn a_mark_is_read_whole_or_not_at_all(old: u64, new: u64, arrived in any::<[bool; MARK_BYTES]>()) {
            let mut bytes = encode_mark(old);
            for (index, byte) in encode_mark(new).into_iter().enumerate().filter(|(index, _)| arrived[*index]) {
                bytes[index] = byte;
            }
            let found = parse_mark(&bytes).unwrap();
            prop_assert!([Found::Mark(old), Found::Mark(new), Found::Unreadable].contains(&found));
        }
    }

    #[test]
    fn the_slots_and_the_mark_share_no_sector() {
        for sector_bytes in [512, 4096] {
            let mark = MARK_OFFSET / sector_bytes;
            assert!(slot_offset(0) / sector_bytes != mark && slot_offset(1) / sector_bytes != mark);
        }
        assert_ne!(slot_offset(0) / 512, slot_offset(1) / 512);
    }

    fn mark_of_the_future(mark: u64, format: u16, readable_by: u16) -> [u8; MARK_BYTES] {
        let mut bytes = encode_mark(mark);
        bytes[16..18].copy_from_slice(&format.to_le_bytes());
        bytes[18..20].copy_from_slice(&readable_by.to_le_bytes());
        let checksum = CRC.checksum(&bytes[..MARK_CHECKED_BYTES]);
        bytes[MARK_CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_mark_from_the_future_is_read_if_it_says_that_this_build_can_and_is_never_a_lost_one() {
        assert_eq!(parse_mark(&mark_of_the_future(9, 7, 1)), Ok(Found::Mark(9)));
        assert_eq!(parse_mark(&mark_of_the_future(9, 7, 2)), Err(NewerFormat(7)));
        let mut bytes = written(3, 1024);
        bytes[MARK_OFFSET as usize..].copy_from_slice(&mark_of_the_future(9, 7, 2));
        assert_eq!(parse(&bytes), Err(NewerFormat(7)));
    }

    #[test]
    fn a_lease_from_the_future_counts_as_long_as_it_is_the_newest() {
        let newer = |sequence| of_the_future(&numbered(sequence), 7, 2);
        let with = |last: u64, sequence: u64| {
            let mut bytes = written(last, 1024);
            let at = slot_offset(sequence) as usize;
            bytes[at..at + SLOT_BYTES].copy_from_slice(&newer(sequence));
            bytes
        };
        assert_eq!(parse(&with(4, 5)), Err(NewerFormat(7)));
        assert_eq!(parse(&with(4, 3)).unwrap().newest, Some(numbered(4)));
        let mut both = with(4, 5);
        both[..SLOT_BYTES].copy_from_slice(&newer(4));
        assert_eq!(parse(&both), Err(NewerFormat(7)));
    }

    #[test]
    fn a_lease_in_the_wrong_slot_is_not_ours() {
        let mut bytes = [0; FILE_BYTES];
        bytes[..SLOT_BYTES].copy_from_slice(&numbered(1).encode());
        assert_eq!(parse(&bytes).unwrap().newest, None);
    }

    #[test]
    fn the_newer_slot_counts() {
        for last in 2..6 {
            assert_eq!(parse(&written(last, 9)).unwrap().newest, Some(numbered(last)));
        }
    }
}
