//! The reference store, first floor: a durable signal store, small enough to be read in one sitting, whole enough to be
//! handed over. It shows how a stateful daemon is written for handoff.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`Store`]: the write path, the seal |
//! | `record.rs`, `wal.rs`, `recovery.rs` | the log: its bytes, its writing half, its reading half |
//! | `ledger.rs` | counts and decay scores in memory |
//! | `group_commit.rs` | one sync for many writers |
//! | [`wire`], [`server`] | the line protocol, and TCP with `BYE` and `RETRY` |
//! | [`hooks`], [`daemon`] | the daemon: its hooks; its process, roles and listeners |
//!
//! Invariants:
//!
//! - A write is acknowledged only when it is durable. A read shows only what is durable.
//! - The write path runs on its caller's thread, so that a crash injector of that thread sees it.
//! - Log and ledger change together, under one lock, in the same order: the ledger is at any time the replay of the log.
//! - A write that crashes half way poisons the store: nothing after it is acknowledged, and it can't be sealed.
//! - After [`Store::seal`] this process can't write: the file is closed.
//! - The store trusts its caller to hold the data directory's lock, whose epoch each record carries; a log with a newer one
//!   is not opened.

pub mod daemon;
mod error;
mod group_commit;
pub mod hooks;
mod ledger;
mod record;
mod recovery;
pub mod server;
mod wal;
pub mod wire;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(feature = "crash-points")]
use crate::crash::{CrashPoint, check_crash_point};

pub use error::{Result, StoreError};
pub use ledger::{HALF_LIVES_MS, Ledger, Signal};
pub use record::{KEY_BYTES_MAX, TOKEN_BYTES_MAX};
pub use recovery::Recovery;
pub use wal::LOG_NAME;

use group_commit::GroupCommit;
pub(crate) use record::Payload;
pub(crate) use recovery::{LogReader, Next};
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
    writer: Mutex<Writer>,
    commit: GroupCommit,
}

#[derive(Debug)]
enum Writer {
    Open { wal: Wal, ledger: Ledger },
    Sealed,
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
    /// Opens the store in `dir`, which is created, to write under `epoch`. A sealed log is not replayed.
    ///
    /// # Errors
    /// The log is damaged, of a newer format, or was written under a newer epoch; or the disk refuses.
    pub fn open(dir: &Path, epoch: u64) -> Result<Self> {
        Self::open_on(dir, epoch, |path| Ok(Arc::new(DiskLog::open(path)?)))
    }

    /// [`open`](Self::open) with a log file of the caller's making.
    fn open_on(dir: &Path, epoch: u64, log: impl FnOnce(&Path) -> std::io::Result<Arc<dyn LogFile>>) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|error| StoreError::io(format!("creating {}", dir.display()), error))?;
        let path = dir.join(LOG_NAME);
        let recovery::Recovered { ledger, mut position, how } = recovery::open(&path)?;
        if position.epoch > epoch {
            return Err(StoreError::Fenced { ours: epoch, found: position.epoch });
        }
        let file = log(&path).map_err(|error| StoreError::io(format!("opening {}", path.display()), error))?;
        if how == Recovery::Empty {
            position.bytes =
                begin(&path, &*file).map_err(|error| StoreError::io(format!("beginning {}", path.display()), error))?;
        }
        let commit = GroupCommit::new(Arc::clone(&file), position.sequence);
        let writer = Mutex::new(Writer::Open { wal: Wal::new(file, position, epoch), ledger });
        Ok(Self { dir: dir.into(), epoch, recovery: how, writer, commit })
    }

    /// Counts one event of `key`; returns its count. Durable on return (promise 3).
    ///
    /// # Errors
    /// As [`increment_with_token`](Self::increment_with_token).
    pub fn increment(&self, key: &str) -> Result<u64> {
        self.write(key, "")
    }

    /// Counts one event of `key`, with a token of the caller's that names this write in the log. The store does not look at
    /// tokens: it is the [oracle](crate::oracle) that finds one applied twice.
    ///
    /// # Errors
    /// A key or token that is no name; a store that is sealed or poisoned; a disk that refuses. Only [`StoreError::Sealed`]
    /// says for certain that the write is not in the log, so that it may be sent again elsewhere.
    pub fn increment_with_token(&self, key: &str, token: &str) -> Result<u64> {
        check_name("token", token, TOKEN_BYTES_MAX)?;
        self.write(key, token)
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
    /// The store is sealed or poisoned.
    pub fn signal(&self, key: &str) -> Result<Option<Signal>> {
        let signal = match &*self.writer()? {
            Writer::Open { ledger, .. } => ledger.get(key).copied(),
            Writer::Sealed => return Err(StoreError::Sealed),
        };
        if let Some(signal) = &signal {
            self.commit.wait(signal.sequence)?;
        }
        Ok(signal)
    }

    /// A copy of the whole ledger, to compare with a [`replay`](Self::replay).
    ///
    /// # Errors
    /// The store is sealed or poisoned.
    pub fn ledger(&self) -> Result<Ledger> {
        match &*self.writer()? {
            Writer::Open { ledger, .. } => Ok(ledger.clone()),
            Writer::Sealed => Err(StoreError::Sealed),
        }
    }

    /// The last write, and what identifies all of them.
    ///
    /// # Errors
    /// The store is sealed or poisoned.
    pub fn contents(&self) -> Result<Contents> {
        match &*self.writer()? {
            Writer::Open { wal, .. } => Ok(Contents::of(wal.position())),
            Writer::Sealed => Err(StoreError::Sealed),
        }
    }

    /// Whether it takes writes.
    ///
    /// # Errors
    /// It is sealed or poisoned.
    pub fn check(&self) -> Result<()> {
        match &*self.writer()? {
            Writer::Open { .. } => self.commit.durable().map(drop),
            Writer::Sealed => Err(StoreError::Sealed),
        }
    }

    /// How many keys there are.
    ///
    /// # Errors
    /// The store is sealed or poisoned.
    pub fn key_count(&self) -> Result<usize> {
        match &*self.writer()? {
            Writer::Open { ledger, .. } => Ok(ledger.len()),
            Writer::Sealed => Err(StoreError::Sealed),
        }
    }

    /// Makes everything durable, writes the footer, and closes the file: after it this process can write no more.
    ///
    /// At most one sync, none when every write was waited for. The footer is not synced, and a disk that has no room for it
    /// does not fail the seal: the successor then replays.
    ///
    /// # Errors
    /// The store is sealed already, poisoned, or the sync fails. It is not sealed then, and its lock must not be released.
    pub fn seal(&self) -> Result<Contents> {
        let mut writer = self.writer()?;
        let Writer::Open { wal, ledger } = &mut *writer else { return Err(StoreError::Sealed) };
        let contents = Contents::of(wal.position());
        self.commit.wait(contents.last_sequence)?;
        if let Err(error) = wal.append_footer(ledger) {
            tracing::warn!(%error, "sealed without a footer; the successor replays the log");
        }
        *writer = Writer::Sealed;
        self.commit.close();
        Ok(contents)
    }

    /// Replays the log in `dir` from its first record and changes nothing: what a store that opens it must hold.
    ///
    /// # Errors
    /// The log is damaged or of a newer format.
    pub fn replay(dir: &Path) -> Result<Ledger> {
        Ok(recovery::replay(&dir.join(LOG_NAME))?.ledger)
    }

    /// What a store that opens the log in `dir` starts with, from the footer of a sealed one; changes nothing.
    ///
    /// # Errors
    /// As [`replay`](Self::replay).
    pub fn look(dir: &Path) -> Result<Ledger> {
        Ok(recovery::look(&dir.join(LOG_NAME))?.ledger)
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

    fn write(&self, key: &str, token: &str) -> Result<u64> {
        check_name("key", key, KEY_BYTES_MAX)?;
        let (count, sequence) = self.append_and_count(key, token)?;
        self.commit.wait(sequence)?;
        #[cfg(feature = "crash-points")]
        check_crash_point(CrashPoint::WalPostAggregate);
        Ok(count)
    }

    /// Log and ledger together. A panic in here poisons the lock, and with it the store.
    fn append_and_count(&self, key: &str, token: &str) -> Result<(u64, u64)> {
        let mut writer = self.writer()?;
        let Writer::Open { wal, ledger } = &mut *writer else { return Err(StoreError::Sealed) };
        let event = wal.append(key, token, now_ms(), self.commit.durable()?)?;
        self.commit.appended(event.sequence);
        #[cfg(feature = "crash-points")]
        check_crash_point(CrashPoint::WalPreAggregate);
        Ok((ledger.apply(key, event), event.sequence))
    }

    /// Makes the ledger differ from the log, for the oracle to find.
    #[cfg(test)]
    pub(crate) fn miscount(&self, key: &str) {
        if let Ok(Writer::Open { ledger, wal }) = self.writer().as_deref_mut() {
            ledger.apply(key, ledger::Event { sequence: wal.position().sequence, at_ms: 0 });
        }
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

/// Writes the header of a new log and makes its name durable; its contents are with the first write's sync.
fn begin(path: &Path, file: &dyn LogFile) -> std::io::Result<u64> {
    if fs::metadata(path)?.len() > 0 {
        file.truncate(0)?; // half a header
    }
    file.append(&record::header())?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(record::HEADER_BYTES as u64)
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
