//! The order of the system calls of lock, lease, pidfile and mark, beside the one that was designed. A call that is left out or
//! changes its place shows here, whatever the tests of what comes of it say.

#![cfg(target_os = "linux")]

#[path = "order/designed.rs"]
mod designed;
mod trace;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use handoff_lock::{Attempt, DataDirLock, LockError, Unlocked};
use trace::{assert_as_designed, step};

#[test]
fn of_the_lock() {
    assert_as_designed("plays_the_lock", designed::LOCK);
}

#[test]
fn of_the_mark() {
    assert_as_designed("plays_the_mark", designed::MARK);
}

#[test]
#[ignore = "played by of_the_lock, under strace"]
fn plays_the_lock() {
    let Some(base) = trace::base() else { return };
    let base = base.as_path();
    // One that has had an owner, so that no mark is to be reserved.
    DataDirLock::acquire(base).unwrap().release().unwrap();
    let mut lock = step(base, "acquire", || DataDirLock::acquire(base)).unwrap();
    let held = step(base, "acquire what is held", || DataDirLock::acquire(base));
    assert!(matches!(held, Err(LockError::Held { .. })));
    step(base, "stamp", || lock.stamp(Some([7; 16]))).unwrap();
    step(base, "activate", || lock.activate(b"build")).unwrap();
    step(base, "withdraw", || lock.withdraw());
    step(base, "announce", || lock.announce());
    let unlocked = step(base, "seal", || lock.seal().map_err(|(_, error)| error)).unwrap();
    let Attempt::Locked(claim) = step(base, "take it back", || unlocked.try_lock()) else { panic!("it is held") };
    let mut lock = step(base, "claim", || claim.claim_quietly(None).map_err(|(_, error)| error)).unwrap();
    fs::remove_file(base.join(".handoff.lock")).unwrap();
    step(base, "write a lease when the lock file is gone", || lock.activate(b"build")).unwrap();
    step(base, "release", || lock.release()).unwrap();
    die_with_the_lock(base);
    let lock = step(base, "break a dead owner's lock", || DataDirLock::acquire_or_break_stale(base)).unwrap();
    step(base, "drop", || drop(lock));
    let reading = step(base, "read while nobody writes", || DataDirLock::acquire_shared(base)).unwrap();
    let refused = step(base, "acquire what is being read", || DataDirLock::acquire(base));
    assert!(matches!(refused, Err(LockError::BeingRead { .. })));
    step(base, "read no more", || drop(reading));
    pass_it_on(base);
}

fn pass_it_on(base: &Path) {
    let mut successor = Unlocked::open(base).unwrap();
    let mut lock = DataDirLock::acquire(base).unwrap();
    let copy = step(base, "copy the directory", || lock.directory()).unwrap();
    step(base, "adopt it", || successor.adopt_directory(copy)).unwrap();
    let incumbent = step(base, "seal and pass", || lock.seal_and_pass().map_err(|(_, error)| error)).unwrap();
    let Attempt::Locked(claim) = step(base, "lock what was passed", || successor.try_lock()) else { panic!("held") };
    let lock = claim.claim_quietly(None).map_err(|(_, error)| error).unwrap();
    step(base, "leave it to the successor", || drop(incumbent));
    step(base, "release what was passed", || lock.release()).unwrap();
}

const DIES_AT: &str = "HANDOFF_TEST_DIES_AT";

/// Another process has owned it to its end.
fn die_with_the_lock(base: &Path) {
    let mut other = Command::new(std::env::current_exe().unwrap());
    other.args(["--exact", "dies_with_the_lock", "--ignored"]).env(DIES_AT, base);
    assert!(other.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success());
}

#[test]
#[ignore = "played by plays_the_lock in a process of its own"]
fn dies_with_the_lock() {
    let Some(base) = std::env::var_os(DIES_AT) else { return };
    DataDirLock::acquire(Path::new(&base)).unwrap().forget();
}

#[test]
#[ignore = "played by of_the_mark, under strace"]
fn plays_the_mark() {
    let Some(base) = trace::base() else { return };
    let (base, dir) = (base.as_path(), base.join("data"));
    let mut lock = step(base, "acquire in a new directory", || DataDirLock::acquire(&dir)).unwrap();
    step(base, "reserve when enough is left", || lock.reserve_epochs()).unwrap();
    fs::remove_file(dir.join(".handoff.epoch")).unwrap();
    step(base, "reserve when the second copy is lost", || lock.reserve_epochs()).unwrap();
    // Until more than half of what was reserved is used up.
    while lock.epoch() < 600 {
        drop(lock);
        lock = DataDirLock::acquire(&dir).unwrap();
    }
    step(base, "reserve when little is left", || lock.reserve_epochs()).unwrap();
}
