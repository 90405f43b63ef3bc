//! The direct channel between an incumbent and its successor: passing and collecting what goes over it.
//!
//! Never waits. Of what a peer sends no more is read than one header and one message's descriptors; what is not understood is
//! never used. Who gets an end, and what follows from a failure, the machines decide.

use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use handoff_proto::transfer::{HEADER_BYTES, Kind};

use crate::sys::fork::StaysHere;
use crate::sys::socket;

/// What lay in the channel.
#[derive(Debug)]
pub(crate) enum Collected {
    /// The locked directory.
    Directory(OwnedFd),
    /// No descriptor, for this reason.
    Nothing(String),
}

/// Both ends: the incumbent's and the successor's, which is to be given to a child.
pub(crate) fn pair() -> io::Result<(StaysHere, OwnedFd)> {
    let (incumbents, successors) = UnixStream::pair()?;
    Ok((incumbents.into(), successors.into()))
}

/// Gives the successor a copy of the locked directory's descriptor. Once this has returned it has arrived, whatever becomes
/// of this process.
///
/// # Errors
/// The successor's end is closed, or the system has no room for a descriptor on its way (ETOOMANYREFS, unix(7)). Nothing was
/// passed.
pub(crate) fn pass_directory(channel: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> io::Result<()> {
    match socket::send(channel, &Kind::Directory.header(), &[directory])? {
        HEADER_BYTES => Ok(()),
        // It would be whole or not at all in an empty socket.
        sent => Err(io::Error::other(format!("only {sent} of {HEADER_BYTES} bytes went out"))),
    }
}

/// Takes what lies in the channel.
///
/// # Errors
/// A descriptor was passed and can't be used: the incumbent counts on it, so nobody could take the lock.
pub(crate) fn collect(channel: BorrowedFd<'_>) -> io::Result<Collected> {
    let (mut bytes, mut fds) = ([0; HEADER_BYTES], Vec::new());
    let arrived = match socket::receive(channel, &mut bytes, &mut fds) {
        Ok(arrived) => arrived,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(nothing("nothing was passed")),
        Err(error) => return Ok(nothing(format!("the channel failed: {error}"))),
    };
    if arrived.fds_lost {
        let text = "the directory's descriptor got lost: the limit of open files (ulimit -n, LimitNOFILE=) is reached, or \
                    a security module forbids to receive it";
        return Err(io::Error::other(text));
    }
    match (Kind::of_header(&bytes[..arrived.bytes]), fds.pop(), fds.is_empty()) {
        (Ok(Kind::Directory), Some(directory), true) => Ok(Collected::Directory(directory)),
        (Ok(Kind::Directory), Some(_), false) => Err(io::Error::other("more than one descriptor came with one header")),
        (Err(reason), Some(_), _) => Err(io::Error::other(format!("a descriptor came that can't be used: {reason}"))),
        (Err(_), None, _) if arrived.bytes == 0 => Ok(nothing("nothing was passed, and the channel is closed")),
        (Err(reason), None, _) => Ok(nothing(format!("what came makes no sense: {reason}"))),
        (Ok(Kind::Directory), None, _) => Ok(nothing("a header came without its descriptor")),
    }
}

fn nothing(reason: impl Into<String>) -> Collected {
    Collected::Nothing(reason.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::fs::{FlockOperation, flock};
    use rustix::io::{Errno, FdFlags, fcntl_getfd};

    use super::*;
    use crate::sys::fork::beside_a_child;
    use crate::testing::{hears_the_end, open_fds, run_alone, with_free_fds};

    fn is_locked(dir: &tempfile::TempDir) -> bool {
        let stranger = File::open(dir.path()).unwrap();
        flock(&stranger, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    }

    fn nothing_in(channel: &OwnedFd) -> String {
        match collect(channel.as_fd()).unwrap() {
            Collected::Nothing(reason) => reason,
            Collected::Directory(directory) => panic!("{directory:?}"),
        }
    }

    #[test]
    fn a_lock_is_held_on_its_way_and_by_who_collects_it() {
        let dir = tempfile::tempdir().unwrap();
        let (incumbents, successors) = pair().unwrap();
        let locked = File::open(dir.path()).unwrap();
        flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
        pass_directory(incumbents.as_fd(), locked.as_fd()).unwrap();
        drop((locked, incumbents));
        assert!(is_locked(&dir), "in flight, and whoever sent it is gone");
        let Collected::Directory(directory) = collect(successors.as_fd()).unwrap() else { panic!("it got lost") };
        assert!(is_locked(&dir) && fcntl_getfd(&directory).unwrap().contains(FdFlags::CLOEXEC));
        drop(directory);
        assert!(!is_locked(&dir));
    }

    #[test]
    fn what_nobody_collects_goes_with_the_channel() {
        let dir = tempfile::tempdir().unwrap();
        let (incumbents, successors) = pair().unwrap();
        let locked = File::open(dir.path()).unwrap();
        flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
        pass_directory(incumbents.as_fd(), locked.as_fd()).unwrap();
        drop((locked, successors));
        assert!(!is_locked(&dir));
    }

    #[test]
    fn a_successor_that_is_gone_is_told_to_who_passes() {
        let (incumbents, successors) = pair().unwrap();
        drop(successors);
        let error = pass_directory(incumbents.as_fd(), incumbents.as_fd()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn bytes_alone_pass_nothing() {
        let (incumbents, successors) = pair().unwrap();
        assert!(nothing_in(&successors).contains("nothing was passed"));
        for bytes in [&b"hof"[..], b"GET / HTTP/1.1\r\n", &Kind::Directory.header()] {
            let (incumbents, successors) = pair().unwrap();
            socket::send(incumbents.as_fd(), bytes, &[]).unwrap();
            assert!(!nothing_in(&successors).is_empty(), "{bytes:?}");
        }
        drop(incumbents);
        assert!(nothing_in(&successors).contains("closed"));
    }

    #[test]
    fn a_descriptor_that_can_not_be_used_is_an_error_and_is_closed() {
        let file = tempfile::tempfile().unwrap();
        let (one, two) = (vec![file.as_fd()], vec![file.as_fd(); 2]);
        let later = b"hofT\x01\x00\x07\x00".to_vec();
        for (bytes, fds) in [(later, &one), (b"garbage!".to_vec(), &one), (Kind::Directory.header().to_vec(), &two)] {
            let (incumbents, successors) = pair().unwrap();
            socket::send(incumbents.as_fd(), &bytes, fds).unwrap();
            assert!(collect(successors.as_fd()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn at_the_limit_of_files() {
        let (incumbents, successors) = pair().unwrap();
        pass_directory(incumbents.as_fd(), incumbents.as_fd()).unwrap();
        let before = open_fds();
        let error = with_free_fds(0, || collect(successors.as_fd())).unwrap_err();
        assert!(error.to_string().contains("limit of open files"), "{error}");
        assert_eq!(open_fds(), before);
    }

    #[test]
    fn a_descriptor_that_finds_no_room_is_an_error() {
        run_alone("transfer::tests::at_the_limit_of_files");
    }

    #[test]
    fn a_forked_child_keeps_no_end_of_the_incumbents() {
        let (incumbents, successors) = pair().unwrap();
        beside_a_child(|| {
            drop(incumbents);
            hears_the_end(successors.into());
        });
    }
}
