//! The order of the system calls of journal and history, beside the one that was designed. A call that is left out or changes its
//! place shows here, whatever the tests of what comes of it say.

#![cfg(target_os = "linux")]

#[path = "order/designed.rs"]
mod designed;
#[path = "../../handoff-lock/tests/trace/mod.rs"]
mod trace;

use std::fs;
use std::time::Duration;

use handoff_journal::{Details, HISTORY_BYTES_MAX, HandoffId, History, HistoryEntry, Journal, Phase, StateJournal};
use trace::{assert_as_designed, step};

const ID: HandoffId = HandoffId::from_bytes([7; 16]);

#[test]
fn of_the_journal() {
    assert_as_designed("plays_the_journal", designed::JOURNAL);
}

#[test]
fn of_the_history() {
    assert_as_designed("plays_the_history", designed::HISTORY);
}

fn record(phase: Phase) -> StateJournal {
    let details = Details::default();
    StateJournal { handoff_id: ID, phase, incumbent_pid: 1, successor_pid: None, started_at_unix_ms: 1, details }
}

#[test]
#[ignore = "played by of_the_journal, under strace"]
fn plays_the_journal() {
    let Some(base) = trace::base() else { return };
    let (base, path) = (base.as_path(), base.join("state/journal"));
    let mut journal = step(base, "open in a new directory", || Journal::open(&path)).unwrap();
    step(base, "record", || journal.record(&record(Phase::Negotiating))).unwrap();
    step(base, "sync", || journal.sync()).unwrap();
    step(base, "sync what is synced", || journal.sync()).unwrap();
    step(base, "record again", || journal.record(&record(Phase::Draining))).unwrap();
    step(base, "and again", || journal.record(&record(Phase::Sealing))).unwrap();
    step(base, "and once more", || journal.record(&record(Phase::AwaitingReady))).unwrap();
    step(base, "clear", || journal.clear()).unwrap();
    step(base, "sync the end", || journal.sync()).unwrap();
    fs::remove_file(&path).unwrap();
    step(base, "sync when the file is gone", || journal.sync()).unwrap();
    drop(journal);
    step(base, "open again", || Journal::open(&path)).unwrap();
    fs::write(&path, "no journal").unwrap();
    step(base, "set aside what can't be read", || Journal::open(&path)).unwrap();
    step(base, "write atomically", || record(Phase::Committed).write_atomic(&path)).unwrap();
    step(base, "delete", || StateJournal::delete(&path)).unwrap();
}

#[test]
#[ignore = "played by of_the_history, under strace"]
fn plays_the_history() {
    let Some(base) = trace::base() else { return };
    let (base, path) = (base.as_path(), base.join("history"));
    let (history, entry) = (History::new(&path), HistoryEntry::default());
    step(base, "append to a new one", || history.append(&entry)).unwrap();
    fs::write(&path, "whole\n").unwrap();
    step(base, "append", || history.append(&entry)).unwrap();
    fs::write(&path, "torn").unwrap();
    step(base, "append to a torn one", || history.append_left(ID, Duration::ZERO)).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(HISTORY_BYTES_MAX / 2).unwrap();
    step(base, "append to a full one", || history.append(&entry)).unwrap();
}
