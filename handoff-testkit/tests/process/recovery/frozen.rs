//! A process that freezes or dies: the incumbent between handovers and in the middle of one, the successor before and after
//! its lease is Active, the supervisor.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff_testkit::fixture::Setup;
use handoff_testkit::load::Cost;
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::daemon::{Mood, build};
use super::scene::{
    EVERYBODY_DIED, OPEN_CONNECTIONS, PATIENCE, Result, Scene, ended, fixed_address, is_frozen, run, signal,
};
use super::trial;
use crate::{Outcome, check};

pub(super) fn all() -> Vec<Trial> {
    vec![
        trial("incumbent_freezes_while_idle", incumbent_freezes_while_idle),
        trial("incumbent_stands_still_without_a_supervisor", incumbent_stands_still_without_a_supervisor),
        trial("daemon_stands_still_in_its_start_without_a_supervisor", daemon_stands_still_in_its_start),
        trial("incumbent_that_lives_is_left_alone", incumbent_that_lives_is_left_alone),
        trial("incumbent_freezes_in_drain", || incumbent_freezes(Mood::FreezesInDrain)),
        trial("incumbent_freezes_in_seal", || incumbent_freezes(Mood::FreezesInSeal)),
        trial("successor_freezes_under_the_lock", successor_freezes),
        trial("successor_freezes_under_the_lock_and_the_supervisor_dies", orphan_freezes_under_the_lock),
        trial("successor_freezes_active_and_the_supervisor_dies", orphan_freezes_active),
        trial("successor_dies_serving", successor_dies_serving),
        trial("successor_opens_slowly_and_the_supervisor_dies", successor_opens_slowly),
        trial("successor_takes_over_without_a_supervisor", successor_takes_over),
        trial("nobody_is_left_to_settle_it", nobody_is_left_to_settle_it),
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
    scene.with_a_patient_watchdog()?.end(OPEN_CONNECTIONS)
}

/// Somebody may have told it to stand still and died: who adopts it tells it to go on.
fn incumbent_stands_still_without_a_supervisor() -> Outcome {
    let mut scene = Scene::start(store(LONG)?)?;
    let pid = scene.fixture.incumbent_pid()?;
    scene.fixture.kill_supervisor()?;
    signal(pid, Signal::STOP)?;
    scene.wait_for_a_frozen_process()?;
    scene.fixture.start_supervisor()?;
    scene.serves()?;
    check(scene.fixture.incumbent_pid()? == pid, format!("it goes on:\n{}", scene.fixture.log()))?;
    scene.end(Cost::NOTHING)
}

/// It has the lock and no lease yet: only the service's own record says whose it is.
fn daemon_stands_still_in_its_start() -> Outcome {
    let dir = tempfile::tempdir()?;
    let first = build(dir.path(), "first", Mood::FreezesInStart, "")?;
    let mut fixture = Setup::new(first).listener("http", fixed_address()?).config(LONG).prepare()?;
    let mut supervisor = run(&fixture, &[])?;
    let until = Instant::now() + PATIENCE;
    let daemon = loop {
        let holder = handoff_lock::look(fixture.data_dir()).ok().and_then(|look| look.locked_by);
        match holder.filter(|pid| is_frozen(*pid)) {
            Some(pid) => break pid,
            None => check(Instant::now() < until, format!("nobody freezes:\n{}", fixture.log()))?,
        }
        std::thread::park_timeout(Duration::from_millis(2));
    };
    signal(supervisor.id(), Signal::KILL)?;
    ended(&mut supervisor)?;
    fixture.start_supervisor()?;
    check(fixture.incumbent_pid()? == daemon, format!("it is adopted:\n{}", fixture.log()))?;
    Scene::on(fixture)?.end(Cost::NOTHING)
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
    scene.with_a_patient_watchdog()?.end(Cost::NOTHING)
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

    fn with_a_supervisor_that_dies_at(point: &str) -> Result<(Self, Child)> {
        let start = |setup| {
            let (scene, supervisor) = Scene::with_a_supervisor_that_dies_at(setup, point)?;
            Ok((scene, Some(supervisor)))
        };
        let (builds, supervisor) = Self::with(Mood::Good, start)?;
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
    builds.end(OPEN_CONNECTIONS)
}

fn successor_freezes() -> Outcome {
    let builds = Builds::new(Mood::Good)?;
    let pid = builds.scene.fixture.incumbent_pid()?;
    let frozen = builds.build(Mood::FreezesUnderTheLock)?;
    let upgrade = builds.scene.fixture.upgrade(&[&frozen.to_string_lossy()])?;
    check(upgrade.code == Some(2), format!("{upgrade:?}\n{}", builds.scene.fixture.log()))?;
    check(upgrade.stderr.contains("silent"), upgrade.stderr)?;
    check(builds.scene.fixture.incumbent_pid()? == pid, "the old one serves on")?;
    builds.end(Cost::NOTHING)
}

/// It has acknowledged writes under its own epoch, and dies before it has said Ready: the old one takes the data back, with
/// these writes in it.
fn successor_dies_serving() -> Outcome {
    let builds = Builds::new(Mood::Good)?;
    let pid = builds.scene.fixture.incumbent_pid()?;
    let epoch =
        || -> Result<u64> { Ok(handoff_lock::read_lease(builds.scene.fixture.data_dir())?.ok_or("a lease")?.epoch) };
    let before = epoch()?;
    let dying = builds.build(Mood::DiesServing)?;
    let upgrade = builds.scene.fixture.upgrade(&[&dying.to_string_lossy()])?;
    check(upgrade.code == Some(2), format!("{upgrade:?}\n{}", builds.scene.fixture.log()))?;
    check(builds.scene.fixture.incumbent_pid()? == pid, "the old one serves again")?;
    check(epoch()? >= before + 2, format!("the new one served under {}, and the old one goes on above", before + 1))?;
    builds.end(OPEN_CONNECTIONS)
}

/// The successor freezes under the lock, the supervisor dies, and another one comes.
fn orphan_freezes_under_the_lock() -> Outcome {
    let mut builds = Builds::new(Mood::Good)?;
    let old = builds.scene.fixture.incumbent_pid()?;
    let frozen = builds.build(Mood::FreezesUnderTheLock)?;
    let mut upgrade = upgrade_in_background(&builds.scene, &frozen.to_string_lossy())?;
    builds.scene.wait_for_a_frozen_process()?;
    builds.scene.fixture.kill_supervisor()?;
    check(upgrade.try_wait()?.is_none(), "nobody serves yet: there is nothing to tell")?;
    builds.scene.fixture.start_supervisor()?;
    check(ended(&mut upgrade)?.code() == Some(2), "its client is told that it was undone")?;
    builds.scene.serves()?;
    check(builds.scene.fixture.incumbent_pid()? == old, format!("it is undone:\n{}", builds.scene.fixture.log()))?;
    builds.end(Cost::NOTHING)
}

/// The successor stands still as soon as it is Active, and the supervisor dies before it can commit: the incumbent, or the
/// next supervisor, tells it to go on.
fn orphan_freezes_active() -> Outcome {
    let (mut builds, mut supervisor) = Builds::with_a_supervisor_that_dies_at("s-after-ready-recv")?;
    let old = builds.scene.fixture.incumbent_pid()?;
    let frozen = builds.build(Mood::FreezesActive)?;
    let upgrade = builds.scene.fixture.upgrade(&[&frozen.to_string_lossy()])?;
    check(upgrade.committed(), format!("the lease is the new one's: {upgrade:?}"))?;
    ended(&mut supervisor)?;
    builds.scene.fixture.start_supervisor()?;
    builds.scene.serves()?;
    check(builds.scene.fixture.incumbent_pid()? != old, builds.scene.fixture.log())?;
    builds.end(OPEN_CONNECTIONS)
}

/// A handover whose successor has the lock and opens slowly, and whose supervisor is dead. With the old pid and the client, which
/// waits for an end.
fn orphan_that_opens_slowly() -> Result<(Builds, u32, Child)> {
    let mut builds = Builds::new(Mood::Good)?;
    let old = builds.scene.fixture.incumbent_pid()?;
    let slow = builds.build(Mood::OpensSlowly)?;
    let mut upgrade = upgrade_in_background(&builds.scene, &slow.to_string_lossy())?;
    builds.scene.wait_until_the_successor_has_the_lock()?;
    builds.scene.fixture.kill_supervisor()?;
    check(upgrade.try_wait()?.is_none(), "nobody serves yet: there is nothing to tell")?;
    Ok((builds, old, upgrade))
}

fn successor_opens_slowly() -> Outcome {
    let (mut builds, old, mut upgrade) = orphan_that_opens_slowly()?;
    builds.scene.fixture.start_supervisor()?;
    check(ended(&mut upgrade)?.code() == Some(2), "its client is told that it was undone")?;
    check(builds.scene.fixture.incumbent_pid()? == old, format!("it is undone:\n{}", builds.scene.fixture.log()))?;
    builds.end(Cost::NOTHING)
}

/// Nobody ends it meanwhile: it takes over without a supervisor, and the next one finds it.
fn successor_takes_over() -> Outcome {
    let (mut builds, old, mut upgrade) = orphan_that_opens_slowly()?;
    std::fs::write(builds.scene.fixture.data_dir().with_file_name("open"), "")?;
    check(ended(&mut upgrade)?.code() == Some(0), "its client is told by the lease that the new one serves")?;
    builds.scene.serves()?;
    builds.scene.fixture.start_supervisor()?;
    let status = builds.scene.fixture.status()?;
    let taken_over = status["incumbent"]["pid"] != old && status["incumbent"]["build_id"] == "other";
    check(taken_over, format!("it is adopted: {status}\n{}", builds.scene.fixture.log()))?;
    builds.end(Cost::NOTHING)
}

/// All three are dead: the client says that it does not know, and does not wait for a deadline that nobody keeps.
fn nobody_is_left_to_settle_it() -> Outcome {
    let (mut builds, old, mut upgrade) = orphan_that_opens_slowly()?;
    let new = handoff_lock::read_lease(builds.scene.fixture.data_dir())?.ok_or("a lease")?.owner.pid;
    check(new != old, "the successor has the lock")?;
    signal(old, Signal::KILL)?;
    signal(new, Signal::KILL)?;
    check(ended(&mut upgrade)?.code() == Some(6), "its client is told that nobody is known to serve")?;
    builds.scene.fixture.start_supervisor()?;
    builds.end(EVERYBODY_DIED)
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
    scene.with_a_patient_watchdog()?.end(Cost::NOTHING)
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
    scene.wait_until_the_successor_has_the_lock()?;
    signal(first.id(), Signal::STOP)?;
    scene.fixture.start_supervisor()?;
    check(ended(&mut first)?.code().is_none(), "the frozen supervisor is ended")?;
    check(ended(&mut upgrade)?.code() == Some(2), "its client is told that it was undone")?;
    check(scene.fixture.incumbent_pid()? == old, format!("the handover is undone:\n{}", scene.fixture.log()))?;
    scene.end(Cost::NOTHING)
}

/// `handoff upgrade` that is not waited for.
pub(super) fn upgrade_in_background(scene: &Scene, binary: &str) -> Result<Child> {
    let mut command: Command = scene.fixture.command(&["upgrade", "--quiet", "--state-dir"])?;
    command.arg(scene.fixture.state_dir()).arg(binary).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.spawn()?)
}
