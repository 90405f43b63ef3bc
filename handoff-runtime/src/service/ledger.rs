//! What a service that is started again must know besides the journal: its builds, its daemon, and who is still to leave.
//!
//! JSON objects in `<state-dir>/service`, one a line, of which the last whole one counts. One that is whole and that this build
//! does not understand is never passed over for one before it. Nobody waits for the disk:
//! it serves a service that died while the machine lived. After a boot all that it names is gone, and the configuration
//! counts. With another binary in the configuration the operator has decided anew; the processes are still this service's.
//!
//! Invariants:
//!
//! - A line is added behind a whole line only. A service's first record, one behind a write that failed, and one for which
//!   there is no room make a new file, which is renamed into place.
//! - A file that can't be read, or only by a newer build, is not written over: it is kept as `service.unreadable`.
//! - A record is added while a successor starts, and a rename over a file makes the file system write it out: whoever
//!   wants the directory or the disk then, the successor too, would wait for it.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use handoff_proto::ProcessId;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::builds::Lineage;
use super::config::ServiceConfig;
use super::own_file;
use crate::data_dir::Identity;
use crate::events::warn;
use crate::process::Process;

const VERSION: u32 = 1;
/// Far more than any service has.
const READ_BYTES_MAX: u64 = 1 << 20;
/// How long the file may grow: a hundred records or more.
const BYTES_MAX: usize = 64 << 10;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// None, and the configuration counts.
    pub(super) lineage: Option<Lineage>,
    /// The daemon that was started or adopted last.
    pub(super) daemon: Option<ProcessId>,
    /// Processes that were told to leave.
    pub(super) retiring: Vec<ProcessId>,
    /// The data directory that they were given, if it is known.
    pub(super) data_dir: Option<Place>,
}

/// A data directory: its path without links, and which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
}

impl Record {
    pub(super) fn names(&self, process: ProcessId) -> bool {
        self.daemon == Some(process) || self.retiring.contains(&process)
    }

    /// Whether one of its processes lives.
    pub(super) fn lives(&self) -> bool {
        let mut ids = self.retiring.iter().copied().chain(self.daemon);
        ids.any(|id| Process::find(id).is_ok_and(|process| process.is_some()))
    }

    /// Those of its processes that live and are to leave. A daemon that is not the one that serves was replaced, and nobody
    /// came to write it down.
    pub(super) fn still_to_leave(&self, serving: Option<ProcessId>) -> Vec<Process> {
        let ids = self.retiring.iter().copied().chain(self.daemon).filter(|id| Some(*id) != serving);
        ids.filter_map(|id| Process::find(id).ok().flatten()).collect()
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    boot_id: String,
    configured: PathBuf,
    /// Of the file, if its last line is whole and ours.
    bytes: Option<usize>,
    before: Before,
}

/// What the service before this one has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing, or a record that was read.
    Read,
    /// A record that this build can't read.
    Unread,
}

/// Why a record could not be read, in words for the log.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
    #[error("holds no whole record: it is damaged, or another program's")]
    Damaged,
    #[error("holds a newest record that this build does not understand ({0}): a newer build may have written it")]
    Unknown(serde_json::Error),
    #[error("has format version {0}, and this build reads version {VERSION}: a newer build wrote it")]
    Version(u32),
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u32,
    boot_id: String,
    /// The binary of the configuration.
    configured: PathBuf,
    builds: Option<Lineage>,
    daemon: Option<Id>,
    retiring: Vec<Id>,
    #[serde(default)]
    data_dir: Option<Dir>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Dir {
    path: PathBuf,
    device: u64,
    inode: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Id {
    pid: u32,
    start_time: u64,
}

impl Ledger {
    /// Of this service, with what was remembered: nothing after a boot or a stop, and no builds after a change of the
    /// configured binary.
    pub(super) fn open(config: &ServiceConfig) -> (Self, Record) {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let path = config.state_dir.join("service");
        let mut ledger = Self { path, boot_id, configured: config.binary.clone(), bytes: None, before: Before::Read };
        let record = ledger.read().unwrap_or_else(|reason| {
            warn!(path = %ledger.path.display(), %reason, "what the service before this one knew is not known");
            ledger.before = Before::Unread;
            None
        });
        (ledger, record.unwrap_or_default())
    }

    /// Remembers this. That it can't is no reason to stop: what is lost is told.
    pub(super) fn write(&mut self, record: &Record) {
        let written = self.line(record).and_then(|line| self.add(&line));
        if let Err(error) = written {
            warn!(path = %self.path.display(), %error, "builds and processes can't be written down; a restart would not know them");
        }
    }

    /// Remembers nothing any more.
    pub(super) fn clear(&mut self) {
        self.bytes = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                warn!(path = %self.path.display(), %error, "a file could not be removed");
            }
            _ => {}
        }
    }

    fn read(&self) -> Result<Option<Record>, Unread> {
        let text = match read_bounded(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let entry = last_whole(&text)?;
        let id = |id: Id| ProcessId { pid: id.pid, start_time: id.start_time };
        Ok((entry.boot_id == self.boot_id).then(|| Record {
            lineage: entry.builds.filter(|_| entry.configured == self.configured),
            daemon: entry.daemon.map(id),
            retiring: entry.retiring.into_iter().map(id).collect(),
            data_dir: entry
                .data_dir
                .map(|Dir { path, device, inode }| Place { path, identity: Identity { device, inode } }),
        }))
    }

    fn line(&self, record: &Record) -> io::Result<Vec<u8>> {
        let id = |id: ProcessId| Id { pid: id.pid, start_time: id.start_time };
        let entry = Entry {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            configured: self.configured.clone(),
            builds: record.lineage.clone(),
            daemon: record.daemon.map(id),
            retiring: record.retiring.iter().copied().map(id).collect(),
            // JSON has no word for a path that is no text; the other fields are worth more than this one.
            data_dir: record.data_dir.clone().filter(|place| place.path.to_str().is_some()).map(|place| {
                let Place { path, identity: Identity { device, inode } } = place;
                Dir { path, device, inode }
            }),
        };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        Ok(line)
    }

    fn add(&mut self, line: &[u8]) -> io::Result<()> {
        let added = self.bytes.take().map(|bytes| bytes + line.len()).filter(|bytes| *bytes <= BYTES_MAX);
        self.bytes = match added {
            // A file that was removed, or a disk that was full for a moment, is no reason to give up yet.
            Some(bytes) if self.append(line).is_ok() => Some(bytes),
            _ => {
                self.write_anew(line)?;
                Some(line.len())
            }
        };
        Ok(())
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        own_file::open(&self.path, OpenOptions::new().append(true))?.write_all(line)
    }

    fn write_anew(&mut self, line: &[u8]) -> io::Result<()> {
        if self.before == Before::Unread {
            match fs::rename(&self.path, self.path.with_extension("unreadable")) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => self.before = Before::Read,
            }
        }
        let staging = self.path.with_extension("new");
        let written = own_file::create_staging(&staging)
            .and_then(|mut file| file.write_all(line))
            .and_then(|()| fs::rename(&staging, &self.path));
        written.inspect_err(|_| drop(fs::remove_file(&staging)))
    }
}

/// The last record that was written whole: the one behind it may have been cut off by the end of its writer. A line feed ends
/// a whole one; of the last one, it alone may be missing.
fn last_whole(text: &[u8]) -> Result<Entry, Unread> {
    let mut lines = text.rsplit(|byte| *byte == b'\n');
    let cut_off = lines.next().unwrap_or_default();
    let whole = lines.next();
    if serde_json::from_slice::<IgnoredAny>(cut_off).is_ok() {
        return decode(cut_off);
    }
    decode(whole.ok_or(Unread::Damaged)?)
}

fn decode(line: &[u8]) -> Result<Entry, Unread> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_slice(line) {
        Ok(Versioned { version: VERSION }) => serde_json::from_slice(line).map_err(Unread::Unknown),
        Ok(Versioned { version }) => Err(Unread::Version(version)),
        Err(_) => Err(Unread::Damaged),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = own_file::open(path, OpenOptions::new().read(true))?;
    let mut bytes = Vec::new();
    if file.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes)? as u64 > READ_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is far too long"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(retiring: u32) -> Record {
        let id = |pid| ProcessId { pid, start_time: 7 };
        Record {
            lineage: Some(Lineage::new("/bin/a".into())),
            daemon: Some(id(2)),
            retiring: (0..retiring).map(id).collect(),
            data_dir: Some(Place { path: "/d".into(), identity: Identity { device: 3, inode: u64::MAX } }),
        }
    }

    #[test]
    fn what_was_written_is_read_and_only_where_it_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ServiceConfig::new(dir.path(), "/bin/a");
        let (mut ledger, nothing) = Ledger::open(&config);
        assert_eq!(nothing, Record::default());
        let record = record(2);
        ledger.write(&record);
        assert_eq!(Ledger::open(&config).1, record);
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);

        let of_another_boot = Ledger { boot_id: "x".into(), ..Ledger::open(&config).0 };
        assert_eq!(of_another_boot.read().unwrap(), None);
        config.binary = "/bin/b".into();
        assert_eq!(Ledger::open(&config).1, Record { lineage: None, ..record.clone() }, "its processes are still ours");
        config.binary = "/bin/a".into();

        std::fs::write(dir.path().join("service"), "{").unwrap();
        assert_eq!(Ledger::open(&config).1, Record::default());
        ledger.clear();
        ledger.write(&record);
        assert_eq!(Ledger::open(&config).1, record);
        ledger.clear();
        assert_eq!(Ledger::open(&config).1, Record::default());
    }

    /// Whatever a build of the future writes: an older record would name a daemon that is gone.
    #[test]
    fn a_whole_record_that_is_not_understood_is_named_and_kept_and_no_older_one_counts() {
        for newer in [
            "{\"version\":2}\n",
            "{\"version\":2,\"all\":\"else is new\"}",
            "{\"version\":1,\"boot_id\":7}\n",
            "\"nothing of ours\"\n",
            "garbage\n",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let config = ServiceConfig::new(dir.path(), "/bin/a");
            let path = dir.path().join("service");
            Ledger::open(&config).0.write(&record(1));
            let text = [fs::read(&path).unwrap(), newer.into()].concat();
            fs::write(&path, &text).unwrap();

            let (mut ledger, found) = Ledger::open(&config);
            assert_eq!(found, Record::default(), "{newer}");
            let why = ledger.read().unwrap_err().to_string();
            assert_eq!(why.contains("newer build"), newer.contains("version"), "{why}");
            assert_eq!(fs::read(&path).unwrap(), text, "it is left alone as long as nothing is to be written");
            ledger.write(&record(2));
            ledger.write(&record(3));
            assert_eq!(Ledger::open(&config).1, record(3));
            assert_eq!(fs::read(dir.path().join("service.unreadable")).unwrap(), text);
        }
    }

    #[test]
    fn what_somebody_put_in_its_place_is_neither_waited_for_nor_followed() {
        let dir = tempfile::tempdir().unwrap();
        let config = ServiceConfig::new(dir.path(), "/bin/a");
        let (path, staging) = (dir.path().join("service"), dir.path().join("service.new"));
        let precious = dir.path().join("precious");
        fs::write(&precious, "another's").unwrap();
        let pipe = |at: &Path| {
            rustix::fs::mkfifoat(rustix::fs::CWD, at, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        };
        let link = |at: &Path| std::os::unix::fs::symlink(&precious, at).unwrap();
        for put in [&pipe as &dyn Fn(&Path), &link] {
            put(&path);
            put(&staging);
            let (mut ledger, found) = Ledger::open(&config);
            assert_eq!(found, Record::default());
            ledger.write(&record(1));
            assert_eq!(Ledger::open(&config).1, record(1));
            // While it runs: what can't be added to is replaced.
            fs::remove_file(&path).unwrap();
            put(&path);
            ledger.write(&record(2));
            assert_eq!(Ledger::open(&config).1, record(2));
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "another's");
    }

    #[test]
    fn a_record_that_was_cut_off_leaves_the_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = ServiceConfig::new(dir.path(), "/bin/a");
        let path = dir.path().join("service");
        let mut ledger = Ledger::open(&config).0;
        ledger.write(&record(1));
        let first = fs::read(&path).unwrap().len();
        ledger.write(&record(2));
        let whole = fs::read(&path).unwrap();
        for length in first..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let (mut next, found) = Ledger::open(&config);
            // Only the end of the line is missing.
            assert_eq!(found, record(if length < whole.len() - 1 { 1 } else { 2 }), "{length} bytes");
            next.write(&record(3));
            next.write(&record(4));
            assert_eq!(Ledger::open(&config).1, record(4), "{length} bytes");
        }
    }

    #[test]
    fn a_record_that_could_not_be_added_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let config = ServiceConfig::new(dir.path(), "/bin/a");
        let mut ledger = Ledger::open(&config).0;
        ledger.write(&record(1));
        fs::remove_file(dir.path().join("service")).unwrap();
        ledger.write(&record(2));
        assert_eq!(Ledger::open(&config).1, record(2));
    }

    #[test]
    fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let config = ServiceConfig::new(dir.path(), "/bin/a");
        let mut ledger = Ledger::open(&config).0;
        let mut lengths = Vec::new();
        while lengths.is_sorted() {
            ledger.write(&record(lengths.len() as u32 % 5));
            lengths.push(dir.path().join("service").metadata().unwrap().len());
            assert_eq!(Ledger::open(&config).1, record((lengths.len() as u32 - 1) % 5));
        }
        assert!(lengths.iter().all(|length| *length <= BYTES_MAX as u64));
        assert!(lengths.len() > 100, "it is added to: {lengths:?}");
    }

    #[test]
    fn what_could_not_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(&ServiceConfig::new(dir.path(), "/bin/a"));
        // Nothing can be renamed over a directory.
        fs::create_dir(dir.path().join("service")).unwrap();
        ledger.write(&Record::default());
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }
}
