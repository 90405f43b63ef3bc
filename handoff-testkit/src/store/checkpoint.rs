//! The checkpoint: moves what changed into the engine, so that the log can be cut off and a seal has little to write.
//!
//! ```text
//! 1 next segment   made, its name durable                      nothing has changed
//! 2 freeze         the log is durable and goes on in it        writers wait for this step, and for no other
//! 3 flush          the engine commits what was frozen          the engine is ahead of every marker
//! 4 mark           the log says so
//! 5 truncate       the segments before it are deleted          the log is as short as it can be
//! ```
//!
//! Invariants:
//!
//! - A crash between any two steps loses nothing: what the engine has not committed is in the log, and the log's beginning is
//!   deleted only after the commit.
//! - The engine commits only what is durable in the log: it is never ahead of it.
//! - One at a time, on the caller's thread, beside the writers. A checkpoint that fails leaves everything as it was.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::Batch;
use super::engine::{Checkpoint, Engine};
use super::points::crash_point;
use super::segments::{self, Segment};
use super::wal::LogFile;
use super::{Result, Store, StoreError, Writer, checkpoint_crashed};

/// A checkpoint is due when so many rows have changed: what a seal writes and its successor reads stays within milliseconds.
pub const CHECKPOINT_ROWS: usize = 16_384;
/// A checkpoint is due when the log's newest segment is so long: what a crash makes its successor replay stays within a second.
pub const CHECKPOINT_LOG_BYTES: u64 = 64 << 20;

/// What becomes of the log's segments that a checkpoint has made superfluous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRetention {
    /// They are deleted: the log is bounded.
    Truncated,
    /// They stay, for who wants to see every write ever made, as the [oracle](crate::oracle) does.
    Whole,
}

/// Who holds it may make a checkpoint.
#[derive(Debug)]
pub(super) struct Turn {
    /// The newest segment's number.
    pub(super) segment: u64,
}

/// What a checkpoint is about to commit.
struct Frozen {
    batch: Arc<Batch>,
    checkpoint: Checkpoint,
    engine: Arc<Engine>,
}

impl Store {
    /// Makes a checkpoint of everything written so far; returns the last write's sequence in it. Durable on return. Writers go
    /// on meanwhile.
    ///
    /// # Errors
    /// The store is sealed, being sealed, or poisoned; or the disk refuses: then everything is as before.
    pub fn checkpoint(&self) -> Result<u64> {
        let mut turn = self.turn.lock().map_err(|_| checkpoint_crashed())?;
        self.checkpoint_due.store(false, Ordering::Relaxed);
        if let Some(done) = self.nothing_to_do()? {
            return Ok(done);
        }
        let next = Segment::new(&self.dir, turn.segment + 1);
        let (file, header_bytes) = self.make(&next)?;
        let frozen = self.freeze(file, header_bytes)?;
        turn.segment = next.number;
        let committed = frozen.engine.commit(&frozen.batch, frozen.checkpoint, &self.sealing);
        if committed.is_ok() {
            crash_point!(CheckpointPostFlush);
        }
        self.conclude(committed, frozen.checkpoint)?;
        if self.retention == LogRetention::Truncated {
            segments::truncate(&self.dir, turn.segment)?;
        }
        Ok(frozen.checkpoint.sequence)
    }

    /// Whether enough has changed for a checkpoint.
    pub fn is_checkpoint_due(&self) -> bool {
        self.checkpoint_due.load(Ordering::Relaxed)
    }

    /// The engine's checkpoint, if nothing was written since.
    fn nothing_to_do(&self) -> Result<Option<u64>> {
        self.read(|tables, position| {
            let checkpoint = tables.engine().checkpoint().sequence;
            Ok((checkpoint == position.sequence).then_some(checkpoint))
        })
    }

    /// Makes a segment that nothing is written to yet.
    fn make(&self, segment: &Segment) -> Result<(Arc<dyn LogFile>, u64)> {
        let making = |error| StoreError::io(format!("making {}", segment.path.display()), error);
        let file = self.disk.open(&segment.path).map_err(making)?;
        let header_bytes = segments::begin(segment, &*file).map_err(making)?;
        Ok((file, header_bytes))
    }

    /// Makes the log durable, goes on in the new segment, and sets the changes apart.
    fn freeze(&self, file: Arc<dyn LogFile>, header_bytes: u64) -> Result<Frozen> {
        let mut writer = self.writer()?;
        let Writer::Open { wal, tables } = &mut *writer else { return Err(StoreError::Sealed) };
        let position = wal.position();
        self.commit.wait(position.sequence)?;
        wal.rotate(Arc::clone(&file), header_bytes)?;
        self.commit.go_on_in(file);
        let (sequence, epoch) = (position.sequence, self.epoch);
        let checkpoint =
            Checkpoint { sequence, epoch, at_ms: position.at_ms, chain: position.chain, signals: tables.signals() };
        Ok(Frozen { batch: tables.freeze(), checkpoint, engine: Arc::clone(tables.engine()) })
    }

    /// Marks a committed checkpoint in the log; takes the changes back of one that failed.
    fn conclude(&self, committed: Result<()>, checkpoint: Checkpoint) -> Result<()> {
        let mut writer = self.writer()?;
        let Writer::Open { wal, tables } = &mut *writer else { return Err(StoreError::Sealed) };
        match committed {
            Ok(()) => {
                tables.settle();
                wal.append_marker(checkpoint.sequence, self.commit.durable()?)
            }
            Err(error) => {
                tables.thaw();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
