//! Descriptors that a forked child does not keep, though it goes on without exec: close-on-exec does nothing for it.
//!
//! A socket that listens at a path answers there as long as anybody has it open, and a connection ends when the last copy of it
//! is closed. A worker that outlives the daemon that forked it would let clients connect to a dead daemon, and wait for one. So a
//! fork handler puts a harmless descriptor in the place of each of them in the child: what owns the number there may still use
//! and close it, and nobody hears of it.
//!
//! `handoff-lock` has a table of its own: its descriptors are *refused* to who would use them in a child, and to have one table
//! for both that crate would have to show its own to everybody.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// A descriptor that stays with the process that opened it.
#[derive(Debug)]
pub(crate) struct StaysHere {
    fd: ManuallyDrop<OwnedFd>,
    /// None: there was no room, and it is one as any other.
    place: Option<u16>,
}

impl StaysHere {
    /// Opens a descriptor, in one step as a fork sees it. `open` must not block.
    ///
    /// # Errors
    /// Those of `open`; or there is no descriptor or no room left.
    pub(crate) fn open<E: From<io::Error>>(open: impl FnOnce() -> Result<OwnedFd, E>) -> Result<Self, E> {
        watch_forks()?;
        let _gate = Gate::pass();
        let place = free_place().ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, format!("this process has {PLACES} control sockets open"))
        })?;
        let fd = open()?;
        TABLE[usize::from(place)].store(fd.as_raw_fd(), Ordering::Release);
        Ok(Self { fd: ManuallyDrop::new(fd), place: Some(place) })
    }

    /// The same of one that is open already; a child that was forked before has it.
    fn adopt(fd: OwnedFd) -> Self {
        let is_watched = watch_forks().is_ok();
        let _gate = Gate::pass();
        let place = free_place().filter(|_| is_watched);
        if let Some(place) = place {
            TABLE[usize::from(place)].store(fd.as_raw_fd(), Ordering::Release);
        }
        Self { fd: ManuallyDrop::new(fd), place }
    }
}

impl From<OwnedFd> for StaysHere {
    fn from(fd: OwnedFd) -> Self {
        Self::adopt(fd)
    }
}

impl From<UnixStream> for StaysHere {
    fn from(stream: UnixStream) -> Self {
        Self::adopt(stream.into())
    }
}

fn free_place() -> Option<u16> {
    (0..).zip(&TABLE).find(|(_, place)| place.load(Ordering::Relaxed) == FREE).map(|(number, _)| number)
}

impl AsFd for StaysHere {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for StaysHere {
    fn drop(&mut self) {
        // Both in one step, as a fork sees it: the number may be another file's right after.
        let _gate = Gate::pass();
        if let Some(place) = self.place {
            TABLE[usize::from(place)].store(FREE, Ordering::Release);
        }
        // SAFETY: ManuallyDrop::drop; `fd` is dropped here only, and not used after.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

const PLACES: usize = 1024;
const FREE: RawFd = -1;
static TABLE: [AtomicI32; PLACES] = [const { AtomicI32::new(FREE) }; PLACES];
static FORKS: AtomicUsize = AtomicUsize::new(0);
static GATE: AtomicBool = AtomicBool::new(false);

/// No fork happens while one is held.
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

/// How many forks lie between the first process of this program and this one, counted from when it [watches](watch_forks).
pub(crate) fn generation() -> usize {
    FORKS.load(Ordering::Relaxed)
}

/// Has children that are forked from now on know that they are.
///
/// # Errors
/// There is no memory for it.
pub(crate) fn watch_forks() -> io::Result<()> {
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

/// Atomics and plain system calls only: nothing else is allowed between a fork of a program with threads and its exec.
extern "C" fn after_fork_in_child() {
    for place in &TABLE {
        let fd = place.load(Ordering::Relaxed);
        if fd != FREE {
            // SAFETY: close(2), eventfd(2), dup3(2) and close(2) take any numbers. `fd` is that of a `StaysHere`, which owns it in
            // this process too, so it gets another descriptor: an event that nobody counts up. The only thread of this
            // process is here, so nobody takes the number in between.
            unsafe {
                libc::close(fd);
                let harmless = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
                if harmless >= 0 && harmless != fd {
                    libc::dup3(harmless, fd, libc::O_CLOEXEC);
                    libc::close(harmless);
                }
            }
        }
    }
    FORKS.fetch_add(1, Ordering::Relaxed);
    GATE.store(false, Ordering::Release);
}

/// What `child` says in a forked child.
#[cfg(test)]
pub(crate) fn in_a_child(child: impl FnMut() -> bool) -> bool {
    tests::is_fine(tests::fork(child))
}

/// Does this while a forked child lives that does nothing.
#[cfg(test)]
pub(crate) fn beside_a_child<T>(act: impl FnOnce() -> T) -> T {
    tests::beside_a_child(act)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags};
    use rustix::process::{Pid, WaitOptions, waitpid};

    use super::*;
    use crate::sys::poll;

    /// Forks; the child leaves with what `child` says, and without running anything else.
    pub(super) fn fork(mut child: impl FnMut() -> bool) -> Pid {
        // SAFETY: fork(2); the child runs `child` only, which uses no other thread's locks but the allocator's, and that one is
        // usable in a forked child.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut child)).unwrap_or(false);
            // SAFETY: _exit(2).
            unsafe { libc::_exit(i32::from(!fine)) };
        }
        std::mem::forget(child);
        Pid::from_raw(pid).expect("fork failed")
    }

    /// A child of the other test has the socket until the handler runs in it.
    fn one_at_a_time() -> MutexGuard<'static, ()> {
        static FORKS: Mutex<()> = Mutex::new(());
        FORKS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn beside_a_child<T>(act: impl FnOnce() -> T) -> T {
        let _alone = one_at_a_time();
        let (mut end_of_life, keep_alive) = pipe().unwrap();
        let (mut lives, mut tell) = pipe().unwrap();
        let keep_alive_raw = keep_alive.as_raw_fd();
        let child = fork(|| {
            // SAFETY: close(2); the child's copy of the parent's end, which the child does not use.
            unsafe { libc::close(keep_alive_raw) };
            tell.write_all(b"x").is_ok() && end_of_life.read(&mut [0]).is_ok()
        });
        // The handler has run in it.
        lives.read_exact(&mut [0]).unwrap();
        let done = act();
        drop(keep_alive);
        assert!(is_fine(child));
        done
    }

    pub(super) fn is_fine(child: Pid) -> bool {
        waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap().1.exit_status() == Some(0)
    }

    fn listen_at(path: &Path) -> StaysHere {
        let listen = || {
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(OwnedFd::from(listener))
        };
        StaysHere::open(listen).unwrap()
    }

    #[test]
    fn a_worker_that_lives_on_answers_for_no_dead_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = listen_at(&path);
        beside_a_child(|| {
            UnixStream::connect(&path).expect("the daemon itself is undisturbed");
            drop(socket);
            // A program that is just being started beside this test has a copy, until it is.
            let until = Instant::now() + Duration::from_secs(60);
            while UnixStream::connect(&path).map_err(|error| error.kind()).err()
                != Some(io::ErrorKind::ConnectionRefused)
            {
                assert!(Instant::now() < until, "somebody answers for a dead daemon");
            }
        });
    }

    #[test]
    fn a_child_may_use_and_drop_what_it_does_not_have() {
        let _alone = one_at_a_time();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut socket = Some(listen_at(&path));
        let grandchild = || {
            let socket = socket.take()?;
            let mut fds = [PollFd::new(&socket, PollFlags::IN)];
            poll::wait(&mut fds, Some(std::time::Duration::ZERO)).ok()?;
            let is_quiet = fds[0].revents().is_empty() && rustix::net::accept(&socket).is_err();
            drop(socket);
            Some(is_quiet)
        };
        let mut grandchild = grandchild;
        let child = fork(|| is_fine(fork(|| grandchild() == Some(true))));
        assert!(is_fine(child));
        UnixStream::connect(&path).expect("the daemon itself is undisturbed");
    }
}
