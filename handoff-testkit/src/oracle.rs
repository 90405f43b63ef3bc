//! The promises as checks on what is left on disk: reads the clients' logs of acknowledged writes and the store's log, and
//! counts what must be 0. It runs in a process of its own after the end, and changes nothing.
//!
//! It needs the whole log: a store whose checkpoints delete old segments keeps them when it is told to
//! ([`LogRetention::Whole`](crate::store::LogRetention::Whole), `--log whole` of the daemon).
//!
//! It reads the store's log more leniently than the store does: what the store would refuse is here to be counted.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::store::{LogReader, Next, Payload, Result, Store, StoreError, list_segments};

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Writes that the clients were told were done.
    pub acked: u64,
    /// Those of them that are not in the store's log (promise 3).
    pub acked_lost: u64,
    /// Writes that are in it once more than they should be.
    pub duplicated: u64,
    /// Records that stand behind one of a newer epoch: somebody wrote who no longer owned the data (promise 1).
    pub two_writers: u64,
    /// Places where the log is damaged. A torn tail is one, and no fault after a crash.
    pub damaged: u64,
    /// Keys whose count, in the store as it opens from disk, is not what the log says.
    pub miscounted: u64,
    /// Increments in the log.
    pub writes: u64,
    /// Epochs that wrote them: how many owners there were.
    pub epochs: u64,
    /// Why the store does not open, if it does not.
    pub unreadable: Option<String>,
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        let faults = [self.acked_lost, self.duplicated, self.two_writers, self.miscounted];
        faults.iter().all(|fault| *fault == 0) && self.unreadable.is_none()
    }
}

/// Checks the store in `data_dir` against what a [load](crate::load) was told, as logged in `acks_dir`. Nobody may be
/// writing to either.
///
/// # Errors
/// A file can't be read. What is wrong with what it says is in the verdict.
pub fn verify(acks_dir: &Path, data_dir: &Path) -> Result<Verdict> {
    let log = read_log(data_dir)?;
    let acks = read_acks(acks_dir)?;
    let mut verdict = Verdict {
        acked: acks.len() as u64,
        acked_lost: acks.iter().filter(|ack| !log.writes.contains(*ack)).count() as u64,
        ..log.verdict
    };
    match Store::look(data_dir) {
        Ok(state) => {
            let keys: HashSet<&String> = state.signals.keys().chain(log.counts.keys()).collect();
            let differs = |key: &&&String| state.get(key) != log.counts.get(**key).copied().unwrap_or_default();
            verdict.miscounted = keys.iter().filter(differs).count() as u64;
        }
        Err(error) => verdict.unreadable = Some(error.to_string()),
    }
    Ok(verdict)
}

/// The program: its arguments are its name, the directory of the clients' logs and the data directory. Prints the verdict as one line of JSON. Exit status 0 when all promises were
/// kept, 1 when not, 2 when that can't be told.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<PathBuf> = args.into_iter().skip(1).map(PathBuf::from).collect();
    let [acks_dir, data_dir] = args.as_slice() else {
        eprintln!("usage: verify ACKS_DIR DATA_DIR");
        return ExitCode::from(2);
    };
    let verdict = match verify(acks_dir, data_dir) {
        Ok(verdict) => verdict,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match serde_json::to_string(&verdict) {
        Ok(json) => println!("{json}"),
        Err(error) => eprintln!("{error}"),
    }
    ExitCode::from(u8::from(!verdict.is_clean()))
}

#[derive(Default)]
struct Log {
    verdict: Verdict,
    /// Token and key, as a client logs them.
    writes: HashSet<String>,
    counts: HashMap<String, u64>,
    newest_epoch: u64,
}

fn read_log(data_dir: &Path) -> Result<Log> {
    let mut log = Log::default();
    let segments = list_segments(data_dir)?;
    if let Some(first) = segments.first().filter(|first| first.number > 0) {
        let gone = std::io::Error::other("the log's beginning was deleted; the store must be told to keep it");
        return Err(reading(&first.path, gone));
    }
    for segment in segments {
        if let Some(reader) = LogReader::open(&segment.path)? {
            log.read(reader).map_err(|error| reading(&segment.path, error))?;
        }
    }
    Ok(log)
}

impl Log {
    fn read(&mut self, mut reader: LogReader) -> std::io::Result<()> {
        loop {
            let record = match reader.next()? {
                Next::Record(record) => record,
                Next::End => return Ok(()),
                Next::Damage => {
                    self.verdict.damaged += 1;
                    if reader.skip_damage()? {
                        continue;
                    }
                    return Ok(());
                }
            };
            self.verdict.two_writers += u64::from(record.stamp.epoch < self.newest_epoch);
            if let Payload::Increment { key, token } = record.payload {
                self.verdict.epochs += u64::from(record.stamp.epoch > self.newest_epoch);
                self.take(key, &token);
            }
            self.newest_epoch = self.newest_epoch.max(record.stamp.epoch);
        }
    }

    fn take(&mut self, key: String, token: &str) {
        self.verdict.writes += 1;
        let fresh = token.is_empty() || self.writes.insert(format!("{token} {key}"));
        self.verdict.duplicated += u64::from(!fresh);
        *self.counts.entry(key).or_default() += 1;
    }
}

/// Every line of every file, each a token and a key. The last line of a client that was killed may be torn.
fn read_acks(dir: &Path) -> Result<HashSet<String>> {
    let mut acks = HashSet::new();
    for entry in fs::read_dir(dir).map_err(|error| reading(dir, error))? {
        let path = entry.map_err(|error| reading(dir, error))?.path();
        let text = fs::read_to_string(&path).map_err(|error| reading(&path, error))?;
        acks.extend(text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned));
    }
    Ok(acks)
}

fn reading(path: &Path, error: std::io::Error) -> StoreError {
    StoreError::io(format!("reading {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LOG_NAME;

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        /// Three acknowledged writes under epoch 1, sealed.
        fn new() -> Self {
            let bench = Self { dir: tempfile::tempdir().expect("a directory") };
            fs::create_dir(bench.acks()).expect("made");
            let store = bench.open(1);
            for token in ["c.1", "c.2", "c.3"] {
                bench.write(&store, token);
            }
            store.seal().expect("sealed");
            bench
        }

        fn acks(&self) -> PathBuf {
            self.dir.path().join("acks")
        }

        fn log(&self) -> PathBuf {
            self.dir.path().join("data").join(LOG_NAME)
        }

        fn open(&self, epoch: u64) -> Store {
            Store::open(&self.dir.path().join("data"), epoch).expect("opens")
        }

        fn write(&self, store: &Store, token: &str) {
            store.increment_with_token("key", token).expect("written");
            self.acknowledge(token);
        }

        fn acknowledge(&self, token: &str) {
            let path = self.acks().join("acks-c.log");
            let logged = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, format!("{logged}{token} key\n")).expect("logged");
        }

        fn verdict(&self) -> Verdict {
            verify(&self.acks(), &self.dir.path().join("data")).expect("readable")
        }
    }

    const CLEAN: Verdict = Verdict {
        acked: 3,
        acked_lost: 0,
        duplicated: 0,
        two_writers: 0,
        damaged: 0,
        miscounted: 0,
        writes: 3,
        epochs: 1,
        unreadable: None,
    };

    #[test]
    fn kept_promises_are_clean() {
        let bench = Bench::new();
        assert_eq!(bench.verdict(), CLEAN);
        assert!(bench.verdict().is_clean());
        let store = bench.open(2);
        bench.write(&store, "c.4");
        store.increment_with_token("key", "unanswered").expect("written");
        assert_eq!(bench.verdict(), Verdict { acked: 4, writes: 5, epochs: 2, ..CLEAN });
    }

    #[test]
    fn a_lost_write_is_counted() {
        let bench = Bench::new();
        bench.acknowledge("c.4");
        assert_eq!(bench.verdict(), Verdict { acked: 4, acked_lost: 1, ..CLEAN });
        assert!(!bench.verdict().is_clean());
    }

    #[test]
    fn a_record_dropped_from_the_log_is_a_lost_write() {
        let bench = Bench::new();
        let bytes = fs::read(bench.log()).expect("the log");
        let record = (bytes.len() - 16) / 16; // somewhere within the first record
        let mut dropped = bytes.clone();
        dropped[16 + record.min(20)] ^= 1;
        fs::write(bench.log(), dropped).expect("damaged");
        let verdict = bench.verdict();
        assert_eq!((verdict.acked_lost, verdict.damaged), (1, 1));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_write_applied_twice_is_counted() {
        let bench = Bench::new();
        bench.open(2).increment_with_token("key", "c.2").expect("written");
        assert_eq!(bench.verdict(), Verdict { duplicated: 1, writes: 4, epochs: 2, ..CLEAN });
        assert!(!bench.verdict().is_clean());
    }

    #[test]
    fn two_writers_are_counted() {
        let bench = Bench::new();
        let (old, new) = (bench.open(2), bench.open(3));
        bench.write(&new, "n.1");
        bench.write(&old, "o.1");
        bench.write(&old, "o.2");
        bench.write(&new, "n.2");
        let verdict = bench.verdict();
        assert_eq!((verdict.two_writers, verdict.acked_lost), (2, 0), "both are seen, none is overwritten");
        assert!(verdict.unreadable.is_some(), "and the store refuses to open it");
    }

    #[test]
    fn a_wrong_ledger_in_the_seal_is_counted() {
        let bench = Bench::new();
        let store = bench.open(2);
        store.miscount("key");
        store.seal().expect("sealed");
        assert_eq!(bench.verdict(), Verdict { miscounted: 1, ..CLEAN });
        assert!(!bench.verdict().is_clean());
    }

    #[test]
    fn a_torn_line_of_a_killed_client_is_no_acknowledgement() {
        let bench = Bench::new();
        fs::write(bench.acks().join("acks-d.log"), "d.1 ke").expect("logged");
        assert_eq!(bench.verdict(), CLEAN);
    }
}
