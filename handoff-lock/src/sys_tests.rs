//! The lock in forked children, and before users who may not do everything.

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
pub(crate) fn fork(mut child: impl FnMut() -> bool) -> Pid {
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

pub(crate) fn is_fine(child: Pid) -> bool {
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
fn every_descriptor_that_stays_open_is_closed_by_exec() {
    let base = tempfile::tempdir().unwrap();
    let [owned, read] = ["owned", "read"].map(|name| base.path().join(name));
    drop(DataDirLock::acquire(&read).unwrap());
    let _reading = DataDirLock::acquire_shared(&read).unwrap();
    let mut lock = DataDirLock::acquire(&owned).unwrap();
    let mut watched = crate::WatchedLease::new(&owned);
    watched.read().unwrap();
    let passed = lock.directory().unwrap();
    rustix::io::fcntl_setfd(&passed, rustix::io::FdFlags::empty()).unwrap();
    let mut successor = Unlocked::open(&owned).unwrap();
    successor.adopt_directory(passed).unwrap();
    let _copy = lock.directory().unwrap();
    let _apart = lock.seal().map_err(|(_, error)| error).unwrap();
    // Each of the pairs and the reader: the directory, the one above it and the file; and the watched file, and the copy.
    let open = descriptors(base.path());
    assert_eq!(open.len(), 3 * 3 + 2);
    for fd in open {
        // SAFETY: the descriptor is one of those above, which live on.
        let flags = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).unwrap();
        assert!(
            flags.contains(rustix::io::FdFlags::CLOEXEC),
            "{:?}",
            std::fs::read_link(format!("/proc/self/fd/{fd}"))
        );
    }
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
fn a_lock_is_held_by_who_took_it_until_its_descriptors_are_unlocked() {
    let dir = tempfile::tempdir().unwrap();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    assert!(lock.is_held());
    assert!(is_fine(fork(|| !lock.is_held())));
    for fd in descriptors(dir.path()) {
        // SAFETY: the descriptor is the lock's, which lives on.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        flock(fd, FlockOperation::Unlock).unwrap();
        assert!(!lock.is_held(), "one of the two is not enough");
        flock(fd, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(lock.is_held());
    }
    assert!(DataDirLock::options().allow_any_filesystem(true).acquire(&dir.path().join("b")).unwrap().is_held());
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
    let mut child = Command::new("sleep").arg("60").stdin(stdin).stdout(stdout).stderr(Stdio::null()).spawn().unwrap();
    close_without_unlock(dir.path(), lock);
    // The taker's pid is this process's, as if it had been reused; it has a lock no more. A child of a test beside this one may
    // have copies for a moment.
    let start = std::time::Instant::now();
    let holder = loop {
        let holder = crate::holder(dir.path()).unwrap().unwrap();
        if holder.pid == child.id() || start.elapsed() > std::time::Duration::from_secs(60) {
            break holder;
        }
        std::thread::yield_now();
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((holder.pid, holder.inherited), (child.id(), true));
}

#[test]
fn a_child_made_past_the_handlers_undoes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    // SAFETY: clone(2) by its number, like fork(2) but without the handlers; the child drops the lock and leaves.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        drop(lock);
        // SAFETY: _exit(2).
        unsafe { libc::_exit(0) };
    }
    assert!(is_fine(Pid::from_raw(pid as i32).expect("clone failed")));
    assert!(is_file_locked(dir.path()));
    assert!(dir.path().join(".handoff.pidfile").exists());
}

/// Does it as a user who may do nothing with `hidden`.
fn kept_out_of<T: Send>(hidden: &Path, act: impl FnOnce() -> T + Send) -> T {
    use std::os::unix::fs::PermissionsExt;
    let set_mode = |mode| std::fs::set_permissions(hidden, std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o000);
    let result = as_nobody(act);
    set_mode(0o700);
    result
}

/// Does it as a user who may do nothing with the files of this one.
pub(crate) fn as_nobody<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let act = || {
            // SAFETY: setfsuid(2) changes how this thread alone is seen by the file system; it ends after this.
            unsafe { libc::setfsuid(65_534) };
            act()
        };
        scope.spawn(act).join().unwrap()
    })
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
