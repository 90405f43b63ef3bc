//! What only the platform can do, and the only `unsafe` of this crate.
//!
//! - [`GuardedFd`]: a descriptor that a forked child neither keeps nor uses.
//! - Questions about processes, the boot, file systems and the kernel's table of locks, answered by `linux` and `other`.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::*;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod other;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use other::*;

/// A descriptor that belongs to the process that opened it, and not to its forked children.
///
/// flock(2) belongs to the open file, which a forked child shares: a child that lives on would keep its dead parent's lock,
/// and one that unlocks would undo its living parent's. So a fork handler closes the descriptor in the child, and here it is
/// neither lent nor closed in any process but its own (by then the number may be another file's).
#[derive(Debug)]
pub(crate) struct GuardedFd {
    fd: ManuallyDrop<OwnedFd>,
    place: usize,
    home: Home,
}

/// A process, told from its forked children even where the child has the same pid in a new pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home {
    pid: u32,
    forks: u32,
}

impl Home {
    fn current() -> Self {
        Self { pid: std::process::id(), forks: FORKS.load(Ordering::Relaxed) }
    }
}

impl GuardedFd {
    /// Opens a descriptor and guards it in one step as a fork sees it.
    pub(crate) fn open(open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Self> {
        watch_forks()?;
        let _gate = Gate::pass();
        let place = TABLE.iter().position(|place| place.load(Ordering::Relaxed) == FREE).ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, "this process has too many data-dir locks open (512)")
        })?;
        let fd = open()?;
        TABLE[place].store(fd.as_raw_fd(), Ordering::Release);
        Ok(Self { fd: ManuallyDrop::new(fd), place, home: Home::current() })
    }

    /// The descriptor, in the process that opened it.
    ///
    /// # Errors
    /// The calling process is a forked child of that one, and has no such descriptor.
    pub(crate) fn get(&self) -> io::Result<BorrowedFd<'_>> {
        if self.is_at_home() {
            return Ok(self.fd.as_fd());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the lock is the parent process's; a forked child has none",
        ))
    }

    /// Whether the calling process is the one that opened the descriptor.
    pub(crate) fn is_at_home(&self) -> bool {
        self.home == Home::current()
    }
}

impl Drop for GuardedFd {
    fn drop(&mut self) {
        if !self.is_at_home() {
            return;
        }
        // Before the close: once closed, the number may be another file's, which a forked child must not lose.
        TABLE[self.place].store(FREE, Ordering::Release);
        // SAFETY: ManuallyDrop::drop; `fd` is dropped here only, and not used after.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

const FREE: i32 = -1;
static TABLE: [AtomicI32; 1024] = [const { AtomicI32::new(FREE) }; 1024];
/// How many forks lie between the first process of this program and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);
static GATE: AtomicBool = AtomicBool::new(false);

/// No fork happens while one is held: else a child could be made between the open and the entry in the table.
struct Gate;

impl Gate {
    fn pass() -> Self {
        while GATE.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::thread::yield_now();
        }
        Self
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        GATE.store(false, Ordering::Release);
    }
}

fn watch_forks() -> io::Result<()> {
    static WATCHING: OnceLock<i32> = OnceLock::new();
    let errno = *WATCHING.get_or_init(|| {
        // SAFETY: pthread_atfork(3); the handlers are functions of this program, and the child's is async-signal-safe.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) }
    });
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

extern "C" fn before_fork() {
    std::mem::forget(Gate::pass());
}

extern "C" fn after_fork_in_parent() {
    GATE.store(false, Ordering::Release);
}

/// Atomics and close(2) only: nothing else is allowed between a fork of a program with threads and its exec.
extern "C" fn after_fork_in_child() {
    for place in &TABLE {
        let fd = place.swap(FREE, Ordering::Relaxed);
        if fd != FREE {
            // SAFETY: close(2); the number is that of a `GuardedFd`, whose owner in this process is never used again, as
            // `Home` tells it apart.
            unsafe { libc::close(fd) };
        }
    }
    FORKS.fetch_add(1, Ordering::Relaxed);
    GATE.store(false, Ordering::Release);
}

/// When the calling process started; 0 if the system does not tell. Asked once per process.
pub(crate) fn own_start_time() -> u64 {
    static OF_PID: AtomicU32 = AtomicU32::new(0);
    static START_TIME: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    if OF_PID.load(Ordering::Acquire) == pid {
        return START_TIME.load(Ordering::Relaxed);
    }
    let start_time = start_time(pid).unwrap_or(0);
    START_TIME.store(start_time, Ordering::Relaxed);
    OF_PID.store(pid, Ordering::Release);
    start_time
}

/// Lets a bounded moment pass. For what the kernel offers no wait for: a flock that another process frees.
pub(crate) fn pause(moment: std::time::Duration) {
    let _ = rustix::event::poll(&mut [], rustix::event::Timespec::try_from(moment).ok().as_ref());
}
