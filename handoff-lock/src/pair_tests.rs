//! The two inodes of the lock: who excludes whom, and what is left behind.

use std::fs::{self, File};

use rustix::fs::FileType;

use super::*;
use crate::{Attempt, DataDirLock, LeaseState, Unlocked, read_lease};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn active(dir: &Path) -> DataDirLock {
    let mut lock = DataDirLock::acquire(dir).unwrap();
    lock.activate(b"build").unwrap();
    lock
}

fn is_file_locked(dir: &Path) -> bool {
    let file = File::open(dir.join(LOCK_FILE)).unwrap();
    let locked = !try_flock(file.as_fd()).unwrap();
    unflock(file.as_fd()).unwrap();
    locked
}

fn assert_held(dir: &Path) {
    assert!(matches!(DataDirLock::acquire(dir), Err(LockError::Held { .. })));
}

#[test]
fn a_removed_lock_file_makes_no_second_owner() {
    let dir = scratch();
    let lock = active(dir.path());
    fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
    assert_held(dir.path());
    // The try left an empty file, as an operator or an older tool may do.
    assert_held(dir.path());
    assert_eq!(read_lease(dir.path()).unwrap(), None);
    let unlocked = lock.seal().map_err(|(_, error)| error).unwrap();
    let sealed = read_lease(dir.path()).unwrap().unwrap();
    assert_eq!((sealed.state, sealed.epoch), (LeaseState::Sealed, 1));
    assert_eq!(unlocked.read_lease().unwrap(), Some(sealed));
    assert_eq!(DataDirLock::acquire(dir.path()).unwrap().epoch(), 2);
}

#[test]
fn an_owner_locks_the_file_that_replaced_its_own() {
    let dir = scratch();
    let mut lock = active(dir.path());
    fs::write(dir.path().join("new"), "not a lease").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join(LOCK_FILE)).unwrap();
    assert!(!is_file_locked(dir.path()));
    lock.stamp(Some([1; 16])).unwrap();
    assert!(is_file_locked(dir.path()));
    assert_eq!(read_lease(dir.path()).unwrap().as_ref(), Some(lock.lease()));
    drop(lock);
    assert!(!is_file_locked(dir.path()));
    assert_eq!(DataDirLock::acquire(dir.path()).unwrap().epoch(), 2);
}

#[test]
fn a_drop_fills_the_new_file_before_it_unlocks() {
    let dir = scratch();
    let lock = active(dir.path());
    let lease = lock.lease().clone();
    fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
    drop(lock);
    assert_eq!(read_lease(dir.path()).unwrap(), Some(lease));
}

#[test]
fn a_step_fails_if_a_peer_locked_the_file_that_replaced_ours() {
    let dir = scratch();
    let lock = active(dir.path());
    fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
    let peer = File::create(dir.path().join(LOCK_FILE)).unwrap();
    assert!(try_flock(peer.as_fd()).unwrap());
    let Err((lock, error)) = lock.seal() else { panic!("sealed") };
    let LockError::LockFileTaken { holder: Some(holder), .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, std::process::id(), "{error}");
    assert_eq!(lock.lease().state, LeaseState::Active);
    assert_held(dir.path());
    unflock(peer.as_fd()).unwrap();
    lock.seal().map_err(|(_, error)| error).unwrap();
}

#[test]
fn while_the_directory_is_locked_nobody_who_tries_locks_the_file() {
    let dir = scratch();
    let service = File::open(dir.path()).unwrap();
    assert!(try_flock(service.as_fd()).unwrap());
    let unlocked = Unlocked::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        let trying = scope.spawn(|| unlocked.try_lock());
        while !trying.is_finished() {
            assert!(!is_file_locked(dir.path()), "an owner whose file was removed could not lock the new one");
        }
        assert!(matches!(trying.join().unwrap(), Attempt::Held(_)));
    });
}

#[test]
fn a_lock_is_taken_where_the_path_leads_now() {
    let parent = scratch();
    let dir = parent.path().join("data");
    let unlocked = Unlocked::open(&dir).unwrap();
    fs::rename(&dir, parent.path().join("old")).unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let Attempt::Held(unlocked) = unlocked.try_lock() else { panic!("two owners of one path") };
    drop(lock);
    assert!(matches!(unlocked.try_lock(), Attempt::Locked(_)));
}

#[test]
fn a_directory_that_is_gone_is_not_made_again_by_a_try() {
    let parent = scratch();
    let dir = parent.path().join("data");
    let unlocked = Unlocked::open(&dir).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let Attempt::Failed(unlocked, LockError::Io { path, .. }) = unlocked.try_lock() else { panic!("locked") };
    assert_eq!((path, dir.exists()), (dir.clone(), false));
    fs::create_dir(&dir).unwrap();
    assert!(matches!(unlocked.try_lock(), Attempt::Locked(_)));
}

#[test]
fn a_failed_try_keeps_nothing_locked() {
    let dir = scratch();
    let unlocked = Unlocked::open(dir.path()).unwrap();
    let newest = Numbered { sequence: 2, file: 7, released: false, lease: crate::lease::tests::lease(2) };
    let newer = crate::lease::tests::of_the_future(&newest, 2, 2);
    fs::write(dir.path().join(LOCK_FILE), newer).unwrap();
    let Attempt::Failed(_unlocked, error) = unlocked.try_lock() else { panic!("locked") };
    assert!(error.to_string().contains("newer build"), "{error}");
    assert!(!is_file_locked(dir.path()));
}

#[test]
fn an_opt_in_works_where_directories_have_no_locks() {
    let dir = scratch();
    let pair = |filesystems| {
        let settings = Settings { filesystems, creation: Creation::Never, pidfile: PidfileUse::Without };
        Pair::open(dir.path(), settings).unwrap()
    };
    assert!(pair(Filesystems::Any).is_file_enough(Errno::BADF));
    assert!(!pair(Filesystems::Any).is_file_enough(Errno::IO));
    assert!(!pair(Filesystems::Local).is_file_enough(Errno::BADF));
    let _lock = DataDirLock::options().allow_any_filesystem(true).acquire(dir.path()).unwrap();
    assert_held(dir.path());
}

#[test]
fn whoever_locks_only_the_directory_excludes() {
    let dir = scratch();
    let other = File::open(dir.path()).unwrap();
    assert!(try_flock(other.as_fd()).unwrap());
    assert_held(dir.path());
    assert!(!is_file_locked(dir.path()));
}

#[test]
fn who_gets_the_directory_but_not_the_file_keeps_neither() {
    let dir = scratch();
    let peer = File::create(dir.path().join(LOCK_FILE)).unwrap();
    assert!(try_flock(peer.as_fd()).unwrap());
    let Attempt::Held(_unlocked) = Unlocked::open(dir.path()).unwrap().try_lock() else { panic!("two owners") };
    assert!(try_flock(File::open(dir.path()).unwrap().as_fd()).unwrap(), "the directory is kept");
}

#[test]
fn what_is_no_regular_file_is_refused_by_name() {
    let dir = scratch();
    let path = dir.path().join(LOCK_FILE);
    let refused = || match DataDirLock::acquire(dir.path()) {
        Err(LockError::NotALockFile { path: named }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    };
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
    refused();
    assert!(!dir.path().join("elsewhere").exists());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused();
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    refused();
}

#[test]
fn the_lock_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = scratch();
    let _lock = active(dir.path());
    assert_eq!(fs::metadata(dir.path().join(LOCK_FILE)).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn a_path_that_is_no_directory_is_named() {
    let dir = scratch();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    match DataDirLock::acquire(&path) {
        Err(LockError::Io { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
}
