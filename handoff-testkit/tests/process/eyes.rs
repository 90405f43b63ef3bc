//! What people see of a service: its status in the middle of a handover, the history, the log, who holds a lock. And that
//! looking, and waiting, costs nobody anything.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::{Cost, Load, LoadSpec};
use handoff_testkit::store::StoreClient;
use serde_json::Value;

use crate::skip::{self, Need};
use crate::{Outcome, check, trials};

mod idle;
pub(crate) mod shards;

use idle::{
    an_idle_daemon_has_no_timer, an_idle_supervisor_wakes_up_once_in_an_interval, without_a_watchdog_nobody_wakes_up,
};

trials![
    status_in_the_middle_of_a_seal,
    an_aborted_handover_is_told_with_its_phase_and_its_reason,
    handovers_under_load_are_in_the_history_as_they_were_reported,
    a_handover_whose_supervisor_died_is_in_the_history,
    a_torn_history_is_mended,
    a_history_that_cannot_be_written_costs_an_entry,
    a_full_disk_costs_an_entry,
    every_step_is_in_the_log_under_its_documented_name,
    a_lock_that_was_inherited_is_told_with_its_holder,
    an_idle_supervisor_wakes_up_once_in_an_interval,
    an_idle_daemon_has_no_timer,
    without_a_watchdog_nobody_wakes_up,
];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn history(fixture: &Fixture, newest: &str) -> Result<Vec<Value>> {
    let output = fixture.handoff("history", &["-n", newest])?;
    check(output.status.success(), format!("{output:?}"))?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The same until the old process of the newest handover was seen to leave.
fn history_with_retire(fixture: &Fixture) -> Result<Vec<Value>> {
    for _ in 0..10_000 {
        let entries = history(fixture, "100")?;
        if entries.last().is_some_and(|entry| entry["timings_ms"]["retire"].is_f64()) {
            return Ok(entries);
        }
    }
    Err("nobody saw the old process leave".into())
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A command of the program, without `--json`.
fn plain(fixture: &Fixture, args: &[&str]) -> Result<Command> {
    let mut command = fixture.command(&args[..1])?;
    command.arg("--state-dir").arg(fixture.state_dir()).args(&args[1..]);
    Ok(command)
}

fn committed(fixture: &Fixture) -> Result<Value> {
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.committed(), format!("{upgrade:?}\n{}", fixture.log()))?;
    upgrade.outcome.ok_or_else(|| "upgrade --json prints an object".into())
}

fn status_in_the_middle_of_a_seal() -> Outcome {
    let mut fixture = shards::setup()?.start()?;
    let old = fixture.incumbent_pid()?;
    let gate = shards::close_the_gate(fixture.data_dir())?;
    let upgrade = plain(&fixture, &["upgrade"])?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;

    let status = fixture.wait_until("the seal has come half way", |status| {
        status["handover"]["seal"]["shards_sealed"] == shards::BEFORE_THE_GATE
    })?;
    let handover = &status["handover"];
    check(status["state"] == "handing_over", status.to_string())?;
    check(handover["phase"] == "sealing" && handover["handoff_id"].is_string(), status.to_string())?;
    check(handover["seal"]["shards_total"] == shards::ALL, status.to_string())?;
    let successor = handover["successor_pid"].as_u64().ok_or("a successor")?;
    check(fixture.processes().contains(&u32::try_from(successor)?), "it is one of the service's")?;
    check(status["incumbent"]["pid"] == old, "the old process still has the data")?;
    let told = text(&plain(&fixture, &["status"])?.output()?);
    let line = format!("handover    sealing, 2 of 4 shards sealed, successor pid {successor}");
    check(told.contains(&line), &told)?;

    shards::open_the_gate(gate)?;
    let output = upgrade.wait_with_output()?;
    check(output.status.success(), format!("{output:?}\n{}", fixture.log()))?;
    let told = text(&output);
    let lines = ["warming", "draining", "sealing", "2 of 4 shards sealed", "awaiting_ready", "committed: pid"];
    let at: Vec<_> = lines.iter().map(|line| told.find(line)).collect();
    check(at.iter().all(Option::is_some) && at.is_sorted(), told)?;
    check(fixture.status()?["handover"].is_null(), "it is over")
}

fn an_aborted_handover_is_told_with_its_phase_and_its_reason() -> Outcome {
    let fixture = shards::setup()?.start()?;
    committed(&fixture)?;
    let pid = fixture.incumbent_pid()?;
    shards::let_the_next_seal_fail(fixture.data_dir())?;
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.code == Some(2), format!("{upgrade:?}"))?;
    check(upgrade.stderr.trim_end().lines().count() == 1, format!("one line: {upgrade:?}"))?;

    let entries = history(&fixture, "1")?;
    let entry = entries.first().ok_or("an entry")?;
    check(entries.len() == 1 && entry["committed"] == false, format!("{entries:?}"))?;
    check(entry["aborted_in"] == "sealing" && entry["old_pid"] == pid, entry.to_string())?;
    check(entry["abort_reason"].as_str().is_some_and(|why| why.contains(shards::WHY)), entry.to_string())?;
    check(entry["old_build"] == "shards" && entry["new_build"] == "shards", entry.to_string())?;
    let phases: Vec<_> = entry["phases"].as_array().into_iter().flatten().map(|part| part["phase"].clone()).collect();
    check(phases == ["spawn", "warm", "drain", "seal", "undo"], entry.to_string())?;

    let table = text(&plain(&fixture, &["history"])?.output()?);
    check(table.lines().count() == 3 && table.contains(&format!("sealing: seal failed: {}", shards::WHY)), &table)?;
    let picture = fixture.path().join("history.svg");
    let plotted = plain(&fixture, &["history", "--plot", &picture.to_string_lossy()])?.output()?;
    check(plotted.status.success() && text(&plotted).is_empty(), format!("{plotted:?}"))?;
    let picture = fs::read_to_string(picture)?;
    check(picture.contains("2 handovers, 1 committed, 1 aborted") && picture.contains(shards::WHY), picture)
}

fn handovers_under_load_are_in_the_history_as_they_were_reported() -> Outcome {
    const HANDOVERS: usize = 5;
    let mut fixture = Setup::store()?.start()?;
    let acks = fixture.path().join("acks");
    let spec = LoadSpec { clients: 8, ..LoadSpec::new(fixture.endpoint("http")?, &acks) };
    let load = Load::start(&spec, StoreClient::new())?;
    let reports = (0..HANDOVERS).map(|_| committed(&fixture)).collect::<Result<Vec<_>>>()?;
    let entries = history_with_retire(&fixture)?;
    let problems = load.stop()?.counts.problems(Cost::NOTHING);
    check(problems.is_empty(), format!("{problems:?}"))?;
    check(entries.len() == HANDOVERS, format!("{entries:?}"))?;
    for (report, entry) in reports.iter().zip(&entries) {
        for (key, value) in report.as_object().into_iter().flatten().filter(|(key, _)| *key != "timings_ms") {
            check(entry[key] == *value, format!("{key}: {report}\n{entry}"))?;
        }
        for (part, ms) in report["timings_ms"].as_object().into_iter().flatten() {
            check(entry["timings_ms"][part] == *ms, format!("{part}: {report}\n{entry}"))?;
        }
        let mut over = 0.0;
        for part in entry["phases"].as_array().into_iter().flatten() {
            let (at, ms) = (part["at_ms"].as_f64().ok_or("at_ms")?, part["ms"].as_f64().ok_or("ms")?);
            // Each number is cut to the microsecond by itself.
            check(at + 0.002 >= over && ms >= 0.0, format!("none overlaps the one before it: {entry}"))?;
            over = at + ms;
        }
    }
    // What is written down outlives the one who wrote it.
    fixture.stop()?;
    check(history(&fixture, "2")?.len() == 2, "no supervisor need run")
}

fn a_handover_whose_supervisor_died_is_in_the_history() -> Outcome {
    for (point, committed) in [("s-after-drained-recv", false), ("s-after-ready-recv", true)] {
        let mut fixture = shards::setup()?.supervisor_env("HANDOFF_CRASH_AT", point).start()?;
        let pid = fixture.incumbent_pid()?;
        let upgrade = fixture.upgrade(&[])?;
        check(upgrade.code == Some(if committed { 0 } else { 2 }), format!("{point}: {upgrade:?}"))?;
        check(fixture.wait_for_supervisor(Duration::from_secs(30))?.code() == Some(99), "it died at the point")?;
        check(history(&fixture, "9")?.is_empty(), "nobody could write it down")?;
        fixture.start_supervisor()?;
        let entries = history(&fixture, "9")?;
        let entry = entries.first().ok_or("an entry")?;
        check(entries.len() == 1 && entry["committed"] == committed, format!("{point}: {entries:?}"))?;
        check(entry["old_pid"] == pid && entry["new_pid"].is_u64(), entry.to_string())?;
        let told = entry["abort_reason"].as_str().is_some_and(|why| why.contains("the supervisor ended"));
        check(told != committed && entry["aborted_in"].is_string() != committed, entry.to_string())?;
    }
    Ok(())
}

fn a_torn_history_is_mended() -> Outcome {
    let fixture = shards::setup()?.start()?;
    committed(&fixture)?;
    check(history_with_retire(&fixture)?.len() == 1, "one so far")?;
    let path = fixture.state_dir().join("history");
    let file = File::options().write(true).open(&path)?;
    file.set_len(file.metadata()?.len() - 5)?;
    let entries = history(&fixture, "9")?;
    check(entries.len() == 1 && entries[0]["timings_ms"]["retire"].is_null(), format!("{entries:?}"))?;

    let report = committed(&fixture)?;
    let output = fixture.handoff("history", &[])?;
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    check(entries.len() == 2 && entries[1]["handoff_id"] == report["handoff_id"], format!("{entries:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    check(said.lines().count() == 1 && said.contains("unreadable lines are left out: 1"), said)
}

fn a_history_that_cannot_be_written_costs_an_entry() -> Outcome {
    let fixture = shards::setup()?.start()?;
    let path = fixture.state_dir().join("history");
    fs::create_dir(&path)?;
    committed(&fixture)?;
    committed(&fixture)?;
    // Both entries are behind their answers.
    fixture.status()?;
    let lost = fixture.log().matches("an entry of the history is lost").count();
    check(lost >= 2, format!("each is told, {lost} were:\n{}", fixture.log()))?;
    let output = fixture.handoff("history", &[])?;
    check(output.status.code() == Some(3) && text(&output).contains("not a regular file"), format!("{output:?}"))?;
    fs::remove_dir(&path)?;
    let report = committed(&fixture)?;
    let entries = history(&fixture, "9")?;
    check(entries.len() == 1 && entries[0]["handoff_id"] == report["handoff_id"], format!("{entries:?}"))
}

/// A small file system of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(dir.path()).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Ok(Self(dir));
        }
        Err(skip::without(Need::Mount, "no file system may be mounted here"))
    }

    /// Fills it, and gives what it is full of.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.path().join("ballast");
        let mut ballast = File::create(&path)?;
        while ballast.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn a_full_disk_costs_an_entry() -> Outcome {
    let disk = SmallDisk::mount()?;
    // A build that is small enough to be kept on that disk.
    let dir = tempfile::tempdir()?;
    let mut fixture = Setup::new(shards::script(dir.path())?).listener("http", "127.0.0.1:0").prepare()?;
    std::os::unix::fs::symlink(disk.0.path(), fixture.state_dir())?;
    fixture.start_supervisor()?;
    let first = committed(&fixture)?;
    check(history_with_retire(&fixture)?.len() == 1, "one so far")?;

    let ballast = disk.fill()?;
    // The page that the history ends in may have room for a few more.
    let path = fixture.state_dir().join("history");
    let last_page = || fs::metadata(&path).map(|file| file.len() % 4096);
    let mut lost = 0;
    while lost == 0 {
        let room = last_page()?;
        committed(&fixture)?;
        fixture.status()?;
        lost = fixture.log().matches("an entry of the history is lost").count();
        check(lost > 0 || last_page()? > room, "there is no end to the room")?;
    }
    fs::remove_file(ballast)?;
    let last = committed(&fixture)?;
    let entries = history(&fixture, "100")?;
    let ids: Vec<_> = entries.iter().map(|entry| &entry["handoff_id"]).collect();
    check(ids.first() == Some(&&first["handoff_id"]), format!("what was there stays: {ids:?}"))?;
    check(ids.last() == Some(&&last["handoff_id"]), format!("and it goes on: {ids:?}"))
}

fn every_step_is_in_the_log_under_its_documented_name() -> Outcome {
    let fixture = shards::setup()?.prepare()?;
    let mut command = fixture.command(&["run", "--log-format", "json", "--config"])?;
    command.arg(fixture.path().join("handoff.toml")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut supervisor = Supervisor(command.spawn()?);
    let mut log = BufReader::new(supervisor.0.stderr.take().ok_or("stderr is piped")?).lines();
    let mut next = || -> Result<Value> {
        let line = log.next().ok_or("the log has ended")??;
        serde_json::from_str(&line).map_err(|error| format!("{error}: {line}").into())
    };
    while next()?["message"] != "the daemon serves" {}
    let report = committed(&fixture)?;

    let documented = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md"))?;
    let mut missing = vec!["prepared", "drained_sent", "seal_complete_sent", "commit_received", "begun", "active"];
    missing.extend(["incumbent_greeted", "prepare_sent", "ready_received", "commit_sent", "journal_closed"]);
    while !missing.is_empty() {
        let event = next()?;
        let Some(step) = event["step"].as_str() else { continue };
        check(event["handoff_id"] == report["handoff_id"], format!("{event}\n{report}"))?;
        check(event["target"].as_str().is_some_and(|target| target.starts_with("handoff::")), event.to_string())?;
        check(documented.contains(&format!("`{step}`")), format!("docs/operating.md does not know {step}"))?;
        missing.retain(|wanted| *wanted != step);
    }
    Ok(())
}

/// A supervisor whose log is read, which does not outlive its test.
struct Supervisor(Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The name of a role that locks the directory in its argument, gives the lock to a child, names it, and leaves.
pub(crate) const BEQUEATHER: &str = "bequeather";

pub(crate) fn bequeath(args: Vec<OsString>) -> ExitCode {
    let dir = PathBuf::from(args.get(1).cloned().unwrap_or_default());
    match try_bequeath(&dir) {
        Ok(heir) => {
            println!("{heir}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bequeather: {error}");
            ExitCode::FAILURE
        }
    }
}

/// As a daemon does that knows nothing of this library and forgets to close its descriptors in a child.
fn try_bequeath(dir: &Path) -> Result<u32> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(dir.join(".handoff.lock"))?;
    for locked in [&file, &File::open(dir)?] {
        rustix::fs::flock(locked, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        rustix::io::fcntl_setfd(locked, rustix::io::FdFlags::empty())?;
    }
    let mut heir = Command::new("sleep");
    heir.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(heir.spawn()?.id())
}

fn a_lock_that_was_inherited_is_told_with_its_holder() -> Outcome {
    let fixture = shards::setup()?.prepare()?;
    let dir = fixture.path().join("elsewhere");
    fs::create_dir(&dir)?;
    let mut bequeather = fixture.command(&[])?;
    bequeather.arg(&dir).env(handoff_testkit::ROLE_VARIABLE, BEQUEATHER);
    let output = bequeather.output()?;
    let heir: u32 = text(&output).trim().parse().map_err(|error| format!("{error}: {output:?}"))?;

    let mut lock = fixture.command(&["lock", "--json"])?;
    let held: Value = serde_json::from_slice(&lock.arg(&dir).output()?.stdout)?;
    check(held["pid"] == heir && held["inherited"] == true && held["alive"] == true, held.to_string())?;
    let told = text(&fixture.command(&["lock"])?.arg(&dir).output()?);
    let expected = format!("is held by pid {heir} (sleep 1000)");
    check(told.contains(&expected) && told.contains("inherited"), told)
}
