//! The lease: who owns the data dir, under which epoch, and how far that owner has come.
//!
//! This file knows what a lease means and how it is laid out in one slot of the lock file. It does no I/O.
//!
//! Invariants: a slot is decoded only if its checksum fits, so a torn write never yields a mixture of two leases; a slot that is
//! whole and can't be read is an error, never "no lease".
//!
//! Formats can change. In all of them the magic, the format, `readable_by`, the sequence and the checksum are where they are
//! now, and so is what an older build reads of a slot that it may read. A newer build says in `readable_by` which is the oldest
//! format whose builds understand a slot. It writes what an older build must be able to take over from (Opening, Sealed) so
//! that this one can: else a newer build that dies half-way leaves data that nobody can open.

use std::io;
use std::sync::OnceLock;

use crate::sys;

/// The most bytes of a build id that a lease keeps.
pub const BUILD_ID_BYTES_MAX: usize = 64;

/// A process, by more than a pid: neither a reused pid nor a reboot makes another process look like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its pid, as its own pid namespace counts.
    pub pid: u32,
    /// When it started: on Linux in clock ticks after boot (field 22 of `/proc/PID/stat`, proc_pid_stat(5)), elsewhere in
    /// microseconds since 1970; 0 where the system does not tell.
    pub start_time: u64,
    /// The machine's boot (`/proc/sys/kernel/random/boot_id`, random(4)); zeros where the system does not tell.
    pub boot_id: [u8; 16],
}

impl Owner {
    /// The calling process. What the system does not tell is 0.
    pub fn current() -> Self {
        let start_time = sys::own_start_time().unwrap_or_default().unwrap_or(0);
        Self { pid: std::process::id(), start_time, boot_id: this_boot() }
    }

    /// Asks the system who the calling process is, so that it need not be asked again.
    ///
    /// # Errors
    /// The system would tell, but not now. A lease of nobody in particular would be nobody's to anyone who compares.
    pub(crate) fn ask() -> io::Result<()> {
        sys::own_start_time()?;
        ask_for_boot().map(drop)
    }
}

/// How far the owner of a lease has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// It holds the lock and opens its data; it acknowledges nothing yet (promise 5).
    Opening,
    /// It serves.
    Active,
    /// It sealed its data and released the lock (promise 2).
    Sealed,
}

/// One reading of the lease.
///
/// Only the epoch outlives a reboot. All else describes a process of one boot: ask [`Lease::of_this_boot`] first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The fencing token: one higher at every acquisition, never lower again.
    pub epoch: u64,
    /// Who wrote it.
    pub owner: Owner,
    /// How far that owner has come.
    pub state: LeaseState,
    /// The handover that it belongs to, if any.
    pub handoff_id: Option<[u8; 16]>,
    /// The owner's build, at most [`BUILD_ID_BYTES_MAX`] bytes of it; empty until the owner became active.
    pub build_id: Vec<u8>,
    /// When the owner took the lock, in milliseconds since 1970 by the system clock. For people.
    pub since_unix_ms: u64,
}

impl Lease {
    /// Whether the lease was written since the machine booted. The owner of a lease of an earlier boot is nobody.
    ///
    /// Where the system does not name its boots, every lease counts as one of this boot: an owner too many is asked about,
    /// but none is overlooked.
    pub fn of_this_boot(&self) -> bool {
        let this_boot = this_boot();
        this_boot == UNKNOWN_BOOT || self.owner.boot_id == this_boot
    }

    /// Whether the lease is certain to be the last one written: a lease of an earlier boot may have been lost by a power
    /// failure, as leases are not synced.
    pub(crate) fn is_certainly_last(&self) -> bool {
        self.owner.boot_id != UNKNOWN_BOOT && self.owner.boot_id == this_boot()
    }
}

/// Whether the system tells one boot from another, so that a lease can be certain to be the last.
pub(crate) fn are_boots_known() -> bool {
    this_boot() != UNKNOWN_BOOT
}

const UNKNOWN_BOOT: [u8; 16] = [0; 16];

fn this_boot() -> [u8; 16] {
    ask_for_boot().unwrap_or(UNKNOWN_BOOT)
}

/// The boot id does not change while the process lives, so one answer is enough.
fn ask_for_boot() -> io::Result<[u8; 16]> {
    static BOOT_ID: OnceLock<[u8; 16]> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(*known);
    }
    let boot_id = sys::boot_id()?.unwrap_or(UNKNOWN_BOOT);
    Ok(*BOOT_ID.get_or_init(|| boot_id))
}

/// Bytes of one slot. Less than a sector, so that the two slots never share one.
pub(crate) const SLOT_BYTES: usize = 160;

const MAGIC: &[u8; 8] = b"handlock";
const FORMAT: u16 = 1;
/// The oldest format whose builds understand what this one writes.
const READABLE_BY: u16 = 1;
const CHECKED_BYTES: usize = SLOT_BYTES - 4;
const FILE_AT: usize = CHECKED_BYTES - 8;

/// CRC-32C.
pub(crate) const CRC: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// A lease and its place in the line of writes: the higher sequence is the newer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub(crate) sequence: u64,
    /// The inode number of the lock file that it was written into: in a copy that was put back it is not the copy's.
    pub(crate) file: u64,
    /// Whether its owner let go of the lock and said so. For those who can't ask the kernel who holds it.
    pub(crate) released: bool,
    pub(crate) lease: Lease,
}

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    Valid(Numbered),
    /// Never written, torn, or not ours.
    Unreadable,
    /// Whole, but this build does not understand it.
    Newer(Newer),
}

/// What every build knows of a slot that it does not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Newer {
    pub(crate) format: u16,
    pub(crate) sequence: u64,
}

impl Numbered {
    /// The slot's bytes. A build id that is too long is cut.
    pub(crate) fn encode(&self) -> [u8; SLOT_BYTES] {
        let lease = &self.lease;
        let build_id = &lease.build_id[..lease.build_id.len().min(BUILD_ID_BYTES_MAX)];
        let state = match lease.state {
            LeaseState::Opening => 1,
            LeaseState::Active => 2,
            LeaseState::Sealed => 3,
        };
        let mut bytes = [0; SLOT_BYTES];
        let mut writer = Writer { bytes: &mut bytes, at: 0 };
        writer.put(MAGIC);
        writer.put(&FORMAT.to_le_bytes());
        writer.put(&READABLE_BY.to_le_bytes());
        writer.put(&[state, u8::from(lease.handoff_id.is_some()), build_id.len() as u8, u8::from(self.released)]);
        writer.put(&self.sequence.to_le_bytes());
        writer.put(&lease.epoch.to_le_bytes());
        writer.put(&lease.owner.start_time.to_le_bytes());
        writer.put(&lease.since_unix_ms.to_le_bytes());
        writer.put(&lease.owner.pid.to_le_bytes());
        writer.put(&lease.owner.boot_id);
        writer.put(&lease.handoff_id.unwrap_or_default());
        writer.put(build_id);
        writer.at = FILE_AT;
        writer.put(&self.file.to_le_bytes());
        let checksum = CRC.checksum(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

impl Slot {
    /// Reads a slot; anything but a whole slot is [`Slot::Unreadable`].
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        decode(bytes).unwrap_or(Self::Unreadable)
    }
}

fn decode(bytes: &[u8]) -> Option<Slot> {
    let (checked, checksum) = bytes.get(..SLOT_BYTES)?.split_at(CHECKED_BYTES);
    let mut reader = Reader(checked);
    if reader.take::<8>()? != *MAGIC || checksum != CRC.checksum(checked).to_le_bytes() {
        return None;
    }
    let format = u16::from_le_bytes(reader.take()?);
    let readable_by = u16::from_le_bytes(reader.take()?);
    let [state, has_handoff_id, build_id_len, released] = reader.take()?;
    let sequence = reader.u64()?;
    let lease =
        if readable_by > FORMAT { None } else { decode_lease([state, has_handoff_id, build_id_len], &mut reader) };
    let file = Reader(checked.get(FILE_AT..)?).u64()?;
    Some(match lease {
        Some(lease) => Slot::Valid(Numbered { sequence, file, released: released & 1 == 1, lease }),
        None => Slot::Newer(Newer { format, sequence }),
    })
}

fn decode_lease([state, has_handoff_id, build_id_len]: [u8; 3], reader: &mut Reader<'_>) -> Option<Lease> {
    let state = match state {
        1 => LeaseState::Opening,
        2 => LeaseState::Active,
        3 => LeaseState::Sealed,
        _ => return None,
    };
    let epoch = reader.u64()?;
    let start_time = reader.u64()?;
    let since_unix_ms = reader.u64()?;
    let pid = u32::from_le_bytes(reader.take()?);
    let boot_id = reader.take()?;
    let handoff_id = reader.take()?;
    let build_id = reader.take::<BUILD_ID_BYTES_MAX>()?.get(..usize::from(build_id_len))?.to_vec();
    Some(Lease {
        epoch,
        owner: Owner { pid, start_time, boot_id },
        state,
        handoff_id: (has_handoff_id == 1).then_some(handoff_id),
        build_id,
        since_unix_ms,
    })
}

struct Writer<'a> {
    bytes: &'a mut [u8; SLOT_BYTES],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_lease() -> impl Strategy<Value = Lease> {
        let owner = (any::<u32>(), any::<u64>(), any::<[u8; 16]>());
        let owner = owner.prop_map(|(pid, start_time, boot_id)| Owner { pid, start_time, boot_id });
        let state = prop_oneof![Just(LeaseState::Opening), Just(LeaseState::Active), Just(LeaseState::Sealed)];
        let build_id = proptest::collection::vec(any::<u8>(), 0..=BUILD_ID_BYTES_MAX);
        (any::<u64>(), owner, state, any::<Option<[u8; 16]>>(), build_id, any::<u64>()).prop_map(
            |(epoch, owner, state, handoff_id, build_id, since_unix_ms)| Lease {
                epoch,
                owner,
                state,
                handoff_id,
                build_id,
                since_unix_ms,
            },
        )
    }

    pub(crate) fn lease(epoch: u64) -> Lease {
        Lease {
            epoch,
            owner: Owner::current(),
            state: LeaseState::Active,
            handoff_id: Some([3; 16]),
            build_id: b"build".to_vec(),
            since_unix_ms: 1_700_000_000_000,
        }
    }

    proptest! {
        #[test]
        fn a_slot_gives_back_what_was_written(lease in any_lease(), sequence: u64, file: u64, released: bool) {
            let numbered = Numbered { sequence, file, released, lease };
            prop_assert_eq!(Slot::decode(&numbered.encode()), Slot::Valid(numbered));
        }

        #[test]
        fn any_bytes_are_a_slot_or_unreadable(bytes in proptest::collection::vec(any::<u8>(), 0..2 * SLOT_BYTES)) {
            prop_assert_eq!(Slot::decode(&bytes), Slot::Unreadable);
        }
    }

    #[test]
    fn a_damaged_bit_makes_a_slot_unreadable() {
        let bytes = Numbered { sequence: 7, file: 7, released: false, lease: lease(7) }.encode();
        for bit in 0..SLOT_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::decode(&damaged), Slot::Unreadable, "bit {bit}");
        }
    }

    #[test]
    fn a_build_id_that_is_too_long_is_cut() {
        let lease = Lease { build_id: vec![5; 300], ..lease(1) };
        let Slot::Valid(read) = Slot::decode(&Numbered { sequence: 1, file: 7, released: false, lease }.encode())
        else {
            panic!("unreadable")
        };
        assert_eq!(read.lease.build_id, vec![5; BUILD_ID_BYTES_MAX]);
    }

    /// A slot as a later build may write it.
    pub(crate) fn of_the_future(numbered: &Numbered, format: u16, readable_by: u16) -> [u8; SLOT_BYTES] {
        changed(numbered, |bytes| {
            bytes[8..10].copy_from_slice(&format.to_le_bytes());
            bytes[10..12].copy_from_slice(&readable_by.to_le_bytes());
            // What is empty today may say something.
            bytes[15] |= 0xfe;
        })
    }

    fn changed(numbered: &Numbered, change: impl FnOnce(&mut [u8; SLOT_BYTES])) -> [u8; SLOT_BYTES] {
        let mut bytes = numbered.encode();
        change(&mut bytes);
        let checksum = CRC.checksum(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_lease_from_the_future_is_read_if_it_says_that_this_build_can() {
        let numbered = Numbered { sequence: 5, file: 7, released: false, lease: lease(1) };
        assert_eq!(Slot::decode(&of_the_future(&numbered, 7, 1)), Slot::Valid(numbered));
    }

    #[test]
    fn a_lease_that_this_build_can_not_read_is_not_taken_for_no_lease() {
        let numbered = Numbered { sequence: 5, file: 7, released: false, lease: lease(1) };
        let newer = |format| Slot::Newer(Newer { format, sequence: 5 });
        assert_eq!(Slot::decode(&of_the_future(&numbered, 7, 2)), newer(7));
        assert_eq!(Slot::decode(&changed(&numbered, |bytes| bytes[12] = 4)), newer(1), "an unknown state");
        assert_eq!(Slot::decode(&changed(&numbered, |bytes| bytes[14] = 65)), newer(1), "a build id of 65 bytes");
    }

    #[test]
    fn a_lease_of_another_boot_has_no_owner() {
        let mut foreign = lease(1);
        assert!(foreign.of_this_boot() && foreign.is_certainly_last());
        foreign.owner.boot_id[0] ^= 1;
        assert!(!foreign.of_this_boot() && !foreign.is_certainly_last());
    }
}
