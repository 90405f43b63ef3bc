//! What costs the incumbent nothing: nobody asks it to drain.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use handoff_proto::Timing;

use super::cast::{Incumbent, Manner, Stage, timing};
use crate::error::Error;
use crate::outcome::SpawnSpec;
use crate::supervisor::Supervisor;

fn file(stage: &Stage, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = stage.dir.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn a_binary_that_can_not_be_run_is_an_error_that_names_it() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let supervisor = stage.supervisor();
    let text = file(&stage, "notes.txt", "no program\n", 0o644);
    let garbage = file(&stage, "garbage", "\0\0no program\n", 0o755);
    for binary in [stage.dir.path().join("missing"), text, garbage, stage.dir.path().to_owned()] {
        let error = supervisor.perform_handoff(SpawnSpec::new(&binary)).unwrap_err();
        assert!(matches!(error, Error::CannotStart { .. }), "{error:?}");
        let line = error.to_string();
        assert!(line.contains(binary.to_str().unwrap()) && !line.contains('\n'), "{line}");
    }
    // Only greetings.
    let (_, heard) = incumbent.end();
    assert!(heard.iter().all(|heard| *heard == "HelloAck"), "{heard:?}");
}

#[test]
fn a_successor_that_is_none_is_undone_before_the_drain() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let hasty = Timing { hello: Duration::from_millis(1500), ..timing() };
    let supervisor = stage.supervisor().with_timing(hasty);

    let sleeps = file(
        &stage,
        "sleeps",
        &format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", stage.pid_file().display()),
        0o755,
    );
    let exits = file(&stage, "exits", &format!("#!/bin/sh\necho $$ > {}\nexit 3\n", stage.pid_file().display()), 0o755);
    let mut never_warms = stage.successor("never warms");
    never_warms.warm = Duration::from_millis(300);
    let plays = [
        (SpawnSpec::new(sleeps), "the successor did not say Hello within 1.5s"),
        (SpawnSpec::new(exits), "the successor exited with status 3 before it said Hello"),
        (stage.successor("exits with 3"), "the successor exited with status 3 before it said Hello"),
        (stage.successor("never says hello"), "the successor did not say Hello within 1.5s"),
        (stage.successor("wrong pid"), "successor: it says that its pid is"),
        (stage.successor("version 9"), "successor: no common protocol version: ours 1..=2, the peer's 9..=9"),
        (never_warms, "the successor was not warmed within 300ms"),
    ];
    for (spec, reason) in plays {
        let outcome = supervisor.perform_handoff(spec).unwrap();
        assert!(!outcome.committed && outcome.child.is_none());
        let found = outcome.abort_reason.unwrap();
        assert!(found.starts_with(reason), "{found}");
        stage.assert_successor_left_nothing();
    }
    let (_, heard) = incumbent.end();
    assert!(heard.iter().all(|heard| *heard == "HelloAck"), "{heard:?}");
}

#[test]
fn true_exits_at_once() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let outcome = stage.supervisor().perform_handoff(SpawnSpec::new("true")).unwrap();
    assert_eq!(outcome.abort_reason.as_deref(), Some("the successor exited with status 0 before it said Hello"));
    incumbent.end();
}

#[test]
fn nobody_answers() {
    let stage = Stage::set();
    let error = stage.supervisor().perform_handoff(stage.successor("good")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("control.sock"), "{error}");
    assert!(!stage.pid_file().exists(), "nothing was started");

    // Somebody listens, and never says a word.
    let _mute = UnixListener::bind(stage.control()).unwrap();
    let hasty = Timing { hello: Duration::from_millis(100), ..timing() };
    let error = stage.supervisor().with_timing(hasty).perform_handoff(stage.successor("good")).unwrap_err();
    assert_eq!(error.to_string(), "handover not tried: the incumbent did not say Hello within 100ms");
    assert!(!stage.pid_file().exists(), "nothing was started");
}

#[test]
fn a_journal_that_can_not_be_kept_refuses_the_handover() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    fs::create_dir(stage.journal()).unwrap();
    let error = stage.supervisor().perform_handoff(stage.successor("good")).unwrap_err();
    assert!(matches!(error, Error::Journal(_)), "{error:?}");
    assert!(incumbent.end().1.is_empty());
}

#[test]
fn a_listener_of_a_bad_name_and_a_long_path_are_refused() {
    let stage = Stage::set();
    let socket = UnixListener::bind(stage.dir.path().join("s")).unwrap();
    let supervisor = stage.supervisor().with_listener("a:b", &socket);
    assert!(matches!(supervisor.perform_handoff(stage.successor("good")), Err(Error::Usage(_))));
    let long = stage.dir.path().join("x".repeat(200));
    assert!(matches!(Supervisor::new(&long), Err(Error::SocketPathTooLong { .. })));
}
