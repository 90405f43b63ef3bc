//! The history after torn writes, full disks, flipped bytes and many entries.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::error::JournalError;
use crate::storage::fake::{Call, FakeDisk, Fault};

use super::*;

const EINTR: i32 = 4;
const ENOSPC: i32 = 28;

fn id(number: u64) -> HandoffId {
    HandoffId::from_bytes(u128::from(number).to_be_bytes())
}

/// An entry that is told apart from every other one, with everything in it that may be there.
fn entry(number: u64) -> HistoryEntry {
    HistoryEntry {
        handoff_id: Some(id(number)),
        committed: number.is_multiple_of(2),
        incumbent: Some("serves".into()),
        abort_reason: Some(format!("seal: no space for {number}\nin \"two\" lines")),
        aborted_in: Some("sealing".into()),
        old_pid: Some(1),
        new_pid: Some(2),
        epoch: Some(number),
        old_build: Some("v1".into()),
        new_build: Some("v2".into()),
        binary: Some("/usr/bin/stored".into()),
        started_at_unix_ms: number,
        timings_ms: HistoryTimings { spawn: 1.5, seal: 0.25, total: 9.125, ..HistoryTimings::default() },
        phases: vec![PhaseSpan { phase: "spawn".into(), at_ms: 0.5, ms: 1.5 }],
    }
}

fn line(number: u64) -> Vec<u8> {
    encode(&Line::Handover(Box::new(entry(number)))).unwrap()
}

fn numbers(recent: &Recent) -> Vec<u64> {
    let number = |found: &HistoryEntry| {
        let number = found.started_at_unix_ms;
        assert_eq!(found, &entry(number), "an entry that nobody wrote");
        number
    };
    recent.entries.iter().map(number).collect()
}

#[test]
fn what_is_appended_is_read_and_the_newest_last() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path().join("history"));
    assert_eq!(history.newest(5).unwrap(), Recent::default());
    (0..4).for_each(|number| history.append(&entry(number)).unwrap());
    assert_eq!(numbers(&history.newest(9).unwrap()), [0, 1, 2, 3]);
    assert_eq!(numbers(&history.newest(2).unwrap()), [2, 3]);
    assert_eq!(numbers(&history.newest(0).unwrap()), [0; 0]);
    let mode = fs::metadata(dir.path().join("history")).unwrap().mode();
    assert_eq!((mode & 0o777, dir.path().read_dir().unwrap().count()), (0o600, 1));
}

#[test]
fn that_the_old_process_has_left_is_told_later() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path().join("history"));
    for number in [0, 1] {
        history.append(&entry(number)).unwrap();
    }
    history.append_left(id(0), Duration::from_micros(12_345)).unwrap();
    history.append_left(id(7), Duration::ZERO).unwrap();
    let retire: Vec<_> = history.newest(9).unwrap().entries.iter().map(|entry| entry.timings_ms.retire).collect();
    assert_eq!(retire, [Some(12.345), None]);
}

#[test]
fn a_line_is_json_behind_its_checksum() {
    let text = String::from_utf8(line(3)).unwrap();
    let (checksum, json) = text.split_once(' ').unwrap();
    assert_eq!((checksum.len(), json.matches('\n').count()), (8, 1));
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["kind"], "handover");
    assert_eq!(json["handoff_id"], "00000000-0000-0000-0000-000000000003");
    assert_eq!(json["timings_ms"]["retire"], serde_json::Value::Null);
}

#[test]
fn a_tail_torn_anywhere_costs_its_own_entry_and_is_mended() {
    let whole = [line(0), line(1), line(2)].concat();
    let last_begins = line(0).len() + line(1).len();
    for cut in last_begins..whole.len() {
        let disk = FakeDisk::with_content(&whole[..cut]);
        assert_eq!(numbers(&parse(&disk.after_kill())), [0, 1], "cut at {cut}");
        append_to(&disk, &line(3)).unwrap();
        let recent = parse(&disk.after_kill());
        // Of the last line only its line feed was missing.
        let expected: &[u64] = if cut + 1 == whole.len() { &[0, 1, 2, 3] } else { &[0, 1, 3] };
        assert_eq!(numbers(&recent), expected, "cut at {cut}");
        assert_eq!(recent.damaged, u64::from(cut > last_begins && cut + 1 < whole.len()), "cut at {cut}");
    }
}

#[test]
fn a_full_disk_costs_the_entry_that_did_not_fit() {
    let bytes = line(1).len();
    for kept in 0..=bytes {
        let disk = FakeDisk::with_content(&line(0));
        let write = 2;
        disk.fail(write, if kept == 0 { Fault::Error(ENOSPC) } else { Fault::ShortWrite(kept) });
        let appended = append_to(&disk, &line(1));
        assert_eq!(appended.is_ok(), kept == bytes, "{kept} bytes fitted");
        disk.heal();
        append_to(&disk, &line(2)).unwrap();
        let expected: &[u64] = if kept + 1 >= bytes { &[0, 1, 2] } else { &[0, 2] };
        assert_eq!(numbers(&parse(&disk.after_kill())), expected, "{kept} bytes fitted");
    }
}

#[test]
fn every_call_may_fail_or_be_interrupted_and_the_disk_is_not_waited_for() {
    let disk = FakeDisk::with_content(&line(0));
    append_to(&disk, &line(1)).unwrap();
    let calls = disk.take_calls();
    assert_eq!(calls, [Call::Len, Call::Read, Call::Append]);
    for nth in 0..calls.len() {
        let disk = FakeDisk::with_content(&line(0));
        disk.fail(nth, Fault::Error(ENOSPC));
        append_to(&disk, &line(1)).unwrap_err();
        assert_eq!(numbers(&parse(&disk.after_kill())), [0]);
    }
    for nth in 1..calls.len() {
        let disk = FakeDisk::with_content(&line(0));
        disk.fail(nth, Fault::Error(EINTR));
        append_to(&disk, &line(1)).unwrap();
        assert_eq!(numbers(&parse(&disk.after_kill())), [0, 1]);
    }
}

#[test]
fn a_power_loss_costs_what_was_not_on_the_disk_yet() {
    let disk = FakeDisk::with_content(&line(0));
    append_to(&disk, &line(1)).unwrap();
    let sectors = disk.versions().len();
    for chosen in 0..1_u32 << sectors {
        let choice: Vec<usize> = (0..sectors).map(|sector| (chosen >> sector & 1) as usize).collect();
        let left = FakeDisk::with_content(&disk.after_power_loss(&choice));
        assert!(matches!(numbers(&parse(&left.after_kill()))[..], [0] | [0, 1]));
        append_to(&left, &line(2)).unwrap();
        assert!(matches!(numbers(&parse(&left.after_kill()))[..], [0, 2] | [0, 1, 2]), "{choice:?}");
    }
}

#[test]
fn a_flipped_byte_never_makes_an_entry_that_nobody_wrote() {
    let whole = [line(0), line(1), line(2)].concat();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let recent = parse(&bytes);
        assert!(!numbers(&recent).is_empty(), "byte {at}");
    }
}

#[test]
fn what_a_newer_build_wrote_is_no_damage() {
    let json = br#"{"kind":"weather","sunny":true}"#;
    let newer = format!("{:08x} {}\n", CRC_32C.checksum(json), String::from_utf8_lossy(json));
    let mut more = serde_json::to_value(Line::Handover(Box::new(entry(1)))).unwrap();
    more["mood"] = "good".into();
    more.as_object_mut().unwrap().remove("phases");
    let more = more.to_string();
    let more = format!("{:08x} {more}\n", CRC_32C.checksum(more.as_bytes()));
    let mut other = serde_json::to_value(Line::Handover(Box::new(entry(1)))).unwrap();
    other["epoch"] = "of another type".into();
    let other = other.to_string();
    let other = format!("{:08x} {other}\n", CRC_32C.checksum(other.as_bytes()));
    let recent = parse(&[newer.as_bytes(), more.as_bytes(), other.as_bytes(), &line(2)].concat());
    assert_eq!((recent.damaged, recent.unknown, recent.entries.len()), (0, 2, 2));
}

#[test]
fn no_figure_makes_an_entry_vanish() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path().join("history"));
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let timings_ms = HistoryTimings {
            spawn: odd,
            warm: odd,
            drain: odd,
            seal: odd,
            begin_to_ready: odd,
            total: odd,
            pause: odd,
            retire: Some(odd),
        };
        let phases = vec![PhaseSpan { phase: "spawn".into(), at_ms: odd, ms: odd }];
        history.append(&HistoryEntry { timings_ms, phases, ..entry(4) }).unwrap();
    }
    let phases = vec![PhaseSpan { phase: "spawn".into(), ..PhaseSpan::default() }];
    let expected = HistoryEntry { timings_ms: HistoryTimings::default(), phases, ..entry(4) };
    let recent = history.newest(9).unwrap();
    assert_eq!(recent, Recent { entries: vec![expected; 3], ..Recent::default() });
}

/// Each with a descriptor of its own, as several processes would have.
#[test]
fn writers_that_know_nothing_of_each_other_lose_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for number in 0..200 {
                    append_to(&open_to_append(path).unwrap(), &line(writer * 200 + number)).unwrap();
                }
            });
        }
    });
    let recent = History::new(path).newest(usize::MAX).unwrap();
    let mut found = numbers(&recent);
    found.sort_unstable();
    assert_eq!((found, recent.damaged), ((0..800).collect(), 0));
}

#[test]
fn threads_that_find_the_file_full_lose_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history");
    let full = FILE_BYTES_MAX - line(0).len() as u64 - 1;
    for round in 0..50 {
        // A hole up to a whole line: all that is read back is what the threads append.
        let file = File::create(&path).unwrap();
        file.set_len(full).unwrap();
        storage::write_all(&file, b"\n", full - 1).unwrap();
        let at_once = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (history, at_once) = (History::new(&path), &at_once);
                scope.spawn(move || {
                    at_once.wait();
                    (0..3).for_each(|number| history.append(&entry(writer * 3 + number)).unwrap());
                });
            }
        });
        let mut found = numbers(&History::new(&path).newest(usize::MAX).unwrap());
        found.sort_unstable();
        assert_eq!(found, (0..12).collect::<Vec<_>>(), "round {round}");
    }
}

/// The last byte is kept for the line feed that mends a torn line.
#[test]
fn a_file_is_filled_up_to_its_bound_and_moved_with_the_next_byte() {
    for (short_of_full, is_moved) in [(1, false), (0, true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let there = FILE_BYTES_MAX - line(0).len() as u64 - short_of_full;
        let file = File::create(&path).unwrap();
        storage::write_all(&file, b"\n", there - 1).unwrap();
        History::new(&path).append(&entry(0)).unwrap();
        assert_eq!(dir.path().join("history.1").exists(), is_moved, "{short_of_full}");
    }
}

#[test]
fn every_text_and_list_has_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path().join("history"));
    // What JSON makes longest.
    let long = || "\u{1}".repeat(100_000);
    let phases = vec![PhaseSpan { phase: long(), ..PhaseSpan::default() }; 100];
    let entry = HistoryEntry {
        abort_reason: Some(long()),
        aborted_in: Some(long()),
        old_build: Some(long()),
        new_build: Some(long()),
        binary: Some(long()),
        phases,
        ..entry(0)
    };
    history.append(&entry).unwrap();
    let bytes = fs::metadata(dir.path().join("history")).unwrap().len();
    assert!(bytes < 40_000, "{bytes}");
    assert_eq!(history.newest(1).unwrap().entries[0].phases.len(), PHASES_MAX);
}

/// As a daemon that changes to `/`.
#[test]
fn a_relative_path_stays_where_it_was() {
    let history = History::new("some/history");
    assert_eq!(history.path, std::env::current_dir().unwrap().join("some/history"));
}

#[test]
fn ten_thousand_entries_stay_within_the_bound_and_the_newest_are_kept() {
    const ENTRIES: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path().join("history"));
    let bytes = || -> u64 { dir.path().read_dir().unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum() };
    let mut most = 0;
    for number in 0..ENTRIES {
        let reason = Some("x".repeat(5000));
        history.append(&HistoryEntry { abort_reason: reason, started_at_unix_ms: number, ..entry(number) }).unwrap();
        history.append_left(id(number), Duration::from_millis(number)).unwrap();
        if number % 100 == 0 {
            most = most.max(bytes());
        }
    }
    assert!(most > FILE_BYTES_MAX && bytes() <= HISTORY_BYTES_MAX, "{most}");
    let recent = history.newest(usize::MAX).unwrap();
    let kept = recent.entries.len() as u64;
    assert!(kept > 2000, "{kept} entries of the longest kind");
    let found: Vec<_> =
        recent.entries.iter().map(|entry| (entry.started_at_unix_ms, entry.timings_ms.retire)).collect();
    let expected: Vec<_> = (ENTRIES - kept..ENTRIES).map(|number| (number, Some(number as f64))).collect();
    assert_eq!((found, recent.damaged), (expected, 0));
    assert_eq!(dir.path().read_dir().unwrap().count(), 2);
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let long = HistoryEntry { abort_reason: Some("é".repeat(1000)), ..entry(0) };
    let cut = bounded(long).abort_reason.unwrap();
    assert_eq!(cut, format!("{}…", "é".repeat(512)));
    assert_eq!(bounded(entry(0)), entry(0));
}

#[test]
fn what_is_no_file_is_left_as_it_is_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name| dir.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    fs::write(at("file"), "another's").unwrap();
    std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
    std::os::unix::fs::symlink(at("nothing"), at("dangling")).unwrap();
    let not_a_file = |error| matches!(error, JournalError::NotAFile { .. });
    for name in ["directory", "pipe", "link", "dangling"] {
        let history = History::new(at(name));
        assert!(not_a_file(history.append(&entry(0)).unwrap_err()), "{name}");
        assert!(not_a_file(history.newest(1).unwrap_err()), "{name}");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "another's");
    assert!(!at("nothing").exists());
    let gone = History::new(at("no/history"));
    assert!(matches!(gone.append(&entry(0)).unwrap_err(), JournalError::Io { .. }));
}
