//! The promises as checks on what is left on disk: compares what clients were told with what was written, and gives the one
//! [`Verdict`] on a service under load.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::load::{Cost, Counts, Seen, Told};

/// One write, as it stands on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// What the client sent.
    pub token: u64,
    /// The lock's epoch under which it was made, if the daemon notes that: writes of two owners that mix are found by it.
    pub epoch: Option<u64>,
    /// The process that made it, if the daemon notes that: two processes under one epoch are found by it.
    pub pid: Option<u32>,
}

impl Written {
    /// Of a daemon that notes neither epoch nor pid: then nobody looks for a second writer.
    pub fn plain(token: u64) -> Self {
        Self { token, epoch: None, pid: None }
    }
}

/// What the data on disk says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDisk {
    /// Writes that clients were told were done.
    pub acked: u64,
    /// Writes on disk.
    pub writes: u64,
    /// Acknowledged writes that are not on disk (promise 3).
    pub acked_lost: u64,
    /// Writes that are there once more than they should be.
    pub duplicated: u64,
    /// Writes of tokens that no client has sent.
    pub unknown: u64,
    /// Epochs that wrote: how many owners there were.
    pub epochs: u64,
    /// Writes that stand behind one of a newer epoch: somebody wrote who no longer owned the data (promise 1). `None`: not checked, since
    /// the daemon notes no epochs.
    pub two_writers: Option<u64>,
    /// Epochs under which more than one process wrote (promise 1). `None`: not checked.
    pub two_pids: Option<u64>,
    /// The named checks of the data that failed, and why.
    pub failed_checks: Vec<String>,
}

impl OnDisk {
    /// Compares what is on disk, in the order in which it was written, with what the clients have logged in `acks_dir`. Nobody may be
    /// writing to either.
    ///
    /// # Errors
    /// A log can't be read.
    pub fn compare(acks_dir: &Path, written: &[Written], failed_checks: Vec<String>) -> io::Result<Self> {
        let told = Told::read(acks_dir)?;
        let mut found = HashSet::with_capacity(written.len());
        let duplicated = written.iter().filter(|write| !found.insert(write.token)).count() as u64;
        Ok(Self {
            acked: told.acked.len() as u64,
            writes: written.len() as u64,
            acked_lost: told.acked.difference(&found).count() as u64,
            duplicated,
            unknown: found.difference(&told.sent).count() as u64,
            epochs: written.iter().filter_map(|write| write.epoch).collect::<HashSet<_>>().len() as u64,
            two_writers: former_owners(written),
            two_pids: shared_epochs(written),
            failed_checks,
        })
    }

    /// Every promise that it breaks; a line each.
    pub fn problems(&self) -> Vec<String> {
        let counted = [
            (self.acked_lost, "acknowledged writes are lost"),
            (self.duplicated, "writes are there twice"),
            (self.unknown, "writes are there that nobody sent"),
            (self.two_writers.unwrap_or(0), "writes of a former owner"),
            (self.two_pids.unwrap_or(0), "epochs with two writing processes"),
        ];
        let counted =
            counted.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        counted.chain(self.failed_checks.iter().cloned()).collect()
    }

    /// What nobody could look at, in words.
    pub fn not_checked(&self) -> Vec<&'static str> {
        let parts = [
            (self.two_writers.is_none(), "writes of a former owner (the daemon notes no epochs)"),
            (self.two_pids.is_none(), "two processes under one epoch (the daemon notes no pids)"),
        ];
        parts.into_iter().filter(|(missing, _)| *missing).map(|(_, what)| what).collect()
    }
}

/// Writes behind one of a newer epoch; `None` when a write has no epoch.
fn former_owners(written: &[Written]) -> Option<u64> {
    let mut newest = 0;
    written.iter().try_fold(0, |count, write| {
        let epoch = write.epoch?;
        newest = epoch.max(newest);
        Some(count + u64::from(epoch < newest))
    })
}

/// Epochs with more than one pid; `None` when a write has no epoch or no pid.
fn shared_epochs(written: &[Written]) -> Option<u64> {
    let mut pids: HashMap<u64, HashSet<u32>> = HashMap::new();
    for write in written {
        pids.entry(write.epoch?).or_default().insert(write.pid?);
    }
    Some(pids.values().filter(|pids| pids.len() > 1).count() as u64)
}

/// What became of a service under load: what its clients saw, and what is on disk.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// What the clients counted.
    pub clients: Counts,
    /// What the data says.
    pub disk: OnDisk,
    /// What the faults on the way may have cost.
    pub cost: Cost,
}

impl Verdict {
    /// On what clients have seen and what is on disk.
    pub fn new(seen: &Seen, disk: OnDisk, cost: Cost) -> Self {
        Self { clients: seen.counts.clone(), disk, cost }
    }

    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.problems().is_empty()
    }

    /// Every promise that was not; a line each. A load to which nothing was acknowledged proves nothing.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.clients.problems(self.cost);
        problems.extend((self.disk.acked == 0).then(|| "no write was acknowledged".to_owned()));
        problems.extend(self.disk.problems());
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Sent 1 to 4, of which 1 to 3 were acknowledged.
    fn on_disk(written: &[Written]) -> OnDisk {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("acks-a.log"), "+1\n=1\n+2\n=2\n+4\n").expect("logged");
        fs::write(dir.path().join("acks-b.log"), "+3\n=3\n+5").expect("logged, with a torn end");
        OnDisk::compare(dir.path(), written, Vec::new()).expect("readable")
    }

    fn by(writes: &[(u64, u64)]) -> Vec<Written> {
        let pid = |epoch: u64| Some(u32::try_from(epoch).expect("small") + 100);
        writes.iter().map(|(epoch, token)| Written { token: *token, epoch: Some(*epoch), pid: pid(*epoch) }).collect()
    }

    fn problems(writes: &[(u64, u64)]) -> Vec<String> {
        on_disk(&by(writes)).problems()
    }

    #[test]
    fn kept_promises_are_no_problem() {
        assert!(problems(&[(1, 1), (1, 2), (2, 3)]).is_empty());
        assert!(problems(&[(1, 1), (1, 2), (2, 3), (2, 4)]).is_empty(), "sent, not acknowledged, and done");
        let found = on_disk(&by(&[(1, 1), (1, 2), (2, 3)]));
        assert_eq!((found.acked, found.writes, found.epochs), (3, 3, 2));
        assert!(found.not_checked().is_empty());
    }

    #[test]
    fn what_is_missing_mixed_doubled_or_from_nowhere_is_counted() {
        assert_eq!(problems(&[(1, 1), (2, 3)]), ["1 acknowledged writes are lost"]);
        assert_eq!(problems(&[(1, 1), (2, 2), (1, 3), (2, 4)]), ["1 writes of a former owner"]);
        assert_eq!(problems(&[(1, 1), (1, 2), (2, 3), (2, 3)]), ["1 writes are there twice"]);
        assert_eq!(problems(&[(1, 1), (1, 2), (2, 3), (2, 9)]), ["1 writes are there that nobody sent"]);
    }

    #[test]
    fn two_processes_under_one_epoch_are_counted() {
        let mut written = by(&[(1, 1), (1, 2), (1, 3)]);
        written[1].pid = Some(7);
        assert_eq!(on_disk(&written).problems(), ["1 epochs with two writing processes"]);
    }

    #[test]
    fn what_is_not_noted_is_not_checked() {
        let found = on_disk(&[1, 2, 3].map(Written::plain));
        assert!(found.problems().is_empty());
        assert_eq!((found.two_writers, found.two_pids), (None, None));
        assert_eq!(found.not_checked().len(), 2);
    }

    #[test]
    fn nothing_acknowledged_proves_nothing_and_failed_checks_count() {
        let dir = tempfile::tempdir().expect("a directory");
        let nothing = OnDisk::compare(dir.path(), &[], Vec::new()).expect("readable");
        let seen = Seen { counts: Counts::default(), acks_dir: dir.path().into() };
        assert!(!Verdict::new(&seen, nothing, Cost::NOTHING).is_clean());
        let mut found = on_disk(&by(&[(1, 1), (1, 2), (2, 3)]));
        found.failed_checks.push("integrity_check: row 7 missing".into());
        assert_eq!(found.problems(), ["integrity_check: row 7 missing"]);
    }
}
