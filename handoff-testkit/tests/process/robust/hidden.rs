//! A whole service where /proc shows nobody: hidepid, and a daemon that may not be looked at even by its own user.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, ExitCode};

use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::Cost;
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};

use crate::recovery::scene::signal;
use crate::skip::{self, Need};
use crate::stage::{CLIENTS, Stage, within_patience};
use crate::{Outcome, check, trials};

trials![a_service_whose_processes_are_hidden];

/// The name of the daemon's role.
pub(crate) const ROLE: &str = "hidden-store";
/// Who has no rights.
const NOBODY: u32 = 65534;

/// Runs what follows as nobody where /proc hides whoever may not be traced.
const HIDES: &str = "exec unshare --mount --propagation private sh -c \
    'mount -t proc -o hidepid=invisible proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"' sh";

fn script(path: &Path, lines: &str) -> std::io::Result<()> {
    fs::write(path, format!("#!/bin/sh\n{lines}\n"))?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o755))
}

/// Whether a process there really does not find another one's directory.
fn check_that_it_hides(hides: &Path) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err(skip::without(Need::Root, "only root can become somebody else"));
    }
    let output = Command::new(hides).args(["test", "-e", "/proc/1"]).output()?;
    if !output.stderr.is_empty() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(skip::without(Need::Mount, &format!("no /proc can be mounted here: {}", why.trim_end())));
    }
    check(output.status.code() == Some(1), "it hides nobody")
}

/// The program is readable for nobody, and the service's directory is nobody's.
fn hidden_service(room: &Path) -> Result<Setup, Box<dyn std::error::Error>> {
    fs::set_permissions(room, PermissionsExt::from_mode(0o755))?;
    let copy = room.join("copy");
    fs::copy(std::env::current_exe()?, &copy)?;
    let (hides, handoff) = (room.join("hides"), room.join("handoff"));
    script(&hides, &format!("{HIDES} \"$@\""))?;
    check_that_it_hides(&hides)?;
    script(&handoff, &format!("exec '{}' '{}' \"$@\"", hides.display(), copy.display()))?;
    let daemon = room.join("daemon");
    script(&daemon, &format!("exec '{}' \"$@\"", copy.display()))?;
    let setup = Setup::new(daemon).env(handoff_testkit::ROLE_VARIABLE, ROLE).env("STORE_LOG", "whole");
    let setup = setup.arg("--connections").arg("4").listener("http", "127.0.0.1:0").config("retire = \"5s\"");
    Ok(setup.program(handoff))
}

fn give_to_nobody(fixture: &Fixture) -> std::io::Result<()> {
    chown(fixture.path(), Some(NOBODY), Some(NOBODY))?;
    for entry in fs::read_dir(fixture.path())? {
        chown(entry?.path(), Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

/// As it commits, as it is undone, as it is adopted by another supervisor, and as its daemon dies.
fn a_service_whose_processes_are_hidden() -> Outcome {
    let room = tempfile::tempdir()?;
    let fixture = hidden_service(room.path())?.prepare()?;
    give_to_nobody(&fixture)?;
    let mut stage = Stage::on(fixture)?;
    let commits = |stage: &mut Stage| -> Outcome {
        let upgrade = stage.upgrade(&[])?;
        check(upgrade.committed(), format!("{upgrade:?}\n{}", stage.fixture.log()))?;
        stage.serves()?;
        stage.is_tidy()
    };
    for _ in 0..3 {
        commits(&mut stage)?;
    }
    let dies = room.path().join("dies");
    let program = room.path().join("copy");
    let point = "export HANDOFF_CRASH_AT=n-after-lock HANDOFF_CRASH_HOW=kill";
    script(&dies, &format!("{point}\nexec '{}' \"$@\"", program.display()))?;
    let serving = stage.fixture.incumbent_pid()?;
    let upgrade = stage.upgrade(&[&dies.to_string_lossy()])?;
    check(upgrade.code == Some(2), format!("{upgrade:?}\n{}", stage.fixture.log()))?;
    check(stage.fixture.incumbent_pid()? == serving, "the old process serves on")?;
    stage.serves()?;
    stage.restart_supervisor()?;
    check(stage.fixture.incumbent_pid()? == serving, format!("it is adopted:\n{}", stage.fixture.log()))?;
    commits(&mut stage)?;
    let (before, daemon) = (stage.counts(), stage.fixture.incumbent_pid()?);
    signal(daemon, Signal::KILL)?;
    let another = || stage.fixture.incumbent_pid().is_ok_and(|pid| pid != daemon);
    check(within_patience(another), format!("another one is started:\n{}", stage.fixture.log()))?;
    stage.serves()?;
    stage.charge(&before, Cost::connections(CLIENTS as u64))?;
    commits(&mut stage)?;
    stage.finish()
}

/// The reference store, as a process that its own user may not look at, prctl(2).
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    if set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err() {
        return ExitCode::FAILURE;
    }
    handoff_testkit::store::daemon::main(args)
}
