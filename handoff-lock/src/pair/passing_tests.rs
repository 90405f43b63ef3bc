//! The directory's lock on its way from one owner to the next. An open file description of its own is what a process has, so
//! each `Unlocked` here stands for one.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use super::*;
use crate::flock::{try_flock, unflock};
use crate::{Attempt, DataDirLock, Unlocked};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Whether a stranger who may read the directory gets its lock.
fn is_open_to_strangers(dir: &Path) -> bool {
    try_flock(File::open(dir).unwrap().as_fd()).unwrap()
}

/// A child that is just being spawned beside this test has copies of all descriptors until its exec.
fn wait_until_open_to_strangers(dir: &Path) {
    let patience = std::time::Duration::from_secs(60);
    let start = std::time::Instant::now();
    while !is_open_to_strangers(dir) {
        assert!(start.elapsed() < patience, "still locked after {patience:?}");
        std::thread::yield_now();
    }
}

/// An incumbent that has sealed, and a successor that has adopted its directory.
fn sealed_and_passed(dir: &Path) -> (Unlocked, Unlocked) {
    let mut successor = Unlocked::open(dir).unwrap();
    let mut lock = DataDirLock::acquire(dir).unwrap();
    successor.adopt_directory(lock.directory().unwrap()).unwrap();
    (lock.seal_and_pass().map_err(|(_, error)| error).unwrap(), successor)
}

fn claimed(unlocked: Unlocked) -> DataDirLock {
    match unlocked.try_lock() {
        Attempt::Locked(claim) => claim.claim(None).map_err(|(_, error)| error).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_stranger_gets_the_directory_while_it_goes_over() {
    let dir = scratch();
    let (incumbent, successor) = sealed_and_passed(dir.path());
    assert!(!is_open_to_strangers(dir.path()), "after the seal");
    let successor = claimed(successor);
    assert_eq!(successor.epoch(), 2);
    let Attempt::Held(incumbent) = incumbent.try_lock() else { panic!("two owners") };
    drop(incumbent);
    assert!(!is_open_to_strangers(dir.path()), "after the incumbent left");
    successor.release().unwrap();
    wait_until_open_to_strangers(dir.path());
}

#[test]
fn an_incumbent_takes_back_what_it_passed() {
    let dir = scratch();
    let (incumbent, successor) = sealed_and_passed(dir.path());
    drop(successor);
    assert!(!is_open_to_strangers(dir.path()));
    let incumbent = claimed(incumbent);
    assert_eq!(incumbent.epoch(), 2);
    drop(incumbent);
    wait_until_open_to_strangers(dir.path());
}

#[test]
fn a_claim_that_is_given_up_leaves_the_directory_locked() {
    let dir = scratch();
    let (incumbent, successor) = sealed_and_passed(dir.path());
    let Attempt::Locked(claim) = successor.try_lock() else { panic!("not locked") };
    drop(claim);
    assert!(!is_open_to_strangers(dir.path()));
    assert!(matches!(incumbent.try_lock(), Attempt::Locked(_)));
}

#[test]
fn a_copy_in_flight_is_not_unlocked_by_whoever_lets_go() {
    let ways: [fn(DataDirLock); 3] = [drop, |lock| lock.release().unwrap(), |lock| drop(lock.seal().unwrap())];
    for let_go in ways {
        let dir = scratch();
        let mut lock = DataDirLock::acquire(dir.path()).unwrap();
        let in_flight = lock.directory().unwrap();
        let_go(lock);
        assert!(!is_open_to_strangers(dir.path()));
        drop(in_flight);
        wait_until_open_to_strangers(dir.path());
    }
}

#[test]
fn an_owner_that_once_passed_its_directory_can_let_go_of_it_and_stay() {
    let dir = scratch();
    let mut lock = DataDirLock::acquire(dir.path()).unwrap();
    drop(lock.directory().unwrap());
    let incumbent = lock.seal().map_err(|(_, error)| error).unwrap();
    wait_until_open_to_strangers(dir.path());
    let successor = DataDirLock::acquire(dir.path()).unwrap();
    let Attempt::Held(incumbent) = incumbent.try_lock() else { panic!("two owners") };
    drop(successor);
    assert_eq!(claimed(incumbent).epoch(), 3);
}

#[test]
fn what_nobody_has_locked_is_taken_and_a_strangers_is_not() {
    let dir = scratch();
    let mut successor = Unlocked::open(dir.path()).unwrap();
    successor.adopt_directory(File::open(dir.path()).unwrap().into()).unwrap();
    let stranger = File::open(dir.path()).unwrap();
    assert!(try_flock(stranger.as_fd()).unwrap());
    let Attempt::Held(successor) = successor.try_lock() else { panic!("two owners") };
    unflock(stranger.as_fd()).unwrap();
    let _successor = claimed(successor);
    assert!(!is_open_to_strangers(dir.path()));
}

#[test]
fn another_directory_is_refused_and_both_are_named() {
    let parent = scratch();
    let [ours, theirs] = ["ours", "theirs"].map(|name| parent.path().join(name));
    let mut incumbent = DataDirLock::acquire(&theirs).unwrap();
    let mut successor = Unlocked::open(&ours).unwrap();
    let error = successor.adopt_directory(incumbent.directory().unwrap()).unwrap_err();
    for named in [&ours, &theirs] {
        assert!(error.to_string().contains(&named.display().to_string()), "{error}");
    }
    let (named, wanted) = (fs::metadata(&ours).unwrap(), fs::metadata(&theirs).unwrap());
    for inode in [named, wanted] {
        let number = std::os::unix::fs::MetadataExt::ino(&inode);
        assert!(error.to_string().contains(&format!("inode {number} ")), "{error}");
    }
    assert!(matches!(successor.try_lock(), Attempt::Locked(_)), "it goes on with its own");
}

#[test]
fn a_directory_whose_name_was_switched_is_refused() {
    let parent = scratch();
    let [link, old, new] = ["link", "old", "new"].map(|name| parent.path().join(name));
    for dir in [&old, &new] {
        fs::create_dir(dir).unwrap();
    }
    std::os::unix::fs::symlink(&old, &link).unwrap();
    let mut incumbent = DataDirLock::acquire(&link).unwrap();
    let mut successor = Unlocked::open(&link).unwrap();
    let passed = incumbent.directory().unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&new, &link).unwrap();
    assert!(matches!(successor.adopt_directory(passed), Err(LockError::AnotherDirectory { .. })));
}

#[test]
fn an_adopted_directory_is_never_left_for_another_of_its_name() {
    let parent = scratch();
    let [dir, old] = ["data", "old"].map(|name| parent.path().join(name));
    let (_incumbent, successor) = sealed_and_passed(&dir);
    fs::rename(&dir, &old).unwrap();
    fs::create_dir(&dir).unwrap();
    match successor.try_lock() {
        Attempt::Failed(_, LockError::AnotherDirectory { path, wanted_path, .. }) => {
            assert_eq!((path, wanted_path), (dir, Some(old)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_adopted_goes_not_over_an_exec() {
    let dir = scratch();
    let mut successor = Unlocked::open(dir.path()).unwrap();
    let passed = OwnedFd::from(File::open(dir.path()).unwrap());
    fcntl_setfd(&passed, FdFlags::empty()).unwrap();
    let number = passed.as_raw_fd();
    successor.adopt_directory(passed).unwrap();
    let used = successor.pair.dir().unwrap();
    assert_eq!((used.as_raw_fd(), rustix::io::fcntl_getfd(used).unwrap()), (number, FdFlags::CLOEXEC));
}
