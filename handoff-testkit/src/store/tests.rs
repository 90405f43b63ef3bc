//! The store's promises, broken on purpose: by the disk, by a crash at each point, by damage to the log.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::sync::Condvar;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::crash::{CrashInjector, CrashPoint, run_with_crash};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn open(dir: &Path, epoch: u64) -> Store {
    Store::open(dir, epoch).expect("opens")
}

fn log_bytes(dir: &Path) -> Vec<u8> {
    fs::read(dir.join(LOG_NAME)).expect("the log")
}

/// A store with these writes that was never sealed, and its log.
fn unsealed(dir: &Path, keys: &[&str]) -> Vec<u8> {
    let store = open(dir, 1);
    for key in keys {
        store.increment(key).expect("written");
    }
    log_bytes(dir)
}

/// What a test makes of the log file.
#[derive(Debug)]
struct WatchedLog {
    disk: DiskLog,
    state: Mutex<Watched>,
    changed: Condvar,
}

/// The first segment is watched, the later ones are real.
#[derive(Debug)]
struct WatchedDisk(Arc<WatchedLog>);

impl Disk for WatchedDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        match path.ends_with(LOG_NAME) {
            true => Ok(Arc::clone(&self.0) as Arc<dyn LogFile>),
            false => RealDisk.open(path),
        }
    }
}

#[derive(Debug, Default)]
struct Watched {
    events: Vec<Event>,
    fail_sync: bool,
    /// How many bytes of the next append reach the file before it fails.
    cut_append: Option<usize>,
    fail_truncate: bool,
    /// The first sync goes on only after this many increments were appended.
    first_sync_after: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Appended(String),
    SyncBegan,
    SyncEnded,
    Acknowledged(String),
}

impl WatchedLog {
    fn store(dir: &Path, watched: Watched) -> (Store, Arc<Self>) {
        let disk = DiskLog::open(&dir.join(LOG_NAME)).expect("opened");
        let log = Arc::new(Self { disk, state: Mutex::new(watched), changed: Condvar::new() });
        let disk = Box::new(WatchedDisk(Arc::clone(&log)));
        (Store::open_on(dir, 1, LogRetention::Truncated, disk).expect("opens"), log)
    }

    fn state(&self) -> MutexGuard<'_, Watched> {
        self.state.lock().expect("no test panics with it")
    }

    fn push(&self, event: Event) {
        self.state().events.push(event);
        self.changed.notify_all();
    }

    fn syncs(&self) -> usize {
        self.state().events.iter().filter(|event| **event == Event::SyncEnded).count()
    }
}

impl LogFile for WatchedLog {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(cut) = self.state().cut_append.take() {
            self.disk.append(&bytes[..cut])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.append(bytes)?;
        if let Some(record::Record { payload: Payload::Increment { token, .. }, .. }) = record::decode(bytes) {
            self.push(Event::Appended(token));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let appended =
            |watched: &Watched| watched.events.iter().filter(|event| matches!(event, Event::Appended(_))).count();
        self.push(Event::SyncBegan);
        let waited = self.changed.wait_while(self.state(), |state| appended(state) < state.first_sync_after);
        if waited.expect("no panic").fail_sync {
            return Err(io::ErrorKind::Other.into());
        }
        self.disk.sync()?;
        self.push(Event::SyncEnded);
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        if self.state().fail_truncate {
            return Err(io::ErrorKind::Other.into());
        }
        self.disk.truncate(bytes)
    }
}

#[test]
fn a_reply_comes_only_after_a_sync_that_covers_its_write() {
    let dir = dir();
    let (store, log) = WatchedLog::store(dir.path(), Watched::default());
    thread::scope(|scope| {
        for client in 0..8 {
            let (store, log) = (&store, &log);
            scope.spawn(move || {
                for write in 0..25 {
                    let token = format!("{client}.{write}");
                    store.increment_with_token("key", &token).expect("written");
                    log.push(Event::Acknowledged(token));
                }
            });
        }
    });

    let events = std::mem::take(&mut log.state().events);
    let acknowledged = events.iter().enumerate().filter_map(|(at, event)| match event {
        Event::Acknowledged(token) => Some((at, token)),
        _ => None,
    });
    let mut checked = 0;
    for (at, token) in acknowledged {
        let appended = events.iter().position(|event| *event == Event::Appended(token.clone())).expect("appended");
        let mut between = events[appended..at].iter();
        assert!(between.any(|event| *event == Event::SyncBegan), "{token}: no sync began between append and reply");
        assert!(between.any(|event| *event == Event::SyncEnded), "{token}: the sync had not ended at the reply");
        checked += 1;
    }
    assert_eq!(checked, 200);
}

#[test]
fn the_real_log_file_is_really_synced() {
    // /dev/null takes every write and refuses fdatasync with EINVAL (fdatasync(2)): only a store that really syncs notices.
    let dir = dir();
    symlink("/dev/null", dir.path().join(LOG_NAME)).expect("linked");
    let store = open(dir.path(), 1);
    let error = store.increment("key").expect_err("nothing that was not synced is acknowledged");
    assert!(error.to_string().contains("syncing the log failed"), "{error}");
}

#[test]
fn one_sync_serves_all_who_wait() {
    let dir = dir();
    let (store, log) = WatchedLog::store(dir.path(), Watched { first_sync_after: 8, ..Watched::default() });
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| store.increment("key").expect("written"));
        }
    });
    assert!(log.syncs() <= 2, "8 writers made {} syncs", log.syncs());
    assert_eq!(store.get("key").expect("read"), 8);
}

#[test]
fn a_failed_sync_poisons_for_good() {
    let dir = dir();
    let (store, log) = WatchedLog::store(dir.path(), Watched::default());
    store.increment("key").expect("written");
    log.state().fail_sync = true;
    assert!(matches!(store.increment("key"), Err(StoreError::Poisoned { .. })));
    log.state().fail_sync = false;
    let bytes = log_bytes(dir.path()).len();
    assert!(matches!(store.increment("key"), Err(StoreError::Poisoned { .. })), "the next sync would say yes");
    assert!(matches!(store.get("key"), Err(StoreError::Poisoned { .. })), "what may be lost is not shown");
    assert!(matches!(store.seal(), Err(StoreError::Poisoned { .. })));
    assert_eq!(log_bytes(dir.path()).len(), bytes, "a poisoned store writes nothing");
    drop(store);
    open(dir.path(), 1).increment("key").expect("a fresh one writes");
}

#[test]
fn a_refused_append_leaves_no_trace() {
    let dir = dir();
    let (store, log) = WatchedLog::store(dir.path(), Watched::default());
    store.increment("key").expect("written");
    let before = log_bytes(dir.path());
    log.state().cut_append = Some(20);
    assert!(matches!(store.increment("key"), Err(StoreError::Io { .. })));
    assert_eq!(log_bytes(dir.path()), before);
    assert_eq!(store.increment("key").expect("the disk has room again"), 2);
    assert_eq!(Store::replay(dir.path()).expect("whole"), store.state().expect("open"));
}

#[test]
fn half_a_record_that_stays_ends_the_log() {
    let dir = dir();
    let (store, log) = WatchedLog::store(dir.path(), Watched::default());
    store.increment("key").expect("written");
    *log.state() = Watched { cut_append: Some(20), fail_truncate: true, ..Watched::default() };
    store.increment("key").expect_err("the disk is full");
    assert!(matches!(store.increment("key"), Err(StoreError::Poisoned { .. })), "nothing may follow half a record");
    assert_eq!(open(dir.path(), 1).get("key").expect("read"), 1);
}

#[test]
fn a_seal_syncs_only_what_nobody_waited_for_and_needs_no_footer() {
    let dir = dir();
    let (store, log) = WatchedLog::store(dir.path(), Watched::default());
    store.increment("key").expect("written");
    let syncs = log.syncs();
    log.state().cut_append = Some(30);
    let sealed = store.seal().expect("a full disk does not stop a handover");
    assert_eq!(log.syncs(), syncs, "every write was durable already");
    let successor = open(dir.path(), 2);
    assert_eq!(successor.recovery(), Recovery::Replayed { writes: 1, torn_bytes: 0 });
    assert_eq!(successor.contents().expect("open"), sealed);
}

#[test]
fn a_seal_makes_durable_what_nobody_waited_for() {
    let dir = dir();
    let (store, log) = WatchedLog::store(dir.path(), Watched::default());
    store.append_and_apply(Write::Increment { key: "key", token: "" }).expect("appended");
    assert_eq!(log.syncs(), 0);
    store.seal().expect("sealed");
    assert_eq!(log.syncs(), 1);
}

#[test]
fn a_sealed_store_is_not_replayed_and_writes_no_more() {
    let dir = dir();
    let store = open(dir.path(), 1);
    assert_eq!(store.recovery(), Recovery::Empty);
    for key in ["a", "b", "a"] {
        store.increment(key).expect("written");
    }
    let state = store.state().expect("open");
    let sealed = store.seal().expect("sealed");
    let bytes = log_bytes(dir.path());
    assert!(matches!(store.increment("a"), Err(StoreError::Sealed)));
    assert!(matches!(store.get("a"), Err(StoreError::Sealed)));
    assert!(matches!(store.seal(), Err(StoreError::Sealed)));
    assert_eq!(log_bytes(dir.path()), bytes);

    let successor = open(dir.path(), 2);
    assert_eq!(successor.recovery(), Recovery::Sealed);
    assert_eq!(successor.contents().expect("open"), sealed);
    assert_eq!(successor.state().expect("open"), state);
    assert_eq!(Store::replay(dir.path()).expect("whole"), state);
    assert_eq!(successor.increment("a").expect("written"), 3);
    assert_eq!(successor.seal().expect("sealed").last_sequence, 4);
    assert_eq!(open(dir.path(), 3).recovery(), Recovery::Sealed);
}

#[test]
fn an_unsealed_store_is_replayed_to_the_same_bits() {
    let dir = dir();
    let store = open(dir.path(), 1);
    for write in 0..100 {
        store.increment(["a", "b", "c"][write % 3]).expect("written");
    }
    let (state, contents) = (store.state().expect("open"), store.contents().expect("open"));
    drop(store);
    let again = open(dir.path(), 1);
    assert_eq!(again.recovery(), Recovery::Replayed { writes: 100, torn_bytes: 0 });
    assert_eq!(again.state().expect("open"), state);
    assert_eq!(again.contents().expect("open"), contents);
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_tore() {
    let dir = dir();
    let whole = unsealed(dir.path(), &["a", "a"]);
    let shorter = unsealed(tempfile::tempdir().expect("a directory").path(), &["a"]).len();
    for cut in shorter + 1..whole.len() {
        fs::write(dir.path().join(LOG_NAME), &whole[..cut]).expect("torn");
        let store = open(dir.path(), 1);
        let torn_bytes = (cut - shorter) as u64;
        assert_eq!(store.recovery(), Recovery::Replayed { writes: 1, torn_bytes });
        assert_eq!(store.increment("a").expect("goes on"), 2);
        assert_eq!(Store::replay(dir.path()).expect("whole again"), store.state().expect("open"));
    }
}

#[test]
fn a_torn_header_is_an_empty_log() {
    let dir = dir();
    for cut in 0..record::HEADER_BYTES {
        fs::write(dir.path().join(LOG_NAME), &record::header()[..cut]).expect("torn");
        let store = open(dir.path(), 1);
        assert_eq!(store.recovery(), Recovery::Empty);
        store.increment("a").expect("written");
        drop(store);
        assert_eq!(open(dir.path(), 1).get("a").expect("read"), 1);
    }
}

#[test]
fn a_damaged_footer_or_snapshot_costs_a_replay_and_nothing_else() {
    let dir = dir();
    let end_of_writes = unsealed(dir.path(), &["a", "b", "a"]).len();
    let sealed = open(dir.path(), 1).seal().expect("sealed");
    let whole = log_bytes(dir.path());
    for damaged in end_of_writes..whole.len() {
        let mut bytes = whole.clone();
        bytes[damaged] ^= 0x40;
        fs::write(dir.path().join(LOG_NAME), &bytes).expect("damaged");
        let store = open(dir.path(), 2);
        assert!(matches!(store.recovery(), Recovery::Replayed { writes: 3, .. }), "byte {damaged}");
        assert_eq!(store.contents().expect("open"), sealed, "byte {damaged}");
    }
}

#[test]
fn damage_to_what_was_acknowledged_is_refused_and_changes_nothing() {
    let dir = dir();
    let first = unsealed(tempfile::tempdir().expect("a directory").path(), &["a"]).len();
    let mut bytes = unsealed(dir.path(), &["a", "a", "a"]);
    bytes[first - 1] ^= 1;
    fs::write(dir.path().join(LOG_NAME), &bytes).expect("damaged");
    let error = Store::open(dir.path(), 1).expect_err("acknowledged writes are gone");
    assert!(matches!(error, StoreError::Corrupt { offset: 16, .. }), "{error}");
    assert_eq!(log_bytes(dir.path()), bytes);
}

#[test]
fn a_hole_that_nobody_acknowledged_is_a_torn_tail() {
    let dir = dir();
    let (store, _log) = WatchedLog::store(dir.path(), Watched::default());
    for key in ["a", "b", "c"] {
        store.append_and_apply(Write::Increment { key, token: "" }).expect("appended, not synced");
    }
    drop(store);
    let mut bytes = log_bytes(dir.path());
    bytes[record::HEADER_BYTES + 9] ^= 1; // a page that did not reach the disk before the power went
    fs::write(dir.path().join(LOG_NAME), &bytes).expect("damaged");
    assert!(matches!(open(dir.path(), 1).recovery(), Recovery::Replayed { writes: 0, torn_bytes: 1.. }));
}

#[test]
fn a_newer_epoch_fences() {
    let dir = dir();
    open(dir.path(), 7).increment("a").expect("written");
    assert!(matches!(Store::open(dir.path(), 6), Err(StoreError::Fenced { ours: 6, found: 7 })));
    open(dir.path(), 7).seal().expect("sealed");
    assert!(matches!(Store::open(dir.path(), 6), Err(StoreError::Fenced { ours: 6, found: 7 })));
}

#[test]
fn two_writers_in_one_log_are_not_opened() {
    let dir = dir();
    let (old, new) = (open(dir.path(), 1), open(dir.path(), 2));
    new.increment("a").expect("written");
    old.increment("a").expect("it does not know");
    assert!(matches!(Store::open(dir.path(), 3), Err(StoreError::Corrupt { .. })));
}

#[test]
fn other_files_and_newer_formats_are_refused() {
    let dir = dir();
    fs::write(dir.path().join(LOG_NAME), "#!/bin/sh\nexit 0\n").expect("written");
    assert!(matches!(Store::open(dir.path(), 1), Err(StoreError::Corrupt { .. })));
    let mut newer = record::header();
    newer[12] = 2;
    fs::write(dir.path().join(LOG_NAME), newer).expect("written");
    assert!(matches!(Store::open(dir.path(), 1), Err(StoreError::NewerFormat { found: 2, known: 1, .. })));
}

#[test]
fn bad_names_are_refused() {
    let dir = dir();
    let store = open(dir.path(), 1);
    for key in ["", "a b", "a\nb", "a\0", &"k".repeat(KEY_BYTES_MAX + 1)] {
        assert!(matches!(store.increment(key), Err(StoreError::BadName { what: "key", .. })), "{key:?}");
    }
    let token = store.increment_with_token("a", &"t".repeat(TOKEN_BYTES_MAX + 1));
    assert!(matches!(token, Err(StoreError::BadName { what: "token", .. })));
    store.increment(&"k".repeat(KEY_BYTES_MAX)).expect("the longest key");
    assert_eq!(store.contents().expect("open").last_sequence, 1);
}

/// Crashes at `point` after `pass` crossings; every acknowledged write must be there once, and at most one more.
fn crash_and_reopen(point: CrashPoint, pass: u64) {
    let dir = dir();
    let store = open(dir.path(), 1);
    let injector = CrashInjector::new(point, pass);
    let mut acknowledged = 0;
    let outcome = run_with_crash(&injector, || {
        for _ in 0..10 {
            store.increment("a").expect("written");
            acknowledged += 1;
        }
    });
    assert_eq!(outcome, Err(point), "it must have fired");
    let again = || store.increment("a");
    match point {
        CrashPoint::WalPostAggregate => assert!(again().is_ok(), "log and ledger are in step"),
        _ => assert!(matches!(again(), Err(StoreError::Poisoned { .. })), "log and ledger are out of step"),
    }
    if point != CrashPoint::WalPostAggregate {
        assert!(matches!(store.seal(), Err(StoreError::Poisoned { .. })), "a wrong ledger must not be sealed");
    }
    drop(store);

    let store = open(dir.path(), 2);
    let extra = if point == CrashPoint::WalPostAggregate { 2 } else { 1 };
    assert_eq!(store.get("a").expect("read"), acknowledged + extra, "all that was in the log, once");
    assert_eq!(store.state().expect("open"), Store::replay(dir.path()).expect("whole"));
    store.increment("a").expect("writes again");
}

#[test]
fn a_crash_at_each_point_loses_and_doubles_nothing() {
    for point in [CrashPoint::WalPreAggregate, CrashPoint::WalPostAggregate, CrashPoint::SignalAggregationUpdate] {
        for pass in [0, 3] {
            crash_and_reopen(point, pass);
        }
    }
}

#[test]
fn a_crash_among_writers_keeps_what_the_others_were_told() {
    let dir = dir();
    let store = open(dir.path(), 1);
    let injector = CrashInjector::new(CrashPoint::WalPreAggregate, 5);
    let acknowledged: u64 = thread::scope(|scope| {
        let others: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..200).take_while(|_| store.increment("a").is_ok()).count())).collect();
        let mut mine = 0;
        let crashed = run_with_crash(&injector, || {
            for _ in 0..10 {
                store.increment("a").expect("written");
                mine += 1;
            }
        });
        assert_eq!(crashed, Err(CrashPoint::WalPreAggregate));
        others.into_iter().map(|other| other.join().expect("no panic") as u64).sum::<u64>() + mine
    });
    drop(store);
    let found = open(dir.path(), 2).get("a").expect("read");
    assert!((acknowledged..=acknowledged + 5).contains(&found), "acknowledged {acknowledged}, found {found}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_damage_gives_a_prefix_or_a_clear_error(cut in 0_usize..600, flip in 0_usize..600, mask in 0_u8..) {
        let dir = dir();
        let mut bytes = unsealed(dir.path(), &["a", "a", "a", "a"]);
        if let Some(byte) = bytes.get_mut(flip) {
            *byte ^= mask;
        }
        bytes.truncate(cut);
        fs::write(dir.path().join(LOG_NAME), &bytes).expect("damaged");
        match Store::open(dir.path(), 1) {
            Ok(store) => {
                let count = store.get("a").expect("read");
                prop_assert!(count <= 4);
                prop_assert_eq!(store.increment("a").expect("goes on"), count + 1);
                prop_assert_eq!(Store::replay(dir.path()).expect("whole"), store.state().expect("open"));
            }
            Err(StoreError::Corrupt { .. } | StoreError::NewerFormat { .. }) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
