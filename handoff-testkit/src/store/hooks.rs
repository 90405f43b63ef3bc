//! The daemon's hooks: what the library calls on the way from one process to the next, and the service that answers meanwhile.
//!
//! Invariants:
//!
//! - After a drain no request is in hand, and what is acknowledged is durable: every reply was sent after its sync. What nobody
//!   has taken in hand, connections in the backlog and datagrams in the sockets' queues, is left for the successor.
//! - Checkpoints are made by a thread of their own while clients are served; a seal makes one under way give up.
//! - After an abort nothing that is remembered is trusted: once the lock was away, the store is opened again from disk.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use handoff_runtime::{
    DrainContext, DrainReport, Drainable, HookError, Resume, SealContext, SealReport, StateNotReadable, StateSnapshot,
};

use super::datagrams::Datagrams;
use super::server::{Server, Service};
use super::wire::{Reply, Request, Stats};
use super::{Cohort, Contents, LogRetention, Signal, Store, StoreError, now_ms};

/// How many datagrams are answered at once. Each thread is one more that a successor starts before it can take over.
const DATAGRAM_THREADS: usize = 2;

/// A store that serves clients and can be handed over. Clones share it: one for the hooks, one for `main`.
#[derive(Debug, Clone)]
pub struct Daemon {
    service: Arc<StoreService>,
    server: Arc<Server>,
    datagrams: Arc<Datagrams>,
}

impl Daemon {
    /// Starts all threads, for at most `connections_max` clients at once; the data is not touched.
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub fn start(
        data_dir: &Path,
        build_id: &str,
        connections_max: usize,
        retention: LogRetention,
    ) -> std::io::Result<Self> {
        let (due, when_due) = sync_channel(1);
        let service = Arc::new(StoreService::new(data_dir, build_id, retention, due));
        let answering = Arc::clone(&service) as Arc<dyn Service>;
        let server = Arc::new(Server::start(Arc::clone(&answering), connections_max)?);
        let datagrams = Arc::new(Datagrams::start(answering, DATAGRAM_THREADS)?);
        thread::Builder::new().name("store-checkpoint".into()).spawn(move || make_checkpoints(&when_due))?;
        Ok(Self { service, server, datagrams })
    }

    /// Opens the store under `epoch`, in place of the one that was open.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(&self, epoch: u64) -> Result<Contents, StoreError> {
        self.service.open(epoch)
    }

    /// Serves clients on `listeners` from now on.
    ///
    /// # Errors
    /// As [`Server::listen`].
    pub fn listen(&self, listeners: Vec<TcpListener>) -> std::io::Result<()> {
        self.server.listen(listeners)
    }

    /// Answers datagrams on `sockets` from now on.
    pub fn receive(&self, sockets: Vec<UdpSocket>) {
        self.datagrams.listen(sockets);
    }

    /// Stays until the clients that were told `BYE` have closed, or `patience` is over. Returns how many have not.
    pub fn leave(&self, patience: Duration) -> usize {
        self.server.leave(patience)
    }
}

impl Drainable for Daemon {
    fn drain(&self, cx: &DrainContext) -> Result<DrainReport, HookError> {
        let open = self.server.close(cx.deadline(), || cx.cancelled());
        self.datagrams.close(cx.deadline(), || cx.cancelled());
        // Every reply was sent after its sync, so what is acknowledged is durable already.
        Ok(DrainReport { open_conns_remaining: u32::try_from(open).unwrap_or(u32::MAX), accept_closed: true })
    }

    fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError> {
        if cx.cancelled() {
            return Err("the handover is off".into());
        }
        let sealed = self.service.store().ok_or(StoreError::Sealed)?.seal()?;
        Ok(SealReport { last_revision_per_shard: vec![sealed.last_sequence], data_dir_fingerprint: sealed.fingerprint })
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError> {
        let still_good = self.service.store().is_some_and(|store| store.check().is_ok());
        if resume.state_may_have_changed || !still_good {
            self.open(resume.epoch).map_err(not_readable)?;
        }
        self.server.open()?;
        self.datagrams.open();
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        let contents = self.service.store().and_then(|store| store.contents().ok());
        StateSnapshot {
            shard_count: 1,
            open_conns: u32::try_from(self.server.open_connections()).unwrap_or(u32::MAX),
            last_revision_per_shard: contents.iter().map(|contents| contents.last_sequence).collect(),
        }
    }
}

/// A newer build's log is for that build: giving up is then better than trying again.
fn not_readable(error: StoreError) -> HookError {
    match error {
        StoreError::NewerFormat { .. } => Box::new(StateNotReadable { reason: error.to_string() }),
        error => error.into(),
    }
}

/// The checkpointing thread; ends with the service.
fn make_checkpoints(when_due: &Receiver<Arc<Store>>) {
    for store in when_due {
        match store.checkpoint() {
            Ok(sequence) => tracing::debug!(sequence, "checkpoint made"),
            Err(StoreError::Sealed | StoreError::Sealing) => {}
            // The log has everything; the next time that one is due it is tried again.
            Err(error) => tracing::warn!(%error, "no checkpoint was made"),
        }
    }
}

/// Answers requests from whatever store is open.
#[derive(Debug)]
struct StoreService {
    data_dir: PathBuf,
    build_id: String,
    retention: LogRetention,
    /// To the checkpointing thread. Full means that one is asked for already.
    due: SyncSender<Arc<Store>>,
    /// `None` until it is opened for the first time, and after opening it failed.
    store: RwLock<Option<Arc<Store>>>,
}

impl StoreService {
    fn new(data_dir: &Path, build_id: &str, retention: LogRetention, due: SyncSender<Arc<Store>>) -> Self {
        Self { data_dir: data_dir.into(), build_id: build_id.into(), retention, due, store: RwLock::new(None) }
    }

    fn open(&self, epoch: u64) -> Result<Contents, StoreError> {
        let mut slot = self.store.write().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        let store = Store::open_with(&self.data_dir, epoch, self.retention)?;
        let contents = store.contents()?;
        *slot = Some(Arc::new(store));
        Ok(contents)
    }

    fn store(&self) -> Option<Arc<Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stats(&self, store: &Store, connections: usize) -> Result<Stats, StoreError> {
        Ok(Stats {
            keys: store.key_count()?,
            sequence: store.contents()?.last_sequence,
            epoch: store.epoch(),
            connections,
            pid: std::process::id(),
            build: self.build_id.clone(),
        })
    }
}

impl Service for StoreService {
    fn answer(&self, request: Request<'_>, open_connections: usize) -> Reply {
        let Some(store) = self.store() else { return Reply::Retry };
        let answered = match request {
            Request::Increment { key, token: None } => store.increment(key).map(Reply::Ok),
            Request::Increment { key, token: Some(token) } => store.increment_with_token(key, token).map(Reply::Ok),
            Request::Get { key } => store.signal(key).map(|signal| value(signal.unwrap_or_default())),
            Request::Cohort { cohort } => store.cohort(cohort).map(|found| counts(found.unwrap_or_default())),
            Request::Add { collection, item } => store.add_to_collection(collection, item).map(yes_or_no),
            Request::Has { collection, item } => store.is_in_collection(collection, item).map(yes_or_no),
            Request::Count { collection } => store.collection_len(collection).map(Reply::Ok),
            Request::Pair { a, b } => store.co_engaged(a, b).map(Reply::Ok),
            Request::Near { key } => store.neighbours(key).map(Reply::Near),
            Request::Checkpoint => store.checkpoint().map(Reply::Ok),
            Request::Stats => self.stats(&store, open_connections).map(Reply::Stats),
            Request::Ping => Ok(Reply::Pong),
        };
        if store.is_checkpoint_due() {
            let _ = self.due.try_send(store);
        }
        answered.unwrap_or_else(Reply::from)
    }
}

fn value(signal: Signal) -> Reply {
    Reply::Value { count: signal.count, scores: signal.scores_at(now_ms()) }
}

fn counts(cohort: Cohort) -> Reply {
    let now_ms = now_ms();
    Reply::Cohort { events: cohort.events, hour: cohort.last_hour(now_ms), days: cohort.last_two_days(now_ms) }
}

fn yes_or_no(yes: bool) -> Reply {
    Reply::Ok(yes.into())
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
