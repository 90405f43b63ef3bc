//! How long a large store takes to open: sealed, as after a handover, and cold, by one pass over its log.
//!
//! `cargo run --release -p handoff-testkit --features store --example store_scale [KEYS]`

#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use handoff_testkit::store::{LogRetention, Recovery, Store};

type AnyError = Box<dyn std::error::Error>;

const KEYS: u64 = 1_000_000;
const COLLECTIONS: u32 = 100;
const ITEMS_EACH: u32 = 100;
const COHORTS: u64 = 10;
/// Writes behind the last checkpoint: about as many as can be there before the next one is due.
const CHANGES: usize = 15_000;
const OPENS: usize = 9;

fn main() -> Result<(), AnyError> {
    let keys: u64 = std::env::args().nth(1).map_or(Ok(KEYS), |keys| keys.parse())?;
    let (large, empty) = (tempfile::tempdir()?, tempfile::tempdir()?);
    fill(large.path(), keys)?;
    Store::open(empty.path(), 1)?.seal()?;

    let (sealed, nothing) = (median_open(large.path())?, median_open(empty.path())?);
    println!("{keys} keys, {COLLECTIONS} collections, {COHORTS} cohorts, {CHANGES} changes since the checkpoint");
    println!("  opened sealed   {:>10.3} ms, an empty one {:.3} ms", ms(sealed), ms(nothing));

    let store = Store::open_with(large.path(), 100, LogRetention::Whole)?;
    let started = Instant::now();
    let count = store.get("cohort-1:key-1")?;
    println!("  a cold key      {:>10.3} ms, its count {count}", ms(started.elapsed()));
    let started = Instant::now();
    store.increment("cohort-2:key-2")?;
    println!("  a cold write    {:>10.3} ms, its sync included", ms(started.elapsed()));
    drop(store); // as a crash does
    let started = Instant::now();
    let store = Store::open_with(large.path(), 101, LogRetention::Whole)?;
    println!("  after a crash   {:>10.3} ms, {:?}", ms(started.elapsed()), store.recovery());
    drop(store);

    let started = Instant::now();
    let state = Store::replay(large.path())?;
    let took = started.elapsed();
    let writes: u64 = state.signals.values().map(|signal| signal.count).sum::<u64>()
        + state.collections.values().map(|members| members.len()).sum::<u64>();
    println!("  cold, one pass  {:>10.3} ms, {:.0} writes/s", ms(took), writes as f64 / took.as_secs_f64());
    Ok(())
}

/// A store of this size, sealed some changes after its last checkpoint; its log is whole.
fn fill(dir: &Path, keys: u64) -> Result<(), AnyError> {
    let store = Store::open_with(dir, 1, LogRetention::Whole)?;
    let started = Instant::now();
    let key = |number: u64| format!("cohort-{}:key-{number}", number % COHORTS);
    let all: Vec<_> = (0..keys).map(key).collect();
    for some in all.chunks(10_000) {
        store.increment_all(some.iter().map(String::as_str))?;
        if store.is_checkpoint_due() {
            store.checkpoint()?;
        }
    }
    for collection in 0..COLLECTIONS {
        for item in 0..ITEMS_EACH {
            store.add_to_collection(&format!("collection-{collection}"), item * 977)?;
        }
    }
    store.checkpoint()?;
    store.increment_all(all.iter().take(CHANGES).map(String::as_str))?;
    store.seal()?;
    println!("filled in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn median_open(dir: &Path) -> Result<Duration, AnyError> {
    let mut times = Vec::new();
    for epoch in 2..2 + OPENS as u64 {
        let started = Instant::now();
        let store = Store::open(dir, epoch)?;
        times.push(started.elapsed());
        if !matches!(store.recovery(), Recovery::Sealed) {
            return Err(format!("{:?}", store.recovery()).into());
        }
        drop(store);
    }
    times.sort_unstable();
    Ok(times[OPENS / 2])
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
