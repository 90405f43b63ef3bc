//! What a service that is started again must know besides the journal: its builds, its daemon, and who is still to leave.
//!
//! One JSON object in `<state-dir>/service`, written whole and renamed into place, without waiting for the disk: it serves a
//! service that died while the machine lived. After a boot all that it names is gone, and the configuration counts. With
//! another binary in the configuration the operator has decided anew; the processes are still this service's.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use handoff_proto::ProcessId;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::builds::Lineage;
use super::config::ServiceConfig;
use crate::process::Process;

const VERSION: u32 = 1;
/// Far more than any service has.
const BYTES_MAX: u64 = 1 << 20;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// None, and the configuration counts.
    pub(super) lineage: Option<Lineage>,
    /// The daemon that was started or adopted last.
    pub(super) daemon: Option<ProcessId>,
    /// Processes that were told to leave.
    pub(super) retiring: Vec<ProcessId>,
}

impl Record {
    pub(super) fn names(&self, process: ProcessId) -> bool {
        self.daemon == Some(process) || self.retiring.contains(&process)
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
        let ledger = Self { path, boot_id, configured: config.binary.clone() };
        let record = ledger.read().unwrap_or_default();
        (ledger, record)
    }

    /// Remembers this. That it can't is no reason to stop: what is lost is told.
    pub(super) fn write(&self, record: &Record) {
        if let Err(error) = self.try_write(record) {
            warn!(path = %self.path.display(), %error, "builds and processes can't be written down; a restart would not know them");
        }
    }

    /// Remembers nothing any more.
    pub(super) fn clear(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                warn!(path = %self.path.display(), %error, "a file could not be removed");
            }
            _ => {}
        }
    }

    fn read(&self) -> Option<Record> {
        let text = match read_bounded(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "what the service before this one knew can't be read");
                return None;
            }
        };
        let entry: Entry = serde_json::from_slice(&text)
            .inspect_err(
                |error| warn!(path = %self.path.display(), %error, "what the service before this one knew is unreadable"),
            )
            .ok()?;
        let id = |id: Id| ProcessId { pid: id.pid, start_time: id.start_time };
        (entry.version == VERSION && entry.boot_id == self.boot_id).then(|| Record {
            lineage: entry.builds.filter(|_| entry.configured == self.configured),
            daemon: entry.daemon.map(id),
            retiring: entry.retiring.into_iter().map(id).collect(),
        })
    }

    fn try_write(&self, record: &Record) -> io::Result<()> {
        let id = |id: ProcessId| Id { pid: id.pid, start_time: id.start_time };
        let entry = Entry {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            configured: self.configured.clone(),
            builds: record.lineage.clone(),
            daemon: record.daemon.map(id),
            retiring: record.retiring.iter().copied().map(id).collect(),
        };
        let staging = self.path.with_extension("new");
        let written = fs::write(&staging, serde_json::to_vec(&entry)?).and_then(|()| fs::rename(&staging, &self.path));
        written.inspect_err(|_| drop(fs::remove_file(&staging)))
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if path.metadata()?.len() > BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is far too long"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_only_where_it_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ServiceConfig::new(dir.path(), "/bin/a");
        let (ledger, nothing) = Ledger::open(&config);
        assert_eq!(nothing, Record::default());
        let id = |pid| ProcessId { pid, start_time: 7 };
        let lineage = Some(Lineage::new("/bin/a".into()));
        let record = Record { lineage, daemon: Some(id(2)), retiring: vec![id(3), id(4)] };
        ledger.write(&record);
        assert_eq!(Ledger::open(&config).1, record);
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);

        let of_another_boot = Ledger { boot_id: "x".into(), ..Ledger::open(&config).0 };
        assert_eq!(of_another_boot.read(), None);
        config.binary = "/bin/b".into();
        assert_eq!(Ledger::open(&config).1, Record { lineage: None, ..record.clone() }, "its processes are still ours");
        config.binary = "/bin/a".into();

        std::fs::write(dir.path().join("service"), "{").unwrap();
        assert_eq!(Ledger::open(&config).1, Record::default());
        ledger.write(&record);
        ledger.clear();
        assert_eq!(Ledger::open(&config).1, Record::default());
    }

    #[test]
    fn what_could_not_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(&ServiceConfig::new(dir.path(), "/bin/a"));
        // Nothing can be renamed over a directory.
        fs::create_dir(dir.path().join("service")).unwrap();
        ledger.write(&Record::default());
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }
}
