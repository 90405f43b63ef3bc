//! The reading half of the write-ahead log: opens it sealed or replays it, and gives its records to whoever checks them.
//!
//! Invariants:
//!
//! - A sealed log is opened by its footer and the ledger before it; nothing else is read. Is either of them not whole, or not
//!   at the very end of the file, the log is replayed: the footer is never needed, only quick.
//! - A torn tail is cut off. A hole in front of records that prove it was acknowledged is damage, and nothing is changed.
//! - What a replayed log holds is durable before anybody sees it: what was written but not known to be synced is written
//!   again, because the page cache may call pages clean that a failed sync never wrote.
//! - [`replay`] and [`LogReader`] change nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{Result, StoreError};
use super::ledger::{Event, Ledger};
use super::record::{self, FOOTER_BYTES, FORMAT, HEADER_BYTES, Header, Payload, Record};
use super::wal::Position;

/// How a log was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// There was nothing in it.
    Empty,
    /// It was sealed: its ledger was read, nothing was replayed.
    Sealed,
    /// It was replayed.
    Replayed {
        /// How many increments it holds.
        increments: u64,
        /// How many bytes of a torn tail were dropped.
        torn_bytes: u64,
    },
}

/// What a log holds.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) ledger: Ledger,
    pub(crate) position: Position,
    pub(crate) how: Recovery,
}

/// Opens the log at `path`, repairs its tail, and returns what it holds. A log that is not there is empty.
///
/// # Errors
/// Another program's file, a newer format, or damage to what was acknowledged.
pub(crate) fn open(path: &Path) -> Result<Recovered> {
    let Some(file) = open_file(path)? else { return Ok(empty()) };
    if let Some(sealed) = read_sealed(&file).map_err(|error| reading(path, error))? {
        return Ok(sealed);
    }
    let Replay { recovered, durable_bytes } = replay_file(path, file)?;
    repair(path, recovered.position.bytes, durable_bytes)
        .map_err(|error| StoreError::io(format!("repairing the tail of {}", path.display()), error))?;
    Ok(recovered)
}

/// What [`open`] would find, without the repair.
///
/// # Errors
/// As [`open`].
pub(crate) fn look(path: &Path) -> Result<Recovered> {
    let Some(file) = open_file(path)? else { return Ok(empty()) };
    match read_sealed(&file).map_err(|error| reading(path, error))? {
        Some(sealed) => Ok(sealed),
        None => Ok(replay_file(path, file)?.recovered),
    }
}

/// Replays the log at `path` from its first record, whatever its footer says.
///
/// # Errors
/// As [`open`].
pub(crate) fn replay(path: &Path) -> Result<Recovered> {
    match open_file(path)? {
        Some(file) => Ok(replay_file(path, file)?.recovered),
        None => Ok(empty()),
    }
}

fn empty() -> Recovered {
    Recovered { ledger: Ledger::default(), position: Position::default(), how: Recovery::Empty }
}

/// The file with its header checked; `None` when there is nothing in it.
fn open_file(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(reading(path, error)),
    };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    (&file).take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(|error| reading(path, error))?;
    match record::read_header(&header) {
        Header::Torn => Ok(None),
        Header::Format(format) if format <= FORMAT => Ok(Some(file)),
        Header::Format(found) => Err(StoreError::NewerFormat { path: path.into(), found, known: FORMAT }),
        Header::Foreign => Err(corrupt(path, 0, "this is not a store's log")),
    }
}

/// What the footer at the very end of the file points to, if there is one and all of it is whole.
fn read_sealed(file: &File) -> io::Result<Option<Recovered>> {
    let bytes = file.metadata()?.len();
    let Some(footer_at) = bytes.checked_sub(FOOTER_BYTES as u64) else { return Ok(None) };
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, footer_at)?;
    let Some(Record { stamp, payload: Payload::Footer(footer), .. }) = record::decode(&footer) else { return Ok(None) };
    let Some(size) = footer_at.checked_sub(footer.snapshot_at) else { return Ok(None) };
    let mut snapshot = vec![0; size as usize];
    file.read_exact_at(&mut snapshot, footer.snapshot_at)?;
    let Some(Record { stamp: snapshot_stamp, payload: Payload::Snapshot(ledger), .. }) = record::decode(&snapshot)
    else {
        return Ok(None);
    };
    let position =
        Position { epoch: stamp.epoch, sequence: stamp.sequence, at_ms: stamp.at_ms, chain: footer.chain, bytes };
    let ledger = Ledger::decode(&ledger).filter(|_| snapshot_stamp == stamp);
    Ok(ledger.map(|ledger| Recovered { ledger, position, how: Recovery::Sealed }))
}

struct Replay {
    recovered: Recovered,
    /// How far the file is known to have been durable.
    durable_bytes: u64,
}

fn replay_file(path: &Path, file: File) -> Result<Replay> {
    let mut reader = LogReader::over(file).map_err(|error| reading(path, error))?;
    let mut replay = Replayer::default();
    let torn_bytes = loop {
        let offset = reader.offset;
        match reader.next().map_err(|error| reading(path, error))? {
            Next::Record(record) => {
                replay.take(&record, reader.offset).map_err(|reason| corrupt(path, offset, reason))?;
            }
            Next::End => break 0,
            Next::Damage => {
                let hole = replay.position.sequence + 1;
                if reader.find_record(|later| later.stamp.durable >= hole).map_err(|error| reading(path, error))? {
                    return Err(corrupt(path, offset, "acknowledged records are damaged, whole ones follow"));
                }
                break reader.file_bytes - offset;
            }
        }
    };
    let how = Recovery::Replayed { increments: replay.increments, torn_bytes };
    let recovered = Recovered { ledger: replay.ledger, position: replay.position, how };
    Ok(Replay { recovered, durable_bytes: replay.durable_bytes })
}

/// Builds the ledger from the records in order.
struct Replayer {
    ledger: Ledger,
    position: Position,
    increments: u64,
    durable_bytes: u64,
    /// Sequence and end in the file of each increment that no later record has called durable yet.
    unproven: VecDeque<(u64, u64)>,
}

impl Default for Replayer {
    fn default() -> Self {
        let bytes = HEADER_BYTES as u64;
        Self {
            ledger: Ledger::default(),
            position: Position { bytes, ..Position::default() },
            increments: 0,
            durable_bytes: bytes,
            unproven: VecDeque::new(),
        }
    }
}

impl Replayer {
    /// Takes the record that ends at `end`.
    fn take(&mut self, record: &Record, end: u64) -> std::result::Result<(), String> {
        let Record { stamp, payload, crc } = record;
        if stamp.epoch < self.position.epoch {
            return Err(format!("epoch {} follows epoch {}: there were two writers", stamp.epoch, self.position.epoch));
        }
        let expected = self.position.sequence + u64::from(matches!(payload, Payload::Increment { .. }));
        if stamp.sequence != expected {
            return Err(format!("sequence {} stands where {expected} belongs", stamp.sequence));
        }
        while let Some((_, proven)) = self.unproven.front().filter(|(sequence, _)| *sequence <= stamp.durable) {
            self.durable_bytes = *proven;
            self.unproven.pop_front();
        }
        if let Payload::Increment { key, .. } = payload {
            self.ledger.apply(key, Event { sequence: stamp.sequence, at_ms: stamp.at_ms });
            self.position.chain = record::chain(self.position.chain, *crc);
            self.increments += 1;
            self.unproven.push_back((stamp.sequence, end));
        }
        self.position.epoch = stamp.epoch;
        self.position.sequence = stamp.sequence;
        self.position.at_ms = stamp.at_ms;
        self.position.bytes = end;
        Ok(())
    }
}

/// Cuts the file off at `end` and writes again, in place and to the disk, what is not known to be on it.
fn repair(path: &Path, end: u64, durable_bytes: u64) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    if file.metadata()?.len() > end {
        file.set_len(end)?;
    }
    let mut tail = vec![0; (end - durable_bytes) as usize];
    file.read_exact_at(&mut tail, durable_bytes)?;
    file.write_all_at(&tail, durable_bytes)?;
    file.sync_data()
}

/// What comes next in a log.
#[derive(Debug)]
pub(crate) enum Next {
    Record(Record),
    /// The file ends behind a whole record.
    End,
    /// What follows is no record.
    Damage,
}

/// Reads the records of a log one by one, asking only that each is whole.
#[derive(Debug)]
pub(crate) struct LogReader {
    reader: BufReader<File>,
    offset: u64,
    file_bytes: u64,
    buffer: Vec<u8>,
}

impl LogReader {
    /// The log at `path`; `None` when it is empty or not there.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let Some(file) = open_file(path)? else { return Ok(None) };
        Self::over(file).map(Some).map_err(|error| reading(path, error))
    }

    fn over(file: File) -> io::Result<Self> {
        let file_bytes = file.metadata()?.len();
        // `open_file` has read the header, so the file stands behind it.
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(Self { reader, offset: HEADER_BYTES as u64, file_bytes, buffer: Vec::new() })
    }

    pub(crate) fn next(&mut self) -> io::Result<Next> {
        let left = self.file_bytes - self.offset;
        let mut prefix = [0; 8];
        match left {
            0 => return Ok(Next::End),
            1..8 => return Ok(Next::Damage),
            _ => self.reader.read_exact(&mut prefix)?,
        }
        let Some(size) = record::record_bytes(prefix).filter(|size| *size as u64 <= left) else {
            return Ok(Next::Damage);
        };
        self.buffer.resize(size, 0);
        self.buffer[..8].copy_from_slice(&prefix);
        self.reader.read_exact(&mut self.buffer[8..])?;
        let Some(record) = record::decode(&self.buffer) else { return Ok(Next::Damage) };
        self.offset += size as u64;
        Ok(Next::Record(record))
    }

    /// Goes on at the next whole increment behind the damage at which [`next`](Self::next) stopped; false when there is none.
    pub(crate) fn skip_damage(&mut self) -> io::Result<bool> {
        let Some((skipped, ..)) = record::find_increment(&self.rest()?) else { return Ok(false) };
        self.offset += skipped as u64;
        self.reader.seek(SeekFrom::Start(self.offset))?;
        Ok(true)
    }

    /// Looks behind the damage at which [`next`](Self::next) stopped for a whole increment that `wanted` likes.
    pub(crate) fn find_record(&self, wanted: impl Fn(&Record) -> bool) -> io::Result<bool> {
        let rest = self.rest()?;
        let mut from = 0;
        while let Some((offset, size, record)) = record::find_increment(&rest[from..]) {
            if wanted(&record) {
                return Ok(true);
            }
            from += offset + size;
        }
        Ok(false)
    }

    /// Everything from the damage on.
    fn rest(&self) -> io::Result<Vec<u8>> {
        let mut rest = vec![0; (self.file_bytes - self.offset) as usize];
        self.reader.get_ref().read_exact_at(&mut rest, self.offset)?;
        Ok(rest)
    }
}

fn reading(path: &Path, error: io::Error) -> StoreError {
    StoreError::io(format!("reading {}", path.display()), error)
}

fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: path.into(), offset, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::super::{LOG_NAME, Store};
    use super::*;

    #[test]
    fn a_replay_trusts_only_what_a_later_record_calls_durable() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(LOG_NAME);
        let store = Store::open(dir.path(), 1).expect("opens");
        let mut ends = vec![HEADER_BYTES as u64];
        for _ in 0..3 {
            store.increment("key").expect("written");
            ends.push(path.metadata().expect("there").len());
        }
        let trusted = || replay_file(&path, open_file(&path).expect("read").expect("not empty")).expect("whole");
        assert_eq!(trusted().durable_bytes, ends[2], "nothing says that the last one was synced");
        store.increment("key").expect("written");
        assert_eq!(trusted().durable_bytes, ends[3]);
    }
}
