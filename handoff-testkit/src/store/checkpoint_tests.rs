//! The checkpoint: each of its steps cut short, its file lost or exchanged, and what it does for the seal and the next open.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::super::{LOG_NAME, Recovery, State};
use super::*;
use crate::store::engine::ENGINE_NAME;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn open(dir: &std::path::Path, epoch: u64) -> Store {
    Store::open(dir, epoch).expect("opens")
}

/// One write of each kind.
fn write(store: &Store, key: &str) {
    store.increment(key).expect("written");
    store.add_to_collection("pins", key.len() as u32).expect("written");
    store.co_engaged(key, "other").expect("written");
}

fn files(dir: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&path).expect("read")))
        .collect();
    files.sort_unstable();
    files
}

fn names(dir: &std::path::Path) -> Vec<String> {
    files(dir).into_iter().map(|(name, _)| name).collect()
}

/// The store is what its log and its engine say, and takes writes.
fn check(dir: &std::path::Path, epoch: u64, expected: &State) {
    let store = open(dir, epoch);
    assert_eq!(&store.state().expect("open"), expected);
    assert_eq!(&Store::replay(dir).expect("whole"), expected);
    write(&store, "later");
    assert_eq!(Store::replay(dir).expect("whole"), store.state().expect("open"));
}

#[test]
fn rows_are_read_and_written_across_all_layers() {
    let dir = dir();
    let store = open(dir.path(), 1);
    for round in 1..=4 {
        write(&store, "a");
        write(&store, "group:b");
        assert_eq!(store.get("a").expect("read"), round);
        assert_eq!(store.cohort("group").expect("read").expect("there").events, round);
        assert_eq!(store.collection_len("pins").expect("read"), 2);
        assert_eq!(store.neighbours("a").expect("read").get("other").expect("there").weight, round);
        assert!(store.is_in_collection("pins", 7).expect("read") && !store.is_in_collection("pins", 8).expect("read"));
        store.checkpoint().expect("made");
        assert_eq!((store.get("a").expect("read"), store.key_count().expect("read")), (round, 2));
    }
    let state = store.state().expect("open");
    drop(store);
    check(dir.path(), 2, &state);
}

#[test]
fn the_log_is_as_short_as_it_can_be() {
    let dir = dir();
    let store = open(dir.path(), 1);
    for number in 1..=3_u64 {
        for _ in 0..50 {
            write(&store, "a");
        }
        assert_eq!(store.checkpoint().expect("made"), number * 150);
        let log = format!("{LOG_NAME}.{number}");
        assert_eq!(names(dir.path()), [ENGINE_NAME.to_owned(), log.clone()]);
        assert!(fs::metadata(dir.path().join(log)).expect("there").len() < 200, "a header, a start and a marker");
    }
    assert_eq!(store.checkpoint().expect("nothing to do"), 450);
    let whole = Store::open_with(dir.path(), 2, LogRetention::Whole).expect("opens");
    write(&whole, "a");
    whole.checkpoint().expect("made");
    assert!(names(dir.path()).contains(&format!("{LOG_NAME}.3")), "it stays when it is to stay");
}

#[test]
fn a_sealed_store_opens_without_a_write_and_its_seal_holds_only_changes() {
    let dir = dir();
    let store = open(dir.path(), 1);
    let keys: Vec<_> = (0..5_000).map(|number| format!("key-{number}")).collect();
    store.increment_all(keys.iter().map(String::as_str)).expect("written");
    store.checkpoint().expect("made");
    write(&store, "key-1");
    let (state, engine) = (store.state().expect("open"), fs::read(dir.path().join(ENGINE_NAME)).expect("read"));
    let log = dir.path().join(format!("{LOG_NAME}.1"));
    let before = fs::metadata(&log).expect("there").len();
    let sealed = store.seal().expect("sealed");
    assert!(fs::metadata(&log).expect("there").len() - before < 4_096, "5000 keys are not in the seal");
    drop(store);
    assert!(fs::read(dir.path().join(ENGINE_NAME)).expect("read") == engine, "a seal leaves the engine alone");

    let at_rest = files(dir.path());
    let successor = open(dir.path(), 2);
    assert_eq!((successor.recovery(), successor.contents().expect("open")), (Recovery::Sealed, sealed));
    assert_eq!(successor.state().expect("open"), state);
    drop(successor);
    assert!(files(dir.path()) == at_rest, "opening and dropping change nothing");
    check(dir.path(), 2, &state);
}

#[test]
fn a_checkpoint_that_fails_leaves_everything_as_it_was() {
    let dir = dir();
    let store = open(dir.path(), 1);
    write(&store, "a");
    let in_the_way = dir.path().join("store.redb.new");
    fs::create_dir(&in_the_way).expect("made");
    for _ in 0..2 {
        store.checkpoint().expect_err("no file can be made there");
        write(&store, "a");
    }
    let state = store.state().expect("open");
    assert_eq!(Store::replay(dir.path()).expect("whole"), state);
    fs::remove_dir(&in_the_way).expect("removed");
    store.checkpoint().expect("made");
    assert_eq!(store.state().expect("open"), state);
    drop(store);
    check(dir.path(), 2, &state);
}

#[test]
fn an_engine_that_fails_in_the_commit_is_opened_again() {
    let dir = dir();
    let store = open(dir.path(), 1);
    write(&store, "a");
    store.checkpoint().expect("made");
    write(&store, "b");
    let stopped = AtomicBool::new(true);
    let frozen = {
        let next = Segment::new(dir.path(), 2);
        let (file, header_bytes) = store.make(&next).expect("made");
        store.freeze(file, header_bytes).expect("frozen")
    };
    store.turn.lock().expect("whole").segment = 2;
    let committed = frozen.engine.commit(&frozen.batch, frozen.checkpoint, &stopped);
    assert!(matches!(store.conclude(committed, frozen.checkpoint), Err(StoreError::Sealing)));
    let state = store.state().expect("open");
    assert_eq!((state.get("a"), state.get("b")), (1, 1));
    write(&store, "a");
    store.checkpoint().expect("the next one is made");
    let state = store.state().expect("open");
    drop(store);
    check(dir.path(), 2, &state);
}

#[test]
fn a_spare_segment_is_no_loss() {
    for spare in [&b""[..], &b"handoffst"[..], &crate::store::record::header()[..]] {
        let dir = dir();
        let store = open(dir.path(), 1);
        write(&store, "a");
        let state = store.state().expect("open");
        drop(store);
        fs::write(dir.path().join(format!("{LOG_NAME}.1")), spare).expect("written");
        check(dir.path(), 2, &state);
        let store = open(dir.path(), 3);
        store.checkpoint().expect("made in the spare's place");
        let state = store.state().expect("open");
        drop(store);
        check(dir.path(), 4, &state);
    }
}

#[test]
fn what_a_checkpoint_made_superfluous_may_still_be_there() {
    let dir = dir();
    let store = Store::open_with(dir.path(), 1, LogRetention::Whole).expect("opens");
    write(&store, "a");
    store.checkpoint().expect("made");
    write(&store, "b");
    let state = store.state().expect("open");
    drop(store);
    // The process died before the truncation; the next checkpoint catches up.
    check(dir.path(), 2, &state);
    open(dir.path(), 3).checkpoint().expect("made");
    assert_eq!(names(dir.path()).len(), 2);
}

#[test]
fn a_lost_or_older_engine_is_refused_and_nothing_is_changed() {
    let dir = dir();
    let store = open(dir.path(), 1);
    let engine = dir.path().join(ENGINE_NAME);
    write(&store, "a");
    store.checkpoint().expect("made");
    let older = fs::read(&engine).expect("read");
    write(&store, "b");
    store.checkpoint().expect("made");
    write(&store, "c");
    drop(store);
    fs::write(&engine, older).expect("exchanged");
    let at_rest = files(dir.path());
    assert!(matches!(Store::open(dir.path(), 2), Err(StoreError::Corrupt { .. })));
    assert!(files(dir.path()) == at_rest);
    fs::remove_file(&engine).expect("removed");
    assert!(matches!(Store::open(dir.path(), 2), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_lost_segment_is_refused() {
    let dir = dir();
    let store = Store::open_with(dir.path(), 1, LogRetention::Whole).expect("opens");
    for key in ["a", "b", "c"] {
        write(&store, key);
        store.checkpoint().expect("made");
    }
    drop(store);
    fs::remove_file(dir.path().join(format!("{LOG_NAME}.1"))).expect("removed");
    assert!(matches!(Store::replay(dir.path()), Err(StoreError::Corrupt { .. })));
    for newer in [2, 3] {
        fs::remove_file(dir.path().join(format!("{LOG_NAME}.{newer}"))).expect("removed");
    }
    assert!(matches!(Store::open(dir.path(), 2), Err(StoreError::Corrupt { .. })), "the engine is ahead of the log");
}

#[test]
fn a_seal_does_not_wait_for_a_checkpoint_and_loses_nothing_to_it() {
    let dir = dir();
    let mut epoch = 1;
    for _ in 0..10 {
        let store = open(dir.path(), epoch);
        let keys: Vec<_> = (0..2_000).map(|number| format!("key-{number}")).collect();
        store.increment_all(keys.iter().map(String::as_str)).expect("written");
        let state = store.state().expect("open");
        let sealed = thread::scope(|scope| {
            scope.spawn(|| match store.checkpoint() {
                Ok(_) | Err(StoreError::Sealing | StoreError::Sealed) => {}
                Err(error) => panic!("{error}"),
            });
            store.seal().expect("sealed")
        });
        drop(store);
        epoch += 1;
        let successor = open(dir.path(), epoch);
        assert_eq!((successor.recovery(), successor.contents().expect("open")), (Recovery::Sealed, sealed));
        assert_eq!(successor.state().expect("open"), state);
    }
}

#[test]
fn a_checkpoint_is_due_when_enough_has_changed() {
    let dir = dir();
    let store = open(dir.path(), 1);
    let keys: Vec<_> = (0..CHECKPOINT_ROWS).map(|number| format!("key-{number}")).collect();
    store.increment_all(keys[..CHECKPOINT_ROWS - 2].iter().map(String::as_str)).expect("written");
    assert!(!store.is_checkpoint_due());
    store.increment_all(keys.iter().map(String::as_str)).expect("written");
    assert!(store.is_checkpoint_due());
    store.checkpoint().expect("made");
    assert!(!store.is_checkpoint_due());
}
