//! The answers of macOS and the BSDs, as far as they have any: there is no table of locks to read, so a holder is known only
//! from what it wrote down itself.

use std::convert::Infallible;
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::process::Pid;

use super::{Carried, Takers};
use crate::flock::Access;

/// How a directory is opened only to look up names in it.
pub(crate) const TO_LOOK_UP: rustix::fs::OFlags = rustix::fs::OFlags::RDONLY;

/// The id of this boot of the machine.
pub(crate) fn boot_id() -> io::Result<Option<[u8; 16]>> {
    Ok(ask_for_boot_id())
}

fn ask_for_boot_id() -> Option<[u8; 16]> {
    #[cfg(target_vendor = "apple")]
    {
        let text = sysctl::<64>(c"kern.bootsessionuuid")?;
        let digits: String = String::from_utf8_lossy(&text).trim_end_matches('\0').split('-').collect();
        Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
    }
    #[cfg(target_os = "freebsd")]
    {
        sysctl::<16>(c"kern.boot_id")?.try_into().ok()
    }
    #[cfg(not(any(target_vendor = "apple", target_os = "freebsd")))]
    None
}

/// When a process started, in microseconds since 1970; `None` if there is no such process or the system does not tell.
#[cfg(target_os = "macos")]
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    // SAFETY: proc_pidinfo (libproc.h); all zeros are a valid proc_bsdinfo, which holds only numbers.
    let mut info: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::proc_bsdinfo>() as libc::c_int;
    // SAFETY: proc_pidinfo (libproc.h); it writes at most `size` bytes to `info`, which has as many.
    let written =
        unsafe { libc::proc_pidinfo(pid.cast_signed(), libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), size) };
    (written == size).then_some(info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec)
}

/// When a process started; this system is not asked.
#[cfg(not(target_os = "macos"))]
pub(crate) fn start_time(_pid: u32) -> Option<u64> {
    None
}

/// The same of the calling process.
pub(crate) fn start_time_of_self() -> io::Result<Option<u64>> {
    Ok(start_time(std::process::id()))
}

/// Whether this is the number of a thread, and of no process: threads have numbers of their own here.
pub(crate) fn is_thread(_id: Pid) -> bool {
    false
}

/// Whether a process has ended and only waits for its parent; this system is not asked.
pub(crate) fn is_zombie(_pid: u32) -> bool {
    false
}

/// The command line of a process; this system is not asked.
pub(crate) fn command(_pid: u32) -> Option<String> {
    None
}

/// The name of the file system, if flock does not exclude other hosts there.
#[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "openbsd", target_os = "dragonfly"))]
pub(crate) fn refused_filesystem(fd: impl AsFd) -> io::Result<Option<&'static str>> {
    let name = rustix::fs::fstatfs(fd)?.f_fstypename;
    let name: String = name.iter().map(|byte| byte.cast_unsigned() as char).take_while(|c| *c != '\0').collect();
    Ok(crate::filesystem::refused_by_name(&name))
}

/// The name of the file system, if flock does not exclude other hosts there; this system is not asked.
#[cfg(not(any(target_vendor = "apple", target_os = "freebsd", target_os = "openbsd", target_os = "dragonfly")))]
pub(crate) fn refused_filesystem(_fd: impl AsFd) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// Where an open directory is now; this system is not asked.
pub(crate) fn path_of(_fd: BorrowedFd<'_>) -> Option<PathBuf> {
    None
}

/// Whether a descriptor has a flock, which these systems don't show.
pub(crate) fn is_locked(_fd: BorrowedFd<'_>, _access: Access) -> Option<bool> {
    None
}

/// Makes a file's bytes durable. On macOS fsync(2) leaves them in the drive's cache.
#[cfg(target_vendor = "apple")]
pub(crate) fn sync_bytes(fd: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::fcntl_fullfsync(fd)
}

/// Makes a file's bytes durable.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn sync_bytes(fd: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::fsync(fd)
}

/// The kernel's table of locks, which these systems don't show: there is never one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LockTable(Infallible);

impl LockTable {
    pub(crate) fn of(_dir: BorrowedFd<'_>, _file: Option<BorrowedFd<'_>>) -> Option<Self> {
        None
    }

    pub(crate) fn of_shared(self) -> Self {
        match self.0 {}
    }

    pub(crate) fn takers(&self) -> Takers {
        match self.0 {}
    }

    pub(crate) fn hides_dead_takers(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn carried_by(&self, _pid: u32) -> Option<Carried> {
        match self.0 {}
    }

    pub(crate) fn carriers(&self) -> Vec<(u32, Carried)> {
        match self.0 {}
    }
}

/// The bytes of a sysctl, at most `N` of them.
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
fn sysctl<const N: usize>(name: &CStr) -> Option<Vec<u8>> {
    let mut bytes = [0_u8; N];
    let mut len = N;
    // SAFETY: sysctlbyname(3); it writes at most `len` bytes to `bytes`, which has as many, and the count to `len`.
    let failed =
        unsafe { libc::sysctlbyname(name.as_ptr(), bytes.as_mut_ptr().cast(), &raw mut len, std::ptr::null_mut(), 0) };
    (failed == 0).then(|| bytes[..len.min(N)].to_vec())
}
