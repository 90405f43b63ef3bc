//! What is left after any crash: writes torn at every sector, calls that fail one by one, bytes that nobody wrote.

use std::path::Path;

use handoff_proto::{HandoffId, Phase};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::error::JournalError;
use crate::journal::SlotFile;
use crate::record::{BINARY_BYTES_MAX, BUILD_ID_BYTES_MAX, Details, StateJournal};
use crate::slots::{self, Content, FILE_BYTES, SLOT_BYTES, SLOTS};
use crate::storage::fake::{Call, FakeDisk, Fault};

const PATH: &str = "/run/handoff/journal";
const EINTR: i32 = 4;
const EIO: i32 = 5;

/// A record that differs from every other one in all its bytes, `number` telling them apart.
fn state(number: u8, build_id_bytes: usize) -> StateJournal {
    StateJournal {
        handoff_id: HandoffId::from_bytes([number; 16]),
        phase: Phase::Sealing,
        incumbent_pid: u32::from(number),
        successor_pid: Some(u32::MAX - u32::from(number)),
        started_at_unix_ms: u64::from(number),
        details: Details {
            incumbent_start_time: Some(u64::from(number)),
            successor_start_time: None,
            binary: Some(format!("/usr/bin/build-{number}").into()),
            build_id: vec![number; build_id_bytes],
        },
    }
}

fn open(disk: &FakeDisk) -> SlotFile<FakeDisk> {
    SlotFile::load(Path::new(PATH), disk.clone()).expect("the disk is healthy and the file is ours")
}

/// The number of the newest record, `Some(None)` for none; `None` if the file can't be read.
fn number_in(file: &[u8]) -> Option<Option<u8>> {
    let written = |state: &StateJournal| state.started_at_unix_ms as u8;
    let state = match slots::newest(file) {
        Content::Blank => None,
        Content::Newest { state, .. } => state,
        Content::NewerVersion(_) | Content::Unknown | Content::Unreadable => return None,
    };
    if let Some(found) = &state {
        assert_eq!(found, &state_like(found), "a mixture of two records");
    }
    Some(state.as_ref().map(written))
}

/// The record that must have been written if its number and length are these.
fn state_like(found: &StateJournal) -> StateJournal {
    state(found.started_at_unix_ms as u8, found.details.build_id.len())
}

/// Calls `check` with every choice of one version for each sector.
fn each_choice(versions: &[usize], check: &mut impl FnMut(&[usize])) {
    let mut chosen = vec![0; versions.len()];
    loop {
        check(&chosen);
        let Some(at) = (0..chosen.len()).find(|&at| chosen[at] + 1 < versions[at]) else { return };
        chosen[..at].fill(0);
        chosen[at] += 1;
    }
}

#[test]
fn every_subset_of_torn_sectors_gives_the_old_or_the_new_record() {
    for build_id_bytes in [0, 20, 600, 2048] {
        let disk = FakeDisk::default();
        let mut file = open(&disk);
        // All slots hold something old, so that a torn write mixes records and not only a record and zeros.
        for number in 1..=4 {
            file.write(Some(state(number, 2048))).unwrap();
            file.sync().unwrap();
        }
        file.write(Some(state(5, build_id_bytes))).unwrap();
        let versions = disk.versions();
        assert_eq!(versions.len(), (build_id_bytes + 110).div_ceil(512).min(5), "sectors of this write");
        let mut seen = [false; 2];
        each_choice(&versions, &mut |chosen| match number_in(&disk.after_power_loss(chosen)) {
            Some(Some(4)) => seen[0] = true,
            Some(Some(5)) => seen[1] = true,
            other => panic!("{other:?} after sectors {chosen:?}"),
        });
        assert_eq!(seen, [true, true]);
    }
}

#[test]
fn any_number_of_torn_unsynced_records_leaves_the_synced_one() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    file.write(Some(state(1, 20))).unwrap();
    file.sync().unwrap();
    for number in 2..=5 {
        file.write(Some(state(number, 500))).unwrap();
        assert_eq!(number_in(&disk.after_kill()), Some(Some(number)), "the process's death loses nothing");
        each_choice(&disk.versions(), &mut |chosen| {
            let found = number_in(&disk.after_power_loss(chosen));
            assert!(matches!(found, Some(Some(1..=5))), "{found:?} after sectors {chosen:?}");
        });
    }
    file.sync().unwrap();
    assert_eq!(number_in(&disk.after_power_loss(&[])), Some(Some(5)));
}

#[test]
fn a_write_cut_off_at_any_byte_gives_the_old_or_the_new_record() {
    for build_id_bytes in [0, 600] {
        let length = {
            let mut out = Box::new([0; SLOT_BYTES]);
            slots::encode(Path::new(PATH), 5, Some(&state(5, build_id_bytes)), &mut out).unwrap()
        };
        for cut in 0..=length {
            let disk = FakeDisk::default();
            let mut file = open(&disk);
            for number in 1..=4 {
                file.write(Some(state(number, 700))).unwrap();
            }
            disk.fail(0, Fault::ShortWrite(cut));
            // All bytes written and the error too late, or an error: the file must be sound in both cases.
            let outcome = file.write(Some(state(5, build_id_bytes)));
            let found = number_in(&disk.after_kill());
            assert_eq!(found, Some(Some(if cut == length { 5 } else { 4 })), "cut at byte {cut}: {outcome:?}");
        }
    }
}

#[test]
fn a_record_never_waits_for_the_disk_and_is_one_write() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    disk.take_calls();
    for number in 1..=20 {
        file.write(Some(state(number, 20))).unwrap();
    }
    file.write(None).unwrap();
    assert_eq!(disk.take_calls(), vec![Call::Write; 21]);
    file.sync().unwrap();
    assert_eq!(disk.take_calls(), [Call::Sync]);
    file.sync().unwrap();
    assert_eq!(disk.take_calls(), [], "what is durable needs no second sync");
}

#[test]
fn each_failing_call_is_an_error_and_loses_nothing() {
    let mut failed = 0;
    for nth in 0..8 {
        for errno in [EIO, 28, EINTR] {
            let disk = FakeDisk::default();
            let mut file = open(&disk);
            file.write(Some(state(1, 20))).unwrap();
            file.sync().unwrap();
            disk.fail(nth, Fault::Error(errno));
            let mut expected = 1;
            for number in 2..=6 {
                match file.write(Some(state(number, 20))).and_then(|()| file.sync()) {
                    Ok(()) => expected = number,
                    Err(JournalError::Io { path, source, .. }) => {
                        assert_ne!(errno, EINTR, "an interrupted call is made again");
                        assert_eq!((path.as_path(), source.raw_os_error()), (Path::new(PATH), Some(errno)));
                        failed += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
                each_choice(&disk.versions(), &mut |chosen| {
                    let found = number_in(&disk.after_power_loss(chosen));
                    assert!(
                        matches!(found, Some(Some(n)) if n >= expected && n <= number),
                        "{found:?} in step {number}"
                    );
                });
            }
            assert_eq!(expected, 6, "the journal works again after an error");
        }
    }
    assert_eq!(failed, 2 * 8, "EIO and ENOSPC, in each of 4 writes and 4 syncs");
}

#[test]
fn each_failing_call_of_an_opening_is_an_error_and_changes_nothing() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    file.write(Some(state(1, 20))).unwrap();
    file.sync().unwrap();
    let truncated = &disk.after_kill()[..SLOT_BYTES + 1];
    for nth in 0..5 {
        let disk = FakeDisk::with_content(truncated);
        disk.fail(nth, Fault::Error(EIO));
        let opened = SlotFile::load(Path::new(PATH), disk.clone());
        assert!(matches!(opened, Err(JournalError::Io { .. })), "call {nth}");
        assert_eq!(number_in(&disk.after_kill()), Some(Some(1)));
        assert_eq!(open(&disk).current, Some(state(1, 20)));
    }
}

#[test]
fn a_sync_that_failed_is_not_believed_later() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    file.write(Some(state(1, 20))).unwrap();
    file.sync().unwrap();
    file.write(Some(state(2, 20))).unwrap();
    disk.fail(0, Fault::Error(EIO));
    file.sync().unwrap_err();
    assert_eq!(number_in(&disk.after_power_loss(&[])), Some(Some(1)), "the kernel dropped the record");
    disk.take_calls();
    file.sync().unwrap();
    assert_eq!(disk.take_calls(), [Call::Write, Call::Sync]);
    assert_eq!(number_in(&disk.after_power_loss(&[])), Some(Some(2)));
}

#[test]
fn what_an_opening_found_survives_later_torn_writes() {
    let disk = FakeDisk::default();
    let mut before = open(&disk);
    for number in 1..=4 {
        before.write(Some(state(number, 20))).unwrap();
    }
    // The supervisor dies with four unsynced records; its successor goes on.
    let mut after = open(&disk);
    assert_eq!(after.current, Some(state(4, 20)));
    for number in 5..=7 {
        after.write(Some(state(number, 20))).unwrap();
        each_choice(&disk.versions(), &mut |chosen| {
            let found = number_in(&disk.after_power_loss(chosen));
            assert!(matches!(found, Some(Some(4..=7))), "{found:?}");
        });
    }
}

#[test]
fn a_file_cut_at_any_length_gives_an_older_record_or_an_error() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    for number in 1..=3 {
        file.write(Some(state(number, 20))).unwrap();
        file.sync().unwrap();
    }
    let whole = disk.after_kill();
    for length in 0..=whole.len() {
        match number_in(&whole[..length]) {
            Some(None) => assert_eq!(length, 0, "only an empty file is no record"),
            None => assert!(length < slots::offset(1) as usize),
            Some(Some(number)) => assert!((1..=3).contains(&number)),
        }
    }
    assert_eq!(number_in(&whole), Some(Some(3)));
}

#[test]
fn any_flipped_bit_gives_an_older_record_or_an_error() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    file.write(Some(state(1, 20))).unwrap();
    let single = disk.after_kill();
    file.sync().unwrap();
    file.write(Some(state(2, 20))).unwrap();
    let double = disk.after_kill();
    for bit in 0..256 * 8 {
        let flip = |content: &[u8], at: usize| {
            let mut flipped = content.to_vec();
            flipped[at + bit / 8] ^= 1 << (bit % 8);
            number_in(&flipped)
        };
        assert!(matches!(flip(&single, 0), None | Some(Some(1))), "a damaged only record is never \"no record\"");
        assert!(matches!(flip(&double, SLOT_BYTES), Some(Some(1 | 2))));
        assert_eq!(flip(&double, 0), Some(Some(2)));
    }
}

#[test]
fn the_bytes_of_a_slot_never_change() {
    let mut out = Box::new([0; SLOT_BYTES]);
    let mut record = state(7, 3);
    record.details.binary = Some("/b".into());
    let length = slots::encode(Path::new(PATH), 258, Some(&record), &mut out).unwrap();
    let hex: String = out[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "686e646f66664a0a",                   // magic
            "01000000",                           // version
            "26000000",                           // length
            "0201000000000000",                   // sequence
            "01",                                 // a record, not none
            "1007070707070707070707070707070707", // handoff id, with its length
            "02",                                 // Sealing
            "07",                                 // incumbent
            "01f8ffffff0f",                       // successor
            "07",                                 // started at
            "0107",                               // incumbent's start time
            "00",                                 // no start time of the successor
            "01022f62",                           // binary
            "03070707",                           // build id
            "7c6613d7",                           // CRC-32C
        )
    );
}

#[test]
fn a_newer_version_is_named_and_only_where_it_is_the_newest() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    file.write(Some(state(1, 20))).unwrap();
    file.write(Some(state(2, 20))).unwrap();
    let mut content = disk.after_kill();
    make_version(&mut content[SLOT_BYTES..], 9);
    assert_eq!(slots::newest(&content), Content::NewerVersion(9));
    let loaded = SlotFile::load(Path::new(PATH), FakeDisk::with_content(&content));
    assert!(matches!(loaded, Err(JournalError::NewerVersion { version: 9, newest_known: 1, .. })));
    make_version(&mut content, 9);
    make_version(&mut content[SLOT_BYTES..], 1);
    assert_eq!(number_in(&content), Some(Some(2)));
}

/// Each of these slots is whole: what an older slot says is not what was written last.
#[test]
fn a_whole_record_that_nobody_here_understands_is_never_passed_over_for_an_older_one() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    file.write(Some(state(1, 20))).unwrap();
    file.write(Some(state(2, 20))).unwrap();
    let content = disk.after_kill();
    let length = u32::from_le_bytes(content[SLOT_BYTES + 12..][..4].try_into().unwrap());
    type Change<'a> = (&'static str, &'a dyn Fn(&mut [u8]));
    let changes: [Change<'_>; 4] = [
        ("a phase that was appended later", &|slot| slot[24 + 18] = 6),
        ("a field that was appended later", &|slot| slot[12..16].copy_from_slice(&(length + 1).to_le_bytes())),
        ("a version before the first one", &|slot| slot[8..12].copy_from_slice(&0_u32.to_le_bytes())),
        ("a sequence that can't be counted on", &|slot| slot[16..24].copy_from_slice(&u64::MAX.to_le_bytes())),
    ];
    for (what, change) in changes {
        let mut content = content.clone();
        let slot = &mut content[SLOT_BYTES..2 * SLOT_BYTES];
        change(slot);
        seal_slot(slot);
        assert_eq!(slots::newest(&content), Content::Unknown, "{what}");
        let loaded = SlotFile::load(Path::new(PATH), FakeDisk::with_content(&content));
        assert!(matches!(loaded, Err(JournalError::UnknownRecord { .. })), "{what}");
        // An older slot is nobody's business.
        content[16..24].copy_from_slice(&9_u64.to_le_bytes());
        seal_slot(&mut content);
        let expected = if what.starts_with("a sequence") { None } else { Some(Some(1)) };
        assert_eq!(number_in(&content), expected, "{what}");
    }
}

/// Gives a slot another version, with a right checksum.
fn make_version(slot: &mut [u8], version: u32) {
    slot[8..12].copy_from_slice(&version.to_le_bytes());
    seal_slot(slot);
}

/// Puts the right checksum behind a slot's record.
fn seal_slot(slot: &mut [u8]) {
    let end = 24 + u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
    let checksum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&slot[..end]);
    slot[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn zeros_are_no_record_but_a_longer_file_of_zeros_is_not_ours() {
    for length in [0, 1, SLOT_BYTES, FILE_BYTES] {
        assert_eq!(slots::newest(&vec![0; length]), Content::Blank);
    }
    assert_eq!(slots::newest(&vec![0; FILE_BYTES + 1]), Content::Unreadable);
}

#[test]
fn a_write_spares_the_newest_and_the_synced_slot() {
    for newest in 0..SLOTS {
        for synced in 0..SLOTS {
            let slot = slots::slot_to_write(newest, synced);
            assert!(slot < SLOTS && slot != newest && slot != synced);
        }
    }
}

#[test]
fn the_longest_fields_fit_and_longer_ones_are_refused() {
    let disk = FakeDisk::default();
    let mut file = open(&disk);
    let mut longest = state(255, BUILD_ID_BYTES_MAX);
    longest.incumbent_pid = u32::MAX;
    longest.started_at_unix_ms = u64::MAX;
    longest.details.incumbent_start_time = Some(u64::MAX);
    longest.details.successor_start_time = Some(u64::MAX);
    longest.details.binary = Some("x".repeat(BINARY_BYTES_MAX).into());
    file.write(Some(longest.clone())).unwrap();
    assert_eq!(open(&disk).current, Some(longest.clone()));

    let mut longer = longest.clone();
    longer.details.binary = Some("x".repeat(BINARY_BYTES_MAX + 1).into());
    let error = file.write(Some(longer)).unwrap_err();
    assert_eq!(error.to_string(), format!("journal {PATH}: binary is 4097 bytes long, at most 4096 fit"));
    let mut longer = longest.clone();
    longer.details.build_id.push(0);
    assert!(matches!(file.write(Some(longer)), Err(JournalError::TooLong { field: "build_id", .. })));
    assert_eq!(file.current, Some(longest));
}

/// One step of a journal's life.
#[derive(Debug, Clone)]
enum Step {
    Write { build_id_bytes: usize },
    Clear,
    Sync,
    Reopen,
    Fail { nth: usize, fault: Fault },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![Just(0usize), 0..3000usize].prop_map(|n| Step::Write { build_id_bytes: n.min(BUILD_ID_BYTES_MAX) }),
        1 => Just(Step::Clear),
        2 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => (0..4usize, prop_oneof![
            Just(Fault::Error(EIO)), Just(Fault::Error(EINTR)), (0..800usize).prop_map(Fault::ShortWrite)
        ]).prop_map(|(nth, fault)| Step::Fail { nth, fault }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// After any life and a power loss with any choice of sectors: the last synced record, or one written (or attempted)
    /// after it. A file is only unreadable if nothing in it was ever synced.
    #[test]
    fn a_power_loss_gives_the_synced_record_or_a_later_one(
        steps in vec(any_step(), 1..30),
        choices in vec(any::<prop::sample::Index>(), 64),
    ) {
        let disk = FakeDisk::default();
        let mut file = open(&disk);
        // The numbers that may be read, the synced one first; `None`: no handover.
        let mut possible: Vec<Option<u8>> = vec![None];
        let mut ever_synced = false;
        let mut sync_failed = false;
        for (number, step) in (1..).zip(steps) {
            match step {
                Step::Write { build_id_bytes } => {
                    possible.push(Some(number));
                    let _ = file.write(Some(state(number, build_id_bytes)));
                }
                Step::Clear => {
                    possible.push(None);
                    let _ = file.write(None);
                }
                Step::Sync => if file.sync().is_err() {
                    sync_failed = true;
                } else {
                    sync_failed = false;
                    possible = vec![file.current.as_ref().map(|state| state.started_at_unix_ms as u8)];
                    ever_synced |= matches!(slots::newest(&disk.after_kill()), Content::Newest { .. });
                },
                // After a failed sync nobody who opens the file anew can know what the kernel dropped. And if the very first
                // write failed half way, there is nothing to open.
                Step::Reopen => if !sync_failed {
                    disk.heal();
                    match SlotFile::load(Path::new(PATH), disk.clone()) {
                        Ok(opened) => file = opened,
                        Err(error) => {
                            prop_assert!(!ever_synced && matches!(error, JournalError::Unreadable { .. }), "{error}");
                            continue;
                        }
                    }
                    possible = vec![file.current.as_ref().map(|state| state.started_at_unix_ms as u8)];
                    ever_synced |= matches!(slots::newest(&disk.after_kill()), Content::Newest { .. });
                },
                Step::Fail { nth, fault } => disk.fail(nth, fault),
            }
            let chosen: Vec<usize> =
                disk.versions().iter().zip(choices.iter().cycle()).map(|(&n, choice)| choice.index(n)).collect();
            match number_in(&disk.after_power_loss(&chosen)) {
                Some(found) => prop_assert!(possible.contains(&found), "{found:?} is not one of {possible:?}"),
                None => prop_assert!(!ever_synced, "unreadable, though {possible:?} was synced"),
            }
        }
    }

    #[test]
    fn garbage_is_never_a_record(
        garbage in vec(any::<u8>(), 0..2000),
        at in 0..FILE_BYTES,
        keeps_magic in any::<bool>(),
    ) {
        let mut content = vec![0; FILE_BYTES];
        let end = FILE_BYTES.min(at + garbage.len());
        content[at..end].copy_from_slice(&garbage[..end - at]);
        if keeps_magic {
            content[..8].copy_from_slice(b"hndoffJ\n");
        }
        prop_assert!(matches!(slots::newest(&content), Content::Blank | Content::Unreadable));
        prop_assert!(matches!(slots::newest(&garbage), Content::Blank | Content::Unreadable));
    }

    /// Whoever has a right checksum may still hold any bytes: decoding is total.
    #[test]
    fn garbage_under_a_right_checksum_never_panics(record in vec(any::<u8>(), 0..200), sequence: u64) {
        let mut slot = vec![0; SLOT_BYTES];
        slot[..8].copy_from_slice(b"hndoffJ\n");
        slot[12..16].copy_from_slice(&(record.len() as u32).to_le_bytes());
        slot[16..24].copy_from_slice(&sequence.to_le_bytes());
        slot[24..24 + record.len()].copy_from_slice(&record);
        make_version(&mut slot, 1);
        if let Ok(mut file) = SlotFile::load(Path::new(PATH), FakeDisk::with_content(&slot)) {
            file.write(Some(state(1, 20))).unwrap();
            prop_assert_eq!(file.current, Some(state(1, 20)));
        }
    }
}
