//! Listening sockets by name: inherited, kept to be given back, and passed on.
//!
//! A socket's O_NONBLOCK belongs to its open file, which the incumbent shares with its successor: nothing here touches that
//! flag before a socket is taken, and a successor takes none before its Begin.

use std::collections::HashSet;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::environment::{LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID};
use crate::error::{Error, Result};
use crate::sys::fd::claim_inherited;
use crate::sys::spawn::{FIRST_FD, FileId, place_at_exec};

/// The sockets that this process was started with, each to be taken once.
#[derive(Debug, Default)]
pub struct InheritedListeners {
    sockets: Vec<Inherited>,
}

#[derive(Debug)]
struct Inherited {
    name: String,
    kind: Kind,
    fd: OwnedFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Udp,
}

impl InheritedListeners {
    /// Takes the first TCP listener of this name, in blocking mode. `None`: there is none left.
    pub fn take(&mut self, name: &str) -> Option<TcpListener> {
        self.take_kind(name, Kind::Tcp).map(TcpListener::from)
    }

    /// Takes the first Unix stream listener of this name, in blocking mode. `None`: there is none left.
    pub fn take_unix(&mut self, name: &str) -> Option<UnixListener> {
        self.take_kind(name, Kind::Unix).map(UnixListener::from)
    }

    /// Takes the first UDP socket of this name, in blocking mode. `None`: there is none left.
    pub fn take_udp_socket(&mut self, name: &str) -> Option<UdpSocket> {
        self.take_kind(name, Kind::Udp).map(UdpSocket::from)
    }

    /// The names of those that are left, in the order in which they were passed. A name may stand for several sockets.
    pub fn names(&self) -> Vec<String> {
        self.sockets.iter().map(|socket| socket.name.clone()).collect()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Claims descriptors from 3 on, one for each name. What is no listener of ours is skipped, stays open, and is logged.
    pub(crate) fn claim(names: Vec<String>) -> Self {
        let mut sockets = Vec::with_capacity(names.len());
        for (raw, name) in (FIRST_FD..).zip(names) {
            match claim_inherited(raw, Kind::of) {
                Ok((fd, kind)) => sockets.push(Inherited { name, kind, fd }),
                Err(error) => tracing::warn!(descriptor = raw, name, %error, "an inherited descriptor is skipped"),
            }
        }
        Self { sockets }
    }

    /// All that are left, for a supervisor, which passes them on and never accepts: their flags are as they were.
    pub(crate) fn into_fds(self) -> Vec<(String, OwnedFd)> {
        self.sockets.into_iter().map(|socket| (socket.name, socket.fd)).collect()
    }

    fn take_kind(&mut self, name: &str, kind: Kind) -> Option<OwnedFd> {
        let place = self.sockets.iter().position(|socket| socket.name == name && socket.kind == kind)?;
        let fd = self.sockets.remove(place).fd;
        if let Err(error) = ioctl_fionbio(&fd, false) {
            tracing::warn!(name, %error, "a listener could not be made blocking");
        }
        Some(fd)
    }
}

impl Kind {
    /// What a descriptor is; an error says why it is none of the three.
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let family = socket_domain(fd)?;
        let is_inet = family == AddressFamily::INET || family == AddressFamily::INET6;
        match socket_type(fd)? {
            SocketType::STREAM if !socket_acceptconn(fd)? => Err(io::Error::other("a stream that does not listen")),
            SocketType::STREAM if is_inet => Ok(Self::Tcp),
            SocketType::STREAM if family == AddressFamily::UNIX => Ok(Self::Unix),
            SocketType::DGRAM if is_inet => Ok(Self::Udp),
            _ => Err(io::Error::other("neither a TCP nor a Unix listener nor a UDP socket")),
        }
    }
}

/// Whether a name can stand in `LISTEN_FDNAMES` (sd_listen_fds(3)).
///
/// # Errors
/// [`Error::Usage`].
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
        let rule = "it must not be empty nor hold a colon or a control character";
        return Err(Error::Usage(format!("{name:?} can't name a listener: {rule}")));
    }
    Ok(())
}

/// Lets a [`Command`] pass listeners to its child, from descriptor 3 on, with `LISTEN_FDS` and `LISTEN_FDNAMES`: for
/// programs that start a daemon by themselves. Call it last, right before the start, and once for a command.
///
/// `LISTEN_PID` is removed from the command's environment: the pid is not known before the start, so it could only be
/// wrong. The command keeps duplicates until it is dropped. No descriptor of yours is changed.
///
/// # Errors
/// [`Error::Usage`] for a name that is empty or holds a colon or a control character; [`Error::Io`] when there are too few
/// descriptors (RLIMIT_NOFILE: about twice as many as listeners are needed). The start itself fails with EBUSY when a
/// descriptor between 3 and the last listener was closed and opened anew since this call.
pub fn pass_listener_fds_on_spawn(command: &mut Command, listeners: &[(String, BorrowedFd<'_>)]) -> Result<()> {
    listeners.iter().try_for_each(|(name, _)| check_name(name))?;
    let mut fds = Vec::with_capacity(listeners.len());
    for (place, (name, fd)) in (FIRST_FD..).zip(listeners) {
        // At its place if that is free: then nothing that the standard library opens for the start can take it.
        fds.push(fcntl_dupfd_cloexec(fd, place).map_err(|source| {
            Error::io(format!("duplicate listener {name:?} to descriptor {place} or above (see ulimit -n)"), source)
        })?);
    }
    let ours: HashSet<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let taken = (FIRST_FD..).take(fds.len()).filter(|place| !ours.contains(place));
    let bystanders = taken.filter_map(|place| Some((place, FileId::of_raw(place)?))).collect();
    let names: Vec<_> = listeners.iter().map(|(name, _)| name.as_str()).collect();
    command.env(LISTEN_FDS, names.len().to_string()).env(LISTEN_FDNAMES, names.join(":")).env_remove(LISTEN_PID);
    place_at_exec(command, fds, bystanders);
    Ok(())
}

/// A duplicate of an inherited listener, kept so that an incumbent can give it back to a supervisor.
#[derive(Debug, Clone)]
pub(crate) struct Retained {
    /// Its name.
    pub(crate) name: String,
    /// The socket.
    pub(crate) fd: Arc<OwnedFd>,
    flags: Option<OFlags>,
}

/// A process has one set of inherited descriptors, so there is one such list.
static RETAINED: Mutex<Vec<Retained>> = Mutex::new(Vec::new());

/// Keeps a duplicate of each. One that can't be had is logged: a restarted supervisor then binds it anew.
pub(crate) fn retain(inherited: &InheritedListeners) {
    let mut retained = lock_retained();
    for socket in &inherited.sockets {
        match fcntl_dupfd_cloexec(&socket.fd, FIRST_FD) {
            Ok(fd) => retained.push(Retained { name: socket.name.clone(), fd: Arc::new(fd), flags: None }),
            Err(error) => tracing::warn!(name = socket.name, %error, "a listener can't be kept to be given back"),
        }
    }
}

/// What is kept, in the order in which it was passed.
pub(crate) fn retained() -> Vec<Retained> {
    lock_retained().clone()
}

/// Remembers the flags of the open files as they are now.
pub(crate) fn remember_flags() {
    for kept in lock_retained().iter_mut() {
        kept.flags = fcntl_getfl(&kept.fd).ok();
    }
}

/// Puts the flags back as they were remembered: a successor may have changed them.
pub(crate) fn restore_flags() {
    for kept in lock_retained().iter() {
        if let (Some(before), Ok(now)) = (kept.flags, fcntl_getfl(&kept.fd))
            && before != now
            && let Err(error) = fcntl_setfl(&kept.fd, before)
        {
            tracing::warn!(name = kept.name, %error, "a listener's flags could not be put back");
        }
    }
}

/// Closes what is kept: `serve` returns.
pub(crate) fn forget() {
    lock_retained().clear();
}

fn lock_retained() -> MutexGuard<'static, Vec<Retained>> {
    RETAINED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsFd for Retained {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
