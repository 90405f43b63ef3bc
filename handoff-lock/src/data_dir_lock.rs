//! The lock of a data dir, from the claim to the release.
//!
//! ```text
//!             try_lock            claim (epoch + 1)
//!   Unlocked ─────────► Claim ──────────────────────► DataDirLock ──┐ activate, stamp, reserve_epochs
//!      ▲                  │ unlock                      │     ▲─────┘
//!      ├──────────────────┘                             │ seal, seal_and_pass (lease Sealed, then unlocked)
//!      └────────────────────────────────────────────────┘      drop, release, death: unlocked, lease as it stands
//! ```
//!
//! Invariants: a decision about ownership is made on the lease that was read under the lock; nothing is written before
//! `claim`; the epoch goes up by one with each claim and is durable, or reserved durably, before it is used; a step that can't
//! write its lease is not done.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Inode, LockError};
use crate::exposure::{self, Exposure};
use crate::held_by::HeldBy;
use crate::holder::Holder;
use crate::lease::{BUILD_ID_BYTES_MAX, Lease, LeaseState, Owner};
use crate::lock_file::{Contents, Found};
use crate::mark::{self, Marks, Method, NextEpoch, NoEpoch, Step};
use crate::options::LockOptions;
use crate::pair::Pair;
use crate::shared_lock::SharedLock;
use crate::sys::End;
use crate::unlocked::Unlocked;
use crate::waiting::{self, Contender, Outcome};

/// The lock of a data dir: while a process has one, it is the only one that may write there (promise 1).
///
/// Dropping it removes the pidfile and releases the lock, both in the process that took it only: a forked child neither keeps
/// nor undoes its parent's lock. (Take it after daemonizing, not before: the lock does not follow a fork.)
///
/// An early return and a panic drop it too, while other threads may still write. A process whose threads serve holds a
/// [`ServingLock`](crate::ServingLock) instead, made by [`for_serving`](Self::for_serving).
#[derive(Debug)]
#[must_use = "dropping the lock releases it"]
pub struct DataDirLock {
    pair: Pair,
    lease: Lease,
    mark: u64,
}

impl DataDirLock {
    /// The settings with which a lock is taken: how long to wait, what to create, and so on.
    pub fn options() -> LockOptions {
        LockOptions::default()
    }

    /// Takes the lock of `dir` with the usual settings: it is created for its owner only (mode 0700) if it is missing, and the
    /// call returns at once.
    ///
    /// # Errors
    /// As [`LockOptions::acquire`].
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        Self::options().acquire(dir)
    }

    /// The same, but it waits up to `wait` for who holds it.
    ///
    /// # Errors
    /// As [`LockOptions::acquire`].
    pub fn acquire_timeout(dir: &Path, wait: Duration) -> Result<Self, LockError> {
        Self::options().timeout(wait).acquire(dir)
    }

    /// Takes the lock of who only reads `dir`, and returns at once. Nothing is created.
    ///
    /// # Errors
    /// As [`LockOptions::acquire_shared`].
    pub fn acquire_shared(dir: &Path) -> Result<SharedLock, LockError> {
        Self::options().acquire_shared(dir)
    }

    /// Takes the lock, also when the process that is named as its holder has died and the kernel is about to free it.
    ///
    /// A lock that is held is never broken: not by unlinking, and not because a pidfile names a dead process.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), with [`LockError::StaleLockBreakRefused`] in place of [`LockError::Held`].
    pub fn acquire_or_break_stale(dir: &Path) -> Result<Self, LockError> {
        let unlocked = match Unlocked::open(dir)?.attempt() {
            Outcome::Taken(lock) => return Ok(lock),
            Outcome::Failed(error) => return Err(error),
            Outcome::Held(unlocked) => unlocked,
        };
        let not_stale = |error, named: Option<Holder>| match error {
            LockError::Held { holder } => LockError::StaleLockBreakRefused { holder: holder.or(named) },
            error => error,
        };
        match unlocked.held_by() {
            HeldBy::Owner(holder) if holder.as_ref().is_none_or(|holder| !holder.alive) => {
                waiting::within(unlocked, STALE_RETRIES, None).map_err(|error| not_stale(error, holder))
            }
            held_by => Err(not_stale(held_by.into(), None)),
        }
    }

    /// The directory, as given.
    pub fn data_dir(&self) -> &Path {
        self.pair.data_dir()
    }

    /// Whether other users may read the directory, and so lock it: for the program to say once.
    ///
    /// # Errors
    /// [`LockError::Io`] if the directory can't be looked at.
    pub fn exposure(&self) -> Result<Option<Exposure>, LockError> {
        exposure::of_open(self.pair.dir()?, self.data_dir())
    }

    /// Which directory is locked, whatever its path leads to.
    pub fn inode(&self) -> Inode {
        self.pair.inode()
    }

    /// Whether the path still leads to the directory that is locked. Ask before you open something there by its path, above
    /// all after a handover that was undone.
    pub fn is_in_place(&self) -> bool {
        self.check_in_place().is_ok()
    }

    /// The same, with the reason. Each step that writes a lease asks it first.
    ///
    /// A directory above that may not be searched hides nothing: the answer is then the parent directory's, which was opened
    /// with the lock, and if that may not be searched either, the directory counts as in place. So it does after chroot(2).
    ///
    /// # Errors
    /// [`LockError::AnotherDirectory`] if not, [`LockError::Io`] if it can't be found out now.
    pub fn check_in_place(&self) -> Result<(), LockError> {
        self.pair.check_dir_in_place()
    }

    /// Whether this process still has the lock, by what the kernel says of the descriptors. Not in a forked child, and not if
    /// something else in this process has unlocked or closed them. Where the kernel does not tell (no `/proc`), the answer is
    /// what this crate knows: yes, except in a forked child.
    ///
    /// It does not say that the path still [leads to](Self::is_in_place) the directory that is locked.
    ///
    /// ```
    /// use handoff_lock::DataDirLock;
    /// # let scratch = tempfile::tempdir()?;
    /// # let dir = scratch.path();
    ///
    /// let lock = DataDirLock::acquire(dir)?;
    /// assert!(lock.is_held());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_held(&self) -> bool {
        self.pair.is_held()
    }

    /// The fencing token: one higher at each acquisition, never lower again, also after a power failure and a removed lock
    /// file. Put it into what you write, and a late write of an earlier owner can be told apart.
    pub fn epoch(&self) -> u64 {
        self.lease.epoch
    }

    /// The lease as this owner last wrote it.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Writes the id of a handover into the lease, or clears it. No sync.
    ///
    /// # Errors
    /// The path leads to [another directory](LockError::AnotherDirectory), or the lease could not be written; it stands as it
    /// was.
    pub fn stamp(&mut self, handoff_id: Option<[u8; 16]>) -> Result<(), LockError> {
        self.rewrite(Lease { handoff_id, ..self.lease.clone() })
    }

    /// Says in the lease that this process serves now, with this build id, of which 64 bytes are kept. No sync.
    ///
    /// # Errors
    /// As [`stamp`](Self::stamp).
    pub fn activate(&mut self, build_id: &[u8]) -> Result<(), LockError> {
        let build_id = build_id[..build_id.len().min(BUILD_ID_BYTES_MAX)].to_vec();
        self.rewrite(Lease { state: LeaseState::Active, build_id, ..self.lease.clone() })
    }

    /// Says in the lease that the data is sealed, removes the pidfile, and releases the lock (promise 2). The descriptors stay
    /// open, so that taking the lock back needs no new one. No sync.
    ///
    /// The directory is let go of as well, for a successor to which it [was not passed](Self::seal_and_pass): it opens and
    /// locks it itself, and a stranger can come first. If a peer has a copy of the [directory](Self::directory) all the same,
    /// it stays locked by that one.
    ///
    /// # Errors
    /// The lease could not be written, or the lock not released: the lock is still held, and comes back beside the error.
    // The error is large because it gives the lock back; boxing it would allocate on the way that must not fail.
    #[allow(clippy::result_large_err)]
    pub fn seal(self) -> Result<Unlocked, (Self, LockError)> {
        let apart = match self.pair.open_dir_apart() {
            Ok(apart) => apart,
            Err(error) => return Err((self, error)),
        };
        let mut unlocked = self.seal_file()?;
        if let Some(apart) = apart {
            unlocked.pair.leave_shared_dir(apart);
        }
        Ok(unlocked)
    }

    /// The same for a successor to which a copy of the [directory](Self::directory) was sent: only the lock file is released.
    /// The directory stays locked by the open file description that both have now, so nobody else comes between (promise 8).
    ///
    /// The lock file decides between the two. If the successor fails, this process [takes it
    /// back](Unlocked::try_lock); if it owns the data, drop what this returns.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    #[allow(clippy::result_large_err)]
    pub fn seal_and_pass(mut self) -> Result<Unlocked, (Self, LockError)> {
        self.pair.share();
        self.seal_file()
    }

    /// A copy of the directory's descriptor, close-on-exec, to be sent to the successor by SCM_RIGHTS (unix(7)), who
    /// [adopts](Unlocked::adopt_directory) it. The directory is locked as long as anybody has a copy, or one is in flight.
    /// From now on this process never unlocks the directory, it only closes its own descriptor when it lets go of it.
    ///
    /// Send it and drop it at once: a child that is forked meanwhile would have a copy too, and with it the lock.
    ///
    /// # Errors
    /// No descriptor can be made (EMFILE), or the calling process is a forked child.
    pub fn directory(&mut self) -> Result<OwnedFd, LockError> {
        self.pair.copy_dir()
    }

    /// Writes the pidfile, for people; best effort.
    pub fn announce(&mut self) {
        self.pair.write_pidfile();
    }

    /// Removes the pidfile ahead of a release that somebody will wait for, who then does not wait for this; best effort. If
    /// the release is called off, [`announce`](Self::announce) again.
    pub fn withdraw(&mut self) {
        // A forked child has nothing to withdraw.
        let _ = self.pair.remove_pidfile();
    }

    /// Reserves epochs ahead and syncs the reservation, unless enough are left. Call it when nobody waits: it spares a later
    /// [`claim`](Claim::claim) the sync.
    ///
    /// # Errors
    /// The reservation is not durable; the one before still is, and the lock is held as before.
    pub fn reserve_epochs(&mut self) -> Result<(), LockError> {
        self.pair.keep_in_place()?;
        let second_copy = mark::read_second_copy(self.pair.dir()?, self.data_dir())?;
        let left = self.mark.saturating_sub(self.lease.epoch);
        if left >= mark::ahead() / 2 && mark::covers(second_copy, self.mark) && self.pair.marks() == Marks::Trusted {
            return Ok(());
        }
        let mark = self.mark.max(self.lease.epoch.saturating_add(mark::ahead()));
        reserve(&mut self.pair, mark, Method::of(Found::Mark(self.mark), second_copy))?;
        self.mark = mark;
        Ok(())
    }

    /// Releases the lock as a drop does, and tells if something failed. A [directory](Self::directory) of which a peer has a
    /// copy stays locked by that one. The lease stands as it is: who reads it sees by the
    /// lock that nobody owns the data.
    ///
    /// # Errors
    /// The lock file was replaced and could not be put back, or the unlock failed; the descriptors are closed in any case.
    pub fn release(mut self) -> Result<(), LockError> {
        let in_place = self.pair.keep_in_place();
        self.pair.unlock().and(in_place)
    }

    /// Keeps the lock until the process exits. A process that serves says so [ahead](Self::for_serving), for every way out.
    pub fn forget(self) {
        drop(self.for_serving());
    }

    pub(crate) fn keep_when_dropped(&mut self) {
        self.pair.set_end(End::Keep);
    }

    pub(crate) fn release_when_dropped(&mut self) {
        self.pair.set_end(End::Close);
    }

    #[allow(clippy::result_large_err)]
    fn seal_file(mut self) -> Result<Unlocked, (Self, LockError)> {
        let before = self.lease.clone();
        if let Err(error) = self.rewrite(Lease { state: LeaseState::Sealed, ..before.clone() }) {
            return Err((self, error));
        }
        if let Err(error) = self.pair.unlock() {
            // Still the owner: the lease must not say that it left. If even that fails, the first error says more.
            let _ = self.rewrite(before);
            self.pair.write_pidfile();
            return Err((self, error));
        }
        Ok(Unlocked { pair: self.pair })
    }

    fn rewrite(&mut self, lease: Lease) -> Result<(), LockError> {
        self.pair.write_lease(lease.clone())?;
        self.lease = lease;
        Ok(())
    }
}

/// The lock, just taken, with nothing written yet: look at the lease that was found, then decide.
///
/// Dropping it unlocks and leaves no trace.
#[derive(Debug)]
#[must_use = "dropping a claim unlocks it"]
pub struct Claim {
    pub(crate) pair: Pair,
    found: Contents,
}

impl Claim {
    pub(crate) fn new(pair: Pair, found: Contents) -> Self {
        Self { pair, found }
    }

    /// The lease of the last owner, read under the lock. One that is not [of this boot](Lease::of_this_boot) has no owner.
    pub fn found(&self) -> Option<&Lease> {
        self.found.newest.as_ref().map(|newest| &newest.lease)
    }

    /// Becomes the owner under the next epoch, in the state Opening, and writes the pidfile.
    ///
    /// It syncs only when the epochs that were reserved ahead are used up, which [`DataDirLock::reserve_epochs`] prevents, and
    /// after a reboot; and each time where the system does not tell one boot from another (no `/proc`).
    ///
    /// # Errors
    /// [`LockError::EpochMarkLost`] if neither the lock file nor `.handoff.epoch` tells which epochs were used,
    /// [`LockError::EpochsUsedUp`]; [`LockError::Io`] if the lease or the reservation can't be written. The lock is released.
    #[allow(clippy::result_large_err)]
    pub fn claim(self, handoff_id: Option<[u8; 16]>) -> Result<DataDirLock, (Unlocked, LockError)> {
        let mut lock = self.claim_quietly(handoff_id)?;
        lock.announce();
        Ok(lock)
    }

    /// The same, without the pidfile: for who is waited for, and [announces](DataDirLock::announce) it later.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    #[allow(clippy::result_large_err)]
    pub fn claim_quietly(mut self, handoff_id: Option<[u8; 16]>) -> Result<DataDirLock, (Unlocked, LockError)> {
        match self.try_claim(handoff_id) {
            Ok((lease, mark)) => Ok(DataDirLock { pair: self.pair, lease, mark }),
            Err(error) => Err((self.unlock(), error)),
        }
    }

    /// Gives the lock up again, having written nothing. A directory that [was passed on](Unlocked::adopt_directory) stays
    /// locked until its last copy is closed.
    pub fn unlock(mut self) -> Unlocked {
        // An unlock of a local flock has no way to fail; if one does, the lock goes when `Unlocked` is dropped.
        let _ = self.pair.unlock();
        Unlocked { pair: self.pair }
    }

    fn try_claim(&mut self, handoff_id: Option<[u8; 16]>) -> Result<(Lease, u64), LockError> {
        let (epoch, mark) = self.next_epoch()?;
        let lease = Lease {
            epoch,
            owner: Owner::current(),
            state: LeaseState::Opening,
            handoff_id,
            build_id: Vec::new(),
            since_unix_ms: unix_ms(),
        };
        self.pair.own(&self.found, mark, lease.clone())?;
        Ok((lease, mark))
    }

    fn next_epoch(&mut self) -> Result<(u64, u64), LockError> {
        if let Some(NextEpoch { epoch, mark }) = mark::next_if_reserved(&self.found, self.pair.file_number()) {
            return Ok((epoch, mark));
        }
        let second_copy = mark::read_second_copy(self.pair.dir()?, self.pair.data_dir())?;
        let NextEpoch { epoch, mark } = mark::next_above_all(&self.found, second_copy, mark::ahead())
            .map_err(|no_epoch| self.no_epoch(no_epoch))?;
        reserve(&mut self.pair, mark, Method::of(self.found.mark, second_copy))?;
        Ok((epoch, mark))
    }

    fn no_epoch(&self, why: NoEpoch) -> LockError {
        let (path, second_copy) = (self.pair.lock_path(), self.pair.data_dir().join(mark::SECOND_COPY));
        match why {
            NoEpoch::Exhausted => LockError::EpochsUsedUp { path, second_copy },
            NoEpoch::MarkLost => LockError::EpochMarkLost { path, second_copy },
        }
    }
}

/// Makes a mark durable in both places. If that fails, neither of the marks that are there is one to fall back on.
fn reserve(pair: &mut Pair, mark: u64, method: Method) -> Result<(), LockError> {
    let method = match pair.marks() {
        Marks::Trusted => method,
        Marks::Doubtful => Method::Replace,
    };
    let reserved = write_both(pair, mark, method);
    pair.set_marks(if reserved.is_ok() { Marks::Trusted } else { Marks::Doubtful });
    reserved
}

fn write_both(pair: &mut Pair, mark: u64, method: Method) -> Result<(), LockError> {
    method.steps().iter().try_for_each(|step| match step {
        Step::SyncFirst => pair.sync(),
        Step::OverwriteSecond => mark::overwrite_second_copy(pair.dir()?, pair.data_dir(), mark),
        Step::ReplaceSecond => mark::replace_second_copy(pair.dir()?, pair.data_dir(), mark),
        Step::WriteFirst => pair.write_mark(mark),
    })
}

/// How long a lock whose holder is dead may take to come free: a process of several GiB holds its locks for 100 ms and more
/// after its death.
const STALE_RETRIES: Duration = Duration::from_millis(500);

/// By the system clock, for people; a clock before 1970 counts as 1970.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
#[path = "data_dir_lock_tests.rs"]
mod tests;
