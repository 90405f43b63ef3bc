//! The reading half of the write-ahead log: opens it sealed or replays it, and gives its records to whoever checks them.
//!
//! ```text
//!            store.redb                 the log, oldest segment first
//!   state at its checkpoint   +   the writes behind that checkpoint   =   the store
//! ```
//!
//! Invariants:
//!
//! - A sealed log is opened by its footer and the snapshot before it; nothing else of it is read. Is either of them not whole,
//!   not at the very end, or over another checkpoint than the engine's, the log is replayed: the footer is never needed, only
//!   quick.
//! - The engine decides from where on the log is replayed. A log that begins behind the engine's checkpoint, or that says that
//!   there was a newer one, has lost something: it is refused, and nothing is changed.
//! - A torn tail is cut off. A hole in front of records that prove it was acknowledged is damage, and nothing is changed.
//!   Only the newest segment can have a torn tail.
//! - What a replayed log holds is durable before anybody sees it: what was written but not known to be synced is written
//!   again, because the page cache may call pages clean that a failed sync never wrote.
//! - [`look`], [`replay`] and [`LogReader`] change nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::engine::{Checkpoint, Engine};
use super::error::{Result, StoreError};
use super::ledger::Event;
use super::record::{self, FOOTER_BYTES, FORMAT, HEADER_BYTES, Header, Payload, Record};
use super::segments::{self, Segment};
use super::tables::Tables;
use super::wal::Position;

/// How a store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// There was nothing in it.
    Empty,
    /// It was sealed: nothing was replayed.
    Sealed,
    /// Its log was replayed, from the engine's checkpoint on.
    Replayed {
        /// How many writes were replayed.
        writes: u64,
        /// How many bytes of a torn tail were dropped.
        torn_bytes: u64,
    },
}

/// What a data directory holds.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) tables: Tables,
    pub(crate) position: Position,
    pub(crate) how: Recovery,
    /// Where the log goes on.
    pub(crate) segment: Segment,
}

/// Opens what is in `dir`, repairs the log's tail, and returns what it holds. A log that is not there is empty.
///
/// # Errors
/// Another program's file, a newer format, or damage to what was acknowledged.
pub(crate) fn open(dir: &Path) -> Result<Recovered> {
    let (recovered, durable_bytes) = find(dir)?;
    if let Recovery::Replayed { .. } = recovered.how {
        let path = &recovered.segment.path;
        repair(path, recovered.position.bytes, durable_bytes)
            .map_err(|error| StoreError::io(format!("repairing the tail of {}", path.display()), error))?;
    }
    Ok(recovered)
}

/// What [`open`] would find, without the repair.
///
/// # Errors
/// As [`open`].
pub(crate) fn look(dir: &Path) -> Result<Tables> {
    Ok(find(dir)?.0.tables)
}

/// Replays the log in `dir` from its first record, whatever its footer says; over the engine only if its beginning is gone.
///
/// # Errors
/// As [`open`].
pub(crate) fn replay(dir: &Path) -> Result<Tables> {
    let segments = begun_segments(dir)?;
    let is_whole = segments.first().is_some_and(|first| first.0.number == 0);
    let engine = if is_whole { Engine::empty(dir) } else { Engine::open(dir)? };
    Ok(replay_segments(dir, segments, Arc::new(engine))?.0.tables)
}

/// The store as it is on disk, and how far its newest segment is known to be durable.
fn find(dir: &Path) -> Result<(Recovered, u64)> {
    let engine = Arc::new(Engine::open(dir)?);
    let segments = begun_segments(dir)?;
    if let Some((newest, file, _)) = segments.last() {
        let sealed = read_sealed(file, newest, &engine).map_err(|error| reading(&newest.path, error))?;
        if let Some(sealed) = sealed {
            let bytes = sealed.position.bytes;
            return Ok((sealed, bytes));
        }
    }
    replay_segments(dir, segments, engine)
}

/// A segment, its file behind the header, and the position at which it begins.
type Begun = (Segment, File, Position);

/// The segments that hold a header and, but for the first, their start; oldest first.
fn begun_segments(dir: &Path) -> Result<Vec<Begun>> {
    let mut begun = Vec::new();
    let segments = segments::list(dir)?;
    let newest = segments.last().map(|segment| segment.number);
    for segment in segments {
        match open_segment(&segment)? {
            Some((file, start)) => begun.push((segment, file, start)),
            None if Some(segment.number) == newest => {} // a spare
            None => return Err(corrupt(&segment.path, 0, "this segment has lost its beginning")),
        }
    }
    Ok(begun)
}

/// `None` when there is nothing in it.
fn open_segment(segment: &Segment) -> Result<Option<(File, Position)>> {
    let Some(file) = open_file(&segment.path)? else { return Ok(None) };
    let header = Position { bytes: HEADER_BYTES as u64, ..Position::default() };
    if segment.number == 0 {
        return Ok(Some((file, header)));
    }
    let unreadable = |error| reading(&segment.path, error);
    let mut reader = LogReader::over(file).map_err(unreadable)?;
    let start = match reader.next().map_err(unreadable)? {
        Next::Record(Record { stamp, payload: Payload::Start { chain }, .. }) => {
            let bytes = reader.offset;
            Position { epoch: stamp.epoch, sequence: stamp.sequence, at_ms: stamp.at_ms, chain, bytes }
        }
        Next::End => return Ok(None),
        Next::Damage if !proves_acknowledged(&reader).map_err(unreadable)? => return Ok(None),
        Next::Record(_) | Next::Damage => {
            return Err(corrupt(&segment.path, header.bytes, "this segment does not say what it follows"));
        }
    };
    let mut file = reader.reader.into_inner();
    file.seek(SeekFrom::Start(start.bytes)).map_err(unreadable)?;
    Ok(Some((file, start)))
}

/// Whether what follows the damage shows that a write in this segment was acknowledged. Else its start is a torn tail too.
fn proves_acknowledged(reader: &LogReader) -> io::Result<bool> {
    let mut first = None;
    reader.find_record(|later| later.stamp.durable >= *first.get_or_insert(later.stamp.sequence))
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

/// What the footer at the very end of the file points to, if there is one, all of it is whole, and it lies over what the
/// engine holds.
fn read_sealed(file: &File, segment: &Segment, engine: &Arc<Engine>) -> io::Result<Option<Recovered>> {
    let bytes = file.metadata()?.len();
    let Some(footer_at) = bytes.checked_sub(FOOTER_BYTES as u64) else { return Ok(None) };
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, footer_at)?;
    let Some(Record { stamp, payload: Payload::Footer(footer), .. }) = record::decode(&footer) else { return Ok(None) };
    let Some(size) = footer_at.checked_sub(footer.snapshot_at) else { return Ok(None) };
    let mut snapshot = vec![0; size as usize];
    file.read_exact_at(&mut snapshot, footer.snapshot_at)?;
    let Some(Record { stamp: snapshot_stamp, payload: Payload::Snapshot(changes), .. }) = record::decode(&snapshot)
    else {
        return Ok(None);
    };
    if snapshot_stamp != stamp || footer.checkpoint != engine.checkpoint().sequence {
        return Ok(None);
    }
    let position =
        Position { epoch: stamp.epoch, sequence: stamp.sequence, at_ms: stamp.at_ms, chain: footer.chain, bytes };
    let tables = Tables::from_snapshot(Arc::clone(engine), &changes);
    Ok(tables.map(|tables| Recovered { tables, position, how: Recovery::Sealed, segment: segment.clone() }))
}

/// Replays the segments over what `engine` holds, from the newest that begins at or before its checkpoint.
fn replay_segments(dir: &Path, mut segments: Vec<Begun>, engine: Arc<Engine>) -> Result<(Recovered, u64)> {
    let checkpoint = engine.checkpoint();
    let is_before = |(_, _, start): &Begun| start.sequence <= checkpoint.sequence;
    match segments.iter().rposition(is_before) {
        Some(first) => drop(segments.drain(..first)),
        None if segments.is_empty() && checkpoint == Checkpoint::default() => return Ok((empty(dir, engine), 0)),
        None => return Err(corrupt(dir, 0, format!("the log does not reach back to {}", checkpoint.sequence))),
    }
    let start = segments[0].2;
    let mut replay = Replayer::new(engine, start);
    let newest = segments.len() - 1;
    let mut torn_bytes = 0;
    let mut last = Segment::new(dir, 0);
    for (index, (segment, file, start)) in segments.into_iter().enumerate() {
        replay.begin(start).map_err(|reason| corrupt(&segment.path, 0, reason))?;
        torn_bytes = replay_file(&segment.path, file, &mut replay)?;
        if torn_bytes > 0 && index < newest {
            return Err(corrupt(&segment.path, replay.position.bytes, "records are damaged, whole segments follow"));
        }
        last = segment;
    }
    replay.end().map_err(|reason| corrupt(&last.path, replay.position.bytes, reason))?;
    let how = Recovery::Replayed { writes: replay.writes, torn_bytes };
    let Replayer { tables, position, durable_bytes, .. } = replay;
    Ok((Recovered { tables, position, how, segment: last }, durable_bytes))
}

fn empty(dir: &Path, engine: Arc<Engine>) -> Recovered {
    let segment = Segment::new(dir, 0);
    Recovered { tables: Tables::over(engine), position: Position::default(), how: Recovery::Empty, segment }
}

/// Replays one segment; returns how many bytes of it are a torn tail.
fn replay_file(path: &Path, file: File, replay: &mut Replayer) -> Result<u64> {
    let mut reader = LogReader::at(file, replay.position.bytes).map_err(|error| reading(path, error))?;
    loop {
        let offset = reader.offset;
        match reader.next().map_err(|error| reading(path, error))? {
            Next::Record(record) => replay.take(&record, reader.offset).map_err(|fault| match fault {
                Fault::Log(reason) => corrupt(path, offset, reason),
                Fault::Engine(error) => error,
            })?,
            Next::End => return Ok(0),
            Next::Damage => {
                let hole = replay.position.sequence + 1;
                if reader.find_record(|later| later.stamp.durable >= hole).map_err(|error| reading(path, error))? {
                    return Err(corrupt(path, offset, "acknowledged records are damaged, whole ones follow"));
                }
                return Ok(reader.file_bytes - offset);
            }
        }
    }
}

/// Why a record can't be taken.
enum Fault {
    Log(String),
    Engine(StoreError),
}

/// Builds the state from the records in order.
struct Replayer {
    tables: Tables,
    /// Up to here the engine has it already.
    checkpoint: Checkpoint,
    position: Position,
    writes: u64,
    durable_bytes: u64,
    /// Sequence and end in the file of each write that no later record has called durable yet.
    unproven: VecDeque<(u64, u64)>,
}

impl Replayer {
    fn new(engine: Arc<Engine>, start: Position) -> Self {
        Self {
            checkpoint: engine.checkpoint(),
            tables: Tables::over(engine),
            position: start,
            writes: 0,
            durable_bytes: start.bytes,
            unproven: VecDeque::new(),
        }
    }

    /// Begins a segment that begins at `start`.
    fn begin(&mut self, start: Position) -> std::result::Result<(), String> {
        let Position { sequence, chain, .. } = self.position;
        if (start.sequence, start.chain) != (sequence, chain) {
            return Err(format!("the segment follows {}, the one before it ends at {sequence}", start.sequence));
        }
        // A segment is left only when all of it is durable.
        self.durable_bytes = start.bytes;
        self.unproven.clear();
        self.position = Position { epoch: start.epoch.max(self.position.epoch), ..start };
        self.meet_checkpoint()
    }

    /// Takes the record that ends at `end`.
    fn take(&mut self, record: &Record, end: u64) -> std::result::Result<(), Fault> {
        let Record { stamp, payload, crc } = record;
        if stamp.epoch < self.position.epoch {
            let epoch = self.position.epoch;
            return Err(Fault::Log(format!("epoch {} follows epoch {epoch}: there were two writers", stamp.epoch)));
        }
        let write = payload.write();
        let expected = self.position.sequence + u64::from(write.is_some());
        if stamp.sequence != expected {
            return Err(Fault::Log(format!("sequence {} stands where {expected} belongs", stamp.sequence)));
        }
        while let Some((_, proven)) = self.unproven.front().filter(|(sequence, _)| *sequence <= stamp.durable) {
            self.durable_bytes = *proven;
            self.unproven.pop_front();
        }
        self.position =
            Position { epoch: stamp.epoch, sequence: stamp.sequence, at_ms: stamp.at_ms, bytes: end, ..self.position };
        if let Some(write) = write {
            self.position.chain = record::chain(self.position.chain, *crc);
            self.unproven.push_back((stamp.sequence, end));
            if stamp.sequence > self.checkpoint.sequence {
                self.tables.load(write).map_err(Fault::Engine)?;
                self.tables.apply(write, Event { sequence: stamp.sequence, at_ms: stamp.at_ms });
                self.writes += 1;
            }
            self.meet_checkpoint().map_err(Fault::Log)?;
        }
        if let Payload::Marker { checkpoint } = payload {
            self.heed(*checkpoint).map_err(Fault::Log)?;
        }
        Ok(())
    }

    /// Where the log passes the engine's checkpoint, both must hold the same writes.
    fn meet_checkpoint(&self) -> std::result::Result<(), String> {
        let Checkpoint { sequence, chain, .. } = self.checkpoint;
        if self.position.sequence == sequence && self.position.chain != chain {
            return Err(format!("the engine holds other writes up to {sequence} than the log"));
        }
        Ok(())
    }

    /// A marker says what the engine has committed; one that holds less was exchanged or lost.
    fn heed(&self, committed: u64) -> std::result::Result<(), String> {
        if self.tables.engine().is_there() && committed > self.checkpoint.sequence {
            let found = self.checkpoint.sequence;
            return Err(format!("the engine has committed up to {committed} and now holds {found}"));
        }
        Ok(())
    }

    /// The log may not end before the checkpoint.
    fn end(&self) -> std::result::Result<(), String> {
        if self.position.sequence < self.checkpoint.sequence {
            let Checkpoint { sequence, .. } = self.checkpoint;
            return Err(format!("the log ends at {}, the engine holds {sequence}", self.position.sequence));
        }
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

/// Reads the records of a segment one by one, asking only that each is whole.
#[derive(Debug)]
pub(crate) struct LogReader {
    reader: BufReader<File>,
    offset: u64,
    file_bytes: u64,
    buffer: Vec<u8>,
}

impl LogReader {
    /// The segment at `path`; `None` when it is empty or not there.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let Some(file) = open_file(path)? else { return Ok(None) };
        Self::over(file).map(Some).map_err(|error| reading(path, error))
    }

    /// `open_file` has read the header, so the file stands behind it.
    fn over(file: File) -> io::Result<Self> {
        Self::at(file, HEADER_BYTES as u64)
    }

    /// A file that stands at `offset`.
    fn at(file: File, offset: u64) -> io::Result<Self> {
        let file_bytes = file.metadata()?.len();
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(Self { reader, offset, file_bytes, buffer: Vec::new() })
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

    /// Goes on at the next whole write behind the damage at which [`next`](Self::next) stopped; false when there is none.
    pub(crate) fn skip_damage(&mut self) -> io::Result<bool> {
        let Some((skipped, ..)) = record::find_write(&self.rest()?) else { return Ok(false) };
        self.offset += skipped as u64;
        self.reader.seek(SeekFrom::Start(self.offset))?;
        Ok(true)
    }

    /// Looks behind the damage at which [`next`](Self::next) stopped for a whole write that `wanted` likes.
    pub(crate) fn find_record(&self, mut wanted: impl FnMut(&Record) -> bool) -> io::Result<bool> {
        let rest = self.rest()?;
        let mut from = 0;
        while let Some((offset, size, record)) = record::find_write(&rest[from..]) {
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
        let trusted = || find(dir.path()).expect("whole").1;
        assert_eq!(trusted(), ends[2], "nothing says that the last one was synced");
        store.increment("key").expect("written");
        assert_eq!(trusted(), ends[3]);
    }
}
