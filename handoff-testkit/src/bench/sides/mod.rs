//! The four sides: who plays them, and what they have in common. The daemon's work is the reference store's on all of them, by
//! the same hooks; what differs is who calls them and when.

pub(super) mod floor;
pub(super) mod peer;
mod plain;
pub(super) mod restart;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use handoff_runtime::{DrainContext, Drainable, SealContext, SealReport};
use serde::Serialize;
use serde_json::Value;

use super::AnyError;
use super::service::{Answer, Greeting};
use crate::store::LogRetention;
use crate::store::hooks::Daemon;

/// The parts of a handover, in the order in which they come, and what they are.
pub(super) const PHASES: [(&str, &str); 7] = [
    ("stop", "the old process drains, seals and exits"),
    ("start", "the new process starts; but for a restart, the old one serves"),
    ("drain", "the old process drains"),
    ("seal", "it seals and lets go of the lock; the floor drains in it too"),
    ("begin", "the new process locks, opens, is ready"),
    ("after", "commit and what follows"),
    ("around", "greeting and journal, before and after"),
];

/// The epoch under which the sides without a lease write.
const EPOCH: u64 = 1;
/// How long a daemon may drain, and wait for its clients to leave.
const PATIENCE: Duration = Duration::from_secs(10);

const HOME: &str = "HANDOFF_BENCH_HOME";
const CONNECTIONS: &str = "HANDOFF_BENCH_CONNECTIONS";

/// Who hands over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Handoff,
    Peer,
    Floor,
    Restart,
}

impl Side {
    /// In the order of the report.
    pub(super) const ALL: [Self; 4] = [Self::Handoff, Self::Peer, Self::Floor, Self::Restart];

    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Handoff => "handoff",
            Self::Peer => "peer",
            Self::Floor => "floor",
            Self::Restart => "restart",
        }
    }

    /// The role of its supervisor; none for the program `handoff`.
    pub(super) fn supervisor(self) -> Option<&'static str> {
        match self {
            Self::Handoff => None,
            Self::Peer => Some(peer::SUPERVISOR),
            Self::Floor => Some(floor::SUPERVISOR),
            Self::Restart => Some(restart::SUPERVISOR),
        }
    }
}

/// What a role comes to as a process.
pub(super) fn played(ended: Result<(), AnyError>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handoff-bench: a side's process {}: {error}", std::process::id());
            ExitCode::FAILURE
        }
    }
}

/// How many connections a daemon must be able to serve: a thread for each, all started before it takes over. Two more than
/// clients, for one that has left and was not seen to leave.
pub(super) fn connections_for(clients: usize) -> usize {
    clients + 2
}

/// In the environment of every supervisor, and so of its daemons: the store's threads share one heap (mallopt(3)). One for each is
/// mapped while a daemon starts, and tells nothing of who starts it.
pub(super) const ONE_HEAP: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// What a side's process must find in its environment in this role.
pub(super) fn environment(role: &str, home: &Path, connections: usize) -> [(&'static str, String); 3] {
    [
        (crate::ROLE_VARIABLE, role.to_owned()),
        (HOME, home.to_string_lossy().into_owned()),
        (CONNECTIONS, connections.to_string()),
    ]
}

/// What the supervisor's own clock says in a report of `handoff`. What is in no named part is around them.
pub(super) fn phases_of_handoff(pid: u32, timings_ms: &Value) -> Answer {
    let us = |name: &str| timings_ms[name].as_f64().unwrap_or_default() * 1e3;
    let (start, drain, begin) = (us("spawn") + us("warm"), us("drain"), us("begin_to_ready"));
    let seal = us("pause") - drain - begin;
    let around = us("total") - start - us("pause");
    let phases = [("start", start), ("drain", drain), ("seal", seal), ("begin", begin), ("around", around)];
    Answer { pid, perform: us("total"), phases: named(&phases) }
}

fn named(phases: &[(&str, f64)]) -> BTreeMap<String, f64> {
    phases.iter().map(|(name, time)| ((*name).to_owned(), *time)).collect()
}

fn home() -> Result<PathBuf, AnyError> {
    Ok(std::env::var_os(HOME).ok_or("HANDOFF_BENCH_HOME is not set")?.into())
}

fn connections() -> usize {
    std::env::var(CONNECTIONS).ok().and_then(|count| count.parse().ok()).unwrap_or(16)
}

fn data_dir() -> Result<PathBuf, AnyError> {
    Ok(home()?.join("data"))
}

/// The reference daemon with all its threads, which has not touched the data yet.
fn warm_daemon() -> Result<Daemon, AnyError> {
    Ok(Daemon::start(&data_dir()?, "bench", connections(), LogRetention::Truncated)?)
}

fn drain(daemon: &Daemon, deadline: Instant) -> Result<(), String> {
    daemon.drain(&DrainContext::for_test(deadline)).map(drop).map_err(|error| error.to_string())
}

fn seal(daemon: &Daemon) -> Result<SealReport, String> {
    daemon.seal(&SealContext::for_test()).map_err(|error| error.to_string())
}

/// Says that the service serves, then hands over at each order, until nobody can order any more.
fn obey(greeting: &Greeting, mut hand_over: impl FnMut() -> Result<Answer, AnyError>) -> Result<(), AnyError> {
    say(greeting)?;
    for order in io::stdin().lock().lines() {
        order?;
        say(&hand_over()?)?;
    }
    Ok(())
}

/// One line, in one write.
pub(super) fn say(what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// In microseconds.
pub(super) fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
