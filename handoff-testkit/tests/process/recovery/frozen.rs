//! A process that freezes: the incumbent between handovers and in the middle of one, the successor before and after its lease
//! is Active, the supervisor.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use handoff_testkit::fixture::Setup;
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::daemon::{Mood, build};
use super::scene::{Cost, Result, Scene, ended, fixed_address, run, signal};
use super::trial;
use crate::{Outcome, check};

pub(super) fn all() -> Vec<Trial> {
    vec![
        trial("incumbent_freezes_while_idle", incumbent_freezes_while_idle),
        trial("incumbent_freezes_without_a_supervisor", incumbent_freezes_without_a_supervisor),
        trial("incumbent_that_lives_is_left_alone", incumbent_that_lives_is_left_alone),
        trial("incumbent_freezes_in_drain", || incumbent_freezes(Mood::FreezesInDrain)),
        trial("incumbent_freezes_in_seal", || incumbent_freezes(Mood::FreezesInSeal)),
        trial("successor_freezes_under_the_lock", successor_freezes),
        trial("successor_freezes_under_the_lock_without_a_supervisor", || orphan_freezes(Mood::FreezesUnderTheLock)),
        trial("successor_freezes_active_without_a_supervisor", || orphan_freezes(Mood::FreezesActive)),
        trial("successor_opens_slowly_without_a_supervisor", successor_opens_slowly),
        trial("supervisor_freezes_while_idle", supervisor_freezes_while_idle),
        trial("supervisor_freezes_in_a_handover", supervisor_freezes_in_a_handover),
    ]
}

/// Short, for tests without a handover: a test ends with another supervisor.
const SHORT: &str = "watchdog = \"1s\"";
/// Longer than the heartbeats.
const LONG: &str = "watchdog = \"3s\"";

fn store(watchdog: &str) -> Result<Setup> {
    Ok(Setup::role("store")?.listener("http", fixed_address()?).config(watchdog))
}

fn incumbent_freezes_while_idle() -> Outcome {
    let mut scene = Scene::start(store(SHORT)?)?;
    let pid = scene.fixture.incumbent_pid()?;
    signal(pid, Signal::STOP)?;
    scene.wait_for_another_than(pid)?;
    scene.with_a_patient_watchdog()?.end(Cost::OpenConnections)
}

fn incumbent_freezes_without_a_supervisor() -> Outcome {
    let mut scene = Scene::start(store(SHORT)?)?;
    let pid = scene.fixture.incumbent_pid()?;
    scene.fixture.kill_supervisor()?;
    signal(pid, Signal::STOP)?;
    scene.fixture.start_supervisor()?;
    scene.wait_for_another_than(pid)?;
    scene.with_a_patient_watchdog()?.end(Cost::OpenConnections)
}

fn incumbent_that_lives_is_left_alone() -> Outcome {
    let mut scene = Scene::start(store("watchdog = \"200ms\"")?)?;
    let pid = scene.fixture.incumbent_pid()?;
    // Many intervals of the watchdog.
    scene.after_acks(3000)?;
    check(scene.fixture.incumbent_pid()? == pid, scene.fixture.log())?;
    scene.fixture.kill_supervisor()?;
    scene.fixture.start_supervisor()?;
    scene.after_acks(1000)?;
    check(scene.fixture.incumbent_pid()? == pid, scene.fixture.log())?;
    scene.with_a_patient_watchdog()?.end(Cost::Nothing)
}

/// A directory with builds, the first of which serves.
struct Builds {
    dir: tempfile::TempDir,
    scene: Scene,
    first: Mood,
}

impl Builds {
    fn new(first: Mood) -> Result<Self> {
        Self::with(first, |setup| Ok((Scene::start(setup)?, None))).map(|(builds, _)| builds)
    }

    /// With a supervisor that dies when it has told its first successor to begin.
    fn with_a_supervisor_that_dies(first: Mood) -> Result<(Self, Child)> {
        let start = |setup| {
            let (scene, supervisor) = Scene::with_a_supervisor_that_dies_at(setup, "s-after-begin-sent")?;
            Ok((scene, Some(supervisor)))
        };
        let (builds, supervisor) = Self::with(first, start)?;
        Ok((builds, supervisor.ok_or("a supervisor")?))
    }

    fn with(first: Mood, start: impl FnOnce(Setup) -> Result<(Scene, Option<Child>)>) -> Result<(Self, Option<Child>)> {
        let dir = tempfile::tempdir()?;
        let setup = Setup::new(build(dir.path(), "first", first, "")?).listener("http", fixed_address()?);
        let (scene, supervisor) = start(setup.config(LONG))?;
        Ok((Self { dir, scene, first }, supervisor))
    }

    fn build(&self, mood: Mood) -> Result<PathBuf> {
        Ok(build(self.dir.path(), "other", mood, "")?)
    }

    fn end(self, cost: Cost) -> Outcome {
        if self.first != Mood::Good {
            std::fs::remove_file(self.dir.path().join("first"))?;
            build(self.dir.path(), "first", Mood::Good, "")?;
        }
        self.scene.end(cost)
    }
}

fn incumbent_freezes(mood: Mood) -> Outcome {
    let builds = Builds::new(mood)?;
    let pid = builds.scene.fixture.incumbent_pid()?;
    let good = builds.build(Mood::Good)?;
    let upgrade = builds.scene.fixture.upgrade(&[&good.to_string_lossy()])?;
    check(upgrade.committed(), format!("the successor is promoted: {upgrade:?}\n{}", builds.scene.fixture.log()))?;
    check(builds.scene.fixture.incumbent_pid()? != pid, "the successor serves")?;
    builds.end(Cost::OpenConnections)
}

fn successor_freezes() -> Outcome {
    let builds = Builds::new(Mood::Good)?;
    let pid = builds.scene.fixture.incumbent_pid()?;
    let frozen = builds.build(Mood::FreezesUnderTheLock)?;
    let upgrade = builds.scene.fixture.upgrade(&[&frozen.to_string_lossy()])?;
    check(upgrade.code == Some(2), format!("{upgrade:?}\n{}", builds.scene.fixture.log()))?;
    check(upgrade.stderr.contains("silent"), upgrade.stderr)?;
    check(builds.scene.fixture.incumbent_pid()? == pid, "the old one serves on")?;
    builds.end(Cost::Nothing)
}

/// The supervisor dies, the successor freezes, and another supervisor comes.
fn orphan_freezes(mood: Mood) -> Outcome {
    let (mut builds, mut supervisor) = Builds::with_a_supervisor_that_dies(Mood::Good)?;
    let old = builds.scene.fixture.incumbent_pid()?;
    let frozen = builds.build(mood)?;
    let upgrade = builds.scene.fixture.upgrade(&[&frozen.to_string_lossy()])?;
    check(upgrade.code == Some(3), format!("{upgrade:?}"))?;
    ended(&mut supervisor)?;
    builds.scene.wait_for_a_frozen_process()?;
    builds.scene.fixture.start_supervisor()?;
    builds.scene.serves()?;
    let (kept, cost) = if mood == Mood::FreezesActive { (false, Cost::OpenConnections) } else { (true, Cost::Nothing) };
    check((builds.scene.fixture.incumbent_pid()? == old) == kept, builds.scene.fixture.log())?;
    builds.end(cost)
}

fn successor_opens_slowly() -> Outcome {
    let (mut builds, mut supervisor) = Builds::with_a_supervisor_that_dies(Mood::Good)?;
    let old = builds.scene.fixture.incumbent_pid()?;
    let slow = builds.build(Mood::OpensSlowly)?;
    let upgrade = builds.scene.fixture.upgrade(&[&slow.to_string_lossy()])?;
    check(upgrade.code == Some(3), format!("{upgrade:?}"))?;
    ended(&mut supervisor)?;
    builds.scene.fixture.start_supervisor()?;
    check(builds.scene.fixture.incumbent_pid()? == old, format!("it is undone:\n{}", builds.scene.fixture.log()))?;
    builds.end(Cost::Nothing)
}

fn supervisor_freezes_while_idle() -> Outcome {
    let mut fixture = store(SHORT)?.prepare()?;
    let mut first = run(&fixture, &[])?;
    fixture.wait_until("the daemon serves", |status| status["incumbent"]["pid"].is_u64())?;
    let mut scene = Scene::on(fixture)?;
    let pid = scene.fixture.incumbent_pid()?;
    signal(first.id(), Signal::STOP)?;
    scene.fixture.start_supervisor()?;
    check(ended(&mut first)?.code().is_none(), "the frozen supervisor is ended")?;
    check(scene.fixture.incumbent_pid()? == pid, "its daemon is adopted")?;
    scene.with_a_patient_watchdog()?.end(Cost::Nothing)
}

fn supervisor_freezes_in_a_handover() -> Outcome {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(build(dir.path(), "first", Mood::Good, "")?).listener("http", fixed_address()?);
    let mut fixture = setup.config(LONG).prepare()?;
    let mut first = run(&fixture, &[])?;
    fixture.wait_until("the daemon serves", |status| status["incumbent"]["pid"].is_u64())?;
    let mut scene = Scene::on(fixture)?;
    let old = scene.fixture.incumbent_pid()?;
    let slow = build(dir.path(), "other", Mood::OpensSlowly, "")?;
    let mut upgrade = upgrade_in_background(&scene, &slow.to_string_lossy())?;
    scene.wait_until("the successor begins", |status| status["handover"]["phase"] == "awaiting_ready")?;
    signal(first.id(), Signal::STOP)?;
    scene.fixture.start_supervisor()?;
    check(ended(&mut first)?.code().is_none(), "the frozen supervisor is ended")?;
    check(ended(&mut upgrade)?.code() == Some(3), "its client is told")?;
    check(scene.fixture.incumbent_pid()? == old, format!("the handover is undone:\n{}", scene.fixture.log()))?;
    scene.end(Cost::Nothing)
}

/// `handoff upgrade` that is not waited for.
pub(super) fn upgrade_in_background(scene: &Scene, binary: &str) -> Result<Child> {
    let mut command: Command = scene.fixture.command(&["upgrade", "--quiet", "--state-dir"])?;
    command.arg(scene.fixture.state_dir()).arg(binary).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.spawn()?)
}
