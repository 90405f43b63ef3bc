//! The storage engine: [`redb`], one table for each kind of row, and the position in the log that they belong to.
//!
//! redb starts no thread and its commits are atomic, so a checkpoint is one transaction, and nothing of the engine is at work
//! outside a call.
//!
//! Invariants:
//!
//! - The file holds exactly the state after the write that its [`Checkpoint`] names: rows and checkpoint are committed together.
//! - There is no file before the first checkpoint: it is made under another name, and gets its own when that is durable.
//! - Each commit saves what the engine needs to be opened again ("quick repair"), so a file whose process was killed opens as
//!   fast as any other.
//! - A read takes one row; opening reads none. How much the store holds does not matter to either.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use redb::{Database, ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::batch::{Batch, Row};
use super::co_engagement::Neighbours;
use super::cohorts::Cohort;
use super::collections::Members;
use super::engine_file::EngineFile;
use super::error::{Result, StoreError};
use super::ledger::Signal;
use super::points::crash_point;
use super::record::{u32_at, u64_at};

/// The engine's file in the data directory.
pub(crate) const ENGINE_NAME: &str = "store.redb";
const NEW_ENGINE_NAME: &str = "store.redb.new";
/// What the engine may keep in memory of its file.
const CACHE_BYTES: usize = 32 << 20;

const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
const CHECKPOINT: &str = "checkpoint";

/// The write that the engine's rows are up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
    pub(crate) at_ms: u64,
    pub(crate) chain: u32,
    /// How many signals there are.
    pub(crate) signals: u64,
}

pub(crate) struct Engine {
    dir: PathBuf,
    /// `None` before the first checkpoint.
    open: RwLock<Option<Arc<Open>>>,
}

struct Open {
    database: Database,
    file: EngineFile,
    checkpoint: Mutex<Checkpoint>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("dir", &self.dir).field("checkpoint", &self.checkpoint()).finish()
    }
}

impl Engine {
    /// Opens the engine in `dir`; writes nothing.
    ///
    /// # Errors
    /// The disk refuses, or the file is damaged.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(ENGINE_NAME);
        let open = match File::options().read(true).write(true).open(&path) {
            Ok(file) => Some(Arc::new(Open::new(EngineFile::new(file))?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::io(format!("opening {}", path.display()), error)),
        };
        Ok(Self { dir: dir.into(), open: RwLock::new(open) })
    }

    /// One that holds nothing, for a replay from the beginning.
    pub(crate) fn empty(dir: &Path) -> Self {
        Self { dir: dir.into(), open: RwLock::new(None) }
    }

    /// Whether there ever was a checkpoint.
    pub(crate) fn is_there(&self) -> bool {
        self.current().is_some()
    }

    /// What the rows are up to.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        self.current().map(|open| *open.checkpoint.lock().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }

    /// The row of `key`, if there is one.
    ///
    /// # Errors
    /// The disk refuses, or the file is damaged.
    pub(crate) fn get<V: Row>(&self, key: &str) -> Result<Option<V>> {
        let Some(open) = self.current() else { return Ok(None) };
        let reading = open.database.begin_read().map_err(StoreError::engine("reading"))?;
        let table = reading.open_table(table::<V>()).map_err(StoreError::engine("opening a table"))?;
        read_row(&table, key)
    }

    /// All rows of a table.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) fn all<V: Row>(&self) -> Result<BTreeMap<String, V>> {
        let Some(open) = self.current() else { return Ok(BTreeMap::new()) };
        let reading = open.database.begin_read().map_err(StoreError::engine("reading"))?;
        let table = reading.open_table(table::<V>()).map_err(StoreError::engine("opening a table"))?;
        let mut all = BTreeMap::new();
        for row in table.iter().map_err(StoreError::engine("reading all rows"))? {
            let (key, row) = row.map_err(StoreError::engine("reading a row"))?;
            let decoded = V::decode(row.value()).ok_or_else(|| damaged(key.value()))?;
            all.insert(key.value().to_owned(), decoded);
        }
        Ok(all)
    }

    /// Commits `batch`, after which the rows are up to `checkpoint`. Durable on return. Gives up when `stop` is set before
    /// the commit itself.
    ///
    /// # Errors
    /// The disk refuses, the engine fails, or it was stopped; the rows are then as before, or, if the disk failed at the very
    /// end, as after: the log decides.
    pub(crate) fn commit(&self, batch: &Batch, checkpoint: Checkpoint, stop: &AtomicBool) -> Result<()> {
        let Some(open) = self.current() else { return self.begin(batch, checkpoint, stop) };
        let committed = open.commit(batch, checkpoint, stop);
        if committed.is_err() {
            // After an error the engine trusts nothing, and neither do we: it is opened again from the disk.
            *self.slot() = Self::open(&self.dir)?.slot().take();
        }
        committed
    }

    /// The first checkpoint: makes the file.
    fn begin(&self, batch: &Batch, checkpoint: Checkpoint, stop: &AtomicBool) -> Result<()> {
        let (new, path) = (self.dir.join(NEW_ENGINE_NAME), self.dir.join(ENGINE_NAME));
        let making = |error| StoreError::io(format!("making {}", path.display()), error);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&new).map_err(making)?;
        let file = EngineFile::new(file);
        file.begin_writing().map_err(making)?;
        let open = Open::new(file)?;
        open.commit(batch, checkpoint, stop)?;
        fs::rename(&new, &path).and_then(|()| File::open(&self.dir)?.sync_all()).map_err(making)?;
        *self.slot() = Some(Arc::new(open));
        Ok(())
    }

    /// After it nothing of this process changes the file.
    pub(crate) fn close(&self) {
        if let Some(open) = self.current() {
            open.file.close();
        }
    }

    fn current(&self) -> Option<Arc<Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn slot(&self) -> RwLockWriteGuard<'_, Option<Arc<Open>>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn new(file: EngineFile) -> Result<Self> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).create_with_file_format_v3(true);
        let database = builder.create_with_backend(file.clone()).map_err(StoreError::engine("opening its file"))?;
        let checkpoint = Mutex::new(Self::read_checkpoint(&database)?.unwrap_or_default());
        Ok(Self { database, file, checkpoint })
    }

    /// `None` in a file in which nothing was committed yet.
    fn read_checkpoint(database: &Database) -> Result<Option<Checkpoint>> {
        let reading = database.begin_read().map_err(StoreError::engine("reading"))?;
        let about = match reading.open_table(ABOUT) {
            Ok(about) => about,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(StoreError::engine("opening a table")(error)),
        };
        let row = about.get(CHECKPOINT).map_err(StoreError::engine("reading its checkpoint"))?;
        row.map(|row| Checkpoint::decode(row.value()).ok_or_else(|| damaged(CHECKPOINT))).transpose()
    }

    fn commit(&self, batch: &Batch, checkpoint: Checkpoint, stop: &AtomicBool) -> Result<()> {
        self.file.begin_writing().map_err(|error| StoreError::io("writing the engine's file", error))?;
        let committed = self.transact(batch, checkpoint, stop);
        self.file.rest();
        if committed.is_ok() {
            *self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner) = checkpoint;
        }
        committed
    }

    fn transact(&self, batch: &Batch, checkpoint: Checkpoint, stop: &AtomicBool) -> Result<()> {
        let mut writing = self.database.begin_write().map_err(StoreError::engine("writing"))?;
        writing.set_quick_repair(true);
        put::<Signal>(&writing, batch, stop)?;
        put::<Cohort>(&writing, batch, stop)?;
        put::<Members>(&writing, batch, stop)?;
        put::<Neighbours>(&writing, batch, stop)?;
        let mut about = writing.open_table(ABOUT).map_err(StoreError::engine("opening a table"))?;
        about.insert(CHECKPOINT, &*checkpoint.encode()).map_err(StoreError::engine("writing its checkpoint"))?;
        drop(about);
        crash_point!(CheckpointPreFlush);
        writing.commit().map_err(StoreError::engine("committing"))
    }
}

/// Puts the rows of one table.
fn put<V: Row>(writing: &WriteTransaction, batch: &Batch, stop: &AtomicBool) -> Result<()> {
    let mut table = writing.open_table(table::<V>()).map_err(StoreError::engine("opening a table"))?;
    let mut bytes = Vec::new();
    for (key, row) in V::rows(batch) {
        if stop.load(Ordering::Relaxed) {
            return Err(StoreError::Sealing);
        }
        let older = if V::IS_WHOLE { None } else { read_row::<V>(&table, key)? };
        bytes.clear();
        match older {
            Some(older) => row.clone().over(older).encode(&mut bytes),
            None => row.encode(&mut bytes),
        }
        table.insert(&**key, &*bytes).map_err(StoreError::engine("writing a row"))?;
    }
    Ok(())
}

fn read_row<V: Row>(table: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Option<V>> {
    let row = table.get(key).map_err(StoreError::engine("reading a row"))?;
    row.map(|row| V::decode(row.value()).ok_or_else(|| damaged(key))).transpose()
}

fn table<V: Row>() -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(V::TABLE)
}

fn damaged(key: &str) -> StoreError {
    StoreError::Engine { doing: "reading a row", reason: format!("what stands under {key:?} can't be read") }
}

impl Checkpoint {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        for field in [self.sequence, self.epoch, self.at_ms, self.signals] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.chain.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| u64_at(bytes, 8 * index);
        let checkpoint = Self {
            sequence: field(0)?,
            epoch: field(1)?,
            at_ms: field(2)?,
            signals: field(3)?,
            chain: u32_at(bytes, 32)?,
        };
        (bytes.len() == 36).then_some(checkpoint)
    }
}
