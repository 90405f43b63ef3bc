//! What becomes of a lock when its process executes another program, execve(2).

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use handoff_lock::{Attempt, DataDirLock, LeaseState, LockError, Unlocked, holder, read_lease};

use super::{PATIENCE, Role, say, wait_to_be_told};

/// Becomes another program, which knows nothing of the lock.
pub(crate) fn leave_by_exec(dir: &Path) {
    let mut lock = DataDirLock::acquire(dir).unwrap().for_serving();
    lock.activate(b"build").unwrap();
    say("active");
    wait_to_be_told();
    panic!("{}", Command::new("cat").exec());
}

/// Becomes the next build, and takes the directory along.
pub(crate) fn go_on_by_exec(dir: &Path) {
    let mut lock = DataDirLock::acquire(dir).unwrap();
    let copy = lock.directory().unwrap();
    let _unlocked = lock.seal_and_pass().map_err(|(_, error)| error).unwrap();
    let mut next = Command::new(std::env::current_exe().unwrap());
    next.args(["--exact", "role", "--nocapture"]).env("HANDOFF_LOCK_TEST_ROLE", "executed");
    // What becomes a standard stream is not closed by exec.
    panic!("{}", next.stderr(copy).exec());
}

/// The next build.
pub(crate) fn be_executed(dir: &Path) {
    let passed = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    let busy = DataDirLock::acquire(dir);
    assert!(matches!(busy, Err(LockError::Held { holder: Some(holder) }) if holder.pid == std::process::id()));
    let mut unlocked = Unlocked::open(dir).unwrap();
    unlocked.adopt_directory(passed).unwrap();
    let Attempt::Locked(claim) = unlocked.try_lock() else { panic!("held") };
    assert_eq!(
        claim.found().map(|lease| (lease.state, lease.owner.pid)),
        Some((LeaseState::Sealed, std::process::id()))
    );
    let _lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
    say("owner");
    wait_to_be_told();
}

#[test]
fn what_is_executed_has_no_lock_whatever_its_pid() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = Role::start("exec-leaver", dir.path());
    owner.says("active");
    let pid = owner.child.id();
    owner.tell();
    let lock = DataDirLock::acquire_timeout(dir.path(), PATIENCE).unwrap();
    assert_eq!(lock.epoch(), 2, "it was the other's, under the first");
    assert!(owner.child.try_wait().unwrap().is_none(), "its process lives");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim(), "cat");
    lock.release().unwrap();
    assert_eq!(holder(dir.path()).unwrap(), None);
}

#[test]
fn the_lease_and_the_pidfile_of_who_executed_another_program_stand_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = Role::start("exec-leaver", dir.path());
    owner.says("active");
    let pid = owner.child.id();
    owner.tell();
    let start = std::time::Instant::now();
    while holder(dir.path()).unwrap().is_some() {
        assert!(start.elapsed() < PATIENCE, "it still holds the lock");
        std::thread::yield_now();
    }
    let lease = read_lease(dir.path()).unwrap().unwrap();
    assert_eq!((lease.owner.pid, lease.state), (pid, LeaseState::Active));
    assert_eq!(fs::read_to_string(dir.path().join(".handoff.pidfile")).unwrap().trim(), pid.to_string());
    assert!(owner.child.try_wait().unwrap().is_none(), "its process lives");
}

#[test]
fn a_build_that_executes_the_next_one_can_hand_it_the_directory_and_nobody_comes_between() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = Role::start("exec-goer", dir.path());
    owner.says("owner");
    let lease = read_lease(dir.path()).unwrap().unwrap();
    assert_eq!((lease.epoch, lease.owner.pid), (2, owner.child.id()));
    assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::Held { .. })));
}
