//! The calls that no safe interface offers: a filter that holds fsync and fdatasync (seccomp(2), seccomp_unotify(2)).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// From now on, fsync and fdatasync of this process and its children wait for [`go_on`] on the returned descriptor.
///
/// # Errors
/// The kernel is older than 5.5 or forbids filters.
pub(super) fn hold_syncs() -> io::Result<OwnedFd> {
    let load_number = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, mem::offset_of!(libc::seccomp_data, nr));
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        step(load_number.0, 0, 0, load_number.1 as u32),
        step(is, 1, 0, libc::SYS_fsync as u32),
        step(is, 0, 1, libc::SYS_fdatasync as u32),
        step(end, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl(2), PR_SET_NO_NEW_PRIVS takes plain numbers, the unused ones zero.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: seccomp(2), SECCOMP_SET_MODE_FILTER reads a `sock_fprog`, which points to steps that outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: seccomp(2): with SECCOMP_FILTER_FLAG_NEW_LISTENER the result is a new descriptor, close-on-exec, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn step(code: u32, if_true: u8, if_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: if_true, jf: if_false, k }
}

/// The next call that is held; call it when the descriptor is readable.
///
/// # Errors
/// The caller was killed meanwhile.
pub(super) fn next_held(filter: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: seccomp_unotify(2) wants the structure zeroed, which is a valid value of it: plain numbers.
    let mut held: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: seccomp_unotify(2), SECCOMP_IOCTL_NOTIF_RECV fills a `seccomp_notif`.
    let done = unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut held) };
    if done == 0 { Ok(held.id) } else { Err(io::Error::last_os_error()) }
}

/// Lets the kernel do what was asked.
///
/// # Errors
/// The caller was killed meanwhile.
pub(super) fn go_on(filter: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: seccomp_unotify(2), SECCOMP_IOCTL_NOTIF_SEND reads a `seccomp_notif_resp`.
    let done = unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
