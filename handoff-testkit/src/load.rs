//! Clients that write to the [reference store](crate::store) all the time, or read from it, and count everything that a handover
//! may cost.
//!
//! By default half of them keep their connection, half open a new one for each request. Nothing is retried in silence: what the counts
//! mean is said at [`LoadReport`]. Each client logs its acknowledged writes to a file of its own, for the
//! [oracle](crate::oracle) to check from another process after the end.

mod client;
mod gaps;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use client::{Client, Connections, Work};
pub use gaps::Gaps;

/// What load to make.
#[derive(Debug, Clone)]
pub struct LoadSpec {
    /// Where the store listens.
    pub address: SocketAddr,
    /// How many clients write at the same time.
    pub clients: usize,
    /// How many more read.
    pub readers: usize,
    /// Which of them keep their connection.
    pub kept: Kept,
    /// How long a client rests after each reply.
    pub think: Duration,
    /// How many keys they share.
    pub keys: u64,
    /// Where the logs of acknowledged writes go; it is created.
    pub acks_dir: PathBuf,
    /// How long a client waits for a connection or a reply before it counts it as refused or unanswered.
    pub patience: Duration,
}

/// Which clients keep their connection until they are told `BYE`; the others open a new one for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The even ones.
    Half,
    /// All of them.
    All,
}

impl LoadSpec {
    /// 32 clients that write, half of them on kept connections, 64 keys, 1 ms of thinking, 30 s of patience.
    pub fn new(address: SocketAddr, acks_dir: &Path) -> Self {
        Self {
            address,
            clients: 32,
            readers: 0,
            kept: Kept::Half,
            think: Duration::from_millis(1),
            keys: 64,
            acks_dir: acks_dir.into(),
            patience: Duration::from_secs(30),
        }
    }
}

/// What the clients have seen. In a handover that keeps its promises, all but the first three are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Writes that were acknowledged, each of them logged before it was counted.
    pub acked: u64,
    /// Reads that were answered.
    pub read: u64,
    /// Requests that crossed a `BYE`, were answered `RETRY`, and were sent again under the same token.
    pub retried: u64,
    /// Connects that failed, and connections that were reset, or closed without a `BYE`.
    pub refused: u64,
    /// Requests that were sent and got no reply: the connection ended first, or patience did.
    pub closed_unanswered: u64,
    /// Requests that were answered with an error.
    pub rejected: u64,
    /// Reads whose key showed less than the same client had seen before.
    pub stale: u64,
}

/// What the threads of a load share.
#[derive(Debug)]
pub(crate) struct Shared {
    gaps: Gaps,
    state: Mutex<State>,
    counted: Condvar,
    stop: Condvar,
}

#[derive(Debug, Default)]
struct State {
    report: LoadReport,
    stopped: bool,
}

impl Shared {
    fn new() -> Arc<Self> {
        let state = Mutex::new(State::default());
        Arc::new(Self { gaps: Gaps::new(), state, counted: Condvar::new(), stop: Condvar::new() })
    }

    pub(crate) fn count(&self, counter: impl FnOnce(&mut LoadReport) -> &mut u64) {
        *counter(&mut self.state().report) += 1;
        self.counted.notify_all();
    }

    /// Rests for `think`; false when the load was stopped.
    pub(crate) fn think(&self, think: Duration) -> bool {
        let rested = self.stop.wait_timeout_while(self.state(), think, |state| !state.stopped);
        !rested.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    fn stop(&self) {
        self.state().stopped = true;
        self.stop.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A load under way. Dropping it stops the clients without waiting for them.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Load {
    /// Starts the clients.
    ///
    /// # Errors
    /// A log can't be created, or a thread can't be started.
    pub fn start(spec: &LoadSpec) -> io::Result<Self> {
        std::fs::create_dir_all(&spec.acks_dir)?;
        let run = run_name();
        let all = spec.clients + spec.readers;
        let mut load = Self { shared: Shared::new(), threads: Vec::with_capacity(all) };
        for number in 0..all {
            let connections = match spec.kept {
                Kept::Half if number % 2 == 1 => Connections::OnePerRequest,
                Kept::Half | Kept::All => Connections::Kept,
            };
            let name = format!("{run}.{number}");
            let work = if number < spec.clients { Work::writing(spec, &name)? } else { Work::reading() };
            let client = Client::new(spec.clone(), name, work, connections, Arc::clone(&load.shared));
            let thread = thread::Builder::new().name(format!("load-{number}")).stack_size(128 << 10);
            load.threads.push(thread.spawn(move || client.run())?);
        }
        Ok(load)
    }

    /// What the clients have seen so far.
    pub fn counts(&self) -> LoadReport {
        self.shared.state().report
    }

    /// Waits until the clients have seen what `enough` asks for; false when they have not within `patience`.
    pub fn wait_until(&self, patience: Duration, enough: impl Fn(&LoadReport) -> bool) -> bool {
        let waiting = |state: &mut State| !enough(&state.report);
        let waited = self.shared.counted.wait_timeout_while(self.shared.state(), patience, waiting);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The gaps between replies over all clients.
    pub fn gaps(&self) -> &Gaps {
        &self.shared.gaps
    }

    /// Lets every client finish its request, and returns what they have seen.
    ///
    /// # Errors
    /// An acknowledged write could not be logged, so the logs prove nothing.
    pub fn stop(mut self) -> io::Result<LoadReport> {
        self.shared.stop();
        for thread in std::mem::take(&mut self.threads) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(self.counts())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// A name that no other run in the same data directory has.
fn run_name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), since.as_nanos())
}

#[cfg(test)]
mod tests;
