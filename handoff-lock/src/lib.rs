//! A data directory belongs to one process at a time. This crate is the lock that says which.
//!
//! ```
//! use handoff_lock::{DataDirLock, LockError};
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path();
//!
//! let lock = DataDirLock::acquire(dir)?;
//! println!("{} is ours, under epoch {}", dir.display(), lock.epoch());
//!
//! match DataDirLock::acquire(dir) {
//!     Err(error @ LockError::Held { .. }) => println!("{error}"), // "the data dir is locked by pid 4711 (stored) since …"
//!     other => panic!("two owners: {other:?}"),
//! }
//! lock.release()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it promises
//!
//! - **One owner.** flock(2) on two inodes: `.handoff.lock` in the directory, and the directory itself. Removing or replacing
//!   the lock file makes no second owner. The kernel frees the lock when its owner dies; a lock is never broken by unlinking.
//! - **A fencing epoch.** [`DataDirLock::epoch`] is one higher at each acquisition and never goes back, not after a power
//!   failure and not if the lock file was removed or an older one put back (then it may skip numbers; only older bytes that are
//!   written over the file itself can't be told). Put it into what you write.
//! - **A true holder.** Who is refused learns the [`Holder`]: pid, command, since when, and whether it merely inherited a
//!   descriptor. It is who has the directory, however it came by it, and nobody who merely tries. A reused pid is not taken for
//!   the owner, and a pidfile is never believed against the kernel.
//! - **Forks do no harm.** A forked child neither keeps nor undoes its parent's lock.
//! - **It is cheap.** Taking and releasing it are some twenty system calls, without a sync except once in a thousand
//!   acquisitions, and that one can be had [off the critical path](DataDirLock::reserve_epochs).
//!
//! # What it refuses
//!
//! A directory on a file system that other hosts can mount and where flock(2) may not exclude them (NFS, SMB, 9p, FUSE, Ceph
//! and the like) is refused with [`LockError::UnsupportedFilesystem`], unless the caller vouches for it with
//! [`LockOptions::allow_any_filesystem`].
//!
//! On overlayfs and other stacked file systems a lock excludes those who come by the same mount. One that reaches the same files by
//! the directory below it (the host, say, by the upper directory of a container) locks another inode: let all come by one path.
//!
//! A directory that is created for the lock is its owner's only (mode 0700). One that [others may read](exposure) can be
//! locked by them, flock(2) needs no more; that is for the program to say, and is not refused.
//!
//! # The directory and its name
//!
//! What is locked is a directory, not its name. If a link is switched, or another directory renamed or mounted in its place,
//! each step that writes a lease fails with [`LockError::AnotherDirectory`], and the lock is held as before: what the program
//! would open by that path now is not the data that it has locked. [`DataDirLock::is_in_place`] answers at any time. A directory
//! above that may no longer be searched (setuid(2)), another root (chroot(2)) and another working directory change nothing.
//!
//! # While nobody writes
//!
//! A backup or a check takes a [`SharedLock`]: many may at a time, and while one does, nobody owns the directory. It writes nothing,
//! gets no epoch, and is never the holder. A service can't start meanwhile.
//!
//! # While threads serve
//!
//! A [`DataDirLock`] is released when it is dropped, and so by an early return and by a panic, while other threads may still
//! write. A program whose threads serve makes it a [`ServingLock`]: that one is let go by a call alone.
//!
//! # Over fork and exec
//!
//! - **fork(2)**: the child has no descriptor of the lock and no part in it; what it does with its copy of a [`DataDirLock`] is
//!   refused, and a drop there does nothing. It takes a lock of its own by another call, which is refused while its parent has
//!   this one. So a daemon takes its lock after it has put itself into the background.
//! - **Programs that are started** (fork or posix_spawn, then exec): all descriptors are closed by exec, so no program has the
//!   lock of the one that started it. Until its exec a child that was made by vfork(2) has copies. A release does not wait for
//!   it, as it unlocks; but if the owner dies in this moment, the lock is held that little longer.
//! - **execve(2) by the owner itself** lets go of the lock, also of a [`ServingLock`], although the process lives on under the same
//!   pid. The lease and the pidfile stand as they were; [`holder()`] says that nobody has it. A program that executes its next
//!   build and wants nobody to come between passes the directory on, to itself:
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use std::os::unix::process::CommandExt;
//! use std::process::Command;
//!
//! use handoff_lock::{Attempt, DataDirLock, LockError, Unlocked};
//! # use std::path::Path;
//!
//! fn execute_the_next_build(mut lock: DataDirLock) -> Result<(), Box<dyn std::error::Error>> {
//!     let directory = lock.directory()?;
//!     let _unlocked = lock.seal_and_pass().map_err(|(_, error)| error)?;
//!     Err(Command::new("/proc/self/exe").stdin(directory).exec().into()) // a standard stream stays open
//! }
//!
//! fn start_in_its_place(dir: &Path) -> Result<DataDirLock, Box<dyn std::error::Error>> {
//!     let mut unlocked = Unlocked::open(dir)?;
//!     unlocked.adopt_directory(std::io::stdin().as_fd().try_clone_to_owned()?)?;
//!     match unlocked.try_lock() {
//!         Attempt::Locked(claim) => Ok(claim.claim(None).map_err(|(_, error)| error)?),
//!         other => Err(format!("{other:?}").into()),
//!     }
//! }
//! ```
//!
//! # From one process to the next
//!
//! [`DataDirLock`] alone is enough for a program that runs once per directory. A program that hands its directory to a
//! successor uses the three steps by themselves:
//!
//! ```
//! use handoff_lock::{Attempt, DataDirLock, LeaseState, Unlocked};
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path();
//! # let mut old = DataDirLock::acquire(dir)?;
//!
//! // The old process serves, seals, and keeps its descriptors: it may have to come back.
//! old.activate(b"build 1")?;
//! let fallback = old.seal().map_err(|(_still_ours, error)| error)?;
//!
//! // The new one opened everything ahead of time. It decides by the lease that it reads under the lock.
//! let new = match Unlocked::open(dir)?.try_lock() {
//!     Attempt::Locked(claim) if claim.found().is_some_and(|lease| lease.state == LeaseState::Sealed) => {
//!         claim.claim(None).map_err(|(_, error)| error)?
//!     }
//!     other => panic!("not our turn: {other:?}"),
//! };
//! assert_eq!(new.epoch(), 2);
//! assert!(matches!(fallback.try_lock(), Attempt::Held(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Between the two steps anybody who may read the directory can lock it (flock(2) needs no more), and then neither gets it. So
//! the old process sends its [descriptor of the directory](DataDirLock::directory) to the new one over a Unix socket: both have
//! the same open file description then, to which the lock belongs, and it is never let go.
//!
//! ```
//! use handoff_lock::{Attempt, DataDirLock, Unlocked};
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path();
//! # let mut old = DataDirLock::acquire(dir)?;
//!
//! let mut new = Unlocked::open(dir)?;
//! new.adopt_directory(old.directory()?)?; // sent by SCM_RIGHTS, unix(7)
//!
//! let fallback = old.seal_and_pass().map_err(|(_still_ours, error)| error)?;
//! assert!(matches!(DataDirLock::acquire(dir), Err(handoff_lock::LockError::Held { .. })), "nobody else gets in");
//! let Attempt::Locked(claim) = new.try_lock() else { panic!("not our turn") };
//! let new = claim.claim(None).map_err(|(_, error)| error)?;
//! # drop(fallback);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The lease between them ([`Lease`], [`read_lease`], [`look`]) names the owner, how far it has come, and under which epoch.
//! It is not synced: after a power failure no process is alive, so who owned what is worthless, and
//! [`Lease::of_this_boot`] says so.
//!
//! # The files
//!
//! | name | what it holds |
//! |---|---|
//! | `.handoff.lock` | the lock, the lease in two slots, the epoch mark in a sector of its own |
//! | `.handoff.epoch` | the second copy of the epoch mark |
//! | `.handoff.pidfile` | the owner's pid as text, for people; decides nothing |
//!
//! They stay where they are when the lock is released, except for the pidfile. A lock file that is empty, as older tools leave
//! it, is taken; one that holds something else is refused and named.
//!
//! # Platforms
//!
//! Linux in full. On macOS and the BSDs, and without `/proc`, the lock and the epoch are the same, and the holder is the one that
//! wrote itself down and did not write that it let go. Where the system does not tell one boot from another (NetBSD, OpenBSD,
//! Linux without `/proc`) each acquisition syncs twice. NetBSD and illumos do not tell on which file system a directory is, so none is
//! refused there.
#![deny(unsafe_code)]

mod data_dir_lock;
mod durable;
mod error;
mod exposure;
mod filesystem;
mod flock;
mod held_by;
mod holder;
mod holder_search;
mod lease;
mod lock_file;
mod mark;
mod opened_file;
mod options;
mod pair;
mod pidfile;
mod serving_lock;
mod shared_lock;
#[allow(unsafe_code)]
mod sys;
mod unlocked;
mod waiting;
mod watched_lease;

pub use data_dir_lock::{Claim, DataDirLock};
pub use error::{Inode, LockError};
pub use exposure::{Exposure, exposure};
pub use filesystem::check_filesystem;
pub use held_by::HeldBy;
pub use holder::{Holder, Look, holder, look, read_lease, readers};
pub use lease::{BUILD_ID_BYTES_MAX, Lease, LeaseState, Owner};
pub use opened_file::LOCK_FILE;
pub use options::LockOptions;
pub use serving_lock::ServingLock;
pub use shared_lock::SharedLock;
pub use unlocked::{Attempt, Unlocked};
pub use watched_lease::WatchedLease;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
