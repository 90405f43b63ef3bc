//! The directory's lock on its way between real processes, and who is named as its holder meanwhile.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use handoff_lock::{Attempt, DataDirLock, Holder, LOCK_FILE, Unlocked, holder, look};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::{PATIENCE, Role, say, wait_to_be_told};

const SOCKET: &str = "socket";

/// Owns the directory, sends a copy of its descriptor, seals, and lives on.
pub(crate) fn pass(dir: &Path) {
    let mut lock = DataDirLock::acquire(dir).unwrap();
    let socket = UnixStream::connect(dir.join(SOCKET)).unwrap();
    send(&socket, &lock.directory().unwrap());
    let _kept = lock.seal_and_pass().map_err(|(_, error)| error).unwrap();
    say("passed");
    wait_to_be_told();
}

pub(crate) fn lock_the_directory(dir: &Path) {
    keep_locked(&File::open(dir).unwrap());
}

/// As a peer does that knows only the file.
pub(crate) fn lock_the_file(dir: &Path) {
    keep_locked(&File::create(dir.join(LOCK_FILE)).unwrap());
}

fn keep_locked(inode: &File) {
    flock(inode, FlockOperation::NonBlockingLockExclusive).unwrap();
    say("locked");
    wait_to_be_told();
}

fn send(socket: &UnixStream, copy: &OwnedFd) {
    let copies = [copy.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&copies)));
    sendmsg(socket, &[IoSlice::new(b"d")], &mut control, SendFlags::empty()).unwrap();
}

fn receive(socket: &UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut messages = control.drain();
    match messages.next() {
        Some(RecvAncillaryMessage::ScmRights(mut copies)) => copies.next().unwrap(),
        _ => panic!("no descriptor came"),
    }
}

/// An incumbent in a process of its own that has sealed, and the socket in which its directory is in flight.
fn incumbent(dir: &Path) -> (Role, UnixStream) {
    let listener = UnixListener::bind(dir.join(SOCKET)).unwrap();
    let mut incumbent = Role::start("passer", dir);
    incumbent.says("passed");
    (incumbent, listener.accept().unwrap().0)
}

fn adopted(dir: &Path, socket: &UnixStream) -> Unlocked {
    let mut successor = Unlocked::open(dir).unwrap();
    successor.adopt_directory(receive(socket)).unwrap();
    successor
}

fn locker(role: &str, dir: &Path) -> Role {
    let mut locker = Role::start(role, dir);
    locker.says("locked");
    locker
}

fn is_open_to_strangers(dir: &Path) -> bool {
    flock(File::open(dir).unwrap(), FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// A child that is just being spawned beside this test has copies of all descriptors until its exec.
fn wait_until_open_to_strangers(dir: &Path) {
    wait_until("a stranger gets the directory", || is_open_to_strangers(dir));
}

fn wait_until_named(dir: &Path, expected: Option<(u32, bool, bool)>) {
    wait_until("the holder is as expected", || named(dir) == expected);
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

fn named(dir: &Path) -> Option<(u32, bool, bool)> {
    let found = holder(dir).unwrap();
    found.map(|Holder { pid, alive, inherited, .. }| (pid, alive, inherited))
}

#[test]
fn no_stranger_gets_in_while_the_directory_is_in_flight_nor_after_its_owner_died() {
    let dir = tempfile::tempdir().unwrap();
    let (incumbent, socket) = incumbent(dir.path());
    assert!(!is_open_to_strangers(dir.path()), "in flight");
    incumbent.kill();
    assert!(!is_open_to_strangers(dir.path()), "in flight, with its owner dead");
    let Attempt::Locked(claim) = adopted(dir.path(), &socket).try_lock() else { panic!("held") };
    let lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
    assert_eq!(lock.epoch(), 2);
    assert!(!is_open_to_strangers(dir.path()), "with the successor");
    lock.release().unwrap();
    wait_until_open_to_strangers(dir.path());
}

#[test]
fn of_two_that_share_the_directory_the_one_with_the_file_is_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    let own_pid = std::process::id();
    let (incumbent, socket) = incumbent(dir.path());
    let old_pid = incumbent.child.id();
    assert_eq!(named(dir.path()), Some((old_pid, true, false)), "it alone has it");
    let successor = adopted(dir.path(), &socket);
    assert_eq!(named(dir.path()), Some((old_pid, true, false)), "the lease is its own");
    let Attempt::Locked(claim) = successor.try_lock() else { panic!("held") };
    assert_eq!(named(dir.path()), Some((own_pid, true, false)), "before it has written a lease");
    let lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
    assert_eq!(named(dir.path()), Some((own_pid, true, false)));
    incumbent.kill();
    assert_eq!(named(dir.path()), Some((own_pid, true, false)), "long after the process died that locked it first");
    assert_eq!(look(dir.path()).unwrap().locked_by, Some(own_pid));
    drop(lock);
    wait_until_named(dir.path(), None);
}

/// As a restarted supervisor finds it when the successor has died and its incumbent has not left yet: nobody else can take the
/// directory as long as it lives, so it is the one to be waited for, or ended.
#[test]
fn an_incumbent_that_keeps_its_part_is_the_holder_once_its_successor_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (incumbent, socket) = incumbent(dir.path());
    let old_pid = incumbent.child.id();
    let Attempt::Locked(claim) = adopted(dir.path(), &socket).try_lock() else { panic!("held") };
    let lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
    assert_eq!(look(dir.path()).unwrap().locked_by, Some(std::process::id()), "the one with the file as well");
    lock.release().unwrap();
    wait_until("the incumbent is named", || look(dir.path()).unwrap().locked_by == Some(old_pid));
    assert!(!is_open_to_strangers(dir.path()));
    incumbent.kill();
    wait_until("nobody is named", || look(dir.path()).unwrap().locked_by.is_none());
}

#[test]
fn who_has_the_directory_is_named_and_not_who_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(LOCK_FILE), "").unwrap();
    // So that the file's taker is the first one in any order by number.
    let peer = locker("file-locker", dir.path());
    assert_eq!(
        named(dir.path()),
        Some((peer.child.id(), true, false)),
        "it alone counts while nobody has the directory"
    );
    let stranger = locker("directory-locker", dir.path());
    assert_eq!(named(dir.path()), Some((stranger.child.id(), true, false)));
    stranger.kill();
    assert_eq!(named(dir.path()), Some((peer.child.id(), true, false)));
    peer.kill();
    assert_eq!(named(dir.path()), None);
}

#[test]
fn an_owner_whose_file_was_removed_is_named_and_not_who_locked_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let _lock = DataDirLock::acquire(dir.path()).unwrap();
    fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
    let _peer = locker("file-locker", dir.path());
    assert_eq!(named(dir.path()), Some((std::process::id(), true, false)));
}
