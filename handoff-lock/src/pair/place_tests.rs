//! A data dir whose name comes to lead elsewhere, and what its owner's steps say.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::{Attempt, DataDirLock, LeaseState, LockError, Unlocked, read_lease};

/// A data dir `data`, and a second directory `other` beside it.
struct Scene {
    parent: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { parent: tempfile::tempdir().unwrap() };
        for name in ["store", "other"] {
            fs::create_dir(scene.path(name)).unwrap();
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    /// Lets `data` lead to one of the two by a link.
    fn link(&self, to: &str) {
        let _ = fs::remove_file(self.path("data"));
        std::os::unix::fs::symlink(self.path(to), self.path("data")).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }
}

fn active(dir: &Path) -> DataDirLock {
    let mut lock = DataDirLock::acquire(dir).unwrap();
    lock.activate(b"build").unwrap();
    lock
}

/// Each step of the owner fails by this reason, and does nothing. Gives the lock back.
fn refused_steps(mut lock: DataDirLock, path: &Path, wanted_path: &Path) -> DataDirLock {
    let before = lock.lease().clone();
    let assert_named = |error: LockError| match error {
        LockError::AnotherDirectory { path: given, named, wanted, wanted_path: locked } => {
            assert_eq!((given.as_path(), locked.as_deref()), (path, Some(wanted_path)));
            assert_ne!(named, Some(wanted));
        }
        other => panic!("{other:?}"),
    };
    assert!(!lock.is_in_place());
    assert_named(lock.check_in_place().unwrap_err());
    assert_named(lock.stamp(Some([1; 16])).unwrap_err());
    assert_named(lock.activate(b"next").unwrap_err());
    let Err((lock, error)) = lock.seal() else { panic!("sealed") };
    assert_named(error);
    let Err((lock, error)) = lock.seal_and_pass() else { panic!("sealed") };
    assert_named(error);
    assert_eq!(lock.lease(), &before);
    lock
}

#[test]
fn a_link_that_is_switched_stops_the_owner() {
    let scene = Scene::new();
    scene.link("store");
    let lock = active(&scene.path("data"));
    assert!(lock.is_in_place());
    scene.link("other");
    let lock = refused_steps(lock, &scene.path("data"), &scene.path("store"));
    assert!(fs::read_dir(scene.path("other")).unwrap().next().is_none(), "nothing was written there");
    scene.link("store");
    assert!(lock.is_in_place());
    drop(lock.seal().map_err(|(_, error)| error).unwrap());
}

#[test]
fn a_directory_that_was_renamed_stops_its_owner_whether_or_not_another_took_its_place() {
    let scene = Scene::new();
    scene.rename("store", "data");
    let lock = active(&scene.path("data"));
    scene.rename("data", "old");
    let lock = refused_steps(lock, &scene.path("data"), &scene.path("old"));
    scene.rename("other", "data");
    let lock = refused_steps(lock, &scene.path("data"), &scene.path("old"));
    let another = active(&scene.path("data"));
    assert_ne!(another.inode(), lock.inode());
    lock.release().unwrap();
    let lease = read_lease(&scene.path("old")).unwrap().unwrap();
    assert_eq!((lease.state, lease.epoch), (LeaseState::Active, 1), "its own lock file is where it was");
}

#[test]
fn what_was_owned_is_taken_back_and_never_another_of_its_name() {
    let scene = Scene::new();
    scene.link("store");
    let unlocked = active(&scene.path("data")).seal().map_err(|(_, error)| error).unwrap();
    scene.link("other");
    let Attempt::Failed(unlocked, error) = unlocked.try_lock() else { panic!("another store") };
    assert!(matches!(error, LockError::AnotherDirectory { .. }), "{error}");
    assert!(matches!(unlocked.check_in_place(), Err(LockError::AnotherDirectory { .. })));
    let store = Unlocked::open(&scene.path("store")).unwrap();
    assert!(matches!(store.try_lock(), Attempt::Locked(_)), "a failed try keeps nothing");
    scene.link("store");
    unlocked.check_in_place().unwrap();
    let Attempt::Locked(claim) = unlocked.try_lock() else { panic!("it is there again") };
    assert_eq!(claim.found().map(|lease| lease.state), Some(LeaseState::Sealed));
}

fn place(path: &Path) -> (Place, Inode) {
    let dir = fs::File::open(path).unwrap();
    let inode = Inode::of(&rustix::fs::fstat(&dir).unwrap());
    (Place::of(path, std::os::fd::AsFd::as_fd(&dir), inode), inode)
}

#[test]
fn the_parent_knows_a_directory_also_by_a_link() {
    let scene = Scene::new();
    scene.link("store");
    for name in ["store", "data"] {
        let (place, inode) = place(&scene.path(name));
        assert_eq!(place.parent_leads_to(inode), Ok(true));
        scene.rename("store", "old");
        assert_eq!(place.parent_leads_to(inode), Ok(false));
        scene.rename("old", "store");
    }
}

#[test]
fn the_root_has_no_name_and_is_in_place() {
    let (place, inode) = place(Path::new("/"));
    assert!(place.parent.is_none());
    assert_eq!((place.leads_to(inode), place.parent_leads_to(inode)), (Ok(true), Ok(true)));
}

#[test]
fn a_name_that_can_not_be_looked_up_is_no_answer() {
    assert_eq!(lead(Err(Errno::ACCESS)), Ok(Lead::Hidden));
    for nowhere in [Errno::NOENT, Errno::NOTDIR, Errno::LOOP] {
        assert_eq!(lead(Err(nowhere)), Ok(Lead::Nowhere));
    }
    assert_eq!(lead(Err(Errno::IO)), Err(Errno::IO));
}
