//! What a successor may take: for its opening, and for its start when the incumbent has died meanwhile. And why it does not take over,
//! in its own words, wherever a handover is told of.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff_testkit::fixture::{Setup, Upgrade};
use handoff_testkit::load::Cost;
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use super::daemon::{Mood, WHY, build};
use super::scene::{OPEN_CONNECTIONS, PATIENCE, Result, Scene, ended, fixed_address, signal};
use super::trial;
use crate::{Outcome, check};

pub(super) fn all() -> Vec<Trial> {
    vec![
        trial("successor_opens_for_longer_than_its_bound", successor_opens_for_longer_than_its_bound),
        trial("successor_that_gets_on_may_open_for_longer", successor_that_gets_on_may_open_for_longer),
        trial("successor_gives_up_while_it_warms", || successor_gives_up(Mood::GivesUpInWarming)),
        trial("successor_gives_up_under_the_lock", || successor_gives_up(Mood::GivesUpUnderTheLock)),
        trial("incumbent_dies_and_its_successor_is_soon_warm", incumbent_dies_and_its_successor_is_soon_warm),
        trial("incumbent_dies_and_its_successor_never_warms", incumbent_dies_and_its_successor_never_warms),
    ]
}

/// Short, and longer than a machine stands still.
const OPEN: Duration = Duration::from_secs(2);

/// A service whose first build is good, and one with a mood beside it.
struct Stage {
    dir: tempfile::TempDir,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let first = build(dir.path(), "first", Mood::Good, "")?;
        let setup = Setup::new(first).listener("http", fixed_address()?);
        let setup = setup.config(&format!("open = \"{}ms\"", OPEN.as_millis())).config("deadline = \"60s\"");
        Ok(Self { scene: Scene::start(setup)?, dir })
    }

    fn order(&self, mood: Mood) -> Result<Order> {
        let binary = build(self.dir.path(), "other", mood, "")?;
        let mut command: Command = self.scene.fixture.command(&["upgrade", "--json", "--state-dir"])?;
        command.arg(self.scene.fixture.state_dir()).arg(binary).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Order(command.spawn()?))
    }

    /// What the successor waits for.
    fn make(&self, name: &str) -> std::io::Result<()> {
        fs::write(self.beside(name), "")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.scene.fixture.data_dir().with_file_name(name)
    }

    /// The undone handover is told of everywhere in the same words, and the old process is `incumbent`.
    fn is_told(&mut self, upgrade: &Upgrade, reason: &str, incumbent: &str) -> Outcome {
        let line = upgrade.stderr.trim_end();
        check(upgrade.code == Some(2) && !line.contains('\n') && line.contains(reason), format!("{upgrade:?}"))?;
        let said = upgrade.outcome.clone().ok_or("no object")?;
        let fits = |told: &Value| {
            told["handoff_id"] == said["handoff_id"]
                && told["abort_reason"].as_str().is_some_and(|told| told.contains(reason))
                && told["incumbent"] == incumbent
        };
        check(fits(&said), format!("the object: {said}"))?;
        self.scene.wait_until("the status tells of it", |status| fits(&status["last_handover"]))?;
        let until = Instant::now() + PATIENCE;
        loop {
            // It is written behind the answer.
            let output = self.scene.fixture.handoff("history", &["-n", "1"])?;
            let entries: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if entries.first().is_some_and(fits) {
                return Ok(());
            }
            check(Instant::now() < until, format!("the history: {entries:?}"))?;
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

/// `handoff upgrade`, under way.
struct Order(Child);

impl Order {
    fn answer(mut self) -> Result<Upgrade> {
        ended(&mut self.0)?;
        Ok(Upgrade::of(self.0.wait_with_output()?))
    }
}

fn successor_opens_for_longer_than_its_bound() -> Outcome {
    let mut stage = Stage::new()?;
    let old = stage.scene.fixture.incumbent_pid()?;
    let upgrade = stage.order(Mood::OpensSlowly)?.answer()?;
    stage.is_told(&upgrade, "the successor was still opening after 2s, without a word of progress", "serves")?;
    check(upgrade.stderr.contains(&format!("pid {old} serves on")), format!("{upgrade:?}"))?;
    stage.scene.serves()?;
    check(stage.scene.fixture.incumbent_pid()? == old, "the old process serves")?;
    stage.scene.end(Cost::NOTHING)
}

fn successor_that_gets_on_may_open_for_longer() -> Outcome {
    let stage = Stage::new()?;
    let old = stage.scene.fixture.incumbent_pid()?;
    let order = stage.order(Mood::OpensSlowlyAndSaysSo)?;
    stage.scene.wait_until_the_successor_has_the_lock()?;
    // Longer than the bound, which is what this is about.
    std::thread::sleep(OPEN * 2);
    stage.make("open")?;
    let upgrade = order.answer()?;
    check(upgrade.committed(), format!("{upgrade:?}\n{}", stage.scene.fixture.log()))?;
    let opened_ms = upgrade.outcome.as_ref().and_then(|said| said["timings_ms"]["begin_to_ready"].as_f64());
    check(opened_ms.is_some_and(|ms| ms > OPEN.as_secs_f64() * 2e3), format!("{upgrade:?}"))?;
    check(stage.scene.fixture.incumbent_pid()? != old, "the new process serves")?;
    stage.scene.end(Cost::NOTHING)
}

fn successor_gives_up(mood: Mood) -> Outcome {
    let mut stage = Stage::new()?;
    let old = stage.scene.fixture.incumbent_pid()?;
    let upgrade = stage.order(mood)?.answer()?;
    stage.is_told(&upgrade, &format!("the successor can't take over: {WHY}"), "serves")?;
    check(upgrade.stderr.contains(&format!("pid {old} serves on")), format!("{upgrade:?}"))?;
    stage.scene.serves()?;
    check(stage.scene.fixture.incumbent_pid()? == old, "the old process serves")?;
    stage.scene.end(Cost::NOTHING)
}

/// The incumbent is dead, and its successor not warm yet.
fn incumbent_dies() -> Result<(Stage, u32, Order)> {
    let mut stage = Stage::new()?;
    let old = stage.scene.fixture.incumbent_pid()?;
    let order = stage.order(Mood::WarmsSlowly)?;
    stage.scene.wait_until("the successor is started", |status| status["handover"]["successor_pid"].is_u64())?;
    signal(old, Signal::KILL)?;
    Ok((stage, old, order))
}

fn incumbent_dies_and_its_successor_is_soon_warm() -> Outcome {
    let (stage, old, order) = incumbent_dies()?;
    stage.make("warm")?;
    let upgrade = order.answer()?;
    check(upgrade.committed(), format!("it is promoted: {upgrade:?}\n{}", stage.scene.fixture.log()))?;
    stage.scene.serves()?;
    check(stage.scene.fixture.incumbent_pid()? != old, "the new process serves")?;
    stage.scene.end(OPEN_CONNECTIONS)
}

/// And not after a minute, which is what a successor may take to warm up beside one that serves.
fn incumbent_dies_and_its_successor_never_warms() -> Outcome {
    let (mut stage, old, order) = incumbent_dies()?;
    let upgrade = order.answer()?;
    stage.is_told(&upgrade, "the incumbent died, and the successor ", "dead")?;
    let dead = format!("pid {old} is dead: the last good build is started in its place");
    check(upgrade.stderr.contains(&dead), format!("{upgrade:?}"))?;
    check(!stage.scene.fixture.log().contains("step=\"warmed\""), stage.scene.fixture.log())?;
    let first = |status: &Value| status["state"] == "serving" && status["incumbent"]["build_id"] == "first";
    let status = stage.scene.wait_until("the last good build serves", first)?;
    check(status["incumbent"]["pid"] != old, "another process serves")?;
    stage.scene.serves()?;
    stage.scene.end(OPEN_CONNECTIONS)
}
