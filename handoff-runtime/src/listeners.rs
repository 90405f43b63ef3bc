//! Listening sockets by name: inherited, kept to be given back, and passed on.
//!
//! A socket's O_NONBLOCK belongs to its open file, which the incumbent shares with its successor: nothing here touches that
//! flag before a socket is taken, and a successor takes none before its Begin.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::environment::{LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID};
use crate::error::{Error, Result};
use crate::events;
use crate::sys::fd::claim_inherited;
use crate::sys::spawn::{FIRST_FD, place_at_exec};

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
    ///
    /// # Errors
    /// The system does not say what a descriptor is. Without one of its listeners a daemon would serve nobody there.
    pub(crate) fn claim(names: Vec<String>) -> Result<Self> {
        let mut sockets = Vec::with_capacity(names.len());
        for (raw, name) in (FIRST_FD..).zip(names) {
            match claim_inherited(raw, Kind::of) {
                Ok((fd, kind)) => sockets.push(Inherited { name, kind, fd }),
                Err(error) if is_no_listener(&error) => {
                    events::warn!(descriptor = raw, name, %error, "an inherited descriptor is skipped");
                }
                Err(error) => return Err(Error::io(format!("claim listener {name:?}, descriptor {raw}"), error)),
            }
        }
        Ok(Self { sockets })
    }

    fn take_kind(&mut self, name: &str, kind: Kind) -> Option<OwnedFd> {
        let place = self.sockets.iter().position(|socket| socket.name == name && socket.kind == kind)?;
        let fd = self.sockets.remove(place).fd;
        if let Err(error) = ioctl_fionbio(&fd, false) {
            events::warn!(name, %error, "a listener could not be made blocking");
        }
        Some(fd)
    }
}

/// Whether this says what the descriptor is, and not that it could not be told: it is not open, no socket (getsockopt(2)),
/// or, without a number, a socket of another kind.
fn is_no_listener(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), None | Some(libc::EBADF | libc::ENOTSOCK | libc::ENOPROTOOPT | libc::EOPNOTSUPP))
}

/// # Errors
/// It is none, or the system does not say what it is.
pub(crate) fn is_listener(fd: BorrowedFd<'_>) -> io::Result<()> {
    Kind::of(fd).map(drop)
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
/// programs that start a daemon by themselves. Call it once for a command, right before the start.
///
/// `LISTEN_PID` is removed from the command's environment: the pid is not known before the start, so it could only be
/// wrong. The command keeps duplicates until it is dropped. No descriptor of yours is changed.
///
/// The standard library hears of a failed start on a descriptor of its own. If you close one between 3 and the last
/// listener after this call, it may take that number, which the listener then takes in the child: a program that can't be
/// executed shows as a child that dies at once, then, instead of an error of the start.
///
/// # Errors
/// [`Error::Usage`] for a name that is empty or holds a colon or a control character; [`Error::Io`] when there are too few
/// descriptors (RLIMIT_NOFILE): twice as many as listeners are needed.
pub fn pass_listener_fds_on_spawn(command: &mut Command, listeners: &[(String, BorrowedFd<'_>)]) -> Result<()> {
    listeners.iter().try_for_each(|(name, _)| check_name(name))?;
    let mut fds = Vec::with_capacity(listeners.len());
    for (place, (name, fd)) in (FIRST_FD..).zip(listeners) {
        // At its place if that is free: then what the standard library opens for the start can't take it.
        fds.push(fcntl_dupfd_cloexec(fd, place).map_err(|source| {
            Error::io(format!("duplicate listener {name:?} to descriptor {place} or above (see ulimit -n)"), source)
        })?);
    }
    let names: Vec<_> = listeners.iter().map(|(name, _)| name.as_str()).collect();
    command.env(LISTEN_FDS, names.len().to_string()).env(LISTEN_FDNAMES, names.join(":")).env_remove(LISTEN_PID);
    place_at_exec(command, fds);
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
            Err(error) => events::warn!(name = socket.name, %error, "a listener can't be kept to be given back"),
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
            events::warn!(name = kept.name, %error, "a listener's flags could not be put back");
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;
    use crate::spawn::spawn;
    use crate::testing::{arguments_for, open_fds, run_alone, with_free_fds};

    fn tcp() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn target_of(fd: impl AsFd) -> String {
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()));
        link.unwrap().to_str().unwrap().to_owned()
    }

    fn is_nonblocking(fd: impl AsFd) -> bool {
        fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
    }

    /// Runs the ignored test `path` of this program with these descriptors, as a supervisor starts a daemon.
    fn run_with(path: &str, fds: &[(&str, BorrowedFd<'_>)]) {
        let listeners: Vec<_> = fds.iter().map(|&(name, fd)| (name.to_owned(), fd)).collect();
        let program = std::env::current_exe().unwrap();
        let mut process = spawn(&program, &arguments_for(path), &[], &listeners, &[]).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn claims_seven() {
        let names = ["http", "admin", "dns", "file", "stream", "http", "six"].map(str::to_owned).to_vec();
        let before = open_fds();
        let mut inherited = InheritedListeners::claim(names).unwrap();
        assert_eq!(open_fds(), before);
        assert_eq!(inherited.names(), ["http", "admin", "dns", "http", "six"]);
        for skipped in [6, 7] {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{skipped}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let flags = u32::from_str_radix(flags, 8).unwrap();
            assert_eq!(flags & libc::O_CLOEXEC as u32, 0, "it stays as it was");
        }
        for socket in &inherited.sockets {
            assert!(fcntl_getfd(&socket.fd).unwrap().contains(FdFlags::CLOEXEC));
            assert!(is_nonblocking(&socket.fd), "nothing was taken yet");
        }

        assert!(inherited.take_unix("http").is_none() && inherited.take("admin").is_none());
        let first = inherited.take("http").unwrap();
        assert!(!is_nonblocking(&first));
        let second = inherited.take("http").unwrap();
        assert_ne!(first.local_addr().unwrap(), second.local_addr().unwrap());
        assert!(inherited.take("http").is_none());
        assert!(inherited.take_unix("admin").is_some());
        assert!(inherited.take_udp_socket("dns").is_some());
        assert!(inherited.take("six").unwrap().local_addr().unwrap().is_ipv6());
        assert!(inherited.is_empty());
    }

    #[test]
    fn listeners_are_claimed_by_name_and_what_is_none_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("sock")).unwrap();
        let (stream, _peer) = UnixStream::pair().unwrap();
        let (http, again, six) = (tcp(), tcp(), TcpListener::bind("[::1]:0").unwrap());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        for fd in [http.as_fd(), again.as_fd(), six.as_fd(), unix.as_fd(), udp.as_fd()] {
            ioctl_fionbio(fd, true).unwrap();
        }
        let fds = [
            ("http", http.as_fd()),
            ("admin", unix.as_fd()),
            ("dns", udp.as_fd()),
            ("file", file.as_fd()),
            ("stream", stream.as_fd()),
            ("http", again.as_fd()),
            ("six", six.as_fd()),
        ];
        run_with("listeners::tests::claims_seven", &fds);
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn retains_one() {
        let mut inherited = InheritedListeners::claim(vec!["http".into(), "closed".into()]).unwrap();
        let without_duplicates = open_fds().len();
        retain(&inherited);
        assert_eq!(open_fds().len(), without_duplicates + 1);
        let socket = inherited.take("http").unwrap();
        let kept = retained();
        assert_eq!((kept.len(), kept[0].name.as_str()), (1, "http"));
        assert_eq!(target_of(&kept[0]), target_of(&socket));

        socket.set_nonblocking(true).unwrap();
        restore_flags();
        assert!(is_nonblocking(&socket), "nothing is remembered yet");
        remember_flags();
        socket.set_nonblocking(false).unwrap();
        restore_flags();
        assert!(is_nonblocking(&socket));

        drop(kept);
        forget();
        assert_eq!(open_fds().len(), without_duplicates);
        assert!(retained().is_empty());
    }

    #[test]
    fn what_can_not_be_told_is_no_reason_to_skip_a_listener() {
        let os = io::Error::from_raw_os_error;
        for skipped in [os(libc::EBADF), os(libc::ENOTSOCK), io::Error::other("a stream that does not listen")] {
            assert!(is_no_listener(&skipped), "{skipped}");
        }
        for passing in [libc::EMFILE, libc::ENOMEM, libc::ENOBUFS, libc::EIO] {
            assert!(!is_no_listener(&os(passing)), "{passing}");
        }
    }

    #[test]
    fn duplicates_are_kept_with_their_flags_until_forgotten() {
        run_with("listeners::tests::retains_one", &[("http", tcp().as_fd())]);
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn retains_without_room() {
        let inherited = InheritedListeners::claim(vec!["a".into(), "b".into()]).unwrap();
        with_free_fds(1, || retain(&inherited));
        assert_eq!(retained().len(), 1);
        assert_eq!(inherited.names(), ["a", "b"]);
    }

    #[test]
    fn without_room_for_duplicates_the_listeners_still_serve() {
        run_with("listeners::tests::retains_without_room", &[("a", tcp().as_fd()), ("b", tcp().as_fd())]);
    }

    /// Starts a shell with these listeners by the standard library and gives what it wrote.
    fn output_of(script: &str, listeners: &[(String, BorrowedFd<'_>)]) -> Vec<String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env(LISTEN_PID, "1");
        pass_listener_fds_on_spawn(&mut command, listeners).unwrap();
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    fn named(sockets: &[TcpListener]) -> Vec<(String, BorrowedFd<'_>)> {
        sockets.iter().enumerate().map(|(at, socket)| (format!("l{at}"), socket.as_fd())).collect()
    }

    const SHOW_THREE: &str = "for fd in 3 4 5; do readlink /proc/$$/fd/$fd; done";

    #[test]
    fn a_command_passes_listeners_in_order() {
        let sockets: Vec<_> = (0..3).map(|_| tcp()).collect();
        let mut reversed = named(&sockets);
        reversed.reverse();
        let script = format!("echo $LISTEN_FDS $LISTEN_FDNAMES ${{LISTEN_PID-unset}}; {SHOW_THREE}");
        let out = output_of(&script, &reversed);
        assert_eq!(out[0], "3 l2:l1:l0 unset");
        assert_eq!(out[1..], [target_of(&sockets[2]), target_of(&sockets[1]), target_of(&sockets[0])]);
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn passes_what_sits_at_the_places() {
        let sockets: Vec<_> = (0..20).map(|_| tcp()).collect();
        assert!(sockets.iter().any(|socket| socket.as_raw_fd() < FIRST_FD + 20));
        let mut reversed = named(&sockets);
        reversed.reverse();
        let before = open_fds();
        let out = output_of("for fd in $(seq 3 22); do readlink /proc/$$/fd/$fd; done", &reversed);
        assert_eq!(out, sockets.iter().rev().map(target_of).collect::<Vec<_>>());
        assert_eq!(open_fds(), before);
    }

    #[test]
    fn a_command_passes_listeners_that_sit_at_each_others_places() {
        run_alone("listeners::tests::passes_what_sits_at_the_places");
    }

    #[test]
    fn a_command_passes_more_than_a_thousand_and_more_than_once() {
        let sockets: Vec<_> = (0..1200).map(|_| tcp()).collect();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo $LISTEN_FDS; readlink /proc/$$/fd/3; readlink /proc/$$/fd/1202"]);
        pass_listener_fds_on_spawn(&mut command, &named(&sockets)).unwrap();
        for _ in 0..2 {
            let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
            assert_eq!(out.lines().collect::<Vec<_>>(), ["1200", &target_of(&sockets[0]), &target_of(&sockets[1199])]);
        }
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn starts_what_is_missing() {
        let sockets = [tcp(), tcp()];
        let mut command = Command::new("/nowhere/at/all");
        pass_listener_fds_on_spawn(&mut command, &named(&sockets)).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_failed_start_is_told_with_listeners_too() {
        run_alone("listeners::tests::starts_what_is_missing");
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn closes_before_the_start() {
        let sockets: Vec<_> = (0..3).map(|_| tcp()).collect();
        let targets: Vec<_> = sockets.iter().map(target_of).collect();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SHOW_THREE]);
        pass_listener_fds_on_spawn(&mut command, &named(&sockets)).unwrap();
        drop(sockets);
        let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(out.lines().collect::<Vec<_>>(), targets);
    }

    #[test]
    fn listeners_may_be_closed_before_the_start() {
        run_alone("listeners::tests::closes_before_the_start");
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn passes_without_room() {
        let sockets: Vec<_> = (0..10).map(|_| tcp()).collect();
        let before = open_fds();
        let mut command = Command::new("/bin/true");
        let passed = with_free_fds(5, || pass_listener_fds_on_spawn(&mut command, &named(&sockets)));
        let error = passed.unwrap_err().to_string();
        assert!(error.contains("ulimit -n"), "{error}");
        assert_eq!(open_fds(), before);
    }

    #[test]
    fn without_room_for_duplicates_nothing_is_passed() {
        run_alone("listeners::tests::passes_without_room");
    }

    #[test]
    fn a_name_that_can_not_stand_between_colons_is_refused() {
        let socket = tcp();
        for name in ["", "a:b", "a\nb", "\0", "tab\t"] {
            let listeners = [(name.to_owned(), socket.as_fd())];
            let mut command = Command::new("/bin/true");
            assert!(matches!(pass_listener_fds_on_spawn(&mut command, &listeners), Err(Error::Usage(_))), "{name:?}");
            assert!(matches!(spawn(Path::new("/bin/true"), &[], &[], &listeners, &[]), Err(Error::Usage(_))));
        }
        check_name("http api-2").unwrap();
    }
}
