//! Clients that write to a daemon all the time, or read from it, and count everything that a handover may cost.
//!
//! How they speak is a [`Protocol`]: the reference store's, or that of a daemon of your own. Nothing is retried in silence: what
//! the counts mean is said at [`Suffered`]. Each client logs what it sends and what is acknowledged to a file of its own, for the
//! [audit](crate::audit) to compare with the data after the end.

mod ack_log;
mod client;
mod connection;
mod counts;
mod gaps;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use ack_log::AckLog;
pub(crate) use ack_log::Told;
use client::{Client, Connections, Work};
pub use connection::{Connection, Endpoint};
pub use counts::{Cost, Counts, Suffered};
pub use gaps::Gaps;

/// How clients and daemon speak. One value serves all clients of a load, so it can compare what they are told.
pub trait Protocol: Send + Sync {
    /// One durable write of this token.
    ///
    /// # Errors
    /// What kept the client from being told; the write may or may not have been done.
    fn write(&self, connection: &mut Connection, token: u64) -> Result<Answer, Suffered>;

    /// Reads what a write of this token has changed; with 0, anything.
    ///
    /// # Errors
    /// What kept the client from being told.
    fn read(&self, connection: &mut Connection, token: u64) -> Result<Answer, Suffered>;

    /// Looks, without waiting, at a kept connection on which nothing was asked.
    fn look(&self, connection: &mut Connection) -> Standing {
        match connection.unasked() {
            Ok([]) => Standing::Good,
            _ => Standing::Broken,
        }
    }
}

/// What a request was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done, and the connection is good for another request.
    Done,
    /// It is done, and the daemon has said that it takes no more on this connection.
    DoneAndLeaving,
    /// It was not carried out, and may be sent again on a new connection.
    Again,
    /// It is done, and what the daemon says of it is wrong.
    Wrong(Suffered),
}

/// How a connection stands on which nothing was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can be used.
    Good,
    /// The daemon has said that it takes no more on it.
    Leaving,
    /// It ended without a word, or says what nobody asked for.
    Broken,
}

/// What load to make.
#[derive(Debug, Clone)]
pub struct LoadSpec {
    /// Where the daemon listens.
    pub endpoint: Endpoint,
    /// How many clients write at the same time.
    pub clients: usize,
    /// How many more read.
    pub readers: usize,
    /// Which of them keep their connection.
    pub kept: Kept,
    /// How long a client rests after each reply.
    pub think: Duration,
    /// Where the logs go; it is created.
    pub acks_dir: PathBuf,
    /// How long a client waits for a connection or a reply before it gives the request up.
    pub patience: Duration,
}

/// Which clients keep their connection until they are told that the daemon leaves; the others open a new one for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// None.
    None,
    /// The even ones.
    Half,
    /// All of them.
    All,
}

impl LoadSpec {
    /// 32 clients that write, half of them on kept connections, 1 ms of thinking, 30 s of patience.
    pub fn new(endpoint: impl Into<Endpoint>, acks_dir: &Path) -> Self {
        Self {
            endpoint: endpoint.into(),
            clients: 32,
            readers: 0,
            kept: Kept::Half,
            think: Duration::from_millis(1),
            acks_dir: acks_dir.into(),
            patience: Duration::from_secs(30),
        }
    }
}

/// The token of the next write, of whichever load of this process: no two writes have the same.
pub(crate) fn next_token() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Acknowledged writes that readers ask for; older ones are forgotten.
const RECENT_MAX: usize = 64;

/// What the threads of a load share.
pub(crate) struct Shared {
    protocol: Arc<dyn Protocol>,
    gaps: Gaps,
    state: Mutex<State>,
    counted: Condvar,
    stop: Condvar,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    recent: VecDeque<u64>,
    stopped: bool,
}

impl Shared {
    fn new(protocol: Arc<dyn Protocol>) -> Arc<Self> {
        let state = Mutex::new(State::default());
        Arc::new(Self { protocol, gaps: Gaps::new(), state, counted: Condvar::new(), stop: Condvar::new() })
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.state().counts);
        self.counted.notify_all();
    }

    fn acknowledge(&self, token: u64) {
        let mut state = self.state();
        state.counts.acked += 1;
        if state.recent.len() == RECENT_MAX {
            state.recent.pop_front();
        }
        state.recent.push_back(token);
        drop(state);
        self.counted.notify_all();
    }

    /// A write that was acknowledged not long ago; another one for each reader and time.
    fn recent(&self, turn: u64) -> Option<u64> {
        let state = self.state();
        let at = usize::try_from(turn).unwrap_or(0) % state.recent.len().max(1);
        state.recent.get(at).copied()
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
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    acks_dir: PathBuf,
}

/// What the clients of a load have seen, from its beginning to its end.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Everything that they counted.
    pub counts: Counts,
    /// Where they logged what they sent and what was acknowledged.
    pub acks_dir: PathBuf,
}

impl Load {
    /// Starts the clients.
    ///
    /// # Errors
    /// A log can't be created, or a thread can't be started.
    pub fn start(spec: &LoadSpec, protocol: Arc<dyn Protocol>) -> io::Result<Self> {
        std::fs::create_dir_all(&spec.acks_dir)?;
        let run = run_name();
        let all = spec.clients + spec.readers;
        let acks_dir = spec.acks_dir.clone();
        let mut load = Self { shared: Shared::new(protocol), threads: Vec::with_capacity(all), acks_dir };
        for number in 0..all {
            let connections = match spec.kept {
                Kept::Half if number % 2 == 1 => Connections::OnePerRequest,
                Kept::None => Connections::OnePerRequest,
                Kept::Half | Kept::All => Connections::Kept,
            };
            let work = if number < spec.clients {
                Work::Write { log: AckLog::create(&spec.acks_dir, &format!("{run}.{number}"))? }
            } else {
                Work::Read { turn: number as u64 }
            };
            let client = Client::new(spec.clone(), work, connections, Arc::clone(&load.shared));
            let thread = thread::Builder::new().name(format!("load-{number}")).stack_size(128 << 10);
            load.threads.push(thread.spawn(move || client.run())?);
        }
        Ok(load)
    }

    /// What the clients have seen so far.
    pub fn counts(&self) -> Counts {
        self.shared.state().counts.clone()
    }

    /// Waits until the clients have seen what `enough` asks for; false when they have not within `patience`.
    pub fn wait_until(&self, patience: Duration, enough: impl Fn(&Counts) -> bool) -> bool {
        let waiting = |state: &mut State| !enough(&state.counts);
        let waited = self.shared.counted.wait_timeout_while(self.shared.state(), patience, waiting);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits for so many acknowledged writes more; false when they have not come within `patience`.
    pub fn wait_for_acks(&self, more: u64, patience: Duration) -> bool {
        let wanted = self.counts().acked + more;
        self.wait_until(patience, |seen| seen.acked >= wanted)
    }

    /// The gaps between replies over all clients.
    pub fn gaps(&self) -> &Gaps {
        &self.shared.gaps
    }

    /// Lets every client finish its request, and returns what they have seen.
    ///
    /// # Errors
    /// What was sent or acknowledged could not be logged, so the logs prove nothing.
    pub fn stop(mut self) -> io::Result<Seen> {
        self.shared.stop();
        for thread in std::mem::take(&mut self.threads) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(Seen { counts: self.counts(), acks_dir: self.acks_dir.clone() })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// A name that no other run with the same directory of logs has.
fn run_name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), since.as_nanos())
}

#[cfg(all(test, feature = "store"))]
mod tests;
