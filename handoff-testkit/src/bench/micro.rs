//! Single steps of a handover: the lock and the journal, this library's beside `beyond-handoff`'s and beside the bare calls.
//! The criterion benchmarks measure the same functions.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use handoff_journal::{HandoffId, Journal, Phase, StateJournal};
use handoff_lock::{Attempt, DataDirLock, Unlocked};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::AnyError;
use super::sides;
use super::slow_sync::SlowSync;

pub(super) const ROLE: &str = "bench-micro";

/// As long as a journal's slot.
const SLOT_BYTES: usize = 512;

/// The same step, done in three ways; microseconds, in the order of the rounds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// By this library.
    pub handoff: Vec<f64>,
    /// By `beyond-handoff`.
    pub peer: Vec<f64>,
    /// By the bare system calls.
    pub floor: Vec<f64>,
}

/// All steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// The data directory's lock, taken and released, from nothing to nothing.
    pub lock: Step,
    /// The same as it is done within a handover: here with what was opened before, and the pidfile, which is written later,
    /// left out; by the others as ever, since they have one way only.
    pub lock_in_a_handover: Step,
    /// A record of the journal, durable when it is done.
    pub journal: Step,
    /// A record of the journal that is not waited for. `beyond-handoff` has no such thing, and the floor is a bare write.
    pub journal_unsynced: Step,
}

/// Measures all steps in `dir`, in turns, in a process of its own, whose syncs are slower if they are to be.
///
/// # Errors
/// The process can't be run, or the disk refuses.
pub(super) fn measure(dir: &Path, rounds: u32, sync_delay: Option<Duration>) -> io::Result<Steps> {
    let slow_sync = sync_delay.map(|delay| SlowSync::start(&dir.join("slow"), delay)).transpose()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.env(crate::ROLE_VARIABLE, ROLE).arg(dir).arg(rounds.to_string());
    command.envs(slow_sync.as_ref().map(SlowSync::variable));
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other("the single steps could not be measured; why stands above"));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The role's `main`.
pub(super) fn main(args: &[std::ffi::OsString]) -> Result<(), AnyError> {
    let [_, dir, rounds] = args else { return Err("a directory and a number are wanted".into()) };
    let rounds = rounds.to_str().and_then(|rounds| rounds.parse().ok()).ok_or("not a number")?;
    Ok(sides::say(&steps(Path::new(dir), rounds)?)?)
}

fn steps(dir: &Path, rounds: u32) -> Result<Steps, AnyError> {
    let mut locks = Locks::new(dir)?;
    let mut journals = Journals::new(dir)?;
    let mut steps = Steps::default();
    for round in 0..rounds as usize {
        let Steps { lock, lock_in_a_handover, journal, journal_unsynced } = &mut steps;
        let ways: [Way<Locks>; 3] = [
            (|locks| locks.handoff(), &mut lock.handoff),
            (|locks| locks.peer(), &mut lock.peer),
            (|locks| locks.floor(), &mut lock.floor),
        ];
        take_turns(round, &mut locks, ways)?;
        let ways: [Way<Locks>; 3] = [
            (Locks::handoff_in_a_handover, &mut lock_in_a_handover.handoff),
            (|locks| locks.peer(), &mut lock_in_a_handover.peer),
            (|locks| locks.floor(), &mut lock_in_a_handover.floor),
        ];
        take_turns(round, &mut locks, ways)?;
        let ways: [Way<Journals>; 3] = [
            (Journals::handoff, &mut journal.handoff),
            (Journals::peer, &mut journal.peer),
            (Journals::floor, &mut journal.floor),
        ];
        take_turns(round, &mut journals, ways)?;
        let ways: [Way<Journals>; 2] = [
            (Journals::handoff_unsynced, &mut journal_unsynced.handoff),
            (Journals::floor_unsynced, &mut journal_unsynced.floor),
        ];
        take_turns(round, &mut journals, ways)?;
    }
    Ok(steps)
}

/// One way to do a step with its subject, and where its samples go.
type Way<'a, T> = (fn(&mut T) -> Result<(), AnyError>, &'a mut Vec<f64>);

/// Each way once, in another order each round: what the one before has left behind meets all of them.
fn take_turns<T, const N: usize>(round: usize, subject: &mut T, mut ways: [Way<'_, T>; N]) -> Result<(), AnyError> {
    ways.rotate_left(round % N);
    for (way, samples) in ways {
        let start = Instant::now();
        way(subject)?;
        samples.push(sides::us(start.elapsed()));
    }
    Ok(())
}

/// Three ways to lock a data directory, each on a directory of its own.
#[derive(Debug)]
pub struct Locks {
    handoff: PathBuf,
    /// Opened ahead, as both processes of a handover have it; `None` after a failure.
    opened: Option<Unlocked>,
    peer: PathBuf,
    floor: PathBuf,
}

impl Locks {
    /// Under `dir`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn new(dir: &Path) -> Result<Self, AnyError> {
        let opened = Some(Unlocked::open(&dir.join("lock-in-a-handover"))?);
        let floor = dir.join("lock-floor");
        std::fs::create_dir_all(&floor)?;
        Ok(Self { handoff: dir.join("lock-handoff"), opened, peer: dir.join("lock-peer"), floor })
    }

    /// By this library: the lease, the epoch, both inodes.
    ///
    /// # Errors
    /// The lock is held, or the disk refuses.
    pub fn handoff(&self) -> Result<(), AnyError> {
        Ok(DataDirLock::acquire(&self.handoff)?.release()?)
    }

    /// By this library within a handover: a successor's way to the lock, and then an incumbent's way to give it up.
    ///
    /// # Errors
    /// The lock is held, or the disk refuses.
    pub fn handoff_in_a_handover(&mut self) -> Result<(), AnyError> {
        let opened = self.opened.take().ok_or("the lock was lost before")?;
        let Attempt::Locked(claim) = opened.try_lock() else { return Err("somebody else has the lock".into()) };
        let lock = claim.claim_quietly(None).map_err(|(_, error)| error)?;
        self.opened = Some(lock.seal().map_err(|(_, error)| error)?);
        Ok(())
    }

    /// By `beyond-handoff`: flock, and a pidfile that is synced.
    ///
    /// # Errors
    /// The lock is held, or the disk refuses.
    pub fn peer(&self) -> Result<(), AnyError> {
        drop(handoff::DataDirLock::acquire(&self.peer)?);
        Ok(())
    }

    /// flock, the pid, and the end of it.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn floor(&self) -> Result<(), AnyError> {
        let file = File::options().create(true).write(true).truncate(false).open(self.floor.join("lock"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all_at(std::process::id().to_string().as_bytes(), 0)?;
        Ok(flock(&file, FlockOperation::Unlock)?)
    }
}

/// Three ways to keep a journal.
#[derive(Debug)]
pub struct Journals {
    handoff: Journal,
    record: StateJournal,
    peer: PathBuf,
    peer_record: handoff::state::StateJournal,
    floor: File,
    slot: u64,
}

impl Journals {
    /// Under `dir`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn new(dir: &Path) -> Result<Self, AnyError> {
        let floor = File::options().create(true).write(true).truncate(false).open(dir.join("journal-floor"))?;
        floor.write_all_at(&[0; 2 * SLOT_BYTES], 0)?;
        floor.sync_all()?;
        let pid = std::process::id();
        Ok(Self {
            handoff: Journal::open(dir.join("journal-handoff"))?,
            record: StateJournal {
                handoff_id: HandoffId::new(),
                phase: Phase::Negotiating,
                incumbent_pid: pid,
                successor_pid: Some(pid),
                started_at_unix_ms: 1_700_000_000_000,
                details: handoff_journal::Details::default(),
            },
            peer: dir.join("journal-peer.bin"),
            peer_record: handoff::state::StateJournal {
                handoff_id: handoff::HandoffId::new(),
                phase: handoff::state::Phase::Negotiating,
                incumbent_pid: pid,
                successor_pid: Some(pid),
                started_at_unix_ms: 1_700_000_000_000,
            },
            floor,
            slot: 0,
        })
    }

    /// By this library, durable on return.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn handoff(&mut self) -> Result<(), AnyError> {
        self.handoff_unsynced()?;
        Ok(self.handoff.sync()?)
    }

    /// By this library, in order and not waited for.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn handoff_unsynced(&mut self) -> Result<(), AnyError> {
        self.record.started_at_unix_ms += 1;
        Ok(self.handoff.record(&self.record)?)
    }

    /// By `beyond-handoff`, durable on return.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn peer(&mut self) -> Result<(), AnyError> {
        self.peer_record.started_at_unix_ms += 1;
        Ok(self.peer_record.write_atomic(&self.peer)?)
    }

    /// pwrite and fdatasync.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn floor(&mut self) -> Result<(), AnyError> {
        self.floor_unsynced()?;
        Ok(self.floor.sync_data()?)
    }

    /// pwrite.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn floor_unsynced(&mut self) -> Result<(), AnyError> {
        self.slot += 1;
        let bytes = [self.slot as u8; SLOT_BYTES];
        Ok(self.floor.write_all_at(&bytes, (self.slot % 2) * SLOT_BYTES as u64)?)
    }
}
