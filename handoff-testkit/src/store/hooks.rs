//! The daemon's hooks: what the library calls on the way from one process to the next, and the service that answers meanwhile.
//!
//! Invariants:
//!
//! - After a drain no request is in hand, and what is acknowledged is durable: every reply was sent after its sync.
//! - After an abort nothing that is remembered is trusted: once the lock was away, the store is opened again from disk.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use handoff_runtime::{
    DrainContext, DrainReport, Drainable, HookError, Resume, SealContext, SealReport, StateNotReadable, StateSnapshot,
};

use super::server::{Server, Service};
use super::wire::{Reply, Request, Stats};
use super::{Contents, Signal, Store, StoreError, now_ms};

/// A store that serves clients and can be handed over. Clones share it: one for the hooks, one for `main`.
#[derive(Debug, Clone)]
pub struct Daemon {
    service: Arc<StoreService>,
    server: Arc<Server>,
}

impl Daemon {
    /// Starts all threads, for at most `connections_max` clients at once; the data is not touched.
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub fn start(data_dir: &Path, build_id: &str, connections_max: usize) -> std::io::Result<Self> {
        let service = Arc::new(StoreService::new(data_dir, build_id));
        let server = Arc::new(Server::start(Arc::clone(&service) as Arc<dyn Service>, connections_max)?);
        Ok(Self { service, server })
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

    /// Stays until the clients that were told `BYE` have closed, or `patience` is over. Returns how many have not.
    pub fn leave(&self, patience: Duration) -> usize {
        self.server.leave(patience)
    }
}

impl Drainable for Daemon {
    fn drain(&self, cx: &DrainContext) -> Result<DrainReport, HookError> {
        let open = self.server.close(cx.deadline(), || cx.cancelled());
        // Every reply was sent after its sync, so what is acknowledged is durable already.
        Ok(DrainReport { open_conns_remaining: u32::try_from(open).unwrap_or(u32::MAX), accept_closed: true })
    }

    fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError> {
        if cx.cancelled() {
            return Err("the handover is off".into());
        }
        let sealed = self.service.store().ok_or(StoreError::Sealed)?.seal()?;
        cx.progress(1, 1, sealed.last_sequence);
        Ok(SealReport { last_revision_per_shard: vec![sealed.last_sequence], data_dir_fingerprint: sealed.fingerprint })
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError> {
        let still_good = self.service.store().is_some_and(|store| store.check().is_ok());
        if resume.state_may_have_changed || !still_good {
            self.open(resume.epoch).map_err(not_readable)?;
        }
        self.server.open()?;
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

/// Answers requests from whatever store is open.
#[derive(Debug)]
struct StoreService {
    data_dir: PathBuf,
    build_id: String,
    /// `None` until it is opened for the first time, and after opening it failed.
    store: RwLock<Option<Arc<Store>>>,
}

impl StoreService {
    fn new(data_dir: &Path, build_id: &str) -> Self {
        Self { data_dir: data_dir.into(), build_id: build_id.into(), store: RwLock::new(None) }
    }

    fn open(&self, epoch: u64) -> Result<Contents, StoreError> {
        let mut slot = self.store.write().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        let store = Store::open(&self.data_dir, epoch)?;
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
            Request::Stats => self.stats(&store, open_connections).map(Reply::Stats),
            Request::Ping => Ok(Reply::Pong),
        };
        answered.unwrap_or_else(Reply::from)
    }
}

fn value(signal: Signal) -> Reply {
    Reply::Value { count: signal.count, scores: signal.scores_at(now_ms()) }
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
