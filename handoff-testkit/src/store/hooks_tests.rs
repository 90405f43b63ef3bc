//! The daemon's hooks under load, without processes: what a handover and an abort look like to the clients.

use std::time::Instant;

use super::*;
use crate::audit::Verdict;
use crate::load::{Cost, Load, LoadSpec};
use crate::oracle::{Log, verify};
use crate::store::StoreClient;

const PATIENCE: Duration = Duration::from_secs(20);

fn start(dir: &Path) -> Daemon {
    Daemon::start(&dir.join("data"), "test", 32, LogRetention::Whole).expect("starts")
}

/// A daemon that serves `listener` under `epoch`.
fn serving(dir: &Path, listener: &TcpListener, epoch: u64) -> Daemon {
    let daemon = start(dir);
    daemon.open(epoch).expect("opens");
    daemon.server.listen(vec![listener.try_clone().expect("cloned")]).expect("listens");
    daemon
}

fn drain(daemon: &Daemon) -> DrainReport {
    daemon.drain(&DrainContext::for_test(Instant::now() + PATIENCE)).expect("drains")
}

fn seal(daemon: &Daemon) -> SealReport {
    daemon.seal(&SealContext::for_test()).expect("seals")
}

/// Waits for some more acknowledged writes.
fn go_on(load: &Load) {
    assert!(load.wait_for_acks(50, PATIENCE), "{}", load.counts());
}

fn finish(load: Load, dir: &Path) {
    let seen = load.stop().expect("logged");
    let found = verify(&seen.acks_dir, &dir.join("data")).expect("readable");
    assert_eq!((found.acked, found.writes), (seen.counts.acked, seen.counts.acked));
    let verdict = Verdict::new(&seen, found, Cost::NOTHING);
    assert!(verdict.is_clean(), "{:?}", verdict.problems());
    assert_eq!(Log::read(&dir.join("data")).expect("readable").damaged, 0);
}

fn load(dir: &Path, listener: &TcpListener) -> Load {
    let address = listener.local_addr().expect("has one");
    let spec = LoadSpec { clients: 8, think: Duration::from_micros(200), ..LoadSpec::new(address, &dir.join("acks")) };
    Load::start(&spec, StoreClient::new()).expect("starts")
}

#[test]
fn daemons_follow_each_other_under_load_and_the_clients_lose_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let mut daemon = serving(dir.path(), &listener, 1);
    let load = load(dir.path(), &listener);
    for epoch in 2..20 {
        go_on(&load);
        let successor = start(dir.path());
        assert!(drain(&daemon).accept_closed);
        let sealed = seal(&daemon);
        let opened = successor.open(epoch).expect("opens");
        assert_eq!(sealed.last_revision_per_shard, [opened.last_sequence]);
        assert_eq!(sealed.data_dir_fingerprint, opened.fingerprint);
        successor.server.listen(vec![listener.try_clone().expect("cloned")]).expect("listens");
        assert_eq!(daemon.server.leave(PATIENCE), 0, "every client leaves after BYE");
        daemon = successor;
    }
    finish(load, dir.path());
}

#[test]
fn an_aborted_handover_costs_the_clients_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let daemon = serving(dir.path(), &listener, 1);
    let load = load(dir.path(), &listener);
    let resume = |resume| daemon.resume_after_abort(&resume).expect("resumes");

    go_on(&load);
    drain(&daemon);
    resume(Resume::new(false, 1));
    go_on(&load);
    drain(&daemon);
    seal(&daemon);
    resume(Resume::new(false, 1));
    go_on(&load);
    drain(&daemon);
    seal(&daemon);
    resume(Resume::new(true, 3));
    go_on(&load);
    finish(load, dir.path());
}

#[test]
fn resuming_reads_what_the_successor_wrote() {
    for sealed in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let daemon = serving(dir.path(), &listener, 1);
        drain(&daemon);
        if sealed {
            seal(&daemon);
        }
        Store::open(&dir.path().join("data"), 2).expect("opens").increment("key").expect("written");
        daemon.resume_after_abort(&Resume::new(true, 3)).expect("resumes");
        let store = daemon.service.store().expect("open");
        assert_eq!((store.get("key").expect("read"), store.epoch()), (1, 3));
        assert_eq!(daemon.snapshot_state().last_revision_per_shard, [1]);
    }
}

#[test]
fn a_newer_format_is_told_as_not_readable() {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let daemon = serving(dir.path(), &listener, 1);
    seal(&daemon);
    let log = dir.path().join("data").join(super::super::LOG_NAME);
    let mut bytes = std::fs::read(&log).expect("the log");
    bytes[12] = 9;
    std::fs::write(&log, bytes).expect("written");
    let error = daemon.resume_after_abort(&Resume::new(true, 3)).expect_err("another format");
    assert!(error.downcast_ref::<StateNotReadable>().is_some(), "{error}");
}

#[test]
fn a_sealed_store_answers_retry() {
    let dir = tempfile::tempdir().expect("a directory");
    let service = StoreService::new(dir.path(), "test", LogRetention::Whole, sync_channel(1).0);
    let increment = Request::Increment { key: "key", token: None };
    assert_eq!(service.answer(increment, 1), Reply::Retry, "not open yet");
    service.open(1).expect("opens");
    assert_eq!(service.answer(increment, 1), Reply::Ok(1));
    assert!(service.answer(Request::Stats, 1).to_string().contains("keys=1 sequence=1 epoch=1 connections=1"));
    service.store().expect("open").seal().expect("sealed");
    for request in [increment, Request::Get { key: "key" }, Request::Stats] {
        assert_eq!(service.answer(request, 1), Reply::Retry);
    }
}
