//! Where a data dir is by name, for the question whether its name still leads to the directory that is open.
//!
//! A name can come to lead elsewhere: a link is switched, a directory renamed and another put in its place, or something is
//! mounted over it. What a daemon opens by its path then is not what it has locked.
//!
//! Three things only look like that. After chroot(2) the path means nothing; after setuid(2) a directory above may not be
//! searchable. Then the parent directory answers, which was opened ahead. Where nothing can be seen, nothing is known to have
//! changed.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, stat, statat};
use rustix::io::{Errno, retry_on_intr};

use crate::error::Inode;
use crate::sys;

#[derive(Debug)]
pub(crate) struct Place {
    /// Absolute: the working directory may change.
    path: PathBuf,
    /// The root that the path starts at.
    root: Option<Inode>,
    parent: Option<Parent>,
}

#[derive(Debug)]
struct Parent {
    dir: OwnedFd,
    name: OsString,
}

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    To(Inode),
    Nowhere,
    /// A directory on the way may not be searched.
    Hidden,
}

impl Place {
    /// Of the directory that was just opened by `path`.
    pub(crate) fn of(path: &Path, opened: BorrowedFd<'_>, inode: Inode) -> Self {
        Self { path: path.into(), root: Inode::at("/"), parent: Parent::of(path, opened, inode) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the names lead to this directory.
    ///
    /// # Errors
    /// It can't be found out now.
    pub(crate) fn leads_to(&self, inode: Inode) -> Result<bool, Errno> {
        match lead(stat(&self.path).map(|stat| Inode::of(&stat)))? {
            Lead::To(named) if named == inode => Ok(true),
            Lead::Hidden => self.parent_leads_to(inode),
            Lead::To(_) | Lead::Nowhere if self.is_root_another() => self.parent_leads_to(inode),
            Lead::To(_) | Lead::Nowhere => Ok(false),
        }
    }

    fn parent_leads_to(&self, inode: Inode) -> Result<bool, Errno> {
        let Some(parent) = &self.parent else { return Ok(true) };
        Ok(match lead(parent.named())? {
            Lead::To(named) => named == inode,
            Lead::Nowhere => false,
            Lead::Hidden => true,
        })
    }

    fn is_root_another(&self) -> bool {
        Inode::at("/") != self.root
    }
}

impl Parent {
    /// `None` if it can't be opened, or the directory's name in it can't be found out.
    fn of(path: &Path, opened: BorrowedFd<'_>, inode: Inode) -> Option<Self> {
        let flags = sys::TO_LOOK_UP | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = retry_on_intr(|| openat(opened, "..", flags, Mode::empty())).ok()?;
        let parent = Self { dir, name: path.file_name()?.into() };
        if parent.named() == Ok(inode) {
            return Some(parent);
        }
        // The path ends in a link.
        let name = std::fs::canonicalize(path).ok()?.file_name()?.into();
        Some(Self { name, ..parent }).filter(|parent| parent.named() == Ok(inode))
    }

    fn named(&self) -> Result<Inode, Errno> {
        statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| Inode::of(&stat))
    }
}

impl Inode {
    fn at(path: &str) -> Option<Self> {
        statat(CWD, path, AtFlags::empty()).ok().map(|stat| Self::of(&stat))
    }
}

fn lead(named: Result<Inode, Errno>) -> Result<Lead, Errno> {
    match named {
        Ok(inode) => Ok(Lead::To(inode)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Lead::Nowhere),
        Err(Errno::ACCESS) => Ok(Lead::Hidden),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
