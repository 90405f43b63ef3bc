//! Limits that are reached in the middle of a handover: of threads and processes, and of open descriptors.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::leaks::descriptor_count;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::hooks::{commits, scripted, tell};
use crate::skip::{self, Need};
use crate::stage::{Stage, within_patience};
use crate::{Outcome, check, trials};

trials![
    no_thread_is_left_for_the_incumbent,
    no_thread_is_left_for_anybody,
    no_descriptor_is_left_for_the_supervisor,
    no_descriptor_is_left_for_the_incumbent,
    no_descriptor_is_left_for_the_successor,
];

/// Takes its processes in, and is gone with them.
struct Cgroup(PathBuf);

impl Cgroup {
    fn of(pids: &[u32]) -> Result<Self, Box<dyn std::error::Error>> {
        let missing = || skip::without(Need::Cgroup, "no cgroup of pids can be made here");
        let parents = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let parent = parents.into_iter().find(|it| it.exists()).ok_or_else(missing)?;
        let first = pids.first().ok_or("a process")?;
        let group = Self(parent.join(format!("handoff-test-{}-{first}", std::process::id())));
        let take = |pid: &u32| fs::write(group.0.join("cgroup.procs"), pid.to_string());
        let made = fs::create_dir(&group.0).and_then(|()| pids.iter().try_for_each(take));
        let counts = made.and_then(|()| fs::read_to_string(group.0.join("pids.max")));
        counts.map(|_| group).map_err(|_| missing())
    }

    /// No process and no thread more than there are.
    fn close(&self) -> std::io::Result<()> {
        let now = fs::read_to_string(self.0.join("pids.current"))?;
        fs::write(self.0.join("pids.max"), now)
    }

    fn open(&self) -> std::io::Result<()> {
        fs::write(self.0.join("pids.max"), "max")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever lives goes back to where it came from. A zombie can't, and keeps the group until it is reaped.
        let parent = self.0.parent().unwrap_or(&self.0).join("cgroup.procs");
        within_patience(|| {
            let members = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            members.lines().for_each(|pid| drop(fs::write(&parent, pid)));
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

fn no_thread_is_left_for_the_incumbent() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let group = Cgroup::of(&[stage.fixture.incumbent_pid()?])?;
    group.close()?;
    stage.hands_over()?;
    stage.finish()
}

/// The limit is reached by all three when the successor is there and the handover has yet to begin.
fn no_thread_is_left_for_anybody() -> Outcome {
    let fixture = scripted()?;
    let group = Cgroup::of(&fixture.processes())?;
    tell(&fixture, &["warm: hold"])?;
    let mut upgrade = fixture.command(&["upgrade", "--json", "--state-dir"])?;
    let upgrade = upgrade.arg(fixture.state_dir()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let is_held = within_patience(|| fixture.data_dir().join("held").exists());
    check(is_held, format!("the successor waits: {}", fixture.log()))?;
    group.close()?;
    fs::write(fixture.data_dir().join("go"), "")?;
    let output = upgrade.wait_with_output()?;
    check(output.status.success(), format!("{output:?}\n{}", fixture.log()))?;
    let new_pid = serde_json::from_slice::<serde_json::Value>(&output.stdout)?["new_pid"].clone();
    group.open()?;
    commits(&fixture)?;
    let log = fixture.log();
    check(!log.contains("has left with"), format!("{new_pid} served to the end:\n{log}"))
}

// ---- descriptors: each role is left with one more in each handover, until it has enough

/// More than any handover needs.
const PLENTY: u64 = 1024;

/// Lets a process have so many descriptors at a time.
fn limit_descriptors(pid: u32, count: u64) -> Outcome {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(count), ..getrlimit(Resource::Nofile) };
    prlimit(process, Resource::Nofile, limit)?;
    Ok(())
}

/// A handover with little room for `role`: it commits, or is refused or undone with one line that says why. Whether it did.
fn with_little_room(fixture: &Fixture, args: &[&str]) -> Result<bool, Box<dyn std::error::Error>> {
    let before = fixture.incumbent_pid()?;
    let upgrade = fixture.upgrade(args)?;
    if upgrade.committed() {
        return Ok(true);
    }
    check(matches!(upgrade.code, Some(2 | 3)), format!("{upgrade:?}"))?;
    check(upgrade.stderr.trim_end().lines().count() == 1, format!("one line says why: {upgrade:?}"))?;
    // One that can't come back for want of them is ended, and another one is started. One that was not heard has to say first that
    // it serves.
    let is_dead = upgrade.stderr.contains(&format!("pid {before} is dead"));
    check(within_patience(|| fixture.incumbent_pid().is_ok()), format!("somebody serves: {upgrade:?}"))?;
    let is_same = fixture.incumbent_pid()? == before;
    let serves_on = upgrade.code == Some(3) || upgrade.stderr.contains("serves on");
    check(!(is_dead && is_same) && (!serves_on || is_same), format!("what is said of it is so: {upgrade:?}"))?;
    Ok(false)
}

/// Leaves it `from` descriptors more than it has, and one more in each handover until one commits.
fn until_it_commits(from: u64, limited: impl Fn(&Fixture) -> std::io::Result<u32>) -> Outcome {
    let setup = Setup::role("daemon-scripted")?.listener("http", "127.0.0.1:0");
    let fixture = setup.config("retire = \"3s\"").config("resume = \"1s\"").start()?;
    for room in from..from + 20 {
        let pid = limited(&fixture)?;
        limit_descriptors(pid, room + u64::try_from(descriptor_count(pid)?)?)?;
        let has_committed = with_little_room(&fixture, &["--deadline", "20s"])?;
        // Who was left to go may be gone.
        let _ = limit_descriptors(pid, PLENTY);
        if has_committed {
            check(room > from, "the first had too little room")?;
            return commits(&fixture);
        }
    }
    Err("it never had room enough".into())
}

/// One is for the client that gives the order.
fn no_descriptor_is_left_for_the_supervisor() -> Outcome {
    until_it_commits(1, |fixture| Ok(fixture.supervisor_pid()))
}

fn no_descriptor_is_left_for_the_incumbent() -> Outcome {
    until_it_commits(0, Fixture::incumbent_pid)
}

fn no_descriptor_is_left_for_the_successor() -> Outcome {
    let fixture = scripted()?;
    let program = std::env::current_exe()?;
    let script = fixture.path().join("limited");
    for limit in 6..40 {
        fs::write(&script, format!("#!/bin/sh\nulimit -S -n {limit}\nexec '{}' \"$@\"\n", program.display()))?;
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        if with_little_room(&fixture, &[&script.to_string_lossy(), "--deadline", "20s"])? {
            check(limit > 6, "the first had too little room")?;
            limit_descriptors(fixture.incumbent_pid()?, PLENTY)?;
            fs::write(&script, format!("#!/bin/sh\nexec '{}' \"$@\"\n", program.display()))?;
            return commits(&fixture);
        }
    }
    Err("it never had room enough".into())
}
