//! The file under the storage engine, and when it may change.
//!
//! ```text
//! Resting ──a checkpoint begins──▶ Writing ──it ends──▶ Resting … ──the store is sealed──▶ Closed
//! ```
//!
//! Invariants:
//!
//! - The file changes only while a checkpoint is written. What the engine writes when it is opened (that it is in use, what it
//!   repaired) is held in memory, and goes to the disk, synced, ahead of the next checkpoint's first write: to the engine
//!   that is a disk that was slow. So a store is opened in a handover's pause without a write or a sync.
//! - Closed, it takes no write at all: the engine's farewell is refused, which costs nothing, because a checkpoint leaves
//!   nothing to be said (see [`Engine::commit`](super::engine::Engine::commit)).
//! - It has no lock of its own: who opens a store holds the data directory's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// A handle on the file; clones share it. The engine owns one of them.
#[derive(Debug, Clone)]
pub(crate) struct EngineFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    phase: Mutex<Phase>,
}

#[derive(Debug)]
enum Phase {
    /// Writes are held, by offset.
    Resting(BTreeMap<u64, Vec<u8>>),
    Writing,
    Closed,
}

impl EngineFile {
    /// A file that is not written to before [`begin_writing`](Self::begin_writing).
    pub(crate) fn new(file: File) -> Self {
        let phase = Mutex::new(Phase::Resting(BTreeMap::new()));
        Self { inner: Arc::new(Inner { file, phase }) }
    }

    /// Writes what was held, and from now on everything.
    ///
    /// # Errors
    /// The disk refuses, or the file was closed.
    pub(crate) fn begin_writing(&self) -> io::Result<()> {
        let mut phase = self.phase();
        match &*phase {
            Phase::Resting(held) => {
                for (offset, bytes) in held {
                    self.inner.file.write_all_at(bytes, *offset)?;
                }
                if !held.is_empty() {
                    self.inner.file.sync_data()?;
                }
                *phase = Phase::Writing;
                Ok(())
            }
            Phase::Writing => Ok(()),
            Phase::Closed => Err(closed()),
        }
    }

    /// The checkpoint is over.
    pub(crate) fn rest(&self) {
        let mut phase = self.phase();
        if matches!(*phase, Phase::Writing) {
            *phase = Phase::Resting(BTreeMap::new());
        }
    }

    /// Takes no write any more.
    pub(crate) fn close(&self) {
        *self.phase() = Phase::Closed;
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.inner.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for EngineFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.file.metadata()?.len())
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.inner.file.read_exact_at(&mut bytes, offset)?;
        if let Phase::Resting(held) = &*self.phase() {
            for (at, newer) in held {
                lay_over(&mut bytes, offset, newer, *at);
            }
        }
        Ok(bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match *self.phase() {
            Phase::Writing => self.inner.file.set_len(len),
            Phase::Resting(_) | Phase::Closed => Err(closed()),
        }
    }

    /// Always at once: a checkpoint asks for nothing less, and an unsynced one is no checkpoint.
    fn sync_data(&self, _eventual: bool) -> io::Result<()> {
        match *self.phase() {
            Phase::Writing => self.inner.file.sync_data(),
            Phase::Resting(_) => Ok(()),
            Phase::Closed => Err(closed()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &mut *self.phase() {
            Phase::Writing => self.inner.file.write_all_at(data, offset),
            Phase::Resting(held) => {
                held.insert(offset, data.to_vec());
                Ok(())
            }
            Phase::Closed => Err(closed()),
        }
    }
}

/// Lays the part of `newer`, which begins at `newer_at`, that falls into `bytes`, which begin at `bytes_at`, over them.
fn lay_over(bytes: &mut [u8], bytes_at: u64, newer: &[u8], newer_at: u64) {
    let from = bytes_at.max(newer_at);
    let to = (bytes_at + bytes.len() as u64).min(newer_at + newer.len() as u64);
    if from < to {
        let part = &newer[(from - newer_at) as usize..(to - newer_at) as usize];
        bytes[(from - bytes_at) as usize..(to - bytes_at) as usize].copy_from_slice(part);
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the engine's file changes in a checkpoint only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_outside_a_checkpoint() {
        let mut named = tempfile::NamedTempFile::new().expect("a file");
        std::io::Write::write_all(&mut named, b"0123456789").expect("written");
        let on_disk = || std::fs::read(named.path()).expect("read");
        let file = EngineFile::new(named.reopen().expect("opened"));

        file.write(2, b"ab").expect("held");
        file.sync_data(false).expect("put off");
        assert_eq!(on_disk(), b"0123456789");
        assert_eq!(file.read(1, 4).expect("read"), b"1ab4", "the engine sees what it wrote");
        assert_eq!(file.read(3, 3).expect("read"), b"b45");
        assert!(file.set_len(3).is_err());

        file.begin_writing().expect("written through");
        file.write(5, b"c").expect("written");
        assert_eq!(on_disk(), b"01ab4c6789");
        file.rest();
        file.write(0, b"x").expect("held");
        file.close();
        assert!(file.write(0, b"y").is_err() && file.begin_writing().is_err() && file.sync_data(false).is_err());
        assert_eq!(on_disk(), b"01ab4c6789");
    }
}
