//! What must be refused is refused with one clear line and the right exit code, and the running daemon never notices.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use handoff_testkit::fixture::{Fixture, Setup, Upgrade};

use crate::daemons::drains_of;
use crate::skip::{self, Need};
use crate::{Outcome, check, trials};

trials![
    missing_binary,
    binary_that_is_not_executable,
    binary_that_is_a_directory,
    binary_that_exits_at_once,
    binary_that_never_says_hello,
    second_run_on_the_same_state_dir,
    second_run_on_the_same_data_dir,
    data_dir_without_permission,
    listener_address_in_use,
    socket_path_too_long,
    unknown_key_in_the_configuration,
    nobody_to_upgrade,
];

/// A script that can be started as a daemon.
fn script(fixture: &Fixture, name: &str, body: &str) -> std::io::Result<PathBuf> {
    let path = fixture.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

fn daemon() -> std::io::Result<Fixture> {
    Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").start()
}

/// One line of text, which holds all of `parts`.
fn one_line(text: &str, parts: &[&str]) -> Outcome {
    let text = text.trim_end();
    check(!text.is_empty() && !text.contains('\n'), format!("one line was expected, not {text:?}"))?;
    for part in parts {
        check(text.contains(part), format!("{text:?} should say {part:?}"))?;
    }
    Ok(())
}

/// The upgrade was refused, the reason given, and the daemon that ran before was not even drained.
fn refused(fixture: &Fixture, pid_before: u32, upgrade: &Upgrade, code: i32, parts: &[&str]) -> Outcome {
    check(upgrade.code == Some(code), format!("exit code {code} was expected: {upgrade:?}"))?;
    one_line(&upgrade.stderr, parts)?;
    check(fixture.incumbent_pid()? == pid_before, "the same process serves")?;
    check(drains_of(fixture.data_dir())? == 0, "its drain hook was never called")
}

/// Nothing that was started on the way is left, and the next handover commits.
fn unharmed(fixture: &Fixture) -> Outcome {
    let living = fixture.processes();
    check(living.len() == 2, format!("only the supervisor and its daemon live: {living:?}"))?;
    let next = fixture.upgrade(&[])?;
    check(next.committed(), format!("the next handover commits: {next:?}"))
}

fn refuse_binary(binary: &Path, code: i32, parts: &[&str], fixture: &Fixture) -> Outcome {
    let before = fixture.incumbent_pid()?;
    let upgrade = fixture.upgrade(&[&binary.to_string_lossy(), "--deadline", "20s"])?;
    refused(fixture, before, &upgrade, code, parts)?;
    unharmed(fixture)
}

fn missing_binary() -> Outcome {
    let fixture = daemon()?;
    refuse_binary(&fixture.path().join("nowhere"), 3, &["nowhere"], &fixture)
}

fn binary_that_is_not_executable() -> Outcome {
    let fixture = daemon()?;
    let path = script(&fixture, "plain", "exit 0")?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
    refuse_binary(&path, 3, &["plain", "ermission"], &fixture)
}

fn binary_that_is_a_directory() -> Outcome {
    let fixture = daemon()?;
    let path = fixture.path().join("folder");
    fs::create_dir(&path)?;
    refuse_binary(&path, 3, &["folder"], &fixture)
}

fn binary_that_exits_at_once() -> Outcome {
    let fixture = daemon()?;
    let path = script(&fixture, "quitter", "exit 7")?;
    refuse_binary(&path, 2, &["7"], &fixture)
}

fn binary_that_never_says_hello() -> Outcome {
    let fixture = daemon()?;
    let path = script(&fixture, "mute", "exec sleep 1000")?;
    refuse_binary(&path, 2, &["Hello"], &fixture)
}

/// Runs `handoff run` with these arguments until it ends, which it does by itself when it refuses.
fn run(fixture: &Fixture, args: &[&str]) -> std::io::Result<Output> {
    fixture.command(&[&["run"], args].concat())?.output()
}

fn refuses_to_run(output: &Output, parts: &[&str]) -> Outcome {
    check(output.status.code() == Some(3), format!("exit code 3 was expected: {output:?}"))?;
    one_line(&String::from_utf8_lossy(&output.stderr), parts)
}

/// A fresh state dir, and a program that would leave a trace if it were started.
fn elsewhere(fixture: &Fixture) -> std::io::Result<(String, String, PathBuf)> {
    let state = fixture.path().join("elsewhere");
    let trace = fixture.path().join("started");
    let program = script(fixture, "tracer", &format!("touch '{}'", trace.display()))?;
    Ok((state.to_string_lossy().into_owned(), program.to_string_lossy().into_owned(), trace))
}

fn second_run_on_the_same_state_dir() -> Outcome {
    let fixture = daemon()?;
    let before = fixture.incumbent_pid()?;
    let config = fixture.path().join("handoff.toml");
    let output = run(&fixture, &["--config", &config.to_string_lossy()])?;
    refuses_to_run(&output, &["state", &fixture.supervisor_pid().to_string()])?;
    check(fixture.incumbent_pid()? == before, "the first service goes on")?;
    unharmed(&fixture)
}

fn second_run_on_the_same_data_dir() -> Outcome {
    let fixture = daemon()?;
    let before = fixture.incumbent_pid()?;
    let (state, program, trace) = elsewhere(&fixture)?;
    let data = fixture.data_dir().to_string_lossy().into_owned();
    let output = run(&fixture, &["--state-dir", &state, "--data-dir", &data, "--", &program])?;
    refuses_to_run(&output, &[&data, &before.to_string()])?;
    check(!trace.exists(), "no second daemon was started")?;
    unharmed(&fixture)
}

fn data_dir_without_permission() -> Outcome {
    let fixture = daemon()?;
    // Root may write anywhere, so the refused supervisor runs as somebody else.
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), PermissionsExt::from_mode(0o777))?;
    let data = home.path().join("data");
    fs::create_dir(&data)?;
    fs::set_permissions(&data, PermissionsExt::from_mode(0o500))?;
    let (_, program, trace) = elsewhere(&fixture)?;
    let mut command = fixture.command(&["run", "--state-dir"])?;
    command.arg(home.path().join("state")).arg("--data-dir").arg(&data).args(["--", &program]);
    let output = as_nobody(command)?;
    refuses_to_run(&output, &[&data.to_string_lossy(), "ermission"])?;
    check(!trace.exists(), "no daemon was started")
}

/// Runs a command as a user without rights.
pub(crate) fn as_nobody(mut command: Command) -> Result<Output, Box<dyn std::error::Error>> {
    if !rustix::process::geteuid().is_root() {
        return Err(skip::without(Need::Root, "only root can become somebody else"));
    }
    // The program must be readable for that user, wherever it was built.
    let copy = tempfile::tempdir()?;
    fs::set_permissions(copy.path(), PermissionsExt::from_mode(0o755))?;
    let program = copy.path().join("program");
    fs::copy(command.get_program(), &program)?;
    let mut copied = Command::new(&program);
    copied.args(command.get_args()).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command = copied;
    command.uid(65534).gid(65534);
    Ok(command.output()?)
}

fn listener_address_in_use() -> Outcome {
    let fixture = daemon()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let (state, program, trace) = elsewhere(&fixture)?;
    let listen = format!("http={address}");
    let output = run(&fixture, &["--state-dir", &state, "--listen", &listen, "--", &program])?;
    refuses_to_run(&output, &[&address, "in use"])?;
    check(!trace.exists(), "no daemon was started")
}

fn socket_path_too_long() -> Outcome {
    let fixture = daemon()?;
    let (state, program, trace) = elsewhere(&fixture)?;
    let long = fixture.path().join("x".repeat(200)).join("control.sock");
    let args = ["--state-dir", &state, "--control-socket", &long.to_string_lossy(), "--", &program];
    let output = run(&fixture, &args)?;
    refuses_to_run(&output, &["control.sock", "long"])?;
    check(!trace.exists() && !long.exists(), "nothing was made")
}

fn unknown_key_in_the_configuration() -> Outcome {
    let fixture = daemon()?;
    let (state, program, trace) = elsewhere(&fixture)?;
    let config = fixture.path().join("odd.toml");
    fs::write(&config, format!("state_dir = {state:?}\nbinary = {program:?}\nlisten = \"127.0.0.1:0\"\n"))?;
    let output = run(&fixture, &["--config", &config.to_string_lossy()])?;
    refuses_to_run(&output, &["odd.toml", "listen", "3"])?;
    check(!trace.exists() && !Path::new(&state).exists(), "nothing was made")
}

fn nobody_to_upgrade() -> Outcome {
    let fixture = Setup::role("daemon-ours")?.prepare()?;
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.code == Some(3), format!("exit code 3 was expected: {upgrade:?}"))?;
    one_line(&upgrade.stderr, &["admin.sock"])
}
