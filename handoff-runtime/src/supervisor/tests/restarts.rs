//! A supervisor that is started again.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use handoff_journal::{Details, HandoffId, Phase, StateJournal};
use handoff_proto::Timing;
use rustix::fs::{FlockOperation, flock};

use super::cast::{Incumbent, Manner, Stage, timing};
use crate::error::Error;
use crate::process::Process;
use crate::testing::start_late_taker;

/// A child that never ends by itself.
fn sleeper() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn record(phase: Phase, incumbent_pid: u32, successor_pid: u32) -> StateJournal {
    let start_time = |pid| Process::open(pid).unwrap().map(|process| process.id().start_time);
    StateJournal {
        handoff_id: HandoffId::new(),
        phase,
        incumbent_pid,
        successor_pid: Some(successor_pid),
        started_at_unix_ms: 1,
        details: Details {
            incumbent_start_time: start_time(incumbent_pid),
            successor_start_time: start_time(successor_pid),
            ..Details::default()
        },
    }
}

#[test]
fn adopts_the_living_incumbent_and_gets_its_listeners_back() {
    for count in [0, 3, 253, 300] {
        let stage = Stage::set();
        let incumbent = Incumbent::serve(&stage, Manner::Gives(count));
        let own = UnixListener::bind(stage.dir.path().join("own")).unwrap();
        let supervisor = stage.supervisor().with_listener("listener-1", &own);
        let recovery = supervisor.resume_from_journal().unwrap();
        assert_eq!(recovery.serving.map(|process| process.pid()), Some(std::process::id()));
        assert!(recovery.interrupted.is_none() && recovery.retiring.is_none());
        let mut names: Vec<_> = supervisor.listeners().unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count.max(1), "its own one is kept, the others come back");
        incumbent.end();
    }
}

#[test]
fn nobody_lives() {
    let stage = Stage::set();
    let recovery = stage.supervisor().resume_from_journal().unwrap();
    assert!(recovery.serving.is_none() && recovery.interrupted.is_none());
}

#[test]
fn a_successor_of_the_journal_is_ended_and_the_incumbent_adopted() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let mut orphan = sleeper();
    let record = record(Phase::AwaitingReady, std::process::id(), orphan.id());
    record.write_atomic(&stage.journal()).unwrap();
    let supervisor = stage.supervisor();
    let recovery = supervisor.resume_from_journal().unwrap();
    assert_eq!(recovery.serving.map(|process| process.pid()), Some(std::process::id()));
    assert_eq!(recovery.interrupted, Some(record));
    // It was reaped already, as a child of this process.
    assert!(orphan.try_wait().is_err());

    let again = supervisor.resume_from_journal().unwrap();
    assert!(again.serving.is_some() && again.interrupted.is_none(), "it is settled");
    incumbent.end();
}

/// It becomes the owner when SIGSTOP is under way to it, and before it has stopped.
#[test]
fn a_successor_of_the_journal_is_looked_at_when_it_has_stopped_and_not_before() {
    let stage = Stage::set();
    let old = sleeper();
    let mut taker = start_late_taker(&stage.data_dir(), *HandoffId::new().as_bytes());
    taker.wait_until_taken(&stage.data_dir());
    record(Phase::AwaitingReady, old.id(), taker.pid()).write_atomic(&stage.journal()).unwrap();
    let recovery = stage.supervisor().resume_from_journal().unwrap();
    assert_eq!(recovery.serving.map(|process| process.pid()), Some(taker.pid()));
    taker.end();
    end(old);
}

#[test]
fn a_pid_that_is_another_process_by_now_is_left_alone() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let stranger = sleeper();
    let mut record = record(Phase::AwaitingReady, std::process::id(), stranger.id());
    record.details.successor_start_time = record.details.successor_start_time.map(|ticks| ticks - 1);
    record.write_atomic(&stage.journal()).unwrap();
    assert!(stage.supervisor().resume_from_journal().unwrap().serving.is_some());
    assert!(Process::open(stranger.id()).unwrap().is_some(), "a stranger was killed");
    end(stranger);
    incumbent.end();
}

/// On some kernels opening such a pid fails in the way of a file that is not there.
#[test]
fn remembered_pids_that_are_mere_threads_by_now_are_dead_processes() {
    let stage = Stage::set();
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_pid() as u32).unwrap();
        ended.recv().unwrap_err();
    });
    let pid = told.recv().unwrap();
    let mut record = record(Phase::AwaitingReady, pid, pid);
    record.details.incumbent_start_time = Some(1);
    record.details.successor_start_time = Some(1);
    record.write_atomic(&stage.journal()).unwrap();
    assert!(stage.supervisor().resume_from_journal().unwrap().serving.is_none());
    drop(end);
    thread.join().unwrap();
}

#[test]
fn an_unreadable_lease_stops_nobody_from_being_adopted_or_started() {
    let stage = Stage::set();
    let lock_file = stage.data_dir().join(handoff_lock::LOCK_FILE);
    fs::create_dir_all(&lock_file).unwrap();
    assert!(handoff_lock::read_lease(&stage.data_dir()).is_err());
    assert!(stage.supervisor().resume_from_journal().unwrap().serving.is_none());

    fs::remove_dir(&lock_file).unwrap();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    fs::remove_file(&lock_file).unwrap();
    fs::create_dir(&lock_file).unwrap();
    let recovery = stage.supervisor().resume_from_journal().unwrap();
    assert_eq!(recovery.serving.map(|process| process.pid()), Some(std::process::id()));
    incumbent.end();
}

#[test]
fn after_a_commit_the_old_process_is_to_be_retired() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let old = sleeper();
    record(Phase::Committed, old.id(), std::process::id()).write_atomic(&stage.journal()).unwrap();
    let recovery = stage.supervisor().resume_from_journal().unwrap();
    assert_eq!(recovery.serving.map(|process| process.pid()), Some(std::process::id()));
    assert_eq!(recovery.retiring.map(|process| process.pid()), Some(old.id()));
    assert!(recovery.interrupted.is_none());
    end(old);
    incumbent.end();
}

#[test]
fn an_unreadable_journal_is_no_error_and_is_kept() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    fs::write(stage.journal(), "not a journal").unwrap();
    let recovery = stage.supervisor().resume_from_journal().unwrap();
    assert!(recovery.serving.is_some() && recovery.interrupted.is_none());
    let kept = fs::read_dir(stage.dir.path())
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().contains("unreadable"));
    assert!(kept);
    incumbent.end();
}

#[test]
fn a_stranger_with_the_lock_is_named() {
    let stage = Stage::set();
    // Locked without a lease: as a program of another make does it.
    let lock_file = stage.data_dir().join(".handoff.lock");
    fs::create_dir(stage.data_dir()).unwrap();
    fs::write(&lock_file, "").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "supervisor::tests::restarts::holds_a_lock", "--ignored"]).env(LOCK_FILE, &lock_file);
    let mut stranger = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    while handoff_lock::look(&stage.data_dir()).unwrap().locked_by != Some(stranger.id()) {
        assert!(stranger.try_wait().unwrap().is_none(), "the lock was not taken");
        std::thread::yield_now();
    }
    let hasty = Timing { liveness: Duration::from_millis(200), hello: Duration::from_millis(100), ..timing() };
    let error = stage.supervisor().with_timing(hasty).resume_from_journal().unwrap_err();
    assert!(matches!(error, Error::DataDirHeld { pid } if pid == stranger.id()), "{error:?}");
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
    end(stranger);
}

const LOCK_FILE: &str = "HANDOFF_TEST_LOCK_FILE";

#[test]
#[ignore = "run by a_stranger_with_the_lock_is_named in a process of its own"]
fn holds_a_lock() {
    let Some(path) = std::env::var_os(LOCK_FILE) else { return };
    let file = fs::File::open(path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    // Until the test that started it ends it, or ends itself.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
