//! The reference store: a durable signal store, small enough to be read in one sitting, whole enough to be handed over. It
//! shows how a stateful daemon is written for handoff.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs`, `checkpoint.rs` | [`Store`]: the write path, the seal; the checkpoint |
//! | `record.rs`, `segments.rs`, `wal.rs`, `recovery.rs` | the log: its bytes, its files, its writing half, its reading half |
//! | `group_commit.rs` | one sync for many writers |
//! | `tables.rs`, `batch.rs`, `state.rs` | the state in layers; what changed since the last checkpoint; all of it, to compare |
//! | `ledger.rs`, `cohorts.rs`, `collections.rs`, `co_engagement.rs` | what the state consists of |
//! | `engine.rs`, `engine_file.rs` | the checkpoint in an embedded storage engine, and when its file may change |
//! | [`wire`], [`server`], [`datagrams`], [`client`](StoreClient) | the line protocol; TCP with `BYE` and `RETRY`; UDP; a client's side of it |
//! | [`hooks`], [`daemon`] | the daemon: its hooks; its process, roles and listeners |
//! | `points.rs` | where it can be crashed on purpose |
//!
//! Invariants:
//!
//! - A write is acknowledged only when it is durable. A read shows only what is durable.
//! - The write path runs on its caller's thread, so that a crash injector of that thread sees it.
//! - Log and state change together, under one lock, in the same order: the state is at any time the replay of the log.
//! - A write or a checkpoint that crashes half way poisons the store: it can't be sealed.
//! - After [`Store::seal`] this process can't write: log and engine are closed.
//! - What a seal writes and what opening a sealed store reads is bounded by what changed since the last checkpoint, not by how
//!   much the store holds.
//! - The store trusts its caller to hold the data directory's lock, whose epoch each record carries; a log with a newer one
//!   is not opened.

mod batch;
mod checkpoint;
mod client;
mod co_engagement;
mod cohorts;
mod collections;
pub mod daemon;
pub mod datagrams;
mod engine;
mod engine_file;
mod error;
mod group_commit;
pub mod hooks;
mod ledger;
mod points;
mod record;
mod recovery;
mod segments;
pub mod server;
mod state;
mod tables;
mod wal;
pub mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

pub use checkpoint::{CHECKPOINT_LOG_BYTES, CHECKPOINT_ROWS, LogRetention};
pub use client::StoreClient;
pub use co_engagement::{NEIGHBOURS_MAX, Neighbour, Neighbours};
pub use cohorts::{COHORT_OF_THE_REST, Cohort, cohort_of};
pub use collections::{ITEM_MAX, Members};
pub use error::{Result, StoreError};
pub use ledger::{HALF_LIVES_MS, Signal};
pub use record::{KEY_BYTES_MAX, TOKEN_BYTES_MAX};
pub use recovery::Recovery;
pub use state::State;
pub use wal::LOG_NAME;

use checkpoint::Turn;
use group_commit::GroupCommit;
use points::crash_point;
pub(crate) use record::Payload;
use record::Write;
pub(crate) use recovery::{LogReader, Next};
pub(crate) use segments::list as list_segments;
use tables::Tables;
use wal::{DiskLog, LogFile, Position, Wal};

/// A durable store of signals. Shared between threads by reference.
///
/// ```
/// # use handoff_testkit::store::Store;
/// # let dir = tempfile::tempdir()?;
/// let store = Store::open(dir.path(), 1)?;
/// assert_eq!(store.increment("likes")?, 1);
/// let sealed = store.seal()?;
///
/// let successor = Store::open(dir.path(), 2)?;
/// assert_eq!(successor.get("likes")?, 1);
/// assert_eq!(successor.seal()?, sealed);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    epoch: u64,
    recovery: Recovery,
    retention: LogRetention,
    disk: Box<dyn Disk>,
    /// Whose turn it is to make a checkpoint; taken before the writer.
    turn: Mutex<Turn>,
    writer: Mutex<Writer>,
    commit: GroupCommit,
    /// Tells a checkpoint that the store is being sealed.
    sealing: AtomicBool,
    /// Enough has changed for a checkpoint.
    checkpoint_due: AtomicBool,
}

#[derive(Debug)]
enum Writer {
    Open { wal: Wal, tables: Box<Tables> },
    Sealed,
}

/// Where the log's segments are opened; the seam at which tests watch and break them.
trait Disk: std::fmt::Debug + Send + Sync {
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn LogFile>>;
}

#[derive(Debug)]
struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(DiskLog::open(path)?))
    }
}

/// What identifies a store's contents: equal for two processes that opened the same writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The last write's sequence: the revision of the store's one shard.
    pub last_sequence: u64,
    /// A checksum over all writes, and the sequence again.
    pub fingerprint: [u8; 32],
}

impl Store {
    /// Opens the store in `dir`, which is created, to write under `epoch`. A sealed log is not replayed. A checkpoint deletes
    /// what it has made superfluous of the log.
    ///
    /// # Errors
    /// The log is damaged, of a newer format, or was written under a newer epoch; or the disk refuses.
    pub fn open(dir: &Path, epoch: u64) -> Result<Self> {
        Self::open_with(dir, epoch, LogRetention::Truncated)
    }

    /// [`open`](Self::open) with a choice of what becomes of the log's old segments.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_with(dir: &Path, epoch: u64, retention: LogRetention) -> Result<Self> {
        Self::open_on(dir, epoch, retention, Box::new(RealDisk))
    }

    fn open_on(dir: &Path, epoch: u64, retention: LogRetention, disk: Box<dyn Disk>) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|error| StoreError::io(format!("creating {}", dir.display()), error))?;
        let recovery::Recovered { tables, mut position, how, segment } = recovery::open(dir)?;
        if position.epoch > epoch {
            return Err(StoreError::Fenced { ours: epoch, found: position.epoch });
        }
        let path = &segment.path;
        let file = disk.open(path).map_err(|error| StoreError::io(format!("opening {}", path.display()), error))?;
        if how == Recovery::Empty {
            position.bytes = segments::begin(&segment, &*file)
                .map_err(|error| StoreError::io(format!("beginning {}", path.display()), error))?;
        }
        let commit = GroupCommit::new(Arc::clone(&file), position.sequence);
        let writer = Mutex::new(Writer::Open { wal: Wal::new(file, position, epoch), tables: Box::new(tables) });
        Ok(Self {
            dir: dir.into(),
            epoch,
            recovery: how,
            retention,
            disk,
            turn: Mutex::new(Turn { segment: segment.number }),
            writer,
            commit,
            sealing: AtomicBool::new(false),
            checkpoint_due: AtomicBool::new(false),
        })
    }

    /// Counts one event of `key`; returns its count. Durable on return (promise 3).
    ///
    /// # Errors
    /// As [`increment_with_token`](Self::increment_with_token).
    pub fn increment(&self, key: &str) -> Result<u64> {
        self.increment_named(key, "")
    }

    /// Counts one event of `key`, with a token of the caller's that names this write in the log. The store does not look at
    /// tokens: it is the [oracle](crate::oracle) that finds one applied twice.
    ///
    /// # Errors
    /// A key or token that is no name; a store that is sealed or poisoned; a disk that refuses. Only [`StoreError::Sealed`]
    /// says for certain that the write is not in the log, so that it may be sent again elsewhere.
    pub fn increment_with_token(&self, key: &str, token: &str) -> Result<u64> {
        check_name("token", token, TOKEN_BYTES_MAX)?;
        self.increment_named(key, token)
    }

    fn increment_named(&self, key: &str, token: &str) -> Result<u64> {
        check_name("key", key, KEY_BYTES_MAX)?;
        self.write(Write::Increment { key, token })
    }

    /// Counts one event of each of `keys`, and waits for the disk once. Durable on return.
    ///
    /// # Errors
    /// As [`increment`](Self::increment); those before the one that failed may be in the log.
    pub fn increment_all<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut last = 0;
        for key in keys {
            check_name("key", key, KEY_BYTES_MAX)?;
            last = self.append_and_apply(Write::Increment { key, token: "" })?.1;
        }
        self.commit.wait(last)
    }

    /// Puts `item`, at most [`ITEM_MAX`], into `collection`; says whether it is new there. Durable on return.
    ///
    /// # Errors
    /// As [`increment_with_token`](Self::increment_with_token).
    pub fn add_to_collection(&self, collection: &str, item: u32) -> Result<bool> {
        check_name("collection", collection, KEY_BYTES_MAX)?;
        if item > ITEM_MAX {
            return Err(StoreError::BadItem { item, item_max: ITEM_MAX });
        }
        Ok(self.write(Write::Add { collection, item })? == 1)
    }

    /// Notes that somebody engaged with the keys `a` and `b`, which are not the same; returns the weight of their edge. Durable
    /// on return.
    ///
    /// # Errors
    /// As [`increment_with_token`](Self::increment_with_token).
    pub fn co_engaged(&self, a: &str, b: &str) -> Result<u64> {
        check_name("key", a, KEY_BYTES_MAX)?;
        check_name("key", b, KEY_BYTES_MAX)?;
        if a == b {
            return Err(StoreError::SamePair);
        }
        self.write(Write::Engage { a, b })
    }

    /// How often `key` was incremented; 0 when never. Shows only what is durable.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn get(&self, key: &str) -> Result<u64> {
        Ok(self.signal(key)?.map_or(0, |signal| signal.count))
    }

    /// The count and the scores of `key`, if it was ever incremented. Shows only what is durable.
    ///
    /// # Errors
    /// The store is sealed or poisoned, or the engine fails.
    pub fn signal(&self, key: &str) -> Result<Option<Signal>> {
        let signal: Option<Signal> = self.read(|tables, _| tables.get(key))?;
        if let Some(signal) = &signal {
            self.commit.wait(signal.sequence)?;
        }
        Ok(signal)
    }

    /// The counts of `cohort`, if one of its keys was ever incremented. Shows only what is durable.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn cohort(&self, cohort: &str) -> Result<Option<Cohort>> {
        self.read_durable(|tables| tables.get(cohort))
    }

    /// How many items `collection` holds. Shows only what is durable.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn collection_len(&self, collection: &str) -> Result<u64> {
        self.read_durable(|tables| Ok(tables.members(collection)?.map_or(0, Members::len)))
    }

    /// Whether `collection` holds `item`. Shows only what is durable.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn is_in_collection(&self, collection: &str, item: u32) -> Result<bool> {
        self.read_durable(|tables| Ok(tables.members(collection)?.is_some_and(|members| members.contains(item))))
    }

    /// What was engaged with together with `key`. Shows only what is durable.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn neighbours(&self, key: &str) -> Result<Neighbours> {
        self.read_durable(|tables| Ok(tables.get(key)?.unwrap_or_default()))
    }

    /// A copy of everything, to compare with a [`replay`](Self::replay).
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn state(&self) -> Result<State> {
        self.read(|tables, _| State::of(tables))
    }

    /// The last write, and what identifies all of them.
    ///
    /// # Errors
    /// The store is sealed or poisoned.
    pub fn contents(&self) -> Result<Contents> {
        self.read(|_, position| Ok(Contents::of(position)))
    }

    /// Whether it takes writes and can be sealed.
    ///
    /// # Errors
    /// It is sealed or poisoned.
    pub fn check(&self) -> Result<()> {
        if self.turn.is_poisoned() {
            return Err(checkpoint_crashed());
        }
        self.read(|_, _| self.commit.durable().map(drop))
    }

    /// How many keys there are.
    ///
    /// # Errors
    /// The store is sealed or poisoned.
    pub fn key_count(&self) -> Result<usize> {
        self.read(|tables, _| Ok(tables.signals() as usize))
    }

    /// Makes everything durable, writes what changed since the last checkpoint and the footer, and closes the files: after it
    /// this process can write no more. A checkpoint under way gives up.
    ///
    /// At most one sync, none when every write was waited for. The footer is not synced, and a disk that has no room for it
    /// does not fail the seal: the successor then replays.
    ///
    /// # Errors
    /// The store is sealed already, poisoned, or the sync fails. It is not sealed then, and its lock must not be released.
    pub fn seal(&self) -> Result<Contents> {
        self.sealing.store(true, Ordering::Relaxed);
        let sealed = self.turn.lock().map_err(|_| checkpoint_crashed()).and_then(|_turn| self.seal_now());
        self.sealing.store(false, Ordering::Relaxed);
        sealed
    }

    fn seal_now(&self) -> Result<Contents> {
        let mut writer = self.writer()?;
        let Writer::Open { wal, tables } = &mut *writer else { return Err(StoreError::Sealed) };
        let contents = Contents::of(wal.position());
        self.commit.wait(contents.last_sequence)?;
        if let Err(error) = wal.append_footer(tables) {
            tracing::warn!(%error, "sealed without a footer; the successor replays the log");
        }
        tables.engine().close();
        *writer = Writer::Sealed;
        self.commit.close();
        Ok(contents)
    }

    /// Replays the log in `dir` from its first record and changes nothing: what a store that opens it must hold. Where a
    /// checkpoint has deleted the log's beginning, the engine stands in for it.
    ///
    /// # Errors
    /// The log is damaged or of a newer format.
    pub fn replay(dir: &Path) -> Result<State> {
        State::of(&recovery::replay(dir)?)
    }

    /// What a store that opens `dir` starts with, from the footer of a sealed one; changes nothing.
    ///
    /// # Errors
    /// As [`replay`](Self::replay).
    pub fn look(dir: &Path) -> Result<State> {
        State::of(&recovery::look(dir)?)
    }

    /// The epoch under which it writes.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How its log was opened.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    fn write(&self, write: Write<'_>) -> Result<u64> {
        let (result, sequence) = self.append_and_apply(write)?;
        self.commit.wait(sequence)?;
        crash_point!(WalPostAggregate);
        Ok(result)
    }

    /// Log and state together; returns what the write came to and its sequence. A panic in here poisons the lock, and with it
    /// the store.
    fn append_and_apply(&self, write: Write<'_>) -> Result<(u64, u64)> {
        let mut writer = self.writer()?;
        let Writer::Open { wal, tables } = &mut *writer else { return Err(StoreError::Sealed) };
        tables.load(write)?;
        let event = wal.append(write, now_ms(), self.commit.durable()?)?;
        self.commit.appended(event.sequence);
        crash_point!(WalPreAggregate);
        let result = tables.apply(write, event);
        if tables.hot_rows() >= CHECKPOINT_ROWS || wal.position().bytes >= CHECKPOINT_LOG_BYTES {
            self.checkpoint_due.store(true, Ordering::Relaxed);
        }
        Ok((result, event.sequence))
    }

    fn read<T>(&self, read: impl FnOnce(&mut Tables, Position) -> Result<T>) -> Result<T> {
        match &mut *self.writer()? {
            Writer::Open { wal, tables } => read(tables, wal.position()),
            Writer::Sealed => Err(StoreError::Sealed),
        }
    }

    /// Reads what may have changed in any write so far, and waits until all of them are durable.
    fn read_durable<T>(&self, read: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        let (found, sequence) = self.read(|tables, position| Ok((read(tables)?, position.sequence)))?;
        self.commit.wait(sequence)?;
        Ok(found)
    }

    /// Makes the state differ from the log, for the oracle to find.
    #[cfg(test)]
    pub(crate) fn miscount(&self, key: &str) {
        let write = Write::Increment { key, token: "" };
        let miscounted = self
            .read(|tables, position| Ok(tables.apply(write, ledger::Event { sequence: position.sequence, at_ms: 0 })));
        miscounted.expect("open");
    }

    fn writer(&self) -> Result<MutexGuard<'_, Writer>> {
        self.writer.lock().map_err(|_| StoreError::poisoned("a write crashed half way"))
    }
}

impl Contents {
    fn of(position: Position) -> Self {
        let mut fingerprint = *b"handoff-store 1\0................";
        fingerprint[16..24].copy_from_slice(&position.sequence.to_le_bytes());
        fingerprint[24..28].copy_from_slice(&position.chain.to_le_bytes());
        fingerprint[28..].fill(0);
        Self { last_sequence: position.sequence, fingerprint }
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn checkpoint_crashed() -> StoreError {
    StoreError::poisoned("a checkpoint crashed half way")
}

fn check_name(what: &'static str, name: &str, bytes_max: usize) -> Result<()> {
    let printable = name.chars().all(|char| !char.is_control() && !char.is_whitespace());
    if name.is_empty() || name.len() > bytes_max || !printable {
        return Err(StoreError::BadName { what, bytes: name.len(), bytes_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
