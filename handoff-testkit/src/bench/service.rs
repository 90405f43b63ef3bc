//! One side's running service, seen from the measurement: it is told to hand over, and says what that took.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sides::{self, Side};
use super::slow_sync::SlowSync;
use crate::fixture::{Fixture, Setup};
use crate::load::Protocol;
use crate::store::StoreClient;

/// How long an old process may take to leave: its clients have to notice first.
const LEAVING: Duration = Duration::from_secs(20);

/// What a supervisor says when its service serves.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    pub(super) address: SocketAddr,
    pub(super) pid: u32,
}

/// What a supervisor says after a handover. Times in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) pid: u32,
    /// What it did for the order, by its own clock.
    pub(super) perform: f64,
    /// The parts of it, by the names in [`sides::PHASES`].
    pub(super) phases: BTreeMap<String, f64>,
}

/// A handover, as the measurement has seen it.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) ordered: Instant,
    pub(super) answered: Instant,
    pub(super) answer: Answer,
}

/// A service that can be handed over.
#[derive(Debug)]
pub(super) struct Service {
    address: SocketAddr,
    /// All loads of the service speak by it: it knows what they were told.
    client: Arc<StoreClient>,
    pid: u32,
    supervisor: Supervisor,
    slow_sync: Option<SlowSync>,
}

#[derive(Debug)]
enum Supervisor {
    Handoff(Box<Ordered>),
    Piped { process: Child, orders: Option<ChildStdin>, answers: BufReader<ChildStdout> },
}

/// `handoff run`, with a connection that takes orders: kept, as the pipes of the other sides are.
#[derive(Debug)]
pub(super) struct Ordered {
    pub(super) fixture: Fixture,
    admin: BufReader<UnixStream>,
}

impl Service {
    /// Starts a side's service in `home`, which exists, and waits until it serves.
    ///
    /// # Errors
    /// A process can't be started, or does not serve.
    pub(super) fn start(side: Side, home: &Path, clients: usize, sync_delay: Option<Duration>) -> io::Result<Self> {
        let slow_sync = sync_delay.map(|delay| SlowSync::start(&home.join("slow"), delay)).transpose()?;
        let variable = slow_sync.as_ref().map(SlowSync::variable);
        let connections = sides::connections_for(clients);
        let (address, pid, supervisor) = match side.supervisor() {
            None => start_handoff(home, connections, variable)?,
            Some(role) => start_piped(role, home, connections, variable)?,
        };
        Ok(Self { address, client: StoreClient::new(), pid, supervisor, slow_sync })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How clients speak to it.
    pub(super) fn client(&self) -> Arc<dyn Protocol> {
        Arc::clone(&self.client) as Arc<dyn Protocol>
    }

    /// How many syncs were made slower so far, if any are.
    pub(super) fn syncs_held(&self) -> Option<u64> {
        self.slow_sync.as_ref().map(SlowSync::held)
    }

    /// Orders a handover and waits for the answer.
    ///
    /// # Errors
    /// It was not committed.
    pub(super) fn hand_over(&mut self) -> io::Result<Handover> {
        match &mut self.supervisor {
            Supervisor::Handoff(handoff) => handoff.hand_over(),
            Supervisor::Piped { orders, answers, .. } => {
                let ordered = Instant::now();
                orders.as_mut().ok_or_else(gone)?.write_all(b"\n")?;
                let line = next_line(answers)?;
                let answered = Instant::now();
                Ok(Handover { ordered, answered, answer: serde_json::from_str(&line)? })
            }
        }
    }

    /// Waits until the process that `handover` has replaced is gone, so that it disturbs nobody.
    ///
    /// # Errors
    /// It stays.
    pub(super) fn settle(&mut self, handover: &Handover) -> io::Result<()> {
        let old = std::mem::replace(&mut self.pid, handover.answer.pid);
        wait_until_gone(old)
    }

    /// Stops everything.
    ///
    /// # Errors
    /// It does not stop.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        match &mut self.supervisor {
            Supervisor::Handoff(handoff) => handoff.fixture.stop().map(drop),
            Supervisor::Piped { process, orders, .. } => {
                drop(orders.take());
                process.wait().map(drop)
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Supervisor::Piped { orders, process, .. } = &mut self.supervisor {
            // It ends its daemon and itself when nobody can order any more.
            drop(orders.take());
            let _ = process.wait();
        }
    }
}

type Started = (SocketAddr, u32, Supervisor);

fn start_handoff(home: &Path, connections: usize, variable: Option<(String, String)>) -> io::Result<Started> {
    let (name, value) = sides::ONE_HEAP;
    let mut setup = Setup::role("store")?.within(home).listener("http", "127.0.0.1:0").supervisor_env(name, value);
    setup = setup.arg("--connections").arg(connections.to_string());
    if let Some((name, value)) = variable {
        setup = setup.supervisor_env(name, value);
    }
    let fixture = setup.start()?;
    let (address, pid) = (fixture.address("http")?, fixture.incumbent_pid()?);
    Ok((address, pid, Supervisor::Handoff(Box::new(Ordered::connect(fixture)?))))
}

fn start_piped(role: &str, home: &Path, connections: usize, variable: Option<(String, String)>) -> io::Result<Started> {
    let mut command = Command::new(std::env::current_exe()?);
    command.envs(sides::environment(role, home, connections)).envs([sides::ONE_HEAP]).envs(variable);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let orders = process.stdin.take();
    let mut answers = BufReader::new(process.stdout.take().ok_or_else(gone)?);
    let greeting: Greeting = serde_json::from_str(&next_line(&mut answers)?)?;
    Ok((greeting.address, greeting.pid, Supervisor::Piped { process, orders, answers }))
}

impl Ordered {
    /// # Errors
    /// Nobody takes orders.
    pub(super) fn connect(fixture: Fixture) -> io::Result<Self> {
        let admin = BufReader::new(UnixStream::connect(fixture.state_dir().join("admin.sock"))?);
        Ok(Self { fixture, admin })
    }

    /// The order as `handoff upgrade` gives it, without the start of another process.
    ///
    /// # Errors
    /// It was not committed.
    pub(super) fn hand_over(&mut self) -> io::Result<Handover> {
        let ordered = Instant::now();
        self.admin.get_mut().write_all(b"{\"cmd\":\"upgrade\"}\n")?;
        let (line, report) = loop {
            let line = next_line(&mut self.admin)?;
            let value: Value = serde_json::from_str(&line)?;
            if value.get("event").is_none() {
                break (line, value);
            }
        };
        let answered = Instant::now();
        let pid = report["new_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let Some(pid) = pid.filter(|_| report["committed"] == true) else {
            return Err(io::Error::other(format!("not handed over: {line}\n{}", self.fixture.log())));
        };
        let answer = sides::phases_of_handoff(pid, &report["timings_ms"]);
        Ok(Handover { ordered, answered, answer })
    }
}

fn next_line(lines: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match lines.read_line(&mut line)? {
        0 => Err(gone()),
        _ => Ok(line),
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the supervisor has ended; what it said stands above")
}

/// Waits for the end of a process, its child or not.
///
/// # Errors
/// It stays.
pub(super) fn wait_until_gone(pid: u32) -> io::Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))?;
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let timeout = Timespec { tv_sec: LEAVING.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the old process {pid} does not leave"))),
        _ => Ok(()),
    }
}
