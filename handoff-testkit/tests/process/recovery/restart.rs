//! A supervisor that was killed, at every point of its work, and is started again.

use std::os::unix::net::UnixDatagram;

use handoff_testkit::fixture::{Setup, Upgrade};
use handoff_testkit::load::Cost;
use libtest_mimic::Trial;

use super::scene::{PATIENCE, Result, Scene, ended};
use super::trial;
use crate::{Outcome, check};

/// Where the supervisor dies, and what `upgrade` must say then. `None`: it depends on who is faster.
const POINTS: [(&str, Option<Ending>); 11] = [
    ("s-after-o-hello", Some(Ending::NotTried)),
    ("s-after-spawn-successor", Some(Ending::Undone)),
    ("s-after-n-hello", Some(Ending::Undone)),
    ("s-after-prepare-sent", Some(Ending::Undone)),
    ("s-after-drained-recv", Some(Ending::Undone)),
    ("s-after-seal-request-sent", Some(Ending::Undone)),
    ("s-after-seal-complete-recv", Some(Ending::Undone)),
    ("s-after-begin-sent", None),
    ("s-after-ready-recv", Some(Ending::Committed)),
    ("s-after-commit-sent", Some(Ending::Committed)),
    ("s-after-journal-clear", Some(Ending::Committed)),
];

/// How a handover ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    NotTried,
    Undone,
    Committed,
}

impl Ending {
    fn of(code: Option<i32>) -> Option<Self> {
        match code {
            Some(0) => Some(Self::Committed),
            Some(2) => Some(Self::Undone),
            Some(3) => Some(Self::NotTried),
            _ => None,
        }
    }
}

pub(super) fn all() -> Vec<Trial> {
    let at_a_point = POINTS.into_iter().map(|(point, ending)| {
        trial(&format!("supervisor_killed_{}", point.replace('-', "_")), move || killed_at(point, ending))
    });
    at_a_point
        .chain([
            trial("supervisor_killed_while_idle", killed_while_idle),
            trial("service_manager_is_told", service_manager_is_told),
        ])
        .collect()
}

fn killed_at(point: &str, expected: Option<Ending>) -> Outcome {
    let (mut scene, mut supervisor) = Scene::with_a_supervisor_that_dies_at(Setup::store()?, point)?;
    let old = scene.fixture.incumbent_pid()?;
    let upgrade = scene.fixture.upgrade(&[])?;
    check(ended(&mut supervisor)?.code() == Some(99), format!("it died at {point}"))?;
    // Nobody else has said anything so far: what the client says must be true without a supervisor, and after the next one came.
    let ending = told(&upgrade, old)?;
    check(expected.is_none_or(|expected| ending == expected), format!("{point}: {upgrade:?}"))?;
    scene.serves()?;
    scene.fixture.start_supervisor()?;
    let serving = scene.fixture.incumbent_pid()?;
    let log = || scene.fixture.log();
    check((serving != old) == (ending == Ending::Committed), format!("{serving} serves, was {old}:\n{}", log()))?;
    if ending == Ending::Committed {
        let report = upgrade.outcome.as_ref().ok_or("an object")?;
        check(report["new_pid"] == serving, format!("{serving} serves: {report}\n{}", log()))?;
        check(report["epoch"] == scene.fixture.status()?["incumbent"]["epoch"], format!("{report}\n{}", log()))?;
    }
    scene.serves()?;
    scene.only(2)?;
    scene.end(Cost::NOTHING)
}

/// What `upgrade` says became of it; its exit status, its object and its line say the same.
fn told(upgrade: &Upgrade, old: u32) -> Result<Ending> {
    let ending = Ending::of(upgrade.code).ok_or_else(|| format!("{upgrade:?}"))?;
    let report = upgrade.outcome.as_ref().ok_or_else(|| format!("an object is always printed: {upgrade:?}"))?;
    let committed = ending == Ending::Committed;
    check(report["committed"] == committed && report["abort_reason"].is_null() == committed, report.to_string())?;
    check(report["old_pid"] == old && report["handoff_id"].is_string(), report.to_string())?;
    check(report["new_pid"].is_u64() == (ending != Ending::NotTried), report.to_string())?;
    let line = upgrade.stderr.trim_end();
    check(line.lines().count() == 1 && line.contains("the supervisor went away"), line)?;
    let old_one = match ending {
        Ending::Committed => "",
        Ending::NotTried => "serves on",
        Ending::Undone => "has its data: `handoff status` says whether it serves",
    };
    check(committed || line.ends_with(&format!("; pid {old} {old_one}")), line)?;
    Ok(ending)
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
