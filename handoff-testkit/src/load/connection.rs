//! A client's connection, over TCP or a Unix socket, and where it leads. Opening it takes no longer than a client's patience.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with};

/// A connection that comes about takes no time on one machine, unless the backlog is full: then the kernel drops its first
/// packet, and sends it again after a second (RFC 6298, section 2; tcp(7)).
const SLOW: Duration = Duration::from_secs(1);

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An internet address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// Reads an address as `handoff status` prints it: `127.0.0.1:8080`, `unix:/run/x.sock`. `None` for datagrams.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Some(Self::Unix(path.into())),
            None => text.parse().ok().map(Self::Tcp),
        }
    }
}

/// A connected stream. Its reads and writes give up after the client's patience.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// Received, not yet read.
    unread: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// How long it took to open one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    AtOnce,
    Slowly,
}

impl Connection {
    /// Opens one.
    pub(crate) fn open(endpoint: &Endpoint, patience: Duration) -> io::Result<(Self, Opened)> {
        let since = Instant::now();
        let stream = match endpoint {
            Endpoint::Tcp(address) => Stream::Tcp(open_tcp(address, patience)?),
            Endpoint::Unix(path) => Stream::Unix(open_unix(path, patience)?),
        };
        let opened = if since.elapsed() < SLOW { Opened::AtOnce } else { Opened::Slowly };
        Ok((Self { stream, unread: Vec::new() }, opened))
    }

    /// The next line, without its end; `None` at the end of the stream.
    ///
    /// # Errors
    /// The stream's; [`io::ErrorKind::WouldBlock`] when patience is over.
    pub fn read_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let mut bytes = [0; 512];
            match self.receive(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(read) => self.unread.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What the daemon has said unasked; it stays to be read. Does not wait.
    ///
    /// # Errors
    /// The stream has ended, or broke.
    pub fn unasked(&mut self) -> io::Result<&[u8]> {
        let mut bytes = [0; 512];
        match recv(&*self, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((0, _)) if self.unread.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((read, _)) => self.unread.extend_from_slice(&bytes[..read]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(&self.unread)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(bytes),
            Stream::Unix(stream) => stream.read(bytes),
        }
    }
}

fn open_tcp(address: &SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(address, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// A full backlog makes connect(2) wait for as long as the time-out for sending allows (unix(7), socket(7)).
fn open_unix(path: &PathBuf, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            return self.receive(bytes);
        }
        let count = bytes.len().min(self.unread.len());
        bytes[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use rustix::net::listen;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn addresses_are_read_as_they_are_printed() {
        for text in ["127.0.0.1:80", "[::1]:80", "unix:/run/x.sock"] {
            assert_eq!(Endpoint::parse(text).expect("an address").to_string(), text);
        }
        assert_eq!(Endpoint::parse("udp:127.0.0.1:53"), None);
    }

    #[test]
    fn lines_come_one_by_one_over_a_unix_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).expect("binds");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            stream.write_all(b"one\ntwo\nth").expect("written");
        });
        let (mut connection, opened) = Connection::open(&Endpoint::Unix(path), PATIENCE).expect("opens");
        assert_eq!(opened, Opened::AtOnce);
        assert_eq!(connection.read_line().expect("a line").as_deref(), Some("one"));
        assert_eq!(connection.unasked().expect("said"), b"two\nth");
        assert_eq!(connection.read_line().expect("a line").as_deref(), Some("two"));
        server.join().expect("served");
        let mut rest = String::new();
        connection.read_to_string(&mut rest).expect("read");
        assert_eq!(rest, "th");
        assert!(connection.unasked().is_err(), "the stream has ended");
    }

    #[test]
    fn a_full_backlog_is_waited_for_no_longer_than_patience() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).expect("binds");
        listen(&listener, 0).expect("a backlog of one");
        let endpoint = Endpoint::Unix(path);
        let first = Connection::open(&endpoint, PATIENCE).expect("it has room for one");
        let second = Connection::open(&endpoint, Duration::from_millis(20));
        assert_eq!(second.expect_err("no room").kind(), io::ErrorKind::WouldBlock);
        drop(first);
    }

    #[test]
    fn a_packet_that_finds_no_room_makes_a_slow_connect() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        listen(&listener, 0).expect("a backlog of one");
        let address = listener.local_addr().expect("has one");
        let first = TcpStream::connect(address).expect("it has room for one");
        let second = thread::spawn(move || Connection::open(&address.into(), PATIENCE).expect("opens").1);
        // The second connect's first packet is dropped; the backlog is emptied while it waits to be sent again.
        while !is_connecting(address) {
            thread::yield_now();
        }
        let accepted = listener.accept().expect("accepts");
        assert_eq!(second.join().expect("connected"), Opened::Slowly);
        drop((first, accepted));
    }

    /// Whether a connection to this address is in SYN_SENT, by /proc/net/tcp (proc_pid_net(5)): state 2.
    fn is_connecting(to: SocketAddr) -> bool {
        let port = format!(":{:04X}", to.port());
        let table = std::fs::read_to_string("/proc/net/tcp").expect("readable");
        table.lines().skip(1).any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(2).is_some_and(|remote| remote.ends_with(&port)) && words.get(3) == Some(&"02")
        })
    }
}
