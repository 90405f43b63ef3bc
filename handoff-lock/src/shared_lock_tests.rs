//! Readers beside each other, before an owner, and beside those who lock one of the two inodes alone.

use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::flock::try_flock;
use crate::{DataDirLock, LeaseState, holder, look, readers};

const PATIENCE: Duration = Duration::from_secs(60);

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn had_an_owner() -> tempfile::TempDir {
    let dir = scratch();
    let mut lock = DataDirLock::acquire(dir.path()).unwrap();
    lock.activate(b"build").unwrap();
    lock.release().unwrap();
    dir
}

fn pids(holders: &[holder::Holder]) -> Vec<u32> {
    holders.iter().map(|holder| holder.pid).collect()
}

#[test]
fn readers_share_it_and_an_owner_waits_until_the_last_has_left() {
    let dir = had_an_owner();
    let [first, second] = [(); 2].map(|()| DataDirLock::acquire_shared(dir.path()).unwrap());
    assert!(first.is_held() && second.is_held() && first.is_in_place());
    assert_eq!(first.lease().unwrap().map(|lease| (lease.epoch, lease.state)), Some((1, LeaseState::Active)));
    first.release().unwrap();
    match DataDirLock::acquire(dir.path()) {
        Err(LockError::BeingRead { readers }) => assert_eq!(pids(&readers), [std::process::id()]),
        other => panic!("{other:?}"),
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| DataDirLock::acquire_timeout(dir.path(), PATIENCE).unwrap().epoch());
        drop(second);
        assert_eq!(waiting.join().unwrap(), 2);
    });
}

#[test]
fn an_owner_excludes_readers_and_is_named() {
    let dir = had_an_owner();
    let lock = DataDirLock::acquire(dir.path()).unwrap();
    match DataDirLock::acquire_shared(dir.path()) {
        Err(LockError::Held { holder: Some(holder) }) => {
            assert_eq!((holder.pid, holder.since_unix_ms), (std::process::id(), Some(lock.lease().since_unix_ms)));
        }
        other => panic!("{other:?}"),
    }
    std::thread::scope(|scope| {
        let patient = DataDirLock::options().timeout(PATIENCE);
        let waiting = scope.spawn(move || patient.acquire_shared(dir.path()).unwrap().is_held());
        drop(lock);
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn it_is_held_until_one_of_the_two_is_unlocked() {
    let dir = had_an_owner();
    let unlock: [fn(&Reader); 2] = [
        |reader| unflock(reader.dir.get().unwrap()).unwrap(),
        |reader| unflock(reader.file.as_ref().unwrap().get().unwrap()).unwrap(),
    ];
    for unlock in unlock {
        let reading = DataDirLock::acquire_shared(dir.path()).unwrap();
        assert!(reading.is_held());
        unlock(&reading.reader);
        assert!(!reading.is_held());
    }
}

#[test]
fn a_drop_unlocks_also_what_a_child_that_is_being_spawned_has_a_copy_of() {
    let dir = had_an_owner();
    let reading = DataDirLock::acquire_shared(dir.path()).unwrap();
    let copies =
        [&reading.reader.dir, reading.reader.file.as_ref().unwrap()].map(|fd| fd.get().unwrap().try_clone_to_owned());
    drop(reading);
    assert!(try_flock(File::open(dir.path()).unwrap().as_fd()).unwrap());
    assert!(try_flock(File::open(dir.path().join(LOCK_FILE)).unwrap().as_fd()).unwrap());
    drop(copies);
}

#[test]
fn a_reader_is_no_holder_and_never_stale() {
    let dir = had_an_owner();
    let _reading = DataDirLock::acquire_shared(dir.path()).unwrap();
    assert_eq!(holder::holder(dir.path()).unwrap(), None);
    assert_eq!(look(dir.path()).unwrap().locked_by, None);
    assert_eq!(pids(&readers(dir.path()).unwrap()), [std::process::id()]);
    let refused = DataDirLock::acquire_or_break_stale(dir.path()).unwrap_err();
    assert!(matches!(refused, LockError::BeingRead { .. }), "{refused}");
    let line = refused.to_string();
    assert!(line.contains(&format!("being read by pid {}", std::process::id())), "{line}");
}

#[test]
fn nobody_reads_what_nobody_has_locked_or_an_owner_has() {
    let dir = had_an_owner();
    assert_eq!(readers(dir.path()).unwrap(), []);
    assert_eq!(readers(&dir.path().join("missing")).unwrap(), []);
    let _lock = DataDirLock::acquire(dir.path()).unwrap();
    assert_eq!(readers(dir.path()).unwrap(), []);
}

#[test]
fn a_reader_leaves_no_trace() {
    let dir = scratch();
    assert!(matches!(DataDirLock::acquire_shared(&dir.path().join("missing")), Err(LockError::Io { .. })));
    let reading = DataDirLock::acquire_shared(dir.path()).unwrap();
    assert_eq!(reading.lease().unwrap(), None);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::BeingRead { .. })), "the directory is enough");
    drop(reading);
    let owned = had_an_owner();
    let bytes = || fs::read(owned.path().join(LOCK_FILE)).unwrap();
    let before = bytes();
    drop(DataDirLock::acquire_shared(owned.path()).unwrap());
    assert_eq!(bytes(), before);
    assert_eq!(DataDirLock::acquire(owned.path()).unwrap().epoch(), 2);
}

#[test]
fn a_peer_that_locks_the_file_alone_excludes_and_is_excluded() {
    let dir = had_an_owner();
    let peer = File::open(dir.path().join(LOCK_FILE)).unwrap();
    assert!(try_flock(peer.as_fd()).unwrap());
    match DataDirLock::acquire_shared(dir.path()) {
        Err(LockError::Held { holder: Some(holder) }) => assert_eq!(holder.pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    assert!(try_flock(File::open(dir.path()).unwrap().as_fd()).unwrap(), "who could not get both keeps neither");
    unflock(peer.as_fd()).unwrap();
    let _reading = DataDirLock::options().timeout(PATIENCE).acquire_shared(dir.path()).unwrap();
    assert!(!try_flock(peer.as_fd()).unwrap());
}

#[test]
fn a_directory_that_goes_over_from_owner_to_owner_lets_no_reader_in() {
    let dir = scratch();
    let mut successor = crate::Unlocked::open(dir.path()).unwrap();
    let mut lock = DataDirLock::acquire(dir.path()).unwrap();
    successor.adopt_directory(lock.directory().unwrap()).unwrap();
    let incumbent = lock.seal_and_pass().map_err(|(_, error)| error).unwrap();
    assert!(matches!(DataDirLock::acquire_shared(dir.path()), Err(LockError::Held { .. })));
    let crate::Attempt::Locked(claim) = successor.try_lock() else { panic!("held") };
    let _lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
    drop(incumbent);
    assert!(matches!(DataDirLock::acquire_shared(dir.path()), Err(LockError::Held { .. })));
}

#[test]
fn a_lock_file_in_whose_place_is_something_else_is_refused() {
    let dir = scratch();
    std::os::unix::fs::symlink("elsewhere", dir.path().join(LOCK_FILE)).unwrap();
    let refused = DataDirLock::acquire_shared(dir.path()).unwrap_err();
    assert!(matches!(&refused, LockError::NotALockFile { path } if *path == dir.path().join(LOCK_FILE)), "{refused}");
    assert!(try_flock(File::open(dir.path()).unwrap().as_fd()).unwrap(), "a failed try keeps nothing locked");
}

#[test]
fn without_a_lock_file_the_directory_is_not_enough_where_it_may_have_no_locks() {
    let dir = scratch();
    let any = DataDirLock::options().allow_any_filesystem(true);
    assert!(matches!(any.acquire_shared(dir.path()), Err(LockError::Io { .. })));
    drop(any.acquire(dir.path()).unwrap());
    assert!(any.acquire_shared(dir.path()).unwrap().is_held());
}

#[test]
fn a_directory_that_was_switched_is_read_where_the_path_leads_now() {
    let parent = scratch();
    let dir = parent.path().join("data");
    fs::create_dir(&dir).unwrap();
    let mut reader = Reader::open(&dir, Filesystems::Local).unwrap();
    fs::rename(&dir, parent.path().join("old")).unwrap();
    fs::create_dir(&dir).unwrap();
    assert!(reader.try_lock().unwrap());
    assert!(matches!(DataDirLock::acquire(&dir), Err(LockError::BeingRead { .. })));
    drop(DataDirLock::acquire(&parent.path().join("old")).unwrap());
    let reading = SharedLock { reader };
    fs::rename(&dir, parent.path().join("older")).unwrap();
    assert!(reading.is_held() && !reading.is_in_place());
}

#[test]
fn who_may_not_read_the_lock_file_locks_the_directory_alone() {
    let dir = had_an_owner();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let reading = crate::sys::tests::as_nobody(|| DataDirLock::acquire_shared(dir.path()).unwrap());
    assert_eq!(reading.lease().unwrap(), None);
    assert!(reading.is_held());
    assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::BeingRead { .. })));
}

#[test]
fn a_forked_child_has_no_part_in_it_and_undoes_nothing() {
    let dir = had_an_owner();
    let mut reading = Some(DataDirLock::acquire_shared(dir.path()).unwrap());
    assert!(crate::sys::tests::is_fine(crate::sys::tests::fork(|| {
        reading.take().is_some_and(|reading| !reading.is_held() && reading.release().is_err())
    })));
    assert!(reading.as_ref().is_some_and(SharedLock::is_held));
    assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::BeingRead { .. })));
}

#[test]
fn of_many_threads_an_owner_is_alone_and_readers_are_not() {
    use std::sync::atomic::{AtomicU32, Ordering};
    const OWNER: u32 = 1_000;
    let dir = had_an_owner();
    let inside = AtomicU32::new(0);
    let own = || {
        let _lock = DataDirLock::acquire_timeout(dir.path(), PATIENCE).unwrap();
        assert_eq!(inside.swap(OWNER, Ordering::SeqCst), 0, "an owner beside somebody");
        inside.store(0, Ordering::SeqCst);
    };
    let read = || {
        let _reading = DataDirLock::options().timeout(PATIENCE).acquire_shared(dir.path()).unwrap();
        assert!(inside.fetch_add(1, Ordering::SeqCst) < OWNER, "a reader beside an owner");
        inside.fetch_sub(1, Ordering::SeqCst);
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..25).for_each(|_| own()));
            scope.spawn(|| (0..25).for_each(|_| read()));
        }
    });
}
