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
        watch_forks()?;
        for _ in 0..OPENS_BESIDE_FORKS_MAX {
            let forked = FORKED.load(Ordering::Acquire);
            let fd = open()?;
            let gate = Gate::pass();
            if FORKED.load(Ordering::Acquire) == forked {
                return Self::guard(fd, &gate);
            }
        }
        // Somebody forks all the time: then it has to wait.
        let gate = Gate::pass();
        Self::guard(open()?, &gate)
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
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use rustix::fs::{FlockOperation, flock};
    use rustix::process::{Pid, WaitOptions, waitpid};

    use super::{Gate, GuardedFd, OPENS_BESIDE_FORKS_MAX};
    use crate::{Attempt, DataDirLock, LOCK_FILE, LeaseState, LockError, Unlocked};

    /// Forks; the child leaves with what `child` says, and without running anything else.
    fn fork(mut child: impl FnMut() -> bool) -> Pid {
        // SAFETY: fork(2); the child runs `child` only, which uses no other thread's locks but the allocator's, and that one is
        // usable in a forked child.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut child)).unwrap_or(false);
            // SAFETY: _exit(2).
            unsafe { libc::_exit(i32::from(!fine)) };
        }
        // What the child closure owns is still the parent's.
        std::mem::forget(child);
        Pid::from_raw(pid).expect("fork failed")
    }

    fn is_fine(child: Pid) -> bool {
        waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap().1.exit_status() == Some(0)
    }

    /// The descriptors of this process that lead into the data dir.
    fn descriptors(dir: &Path) -> Vec<RawFd> {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let lead = all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(dir)));
        lead.map(|fd| fd.file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    /// As a death does it. The numbers stay in use, so that the lock's drop closes nothing of the tests beside this one.
    fn close_without_unlock(dir: &Path, lock: DataDirLock) {
        let nothing = File::open("/dev/null").unwrap();
        for fd in descriptors(dir) {
            // SAFETY: dup2(2); the number is the lock's, which is dropped below.
            assert_eq!(unsafe { libc::dup2(nothing.as_raw_fd(), fd) }, fd);
        }
        drop(lock);
    }

    fn is_file_locked(dir: &Path) -> bool {
        let file = File::open(dir.join(LOCK_FILE)).unwrap();
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
        flock(&file, FlockOperation::Unlock).unwrap();
        locked
    }

    #[test]
    fn a_forked_child_has_no_descriptor_of_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = DataDirLock::acquire(dir.path()).unwrap();
        let _unlocked = Unlocked::open(dir.path()).unwrap();
        let ours = descriptors(dir.path());
        assert_eq!(ours.len(), 4);
        // SAFETY: fcntl(2) with F_GETFD reads the table of descriptors only.
        let is_open = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1;
        assert!(is_fine(fork(|| !ours.iter().any(is_open))));
        assert!(ours.iter().all(is_open));
    }

    /// A child that lives until its end of the pipe is closed.
    struct Living {
        pid: Pid,
        keep_alive: Option<std::io::PipeWriter>,
    }

    impl Living {
        fn fork() -> Self {
            let (end_of_life, keep_alive) = std::io::pipe().unwrap();
            let pid = fork(|| {
                let mut end_of_life = end_of_life.try_clone().unwrap();
                // SAFETY: close(2); the child's copy of the parent's end, which the child does not use.
                unsafe { libc::close(keep_alive.as_raw_fd()) };
                std::io::Read::read(&mut end_of_life, &mut [0]).is_ok()
            });
            Self { pid, keep_alive: Some(keep_alive) }
        }

        fn ends_well(mut self) -> bool {
            drop(self.keep_alive.take());
            is_fine(self.pid)
        }
    }

    #[test]
    fn a_child_forked_while_a_descriptor_was_opened_has_no_copy_of_the_one_that_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, child) = (Cell::new(0), Cell::new(None));
        let guarded = GuardedFd::open(|| {
            let fd = OwnedFd::from(File::open(dir.path())?);
            opened.set(opened.get() + 1);
            if opened.get() == 1 {
                child.set(Some(Living::fork()));
            }
            Ok(fd)
        });
        let guarded = guarded.unwrap();
        // Children of tests beside this one may have come between as well.
        assert!(opened.get() > 1, "it is opened again");
        flock(guarded.get().unwrap(), FlockOperation::NonBlockingLockExclusive).unwrap();
        // Closed and not unlocked: who has a copy would keep it locked.
        drop(guarded);
        drop(DataDirLock::acquire_timeout(dir.path(), std::time::Duration::from_secs(60)).unwrap());
        assert!(child.take().is_some_and(Living::ends_well));
    }

    #[test]
    fn a_process_that_forks_all_the_time_gets_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Cell::new(0);
        let guarded = GuardedFd::open(|| {
            opened.set(opened.get() + 1);
            // The last one is made by who has the gate, and would wait for itself.
            assert!(opened.get() > OPENS_BESIDE_FORKS_MAX || is_fine(fork(|| true)));
            Ok(File::open(dir.path())?.into())
        });
        assert!(guarded.unwrap().get().is_ok());
        assert_eq!(opened.get(), OPENS_BESIDE_FORKS_MAX + 1);
    }

    #[test]
    fn a_fork_waits_for_who_has_the_gate() {
        use std::sync::atomic::{AtomicBool, Ordering};
        super::watch_forks().unwrap();
        let (at_the_gate, opened) = (AtomicBool::new(false), AtomicBool::new(false));
        let gate = Gate::pass();
        std::thread::scope(|scope| {
            let forking = scope.spawn(|| {
                at_the_gate.store(true, Ordering::SeqCst);
                is_fine(fork(|| opened.load(Ordering::SeqCst)))
            });
            while !at_the_gate.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            // Time enough for a fork that does not wait; one that waits needs none of it.
            (0..1_000).for_each(|_| std::thread::yield_now());
            opened.store(true, Ordering::SeqCst);
            drop(gate);
            assert!(forking.join().unwrap(), "the child was made while the gate was shut");
        });
    }

    #[test]
    fn a_signal_handler_that_forks_does_not_wait_for_the_thread_that_it_interrupted() {
        super::watch_forks().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // As if the signal had come right here.
            let gate = Gate::pass();
            let fine = is_fine(fork(|| true));
            let is_still_shut = super::GATE.load(std::sync::atomic::Ordering::SeqCst);
            drop(gate);
            sender.send((fine, is_still_shut)).unwrap();
        });
        assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(60)), Ok((true, true)));
    }

    #[test]
    fn a_forked_child_undoes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut locks = Some((DataDirLock::acquire(dir.path()).unwrap(), Unlocked::open(dir.path()).unwrap()));
        let child = fork(|| {
            // What has the number now is another file, which the parent's lock must leave alone.
            let other = File::open("/dev/null").unwrap();
            drop(locks.take());
            other.metadata().is_ok()
        });
        assert!(is_fine(child));
        assert!(is_file_locked(dir.path()));
        assert!(dir.path().join(".handoff.pidfile").exists());
        assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::Held { .. })));
    }

    #[test]
    fn a_forked_child_can_do_nothing_with_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = Some(DataDirLock::acquire(dir.path()).unwrap());
        let before = crate::read_lease(dir.path()).unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        let child = fork(|| {
            // What has the numbers now is another file.
            let others: Vec<File> = (0..4).map(|_| elsewhere.reopen().unwrap()).collect();
            let refused =
                |result: Result<(), LockError>| result.is_err_and(|error| error.to_string().contains("forked child"));
            let Some(mut lock) = lock.take() else { return false };
            refused(lock.activate(b"child"))
                && refused(lock.reserve_epochs())
                && refused(lock.seal().map(drop).map_err(|(_, error)| error))
                && others.iter().all(|other| other.metadata().is_ok_and(|stat| stat.len() == 0))
        });
        assert!(is_fine(child));
        assert_eq!(crate::read_lease(dir.path()).unwrap(), before);
        assert!(is_file_locked(dir.path()));
    }

    #[test]
    fn a_forked_child_that_lives_on_does_not_keep_a_dead_parents_lock() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(dir.path()).unwrap();
        let child = Living::fork();
        close_without_unlock(dir.path(), lock);
        // Waits, as children of tests beside this one may have copies for a moment; the child above lives on.
        let again = DataDirLock::acquire_timeout(dir.path(), std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(again.epoch(), 2);
        assert!(child.ends_well());
    }

    #[test]
    fn a_forked_child_takes_a_lock_of_its_own() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut lock = Some(DataDirLock::acquire(ours.path()).unwrap());
        let parent = std::process::id();
        let (mut told, tell) = std::io::pipe().unwrap();
        let (mut refused, mut say_refused) = std::io::pipe().unwrap();
        let child = fork(|| {
            let Err(LockError::Held { holder: Some(holder) }) = DataDirLock::acquire(ours.path()) else { return false };
            let Ok(mut other) = DataDirLock::acquire(theirs.path()) else { return false };
            // SAFETY: close(2); the child's copy of the parent's end, which the child does not use.
            unsafe { libc::close(tell.as_raw_fd()) };
            std::io::Write::write_all(&mut say_refused, b"r").unwrap();
            std::io::Read::read(&mut told, &mut [0]).unwrap();
            // The parent has released.
            let taken = DataDirLock::acquire_timeout(ours.path(), std::time::Duration::from_secs(60));
            let own_pid = std::process::id();
            holder.pid == parent
                && other.activate(b"child").is_ok()
                && is_file_locked(theirs.path())
                && taken.is_ok_and(|taken| taken.epoch() == 2 && taken.lease().owner.pid == own_pid)
        });
        std::io::Read::read_exact(&mut refused, &mut [0]).unwrap();
        lock.take().unwrap().release().unwrap();
        drop(tell);
        assert!(is_fine(child));
        assert_eq!(DataDirLock::acquire_timeout(theirs.path(), std::time::Duration::from_secs(60)).unwrap().epoch(), 2);
    }

    #[test]
    fn a_taker_that_has_no_descriptor_is_not_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(dir.path()).unwrap();
        // SAFETY: the descriptor is the lock's, which lives on.
        let inherited = |fd: &RawFd| unsafe { BorrowedFd::borrow_raw(*fd) }.try_clone_to_owned().unwrap();
        let [stdin, stdout] = descriptors(dir.path()).iter().map(inherited).collect::<Vec<_>>().try_into().unwrap();
        let mut child =
            Command::new("sleep").arg("60").stdin(stdin).stdout(stdout).stderr(Stdio::null()).spawn().unwrap();
        close_without_unlock(dir.path(), lock);
        // The taker's pid is this process's, as if it had been reused; it has a lock no more.
        let holder = crate::holder(dir.path());
        child.kill().unwrap();
        child.wait().unwrap();
        let holder = holder.unwrap().unwrap();
        assert_eq!((holder.pid, holder.inherited), (child.id(), true));
    }

    #[test]
    fn a_child_made_past_the_handlers_writes_and_undoes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = DataDirLock::acquire(dir.path()).unwrap();
        let before = crate::read_lease(dir.path()).unwrap();
        // SAFETY: clone(2) by its number, like fork(2) but without the handlers; the child uses the lock and leaves.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            let refused = lock.activate(b"child").is_err();
            drop(lock);
            // SAFETY: _exit(2).
            unsafe { libc::_exit(i32::from(!refused)) };
        }
        assert!(is_fine(Pid::from_raw(pid as i32).expect("clone failed")));
        assert_eq!(crate::read_lease(dir.path()).unwrap(), before);
        assert!(is_file_locked(dir.path()));
        assert!(dir.path().join(".handoff.pidfile").exists());
    }

    /// Does it as a user who may do nothing with `hidden`.
    fn kept_out_of<T: Send>(hidden: &Path, act: impl FnOnce() -> T + Send) -> T {
        use std::os::unix::fs::PermissionsExt;
        let set_mode = |mode| std::fs::set_permissions(hidden, std::fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o000);
        let result = std::thread::scope(|scope| {
            let act = || {
                // SAFETY: setfsuid(2) changes how this thread alone is seen by the file system; it ends after this.
                unsafe { libc::setfsuid(65_534) };
                act()
            };
            scope.spawn(act).join()
        });
        set_mode(0o700);
        result.unwrap()
    }

    #[test]
    fn an_owner_that_may_no_longer_search_the_way_to_its_directory_goes_on() {
        let base = tempfile::tempdir().unwrap();
        let hidden = base.path().join("hidden");
        for below in ["data", "parent/data"] {
            let mut lock = DataDirLock::acquire(&hidden.join(below)).unwrap();
            // The data dir itself is that user's.
            let everything = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(lock.data_dir(), everything).unwrap();
            kept_out_of(&hidden, || {
                lock.activate(b"build").unwrap();
                assert!(lock.is_in_place());
                let unlocked = lock.seal().map_err(|(_, error)| error).unwrap();
                let Attempt::Locked(claim) = unlocked.try_lock() else { panic!("it can't be taken back") };
                assert_eq!(claim.found().map(|lease| lease.state), Some(LeaseState::Sealed));
            });
        }
    }

    #[test]
    fn an_unreadable_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let result = kept_out_of(dir.path(), || DataDirLock::acquire(dir.path()));
        match result {
            Err(LockError::Io { path, source }) => {
                assert_eq!((path.as_path(), source.kind()), (dir.path(), std::io::ErrorKind::PermissionDenied));
            }
            other => panic!("{other:?}"),
        }
    }
}
