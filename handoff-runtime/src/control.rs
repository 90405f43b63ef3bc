//! Control sockets: where an incumbent answers.
//!
//! A socket is bound and listens under a staging name beside its path and is then renamed into place: a client finds the
//! old one or the new one, never none, and never one that refuses it. It has mode 0600 before anybody can connect.
//! A published path is never unlinked by a process that leaves: it may be its successor's by then. A child that the daemon forks
//! does not keep the socket: it would go on answering for a dead daemon.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_proto::{Message, Side};
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};

use crate::channel::{Channel, Received};
use crate::error::{Error, Result};
use crate::events;
use crate::sys::fork::StaysHere;
use crate::sys::poll;
use crate::timers::instant_after;

/// What `sun_path` holds beside the closing zero (unix(7)).
const SUN_PATH_BYTES_MAX: usize = 107;
/// A dot and the longest pid that Linux gives (PID_MAX_LIMIT, 2^22).
const STAGING_SUFFIX_BYTES_MAX: usize = 8;
/// The kernel lowers it to `/proc/sys/net/core/somaxconn`.
const BACKLOG: i32 = i32::MAX;
const MODE: u32 = 0o600;
/// How many strangers one call turns away, so that a crowd of them does not hold up the loop.
const STRANGERS_PER_CALL_MAX: usize = 16;

/// A socket that listens under a staging name. Dropping it removes that name.
#[derive(Debug)]
pub(crate) struct StagedControl {
    socket: StaysHere,
    inode: Inode,
    path: PathBuf,
    staging: StagingName,
}

/// A socket that listens at its path.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    socket: Arc<StaysHere>,
    inode: Inode,
    path: PathBuf,
}

impl StagedControl {
    /// Binds beside `path` and listens; nobody finds it there yet. A leftover of a dead process with our pid is replaced.
    ///
    /// # Errors
    /// The path is too long, or its directory is missing or not ours to write.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        check_socket_path(path)?;
        check_replaceable(path)?;
        let staging = StagingName(staging_path(path, std::process::id()));
        let (socket, inode) = listen_at(&staging.0)
            .map_err(|error| Error::io(format!("bind control socket {}", staging.0.display()), error))?;
        Ok(Self { socket, inode, path: path.to_owned(), staging })
    }

    /// Where it is to be published.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it into place; from here on new clients come to it.
    ///
    /// # Errors
    /// The rename failed; the staging name is removed.
    pub(crate) fn publish(self) -> Result<ControlSocket> {
        fs::rename(&self.staging.0, &self.path)
            .map_err(|error| Error::io(format!("publish control socket {}", self.path.display()), error))?;
        self.staging.forget();
        Ok(ControlSocket { socket: Arc::new(self.socket), inode: self.inode, path: self.path })
    }
}

impl AsFd for StagedControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ControlSocket {
    /// The next client of our own user or root; others are turned away. `None`: nobody waits.
    ///
    /// # Errors
    /// The system's, such as no descriptor left (EMFILE): the client still waits, so try again later and not at once.
    pub(crate) fn accept(&self) -> Result<Option<Channel>> {
        let failed = |error: io::Error| Error::io(format!("accept on {}", self.path.display()), error);
        for _ in 0..STRANGERS_PER_CALL_MAX {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accept = || Ok::<_, io::Error>(retry_on_intr(|| accept_with(&*self.socket, flags))?);
            let socket = match StaysHere::open(accept) {
                Ok(socket) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(failed(error)),
            };
            let channel = Channel::new(socket);
            match is_one_of_us(&channel) {
                Ok(()) => return Ok(Some(channel)),
                Err(error) => events::warn!(path = %self.path.display(), %error, "a client was turned away"),
            }
        }
        Ok(None)
    }

    /// The socket, to wait for clients while another thread accepts them.
    pub(crate) fn polled(&self) -> Arc<StaysHere> {
        Arc::clone(&self.socket)
    }

    /// Where it is published.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to this socket.
    pub(crate) fn is_published(&self) -> bool {
        Inode::at(&self.path).is_ok_and(|inode| inode == self.inode)
    }

    /// Leads the path to us again, if it is gone or another's.
    ///
    /// A socket has one name in its life, so this is a new one under the old path. Who waits at the old one unaccepted is
    /// disconnected and tries again.
    ///
    /// # Errors
    /// As [`StagedControl::bind`]; the old socket stays as it is.
    pub(crate) fn publish_again(&mut self) -> Result<()> {
        if !self.is_published() {
            *self = StagedControl::bind(&self.path)?.publish()?;
        }
        Ok(())
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a control socket at `path`, and its staging name, fit the system's address.
///
/// # Errors
/// [`Error::SocketPathTooLong`]; [`Error::Usage`] for a path without a file name.
pub(crate) fn check_socket_path(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().len();
    let bytes_max = SUN_PATH_BYTES_MAX - STAGING_SUFFIX_BYTES_MAX;
    if bytes > bytes_max {
        return Err(Error::SocketPathTooLong { path: path.to_owned(), bytes, bytes_max });
    }
    if path.file_name().is_none() || path.as_os_str().as_bytes().contains(&0) {
        return Err(Error::Usage(format!("{} can't be the path of a socket", path.display())));
    }
    Ok(())
}

/// Connects without waiting.
///
/// # Errors
/// Nobody listens, the path is too long, we may not, or too many wait already (EAGAIN).
pub(crate) fn connect(path: &Path) -> Result<Channel> {
    let bytes = path.as_os_str().len();
    if bytes > SUN_PATH_BYTES_MAX {
        return Err(Error::SocketPathTooLong { path: path.to_owned(), bytes, bytes_max: SUN_PATH_BYTES_MAX });
    }
    let connected = new_socket().and_then(|socket| {
        let address = SocketAddrUnix::new(path)?;
        retry_on_intr(|| rustix::net::connect(&socket, &address))?;
        Ok(socket)
    });
    let failed = |error: io::Error| Error::io(format!("connect to control socket {}", path.display()), error);
    let socket = connected.map_err(|error| failed(error.into()))?;
    Ok(Channel::new(socket))
}

/// The pid of the incumbent that answers at `path`, as the kernel knows it. `None`: nobody says Hello in time.
pub(crate) fn who_answers(path: &Path, within: Duration) -> Option<u32> {
    let until = instant_after(within);
    let mut channel = connect(path).ok()?;
    loop {
        match channel.receive() {
            Received::Message { message: Message::Hello { role: Side::Incumbent, .. }, .. } => {
                return channel.peer().ok().map(|peer| peer.pid).filter(|&pid| pid != 0);
            }
            Received::Nothing => {}
            Received::Message { .. } | Received::Closed | Received::Malformed(_) => return None,
        }
        let left = until.checked_duration_since(Instant::now())?;
        poll::wait(&mut [PollFd::new(&channel, PollFlags::IN)], Some(left)).ok()?;
    }
}

/// Removes the staging name that a process which was ended may have left.
pub(crate) fn remove_staging(path: &Path, pid: u32) {
    drop(StagingName(staging_path(path, pid)));
}

/// A rename replaces whatever is there: never a file that somebody named by mistake.
fn check_replaceable(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(Error::Usage(format!("{} exists and is no socket; name another path or remove it", path.display())))
        }
        _ => Ok(()),
    }
}

/// Whether the peer's user is ours or root.
///
/// # Errors
/// [`Error::PeerNotPermitted`].
fn is_one_of_us(channel: &Channel) -> Result<()> {
    let uid = channel.peer().map_err(|error| Error::io("ask who connected", error))?.uid;
    if may_speak(uid, rustix::process::geteuid().as_raw()) { Ok(()) } else { Err(Error::PeerNotPermitted { uid }) }
}

fn may_speak(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

/// Nobody can connect before `listen`, so nobody ever does with another mode than ours.
fn listen_at(staging: &Path) -> io::Result<(StaysHere, Inode)> {
    let socket = StaysHere::open(|| new_socket().map_err(io::Error::from))?;
    let address = SocketAddrUnix::new(staging)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            fs::remove_file(staging)?;
            bind(&socket, &address)?;
        }
        result => result?,
    }
    fs::set_permissions(staging, fs::Permissions::from_mode(MODE))?;
    let inode = Inode::at(staging)?;
    listen(&socket, BACKLOG)?;
    Ok((socket, inode))
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Beside the path, so that a rename reaches it; with the pid, so that whoever ends that process can remove it.
fn staging_path(path: &Path, pid: u32) -> PathBuf {
    let mut staging = OsString::from(path);
    staging.push(format!(".{pid}"));
    staging.into()
}

/// Removes its file when dropped.
#[derive(Debug)]
struct StagingName(PathBuf);

impl StagingName {
    /// It is renamed: there is nothing to remove.
    fn forget(mut self) {
        self.0.clear();
    }
}

impl Drop for StagingName {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                events::warn!(path = %self.0.display(), %error, "a staging name could not be removed");
            }
            _ => {}
        }
    }
}

/// What a path leads to. A socket that is open keeps its inode, so the number is not given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { device: metadata.dev(), number: metadata.ino() })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use handoff_proto::{Capabilities, PROTO_MAX, PROTO_MIN};

    use super::*;
    use crate::sys::fork::beside_a_child;
    use crate::testing::{backlog_wanted, hears_the_end};

    /// Long enough on any machine; no test waits for it to pass.
    const LONG: Duration = Duration::from_secs(60);

    fn scene() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handoff.sock");
        (dir, path)
    }

    fn publish(path: &Path) -> ControlSocket {
        StagedControl::bind(path).unwrap().publish().unwrap()
    }

    fn names_in(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn as_many_clients_may_wait_as_the_system_allows() {
        let (_dir, path) = scene();
        let _control = publish(&path);
        // One that has gone waits to be accepted all the same.
        let found_room = (0..backlog_wanted()).take_while(|_| connect(&path).is_ok()).count();
        assert_eq!(found_room, backlog_wanted());
    }

    fn hello(role: Side) -> Message {
        Message::Hello {
            role,
            pid: 1,
            build_id: Vec::new(),
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            capabilities: Capabilities::default(),
        }
    }

    #[test]
    fn nobody_finds_a_staged_socket_at_its_path() {
        let (dir, path) = scene();
        let staged = StagedControl::bind(&path).unwrap();
        assert!(connect(&path).is_err());
        let published = staged.publish().unwrap();
        let _client = connect(&path).unwrap();
        assert!(published.accept().unwrap().is_some());
        assert!(published.accept().unwrap().is_none());
        assert_eq!(names_in(&dir), ["handoff.sock"]);
    }

    #[test]
    fn a_staged_socket_that_is_dropped_leaves_no_name() {
        let (dir, path) = scene();
        drop(StagedControl::bind(&path).unwrap());
        assert!(names_in(&dir).is_empty());
    }

    #[test]
    fn a_published_name_outlives_its_owner() {
        let (dir, path) = scene();
        drop(publish(&path));
        assert_eq!(names_in(&dir), ["handoff.sock"]);
    }

    #[test]
    fn the_mode_is_private_while_staged_and_published() {
        let (_dir, path) = scene();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let staged = StagedControl::bind(&path).unwrap();
        assert_eq!(mode(&staging_path(&path, std::process::id())), 0o600);
        let _published = staged.publish().unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_leftover_staging_name_is_replaced() {
        let (dir, path) = scene();
        fs::write(staging_path(&path, std::process::id()), "left over").unwrap();
        let _published = publish(&path);
        assert_eq!(names_in(&dir), ["handoff.sock"]);
    }

    #[test]
    fn the_staging_name_of_an_ended_process_is_removed() {
        let (dir, path) = scene();
        fs::write(staging_path(&path, 4_194_304), "").unwrap();
        remove_staging(&path, 4_194_304);
        remove_staging(&path, 4_194_304);
        assert!(names_in(&dir).is_empty());
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_replaced() {
        let (_dir, path) = scene();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(StagedControl::bind(&path), Err(Error::Usage(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_longest_path_works_and_a_longer_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let bytes_max = SUN_PATH_BYTES_MAX - STAGING_SUFFIX_BYTES_MAX;
        let room = bytes_max - dir.path().as_os_str().len() - 1;
        let longest = dir.path().join("x".repeat(room));
        let _published = publish(&longest);
        connect(&longest).unwrap();
        let too_long = dir.path().join("x".repeat(room + 1));
        match StagedControl::bind(&too_long) {
            Err(Error::SocketPathTooLong { bytes, bytes_max: told, .. }) => {
                assert_eq!((bytes, told), (bytes_max + 1, bytes_max));
            }
            other => panic!("{other:?}"),
        }
        let of_another_system = dir.path().join("x".repeat(200));
        assert!(matches!(connect(&of_another_system), Err(Error::SocketPathTooLong { .. })));
        assert!(SocketAddrUnix::new(staging_path(&longest, 4_194_304)).is_ok());
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        for path in ["", "/", "/tmp/.."] {
            assert!(matches!(check_socket_path(Path::new(path)), Err(Error::Usage(_))), "{path:?}");
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = StagedControl::bind(Path::new("/nowhere/at/all/x.sock")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all/x.sock"), "{error}");
    }

    #[test]
    fn the_newer_socket_gets_the_clients_and_the_older_one_knows() {
        let (_dir, path) = scene();
        let mut old = publish(&path);
        assert!(old.is_published());
        let new = publish(&path);
        assert!(!old.is_published());
        let _client = connect(&path).unwrap();
        assert!(old.accept().unwrap().is_none());
        assert!(new.accept().unwrap().is_some());

        old.publish_again().unwrap();
        assert!(old.is_published() && !new.is_published());
        let _client = connect(&path).unwrap();
        assert!(old.accept().unwrap().is_some());
    }

    #[test]
    fn a_removed_path_is_published_again_and_a_present_one_is_left() {
        let (_dir, path) = scene();
        let mut socket = publish(&path);
        let before = socket.inode;
        socket.publish_again().unwrap();
        assert_eq!(socket.inode, before);
        fs::remove_file(&path).unwrap();
        assert!(!socket.is_published());
        socket.publish_again().unwrap();
        assert!(socket.is_published());
        assert_eq!(socket.path(), path);
    }

    #[test]
    fn the_queue_is_as_long_as_the_system_allows() {
        let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let clients_max = somaxconn.trim().parse::<usize>().unwrap().min(1_000);
        let (_dir, path) = scene();
        let _published = publish(&path);
        let clients: Vec<_> = (0..clients_max).map(|_| connect(&path).unwrap()).collect();
        assert_eq!(clients.len(), clients_max);
    }

    #[test]
    fn whoever_says_hello_as_the_incumbent_answers() {
        let (_dir, path) = scene();
        let socket = publish(&path);
        let incumbent = thread::spawn(move || {
            poll::wait(&mut [PollFd::new(&socket, PollFlags::IN)], Some(LONG)).unwrap();
            let mut session = socket.accept().unwrap().unwrap();
            session.send(1, &hello(Side::Incumbent)).unwrap();
            session
        });
        assert_eq!(who_answers(&path, LONG), Some(std::process::id()));
        incumbent.join().unwrap();
    }

    #[test]
    fn nobody_answers_where_nobody_listens_speaks_or_is_an_incumbent() {
        let (_dir, path) = scene();
        assert_eq!(who_answers(&path, LONG), None);
        let socket = publish(&path);
        assert_eq!(who_answers(&path, Duration::from_millis(1)), None);
        drop(socket.accept());
        let other = thread::spawn(move || {
            poll::wait(&mut [PollFd::new(&socket, PollFlags::IN)], Some(LONG)).unwrap();
            let mut session = socket.accept().unwrap().unwrap();
            session.send(1, &hello(Side::Successor)).unwrap();
            session
        });
        assert_eq!(who_answers(&path, LONG), None);
        other.join().unwrap();
    }

    /// That it is asked of real strangers is a test on real processes, which needs root.
    #[test]
    fn own_user_and_root_may_speak_and_nobody_else() {
        assert!(may_speak(1000, 1000) && may_speak(0, 1000) && may_speak(0, 0));
        assert!(!may_speak(1001, 1000) && !may_speak(65_534, 0));
    }

    #[test]
    fn a_forked_child_keeps_no_client() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let socket = StagedControl::bind(&path).unwrap().publish().unwrap();
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let accepted = socket.accept().unwrap().unwrap();
        beside_a_child(|| {
            drop(accepted);
            hears_the_end(client);
        });
    }
}
