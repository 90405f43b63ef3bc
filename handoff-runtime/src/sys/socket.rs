//! What sockets tell of their peer, and messages with descriptors (unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The most descriptors that the kernel takes with one message (SCM_MAX_FD, unix(7)).
pub(crate) const FDS_PER_MESSAGE_MAX: usize = 253;

const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX));

/// Who is at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its pid as seen from here; 0 when it has none here (another pid namespace).
    pub(crate) pid: u32,
    /// Its effective user.
    pub(crate) uid: u32,
}

/// Who connected, or who listens: the kernel's word, taken at connect(2), listen(2) or socketpair(2).
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: getsockopt(2) with SO_PEERCRED writes at most `bytes` bytes of a `ucred`; both pointers are to live locals.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer { pid: u32::try_from(credentials.pid).unwrap_or(0), uid: credentials.uid })
}

/// Sends what fits without waiting and without SIGPIPE; the descriptors go with the first byte.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let sent = retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(rustix::io::Errno::INVAL);
        }
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
    });
    Ok(sent?)
}

/// What one [`receive`] brought besides bytes.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// How many bytes; 0: the peer has closed.
    pub(crate) bytes: usize,
    /// Descriptors were sent that this process had no room for.
    pub(crate) fds_lost: bool,
}

/// Receives what is there without waiting. Descriptors are close-on-exec and appended to `fds`.
///
/// Linux never reads on behind bytes that carried descriptors (unix(7)), so they belong to the last message that begins in
/// the bytes of the same call.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Arrived> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = message {
            fds.extend(arrived);
        }
    }
    Ok(Arrived { bytes: received.bytes, fds_lost: received.flags.contains(ReturnFlags::CTRUNC) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::testing::run_alone;

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn with_the_default_action() {
        // SAFETY: signal(2) with the default action, which the Rust runtime had replaced.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = send(ours.as_fd(), b"x", &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    }

    #[test]
    fn a_peer_that_is_gone_raises_no_signal() {
        run_alone("sys::socket::tests::with_the_default_action");
    }

    #[test]
    fn what_has_no_peer_is_an_error() {
        assert!(peer(std::io::stdin().as_fd()).is_err());
    }
}
