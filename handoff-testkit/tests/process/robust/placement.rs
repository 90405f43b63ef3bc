//! The data directory's name comes to mean another directory under a running service: the handover is refused before the drain,
//! and the daemon serves on with the directory that it holds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use handoff_testkit::fixture::Upgrade;
use handoff_testkit::load::Cost;

use rustix::process::Signal;

use crate::recovery::scene::{is_frozen, signal};
use crate::stage::{CLIENTS, Stage, within_patience};
use crate::{Outcome, check, trials};

trials![
    the_link_is_switched,
    the_link_is_switched_while_nobody_supervises,
    a_copy_is_put_in_its_place,
    a_copy_is_in_its_place_when_the_daemon_dies,
    the_name_is_gone,
    the_link_is_switched_while_the_successor_warms,
    the_successor_means_another_directory,
];

/// A link as the data directory's name, and two directories that it may lead to.
struct Link {
    room: tempfile::TempDir,
}

impl Link {
    fn new() -> std::io::Result<Self> {
        let link = Self { room: tempfile::tempdir()? };
        fs::create_dir(link.at("a"))?;
        fs::create_dir(link.at("b"))?;
        link.lead_to("a")?;
        Ok(link)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    /// In one step, as those do it who switch between two states.
    fn lead_to(&self, name: &str) -> std::io::Result<()> {
        std::os::unix::fs::symlink(self.at(name), self.at("next"))?;
        fs::rename(self.at("next"), self.at("link"))
    }
}

/// Nothing was tried, the reason says where the name leads now, and the same process serves.
fn refused(stage: &mut Stage, pid_before: u32, upgrade: &Upgrade, parts: &[&str]) -> Outcome {
    check(upgrade.code == Some(3), format!("exit code 3 was expected: {upgrade:?}"))?;
    let said = upgrade.stderr.trim_end();
    check(!said.contains('\n'), format!("one line was expected: {said:?}"))?;
    for part in parts.iter().chain([&"data directory", &&*format!("pid {pid_before}")]) {
        check(said.contains(part), format!("{said:?} should say {part:?}"))?;
    }
    stage.serves()?;
    check(stage.fixture.incumbent_pid()? == pid_before, "the same process serves")
}

fn the_link_is_switched() -> Outcome {
    let link = Link::new()?;
    let mut stage = Stage::start(Stage::setup()?.data_dir(link.at("link")))?;
    let before = stage.fixture.incumbent_pid()?;
    link.lead_to("b")?;
    let upgrade = stage.upgrade(&[])?;
    refused(&mut stage, before, &upgrade, &["/link", "/b"])?;
    check(link.at("b").read_dir()?.count() == 0, "the other directory was not touched")?;
    link.lead_to("a")?;
    stage.hands_over()?;
    stage.finish()
}

/// The next supervisor finds the daemon, and what it holds, in the service's record.
fn the_link_is_switched_while_nobody_supervises() -> Outcome {
    let link = Link::new()?;
    let mut stage = Stage::start(Stage::setup()?.data_dir(link.at("link")))?;
    let before = stage.fixture.incumbent_pid()?;
    stage.fixture.kill_supervisor()?;
    link.lead_to("b")?;
    stage.restart_supervisor()?;
    let upgrade = stage.upgrade(&[])?;
    refused(&mut stage, before, &upgrade, &["/link", "/b"])?;
    check(link.at("b").read_dir()?.count() == 0, "the other directory was not touched")?;
    link.lead_to("a")?;
    stage.hands_over()?;
    stage.finish()
}

/// Puts a copy where the directory was, and gives the paths of both.
fn put_a_copy_in_place_of(data: &Path) -> Result<(PathBuf, PathBuf), Box<dyn std::error::Error>> {
    let (copy, away) = (data.with_extension("copy"), data.with_extension("away"));
    let copied = Command::new("cp").arg("-a").args([data, &copy]).status()?;
    check(copied.success(), "the directory can be copied")?;
    fs::rename(data, &away)?;
    fs::rename(&copy, data)?;
    Ok((copy, away))
}

/// What a store has written, by the lengths of its files.
fn lengths(dir: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let mut lengths = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        lengths.push((entry.path(), entry.metadata()?.len()));
    }
    lengths.sort();
    Ok(lengths)
}

fn a_copy_is_put_in_its_place() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let data = stage.fixture.data_dir().to_owned();
    let before = stage.fixture.incumbent_pid()?;
    let (copy, away) = put_a_copy_in_place_of(&data)?;
    let copied = lengths(&data)?;
    let upgrade = stage.upgrade(&[])?;
    refused(&mut stage, before, &upgrade, &[&data.to_string_lossy()])?;
    check(lengths(&data)? == copied, "nobody wrote to the copy")?;
    fs::rename(&data, &copy)?;
    fs::rename(&away, &data)?;
    stage.hands_over()?;
    stage.finish()
}

/// What was acknowledged since the copy was made would be lost.
fn a_copy_is_in_its_place_when_the_daemon_dies() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let data = stage.fixture.data_dir().to_owned();
    let daemon = stage.fixture.incumbent_pid()?;
    let seen = stage.counts();
    let (copy, away) = put_a_copy_in_place_of(&data)?;
    stage.serves()?;
    signal(daemon, Signal::KILL)?;
    let said = || stage.fixture.log().contains("is another directory now");
    check(within_patience(said), format!("the service says why it starts nothing:\n{}", stage.fixture.log()))?;
    fs::rename(&data, &copy)?;
    fs::rename(&away, &data)?;
    stage.serves()?;
    stage.wait_until_at_rest()?;
    stage.charge(&seen, Cost::connections(CLIENTS as u64))?;
    stage.hands_over()?;
    stage.finish()
}

fn the_name_is_gone() -> Outcome {
    let link = Link::new()?;
    let mut stage = Stage::start(Stage::setup()?.data_dir(link.at("link")))?;
    let before = stage.fixture.incumbent_pid()?;
    fs::remove_file(link.at("link"))?;
    let upgrade = stage.upgrade(&[])?;
    refused(&mut stage, before, &upgrade, &["/link", "is gone"])?;
    link.lead_to("a")?;
    stage.hands_over()?;
    stage.finish()
}

/// It was undone before the incumbent was asked to drain.
fn undone_before_the_drain(stage: &mut Stage, pid_before: u32, upgrade: &Upgrade) -> Outcome {
    check(upgrade.code == Some(2), format!("exit code 2 was expected: {upgrade:?}"))?;
    let drained = upgrade.outcome.as_ref().and_then(|report| report["timings_ms"]["pause"].as_f64());
    check(drained == Some(0.0), format!("nobody was asked to drain: {upgrade:?}"))?;
    check(!stage.fixture.log().contains("resumed_received"), "the incumbent had nothing to resume")?;
    stage.serves()?;
    check(stage.fixture.incumbent_pid()? == pid_before, "the same process serves")
}

fn the_link_is_switched_while_the_successor_warms() -> Outcome {
    let link = Link::new()?;
    let plan = link.at("plan");
    let setup = Stage::setup()?.data_dir(link.at("link")).env("HANDOFF_CRASH_PLAN", plan.to_string_lossy());
    let mut stage = Stage::start(setup)?;
    let before = stage.fixture.incumbent_pid()?;
    fs::write(&plan, "HANDOFF_CRASH_AT=n-after-handshake\nHANDOFF_CRASH_HOW=stop\n")?;
    let upgrade = thread::scope(|scope| -> Result<Upgrade, Box<dyn std::error::Error>> {
        let upgrade = scope.spawn(|| stage.upgrade(&[]));
        let frozen = || stage.family().into_iter().find(|pid| is_frozen(*pid));
        check(within_patience(|| frozen().is_some()), "the successor stands still")?;
        let successor = frozen().ok_or("the successor stands still")?;
        link.lead_to("b")?;
        signal(successor, Signal::CONT)?;
        Ok(upgrade.join().map_err(|_| "the order was given")??)
    })?;
    fs::remove_file(&plan)?;
    undone_before_the_drain(&mut stage, before, &upgrade)?;
    check(upgrade.stderr.contains("/b now"), format!("the reason is named: {}", upgrade.stderr))?;
    check(link.at("b").read_dir()?.count() == 0, "the other directory was not touched")?;
    link.lead_to("a")?;
    stage.hands_over()?;
    stage.finish()
}

/// As one that has another root directory or other mounts.
fn the_successor_means_another_directory() -> Outcome {
    let room = tempfile::tempdir()?;
    let (other, program) = (room.path().join("other"), room.path().join("program"));
    fs::create_dir(&other)?;
    let itself = std::env::current_exe()?;
    let script = format!("#!/bin/sh\nexport HANDOFF_DATA_DIR={}\nexec {} \"$@\"\n", other.display(), itself.display());
    fs::write(&program, script)?;
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    let mut stage = Stage::start(Stage::setup()?)?;
    let before = stage.fixture.incumbent_pid()?;
    let upgrade = stage.upgrade(&[&program.to_string_lossy()])?;
    undone_before_the_drain(&mut stage, before, &upgrade)?;
    let log = stage.fixture.log();
    check(log.contains("not the directory that the supervisor hands over"), format!("it says why it left:\n{log}"))?;
    check(other.read_dir()?.count() == 0, "the other directory was not touched")?;
    stage.hands_over()?;
    stage.finish()
}
