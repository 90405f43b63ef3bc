//! A supervisor that was killed, at every point of its work, and is started again.

use std::os::unix::net::UnixDatagram;

use handoff_testkit::fixture::Setup;
use handoff_testkit::load::Cost;
use libtest_mimic::Trial;

use super::scene::{PATIENCE, Scene, ended};
use super::trial;
use crate::{Outcome, check};

/// Where the supervisor dies, and whether the successor serves afterwards. `None`: it depends on who is faster.
const POINTS: [(&str, Option<bool>); 11] = [
    ("s-after-o-hello", Some(false)),
    ("s-after-spawn-successor", Some(false)),
    ("s-after-n-hello", Some(false)),
    ("s-after-prepare-sent", Some(false)),
    ("s-after-drained-recv", Some(false)),
    ("s-after-seal-request-sent", Some(false)),
    ("s-after-seal-complete-recv", Some(false)),
    ("s-after-begin-sent", None),
    ("s-after-ready-recv", Some(true)),
    ("s-after-commit-sent", Some(true)),
    ("s-after-journal-clear", Some(true)),
];

pub(super) fn all() -> Vec<Trial> {
    let at_a_point = POINTS.into_iter().map(|(point, committed)| {
        trial(&format!("supervisor_killed_{}", point.replace('-', "_")), move || killed_at(point, committed))
    });
    at_a_point
        .chain([
            trial("supervisor_killed_while_idle", killed_while_idle),
            trial("service_manager_is_told", service_manager_is_told),
        ])
        .collect()
}

fn killed_at(point: &str, committed: Option<bool>) -> Outcome {
    let (mut scene, mut supervisor) = Scene::with_a_supervisor_that_dies_at(Setup::store()?, point)?;
    let old = scene.fixture.incumbent_pid()?;
    let upgrade = scene.fixture.upgrade(&[])?;
    check(upgrade.code == Some(3), format!("the client is told that the supervisor went away: {upgrade:?}"))?;
    check(ended(&mut supervisor)?.code() == Some(99), format!("it died at {point}"))?;
    scene.fixture.start_supervisor()?;
    let serving = scene.fixture.incumbent_pid()?;
    if let Some(committed) = committed {
        check((serving != old) == committed, format!("{serving} serves, was {old}:\n{}", scene.fixture.log()))?;
    }
    scene.serves()?;
    scene.only(2)?;
    scene.end(Cost::NOTHING)
}

fn killed_while_idle() -> Outcome {
    let mut scene = Scene::start(Setup::store()?)?;
    for _ in 0..3 {
        let pid = scene.fixture.incumbent_pid()?;
        scene.fixture.kill_supervisor()?;
        scene.serves()?;
        scene.fixture.start_supervisor()?;
        check(scene.fixture.incumbent_pid()? == pid, "the daemon is adopted")?;
        scene.upgrade()?;
    }
    scene.end(Cost::NOTHING)
}

fn service_manager_is_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let setup = Setup::store()?.supervisor_env("NOTIFY_SOCKET", path.to_string_lossy());
    let scene = Scene::start(setup)?;
    let mut text = [0; 64];
    let count = manager.recv(&mut text)?;
    check(&text[..count] == b"READY=1\n", "it is told that a daemon serves")?;
    let (_, verdict) = scene.stop()?;
    let count = manager.recv(&mut text)?;
    check(&text[..count] == b"STOPPING=1\n", "it is told that the service stops")?;
    check(verdict.is_clean(), format!("{:?}", verdict.problems()))
}
