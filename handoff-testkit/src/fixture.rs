//! The three roles as real processes, in a directory of their own.
//!
//! Everything that a fixture starts is, unless told otherwise, the calling program itself, run again: call [`crate::init`] first
//! in `main`. Every process carries the fixture's mark in its environment, so that [`Fixture::processes`] finds what is left of
//! it, and dropping the fixture ends all of them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[cfg(feature = "store")]
use crate::audit::{OnDisk, Verdict};
use crate::load::Endpoint;
#[cfg(feature = "store")]
use crate::load::{Cost, Seen};

/// The environment variable that names the fixture a process belongs to.
const MARK: &str = "HANDOFF_TESTKIT_FIXTURE";

/// How long a fixture waits for anything before it gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a fixture runs, before it does.
#[derive(Debug, Clone)]
pub struct Setup {
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    supervisor_env: Vec<(String, String)>,
    listeners: Vec<(String, String)>,
    config: Vec<String>,
    data_dir: Option<PathBuf>,
    within: PathBuf,
    program: Option<PathBuf>,
}

impl Setup {
    /// A service that runs `binary`, with no listener yet.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            args: Vec::new(),
            env: Vec::new(),
            supervisor_env: Vec::new(),
            listeners: Vec::new(),
            config: Vec::new(),
            data_dir: None,
            within: std::env::temp_dir(),
            program: None,
        }
    }

    /// The calling program in the role that `init` knows by this name.
    ///
    /// # Errors
    /// When the program's own path can't be found.
    pub fn role(name: &str) -> io::Result<Self> {
        Ok(Self::new(std::env::current_exe()?).env(crate::ROLE_VARIABLE, name))
    }

    /// The reference store, serving the listener `http` on a free port. It keeps its whole log, for [`Fixture::verify`].
    ///
    /// # Errors
    /// As [`Setup::role`].
    #[cfg(feature = "store")]
    pub fn store() -> io::Result<Self> {
        Ok(Self::role("store")?.env("STORE_LOG", "whole").listener("http", "127.0.0.1:0"))
    }

    /// What is run.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Adds an argument of the daemon.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds a variable to the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Adds a variable to the supervisor's environment only.
    #[must_use]
    pub fn supervisor_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.supervisor_env.push((name.into(), value.into()));
        self
    }

    /// Adds a listener, in the form that `handoff run --listen` takes.
    #[must_use]
    pub fn listener(mut self, name: impl Into<String>, address: impl Into<String>) -> Self {
        self.listeners.push((name.into(), address.into()));
        self
    }

    /// Adds a line to the supervisor's configuration, such as `deadline = "5s"`; it takes the place of an earlier one with the same key.
    #[must_use]
    pub fn config(mut self, line: &str) -> Self {
        let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
        self.config.retain(|earlier| key(earlier) != key(line));
        self.config.push(line.to_owned());
        self
    }

    /// Puts the data elsewhere than into the fixture's own directory.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// Makes the fixture's own directory in this one, and so chooses the disk.
    #[must_use]
    pub fn within(mut self, path: impl Into<PathBuf>) -> Self {
        self.within = path.into();
        self
    }

    /// Runs this program as `handoff`, and not the calling one in that role.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Starts the supervisor and waits until the daemon serves.
    ///
    /// # Errors
    /// When a file can't be written, or when the daemon does not serve in time; the error then holds what the supervisor said.
    pub fn start(self) -> io::Result<Fixture> {
        let mut fixture = self.prepare()?;
        fixture.start_supervisor()?;
        Ok(fixture)
    }

    /// Writes the configuration, and starts nothing.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn prepare(self) -> io::Result<Fixture> {
        let dir = tempfile::Builder::new().prefix("handoff-").tempdir_in(&self.within)?;
        let data_dir = self.data_dir.clone().unwrap_or_else(|| dir.path().join("data"));
        fs::write(dir.path().join("handoff.toml"), self.to_toml(&data_dir))?;
        let mark = dir.path().file_name().unwrap_or_default().to_owned();
        let Self { program, supervisor_env, .. } = self;
        Ok(Fixture { dir, data_dir, mark, program, supervisor_env, supervisor: None })
    }

    fn to_toml(&self, data_dir: &Path) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let pairs = |pairs: &[(String, String)]| {
            let fields: Vec<String> = pairs.iter().map(|(k, v)| format!("{} = {}", quoted(k), quoted(v))).collect();
            format!("{{ {} }}", fields.join(", "))
        };
        let args: Vec<String> = self.args.iter().map(|arg| quoted(arg)).collect();
        format!(
            "state_dir = \"state\"\ndata_dir = {}\nbinary = {}\nargs = [{}]\nenv = {}\nlisteners = {}\n{}",
            quoted(&data_dir.to_string_lossy()),
            quoted(&self.binary.to_string_lossy()),
            args.join(", "),
            pairs(&self.env),
            pairs(&self.listeners),
            self.config.join("\n"),
        )
    }
}

/// A supervisor, its daemon, and the directory they live in.
#[derive(Debug)]
pub struct Fixture {
    dir: tempfile::TempDir,
    data_dir: PathBuf,
    mark: OsString,
    program: Option<PathBuf>,
    supervisor_env: Vec<(String, String)>,
    supervisor: Option<Child>,
}

/// What a run of `handoff upgrade` came to.
#[derive(Debug)]
pub struct Upgrade {
    /// Its exit status.
    pub code: Option<i32>,
    /// The object that `--json` printed, if it printed one.
    pub outcome: Option<Value>,
    /// What it said on standard error.
    pub stderr: String,
}

impl Upgrade {
    /// Of the command's output.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            outcome: serde_json::from_slice(&output.stdout).ok(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Whether the new process serves.
    pub fn committed(&self) -> bool {
        self.code == Some(0)
    }
}

impl Fixture {
    /// The directory that holds everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The service's data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The supervisor's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Everything that the supervisors of this fixture, and their daemons, wrote to standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.path().join("log")
    }

    /// The program `handoff` with these arguments, as a command of this fixture.
    ///
    /// # Errors
    /// When the program's own path can't be found.
    pub fn command(&self, args: &[&str]) -> io::Result<Command> {
        let mut command = match &self.program {
            Some(program) => Command::new(program),
            None => Command::new(std::env::current_exe()?),
        };
        command.args(args).env(crate::ROLE_VARIABLE, "handoff").env(MARK, &self.mark).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts a supervisor, also after an earlier one has ended, and waits until a daemon serves under it.
    ///
    /// # Errors
    /// When it can't be started, or nothing serves in time; the error then holds what it said.
    pub fn start_supervisor(&mut self) -> io::Result<()> {
        self.launch_supervisor()?;
        self.wait_until("the daemon serves", |status| status["incumbent"]["pid"].is_u64()).map(drop)
    }

    /// Starts a supervisor, and waits for nothing.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn launch_supervisor(&mut self) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command(&["run", "--config"])?;
        command.arg(self.path().join("handoff.toml")).stdout(log.try_clone()?).stderr(log);
        command.envs(self.supervisor_env.iter().map(|(name, value)| (name, value)));
        self.supervisor = Some(command.spawn()?);
        Ok(())
    }

    /// Asks for the status until `accept` likes it, and gives that one back.
    ///
    /// # Errors
    /// When the supervisor ends meanwhile, or none is liked in time; the error then holds the log.
    pub fn wait_until(&mut self, what: &str, accept: impl Fn(&Value) -> bool) -> io::Result<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(supervisor) = &mut self.supervisor
                && let Some(status) = supervisor.try_wait()?
            {
                return Err(io::Error::other(format!("the supervisor ended ({status}):\n{}", self.log())));
            }
            match self.status() {
                Ok(status) if accept(&status) => return Ok(status),
                seen if Instant::now() > until => {
                    return Err(io::Error::other(format!("{what}: not in time; {seen:?}\n{}", self.log())));
                }
                _ => std::thread::park_timeout(Duration::from_millis(2)),
            }
        }
    }

    /// What the supervisor answers to `status` on its admin socket.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn status(&self) -> io::Result<Value> {
        let mut admin = UnixStream::connect(self.state_dir().join("admin.sock"))?;
        admin.set_read_timeout(Some(PATIENCE))?;
        admin.write_all(b"{\"cmd\":\"status\"}\n")?;
        let mut line = String::new();
        BufReader::new(admin).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// The pid of the process that serves.
    ///
    /// # Errors
    /// When nobody answers, or nobody serves.
    pub fn incumbent_pid(&self) -> io::Result<u32> {
        let status = self.status()?;
        let pid = status["incumbent"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.ok_or_else(|| io::Error::other(format!("nobody serves: {status}")))
    }

    /// The address of the listener of this name.
    ///
    /// # Errors
    /// When nobody answers, or there is no such TCP listener or UDP socket.
    pub fn address(&self, name: &str) -> io::Result<SocketAddr> {
        let address = self.listener(name)?;
        let parsed = address.strip_prefix("udp:").unwrap_or(&address).parse();
        parsed.map_err(|_| io::Error::other(format!("{name} is no internet address: {address}")))
    }

    /// Where clients of the listener of this name connect to.
    ///
    /// # Errors
    /// When nobody answers, or there is no such listener for streams.
    pub fn endpoint(&self, name: &str) -> io::Result<Endpoint> {
        let address = self.listener(name)?;
        Endpoint::parse(&address)
            .ok_or_else(|| io::Error::other(format!("{name} is no listener for streams: {address}")))
    }

    fn listener(&self, name: &str) -> io::Result<String> {
        let status = self.status()?;
        let listeners = status["listeners"].as_array().into_iter().flatten();
        let address = listeners.filter(|listener| listener["name"] == name).find_map(|it| it["addr"].as_str());
        address.map(str::to_owned).ok_or_else(|| io::Error::other(format!("no listener is named {name}: {status}")))
    }

    /// Runs `handoff upgrade --json` with these further arguments.
    ///
    /// # Errors
    /// When the program can't be run.
    pub fn upgrade(&self, args: &[&str]) -> io::Result<Upgrade> {
        self.handoff("upgrade", args).map(Upgrade::of)
    }

    /// Runs a command of the program `handoff` on this fixture's service, with `--json`.
    ///
    /// # Errors
    /// When the program can't be run.
    pub fn handoff(&self, subcommand: &str, args: &[&str]) -> io::Result<Output> {
        let mut command = self.command(&[subcommand, "--json", "--state-dir"])?;
        command.arg(self.state_dir()).args(args).output()
    }

    /// The supervisor's pid.
    ///
    /// # Panics
    /// When none was started.
    pub fn supervisor_pid(&self) -> u32 {
        self.supervisor.as_ref().expect("a supervisor was started").id()
    }

    /// Kills the supervisor as a crash would, and waits until it is gone. The daemon lives on.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill_supervisor(&mut self) -> io::Result<()> {
        if let Some(mut supervisor) = self.supervisor.take() {
            supervisor.kill()?;
            supervisor.wait()?;
        }
        Ok(())
    }

    /// Waits for the supervisor's end, by whatever.
    ///
    /// # Errors
    /// None was started, or it has not ended in time.
    pub fn wait_for_supervisor(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        let mut supervisor = self.release_supervisor().ok_or_else(|| io::Error::other("no supervisor was started"))?;
        let until = Instant::now() + patience;
        loop {
            match supervisor.try_wait()? {
                Some(status) => return Ok(status),
                None if Instant::now() > until => {
                    self.supervisor = Some(supervisor);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the supervisor does not end"));
                }
                None => std::thread::park_timeout(Duration::from_millis(2)),
            }
        }
    }

    /// Gives the supervisor into the caller's hands, such as a frozen one beside which another is to be started.
    pub fn release_supervisor(&mut self) -> Option<Child> {
        self.supervisor.take()
    }

    /// Stops the service by SIGTERM to the supervisor, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> io::Result<ExitStatus> {
        let Some(mut supervisor) = self.supervisor.take() else {
            return Ok(ExitStatus::from_raw(0));
        };
        signal(supervisor.id(), Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = supervisor.try_wait()? {
                return Ok(status);
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        self.supervisor = Some(supervisor);
        Err(io::Error::other(format!("the supervisor does not end:\n{}", self.log())))
    }

    /// The verdict on the reference store under a load: compares what its clients were told with the store reopened from disk, in a
    /// process of its own. The service must have stopped.
    ///
    /// # Errors
    /// When that can't be told.
    #[cfg(feature = "store")]
    pub fn verify(&self, seen: &Seen, cost: Cost) -> io::Result<Verdict> {
        Ok(Verdict::new(seen, self.verify_disk(&seen.acks_dir)?, cost))
    }

    /// The part of [`verify`](Self::verify) that is on disk, for clients that are no [load](crate::load) and log in `acks_dir`.
    ///
    /// # Errors
    /// When that can't be told.
    #[cfg(feature = "store")]
    pub fn verify_disk(&self, acks_dir: &Path) -> io::Result<OnDisk> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([acks_dir, self.data_dir()]).env(crate::ROLE_VARIABLE, "verify");
        let output = command.output()?;
        serde_json::from_slice(&output.stdout)
            .map_err(|error| io::Error::other(format!("{error}: {}", String::from_utf8_lossy(&output.stderr))))
    }

    /// The pids of all living processes that belong to this fixture, this one excepted.
    pub fn processes(&self) -> Vec<u32> {
        let mut wanted = OsString::from(MARK);
        wanted.push("=");
        wanted.push(&self.mark);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| environment_holds(*pid, wanted.as_encoded_bytes())).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            // The supervisor first, else it would start another daemon.
            let _ = supervisor.kill();
            let _ = supervisor.wait();
        }
        for pid in self.processes() {
            signal(pid, Signal::KILL);
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process was started with this variable; a zombie has no environment left.
fn environment_holds(pid: u32, variable: &[u8]) -> bool {
    let mut environment = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ")).and_then(|mut file| file.read_to_end(&mut environment));
    read.is_ok() && environment.split(|byte| *byte == 0).any(|entry| entry == variable)
}
