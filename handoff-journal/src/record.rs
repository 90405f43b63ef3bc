//! What the journal says about a handover, and the form in which it stands in a slot.
//!
//! The encoded form is bounded whatever the processes, the phase and the time are: only [`Details::binary`] and
//! [`Details::build_id`] have a length, and both are checked. So a handover whose first record fits can never fail on a later
//! one for its size.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use handoff_proto::{HandoffId, Phase};
use serde::{Deserialize, Serialize};

use crate::error::{JournalError, Result};
use crate::journal::{self, SlotFile};

/// The longest [`Details::binary`], in bytes: Linux's PATH_MAX.
pub const BINARY_BYTES_MAX: usize = 4096;

/// The longest [`Details::build_id`], in bytes.
pub const BUILD_ID_BYTES_MAX: usize = 2048;

/// A handover that is under way, or just ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StateJournal {
    /// The handover.
    pub handoff_id: HandoffId,
    /// The last step that the supervisor knows was taken.
    pub phase: Phase,
    /// The process that owned the data when it began.
    pub incumbent_pid: u32,
    /// The process that is to take over, once it exists.
    pub successor_pid: Option<u32>,
    /// When it began, in milliseconds since the Unix epoch; for people.
    pub started_at_unix_ms: u64,
    /// What tells these processes from others that have their pids later.
    pub details: Details,
}

/// What is known beyond the pids. Everything may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Details {
    /// When the incumbent started, in clock ticks since boot, as proc_pid_stat(5) gives it: its pid may be used again.
    pub incumbent_start_time: Option<u64>,
    /// The same of the successor.
    pub successor_start_time: Option<u64>,
    /// The program that the successor runs; at most [`BINARY_BYTES_MAX`] bytes, in any encoding.
    pub binary: Option<PathBuf>,
    /// What names the build of the incumbent or successor, free in form; at most [`BUILD_ID_BYTES_MAX`] bytes.
    pub build_id: Vec<u8>,
}

impl StateJournal {
    /// Writes this record, durable on return: it survives a power loss. Creates the parent directory and the file.
    ///
    /// The record before it stays whole until this one is on the disk.
    ///
    /// # Errors
    /// [`JournalError::Unreadable`], [`JournalError::NewerVersion`] or [`JournalError::UnknownRecord`] when the path holds
    /// something else, which is left as it is; [`JournalError::TooLong`] is the caller's fault; else the disk's. After an error the file gives the old record or
    /// this one.
    pub fn write_atomic(&self, path: &Path) -> Result<()> {
        let mut file = SlotFile::create_or_open(path)?;
        file.write(Some(self.clone()))?;
        file.sync()
    }

    /// The newest whole record, `None` when there is no file or no handover was under way. Changes nothing.
    ///
    /// # Errors
    /// [`JournalError::Unreadable`] when the file holds no whole record, [`JournalError::NewerVersion`] or
    /// [`JournalError::UnknownRecord`] when a newer build wrote it, [`JournalError::Io`] when it can't be read.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        journal::read(path)
    }

    /// Removes the file, durably. It is no error if there is none.
    ///
    /// # Errors
    /// [`JournalError::Io`], also when its parent can't be synced.
    pub fn delete(path: &Path) -> Result<()> {
        journal::delete(path)
    }
}

/// The record as postcard writes it: **the order of these fields is the format**. Text and paths are plain bytes, so that a
/// path in no encoding at all comes back as it was.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    handoff_id: HandoffId,
    phase: Phase,
    incumbent_pid: u32,
    successor_pid: Option<u32>,
    started_at_unix_ms: u64,
    incumbent_start_time: Option<u64>,
    successor_start_time: Option<u64>,
    #[serde(borrow)]
    binary: Option<&'a [u8]>,
    build_id: &'a [u8],
}

/// More than the encoded form can ever need, in bytes: the two bounded fields and 128 for all others.
pub(crate) const RECORD_BYTES_MAX: usize = BINARY_BYTES_MAX + BUILD_ID_BYTES_MAX + 128;

/// Encodes a record, or that there is none, and gives the length.
pub(crate) fn encode(path: &Path, state: Option<&StateJournal>, out: &mut [u8]) -> Result<usize> {
    let stored = state.map(Stored::of);
    if let Some(stored) = &stored {
        let too_long =
            |field, bytes, bytes_max| JournalError::TooLong { path: path.to_owned(), field, bytes, bytes_max };
        let binary_bytes = stored.binary.map_or(0, <[u8]>::len);
        if binary_bytes > BINARY_BYTES_MAX {
            return Err(too_long("binary", binary_bytes, BINARY_BYTES_MAX));
        }
        if stored.build_id.len() > BUILD_ID_BYTES_MAX {
            return Err(too_long("build_id", stored.build_id.len(), BUILD_ID_BYTES_MAX));
        }
    }
    let room = out.len();
    match postcard::to_slice(&stored, out) {
        Ok(encoded) => Ok(encoded.len()),
        // Out of the question while `RECORD_BYTES_MAX` is right, but a panic here would stop a supervisor.
        Err(_) => {
            Err(JournalError::TooLong { path: path.to_owned(), field: "record", bytes: room + 1, bytes_max: room })
        }
    }
}

/// Decodes what [`encode`] wrote: a record, or that there is none. The outer `None`: these bytes are neither.
pub(crate) fn decode(bytes: &[u8]) -> Option<Option<StateJournal>> {
    match postcard::take_from_bytes::<Option<Stored<'_>>>(bytes) {
        Ok((stored, [])) => Some(stored.map(Stored::into_state)),
        _ => None,
    }
}

impl<'a> Stored<'a> {
    fn of(state: &'a StateJournal) -> Self {
        let StateJournal { handoff_id, phase, incumbent_pid, successor_pid, started_at_unix_ms, details } = state;
        Self {
            handoff_id: *handoff_id,
            phase: *phase,
            incumbent_pid: *incumbent_pid,
            successor_pid: *successor_pid,
            started_at_unix_ms: *started_at_unix_ms,
            incumbent_start_time: details.incumbent_start_time,
            successor_start_time: details.successor_start_time,
            binary: details.binary.as_ref().map(|path| path.as_os_str().as_bytes()),
            build_id: &details.build_id,
        }
    }

    fn into_state(self) -> StateJournal {
        StateJournal {
            handoff_id: self.handoff_id,
            phase: self.phase,
            incumbent_pid: self.incumbent_pid,
            successor_pid: self.successor_pid,
            started_at_unix_ms: self.started_at_unix_ms,
            details: Details {
                incumbent_start_time: self.incumbent_start_time,
                successor_start_time: self.successor_start_time,
                binary: self.binary.map(|bytes| PathBuf::from(OsStr::from_bytes(bytes))),
                build_id: self.build_id.to_vec(),
            },
        }
    }
}
