//! Processes to which a path comes to mean something else: by their root, their working directory, or a mount.

use std::fs;
use std::path::Path;
use std::process::Command;

use handoff_lock::{Attempt, DataDirLock, LeaseState, LockError, WatchedLease, holder, look, read_lease};

use super::Role;

/// As a daemon does that takes its lock and then drops what it does not need.
pub(crate) fn change_root(base: &Path) {
    let (dir, root) = (base.join("data"), base.join("root"));
    fs::create_dir(&root).unwrap();
    let mut lock = DataDirLock::acquire(&dir).unwrap();
    rustix::process::chroot(&root).unwrap();
    rustix::process::chdir("/").unwrap();
    lock.activate(b"build").unwrap();
    assert!(lock.is_in_place());
    let Attempt::Locked(claim) = lock.seal().map_err(|(_, error)| error).unwrap().try_lock() else { panic!("held") };
    let mut lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
    lock.activate(b"build").unwrap();
    // A directory of the same path in the new root is another one, and no reason to doubt.
    fs::create_dir_all(&dir).unwrap();
    assert!(lock.is_in_place());
}

/// As above, and then the directory is moved away where this process can't see its path.
pub(crate) fn change_root_and_be_moved(base: &Path) {
    let root = base.join("root");
    fs::create_dir(&root).unwrap();
    let outside = fs::File::open(base).unwrap();
    let mut lock = DataDirLock::acquire(&base.join("data")).unwrap();
    rustix::process::chroot(&root).unwrap();
    rustix::fs::renameat(&outside, "data", &outside, "old").unwrap();
    assert!(matches!(lock.activate(b"build"), Err(LockError::AnotherDirectory { named: None, .. })));
    rustix::fs::renameat(&outside, "old", &outside, "data").unwrap();
    lock.activate(b"build").unwrap();
}

pub(crate) fn change_directory(base: &Path) {
    let dir = base.join("data");
    rustix::process::chdir(base).unwrap();
    let mut watched = WatchedLease::new(Path::new("data"));
    let lock = DataDirLock::acquire(Path::new("data")).unwrap();
    rustix::process::chdir("/").unwrap();
    assert_eq!(watched.read().unwrap().as_ref(), Some(lock.lease()));
    assert!(lock.is_in_place());
    let unlocked = lock.seal().map_err(|(_, error)| error).unwrap();
    fs::remove_file(dir.join(".handoff.lock")).unwrap();
    std::os::unix::fs::symlink("elsewhere", dir.join(".handoff.lock")).unwrap();
    let Attempt::Failed(_, error) = unlocked.try_lock() else { panic!("locked through a link") };
    assert!(matches!(error, LockError::NotALockFile { .. }), "{error}");
}

/// Where there is no `/proc`: no boot has a name, and the kernel shows no locks.
pub(crate) fn see_no_proc(base: &Path) {
    rustix::process::chroot(base).unwrap();
    rustix::process::chdir("/").unwrap();
    let dir = Path::new("/data");
    let own_pid = std::process::id();
    for epoch in 1..=3 {
        let mut lock = DataDirLock::acquire(dir).unwrap();
        assert_eq!(lock.epoch(), epoch);
        lock.reserve_epochs().unwrap();
        lock.activate(b"build").unwrap();
        assert_eq!(holder(dir).unwrap().map(|holder| holder.pid), Some(own_pid));
        match epoch {
            1 => lock.release().unwrap(),
            2 => drop(lock.seal().map_err(|(_, error)| error).unwrap()),
            _ => drop(lock),
        }
        assert_eq!((holder(dir).unwrap(), look(dir).unwrap().locked_by), (None, None), "after epoch {epoch}");
    }
    assert_eq!(read_lease(dir).unwrap().unwrap().state, LeaseState::Active, "it is as its owner left it");
}

/// In a mount namespace of its own.
pub(crate) fn be_mounted_over(base: &Path) {
    let dir = base.join("data");
    let mut lock = DataDirLock::acquire(&dir).unwrap();
    let mount = |program: &str, arguments: &[&str]| {
        assert!(Command::new(program).args(arguments).arg(&dir).status().unwrap().success());
    };
    mount("mount", &["-t", "tmpfs", "none"]);
    assert!(matches!(lock.activate(b"build"), Err(LockError::AnotherDirectory { .. })));
    mount("umount", &[]);
    lock.activate(b"build").unwrap();
}

/// A process that may change its root and mount. Not every user may, but in a user namespace of its own.
fn mighty() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg(std::env::current_exe().unwrap());
    command
}

fn runs(mut command: Command, role: &str) {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("data")).unwrap();
    assert!(Role::start_by(&mut command, role, base.path()).let_finish().success());
}

#[test]
fn a_process_that_changed_its_root_takes_its_lock_back() {
    runs(mighty(), "root-changer");
}

#[test]
fn a_process_that_changed_its_root_sees_its_directory_move() {
    runs(mighty(), "root-changer-and-moved");
}

#[test]
fn a_process_that_changed_its_working_directory_means_what_it_meant() {
    runs(Command::new(std::env::current_exe().unwrap()), "directory-changer");
}

#[test]
fn a_directory_that_is_mounted_over_stops_its_owner() {
    runs(mighty(), "mounted-over");
}

#[test]
fn without_proc_the_epoch_goes_up_by_one_and_who_released_holds_nothing() {
    runs(mighty(), "without-proc");
}
