//! `.handoff.pidfile`: the owner's pid as text, for people and for tools older than the lease.
//!
//! Best effort throughout: it decides nothing, is never synced, and its failure never fails the lock.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::{Errno, pwrite, read, retry_on_intr};

/// Its name in the data dir.
pub(crate) const PIDFILE: &str = ".handoff.pidfile";

/// The next one, until it is whole. One name for all owners: what one leaves that dies here, the next one takes over.
const STAGING: &str = ".handoff.pidfile.new";

/// Puts the calling process's pid there, whole or not at all. Only for who holds the lock.
pub(crate) fn write_own(dir: BorrowedFd<'_>) {
    let put = || write_staging(dir).and_then(|()| renameat(dir, STAGING, dir, PIDFILE));
    let clear = || unlinkat(dir, STAGING, AtFlags::empty());
    // What is in the way may be no file at all.
    if put().or_else(|_| clear().and_then(|()| put())).is_err() {
        let _ = clear();
    }
}

fn write_staging(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    // NONBLOCK: who opens a FIFO for writing would wait for a reader, open(2).
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let file = retry_on_intr(|| openat(dir, STAGING, flags, mode))?;
    let text = format!("{}\n", std::process::id());
    // At an offset: a FIFO has none and fails, also if somebody reads it.
    if retry_on_intr(|| pwrite(&file, text.as_bytes(), 0))? == text.len() { Ok(()) } else { Err(Errno::NOSPC) }
}

/// Removes it. Only for who holds the lock: after the unlock it could be the next owner's.
pub(crate) fn remove(dir: BorrowedFd<'_>) {
    let _ = unlinkat(dir, PIDFILE, AtFlags::empty());
}

/// The pid that it names.
pub(crate) fn read_pid(dir: BorrowedFd<'_>) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = retry_on_intr(|| openat(dir, PIDFILE, flags, Mode::empty())).ok()?;
    let mut text = [0; 32];
    let len = retry_on_intr(|| read(&file, &mut text)).ok()?;
    std::str::from_utf8(&text[..len]).ok()?.trim().parse().ok()
}
