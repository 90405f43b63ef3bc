//! The writing half of the write-ahead log. [`recovery`](super::recovery) is the reading half, [`record`](super::record) the
//! format.
//!
//! Invariants:
//!
//! - A record is in the file when [`Wal::append`] returns, in the order of sequences; it is *durable* only when
//!   [`GroupCommit`](super::group_commit) says so. A process that dies in between loses nothing that the kernel has.
//! - The file holds nothing behind its last record: an append that fails is cut off again, or the log takes no more.
//! - The file is opened for appending: if ever two processes wrote, both would be seen in it, and neither could overwrite
//!   what the other one had acknowledged.
//! - A footer is written only when everything before it is durable, and is not synced itself: losing it costs a replay.
//! - A segment is left for the next one only when everything in it is durable.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::error::{Result, StoreError};
use super::ledger::Event;
use super::record::{self, Footer, Stamp, Write as Change};
use super::tables::Tables;

/// The name of the log's first segment in the data directory; the others have a number behind it.
pub const LOG_NAME: &str = "store.wal";

/// What the log needs of a disk; the seam at which tests watch and break it.
pub(crate) trait LogFile: Debug + Send + Sync {
    /// Appends all of `bytes`, or an unknown part of them and fails.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything that was appended durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file off at `bytes`.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
}

/// The real file.
#[derive(Debug)]
pub(crate) struct DiskLog {
    file: File,
}

impl DiskLog {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::options().append(true).create(true).open(path)? })
    }
}

impl LogFile for DiskLog {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

/// The end of a log: what the next record follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) at_ms: u64,
    pub(crate) chain: u32,
    /// Size of its segment up to here.
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Wal {
    file: Arc<dyn LogFile>,
    position: Position,
    /// Reused, so that an append allocates nothing.
    buffer: Vec<u8>,
    /// Set when half a record could not be cut off.
    broken: Option<String>,
}

impl Wal {
    /// Goes on at `position` of `file`, under `epoch`.
    pub(crate) fn new(file: Arc<dyn LogFile>, position: Position, epoch: u64) -> Self {
        Self { file, position: Position { epoch, ..position }, buffer: Vec::with_capacity(512), broken: None }
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Appends a write at the time `now_ms`, or at that of the last record if the clock went back. `durable` is a sequence
    /// that is on disk.
    ///
    /// # Errors
    /// The disk refused it, and the log is as before.
    pub(crate) fn append(&mut self, write: Change<'_>, now_ms: u64, durable: u64) -> Result<Event> {
        let event = Event { sequence: self.position.sequence + 1, at_ms: now_ms.max(self.position.at_ms) };
        let stamp = self.stamp(event, durable);
        self.buffer.clear();
        let crc = record::encode_write(&mut self.buffer, stamp, write);
        self.write()?;
        self.position.sequence = event.sequence;
        self.position.at_ms = event.at_ms;
        self.position.chain = record::chain(self.position.chain, crc);
        Ok(event)
    }

    /// Goes on in `file`, a segment that holds a header of `header_bytes` and nothing else. The log must be durable up to here.
    ///
    /// # Errors
    /// The disk refused its first record; the log goes on in the old segment.
    pub(crate) fn rotate(&mut self, file: Arc<dyn LogFile>, header_bytes: u64) -> Result<()> {
        if let Some(reason) = &self.broken {
            return Err(StoreError::poisoned(reason));
        }
        let stamp = self.stamp_of_the_end();
        self.buffer.clear();
        record::encode_start(&mut self.buffer, stamp, self.position.chain);
        if let Err(error) = file.append(&self.buffer) {
            // Writes go on in the old segment, so the new one must not say that it follows here.
            if let Err(cut) = file.truncate(header_bytes) {
                self.broken = Some(format!("half a segment could not be cut off: {cut}"));
            }
            return Err(StoreError::io("beginning a segment of the log", error));
        }
        self.file = file;
        self.position.bytes = header_bytes + self.buffer.len() as u64;
        Ok(())
    }

    /// Appends the marker of a checkpoint that the engine has committed.
    ///
    /// # Errors
    /// The disk refused it, and the log is as before.
    pub(crate) fn append_marker(&mut self, checkpoint: u64, durable: u64) -> Result<()> {
        let stamp = Stamp { durable, ..self.stamp_of_the_end() };
        self.buffer.clear();
        record::encode_marker(&mut self.buffer, stamp, checkpoint);
        self.write()
    }

    /// Appends what `tables` hold beyond the engine's checkpoint and a footer that points to it, in one write. The log must be
    /// durable up to here.
    ///
    /// # Errors
    /// The disk refused them; the log is as before, and opening it replays it.
    pub(crate) fn append_footer(&mut self, tables: &Tables) -> Result<()> {
        let stamp = self.stamp_of_the_end();
        let Position { chain, bytes: snapshot_at, .. } = self.position;
        let checkpoint = tables.engine().checkpoint().sequence;
        self.buffer.clear();
        record::encode_snapshot(&mut self.buffer, stamp, |out| tables.encode_snapshot(out));
        record::encode_footer(&mut self.buffer, stamp, Footer { snapshot_at, chain, checkpoint });
        self.write()
    }

    /// That of a record behind the last write, when everything is durable.
    fn stamp_of_the_end(&self) -> Stamp {
        let Position { sequence, at_ms, .. } = self.position;
        self.stamp(Event { sequence, at_ms }, sequence)
    }

    fn stamp(&self, event: Event, durable: u64) -> Stamp {
        Stamp { epoch: self.position.epoch, sequence: event.sequence, durable, at_ms: event.at_ms }
    }

    /// Appends the buffer; cuts it off again if that fails half way.
    fn write(&mut self) -> Result<()> {
        if let Some(reason) = &self.broken {
            return Err(StoreError::poisoned(reason));
        }
        if let Err(error) = self.file.append(&self.buffer) {
            if let Err(cut) = self.file.truncate(self.position.bytes) {
                self.broken = Some(format!("half a record could not be cut off: {cut}"));
            }
            return Err(StoreError::io("appending to the log", error));
        }
        self.position.bytes += self.buffer.len() as u64;
        Ok(())
    }
}
