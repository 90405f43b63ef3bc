//! The program `handoff` with the daemon of `examples/daemon.rs`: real processes, told apart by their pids.
//!
//! Nothing here sleeps: a test waits for a line of the supervisor's log, for the end of a process, or for an answer.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

/// No test waits longer for anything.
const BOUND: Duration = Duration::from_secs(60);

/// The example, which `cargo test` builds beside the tests: `target/<profile>/examples`.
fn daemon() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "deps")).unwrap();
    let daemon = profile.with_file_name("examples").join("daemon");
    assert!(daemon.exists(), "{} is missing; `cargo test --test service` alone does not build it", daemon.display());
    daemon
}

fn handoff(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
    command.args(args).stdin(Stdio::null());
    command
}

struct Service {
    dir: tempfile::TempDir,
    supervisor: Child,
    log: Receiver<String>,
}

impl Service {
    /// `handoff run` with this configuration besides directories, and this daemon.
    fn start(config: &str, program: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, config, program)
    }

    fn start_in(dir: tempfile::TempDir, config: &str, program: &[&str]) -> Self {
        Self::start_with(dir, config, program, |_| {})
    }

    fn start_with(dir: tempfile::TempDir, config: &str, program: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let file = dir.path().join("handoff.toml");
        std::fs::write(&file, format!("state_dir = \"s\"\ndata_dir = \"d\"\n{config}\n")).unwrap();
        let mut run = handoff(&["run", "--config", file.to_str().unwrap(), "--listen", "http=127.0.0.1:0", "--"]);
        run.args(program).stdout(Stdio::null()).stderr(Stdio::piped()).env("RUST_LOG", "info");
        prepare(&mut run);
        let mut supervisor = run.spawn().unwrap();
        let log = lines(supervisor.stderr.take().unwrap());
        Self { dir, supervisor, log }
    }

    fn serving() -> Self {
        let mut service = Self::start("", &[daemon().to_str().unwrap()]);
        service.wait_for_line("the daemon serves");
        service
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Waits for the next line of the supervisor's log that contains this.
    fn wait_for_line(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(BOUND) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no line says {text:?} ({error}):\n{}", seen.join("\n")),
            }
        }
    }

    fn client(&self, args: &[&str]) -> Command {
        let mut command = handoff(args);
        command.arg("--state-dir").arg(self.state_dir());
        command
    }

    fn status(&self) -> Value {
        json(&self.client(&["status", "--json"]).output().unwrap())
    }

    fn incumbent(&self) -> u32 {
        self.status()["incumbent"]["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// The next number of the example daemon.
    fn count(&self) -> u64 {
        let address = self.status()["listeners"][0]["addr"].as_str().unwrap().to_owned();
        let mut text = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
        text.trim().parse().unwrap_or_else(|_| panic!("not a number: {text:?}"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.supervisor.id()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        wait_until_gone(self.supervisor.id());
        self.supervisor.wait().unwrap()
    }

    fn leftovers(&self) -> Vec<String> {
        let entries = self.state_dir().read_dir().unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.supervisor.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill_process(pid(self.supervisor.id()), Signal::TERM);
            let _ = self.supervisor.wait();
        }
    }
}

fn lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

fn pid(raw: u32) -> Pid {
    Pid::from_raw(raw.try_into().unwrap()).unwrap()
}

fn wait_until_gone(raw: u32) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Ok(process) = pidfd_open(pid(raw), PidfdFlags::empty()) else { return };
    let bound = Timespec { tv_sec: BOUND.as_secs().try_into().unwrap(), tv_nsec: 0 };
    let count = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&bound)).unwrap();
    assert_eq!(count, 1, "process {raw} should have ended");
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_upgrade_replaces_the_process_and_nothing_else() {
    let mut service = Service::serving();
    assert_eq!(service.count(), 1);
    let old = service.incumbent();
    let output = service.client(&["upgrade", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    assert_eq!((&report["committed"], &report["old_pid"]), (&Value::from(true), &Value::from(old)), "{report}");
    assert_eq!((&report["abort_reason"], &report["epoch"]), (&Value::Null, &Value::from(2)), "{report}");
    let timings = report["timings_ms"].as_object().unwrap();
    let names: Vec<_> = timings.keys().map(String::as_str).collect();
    assert_eq!(names, ["begin_to_ready", "drain", "pause", "seal", "spawn", "total", "warm"]);

    let status = service.status();
    assert_eq!(status["state"], "serving");
    assert_eq!(status["incumbent"]["pid"], report["new_pid"]);
    assert_eq!(status["incumbent"]["epoch"], 2);
    assert_eq!((&status["handover"], &status["last_handover"]), (&Value::Null, &report));
    wait_until_gone(old);
    assert_eq!(service.count(), 2);

    let output = service.client(&["stop"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).trim()), (Some(0), "stopped"), "{output:?}");
    assert_eq!(service.wait().code(), Some(0));
    let leftovers = service.leftovers();
    assert_eq!(leftovers, ["history", "journal", "supervisor.lock"]);

    let history = json(&service.client(&["history", "--json"]).output().unwrap());
    assert_eq!(history.as_array().unwrap().len(), 1, "nobody runs any more, and the file tells: {history}");
    for key in ["handoff_id", "committed", "abort_reason", "old_pid", "new_pid", "epoch"] {
        assert_eq!(history[0][key], report[key], "{key}");
    }
    for (part, ms) in timings {
        assert_eq!(&history[0]["timings_ms"][part], ms, "{part}");
    }
    assert!(history[0]["timings_ms"]["retire"].is_f64(), "the old process was seen to leave: {history}");
}

#[test]
fn people_are_told_the_phases_and_the_result() {
    let service = Service::serving();
    let output = service.client(&["upgrade"]).output().unwrap();
    let told = text(&output.stdout);
    let positions: Vec<_> =
        ["warming", "draining", "sealing", "awaiting_ready", "committed: pid "].map(|word| told.find(word)).into();
    assert!(positions.iter().all(Option::is_some) && positions.is_sorted(), "{told}");
    let output = service.client(&["upgrade", "--quiet"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(0), 0, 0), "{output:?}");
    let status = service.client(&["status"]).output().unwrap();
    assert!(text(&status.stdout).starts_with("state       serving\n"), "{status:?}");
}

#[test]
fn one_handover_at_a_time_and_a_status_in_the_middle_of_it() {
    let mut service = Service::serving();
    let old = service.incumbent();
    // A program that runs on and never says Hello.
    let mut first = service
        .client(&["upgrade", "/usr/bin/yes", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    service.wait_for_line("handover ordered");
    let second = service.client(&["upgrade"]).output().unwrap();
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    assert!(text(&second.stderr).contains("another handover is under way"), "{second:?}");
    let status = service.status();
    assert_eq!((&status["state"], &status["incumbent"]["pid"]), (&"handing_over".into(), &old.into()), "{status}");
    assert!(status["handover"]["phase"].is_string(), "{status}");
    assert_eq!(service.count(), 1, "the old process serves meanwhile");

    service.signal(Signal::TERM);
    let output = first.wait().unwrap();
    assert_eq!(output.code(), Some(2), "the handover is undone");
    assert_eq!(service.wait().code(), Some(0));
    wait_until_gone(old);
}

#[test]
fn a_daemon_that_dies_is_started_again_and_knows_what_it_acknowledged() {
    let mut service = Service::serving();
    assert_eq!(service.count(), 1);
    let old = service.incumbent();
    kill_process(pid(old), Signal::KILL).unwrap();
    service.wait_for_line("the daemon serves");
    assert_ne!(service.incumbent(), old);
    assert_eq!(service.count(), 2);
}

#[test]
fn sigterm_stops_the_daemon_and_then_the_service() {
    let mut service = Service::serving();
    let daemon = service.incumbent();
    service.signal(Signal::HUP);
    service.wait_for_line("SIGHUP is ignored");
    service.signal(Signal::TERM);
    let left = service.wait_for_line("the process has left");
    assert!(left.contains(&format!("pid={daemon}")) && left.contains("SIGTERM"), "{left}");
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn a_daemon_that_does_not_heed_sigterm_is_killed() {
    let mut service =
        Service::start("retire = \"50ms\"", &["/bin/sh", "-c", "trap '' TERM; echo deaf >&2; exec sleep 1000"]);
    service.wait_for_line("deaf");
    service.signal(Signal::TERM);
    let left = service.wait_for_line("the process has left");
    assert!(left.contains("SIGKILL"), "{left}");
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn a_daemon_that_is_done_ends_the_service() {
    let mut service = Service::start("", &["/bin/true"]);
    assert_eq!(service.wait().code(), Some(0));
    let mut service = Service::start("restart = \"never\"", &["/bin/sh", "-c", "exit 7"]);
    assert_eq!(service.wait().code(), Some(1));
    service.wait_for_line("handoff: the daemon has left with exit status: 7");
}

#[test]
fn a_daemon_that_keeps_failing_is_reported_with_growing_pauses() {
    let mut service = Service::start("", &["/bin/sh", "-c", "exit 7"]);
    for pause in ["pause_ms=0", "pause_ms=100", "pause_ms=200"] {
        let line = service.wait_for_line("started again after a pause");
        assert!(line.contains(pause), "{line}");
    }
    assert_eq!(service.status()["state"], "backing_off");
    let refused = service.client(&["upgrade", "--json"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert_eq!(json(&refused)["committed"], false);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn a_killed_supervisor_is_followed_by_one_that_adopts_the_daemon() {
    let mut service = Service::serving();
    assert_eq!(service.count(), 1);
    let daemon_pid = service.incumbent();
    service.supervisor.kill().unwrap();
    assert_eq!(service.supervisor.wait().unwrap().signal(), Some(9));
    let dir = std::mem::replace(&mut service.dir, tempfile::tempdir().unwrap());
    let mut service = Service::start_in(dir, "", &[daemon().to_str().unwrap()]);
    service.wait_for_line("adopted");
    service.wait_for_line("the daemon serves");
    assert_eq!(service.incumbent(), daemon_pid);
    assert_eq!(service.count(), 2);
    let output = service.client(&["upgrade"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    wait_until_gone(daemon_pid);
    assert_eq!(service.count(), 3);
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let service = Service::serving();
    for args in [["status"].as_slice(), &["status", "--json"], &["upgrade"], &["stop"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = service.client(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

#[test]
fn the_holder_of_a_data_dir_is_named() {
    let service = Service::serving();
    let data_dir = service.dir.path().join("d");
    let held = handoff(&["lock", "--json", data_dir.to_str().unwrap()]).output().unwrap();
    assert_eq!(json(&held)["pid"], service.incumbent());
    let free = handoff(&["lock", "--json", "/tmp"]).output().unwrap();
    assert_eq!(text(&free.stdout), "null\n");
}

#[test]
fn without_a_supervisor_every_client_says_where_it_looked() {
    for args in [["status"], ["upgrade"], ["stop"]] {
        let output = handoff(&args).args(["--state-dir", "/nowhere"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.starts_with("handoff: nobody answers at /nowhere/admin.sock"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn listeners_are_taken_from_a_service_manager() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start_with(dir, "", &[daemon().to_str().unwrap()], |run| {
        handoff_runtime::pass_listener_fds_on_spawn(run, &[("http".into(), listener.as_fd())]).unwrap();
    });
    service.wait_for_line("the daemon serves");
    assert_eq!(service.status()["listeners"][0]["addr"], address.to_string());
    assert_eq!(service.count(), 1);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0));
}
