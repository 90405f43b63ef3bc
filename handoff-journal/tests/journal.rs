//! The journal as its callers use it, on real files.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use handoff_journal::{Details, HandoffId, Journal, JournalError, Phase, StateJournal};

fn state(phase: Phase) -> StateJournal {
    StateJournal {
        handoff_id: HandoffId::from_bytes([9; 16]),
        phase,
        incumbent_pid: 1234,
        successor_pid: Some(5678),
        started_at_unix_ms: 1_700_000_000_000,
        details: Details {
            incumbent_start_time: Some(17),
            successor_start_time: Some(u64::MAX),
            binary: Some("/usr/bin/stored".into()),
            build_id: vec![0xab; 20],
        },
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handoff.journal");
    (dir, path)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn round_trip() {
    let (_dir, path) = place();
    for phase in [
        Phase::Negotiating,
        Phase::Draining,
        Phase::Sealing,
        Phase::AwaitingReady,
        Phase::Committed,
        Phase::ResumingAfterAbort,
    ] {
        state(phase).write_atomic(&path).unwrap();
        assert_eq!(StateJournal::read(&path).unwrap(), Some(state(phase)));
        assert_eq!(Journal::open(&path).unwrap().current(), Some(&state(phase)));
    }
    let bare = StateJournal { successor_pid: None, details: Details::default(), ..state(Phase::Draining) };
    bare.write_atomic(&path).unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), Some(bare));
}

#[test]
fn missing_is_none() {
    let (dir, path) = place();
    assert_eq!(StateJournal::read(&path).unwrap(), None);
    assert_eq!(StateJournal::read(&dir.path().join("no/such/directory")).unwrap(), None);
    assert_eq!(names(dir.path()), [""; 0], "reading changes nothing");
}

#[test]
fn delete_twice() {
    let (dir, path) = place();
    state(Phase::Draining).write_atomic(&path).unwrap();
    StateJournal::delete(&path).unwrap();
    assert_eq!(names(dir.path()), [""; 0]);
    StateJournal::delete(&path).unwrap();
    StateJournal::delete(&dir.path().join("no/such/directory")).unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), None);
}

#[test]
fn a_path_in_no_encoding_comes_back_as_it_was() {
    let (_dir, path) = place();
    let mut odd = state(Phase::Draining);
    odd.details.binary = Some(PathBuf::from(OsStr::from_bytes(b"/opt/\xff\xfe\n\x01/stored")));
    odd.write_atomic(&path).unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), Some(odd));
}

#[test]
fn the_directories_above_are_created_and_the_file_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/c/journal");
    state(Phase::Draining).write_atomic(&path).unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), Some(state(Phase::Draining)));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(names(path.parent().unwrap()), ["journal"], "no temporary file is left");
}

#[test]
fn the_file_never_grows() {
    let (_dir, path) = place();
    let mut journal = Journal::open(&path).unwrap();
    let before = fs::metadata(&path).unwrap();
    for phase in [Phase::Negotiating, Phase::Draining, Phase::Sealing, Phase::AwaitingReady, Phase::Committed] {
        journal.record(&state(phase)).unwrap();
        assert_eq!(journal.current(), Some(&state(phase)));
        assert_eq!(StateJournal::read(&path).unwrap(), Some(state(phase)), "others see it before any sync");
    }
    journal.sync().unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.len(), before.blocks(), before.ino()), (after.len(), after.blocks(), after.ino()));
}

#[test]
fn cleared_is_none_for_everybody() {
    let (_dir, path) = place();
    let mut journal = Journal::open(&path).unwrap();
    journal.record(&state(Phase::Committed)).unwrap();
    journal.clear().unwrap();
    assert_eq!(journal.current(), None);
    assert_eq!(StateJournal::read(&path).unwrap(), None);
    journal.sync().unwrap();
    drop(journal);
    assert_eq!(Journal::open(&path).unwrap().current(), None);
}

#[test]
fn both_forms_go_on_from_each_other() {
    let (_dir, path) = place();
    let mut journal = Journal::open(&path).unwrap();
    journal.record(&state(Phase::Negotiating)).unwrap();
    drop(journal);
    state(Phase::Draining).write_atomic(&path).unwrap();
    let mut journal = Journal::open(&path).unwrap();
    assert_eq!(journal.current(), Some(&state(Phase::Draining)));
    assert!(journal.set_aside().is_none());
    journal.record(&state(Phase::Sealing)).unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), Some(state(Phase::Sealing)));
}

#[test]
fn an_empty_or_blank_file_is_no_record() {
    let (dir, path) = place();
    for length in [0, 1, 4096, 8192 * 3] {
        fs::write(&path, vec![0; length]).unwrap();
        assert_eq!(StateJournal::read(&path).unwrap(), None);
        assert_eq!(fs::metadata(&path).unwrap().len(), length as u64, "reading changes nothing");
        let journal = Journal::open(&path).unwrap();
        assert!(journal.current().is_none() && journal.set_aside().is_none());
    }
    assert_eq!(names(dir.path()), ["handoff.journal"]);
}

#[test]
fn a_truncated_file_is_filled_up_again() {
    let (_dir, path) = place();
    state(Phase::Draining).write_atomic(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..500]).unwrap();
    let mut journal = Journal::open(&path).unwrap();
    assert_eq!(journal.current(), Some(&state(Phase::Draining)));
    assert_eq!(fs::read(&path).unwrap(), whole);
    journal.record(&state(Phase::Sealing)).unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), Some(state(Phase::Sealing)));
}

#[test]
fn a_foreign_file_is_an_error_that_names_it_and_is_left_alone() {
    let (dir, path) = place();
    fs::write(&path, "[Unit]\nDescription=not a journal\n").unwrap();
    for error in [StateJournal::read(&path).unwrap_err(), state(Phase::Draining).write_atomic(&path).unwrap_err()] {
        assert!(matches!(error, JournalError::Unreadable { .. }));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(!error.to_string().contains('\n'), "one line");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "[Unit]\nDescription=not a journal\n");
    assert_eq!(names(dir.path()), ["handoff.journal"]);
}

#[test]
fn opening_sets_a_foreign_file_aside_and_starts_fresh() {
    let (dir, path) = place();
    for number in 1..=16 {
        let content = format!("not a journal, number {number}");
        fs::write(&path, &content).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        let set_aside = journal.set_aside().expect("it was set aside");
        assert_eq!(set_aside.kept_at, dir.path().join(format!("handoff.journal.unreadable-{number}")));
        assert_eq!(fs::read_to_string(&set_aside.kept_at).unwrap(), content);
        assert!(matches!(set_aside.reason, JournalError::Unreadable { .. }));
        assert_eq!(journal.current(), None);
        journal.record(&state(Phase::Draining)).unwrap();
        assert_eq!(StateJournal::read(&path).unwrap(), Some(state(Phase::Draining)));
    }
    fs::write(&path, "one too many").unwrap();
    let error = Journal::open(&path).unwrap_err();
    assert!(matches!(error, JournalError::TooManySetAside { kept: 16, .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "one too many");
}

#[test]
fn a_newer_builds_file_is_named_and_kept() {
    let is_newer =
        |error: &JournalError| matches!(error, JournalError::NewerVersion { version: 2, newest_known: 1, .. });
    let is_unknown = |error: &JournalError| matches!(error, JournalError::UnknownRecord { .. });
    let appended_phase = Phase::ResumingAfterAbort as u8 + 1;
    for (at, byte, is_expected) in [(8, 2, &is_newer as &dyn Fn(&_) -> _), (24 + 18, appended_phase, &is_unknown)] {
        let (_dir, path) = place();
        state(Phase::Draining).write_atomic(&path).unwrap();
        let mut content = fs::read(&path).unwrap();
        content[at] = byte;
        let end = 24 + content[12] as usize;
        let checksum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&content[..end]);
        content[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&path, &content).unwrap();

        for error in [StateJournal::read(&path).unwrap_err(), state(Phase::Sealing).write_atomic(&path).unwrap_err()] {
            assert!(is_expected(&error) && error.to_string().contains("use the newer build"), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), content);

        let journal = Journal::open(&path).unwrap();
        let set_aside = journal.set_aside().expect("it was set aside");
        assert!(is_expected(&set_aside.reason));
        assert_eq!(fs::read(&set_aside.kept_at).unwrap(), content);
    }
}

#[test]
fn a_removed_or_replaced_file_is_made_anew_by_the_next_sync() {
    let (dir, path) = place();
    let mut journal = Journal::open(&path).unwrap();
    journal.record(&state(Phase::Negotiating)).unwrap();
    journal.sync().unwrap();

    fs::remove_file(&path).unwrap();
    journal.sync().unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), Some(state(Phase::Negotiating)));

    fs::write(dir.path().join("other"), "foreign").unwrap();
    fs::rename(dir.path().join("other"), &path).unwrap();
    journal.record(&state(Phase::Draining)).unwrap();
    journal.sync().unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), Some(state(Phase::Draining)));
    assert_eq!(fs::read_to_string(&journal.set_aside().unwrap().kept_at).unwrap(), "foreign");

    fs::remove_dir_all(dir.path()).unwrap();
    journal.clear().unwrap();
    journal.sync().unwrap();
    assert_eq!(StateJournal::read(&path).unwrap(), None);
    assert!(path.exists());
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let (dir, path) = place();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    fs::create_dir(&path).unwrap();
    let (link, dangling, file) = (dir.path().join("link"), dir.path().join("dangling"), dir.path().join("file"));
    state(Phase::Draining).write_atomic(&file).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    std::os::unix::fs::symlink(dir.path().join("nothing"), &dangling).unwrap();
    for path in [path.as_path(), &pipe, Path::new("/dev/zero"), &link, &dangling] {
        assert!(matches!(StateJournal::read(path), Err(JournalError::NotAFile { .. })));
        assert!(matches!(Journal::open(path), Err(JournalError::NotAFile { .. })));
        assert!(matches!(state(Phase::Sealing).write_atomic(path), Err(JournalError::NotAFile { .. })));
    }
    assert_eq!(StateJournal::read(&file).unwrap(), Some(state(Phase::Draining)));
    assert!(!dir.path().join("nothing").exists());
}

/// Whoever looks for the journal looks at its path.
#[test]
fn a_file_that_was_moved_away_is_made_anew_by_the_next_sync() {
    let moves: [fn(&Path); 3] = [
        |path| fs::rename(path, path.with_extension("bak")).unwrap(),
        |path| {
            fs::hard_link(path, path.with_extension("bak")).unwrap();
            fs::remove_file(path).unwrap();
        },
        |path| {
            let dir = path.parent().unwrap();
            fs::rename(dir, dir.with_extension("bak")).unwrap();
        },
    ];
    for moved in moves {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.record(&state(Phase::Negotiating)).unwrap();
        journal.sync().unwrap();
        moved(&path);
        journal.record(&state(Phase::Draining)).unwrap();
        journal.sync().unwrap();
        assert_eq!(StateJournal::read(&path).unwrap(), Some(state(Phase::Draining)));
    }
}

#[test]
fn a_link_in_the_place_of_the_file_is_named_and_its_target_left_alone() {
    let (dir, path) = place();
    let mut journal = Journal::open(&path).unwrap();
    let other = dir.path().join("other");
    fs::write(&other, "another's").unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&other, &path).unwrap();
    journal.record(&state(Phase::Draining)).unwrap();
    assert!(matches!(journal.sync(), Err(JournalError::NotAFile { .. })));
    assert_eq!(fs::read_to_string(&other).unwrap(), "another's");
}

#[test]
fn a_file_where_a_directory_should_be_is_one_clear_error() {
    let (dir, _) = place();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let path = file.join("journal");
    for error in [
        Journal::open(&path).unwrap_err(),
        state(Phase::Draining).write_atomic(&path).unwrap_err(),
        StateJournal::read(&path).unwrap_err(),
    ] {
        assert!(matches!(error, JournalError::Io { .. }));
        assert!(error.to_string().starts_with(&format!("journal {}: can't ", path.display())), "{error}");
    }
}

/// Every record that a reader sees beside a busy writer is one that was written.
#[test]
fn a_reader_beside_a_writer_sees_whole_records() {
    let (_dir, path) = place();
    let written = |number: u64| StateJournal {
        started_at_unix_ms: number,
        details: Details { build_id: vec![number as u8; 1 + number as usize % 2000], ..Details::default() },
        ..state(Phase::Draining)
    };
    let mut journal = Journal::open(&path).unwrap();
    journal.record(&written(0)).unwrap();
    journal.sync().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=3000 {
                journal.record(&written(number)).unwrap();
            }
        });
        loop {
            let seen = StateJournal::read(&path).unwrap().expect("there is always a record");
            assert_eq!(seen, written(seen.started_at_unix_ms));
            if seen.started_at_unix_ms == 3000 {
                break;
            }
        }
    });
}
