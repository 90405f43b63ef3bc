//! Hooks that fail, panic, hang or return late, of a daemon that does as a script in its data directory says.

use std::fs;
use std::path::PathBuf;
use std::thread;

use handoff_testkit::fixture::{Fixture, Setup};
use rustix::process::Signal;

use crate::recovery::scene::signal;
use crate::stage::within_patience;
use crate::{Outcome, check, trials};

trials![
    a_drain_that_fails,
    a_drain_that_panics,
    a_drain_that_returns_late,
    a_drain_that_returns_too_late,
    a_drain_that_hangs_until_it_is_cancelled,
    a_drain_that_never_returns,
    a_seal_that_fails,
    a_seal_that_panics,
    a_seal_that_returns_late,
    a_seal_that_hangs_until_it_is_cancelled,
    a_seal_that_never_returns,
    a_resume_that_fails_twice,
    a_resume_that_panics,
    a_resume_that_never_returns,
    a_resume_that_outlives_its_supervisor,
    a_resume_that_outlives_its_supervisor_and_never_returns,
    a_daemon_that_freezes_in_its_drain,
    children_that_live_on,
];

/// A daemon whose hooks do as they are told.
pub(super) fn scripted() -> Result<Fixture, Box<dyn std::error::Error>> {
    let setup = Setup::role("daemon-scripted")?.listener("http", "127.0.0.1:0");
    Ok(setup.config("retire = \"3s\"").config("watchdog = \"3s\"").start()?)
}

/// The hooks that were called in all generations, each with what became of it.
fn calls(fixture: &Fixture) -> Vec<String> {
    let calls = fs::read_to_string(fixture.data_dir().join("calls")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

/// What the hooks are to do from now on: a line for each call to come.
pub(super) fn tell(fixture: &Fixture, script: &[&str]) -> std::io::Result<()> {
    fs::write(fixture.data_dir().join("script"), script.join("\n"))
}

/// One handover with these hooks comes to this exit code, saying so, and is undone by exactly one resume; the next commits.
fn undone(script: &[&str], said: &str) -> Outcome {
    let fixture = scripted()?;
    let pid = fixture.incumbent_pid()?;
    tell(&fixture, script)?;
    let upgrade = fixture.upgrade(&["--deadline", "3s", "--drain-grace", "1s"])?;
    let all = || format!("{upgrade:?} {:?}\n{}", calls(&fixture), fixture.log());
    check(upgrade.code == Some(2), all())?;
    check(upgrade.stderr.contains(said) && upgrade.stderr.trim_end().lines().count() == 1, all())?;
    let resumes = || calls(&fixture).iter().filter(|call| *call == "resume: done").count();
    check(within_patience(|| resumes() >= 1), all())?;
    check(fixture.incumbent_pid()? == pid, all())?;
    commits(&fixture)?;
    check(resumes() == 1, format!("one resume succeeds for one drain: {}", all()))
}

pub(super) fn commits(fixture: &Fixture) -> Outcome {
    let next = fixture.upgrade(&[])?;
    check(next.committed(), format!("the next handover commits: {next:?} {:?}\n{}", calls(fixture), fixture.log()))?;
    let left = within_patience(|| fixture.processes().len() == 2);
    check(left, format!("only supervisor and daemon live: {:?}", fixture.processes()))
}

/// A hook that never returns and heeds nothing: the handover ends all the same and says so, no resume overlaps the hook, and
/// when the deadline and its slack are over, the watchdog ends the process and another one serves.
fn outlived(script: &[&str]) -> Outcome {
    let mut fixture = scripted()?;
    let pid = fixture.incumbent_pid()?;
    tell(&fixture, script)?;
    let upgrade = fixture.upgrade(&["--deadline", "2s", "--drain-grace", "1s"])?;
    let all = || format!("{upgrade:?} {:?}", calls(&fixture));
    check(upgrade.code == Some(2) && upgrade.stderr.trim_end().lines().count() == 1, all())?;
    another_serves(&mut fixture, pid)?;
    check(!calls(&fixture).iter().any(|call| call.starts_with("resume")), "no resume was called beside the hook")?;
    commits(&fixture)
}

fn another_serves(fixture: &mut Fixture, pid: u32) -> Outcome {
    fixture.wait_until("another process serves", |status| {
        status["incumbent"]["pid"].as_u64().is_some_and(|it| it != u64::from(pid))
    })?;
    Ok(())
}

fn a_drain_that_fails() -> Outcome {
    undone(&["drain: fail"], "told to fail")
}

fn a_drain_that_panics() -> Outcome {
    undone(&["drain: panic"], "told to panic")
}

/// Later than its grace, and before the supervisor has lost its patience.
fn a_drain_that_returns_late() -> Outcome {
    let fixture = scripted()?;
    tell(&fixture, &["drain: late"])?;
    let upgrade = fixture.upgrade(&["--deadline", "60s", "--drain-grace", "10ms"])?;
    check(upgrade.committed(), format!("{upgrade:?} {:?}", calls(&fixture)))?;
    commits(&fixture)
}

fn a_drain_that_returns_too_late() -> Outcome {
    undone(&["drain: later"], "did not drain within 1s")
}

fn a_drain_that_hangs_until_it_is_cancelled() -> Outcome {
    undone(&["drain: wait"], "did not drain within 1s")
}

fn a_drain_that_never_returns() -> Outcome {
    outlived(&["drain: hang"])
}

fn a_seal_that_fails() -> Outcome {
    undone(&["drain: do", "seal: fail"], "told to fail")
}

fn a_seal_that_panics() -> Outcome {
    undone(&["drain: do", "seal: panic"], "told to panic")
}

fn a_seal_that_returns_late() -> Outcome {
    undone(&["drain: do", "seal: later"], "deadline")
}

fn a_seal_that_hangs_until_it_is_cancelled() -> Outcome {
    undone(&["drain: do", "seal: wait"], "deadline")
}

fn a_seal_that_never_returns() -> Outcome {
    outlived(&["drain: do", "seal: hang"])
}

fn a_resume_that_fails_twice() -> Outcome {
    undone(&["drain: fail", "resume: fail", "resume: fail"], "told to fail")
}

fn a_resume_that_panics() -> Outcome {
    undone(&["drain: fail", "resume: panic"], "told to fail")
}

/// It has its bound to read a large state in, and then it counts as dead: the last good build is started. What counts is the
/// bound on the way back, and not the deadline, which is far.
fn a_resume_that_never_returns() -> Outcome {
    let setup = Setup::role("daemon-scripted")?.listener("http", "127.0.0.1:0");
    let mut fixture = setup.config("retire = \"3s\"").config("watchdog = \"3s\"").config("resume = \"1s\"").start()?;
    let pid = fixture.incumbent_pid()?;
    tell(&fixture, &["drain: fail", "resume: hang"])?;
    let upgrade = fixture.upgrade(&["--deadline", "300s", "--drain-grace", "300s"])?;
    let is_told = upgrade.stderr.trim_end().lines().count() == 1 && !upgrade.stderr.contains("serves on");
    let dead = format!("pid {pid} is dead: the last good build is started");
    check(
        upgrade.code == Some(2) && is_told && upgrade.stderr.contains(&dead),
        format!("{upgrade:?} {:?}", calls(&fixture)),
    )?;
    another_serves(&mut fixture, pid)?;
    commits(&fixture)
}

/// A daemon that is on its way back when its supervisor dies, under the next supervisor.
fn orphaned_on_its_way_back(resume: &str, config: &str) -> Result<(Fixture, u32), Box<dyn std::error::Error>> {
    let setup = Setup::role("daemon-scripted")?.listener("http", "127.0.0.1:0");
    let mut fixture = setup.config("retire = \"3s\"").config("watchdog = \"3s\"").config(config).start()?;
    let pid = fixture.incumbent_pid()?;
    tell(&fixture, &["drain: fail", resume])?;
    let script = fixture.data_dir().join("script");
    thread::scope(|scope| -> Outcome {
        let upgrade = scope.spawn(|| fixture.upgrade(&[]));
        let is_at_it = within_patience(|| fs::read_to_string(&script).is_ok_and(|left| left.is_empty()));
        check(is_at_it, format!("the resume runs: {:?}\n{}", calls(&fixture), fixture.log()))?;
        signal(fixture.supervisor_pid(), Signal::KILL)?;
        upgrade.join().map_err(|_| "the order was given")??;
        Ok(())
    })?;
    fixture.kill_supervisor()?;
    fixture.launch_supervisor()?;
    Ok((fixture, pid))
}

/// Its library's thread says Hello and beats as ever; that is not to serve.
fn a_resume_that_outlives_its_supervisor() -> Outcome {
    let (mut fixture, pid) = orphaned_on_its_way_back("resume: hold", "resume = \"120s\"")?;
    let said = || fixture.log().contains("is on its way back from a handover");
    check(within_patience(said), format!("it was asked whether it serves:\n{}", fixture.log()))?;
    let status = fixture.status()?;
    check(status["state"] == "starting" && status["incumbent"].is_null(), format!("{status}"))?;
    fs::write(fixture.data_dir().join("go"), "")?;
    let serves = fixture.wait_until("it serves again", |status| status["state"] == "serving")?;
    check(serves["incumbent"]["pid"] == pid, format!("the same process: {serves}"))?;
    check(calls(&fixture).iter().any(|call| call == "resume: done"), format!("{:?}", calls(&fixture)))?;
    commits(&fixture)
}

/// It counts as dead as in a handover.
fn a_resume_that_outlives_its_supervisor_and_never_returns() -> Outcome {
    let (mut fixture, pid) = orphaned_on_its_way_back("resume: hang", "resume = \"3s\"")?;
    another_serves(&mut fixture, pid)?;
    commits(&fixture)
}

/// The grace is over before its silence is long enough to tell that it is dead: its successor waits for that, warm.
fn a_daemon_that_freezes_in_its_drain() -> Outcome {
    let fixture = scripted()?;
    let pid = fixture.incumbent_pid()?;
    tell(&fixture, &["drain: freeze"])?;
    let upgrade = fixture.upgrade(&["--deadline", "20s", "--drain-grace", "100ms"])?;
    check(upgrade.committed(), format!("its successor is promoted: {upgrade:?}\n{}", fixture.log()))?;
    check(fixture.incumbent_pid()? != pid, "the successor serves")?;
    commits(&fixture)
}

fn children_that_live_on() -> Outcome {
    let fixture = scripted()?;
    tell(&fixture, &["drain: fork"])?;
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.committed(), format!("{upgrade:?} {:?}", calls(&fixture)))?;
    let child: u32 = fs::read_to_string(fixture.data_dir().join("child"))?.trim().parse()?;
    let open: Vec<PathBuf> = (fs::read_dir(format!("/proc/{child}/fd"))?.flatten())
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter(|target| target.starts_with(fixture.data_dir()) || target.to_string_lossy().starts_with("socket:"))
        .collect();
    check(open.is_empty(), format!("the child holds {open:?}"))?;
    let next = fixture.upgrade(&[])?;
    check(next.committed(), format!("a handover commits beside the child: {next:?}"))
}
