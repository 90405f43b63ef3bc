//! Single steps of a handover beside their floors and beside the peer's.
//!
//! `cargo bench -p handoff-testkit --features bench --bench steps`. The disk is the one under target/; with `BENCH_DIR` another.

#![allow(missing_docs, reason = "criterion's macros make functions of their own")]

use std::hint::black_box;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use handoff_proto::recovery::{Findings, Input, Journaled, Recovery};
use handoff_proto::{LeaseState, LeaseView, Machine, Phase, ProcessId, Timing};
use handoff_testkit::bench::micro::{Journals, Locks};

const PROGRAM: &str = "/bin/true";

fn room() -> tempfile::TempDir {
    let dir = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(dir).expect("a directory")
}

fn lock(criterion: &mut Criterion) {
    let room = room();
    let mut locks = Locks::new(room.path()).expect("a directory");
    let mut group = criterion.benchmark_group("lock");
    group.bench_function("handoff", |bencher| bencher.iter(|| locks.handoff().expect("locked")));
    group.bench_function("handoff-in-a-handover", |bencher| {
        bencher.iter(|| locks.handoff_in_a_handover().expect("locked"));
    });
    group.bench_function("peer", |bencher| bencher.iter(|| locks.peer().expect("locked")));
    group.bench_function("floor", |bencher| bencher.iter(|| locks.floor().expect("locked")));
    group.finish();
}

fn journal(criterion: &mut Criterion) {
    let room = room();
    let mut journals = Journals::new(room.path()).expect("a directory");
    let mut group = criterion.benchmark_group("journal");
    group.bench_function("handoff", |bencher| bencher.iter(|| journals.handoff().expect("written")));
    group.bench_function("peer", |bencher| bencher.iter(|| journals.peer().expect("written")));
    group.bench_function("floor", |bencher| bencher.iter(|| journals.floor().expect("written")));
    group.finish();
    let mut group = criterion.benchmark_group("journal-unsynced");
    group.bench_function("handoff", |bencher| bencher.iter(|| journals.handoff_unsynced().expect("written")));
    group.bench_function("floor", |bencher| bencher.iter(|| journals.floor_unsynced().expect("written")));
    group.finish();
}

/// Until the program has replaced the child, and then until it has ended.
fn spawn(criterion: &mut Criterion) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut group = criterion.benchmark_group("spawn");
    group.sample_size(50).measurement_time(Duration::from_secs(3));
    for count in [1, 100, 1_000] {
        let clones: Vec<_> = (0..count).map(|_| listener.try_clone().expect("a descriptor")).collect();
        let names = (0..count).map(|number| format!("listener-{number}"));
        let fds: Vec<_> = names.zip(&clones).map(|(name, listener)| (name, listener.as_fd())).collect();
        group.bench_function(BenchmarkId::new("handoff", count), |bencher| {
            bencher.iter(|| {
                let mut process = handoff_runtime::measure::spawn(Path::new(PROGRAM), &fds).expect("started");
                process.wait().expect("ended")
            });
        });
        let raw: Vec<_> = fds.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect();
        group.bench_function(BenchmarkId::new("peer", count), |bencher| {
            bencher.iter(|| {
                let mut command = Command::new(PROGRAM);
                handoff::pass_listener_fds_on_spawn(&mut command, &raw, None);
                command.spawn().and_then(|mut child| child.wait()).expect("started")
            });
        });
    }
    group.bench_function("floor", |bencher| {
        bencher.iter(|| Command::new(PROGRAM).spawn().and_then(|mut child| child.wait()).expect("started"));
    });
    group.finish();
}

/// From what is found to what is done, where a supervisor died in the middle of a handover. The peer decides nothing.
fn recovery(criterion: &mut Criterion) {
    let process = |pid| ProcessId { pid, start_time: 7 };
    let lease = LeaseView { epoch: 3, owner: process(20), state: LeaseState::Active, handoff_id: None };
    let findings = Findings {
        journal: Some(Journaled {
            phase: Phase::AwaitingReady,
            incumbent: Some(process(10)),
            successor: Some(process(20)),
        }),
        lease: Some(lease),
        daemon: Some(process(10)),
        leaving: Vec::new(),
        answers: Some(process(20)),
        lock_holder: Some(20),
    };
    criterion.bench_function("recovery", |bencher| {
        bencher.iter(|| {
            let mut machine = Recovery::new(Timing::default());
            black_box(machine.step(Input::Start));
            machine.step(Input::Found(black_box(findings.clone())))
        });
    });
}

criterion_group!(benches, lock, journal, spawn, recovery);
criterion_main!(benches);
