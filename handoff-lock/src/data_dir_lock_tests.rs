//! Acquiring, handing on and releasing the lock of a data directory.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use super::*;
use crate::{Attempt, LOCK_FILE, durable, holder};

const PIDFILE: &str = ".handoff.pidfile";

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A peer that knows only the lock file.
fn lock_file_only(dir: &Path) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(dir.join(LOCK_FILE)).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    file
}

fn own_pid(holder: Option<Holder>) -> bool {
    holder.is_some_and(|holder| holder.pid == std::process::id() && holder.alive && !holder.inherited)
}

#[test]
fn acquires_an_empty_directory() {
    let dir = scratch();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    assert_eq!((lock.data_dir(), lock.epoch()), (dir.path(), 1));
    assert_eq!(fs::read_to_string(dir.path().join(PIDFILE)).unwrap(), format!("{}\n", std::process::id()));
}

#[test]
fn creates_a_missing_directory() {
    let dir = scratch();
    let lock = DataDirLock::acquire(&dir.path().join("a/b")).unwrap();
    assert!(lock.data_dir().is_dir());
}

#[test]
fn a_second_acquire_is_refused_and_names_the_holder() {
    let dir = scratch();
    let _lock = DataDirLock::acquire(dir.path()).unwrap();
    match DataDirLock::acquire(dir.path()) {
        Err(LockError::Held { holder }) => assert!(own_pid(holder)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_drop_releases() {
    let dir = scratch();
    drop(DataDirLock::acquire(dir.path()).unwrap());
    assert!(!dir.path().join(PIDFILE).exists());
    let again = DataDirLock::acquire(dir.path()).unwrap();
    assert_eq!(again.epoch(), 2);
}

#[test]
fn stale_is_refused_for_a_live_pid() {
    let dir = scratch();
    let _lock = DataDirLock::acquire(dir.path()).unwrap();
    match DataDirLock::acquire_or_break_stale(dir.path()) {
        Err(LockError::StaleLockBreakRefused { holder }) => assert!(own_pid(holder)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn stale_is_taken_when_the_kernel_released_it() {
    let dir = scratch();
    fs::write(dir.path().join(LOCK_FILE), "").unwrap();
    fs::write(dir.path().join(PIDFILE), i32::MAX.to_string()).unwrap();
    drop(DataDirLock::acquire_or_break_stale(dir.path()).unwrap());
    fs::write(dir.path().join(PIDFILE), i32::MAX.to_string()).unwrap();
    let _lock = DataDirLock::acquire(dir.path()).unwrap();
}

#[test]
fn what_an_owner_left_that_died_while_it_wrote_its_pid_is_taken_over() {
    let dir = scratch();
    fs::write(dir.path().join(".handoff.pidfile.new"), "4194304, and more than fits").unwrap();
    let _lock = DataDirLock::acquire(dir.path()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join(PIDFILE)).unwrap(), format!("{}\n", std::process::id()));
    assert!(!dir.path().join(".handoff.pidfile.new").exists());
}

#[test]
fn a_pidfile_that_was_withdrawn_is_gone_until_it_is_announced_again() {
    let dir = scratch();
    let pidfile = dir.path().join(PIDFILE);
    let mut lock = DataDirLock::acquire(dir.path()).unwrap();
    lock.withdraw();
    assert!(!pidfile.exists());
    assert!(own_pid(holder(dir.path()).unwrap()), "the lease names the owner");
    lock.announce();
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), format!("{}\n", std::process::id()));
    lock.release().unwrap();
    assert!(!pidfile.exists());
}

#[test]
fn a_dead_owners_pidfile_goes_with_the_next_owner_who_never_wrote_one() {
    let dir = scratch();
    fs::write(dir.path().join(PIDFILE), i32::MAX.to_string()).unwrap();
    let Attempt::Locked(claim) = Unlocked::open(dir.path()).unwrap().try_lock() else { panic!("nobody has it") };
    claim.claim_quietly(None).unwrap().seal().unwrap();
    assert!(!dir.path().join(PIDFILE).exists());
}

fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Whatever is in the way must not make it wait.
fn acquired_in_time(dir: &Path) -> DataDirLock {
    let (sender, receiver) = std::sync::mpsc::channel();
    let dir = dir.to_path_buf();
    std::thread::spawn(move || {
        let _ = sender.send(DataDirLock::acquire(&dir));
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("it hangs").unwrap()
}

#[test]
fn what_is_in_the_way_of_a_new_file_is_replaced_and_never_waited_for() {
    type Obstacle = fn(&Path);
    let obstacles: [Obstacle; 3] = [
        make_fifo,
        |path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
        |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
    ];
    for name in [".handoff.pidfile.new", ".handoff.epoch.new", ".handoff.pidfile", ".handoff.epoch"] {
        for put in obstacles {
            let dir = scratch();
            epochs(dir.path());
            let path = dir.path().join(name);
            let _ = fs::remove_file(&path);
            // The epochs are to be reserved anew.
            let _ = fs::remove_file(dir.path().join(mark::SECOND_COPY));
            put(&path);
            let mut lock = acquired_in_time(dir.path());
            lock.reserve_epochs().unwrap();
            assert_eq!(names(dir.path()), [mark::SECOND_COPY, LOCK_FILE, PIDFILE].map(PathBuf::from), "{name}");
            for name in [mark::SECOND_COPY, PIDFILE] {
                assert!(fs::symlink_metadata(dir.path().join(name)).unwrap().is_file());
            }
        }
    }
}

#[test]
fn a_reader_of_what_is_in_the_way_gets_nothing() {
    for name in [".handoff.pidfile.new", ".handoff.epoch.new"] {
        let dir = scratch();
        let path = dir.path().join(name);
        make_fifo(&path);
        let reader = rustix::fs::open(
            &path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        );
        let reader = reader.unwrap();
        let _lock = acquired_in_time(dir.path());
        assert!(fs::symlink_metadata(dir.path().join(PIDFILE)).unwrap().is_file());
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]), Ok(0), "nothing, and the writer is gone");
    }
}

#[test]
fn stale_is_refused_when_the_pidfile_lies() {
    let dir = scratch();
    let _peer = lock_file_only(dir.path());
    fs::write(dir.path().join(PIDFILE), i32::MAX.to_string()).unwrap();
    match DataDirLock::acquire_or_break_stale(dir.path()) {
        Err(LockError::StaleLockBreakRefused { holder }) => assert!(own_pid(holder)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_that_locks_only_the_file_is_excluded_and_excludes() {
    let dir = scratch();
    let peer = lock_file_only(dir.path());
    assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::Held { .. })));
    flock(&peer, FlockOperation::Unlock).unwrap();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    let peer = File::open(dir.path().join(LOCK_FILE)).unwrap();
    assert!(flock(&peer, FlockOperation::NonBlockingLockExclusive).is_err());
    drop(lock);
    flock(&peer, FlockOperation::NonBlockingLockExclusive).unwrap();
}

fn lease_of(dir: &Path) -> Lease {
    crate::read_lease(dir).unwrap().unwrap()
}

#[test]
fn the_lease_tells_each_step() {
    let dir = scratch();
    let mut lock = DataDirLock::acquire(dir.path()).unwrap();
    let opening = lease_of(dir.path());
    assert_eq!((opening.epoch, opening.state, opening.owner), (1, LeaseState::Opening, Owner::current()));
    assert!(opening.of_this_boot());
    lock.activate(&[7; 80]).unwrap();
    assert_eq!((lease_of(dir.path()).state, lease_of(dir.path()).build_id), (LeaseState::Active, vec![7; 64]));
    lock.stamp(Some([9; 16])).unwrap();
    assert_eq!(lease_of(dir.path()).handoff_id, Some([9; 16]));
    assert_eq!(&lease_of(dir.path()), lock.lease());
    let unlocked = lock.seal().map_err(|(_, error)| error).unwrap();
    let sealed = unlocked.read_lease().unwrap().unwrap();
    assert_eq!((sealed.state, sealed.epoch, sealed.handoff_id), (LeaseState::Sealed, 1, Some([9; 16])));
    assert!(!dir.path().join(PIDFILE).exists());
    assert_eq!(holder(dir.path()).unwrap(), None);

    let Attempt::Locked(claim) = unlocked.try_lock() else { panic!("not locked") };
    assert_eq!(claim.found(), Some(&sealed));
    let lock = claim.claim(Some([8; 16])).map_err(|(_, error)| error).unwrap();
    assert_eq!((lock.epoch(), lock.lease().handoff_id), (2, Some([8; 16])));
}

#[test]
fn a_claim_given_up_leaves_no_trace() {
    let dir = scratch();
    DataDirLock::acquire(dir.path()).unwrap().release().unwrap();
    let before = lease_of(dir.path());
    let Attempt::Locked(claim) = Unlocked::open(dir.path()).unwrap().try_lock() else { panic!("not locked") };
    let unlocked = claim.unlock();
    assert_eq!(unlocked.read_lease().unwrap(), Some(before));
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    assert_eq!(lock.epoch(), 2);
    assert!(matches!(unlocked.try_lock(), Attempt::Held(_)));
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into()).collect();
    names.sort();
    names
}

#[test]
fn nothing_is_left_but_the_two_files() {
    let dir = scratch();
    DataDirLock::acquire(dir.path()).unwrap().release().unwrap();
    assert_eq!(names(dir.path()), [PathBuf::from(".handoff.epoch"), PathBuf::from(LOCK_FILE)]);
}

#[test]
fn an_older_build_takes_over_from_a_lease_and_a_mark_of_the_future_that_it_can_read() {
    let dir = scratch();
    epochs(dir.path());
    let path = dir.path().join(LOCK_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let newest = crate::lock_file::parse(&bytes).unwrap().newest.unwrap();
    let next = crate::lease::Numbered {
        sequence: newest.sequence + 1,
        file: newest.file,
        released: false,
        lease: Lease { epoch: 2, ..newest.lease },
    };
    let at = crate::lock_file::slot_offset(next.sequence) as usize;
    let slot = crate::lease::tests::of_the_future(&next, 9, 1);
    bytes[at..at + slot.len()].copy_from_slice(&slot);
    fs::write(&path, bytes).unwrap();
    assert_eq!(lease_of(dir.path()).epoch, 2);
    assert_eq!(epochs(dir.path()), 3);
}

fn damage(dir: &Path, name: &str, at: usize) {
    let mut bytes = fs::read(dir.join(name)).unwrap();
    bytes[at] ^= 1;
    fs::write(dir.join(name), bytes).unwrap();
}

fn epochs(dir: &Path) -> u64 {
    DataDirLock::acquire(dir).unwrap().epoch()
}

#[test]
fn each_acquisition_has_the_next_epoch() {
    let dir = scratch();
    assert_eq!((1..=20).map(|_| epochs(dir.path())).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
}

#[test]
fn the_epoch_never_goes_back_over_a_removed_lock_file() {
    let dir = scratch();
    let before = epochs(dir.path());
    fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
    let after = epochs(dir.path());
    assert!(after > before + mark::RESERVED_AHEAD, "{after}");
    assert_eq!(epochs(dir.path()), after + 1);
}

#[test]
fn the_epoch_never_goes_back_to_a_lock_file_that_was_put_back() {
    let dir = scratch();
    let (path, kept) = (dir.path().join(LOCK_FILE), dir.path().join("kept"));
    epochs(dir.path());
    fs::copy(&path, &kept).unwrap();
    let before = (0..5).map(|_| epochs(dir.path())).max().unwrap();
    fs::rename(&kept, &path).unwrap();
    let after = epochs(dir.path());
    assert!(after > before, "{after} after {before}");
    assert_eq!(epochs(dir.path()), after + 1);
}

#[test]
fn the_epoch_goes_on_above_the_mark_if_both_slots_are_torn() {
    let dir = scratch();
    epochs(dir.path());
    let before = epochs(dir.path());
    damage(dir.path(), LOCK_FILE, 100);
    damage(dir.path(), LOCK_FILE, 612);
    assert!(epochs(dir.path()) > before + 1);
}

#[test]
fn a_lease_of_another_boot_has_no_owner_and_its_epoch_is_not_trusted() {
    let dir = scratch();
    epochs(dir.path());
    let path = dir.path().join(LOCK_FILE);
    let mut newest = crate::lock_file::parse(&fs::read(&path).unwrap()).unwrap().newest.unwrap();
    newest.lease.owner.boot_id[3] ^= 1;
    fs::write(&path, crate::lock_file::image(&newest, 1 + mark::RESERVED_AHEAD)).unwrap();
    let Attempt::Locked(claim) = Unlocked::open(dir.path()).unwrap().try_lock() else { panic!("not locked") };
    assert!(!claim.found().unwrap().of_this_boot());
    let lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
    assert_eq!(lock.epoch(), 2 + mark::RESERVED_AHEAD);
}

#[test]
fn a_lost_mark_is_refused_and_the_file_named() {
    let dir = scratch();
    epochs(dir.path());
    damage(dir.path(), LOCK_FILE, 4100);
    assert!(epochs(dir.path()) > mark::RESERVED_AHEAD, "the second copy is enough");
    damage(dir.path(), LOCK_FILE, 4100);
    damage(dir.path(), mark::SECOND_COPY, 9);
    match DataDirLock::acquire(dir.path()) {
        Err(LockError::EpochMarkLost { path, second_copy }) => {
            assert_eq!((path, second_copy), (dir.path().join(LOCK_FILE), dir.path().join(mark::SECOND_COPY)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(holder(dir.path()).unwrap(), None, "the refused one does not keep the lock");
}

#[test]
fn the_last_epoch_has_no_next_one_and_both_files_are_named() {
    let dir = scratch();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    let last = Lease { epoch: u64::MAX, ..lock.lease().clone() };
    drop(lock);
    let newest = crate::lease::Numbered { sequence: 9, file: 7, released: true, lease: last };
    fs::write(dir.path().join(LOCK_FILE), crate::lock_file::image(&newest, u64::MAX)).unwrap();
    let error = DataDirLock::acquire(dir.path()).unwrap_err();
    assert!(matches!(error, LockError::EpochsUsedUp { .. }), "{error}");
    for name in [LOCK_FILE, mark::SECOND_COPY] {
        assert!(error.to_string().contains(&dir.path().join(name).display().to_string()), "{error}");
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert_eq!(epochs(dir.path()), 1, "what the words say helps");
}

#[test]
fn a_foreign_file_of_that_name_is_refused_and_kept() {
    for name in [LOCK_FILE, mark::SECOND_COPY] {
        let dir = scratch();
        fs::write(dir.path().join(name), "somebody's data").unwrap();
        assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::EpochMarkLost { .. })), "{name}");
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"somebody's data");
    }
}

#[test]
fn a_reserve_that_is_used_up_is_renewed_before_it_is_exceeded() {
    let dir = scratch();
    let mark =
        |name: &str, at: usize| crate::lock_file::parse_mark(&fs::read(dir.path().join(name)).unwrap()[at..]).unwrap();
    let marks = || (mark(LOCK_FILE, 4096), mark(mark::SECOND_COPY, 0));
    epochs(dir.path());
    let first = 1 + mark::RESERVED_AHEAD;
    assert_eq!(marks(), (Found::Mark(first), Found::Mark(first)));
    for _ in 1..mark::RESERVED_AHEAD {
        epochs(dir.path());
    }
    assert_eq!((epochs(dir.path()), marks()), (first, (Found::Mark(first), Found::Mark(first))));
    let next = first + 1 + mark::RESERVED_AHEAD;
    assert_eq!((epochs(dir.path()), marks()), (first + 1, (Found::Mark(next), Found::Mark(next))));
}

#[test]
fn a_reservation_is_topped_up_and_both_copies_are_put_back() {
    let dir = scratch();
    let mut lock = DataDirLock::acquire(dir.path()).unwrap();
    let second = dir.path().join(mark::SECOND_COPY);
    let before = fs::read(&second).unwrap();
    lock.reserve_epochs().unwrap();
    assert_eq!(fs::read(&second).unwrap(), before, "enough are left: nothing is written");
    fs::remove_file(&second).unwrap();
    fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
    lock.reserve_epochs().unwrap();
    assert_eq!(fs::read(&second).unwrap(), before);
    assert_eq!(crate::read_lease(dir.path()).unwrap().as_ref(), Some(lock.lease()));
    lock.release().unwrap();
    assert_eq!(epochs(dir.path()), 2);
}

/// The syncs of a reservation that overwrites the second copy.
const RESERVATION_SYNCS: u32 = 4;

/// A lock of which a reservation is due.
fn due_for_a_reservation(dir: &Path) -> DataDirLock {
    let mut lock = DataDirLock::acquire(dir).unwrap();
    for _ in 0..=mark::RESERVED_AHEAD / 2 {
        drop(lock);
        lock = DataDirLock::acquire(dir).unwrap();
    }
    assert!(lock.epoch() > mark::RESERVED_AHEAD / 2 + 1, "epoch {}", lock.epoch());
    lock
}

#[test]
fn after_a_failed_sync_the_second_copy_is_replaced_and_not_overwritten() {
    use std::os::unix::fs::MetadataExt;
    let dir = scratch();
    let second_copy = || fs::metadata(dir.path().join(mark::SECOND_COPY)).unwrap().ino();
    let mut lock = due_for_a_reservation(dir.path());
    let before = second_copy();
    for fails_at in 0..RESERVATION_SYNCS {
        let dir = scratch();
        let second_copy = || fs::metadata(dir.path().join(mark::SECOND_COPY)).unwrap().ino();
        let mut lock = due_for_a_reservation(dir.path());
        let before = second_copy();
        durable::tests::fail_after(fails_at);
        assert!(matches!(lock.reserve_epochs(), Err(LockError::Io { .. })), "sync {fails_at}");
        assert!(durable::tests::has_failed());
        assert_eq!(second_copy(), before);
        // It would succeed now, as the kernel takes what it could not write for clean.
        lock.reserve_epochs().unwrap();
        assert_ne!(second_copy(), before, "sync {fails_at}: a torn copy would leave none that is certain");
    }
    durable::tests::fail_after(RESERVATION_SYNCS);
    lock.reserve_epochs().unwrap();
    assert!(!durable::tests::has_failed(), "there are more syncs than were tried");
    assert_eq!(second_copy(), before, "without a failure no new file is needed");
}

#[test]
fn a_mark_whose_sync_failed_is_used_by_nobody() {
    let dir = scratch();
    let mut lock = due_for_a_reservation(dir.path());
    let epoch = lock.epoch();
    durable::tests::fail_after(RESERVATION_SYNCS - 1);
    assert!(lock.reserve_epochs().is_err());
    drop(lock);
    // Another process knows nothing of the failure.
    let next = epochs(dir.path());
    assert_eq!(next, epoch + mark::RESERVED_AHEAD + 1, "it goes on above the second copy, which is durable");
    assert_eq!(epochs(dir.path()), next + 1);
}

#[test]
fn a_claim_whose_reservation_failed_leaves_no_mark_that_is_not_durable() {
    // Of a first acquisition: second copy, its name, the lock file.
    for fails_at in 0..3 {
        let dir = scratch();
        durable::tests::fail_after(fails_at);
        assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::Io { .. })), "sync {fails_at}");
        assert!(durable::tests::has_failed());
        let contents = crate::lock_file::parse(&fs::read(dir.path().join(LOCK_FILE)).unwrap()).unwrap();
        assert!(!matches!(contents.mark, Found::Mark(_)), "sync {fails_at}");
        assert!(epochs(dir.path()) > 0);
    }
}

#[test]
fn waiting_ends_when_the_holder_leaves_or_the_time_is_over() {
    let dir = scratch();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    let over = DataDirLock::acquire_timeout(dir.path(), Duration::ZERO);
    assert!(matches!(over, Err(LockError::Held { .. })));
    let waiting = std::thread::spawn({
        let dir = dir.path().to_path_buf();
        move || DataDirLock::acquire_timeout(&dir, Duration::MAX).unwrap().epoch()
    });
    lock.release().unwrap();
    assert_eq!(waiting.join().unwrap(), 2);
}

#[test]
fn who_waits_is_told_for_whom_and_again_when_it_is_another() {
    let dir = scratch();
    let peer = lock_file_only(dir.path());
    let (mut told, mut first) = (Vec::new(), Some(peer));
    let mut second = None;
    let waiting = DataDirLock::options().timeout(Duration::from_secs(60));
    let lock = waiting.acquire_telling(dir.path(), |held_by| {
        let HeldBy::Owner(Some(holder)) = held_by else { panic!("{held_by:?}") };
        told.push(holder.since_unix_ms.is_some());
        match told.len() {
            1 => {
                // The same process, now as an owner that has written a lease.
                drop(first.take());
                second = Some(DataDirLock::acquire_timeout(dir.path(), Duration::from_secs(60)).unwrap());
            }
            _ => drop(second.take()),
        }
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(lock.unwrap().epoch(), 2);
    assert_eq!(told, [false, true]);
}

#[test]
fn who_is_told_may_end_the_wait_and_nobody_is_told_who_does_not_wait() {
    let dir = scratch();
    let unneeded = |_: &HeldBy| panic!("there is nobody to wait for");
    let lock = DataDirLock::options().timeout(Duration::MAX).acquire_telling(dir.path(), unneeded).unwrap();
    let hurried = DataDirLock::options().acquire_telling(dir.path(), unneeded);
    assert!(matches!(hurried, Err(LockError::Held { .. })));
    let mut told = 0;
    let ended = DataDirLock::options().timeout(Duration::MAX).acquire_telling(dir.path(), |_| {
        told += 1;
        std::ops::ControlFlow::Break(())
    });
    match ended {
        Err(LockError::Held { holder }) => assert!(own_pid(holder)),
        other => panic!("{other:?}"),
    }
    assert_eq!((told, lock.epoch()), (1, 1));
}

#[test]
fn of_many_threads_one_at_a_time_holds_the_lock() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = scratch();
    let inside = AtomicBool::new(false);
    let round = || {
        let lock = DataDirLock::acquire_timeout(dir.path(), Duration::from_secs(60)).unwrap();
        assert!(!inside.swap(true, Ordering::SeqCst), "two holders");
        let epoch = lock.epoch();
        assert!(inside.swap(false, Ordering::SeqCst));
        epoch
    };
    let mut epochs: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..25).map(|_| round()).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    epochs.sort_unstable();
    assert_eq!(epochs, (1..=200).collect::<Vec<_>>());
}
