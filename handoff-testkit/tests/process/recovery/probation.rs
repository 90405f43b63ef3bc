//! A new build that fails after its commit, the build before it, and the way back to it.

use std::fs;
use std::path::PathBuf;

use handoff_testkit::fixture::Setup;
use handoff_testkit::load::Cost;
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use super::daemon::{Mood, build};
use super::scene::{EVERYBODY_DIED, OPEN_CONNECTIONS, Result, Scene, TWO_DEATHS, fixed_address, signal};
use super::trial;
use crate::{Outcome, check};

pub(super) fn all() -> Vec<Trial> {
    vec![
        trial("new_build_dies_on_probation", new_build_dies_on_probation),
        trial("new_build_dies_on_probation_without_a_supervisor", new_build_dies_without_a_supervisor),
        trial("new_build_dies_on_probation_after_a_restart", new_build_dies_after_a_restart),
        trial("new_build_freezes_on_probation", new_build_freezes_on_probation),
        trial("new_build_dies_after_its_probation", new_build_dies_after_its_probation),
        trial("old_build_can_not_read_what_the_new_one_wrote", old_build_can_not_read),
        trial("old_build_can_not_resume_after_the_new_one", old_build_can_not_resume),
        trial("rollback_goes_back_and_forth", rollback_goes_back_and_forth),
        trial("rollback_without_an_earlier_build", rollback_without_an_earlier_build),
    ]
}

/// Two builds, the first of which serves.
struct Builds {
    dir: tempfile::TempDir,
    scene: Scene,
    second: PathBuf,
}

impl Builds {
    fn new(first: Mood, second: Mood, config: &[&str]) -> Result<Self> {
        Self::with_lines(first, second, "", config)
    }

    fn with_lines(first: Mood, second: Mood, lines: &str, config: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let second = build(dir.path(), "second", second, lines)?;
        let setup = Setup::new(build(dir.path(), "first", first, "")?).listener("http", fixed_address()?);
        let setup = config.iter().fold(setup, |setup, line| setup.config(line));
        let scene = Scene::start(setup)?;
        Ok(Self { dir, scene, second })
    }

    /// Hands over to the second build, and then puts something useless in the place of the first.
    fn upgraded(first: Mood, second: Mood, config: &[&str]) -> Result<(Self, u32)> {
        let builds = Self::new(first, second, config)?;
        let upgrade = builds.scene.fixture.upgrade(&[&builds.second.to_string_lossy()])?;
        check(upgrade.committed(), format!("{upgrade:?}\n{}", builds.scene.fixture.log()))?;
        let useless = builds.dir.path().join("useless");
        fs::write(&useless, "#!/bin/sh\nexit 1\n")?;
        fs::rename(useless, builds.dir.path().join("first"))?;
        let pid = builds.scene.fixture.incumbent_pid()?;
        builds.scene.serves()?;
        Ok((builds, pid))
    }

    fn expect(&mut self, name: &str, not: u32) -> Outcome {
        let status = self.scene.wait_until(&format!("{name} serves"), |status| {
            let incumbent = &status["incumbent"];
            incumbent["build_id"] == name && incumbent["pid"] != not && status["state"] == "serving"
        });
        status.map(drop)?;
        self.scene.serves()
    }

    /// The next handover is to the second build.
    fn end(self, cost: Cost) -> Outcome {
        let upgrade = self.scene.fixture.upgrade(&[&self.second.to_string_lossy()])?;
        check(upgrade.committed(), format!("{upgrade:?}\n{}", self.scene.fixture.log()))?;
        let kept = fs::read_dir(self.scene.fixture.state_dir().join("builds"))?.count();
        check(kept <= 4, format!("{kept} builds are kept"))?;
        // What ends the scene is an upgrade to the configured binary.
        fs::remove_file(self.dir.path().join("first"))?;
        build(self.dir.path(), "first", Mood::Good, "")?;
        self.scene.end(cost)
    }
}

fn new_build_dies_on_probation() -> Outcome {
    let (mut builds, pid) = Builds::upgraded(Mood::Good, Mood::Good, &["probation = \"60s\""])?;
    signal(pid, Signal::KILL)?;
    builds.expect("first", pid)?;
    let rollback = builds.scene.fixture.handoff("rollback", &[])?;
    check(rollback.status.code() == Some(3), format!("a build that failed is none to go back to: {rollback:?}"))?;
    // It is on no probation itself.
    let pid = builds.scene.fixture.incumbent_pid()?;
    signal(pid, Signal::KILL)?;
    builds.expect("first", pid)?;
    builds.end(TWO_DEATHS)
}

fn new_build_dies_without_a_supervisor() -> Outcome {
    let (mut builds, pid) = Builds::upgraded(Mood::Good, Mood::Good, &["probation = \"60s\""])?;
    builds.scene.fixture.kill_supervisor()?;
    signal(pid, Signal::KILL)?;
    builds.scene.fixture.start_supervisor()?;
    builds.expect("first", pid)?;
    builds.end(EVERYBODY_DIED)
}

fn new_build_dies_after_a_restart() -> Outcome {
    let (mut builds, pid) = Builds::upgraded(Mood::Good, Mood::Good, &["probation = \"60s\""])?;
    builds.scene.fixture.kill_supervisor()?;
    builds.scene.fixture.start_supervisor()?;
    check(builds.scene.fixture.incumbent_pid()? == pid, "it is adopted")?;
    signal(pid, Signal::KILL)?;
    builds.expect("first", pid)?;
    builds.end(OPEN_CONNECTIONS)
}

fn new_build_freezes_on_probation() -> Outcome {
    let config = ["probation = \"60s\"", "watchdog = \"3s\""];
    let (mut builds, pid) = Builds::upgraded(Mood::Good, Mood::Good, &config)?;
    // The end of the old process tells the new one to go on; a status is answered when that is done.
    builds.scene.wait_for_line("the process has left")?;
    builds.scene.fixture.status()?;
    signal(pid, Signal::STOP)?;
    builds.expect("first", pid)?;
    builds.end(OPEN_CONNECTIONS)
}

fn new_build_dies_after_its_probation() -> Outcome {
    let (mut builds, pid) = Builds::upgraded(Mood::Good, Mood::Good, &["probation = \"0ms\""])?;
    signal(pid, Signal::KILL)?;
    builds.expect("second", pid)?;
    builds.end(OPEN_CONNECTIONS)
}

fn old_build_can_not_read() -> Outcome {
    let (mut builds, pid) = Builds::upgraded(Mood::Old, Mood::New, &["probation = \"60s\""])?;
    signal(pid, Signal::KILL)?;
    builds.expect("second", pid)?;
    let log = builds.scene.fixture.log();
    check(log.contains("can't take the data back"), log)?;
    builds.end(OPEN_CONNECTIONS)
}

fn old_build_can_not_resume() -> Outcome {
    // The new build writes, and dies before it is Active.
    let lines = "[ -n \"$HANDOFF_ROLE\" ] && [ ! -e \"$HANDOFF_DATA_DIR/newer-format\" ] && export HANDOFF_CRASH_AT=n-before-announce-ready";
    let mut builds = Builds::with_lines(Mood::Old, Mood::New, lines, &[])?;
    let pid = builds.scene.fixture.incumbent_pid()?;
    let upgrade = builds.scene.fixture.upgrade(&[&builds.second.to_string_lossy()])?;
    check(upgrade.code == Some(2), format!("{upgrade:?}"))?;
    builds.expect("second", pid)?;
    builds.end(OPEN_CONNECTIONS)
}

fn rollback(builds: &mut Builds, to: &str) -> Outcome {
    let before = builds.scene.fixture.incumbent_pid()?;
    let output = builds.scene.fixture.handoff("rollback", &[])?;
    let log = || builds.scene.fixture.log();
    check(output.status.code() == Some(0), format!("{output:?}\n{}", log()))?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    check(report["committed"] == true && report["old_pid"] == before, format!("{report}"))?;
    builds.expect(to, before)
}

fn rollback_goes_back_and_forth() -> Outcome {
    let (mut builds, _) = Builds::upgraded(Mood::Good, Mood::Good, &["probation = \"60s\""])?;
    rollback(&mut builds, "first")?;
    rollback(&mut builds, "second")?;
    builds.scene.fixture.kill_supervisor()?;
    builds.scene.fixture.start_supervisor()?;
    rollback(&mut builds, "first")?;
    builds.end(Cost::NOTHING)
}

fn rollback_without_an_earlier_build() -> Outcome {
    let scene = Scene::start(Setup::store()?)?;
    let output = scene.fixture.handoff("rollback", &[])?;
    check(output.status.code() == Some(3), format!("{output:?}"))?;
    let error = String::from_utf8(output.stderr)?;
    check(error.lines().count() == 1 && error.contains("no build to go back to"), error)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    check(report["committed"] == false && report["handoff_id"].is_null(), format!("{report}"))?;
    scene.end(Cost::NOTHING)
}
