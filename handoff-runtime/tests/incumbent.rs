//! The incumbent behind a real control socket, driven by a scripted supervisor: commit, abort, failed hooks, violations,
//! lost supervisors, and what happens to its lock each time.

#[path = "incumbent/mock.rs"]
mod mock;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use handoff_lock::{Attempt, DataDirLock, LeaseState, LockError, Unlocked, read_lease};
use handoff_proto::{Capabilities, HandoffId, Message, Side, short_name};
use handoff_runtime::{Error, Incumbent, Served};

use mock::{Call, Daemon, Supervisor};

fn sealed(daemon: &Daemon) -> (Supervisor, HandoffId) {
    let (mut supervisor, id) = drained(daemon);
    supervisor.send(Message::SealRequest { handoff_id: id });
    assert_eq!(supervisor.expect("SealComplete"), daemon.mock.seal_complete(id));
    (supervisor, id)
}

fn drained(daemon: &Daemon) -> (Supervisor, HandoffId) {
    let mut supervisor = daemon.supervisor();
    let id = supervisor.prepare();
    supervisor.expect("Drained");
    (supervisor, id)
}

#[test]
fn a_handover_commits_in_both_versions() {
    for version in [1, 2] {
        let daemon = Daemon::start();
        let mut supervisor = daemon.supervisor_of(version);
        let id = supervisor.prepare();
        assert_eq!(supervisor.expect("Drained"), Message::Drained { open_conns_remaining: 2, accept_closed: true });
        assert_eq!(read_lease(&daemon.data_dir()).unwrap().unwrap().handoff_id, Some(*id.as_bytes()));
        supervisor.send(Message::SealRequest { handoff_id: id });
        supervisor.expect("SealComplete");
        assert_eq!(read_lease(&daemon.data_dir()).unwrap().unwrap().state, LeaseState::Sealed);

        let successor = DataDirLock::acquire(&daemon.data_dir()).expect("the lock is free");
        supervisor.send(Message::Commit { handoff_id: id });
        assert_eq!(daemon.served().unwrap(), Served::Committed);
        assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal]);
        assert!(daemon.control_path().exists(), "the path may be the successor's by now");
        assert!(!daemon.lock_is_free());
        drop(successor);
    }
}

#[test]
fn a_commit_that_nobody_took_over_for_is_a_violation() {
    let daemon = Daemon::start();
    let (mut supervisor, id) = sealed(&daemon);
    supervisor.send(Message::Commit { handoff_id: id });
    supervisor.expect_closed();
    daemon.mock.wait_for(Call::Resume { changed: true });
    assert!(!daemon.lock_is_free());
    daemon.hand_over();
}

#[test]
fn commit_before_seal_closes_the_session() {
    let daemon = Daemon::start();
    let (mut supervisor, id) = drained(&daemon);
    supervisor.send(Message::Commit { handoff_id: id });
    supervisor.expect_closed();
    daemon.mock.wait_for(Call::Resume { changed: false });
    daemon.hand_over();
}

#[test]
fn seal_request_with_a_wrong_id_closes_the_session() {
    let daemon = Daemon::start();
    let (mut supervisor, _) = drained(&daemon);
    supervisor.send(Message::SealRequest { handoff_id: HandoffId::new() });
    supervisor.expect_closed();
    daemon.mock.wait_for(Call::Resume { changed: false });
    daemon.hand_over();
}

#[test]
fn commit_with_a_wrong_id_closes_the_session() {
    let daemon = Daemon::start();
    let (mut supervisor, _) = sealed(&daemon);
    supervisor.send(Message::Commit { handoff_id: HandoffId::new() });
    supervisor.expect_closed();
    daemon.mock.wait_for(Call::Resume { changed: true });
    daemon.hand_over();
}

#[test]
fn wrong_direction_messages_close_the_session_and_the_control_socket_goes_on() {
    let handoff_id = HandoffId::new();
    let illegal = [
        Message::Hello {
            role: Side::Successor,
            pid: 1,
            build_id: Vec::new(),
            proto_min: 1,
            proto_max: 2,
            capabilities: Capabilities::default(),
        },
        Message::HelloAck { proto_version_chosen: 2, handoff_id },
        Message::Drained { open_conns_remaining: 0, accept_closed: true },
        Message::SealComplete { handoff_id, last_revision_per_shard: vec![1], data_dir_fingerprint: [0; 32] },
        Message::SealFailed { handoff_id, error: "x".into(), partial_state: String::new() },
        Message::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 0 },
        Message::Begin { handoff_id },
        Message::Ready { handoff_id, listening_on: vec![], healthz_ok: true, advertised_revision_per_shard: vec![] },
    ];
    let daemon = Daemon::start();
    for message in illegal {
        let name = short_name(&message);
        let mut supervisor = daemon.supervisor();
        supervisor.send(message);
        assert!(supervisor.read().is_err(), "{name}");
    }
    assert_eq!(daemon.mock.calls(), []);
    daemon.hand_over();
}

#[test]
fn heartbeats_are_legal_in_any_state() {
    let daemon = Daemon::start();
    let mut supervisor = daemon.supervisor();
    let beat = |supervisor: &mut Supervisor| {
        for ts_ms in 0..3 {
            supervisor.send(Message::Heartbeat { ts_ms });
            assert!(matches!(supervisor.read().unwrap(), Message::Heartbeat { .. }));
        }
    };
    beat(&mut supervisor);
    let id = supervisor.prepare();
    supervisor.expect("Drained");
    beat(&mut supervisor);
    supervisor.send(Message::SealRequest { handoff_id: id });
    supervisor.expect("SealComplete");
    beat(&mut supervisor);
    let _successor = DataDirLock::acquire(&daemon.data_dir()).unwrap();
    supervisor.send(Message::Commit { handoff_id: id });
    assert_eq!(daemon.served().unwrap(), Served::Committed);
}

#[test]
fn an_abort_after_the_seal_takes_the_lock_back_and_resumes_once() {
    let daemon = Daemon::start();
    let (mut supervisor, id) = sealed(&daemon);
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    assert_eq!(supervisor.expect("Resumed"), Message::Resumed { handoff_id: id });
    assert!(!daemon.lock_is_free());
    assert_eq!(read_lease(&daemon.data_dir()).unwrap().unwrap().state, LeaseState::Active);
    // The next handover goes on in the same session.
    supervisor.prepare();
    supervisor.expect("Drained");
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal, Call::Resume { changed: true }, Call::Drain]);
}

#[test]
fn the_next_prepare_of_version_1_need_not_wait_for_the_resume() {
    let daemon = Daemon::start();
    let mut supervisor = daemon.supervisor_of(1);
    let id = supervisor.prepare();
    supervisor.expect("Drained");
    supervisor.send(Message::SealRequest { handoff_id: id });
    supervisor.expect("SealComplete");
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    supervisor.prepare();
    supervisor.expect("Drained");
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal, Call::Resume { changed: true }, Call::Drain]);
}

#[test]
fn an_abort_during_a_hook_is_seen_by_the_hook() {
    let daemon = Daemon::start();
    daemon.mock.block_until_cancelled();
    let mut supervisor = daemon.supervisor();
    let id = supervisor.prepare();
    daemon.mock.wait_for(Call::Drain);
    supervisor.send(Message::Abort { handoff_id: id, reason: "changed our mind".into() });
    assert_eq!(supervisor.expect("Resumed"), Message::Resumed { handoff_id: id });
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Resume { changed: false }]);
    daemon.mock.unblock();
    daemon.hand_over();
}

#[test]
fn the_pidfile_goes_before_the_drain_and_comes_back_with_an_undone_handover() {
    for undone_when_sealed in [false, true] {
        let daemon = Daemon::start();
        daemon.wait_for_pidfile();
        let (mut supervisor, id) = drained(&daemon);
        assert_eq!(daemon.pidfile(), None, "nobody waits for it in the pause");
        if undone_when_sealed {
            supervisor.send(Message::SealRequest { handoff_id: id });
            supervisor.expect("SealComplete");
            assert_eq!(daemon.pidfile(), None, "it would be the next owner's");
        }
        supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
        supervisor.expect("Resumed");
        daemon.wait_for_pidfile();
        daemon.hand_over();
    }
}

#[test]
fn a_failed_seal_keeps_the_lock_and_allows_a_retry() {
    for version in [1, 2] {
        let daemon = Daemon::start();
        daemon.mock.fail_next_seal("mock seal failure");
        let mut supervisor = daemon.supervisor_of(version);
        let id = supervisor.prepare();
        supervisor.expect("Drained");
        supervisor.send(Message::SealRequest { handoff_id: id });
        let failed = supervisor.expect("SealFailed");
        assert!(matches!(&failed, Message::SealFailed { error, .. } if error == "mock seal failure"), "{failed:?}");
        daemon.mock.wait_for(Call::Resume { changed: false });
        assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal, Call::Resume { changed: false }]);
        assert!(!daemon.lock_is_free());
        let id = supervisor.prepare();
        supervisor.expect("Drained");
        supervisor.send(Message::SealRequest { handoff_id: id });
        supervisor.expect("SealComplete");
    }
}

#[test]
fn a_failed_or_panicking_drain_is_answered_and_resumed() {
    let daemon = Daemon::start();
    for (text, panics) in [("disk full", false), ("boom", true)] {
        daemon.mock.fail_next_drain(text);
        // Who waits for the answer bounds the way back, and so must not wait for it.
        daemon.mock.hang_in_resume();
        if panics {
            daemon.mock.panic_instead();
        }
        let mut supervisor = daemon.supervisor();
        let id = supervisor.prepare();
        let failed = supervisor.expect("DrainFailed");
        assert!(matches!(&failed, Message::DrainFailed { error, .. } if error.contains(text)), "{failed:?}");
        daemon.mock.wait_for(Call::Resume { changed: false });
        supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
        daemon.mock.unblock();
        supervisor.expect("Resumed");
    }
    assert_eq!(daemon.mock.calls().iter().filter(|call| **call == Call::Resume { changed: false }).count(), 2);
    daemon.hand_over();
}

#[test]
fn a_failed_resume_is_tried_until_it_succeeds() {
    let daemon = Daemon::start();
    daemon.mock.fail_next_resume("not yet");
    let (mut supervisor, id) = sealed(&daemon);
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    assert_eq!(supervisor.expect("Resumed"), Message::Resumed { handoff_id: id });
    let resumes = daemon.mock.calls().iter().filter(|call| **call == Call::Resume { changed: true }).count();
    assert_eq!(resumes, 2, "one failed, one succeeded");
}

#[test]
fn a_state_that_cant_be_read_gives_the_lock_up() {
    let daemon = Daemon::start();
    daemon.mock.state_not_readable();
    let (mut supervisor, id) = sealed(&daemon);
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    assert!(matches!(daemon.served(), Err(Error::StateNotReadable { .. })));
    assert!(daemon.lock_is_free());
}

#[test]
fn a_second_prepare_with_another_id_is_refused() {
    let daemon = Daemon::start();
    let (mut supervisor, _) = drained(&daemon);
    supervisor.prepare();
    supervisor.expect_closed();
    daemon.mock.wait_for(Call::Resume { changed: false });
    daemon.hand_over();
}

#[test]
fn a_second_supervisor_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start();
    let (mut first, id) = drained(&daemon);
    let mut second = daemon.supervisor();
    second.prepare();
    second.expect_closed();
    first.send(Message::SealRequest { handoff_id: id });
    first.expect("SealComplete");
}

#[test]
fn a_supervisor_lost_after_the_seal_leads_to_a_resume() {
    let daemon = Daemon::start();
    let (supervisor, _) = sealed(&daemon);
    drop(supervisor);
    let mut supervisor = daemon.supervisor();
    supervisor.prepare();
    supervisor.expect("Drained");
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal, Call::Resume { changed: true }, Call::Drain]);
}

#[test]
fn a_supervisor_lost_while_draining_or_drained_leads_to_a_resume() {
    let daemon = Daemon::start();
    let (supervisor, _) = drained(&daemon);
    drop(supervisor);
    daemon.mock.wait_for(Call::Resume { changed: false });
    daemon.mock.block_until_cancelled();
    let mut supervisor = daemon.supervisor();
    supervisor.prepare();
    daemon.mock.wait_for(Call::Drain);
    drop(supervisor);
    daemon.mock.wait_for(Call::Resume { changed: false });
    daemon.mock.unblock();
    daemon.hand_over();
}

#[test]
fn a_newer_owner_supersedes_an_incumbent_without_a_supervisor() {
    let daemon = Daemon::start();
    let (supervisor, _) = sealed(&daemon);
    let mut other = DataDirLock::acquire(&daemon.data_dir()).unwrap();
    other.activate(b"newer").unwrap();
    drop(supervisor);
    assert_eq!(daemon.served().unwrap(), Served::Superseded);
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal]);
}

#[test]
fn silent_supervisors_are_given_up() {
    let daemon = Daemon::start();
    let (_silent, _) = drained(&daemon);
    daemon.mock.wait_for(Call::Resume { changed: false });
    let (_silent, _) = sealed(&daemon);
    daemon.mock.wait_for(Call::Resume { changed: true });
}

#[test]
fn silent_and_hostile_clients_never_block_a_handover() {
    let daemon = Daemon::start();
    let mut crowd: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(daemon.control_path()).unwrap()).collect();
    for client in &mut crowd {
        // It may have been crowded out already.
        let _ = std::io::Write::write_all(client, &[0xff; 64]);
    }
    daemon.hand_over();
}

#[test]
fn the_supervisor_may_send_prepare_and_seal_request_in_one_go() {
    let daemon = Daemon::start();
    let mut supervisor = daemon.supervisor();
    let id = supervisor.prepare_and_seal();
    supervisor.expect("Drained");
    assert_eq!(supervisor.expect("SealComplete"), daemon.mock.seal_complete(id));
}

#[test]
fn a_long_seal_keeps_neither_the_news_of_the_drain_nor_an_answer_back() {
    let daemon = Daemon::start_without_heartbeats();
    daemon.mock.block_seal();
    let mut supervisor = daemon.supervisor();
    supervisor.prepare_and_seal();
    supervisor.expect("Drained");
    supervisor.send(Message::Status);
    supervisor.expect("StatusReport");
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal]);
    daemon.mock.unblock();
    supervisor.expect("SealComplete");
}

#[test]
fn a_long_seal_behind_a_long_drain_keeps_the_news_back_neither() {
    let daemon = Daemon::start_without_heartbeats();
    daemon.mock.block_until_cancelled();
    let mut supervisor = daemon.supervisor();
    supervisor.prepare_and_seal();
    daemon.mock.wait_for(Call::Drain);
    // Whoever answers this waits beside the hook.
    supervisor.send(Message::Status);
    supervisor.expect("StatusReport");
    daemon.mock.block_seal();
    supervisor.expect("Drained");
    daemon.mock.unblock();
    supervisor.expect("SealComplete");
}

#[test]
fn the_seal_reports_its_progress() {
    let daemon = Daemon::start();
    daemon.mock.report_progress();
    let (mut supervisor, id) = drained(&daemon);
    supervisor.send(Message::SealRequest { handoff_id: id });
    let progress = Message::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 41 };
    assert_eq!(supervisor.expect("SealProgress"), progress);
    daemon.mock.unblock();
    supervisor.expect("SealComplete");
}

#[test]
fn status_and_listeners_are_answered() {
    let daemon = Daemon::start();
    let mut supervisor = daemon.supervisor();
    supervisor.send(Message::Status);
    let Message::StatusReport(report) = supervisor.read().unwrap() else { panic!() };
    assert_eq!((report.phase, report.shard_count, report.open_conns, report.epoch), (None, 2, 2, 1));
    supervisor.send(Message::ListenersRequest);
    assert_eq!(supervisor.read().unwrap(), Message::Listeners { names: vec![] });
}

#[test]
fn a_removed_control_path_is_published_again() {
    let daemon = Daemon::start();
    fs::remove_file(daemon.control_path()).unwrap();
    daemon.hand_over();
}

/// Seals for a handover to this process.
fn sealed_for(daemon: &Daemon, successor_pid: u32, deadline_ms: u64) -> (Supervisor, HandoffId) {
    let mut supervisor = daemon.supervisor();
    let id = supervisor.prepare_for(successor_pid, deadline_ms);
    supervisor.expect("Drained");
    supervisor.send(Message::SealRequest { handoff_id: id });
    supervisor.expect("SealComplete");
    (supervisor, id)
}

#[test]
fn whoever_takes_the_data_back_ends_the_successor() {
    let daemon = Daemon::start();
    let mut successor = Command::new("sleep").arg("1000").spawn().unwrap();
    let (mut supervisor, id) = sealed_for(&daemon, successor.id(), 60_000);
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    supervisor.expect("Resumed");
    assert_eq!(successor.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_process_that_is_no_child_of_the_supervisor_is_never_ended() {
    let daemon = Daemon::start();
    // The shell's child, not ours; it prints its own pid and lives until its input ends.
    let mut command = Command::new("sh");
    command.args(["-c", "sh -c 'echo $$; read _; echo alive'; :"]);
    let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(shell.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let (mut supervisor, id) = sealed_for(&daemon, line.trim().parse().unwrap(), 60_000);
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    supervisor.expect("Resumed");
    drop(shell.stdin.take());
    line.clear();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "alive\n");
    shell.wait().unwrap();
}

#[test]
fn a_late_successor_is_ended_when_nobody_else_does() {
    let daemon = Daemon::start();
    let mut successor = Command::new("sleep").arg("1000").spawn().unwrap();
    let (supervisor, _) = sealed_for(&daemon, successor.id(), 100);
    // The lock is held, and the lease still says "sealed": frozen between the two.
    let Attempt::Locked(claim) = Unlocked::open(&daemon.data_dir()).unwrap().try_lock() else { panic!() };
    drop(supervisor);
    assert_eq!(successor.wait().unwrap().signal(), Some(9));
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Seal], "the lock is not free yet");
    drop(claim);
    daemon.mock.wait_for(Call::Resume { changed: true });
    daemon.hand_over();
}

#[test]
fn a_handover_past_its_deadline_is_undone() {
    let daemon = Daemon::start();
    daemon.mock.block_until_cancelled();
    let mut supervisor = daemon.supervisor();
    supervisor.prepare_for(0, 50);
    supervisor.expect("DrainFailed");
    daemon.mock.wait_for(Call::Resume { changed: false });
    assert_eq!(daemon.mock.calls(), [Call::Drain, Call::Resume { changed: false }]);
    daemon.mock.unblock();
    daemon.hand_over();
}

#[test]
fn a_replaced_control_path_is_taken_back_after_an_abort() {
    let daemon = Daemon::start();
    let (mut supervisor, id) = sealed(&daemon);
    let stray = daemon.control_path().with_extension("stray");
    let stranger = std::os::unix::net::UnixListener::bind(&stray).unwrap();
    fs::rename(&stray, daemon.control_path()).unwrap();
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    supervisor.expect("Resumed");
    drop(stranger);
    daemon.hand_over();
}

#[test]
fn a_cold_start_that_fails_keeps_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(Incumbent::bind_cold_start(&long, lock), Err(Error::SocketPathTooLong { .. })));
    assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::Held { .. })));
}

#[test]
fn the_build_id_stands_in_hello_and_lease() {
    let daemon = Daemon::start();
    let supervisor = daemon.supervisor();
    let Message::Hello { role: Side::Incumbent, pid, build_id, .. } = &supervisor.hello else { panic!() };
    assert_eq!((*pid, &build_id[..]), (std::process::id(), &b"test build"[..]));
    let lease = read_lease(&daemon.data_dir()).unwrap().unwrap();
    assert_eq!((lease.state, &lease.build_id[..]), (LeaseState::Active, &b"test build"[..]));
}

#[test]
fn no_descriptor_and_no_thread_is_left_of_undone_handovers() {
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", "counts_what_is_left", "--ignored", "--test-threads=1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by the test before in a process of its own"]
fn counts_what_is_left() {
    let daemon = Daemon::start();
    undo_in_every_way(&daemon);
    let before = footprint();
    for _ in 0..3 {
        undo_in_every_way(&daemon);
        let until = Instant::now() + BOUND;
        while footprint().into_iter().zip(before).any(|(now, before)| now > before) {
            assert!(Instant::now() < until, "descriptors and threads {:?} instead of {before:?}", footprint());
            std::thread::yield_now();
        }
    }
    daemon.hand_over();
}

/// How many descriptors and threads this process has.
fn footprint() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|all| fs::read_dir(all).unwrap().count())
}

/// One whole handover after the other, each undone; the daemon serves again after each.
fn undo_in_every_way(daemon: &Daemon) {
    let mut successor = Command::new("sleep").arg("1000").spawn().unwrap();
    let (mut supervisor, id) = sealed_for(daemon, successor.id(), 60_000);
    supervisor.send(Message::ResumeAfterAbort { handoff_id: id });
    supervisor.expect("Resumed");
    successor.kill().unwrap();
    successor.wait().unwrap();

    let (mut supervisor, id) = drained(daemon);
    supervisor.send(Message::Abort { handoff_id: id, reason: "changed our mind".into() });
    supervisor.expect("Resumed");

    daemon.mock.fail_next_drain("disk full");
    let mut supervisor = daemon.supervisor();
    supervisor.prepare();
    supervisor.expect("DrainFailed");

    daemon.mock.fail_next_seal("disk full");
    let mut supervisor = daemon.supervisor();
    supervisor.prepare_and_seal();
    supervisor.expect("Drained");
    supervisor.expect("SealFailed");

    let (supervisor, _) = sealed(daemon);
    drop(supervisor);
    daemon.mock.wait_for(Call::Resume { changed: true });
}

/// The tests wait for events; this only bounds them.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
