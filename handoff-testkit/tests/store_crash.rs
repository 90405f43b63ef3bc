//! The store's eight crash points, by panic in this process: at the first and at a later crossing, among concurrent writers.
//! Afterwards every acknowledged write is there once, and the store equals a fresh replay of its whole log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use handoff_testkit::store::{LogRetention, NEIGHBOURS_MAX, State, Store, StoreError};
use handoff_testkit::{CrashInjector, CrashPoint, run_with_crash};

/// What a writer writes.
const ROUNDS: u32 = 24;
/// What the one that is to crash writes, if it does not: each checkpoint of the three others may leave one of its own nothing to
/// do, and so not at the point.
const ROUNDS_TO_CRASH: u32 = 4 * ROUNDS;

/// What one writer was told was done.
#[derive(Debug, Default)]
struct Acknowledged {
    increments: BTreeMap<String, u64>,
    items: Vec<(String, u32)>,
    pairs: BTreeMap<String, u64>,
    /// Writes that were begun and not acknowledged: they may be there.
    unanswered: u64,
}

/// One writer's mixture of everything, checkpoints included; ends at the first error.
fn write_all_sorts(store: &Store, writer: u32, rounds: u32, acknowledged: &mut Acknowledged) {
    for round in 0..rounds {
        acknowledged.unanswered = 1;
        let key = format!("group-{}:{}", writer % 2, round % 3);
        if store.increment(&key).is_err() {
            return;
        }
        *acknowledged.increments.entry(key).or_default() += 1;
        let collection = format!("pins-{}", round % 2);
        let item = writer * 10_000 + round;
        if store.add_to_collection(&collection, item).is_err() {
            return;
        }
        acknowledged.items.push((collection, item));
        // A key of the writer's own, whose edges are engaged often enough to be evicted.
        let (hub, other) = (format!("hub-{writer}"), format!("near-{}", round as usize % (2 * NEIGHBOURS_MAX)));
        if store.co_engaged(&hub, &other).is_err() {
            return;
        }
        *acknowledged.pairs.entry(hub).or_default() += 1;
        if round % 7 == 3 && matches!(store.checkpoint(), Err(error) if !matches!(error, StoreError::Sealing)) {
            return;
        }
        acknowledged.unanswered = 0;
    }
}

fn open(dir: &Path, epoch: u64, retention: LogRetention) -> Store {
    Store::open_with(dir, epoch, retention).expect("opens")
}

/// Every acknowledged write is there once; of the unanswered ones each may be there.
fn check_acknowledged(state: &State, all: &[Acknowledged]) {
    let unanswered: u64 = all.iter().map(|one| one.unanswered).sum();
    let mut expected = BTreeMap::<&str, u64>::new();
    for (key, count) in all.iter().flat_map(|one| &one.increments) {
        *expected.entry(key).or_default() += count;
    }
    let mut extra = 0;
    for (key, count) in &expected {
        let found = state.get(key);
        assert!(found >= *count, "{key}: acknowledged {count}, found {found}");
        extra += found - count;
    }
    let acknowledged: u64 = expected.values().sum();
    let found: u64 = state.signals.values().map(|signal| signal.count).sum();
    assert!((acknowledged..=acknowledged + unanswered).contains(&found), "{acknowledged}, {found}");
    assert!(extra <= unanswered, "{extra} more than acknowledged, {unanswered} were unanswered");
    assert_eq!(state.cohorts.values().map(|cohort| cohort.events).sum::<u64>(), found, "each event is in one cohort");
    for (collection, item) in all.iter().flat_map(|one| &one.items) {
        assert!(state.collections[collection].contains(*item), "{collection} {item}");
    }
    let items: u64 = state.collections.values().map(|members| members.len()).sum();
    let acknowledged = all.iter().map(|one| one.items.len() as u64).sum::<u64>();
    assert!((acknowledged..=acknowledged + unanswered).contains(&items), "{acknowledged}, {items}");
    for (hub, pairs) in all.iter().flat_map(|one| &one.pairs) {
        let edges = &state.neighbours[hub];
        assert!(edges.iter().count() <= NEIGHBOURS_MAX);
        assert!(edges.iter().count() as u64 >= (*pairs).min(NEIGHBOURS_MAX as u64), "{hub}: {pairs} pairs");
    }
}

/// Crashes at `point` after `pass` crossings, among three other writers.
fn crash_and_recover(point: CrashPoint, pass: u64, retention: LogRetention) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path(), 1, retention);
    let injector = CrashInjector::new(point, pass);
    let together = Barrier::new(4);
    let mut all: Vec<Acknowledged> = (0..4).map(|_| Acknowledged::default()).collect();
    thread::scope(|scope| {
        let (store, together, injector) = (&store, &together, &injector);
        for (writer, acknowledged) in all.iter_mut().enumerate() {
            scope.spawn(move || {
                together.wait();
                if writer > 0 {
                    return write_all_sorts(store, writer as u32, ROUNDS, acknowledged);
                }
                let outcome = run_with_crash(injector, || write_all_sorts(store, 0, ROUNDS_TO_CRASH, acknowledged));
                assert_eq!(outcome, Err(point), "it must have fired");
            });
        }
    });
    assert!(injector.has_fired());
    assert_eq!(injector.crossing_count(), pass + 1);
    drop(store);

    let store = open(dir.path(), 2, retention);
    let state = store.state().expect("open");
    check_acknowledged(&state, &all);
    assert_eq!(state, Store::replay(dir.path()).expect("whole"), "{point:?} after {pass}");
    hand_over(dir.path(), store, retention);
}

/// Writes, seals, opens, and everything is as it was.
fn hand_over(dir: &Path, store: Store, retention: LogRetention) {
    store.increment("late").expect("writes again");
    store.checkpoint().expect("checkpoints again");
    store.add_to_collection("late", 1).expect("writes again");
    let state = store.state().expect("open");
    let sealed = store.seal().expect("seals");
    let successor = open(dir, 3, retention);
    assert_eq!(successor.recovery(), handoff_testkit::store::Recovery::Sealed);
    assert_eq!(successor.contents().expect("open"), sealed);
    assert_eq!(successor.state().expect("open"), state);
    assert_eq!(successor.state().expect("open"), Store::replay(dir).expect("whole"));
}

fn crash_at(point: CrashPoint) {
    for pass in [0, 2] {
        crash_and_recover(point, pass, LogRetention::Whole);
        crash_and_recover(point, pass, LogRetention::Truncated);
    }
}

#[test]
fn wal_pre_aggregate() {
    crash_at(CrashPoint::WalPreAggregate);
}

#[test]
fn wal_post_aggregate() {
    crash_at(CrashPoint::WalPostAggregate);
}

#[test]
fn checkpoint_pre_flush() {
    crash_at(CrashPoint::CheckpointPreFlush);
}

#[test]
fn checkpoint_post_flush() {
    crash_at(CrashPoint::CheckpointPostFlush);
}

#[test]
fn signal_aggregation_update() {
    crash_at(CrashPoint::SignalAggregationUpdate);
}

#[test]
fn cohort_ledger_update() {
    crash_at(CrashPoint::CohortLedgerUpdate);
}

#[test]
fn collection_index_update() {
    crash_at(CrashPoint::CollectionIndexUpdate);
}

#[test]
fn co_engagement_update() {
    crash_at(CrashPoint::CoEngagementUpdate);
}
