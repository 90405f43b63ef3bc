//! The history: what came of each handover, how long its parts took, and when the old process had left.
//!
//! ```text
//! file    line*                             `history`; the lines before them are in `history.1`
//! line    CRC-32C of the JSON (8 hex digits) SPACE JSON LF
//! JSON    {"kind":"handover",…}             one handover that has ended
//!         {"kind":"left",…}                 the old process of that handover is gone: later, and perhaps never
//! ```
//!
//! Invariants:
//!
//! * A line is appended by one write (write(2), O_APPEND) and never changed, so that no other writer's line is written over. A
//!   torn tail costs the entry that it was to be, and no other: the next append begins a line of its own.
//! * An entry that is read is one that was written, whole. What is no line of ours, and what only a newer build understands, is
//!   counted as what it is.
//! * Every text and list of an entry has a bound, and every figure is a number that can be read again.
//! * The two files together never grow beyond [`HISTORY_BYTES_MAX`] and hold the newest entries.
//!
//! Never waits for the disk: a history is for people, and nothing is decided by it. Never locks a file: one process appends at a
//! time, with any number of threads, and readers need nobody's leave.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crc::{CRC_32_ISCSI, Crc};
use handoff_proto::HandoffId;
use serde::{Deserialize, Serialize};

use crate::error::{JournalError, Result};
use crate::storage::{self, NotAFile, Storage};

/// How large a history grows, in bytes. It holds the newest 7,000 handovers or more, fewer where their texts are long.
pub const HISTORY_BYTES_MAX: u64 = 2 * FILE_BYTES_MAX;

/// How large one of the two files grows.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The longest text of an entry, in bytes; what is longer is cut.
const TEXT_BYTES_MAX: usize = 1024;
/// The longest name of a phase, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// More parts than a handover has.
const PHASES_MAX: usize = 16;
/// How often a reader looks at two files that change places under its eyes.
const READS_MAX: u32 = 3;
static CRC_32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// A second thread that found the file full too would move the new one over the older entries.
static APPENDING: Mutex<()> = Mutex::new(());

/// One handover that has ended, committed or not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    /// The handover's name; none if it came to nothing before it had one.
    pub handoff_id: Option<HandoffId>,
    /// Whether the new process serves.
    pub committed: bool,
    /// Why not, in one line.
    pub abort_reason: Option<String>,
    /// The phase in which it was given up: `negotiating`, `spawning`, `warming`, `draining`, `sealing`, `awaiting_ready` or
    /// `committed`.
    pub aborted_in: Option<String>,
    /// What is known of the old process: `replaced`, `serves`, `not_heard` or `dead`.
    pub incumbent: Option<String>,
    /// The process that served when the order came.
    pub old_pid: Option<u32>,
    /// The successor, if one was started.
    pub new_pid: Option<u32>,
    /// The epoch of the lease afterwards; none without a data directory.
    pub epoch: Option<u64>,
    /// What the old process had said of its build.
    pub old_build: Option<String>,
    /// What the successor said of its build.
    pub new_build: Option<String>,
    /// The program that the successor ran.
    pub binary: Option<String>,
    /// When it was ordered, in milliseconds since the Unix epoch.
    pub started_at_unix_ms: u64,
    /// How long its parts took.
    pub timings_ms: HistoryTimings,
    /// The same as stretches of time, also of a part that was cut off; in their order, and none overlaps another.
    pub phases: Vec<PhaseSpan>,
}

/// Durations in milliseconds. A part that was not reached, or not finished, is 0; so is a figure that is no finite number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryTimings {
    /// Starting the successor, up to its greeting.
    pub spawn: f64,
    /// Its start-up before the drain.
    pub warm: f64,
    /// `PrepareHandoff` sent to `Drained` received.
    pub drain: f64,
    /// `SealRequest` sent to `SealComplete` received.
    pub seal: f64,
    /// `Begin` sent to `Ready` received.
    pub begin_to_ready: f64,
    /// The whole handover.
    pub total: f64,
    /// `PrepareHandoff` sent to `Ready` received.
    pub pause: f64,
    /// `Commit` sent until the old process was gone. None: it has not left yet, or nobody saw it leave.
    pub retire: Option<f64>,
}

/// One part of a handover.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PhaseSpan {
    /// `spawn`, `warm`, `drain`, `seal`, `begin_to_ready` or `undo`.
    pub phase: String,
    /// When it began, in milliseconds after the order.
    pub at_ms: f64,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// The newest entries of a history.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recent {
    /// The oldest of them first.
    pub entries: Vec<HistoryEntry>,
    /// How many lines were unreadable: torn by a full disk or a power loss, or nobody's.
    pub damaged: u64,
    /// How many lines are whole and say nothing that this build knows: a newer build wrote them, and reads them.
    pub unknown: u64,
}

/// A history at a path of its own.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
}

impl History {
    /// The history at `path`; nothing is opened or made. A relative path is taken from the current directory of this moment,
    /// and stays there when the process changes to another one.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        // An empty path, or no current directory: every use of it will say so.
        Self { path: std::path::absolute(&path).unwrap_or(path) }
    }

    /// Appends an entry, from any number of threads at a time. Texts that are too long are cut. It is not durable on return, and
    /// costs no wait for the disk.
    ///
    /// # Errors
    /// [`JournalError::Io`] or [`JournalError::NotAFile`]: this entry is lost, and no other.
    pub fn append(&self, entry: &HistoryEntry) -> Result<()> {
        self.append_line(&Line::Handover(Box::new(bounded(entry.clone()))))
    }

    /// Appends that the old process of this handover is gone, so long after the commit.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_left(&self, handoff_id: HandoffId, after: Duration) -> Result<()> {
        self.append_line(&Line::Left { handoff_id, after_ms: after.as_micros() as f64 / 1000.0 })
    }

    /// The newest entries, at most so many; none when there is no file. Changes nothing.
    ///
    /// # Errors
    /// [`JournalError::Io`] or [`JournalError::NotAFile`].
    pub fn newest(&self, count: usize) -> Result<Recent> {
        let files = self.read_files().map_err(|source| self.failed("read it", source))?;
        let mut recent = parse(&files);
        recent.entries.drain(..recent.entries.len().saturating_sub(count));
        Ok(recent)
    }

    fn append_line(&self, line: &Line) -> Result<()> {
        let line = encode(line).map_err(|source| self.failed("encode an entry", source))?;
        self.try_append(&line).map_err(|source| self.failed("append to it", source))
    }

    fn try_append(&self, line: &[u8]) -> io::Result<()> {
        let _one_at_a_time = APPENDING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = open_to_append(&self.path)?;
        if Storage::len(&file)? + line.len() as u64 + 1 > FILE_BYTES_MAX {
            fs::rename(&self.path, self.older())?;
            file = open_to_append(&self.path)?;
        }
        append_to(&file, line)
    }

    fn older(&self) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(".1");
        name.into()
    }

    /// Both files, the older one first. They may change places meanwhile.
    fn read_files(&self) -> io::Result<Vec<u8>> {
        let mut read = 1;
        loop {
            let newer = open_if_there(&self.path)?;
            let older = open_if_there(&self.older())?;
            if read == READS_MAX || inode(&newer)? == inode(&open_if_there(&self.path)?)? {
                // The older one may end in a torn line.
                return Ok([read_tail(older)?, b"\n".to_vec(), read_tail(newer)?].concat());
            }
            read += 1;
        }
    }

    fn failed(&self, attempt: &'static str, source: io::Error) -> JournalError {
        let path = self.path.clone();
        if NotAFile::is_why(&source) {
            return JournalError::NotAFile { path };
        }
        JournalError::Io { path, attempt, source }
    }
}

/// What stands in one line.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Handover(Box<HistoryEntry>),
    Left { handoff_id: HandoffId, after_ms: f64 },
}

/// One line, to be written by one call.
fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(line)?;
    let mut bytes = format!("{:08x} ", CRC_32C.checksum(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    Ok(bytes)
}

fn open_to_append(path: &Path) -> io::Result<File> {
    storage::open(path, OpenOptions::new().read(true).append(true).create(true).mode(0o600))
}

/// Appends a whole line, behind a line feed if what is there ends without one. What a full disk cuts off is not tried again: by
/// then, another line may stand behind it.
fn append_to(storage: &impl Storage, line: &[u8]) -> io::Result<()> {
    let end = storage.len()?;
    let mut last = [b'\n'];
    if end > 0 {
        read_exactly(storage, &mut last, end - 1)?;
    }
    let mended = [b"\n".as_slice(), line].concat();
    let bytes = if last == [b'\n'] { line } else { &mended };
    loop {
        match storage.append(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(written) if written < bytes.len() => {
                return Err(io::Error::new(ErrorKind::WriteZero, "only a part of the entry was written"));
            }
            written => return written.map(drop),
        }
    }
}

fn read_exactly(storage: &impl Storage, out: &mut [u8; 1], offset: u64) -> io::Result<()> {
    loop {
        match storage.read_at(out, offset) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            read => return read.map(drop),
        }
    }
}

/// The entries of these lines, with what became known of them later.
fn parse(files: &[u8]) -> Recent {
    let mut recent = Recent::default();
    let mut at = HashMap::new();
    // What is behind the last line feed is being written right now, or was torn: the next append shows which.
    let whole = files.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &files[..end]);
    for line in whole.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match checked(line).map(serde_json::from_slice) {
            None => recent.damaged += 1,
            Some(Ok(Line::Handover(entry))) => {
                if let Some(handoff_id) = entry.handoff_id {
                    at.insert(handoff_id, recent.entries.len());
                }
                recent.entries.push(*entry);
            }
            Some(Ok(Line::Left { handoff_id, after_ms })) => {
                if let Some(entry) = at.get(&handoff_id).and_then(|&at: &usize| recent.entries.get_mut(at)) {
                    entry.timings_ms.retire = Some(after_ms);
                }
            }
            Some(Err(_)) => recent.unknown += 1,
        }
    }
    recent
}

/// The JSON of a line whose checksum is right.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (checksum, json) = line.split_at_checked(9)?;
    let checksum = std::str::from_utf8(checksum).ok()?.strip_suffix(' ')?;
    (u32::from_str_radix(checksum, 16).ok()? == CRC_32C.checksum(json)).then_some(json)
}

/// The entry within its bounds. It is taken apart whole, so that no field that is added can be forgotten here.
fn bounded(entry: HistoryEntry) -> HistoryEntry {
    let HistoryEntry {
        handoff_id,
        committed,
        abort_reason,
        aborted_in,
        incumbent,
        old_pid,
        new_pid,
        epoch,
        old_build,
        new_build,
        binary,
        started_at_unix_ms,
        timings_ms,
        phases,
    } = entry;
    let text = |text: Option<String>| text.map(|text| cut(text, TEXT_BYTES_MAX));
    HistoryEntry {
        handoff_id,
        committed,
        abort_reason: text(abort_reason),
        aborted_in: aborted_in.map(|name| cut(name, NAME_BYTES_MAX)),
        incumbent: incumbent.map(|name| cut(name, NAME_BYTES_MAX)),
        old_pid,
        new_pid,
        epoch,
        old_build: text(old_build),
        new_build: text(new_build),
        binary: text(binary),
        started_at_unix_ms,
        timings_ms: readable_timings(timings_ms),
        phases: phases.into_iter().take(PHASES_MAX).map(bounded_span).collect(),
    }
}

fn readable_timings(timings: HistoryTimings) -> HistoryTimings {
    let HistoryTimings { spawn, warm, drain, seal, begin_to_ready, total, pause, retire } = timings;
    HistoryTimings {
        spawn: readable(spawn),
        warm: readable(warm),
        drain: readable(drain),
        seal: readable(seal),
        begin_to_ready: readable(begin_to_ready),
        total: readable(total),
        pause: readable(pause),
        retire: retire.filter(|ms| ms.is_finite()),
    }
}

fn bounded_span(span: PhaseSpan) -> PhaseSpan {
    let PhaseSpan { phase, at_ms, ms } = span;
    PhaseSpan { phase: cut(phase, NAME_BYTES_MAX), at_ms: readable(at_ms), ms: readable(ms) }
}

/// JSON has no infinity and no NaN: what is written in their place could not be read again.
fn readable(ms: f64) -> f64 {
    if ms.is_finite() { ms } else { 0.0 }
}

/// At most so many bytes of a text, and a mark where something was cut off.
fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match storage::open(path, OpenOptions::new().read(true)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn inode(file: &Option<File>) -> io::Result<Option<(u64, u64)>> {
    let Some(file) = file else { return Ok(None) };
    Ok(Some(storage::inode(&file.metadata()?)))
}

/// All of it, or the end of one that is larger than any of ours.
fn read_tail(file: Option<File>) -> io::Result<Vec<u8>> {
    let Some(mut file) = file else { return Ok(Vec::new()) };
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(FILE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
