//! The audit of the reference store: reads the clients' logs and the store's log, opens the store, and says what is on disk. It
//! runs in a process of its own after the end, and changes nothing.
//!
//! It needs the whole log: a store whose checkpoints delete old segments keeps them when it is told to
//! ([`LogRetention::Whole`](crate::store::LogRetention::Whole), `--log whole` of the daemon).
//!
//! It reads the store's log more leniently than the store does: what the store would refuse is here to be counted.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::audit::{OnDisk, Written};
use crate::store::{LogReader, Next, Payload, Result, Store, StoreError, list_segments};

/// Compares the store in `data_dir` with what the clients of a [load](crate::load) have logged in `acks_dir`. Nobody may be writing
/// to either.
///
/// # Errors
/// A file can't be read. What is wrong with what it says is in the result.
pub fn verify(acks_dir: &Path, data_dir: &Path) -> Result<OnDisk> {
    let log = Log::read(data_dir)?;
    let checks = log.failed_checks(data_dir);
    OnDisk::compare(acks_dir, &log.written, checks).map_err(|error| reading(acks_dir, error))
}

/// The program: its arguments are its name, the directory of the clients' logs and the data directory. Prints what is on disk as one
/// line of JSON. Exit status 2 when that can't be told.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<PathBuf> = args.into_iter().skip(1).map(PathBuf::from).collect();
    let [acks_dir, data_dir] = args.as_slice() else {
        eprintln!("usage: verify ACKS_DIR DATA_DIR");
        return ExitCode::from(2);
    };
    let found = verify(acks_dir, data_dir).map_err(|error| error.to_string());
    match found.and_then(|found| serde_json::to_string(&found).map_err(|error| error.to_string())) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// What the store's log says, record by record.
#[derive(Debug, Default)]
pub struct Log {
    /// The increments that have a token, in the order in which they stand there.
    pub written: Vec<Written>,
    /// Places where the log is damaged. A torn tail is one, and no fault after a crash.
    pub damaged: u64,
    counts: HashMap<String, u64>,
    newest_epoch: u64,
    /// Other records than increments of a former owner.
    of_a_former_owner: u64,
    /// Tokens that are no client's.
    foreign: u64,
}

impl Log {
    /// Reads all segments.
    ///
    /// # Errors
    /// A file can't be read, or the log's beginning was deleted.
    pub fn read(data_dir: &Path) -> Result<Self> {
        let mut log = Self::default();
        let segments = list_segments(data_dir)?;
        if let Some(first) = segments.first().filter(|first| first.number > 0) {
            let gone = std::io::Error::other("the log's beginning was deleted; the store must be told to keep it");
            return Err(reading(&first.path, gone));
        }
        for segment in segments {
            if let Some(reader) = LogReader::open(&segment.path)? {
                log.take_all(reader).map_err(|error| reading(&segment.path, error))?;
            }
        }
        Ok(log)
    }

    fn take_all(&mut self, mut reader: LogReader) -> std::io::Result<()> {
        loop {
            match reader.next()? {
                Next::Record(record) => self.take(record.stamp.epoch, record.payload),
                Next::End => return Ok(()),
                Next::Damage => {
                    self.damaged += 1;
                    if !reader.skip_damage()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn take(&mut self, epoch: u64, payload: Payload) {
        match payload {
            Payload::Increment { key, token } => {
                if !token.is_empty() {
                    match token.parse() {
                        Ok(token) => self.written.push(Written { token, epoch: Some(epoch), pid: None }),
                        Err(_) => self.foreign += 1,
                    }
                }
                *self.counts.entry(key).or_default() += 1;
            }
            _ => self.of_a_former_owner += u64::from(epoch < self.newest_epoch),
        }
        self.newest_epoch = self.newest_epoch.max(epoch);
    }

    /// What is wrong with the store as it opens from disk, and with the log by itself.
    fn failed_checks(&self, data_dir: &Path) -> Vec<String> {
        let mut failed = Vec::new();
        if self.of_a_former_owner > 0 {
            failed.push(format!("{} records of a former owner", self.of_a_former_owner));
        }
        if self.foreign > 0 {
            failed.push(format!("{} writes with a token of no client", self.foreign));
        }
        match Store::look(data_dir) {
            Ok(state) => {
                let keys: HashSet<&String> = state.signals.keys().chain(self.counts.keys()).collect();
                let differs = |key: &&&String| state.get(key) != self.counts.get(**key).copied().unwrap_or_default();
                let miscounted = keys.iter().filter(differs).count();
                if miscounted > 0 {
                    failed.push(format!("{miscounted} keys count differently in the reopened store than in its log"));
                }
            }
            Err(error) => failed.push(format!("the store does not open: {error}")),
        }
        failed
    }
}

fn reading(path: &Path, error: std::io::Error) -> StoreError {
    StoreError::io(format!("reading {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::audit::Verdict;
    use crate::load::{Cost, Counts, Seen};
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
            for token in 1..=3 {
                bench.write(&store, token);
            }
            store.seal().expect("sealed");
            bench
        }

        fn acks(&self) -> PathBuf {
            self.dir.path().join("acks")
        }

        fn data(&self) -> PathBuf {
            self.dir.path().join("data")
        }

        fn log(&self) -> PathBuf {
            self.data().join(LOG_NAME)
        }

        fn open(&self, epoch: u64) -> Store {
            Store::open(&self.data(), epoch).expect("opens")
        }

        fn write(&self, store: &Store, token: u64) {
            self.note(&format!("+{token}\n"));
            store.increment_with_token("key", &token.to_string()).expect("written");
            self.note(&format!("={token}\n"));
        }

        fn note(&self, line: &str) {
            let path = self.acks().join("acks-c.log");
            let logged = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, logged + line).expect("logged");
        }

        fn found(&self) -> OnDisk {
            verify(&self.acks(), &self.data()).expect("readable")
        }

        fn problems(&self) -> Vec<String> {
            let seen = Seen { counts: Counts::default(), acks_dir: self.acks() };
            Verdict::new(&seen, self.found(), Cost::NOTHING).problems()
        }
    }

    #[test]
    fn kept_promises_are_clean() {
        let bench = Bench::new();
        assert_eq!(bench.problems(), [""; 0]);
        let store = bench.open(2);
        bench.write(&store, 4);
        bench.note("+5\n");
        store.increment_with_token("key", "5").expect("written");
        assert_eq!(bench.problems(), [""; 0], "sent, not acknowledged, and done");
        let found = bench.found();
        assert_eq!((found.acked, found.writes, found.epochs, found.two_writers), (4, 5, 2, Some(0)));
        assert_eq!(found.two_pids, None, "the log has no pids");
    }

    #[test]
    fn a_lost_write_is_counted() {
        let bench = Bench::new();
        bench.note("+4\n=4\n");
        assert_eq!(bench.problems(), ["1 acknowledged writes are lost"]);
    }

    #[test]
    fn a_record_dropped_from_the_log_is_a_lost_write() {
        let bench = Bench::new();
        let mut bytes = fs::read(bench.log()).expect("the log");
        bytes[16 + 20] ^= 1; // somewhere within the first record
        fs::write(bench.log(), bytes).expect("damaged");
        assert_eq!(bench.found().acked_lost, 1);
        assert_eq!(Log::read(&bench.data()).expect("readable").damaged, 1);
    }

    #[test]
    fn a_write_applied_twice_or_sent_by_nobody_is_counted() {
        let bench = Bench::new();
        let store = bench.open(2);
        store.increment_with_token("key", "2").expect("written");
        assert_eq!(bench.problems(), ["1 writes are there twice"]);
        store.increment_with_token("key", "77").expect("written");
        store.increment_with_token("key", "somebody's").expect("written");
        assert_eq!(bench.problems().len(), 3);
    }

    #[test]
    fn two_writers_are_counted() {
        let bench = Bench::new();
        let (old, new) = (bench.open(2), bench.open(3));
        bench.write(&new, 4);
        bench.write(&old, 5);
        bench.write(&old, 6);
        bench.write(&new, 7);
        let found = bench.found();
        assert_eq!((found.two_writers, found.acked_lost), (Some(2), 0), "both are seen, none is overwritten");
        assert!(found.failed_checks[0].contains("does not open"), "{:?}", found.failed_checks);
    }

    #[test]
    fn a_wrong_ledger_in_the_seal_is_counted() {
        let bench = Bench::new();
        let store = bench.open(2);
        store.miscount("key");
        store.seal().expect("sealed");
        assert_eq!(bench.problems(), ["1 keys count differently in the reopened store than in its log"]);
    }

    #[test]
    fn a_torn_line_of_a_killed_client_is_no_acknowledgement() {
        let bench = Bench::new();
        fs::write(bench.acks().join("acks-d.log"), "+8\n=").expect("logged");
        assert_eq!(bench.problems(), [""; 0]);
    }
}
