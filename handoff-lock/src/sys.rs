//! What only the platform can do, and the only `unsafe` of this crate.
//!
//! - [`GuardedFd`]: a descriptor that a forked child neither keeps nor uses.
//! - Questions about processes, the boot, file systems and the kernel's table of locks, answered by `linux` and `other`.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering, compiler_fence};

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
    end: End,
}

/// What a drop does with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Close,
    /// It stays open until the process exits, in the process that opened it.
    Keep,
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
    /// Opens a descriptor that no forked child has a copy of. It is opened again if a child was made meanwhile: that one has a
    /// copy of what was opened first, which nobody locks. So no fork waits for a file system that hangs.
    pub(crate) fn open(open: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Self> {
        Self::open_with(|| Ok((open()?, ())), |error| error).map(|(guarded, ())| guarded)
    }

    /// The same with what is known of the descriptor besides, and with other errors than the system's.
    pub(crate) fn open_with<T, E>(
        open: impl Fn() -> Result<(OwnedFd, T), E>,
        failed: impl Fn(io::Error) -> E,
    ) -> Result<(Self, T), E> {
        watch_forks().map_err(&failed)?;
        for _ in 0..OPENS_BESIDE_FORKS_MAX {
            let forked = FORKED.load(Ordering::Acquire);
            let (fd, known) = open()?;
            let gate = Gate::pass();
            if FORKED.load(Ordering::Acquire) == forked {
                return Self::guard(fd, &gate).map(|guarded| (guarded, known)).map_err(failed);
            }
        }
        // Somebody forks all the time: then it has to wait.
        let gate = Gate::pass();
        let (fd, known) = open()?;
        Self::guard(fd, &gate).map(|guarded| (guarded, known)).map_err(failed)
    }

    /// Guards a descriptor that was received. A child that was forked since then has a copy.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        watch_forks()?;
        Self::guard(fd, &Gate::pass())
    }

    fn guard(fd: OwnedFd, gate: &Gate) -> io::Result<Self> {
        let place = gate.enter(fd.as_raw_fd()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, "this process has too many data-dir locks open (512)")
        })?;
        Ok(Self { fd: ManuallyDrop::new(fd), place, home: Home::current(), end: End::Close })
    }

    pub(crate) fn set_end(&mut self, end: End) {
        self.end = end;
    }

    /// The descriptor, in the process that opened it.
    ///
    /// # Errors
    /// The calling process is a forked child of that one: its descriptor was closed, and the number may be another file's.
    pub(crate) fn get(&self) -> io::Result<BorrowedFd<'_>> {
        if self.home.forks == FORKS.load(Ordering::Relaxed) { Ok(self.fd.as_fd()) } else { Err(not_at_home()) }
    }

    /// Whether the calling process is the one that opened the descriptor, also if it was made by clone(2) past the handlers.
    pub(crate) fn is_at_home(&self) -> bool {
        self.home == Home::current()
    }
}

/// What a forked child gets to hear.
pub(crate) fn not_at_home() -> io::Error {
    let why = "the lock is the parent process's; a forked child has none and must open its own";
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

impl Drop for GuardedFd {
    fn drop(&mut self) {
        if !self.is_at_home() || self.end == End::Keep {
            return;
        }
        // A child that is made between the two would keep a copy, and with it the lock of a directory that is shared.
        let gate = Gate::pass();
        gate.leave(self.place);
        // SAFETY: ManuallyDrop::drop; `fd` is dropped here only, and not used after.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

const FREE: i32 = -1;
const OPENS_BESIDE_FORKS_MAX: u32 = 8;
static TABLE: [AtomicI32; 1024] = [const { AtomicI32::new(FREE) }; 1024];
/// How many forks this process has begun.
static FORKED: AtomicU32 = AtomicU32::new(0);
/// How many forks lie between the first process of this program and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);
static GATE: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread has the gate, or is about to.
    static PASSING: AtomicBool = const { AtomicBool::new(false) };
}

/// No fork happens while one is held. Only who has it touches the table of descriptors that a forked child closes.
///
/// A fork by a signal handler that interrupted the one who has it can't wait for that one, and does not: its child may keep a
/// copy of a descriptor.
struct Gate;

impl Gate {
    fn pass() -> Self {
        PASSING.with(|passing| passing.store(true, Ordering::Relaxed));
        compiler_fence(Ordering::SeqCst);
        Self::wait();
        Self
    }

    fn wait() {
        while GATE.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::thread::yield_now();
        }
    }

    /// The place that the descriptor has got in the table; `None` if there is none left.
    fn enter(&self, fd: i32) -> Option<usize> {
        let place = TABLE.iter().position(|place| place.load(Ordering::Relaxed) == FREE)?;
        TABLE[place].store(fd, Ordering::Release);
        Some(place)
    }

    fn leave(&self, place: usize) {
        TABLE[place].store(FREE, Ordering::Release);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        GATE.store(false, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        PASSING.with(|passing| passing.store(false, Ordering::Relaxed));
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
    if !is_this_thread_passing() {
        Gate::wait();
    }
    FORKED.fetch_add(1, Ordering::AcqRel);
}

extern "C" fn after_fork_in_parent() {
    if !is_this_thread_passing() {
        GATE.store(false, Ordering::Release);
    }
}

fn is_this_thread_passing() -> bool {
    PASSING.with(|passing| passing.load(Ordering::Relaxed))
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

/// The pids that took the lock of each inode.
#[derive(Debug, Default)]
pub(crate) struct Takers {
    pub(crate) dir: Vec<u32>,
    pub(crate) file: Vec<u32>,
}

/// Of which inodes a process has a descriptor that carries the lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) dir: bool,
    pub(crate) file: bool,
}

/// When the calling process started; `None` if the system does not tell. Answered once per process.
///
/// # Errors
/// The system would tell, but not now.
pub(crate) fn own_start_time() -> io::Result<Option<u64>> {
    static OF_PID: AtomicU32 = AtomicU32::new(0);
    static START_TIME: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    if OF_PID.load(Ordering::Acquire) != pid {
        START_TIME.store(start_time_of_self()?.unwrap_or(0), Ordering::Relaxed);
        OF_PID.store(pid, Ordering::Release);
    }
    Ok(Some(START_TIME.load(Ordering::Relaxed)).filter(|start_time| *start_time != 0))
}

/// Lets a bounded moment pass. For what the kernel offers no wait for: a flock that another process frees.
pub(crate) fn pause(moment: std::time::Duration) {
    let _ = rustix::event::poll(&mut [], rustix::event::Timespec::try_from(moment).ok().as_ref());
}

#[cfg(test)]
#[path = "sys_tests.rs"]
pub(crate) mod tests;
