//! The file itself: opened, read, written slot by slot, set aside when it can't be read.
//!
//! Invariants:
//!
//! * A record reaches the file before it becomes [`Journal::current`]; a failed write changes neither.
//! * Nothing that can't be read is overwritten or deleted, and only [`Journal::open`] and [`Journal::sync`] rename it.
//! * A sync that failed proves nothing about a later one, since the kernel may have dropped the pages: the newest record is
//!   written again before the next sync is believed (fsync(2), "Notes").

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::{JournalError, Result};
use crate::record::StateJournal;
use crate::slots::{self, Content, FILE_BYTES, SLOT_BYTES, Slot};
use crate::storage::{self, NotAFile, Storage};

/// How many unreadable files are kept beside a journal.
const SET_ASIDE_MAX: u32 = 16;

/// How often a reader looks at a file in which every slot is torn: it may have been held up beside a busy writer.
const READS_MAX: u32 = 3;

/// A journal kept open by the supervisor that owns it.
///
/// [`record`](Self::record) costs microseconds and waits for no disk. What it gives is order: after the death of the process
/// the file holds the last record; after a power loss it holds the last record that was synced, or one made after it.
/// [`sync`](Self::sync) makes the newest record durable. Only a file without any synced record can be unreadable after a
/// power loss.
///
/// One process at a time may have a journal open; see to it with a lock of your own.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: SlotFile<File>,
    set_aside: Option<SetAside>,
}

/// A file that was in the journal's place and could not be read. It is kept, under another name beside the journal.
#[derive(Debug)]
#[non_exhaustive]
pub struct SetAside {
    /// Where it is now.
    pub kept_at: PathBuf,
    /// Why it could not be read: [`JournalError::Unreadable`], [`JournalError::NewerVersion`] or
    /// [`JournalError::UnknownRecord`].
    pub reason: JournalError,
}

impl Journal {
    /// Opens the journal at `path`, and creates it and its parent directory if they are missing. Durable on return.
    ///
    /// A file that can't be read, also because a newer build wrote it, is renamed to `<path>.unreadable-<n>` and a fresh
    /// journal is started; [`set_aside`](Self::set_aside) says so.
    ///
    /// # Errors
    /// [`JournalError::NotAFile`], [`JournalError::TooManySetAside`] after 16 unreadable files, else [`JournalError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = std::path::absolute(path).map_err(io_error(path, "find the current directory"))?;
        match SlotFile::create_or_open(&path) {
            Ok(file) => Ok(Self { path, file, set_aside: None }),
            Err(reason) if reason.is_of_the_content() => {
                let kept_at = set_aside(&path)?;
                let file = SlotFile::create_or_open(&path)?;
                Ok(Self { path, file, set_aside: Some(SetAside { kept_at, reason }) })
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a record after the ones before it, without waiting for the disk.
    ///
    /// # Errors
    /// [`JournalError::TooLong`] is the caller's fault; [`JournalError::Io`] is the disk's. The record before it stays the
    /// newest, unless the failed write reached the file whole.
    pub fn record(&mut self, state: &StateJournal) -> Result<()> {
        self.file.write(Some(state.clone()))
    }

    /// Writes down that no handover is under way any more, in order as [`record`](Self::record) does.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn clear(&mut self) -> Result<()> {
        self.file.write(None)
    }

    /// Makes the newest record durable. Costs nothing if it is already.
    ///
    /// A file that was removed, replaced or moved away in the meantime is made anew, with the newest record.
    ///
    /// # Errors
    /// [`JournalError::NotAFile`] when something else was put in its place.
    /// [`JournalError::Io`]: the newest record may not survive a power loss; the last synced one does. Calling it again
    /// writes the record again.
    pub fn sync(&mut self) -> Result<()> {
        if !self.file.is_in_place()? {
            let mut anew = Self::open(&self.path)?;
            anew.file.write(self.file.current.clone())?;
            self.file = anew.file;
            self.set_aside = anew.set_aside.or(self.set_aside.take());
        }
        self.file.sync()
    }

    /// The newest record; `None` if no handover is under way.
    pub fn current(&self) -> Option<&StateJournal> {
        self.file.current.as_ref()
    }

    /// The file that [`open`](Self::open) found and could not read, for the log.
    pub fn set_aside(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// Where the journal is, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The newest record of the file at `path`.
pub(crate) fn read(path: &Path) -> Result<Option<StateJournal>> {
    let file = match storage::open(path, OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(open_error(path, error)),
    };
    let mut content = read_content(path, &file)?;
    for _ in 1..READS_MAX {
        if content != Content::Unreadable {
            break;
        }
        content = read_content(path, &file)?;
    }
    Ok(newest_of(path, content)?.and_then(|(_, _, state)| state))
}

/// Removes the file at `path`; no error if there is none.
pub(crate) fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(path, "remove it")(error)),
        Ok(()) => sync_directory_of(path).map_err(io_error(path, "sync its directory")),
    }
}

/// A file of slots, with what is known about them.
#[derive(Debug)]
pub(crate) struct SlotFile<S> {
    path: PathBuf,
    storage: S,
    /// The newest record.
    pub(crate) current: Option<StateJournal>,
    newest: Slot,
    sequence: u64,
    /// The slot that is certainly on the disk.
    synced: Slot,
    /// The last sync failed, and nothing was written since.
    sync_failed: bool,
    /// Kept, so that a record costs no allocation.
    buffer: Box<[u8; SLOT_BYTES]>,
}

impl SlotFile<File> {
    /// Opens the file at `path` or creates it, durably, with the directories above it.
    pub(crate) fn create_or_open(path: &Path) -> Result<Self> {
        create_directory_durably(parent_of(path)).map_err(io_error(path, "create its directory"))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = storage::open(path, &mut options).map_err(|error| open_error(path, error))?;
        let opened = Self::load(path, file)?;
        sync_directory_of(path).map_err(io_error(path, "sync its directory"))?;
        Ok(opened)
    }
}

impl<S: Storage> SlotFile<S> {
    /// Takes the file as it is found: fills a blank or a truncated one up, and syncs, so that what was found is on the disk
    /// and later syncs have no size or block to write.
    pub(crate) fn load(path: &Path, storage: S) -> Result<Self> {
        let (newest, sequence, current) =
            newest_of(path, read_content(path, &storage)?)?.unwrap_or((slots::LAST, 0, None));
        let file = Self {
            path: path.to_owned(),
            storage,
            current,
            newest,
            sequence,
            synced: newest,
            sync_failed: false,
            buffer: Box::new([0; SLOT_BYTES]),
        };
        file.fill_up()?;
        storage::sync(&file.storage).map_err(io_error(path, "sync it"))?;
        Ok(file)
    }

    /// Writes a record into the next slot.
    pub(crate) fn write(&mut self, state: Option<StateJournal>) -> Result<()> {
        let sequence = self.sequence + 1;
        let length = slots::encode(&self.path, sequence, state.as_ref(), &mut self.buffer)?;
        let slot = slots::slot_to_write(self.newest, self.synced);
        storage::write_all(&self.storage, &self.buffer[..length], slots::offset(slot))
            .map_err(io_error(&self.path, "write to it"))?;
        (self.newest, self.sequence, self.sync_failed) = (slot, sequence, false);
        self.current = state;
        Ok(())
    }

    /// Waits until the newest record is on the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        if self.sync_failed {
            self.write(self.current.clone())?;
        }
        if self.synced != self.newest {
            self.sync_failed = true;
            storage::sync(&self.storage).map_err(io_error(&self.path, "sync it"))?;
            (self.synced, self.sync_failed) = (self.newest, false);
        }
        Ok(())
    }

    fn is_in_place(&self) -> Result<bool> {
        self.storage.is_at(&self.path).map_err(io_error(&self.path, "look at it"))
    }

    /// Zeros up to the full size, so that later writes need no new block.
    fn fill_up(&self) -> Result<()> {
        let length = self.storage.len().map_err(io_error(&self.path, "look at it"))?;
        let missing = (FILE_BYTES as u64).saturating_sub(length) as usize;
        storage::write_all(&self.storage, &vec![0; missing], length).map_err(io_error(&self.path, "write to it"))
    }
}

fn read_content(path: &Path, storage: &impl Storage) -> Result<Content> {
    // One byte more than a journal has, to tell a foreign file that begins with zeros from a blank one.
    let mut bytes = vec![0; FILE_BYTES + 1];
    let length = storage::read_front(storage, &mut bytes).map_err(io_error(path, "read it"))?;
    Ok(slots::newest(&bytes[..length]))
}

/// Renames the file at `path` to a name that nobody has.
fn set_aside(path: &Path) -> Result<PathBuf> {
    for number in 1..=SET_ASIDE_MAX {
        let mut name = OsString::from(path);
        name.push(format!(".unreadable-{number}"));
        // The empty file reserves the name: a rename replaces whatever is there.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            reserved => reserved.map_err(io_error(path, "set it aside"))?,
        };
        return match fs::rename(path, &name) {
            Ok(()) => Ok(name.into()),
            Err(error) => {
                let _ = fs::remove_file(&name);
                Err(io_error(path, "set it aside")(error))
            }
        };
    }
    Err(JournalError::TooManySetAside { path: path.to_owned(), kept: SET_ASIDE_MAX })
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn create_directory_durably(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    create_directory_durably(parent_of(directory))?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => {}
        created => created?,
    }
    sync_directory_of(directory)
}

/// Makes the name of `path` durable in its directory.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory =
        OpenOptions::new().read(true).custom_flags(OFlags::DIRECTORY.bits() as i32).open(parent_of(path))?;
    match directory.sync_all() {
        // A file system that can't sync a directory keeps names by other means, or not at all.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// The newest record with its place and sequence, nothing for a blank file, or why it can't be told.
fn newest_of(path: &Path, content: Content) -> Result<Option<(Slot, u64, Option<StateJournal>)>> {
    let path = path.to_owned();
    match content {
        Content::Blank => Ok(None),
        Content::Newest { slot, sequence, state } => Ok(Some((slot, sequence, state))),
        Content::NewerVersion(version) => {
            Err(JournalError::NewerVersion { path, version, newest_known: slots::VERSION })
        }
        Content::Unknown => Err(JournalError::UnknownRecord { path }),
        Content::Unreadable => Err(JournalError::Unreadable { path }),
    }
}

fn open_error(path: &Path, source: io::Error) -> JournalError {
    if NotAFile::is_why(&source) {
        return JournalError::NotAFile { path: path.to_owned() };
    }
    io_error(path, "open it")(source)
}

fn io_error(path: &Path, attempt: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { path: path.to_owned(), attempt, source }
}
