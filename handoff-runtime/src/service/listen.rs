//! The service's listening sockets: bound once, passed to every child, closed with the service.
//!
//! A bound socket outlives every daemon, which is why no client is refused (promise 4). Nothing is accepted here, and the
//! flags of the open files are left as they are: they are shared with the daemons.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::address::{Address, Listen};
use super::error::ServiceError;
use super::report::ListenerStatus;
use crate::events::{debug, info};
use crate::listeners::InheritedListeners;

/// The kernel cuts it to `net.core.somaxconn` (listen(2)).
const LONGEST_BACKLOG: i32 = i32::MAX;

/// All listeners of a service, in the order in which a child finds them.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    name: String,
    addr: String,
    socket: OwnedFd,
    /// Removed with its owner.
    _path: Option<OwnedPath>,
}

impl Listeners {
    /// Takes each listener from `inherited` if one of its name and kind is there, else binds it. An address that is in use
    /// is tried again if `make_way` says so.
    ///
    /// # Errors
    /// The first that can't be had, by name; the ones before it are closed again, and their paths removed.
    pub(super) fn open(
        wanted: &[Listen],
        inherited: &mut InheritedListeners,
        mut make_way: impl FnMut() -> bool,
    ) -> Result<Self, ServiceError> {
        let mut bound_in_the_end = |listen| match bound(listen) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && make_way() => bound(listen),
            result => result,
        };
        let mut open = Vec::with_capacity(wanted.len());
        for listen in wanted {
            open.push(match taken(listen, inherited) {
                Some(open) => open,
                None => bound_in_the_end(listen)
                    .map_err(|source| ServiceError::Listener { listen: listen.clone(), source })?,
            });
        }
        Ok(Self { open })
    }

    /// Adds the sockets that a living daemon gave back. `wanted` tells which Unix paths are ours to remove at the end.
    pub(super) fn add_given_back(&mut self, sockets: Vec<(String, OwnedFd)>, wanted: &[Listen]) {
        self.open.extend(sockets.into_iter().map(|(name, socket)| {
            let path = wanted.iter().find(|listen| listen.name == name).and_then(|listen| match &listen.address {
                Address::Unix(path) => OwnedPath::of(path).ok(),
                Address::Tcp(_) | Address::Udp(_) => None,
            });
            Open { addr: local_address(&socket), name, socket, _path: path }
        }));
    }

    /// Names and sockets, as a child is to find them.
    pub(super) fn for_a_child(&self) -> Vec<(String, BorrowedFd<'_>)> {
        self.open.iter().map(|open| (open.name.clone(), open.socket.as_fd())).collect()
    }

    /// For people.
    pub(super) fn status(&self) -> Vec<ListenerStatus> {
        self.open.iter().map(|open| ListenerStatus { name: open.name.clone(), addr: open.addr.clone() }).collect()
    }
}

/// A Unix socket's path that is removed with its owner, if it is still the same file.
#[derive(Debug)]
struct OwnedPath {
    path: PathBuf,
    inode: (u64, u64),
}

impl OwnedPath {
    fn of(path: &Path) -> io::Result<Self> {
        let file = path.symlink_metadata()?;
        Ok(Self { path: path.to_owned(), inode: (file.dev(), file.ino()) })
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let still_ours = self.path.symlink_metadata().is_ok_and(|file| (file.dev(), file.ino()) == self.inode);
        if still_ours && let Err(error) = std::fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "a socket's path could not be removed");
        }
    }
}

fn taken(listen: &Listen, inherited: &mut InheritedListeners) -> Option<Open> {
    let socket: OwnedFd = match &listen.address {
        Address::Tcp(_) => inherited.take(&listen.name)?.into(),
        Address::Unix(_) => inherited.take_unix(&listen.name)?.into(),
        Address::Udp(_) => inherited.take_udp_socket(&listen.name)?.into(),
    };
    let addr = local_address(&socket);
    info!(name = listen.name, addr, configured = %listen.address, "listener taken from LISTEN_FDS");
    Some(Open { name: listen.name.clone(), addr, socket, _path: None })
}

fn bound(listen: &Listen) -> io::Result<Open> {
    let mut path = None;
    let socket: OwnedFd = match &listen.address {
        // With SO_REUSEADDR, as std has it.
        Address::Tcp(address) => with_longest_backlog(TcpListener::bind(address)?.into())?,
        Address::Udp(address) => UdpSocket::bind(address)?.into(),
        Address::Unix(at) => {
            remove_stale(at)?;
            let socket = UnixListener::bind(at)?.into();
            path = Some(OwnedPath::of(at)?);
            with_longest_backlog(socket)?
        }
    };
    Ok(Open { name: listen.name.clone(), addr: local_address(&socket), socket, _path: path })
}

fn with_longest_backlog(socket: OwnedFd) -> io::Result<OwnedFd> {
    rustix::net::listen(&socket, LONGEST_BACKLOG)?;
    Ok(socket)
}

/// Clears the way for a bind: a path at which a socket stands and nobody answers is removed.
pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path),
        // A full backlog has an owner too.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(ErrorKind::AddrInUse.into()),
        Err(error) => Err(error.into()),
    }
}

/// As a client would write it.
fn local_address(socket: &OwnedFd) -> String {
    let address = rustix::net::getsockname(socket).ok().and_then(|any| match SocketAddrUnix::try_from(any.clone()) {
        Ok(unix) => unix.path().map(|path| Address::Unix(PathBuf::from(OsStr::from_bytes(path.to_bytes())))),
        Err(_) => {
            let is_stream = rustix::net::sockopt::socket_type(socket) == Ok(SocketType::STREAM);
            let address = SocketAddr::try_from(any).ok()?;
            Some(if is_stream { Address::Tcp(address) } else { Address::Udp(address) })
        }
    });
    address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::testing::backlog_wanted;

    fn nothing_inherited() -> InheritedListeners {
        InheritedListeners::claim(Vec::new()).unwrap()
    }

    fn open(wanted: &[String]) -> Result<Listeners, ServiceError> {
        let wanted: Vec<Listen> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        Listeners::open(&wanted, &mut nothing_inherited(), || false)
    }

    #[test]
    fn each_kind_is_bound_and_told_with_its_real_port() {
        let dir = tempfile::tempdir().unwrap();
        let unix = format!("unix:{}/x.sock", dir.path().display());
        let listeners = open(&["a=127.0.0.1:0".into(), format!("b={unix}"), "c=udp:127.0.0.1:0".into()]).unwrap();
        let status = listeners.status();
        let a: SocketAddr = status[0].addr.parse().unwrap();
        assert_ne!(a.port(), 0);
        std::net::TcpStream::connect(a).unwrap();
        assert_eq!(status[1].addr, unix);
        assert!(status[2].addr.starts_with("udp:127.0.0.1:") && !status[2].addr.ends_with(":0"));
        let names: Vec<_> = listeners.for_a_child().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn as_many_clients_may_wait_as_the_system_allows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let listeners = open(&["a=127.0.0.1:0".into(), format!("b=unix:{}", path.display())]).unwrap();
        let tcp: SocketAddr = listeners.status()[0].addr.parse().unwrap();
        // One that has gone waits to be accepted all the same. Where there is no room, TCP lets a client try on, and here it gives up.
        let by_tcp = |_: &usize| std::net::TcpStream::connect_timeout(&tcp, Duration::from_secs(30)).is_ok();
        let by_path = |_: &usize| crate::control::connect(&path).is_ok();
        assert_eq!((0..backlog_wanted()).take_while(by_path).count(), backlog_wanted());
        assert_eq!((0..backlog_wanted()).take_while(by_tcp).count(), backlog_wanted());
    }

    #[test]
    fn an_address_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = open(&[format!("http={address}")]).unwrap_err().to_string();
        assert_eq!(error, format!("listener http: {address} is in use by another process"));
    }

    #[test]
    fn a_unix_path_is_replaced_only_when_nobody_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let wanted = [format!("x=unix:{}", path.display())];
        let owner = UnixListener::bind(&path).unwrap();
        assert!(open(&wanted).unwrap_err().to_string().contains("in use"));
        drop(owner);
        let listeners = open(&wanted).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listeners);
        assert!(!path.exists(), "the owner removes its path");
        std::fs::write(&path, "precious").unwrap();
        assert!(open(&wanted).unwrap_err().to_string().contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_that_is_anothers_by_now_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let listeners = open(&[format!("x=unix:{}", path.display())]).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listeners);
        assert!(path.exists());
    }

    #[test]
    fn when_one_fails_the_others_leave_no_path_behind() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = format!("x=unix:{}/x.sock", dir.path().display());
        open(&[first, format!("http={}", taken.local_addr().unwrap())]).unwrap_err();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
