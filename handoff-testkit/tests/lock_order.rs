//! Promise 2 against a real incumbent: the lock is released after the seal, not before, and not at all when the seal fails.

use std::path::Path;
use std::thread;
use std::time::Duration;

use handoff_proto::{Message, PROTO_MAX, Side};
use handoff_runtime::{DataDirLock, Incumbent, LockError};
use handoff_testkit::{MockDrainable, ScriptedSupervisor};

const DEADLINE: Duration = Duration::from_secs(60);

fn is_held(data_dir: &Path) -> bool {
    matches!(DataDirLock::acquire(data_dir), Err(LockError::Held { .. }))
}

/// An incumbent in a thread, and a supervisor that has had it drained.
fn drained(dir: &Path, daemon: &MockDrainable) -> ScriptedSupervisor {
    let control = dir.join("control.sock");
    let lock = DataDirLock::acquire(&dir.join("data")).unwrap();
    let incumbent = Incumbent::bind_cold_start(&control, lock).unwrap();
    let hooks = daemon.clone();
    thread::spawn(move || incumbent.serve(hooks));
    let mut supervisor = ScriptedSupervisor::connect(&control);
    supervisor.greet(Side::Incumbent, PROTO_MAX);
    supervisor.prepare(std::process::id(), DEADLINE);
    assert!(matches!(supervisor.receive(), Message::Drained { .. }));
    supervisor
}

#[test]
fn the_lock_is_held_until_the_seal_has_returned() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let daemon = MockDrainable::default();
    daemon.block_seal();
    let mut supervisor = drained(dir.path(), &daemon);
    assert!(is_held(&data_dir), "drained");

    supervisor.request_seal();
    daemon.wait_for_calls(2);
    assert!(is_held(&data_dir), "sealing");

    daemon.unblock_seal();
    assert!(matches!(supervisor.receive(), Message::SealComplete { .. }));
    assert!(!is_held(&data_dir), "sealed");
}

#[test]
fn a_failed_seal_never_lets_the_lock_go() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let daemon = MockDrainable::default();
    daemon.fail_next_seal("the disk is full");
    let mut supervisor = drained(dir.path(), &daemon);
    supervisor.request_seal();
    assert!(matches!(supervisor.receive(), Message::SealFailed { error, .. } if error == "the disk is full"));
    assert!(is_held(&data_dir));
}
