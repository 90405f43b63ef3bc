//! Where flock(2) excludes every contender, and where it does not. The decisions are pure, so that they are tested without such
//! mounts; the system call is in `sys`.
//!
//! A file system is refused when other hosts can mount it and its flock may be local to one client, or when it depends on
//! mount options that can't be seen from here (OCFS2, GFS2, Lustre, GPFS: with `localflocks` and the like the lock is local).
//! One that is stacked on another of this kernel (overlayfs, ecryptfs) is allowed: its locks are this kernel's. They are those of
//! the stacked inode, though, and not of the one below: who comes by the lower or the upper directory itself is not excluded. The
//! kernel calls that undefined for overlayfs anyhow (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems").

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::LockError;
#[cfg(not(test))]
use crate::sys::refused_filesystem;
#[cfg(test)]
use tests::refused_filesystem;

/// Whether flock(2) on this directory excludes every contender, so that its lock could be taken. Opens the directory to look
/// and changes nothing: for a program that checks everything before it starts another one.
///
/// # Errors
/// [`LockError::UnsupportedFilesystem`] if not, [`LockError::Io`] if the directory can't be looked at.
pub fn check_filesystem(dir: &Path) -> Result<(), LockError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::io::retry_on_intr(|| rustix::fs::open(dir, flags, Mode::empty()))
        .map_err(|error| LockError::io(dir, error))?;
    check_opened(&opened, dir)
}

/// The same for a directory that is open already.
pub(crate) fn check_opened(opened: impl AsFd, dir: &Path) -> Result<(), LockError> {
    match refused_filesystem(opened).map_err(|error| LockError::io(dir, error))? {
        Some(name) => Err(LockError::UnsupportedFilesystem { path: dir.into(), filesystem: name.into() }),
        None => Ok(()),
    }
}

/// The name of the file system with this magic number (statfs(2)), if it is refused.
#[cfg(any(test, target_os = "linux", target_os = "android"))]
pub(crate) fn refused_by_magic(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "nfs",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb3",
        0x0000_517b => "smb",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0x00c3_6400 => "ceph",
        0x5346_414f | 0x6b41_4653 => "afs",
        0x7375_7245 => "coda",
        0x0000_564c => "ncp",
        0x0bd0_0bd0 => "lustre",
        0x7461_636f => "ocfs2",
        0x0116_1970 => "gfs2",
        0x4750_4653 => "gpfs",
        0x2003_0528 => "orangefs",
        0x1983_0326 => "beegfs",
        0xaad7_aaea => "panfs",
        0x786f_4256 => "vboxsf",
        0xbacb_acbc => "vmhgfs",
        0x00c0_ffee => "hostfs",
        _ => return None,
    })
}

/// The same by name, for systems whose statfs(2) tells one.
#[cfg(any(test, target_vendor = "apple", target_os = "freebsd", target_os = "openbsd", target_os = "dragonfly"))]
pub(crate) fn refused_by_name(name: &str) -> Option<&'static str> {
    const REFUSED: [&str; 16] = [
        "nfs", "nfs4", "oldnfs", "smbfs", "cifs", "afpfs", "webdav", "ftp", "afs", "9p", "p9fs", "virtiofs", "fuse",
        "fusefs", "macfuse", "osxfuse",
    ];
    REFUSED.into_iter().find(|refused| *refused == name).or_else(|| name.starts_with("fusefs").then_some("fusefs"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use super::*;
    use crate::{DataDirLock, sys};

    thread_local! {
        /// What this thread's directories are said to be on: a test has no such mount.
        static PRETENDED: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    pub(super) fn refused_filesystem(opened: impl AsFd) -> io::Result<Option<&'static str>> {
        PRETENDED.get().map_or_else(|| sys::refused_filesystem(opened), |name| Ok(Some(name)))
    }

    #[test]
    fn a_lock_that_would_not_exclude_other_hosts_is_refused_unless_somebody_vouches() {
        let dir = tempfile::tempdir().unwrap();
        PRETENDED.set(Some("nfs"));
        let refusals = [
            check_filesystem(dir.path()),
            DataDirLock::acquire(dir.path()).map(drop),
            DataDirLock::acquire_timeout(dir.path(), std::time::Duration::ZERO).map(drop),
            DataDirLock::acquire_or_break_stale(dir.path()).map(drop),
            DataDirLock::acquire_shared(dir.path()).map(drop),
        ];
        for refused in refusals {
            match refused {
                Err(LockError::UnsupportedFilesystem { path, filesystem }) => {
                    assert_eq!((path.as_path(), filesystem.as_str()), (dir.path(), "nfs"));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "nothing was made there");
        drop(DataDirLock::options().allow_any_filesystem(true).acquire(dir.path()).unwrap());
        PRETENDED.set(None);
        drop(DataDirLock::acquire(dir.path()).unwrap());
    }

    #[test]
    fn looking_at_a_directory_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        check_filesystem(dir.path()).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        assert!(matches!(check_filesystem(&dir.path().join("none")), Err(LockError::Io { .. })));
    }

    #[test]
    fn file_systems_shared_between_hosts_are_refused() {
        for (magic, name) in [(0x6969, "nfs"), (0xff53_4d42, "cifs"), (0x0102_1997, "9p"), (0x6573_5546, "fuse")] {
            assert_eq!(refused_by_magic(magic), Some(name));
        }
        for name in ["nfs", "smbfs", "fusefs.sshfs", "macfuse"] {
            assert!(refused_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn local_file_systems_are_allowed() {
        let ext4 = 0xef53;
        let (xfs, btrfs, tmpfs, zfs) = (0x5846_5342, 0x9123_683e, 0x0102_1994, 0x2fc1_2fc1);
        let (overlay, f2fs, bcachefs) = (0x794c_7630, 0xf2f5_2010, 0xca45_1a4e);
        for magic in [ext4, xfs, btrfs, tmpfs, zfs, overlay, f2fs, bcachefs] {
            assert_eq!(refused_by_magic(magic), None, "{magic:#x}");
        }
        for name in ["apfs", "hfs", "ufs", "zfs", "tmpfs"] {
            assert_eq!(refused_by_name(name), None, "{name}");
        }
    }
}
