//! Where it is looked: the lease, the history and the journal, and whether the processes live.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff_journal::{History, HistoryEntry, StateJournal};
use handoff_lock::WatchedLease;
use handoff_proto::{LeaseState, LeaseView, ProcessId};
use rustix::event::{PollFd, PollFlags};

use super::{Came, Found, Order, Recorded, Seen, Side, Successor, left_alone};
use crate::ownership;
use crate::process::Process;
use crate::sys::poll;

/// The pauses between two looks: a process that dies ends one early, a lease or a history that is written does not.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// So many handovers back ours is looked for.
const ENTRIES_MAX: usize = 32;

/// All that is looked at.
pub(super) struct Place<'a> {
    order: &'a Order,
    supervisor: Option<&'a Process>,
    lease: Option<WatchedLease>,
    history: PathBuf,
    /// Size and inode of the history that was read last.
    read: Option<(u64, u64)>,
    entry: Option<HistoryEntry>,
    old: Option<Process>,
    journal: PathBuf,
    /// The supervisor of the order can't have written it any more when it was read last.
    journal_is_final: bool,
    started: Started,
    epoch: Option<u64>,
    pause: Duration,
}

/// What is known of the successor.
enum Started {
    Never,
    Unknown,
    /// It was, and this is it; none if it is dead.
    Was(ProcessId, Option<Process>),
}

impl<'a> Place<'a> {
    pub(super) fn new(order: &'a Order, supervisor: Option<&'a Process>, state_dir: &Path) -> Self {
        Self {
            order,
            supervisor,
            lease: order.data_dir.as_deref().map(WatchedLease::new),
            history: state_dir.join("history"),
            read: None,
            entry: None,
            old: find(order.old),
            journal: state_dir.join("journal"),
            journal_is_final: false,
            started: Started::Unknown,
            epoch: None,
            pause: FIRST_PAUSE,
        }
    }

    /// Takes one look, at the supervisor first.
    pub(super) fn look(&mut self) -> Seen {
        let supervisor_lives = self.supervisor.is_some_and(lives);
        self.read_journal(supervisor_lives);
        let lease = self.lease();
        let old_lives = self.old.as_ref().is_some_and(lives);
        let successor = self.successor();
        let serving = match lease {
            Some(lease) => self.active(&lease),
            None => left_alone(old_lives, successor),
        };
        self.epoch = lease.map(|lease| lease.epoch);
        Seen { supervisor_lives, recorded: self.recorded(), serving, old_lives, successor }
    }

    /// Until a process dies, or for a moment.
    pub(super) fn wait(&mut self, until: Instant) {
        let successor = match &self.started {
            Started::Was(_, Some(process)) => Some(process.as_fd()),
            _ => None,
        };
        let watched = [self.supervisor.map(AsFd::as_fd), self.old.as_ref().map(AsFd::as_fd), successor];
        let mut fds: Vec<_> =
            watched.into_iter().flatten().filter(lives).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let left = until.saturating_duration_since(Instant::now());
        // An error is the system's; the next look says the same as this one, and the bound holds.
        let _ = poll::wait(&mut fds, Some(self.pause.min(left)));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    pub(super) fn found(&self, came: Came) -> Found {
        let by_history = self.entry.as_ref();
        let new_pid = match self.started {
            Started::Was(id, _) => Some(id.pid),
            Started::Never | Started::Unknown => by_history.and_then(|entry| entry.new_pid),
        };
        Found { came, new_pid, epoch: self.epoch.or_else(|| by_history.and_then(|entry| entry.epoch)) }
    }

    /// Not once more after its supervisor's death: the next one uses it for itself.
    fn read_journal(&mut self, supervisor_lives: bool) {
        if self.journal_is_final {
            return;
        }
        self.journal_is_final = !supervisor_lives;
        match started(self.order, &self.journal) {
            Started::Unknown => {}
            known => self.started = known,
        }
    }

    /// None where there is none that can be read.
    fn lease(&mut self) -> Option<LeaseView> {
        let lease = self.lease.as_mut()?.read().ok().flatten().as_ref().and_then(ownership::view)?;
        // It names the successor, also where the journal does not.
        if lease.owner != self.order.old
            && lease.handoff_id == Some(self.order.handoff_id)
            && !matches!(self.started, Started::Was(id, _) if id == lease.owner)
        {
            self.started = Started::Was(lease.owner, find(lease.owner));
        }
        Some(lease)
    }

    /// The process that the lease calls Active, if it is alive.
    fn active(&self, lease: &LeaseView) -> Option<Side> {
        let (side, process) = match &self.started {
            _ if lease.owner == self.order.old => (Side::Old, self.old.as_ref()),
            Started::Was(id, process) if *id == lease.owner => (Side::New, process.as_ref()),
            _ => return (lease.state == LeaseState::Active).then_some(Side::Another),
        };
        (lease.state == LeaseState::Active && process.is_some_and(lives)).then_some(side)
    }

    fn successor(&self) -> Successor {
        match &self.started {
            Started::Never => Successor::NeverStarted,
            Started::Unknown => Successor::Unknown,
            Started::Was(_, process) if process.as_ref().is_some_and(lives) => Successor::Lives,
            Started::Was(..) => Successor::Gone,
        }
    }

    /// Reads the history when it has grown.
    fn recorded(&mut self) -> Option<Recorded> {
        let now = fs::metadata(&self.history).ok().map(|metadata| (metadata.len(), metadata.ino()));
        if now != self.read {
            self.read = now;
            let recent = History::new(&self.history).newest(ENTRIES_MAX).unwrap_or_default();
            self.entry = recent.entries.into_iter().find(|entry| entry.handoff_id == Some(self.order.handoff_id));
        }
        let entry = self.entry.as_ref()?;
        Some(if entry.committed { Recorded::Committed } else { Recorded::Undone })
    }
}

/// What the journal says of the successor. A record of another handover, or none, says nothing of ours: it may be over.
fn started(order: &Order, journal: &Path) -> Started {
    let Ok(Some(record)) = StateJournal::read(journal) else { return Started::Unknown };
    if record.handoff_id != order.handoff_id {
        return Started::Unknown;
    }
    match (record.successor_pid, record.details.successor_start_time) {
        (Some(pid), Some(start_time)) => {
            let id = ProcessId { pid, start_time };
            Started::Was(id, find(id))
        }
        _ => Started::Never,
    }
}

/// None if it is dead. One that can't be opened counts as dead: nothing could be seen of it.
fn find(id: ProcessId) -> Option<Process> {
    Process::find(id).ok().flatten()
}

/// Whether a pidfd's process is alive, pidfd_open(2).
fn lives(process: &impl AsFd) -> bool {
    let process: BorrowedFd<'_> = process.as_fd();
    let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    poll::wait(&mut fds, Some(Duration::ZERO)).is_err() || fds[0].revents().is_empty()
}
