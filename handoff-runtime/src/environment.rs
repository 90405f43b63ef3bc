//! What a process is told by its starter: `LISTEN_*` (sd_listen_fds(3)) and `HANDOFF_*`.
//!
//! The variables are consumed: a program that this process starts must not take them for its own.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, getrlimit};

use crate::data_dir::Told;
use crate::error::{Error, Result};
use crate::listeners::{InheritedListeners, retain};
use crate::sys;
use crate::sys::spawn::FIRST_FD;

/// How many listeners there are.
pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";
/// Their names, between colons.
pub(crate) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// The process that they are for.
pub(crate) const LISTEN_PID: &str = "LISTEN_PID";
/// Whether this process is a successor.
pub(crate) const HANDOFF_ROLE: &str = "HANDOFF_ROLE";
/// The descriptor of its channel to the supervisor.
pub(crate) const HANDOFF_SOCK_FD: &str = "HANDOFF_SOCK_FD";
/// Which directory a successor is to take over: its device and inode. Only a supervisor that has one sets it.
pub(crate) const HANDOFF_DATA_DIR_ID: &str = "HANDOFF_DATA_DIR_ID";
/// The data directory's path, which a service sets; never consumed.
const HANDOFF_DATA_DIR: &str = "HANDOFF_DATA_DIR";
/// All that are consumed and are never passed on.
pub(crate) const VARIABLES: [&str; 5] = [LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID, HANDOFF_ROLE, HANDOFF_SOCK_FD];
/// What `HANDOFF_ROLE` says to a successor.
pub(crate) const ROLE_SUCCESSOR: &str = "successor";

/// The name of a listener that came without one (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";
/// More than any process has. The limit of open files bounds it further.
const LISTENERS_MAX: u64 = 1 << 20;

/// What this process was started as.
#[derive(Debug)]
pub(crate) enum StartedAs {
    /// By a service manager, a supervisor or a shell, to serve at once.
    ColdStart {
        /// The listeners that it got.
        inherited: InheritedListeners,
    },
    /// By a supervisor, to take over.
    Successor {
        /// The listeners that it got.
        inherited: InheritedListeners,
        /// The channel to the supervisor.
        control: UnixStream,
        /// The data directory that it is about, if the supervisor says.
        data_dir: Option<Told>,
    },
}

/// Reads and consumes the variables, claims the descriptors, and keeps duplicates of the listeners until
/// [`listeners::forget`](crate::listeners::forget). Call it before any other thread runs.
///
/// # Errors
/// [`Error::Environment`]: this is a successor without a usable channel, or `LISTEN_FDS` is no number. [`Error::Io`]: the
/// system does not say what a descriptor is.
pub(crate) fn claim() -> Result<StartedAs> {
    let variables = Variables::take();
    let inherited = InheritedListeners::claim(variables.listener_names(std::process::id(), fds_max())?)?;
    let started_as = match variables.control_fd()? {
        None => StartedAs::ColdStart { inherited },
        Some(raw) => StartedAs::Successor { inherited, control: claim_control(raw)?, data_dir: variables.data_dir()? },
    };
    let (StartedAs::ColdStart { inherited } | StartedAs::Successor { inherited, .. }) = &started_as;
    retain(inherited);
    Ok(started_as)
}

/// The listeners that a supervisor was started with; it is nobody's successor. Consumes the variables as [`claim`] does.
///
/// # Errors
/// As [`claim`].
#[cfg(feature = "service")]
pub(crate) fn claim_listeners() -> Result<InheritedListeners> {
    InheritedListeners::claim(Variables::take().listener_names(std::process::id(), fds_max())?)
}

/// The variables as they were found.
#[derive(Debug, Default)]
struct Variables {
    listen_fds: Option<OsString>,
    listen_fdnames: Option<OsString>,
    listen_pid: Option<OsString>,
    role: Option<OsString>,
    sock_fd: Option<OsString>,
    data_dir_id: Option<OsString>,
    data_dir: Option<OsString>,
}

impl Variables {
    fn take() -> Self {
        let found = Self {
            listen_fds: env::var_os(LISTEN_FDS),
            listen_fdnames: env::var_os(LISTEN_FDNAMES),
            listen_pid: env::var_os(LISTEN_PID),
            role: env::var_os(HANDOFF_ROLE),
            sock_fd: env::var_os(HANDOFF_SOCK_FD),
            data_dir_id: env::var_os(HANDOFF_DATA_DIR_ID),
            data_dir: env::var_os(HANDOFF_DATA_DIR),
        };
        VARIABLES.into_iter().chain([HANDOFF_DATA_DIR_ID]).for_each(sys::env::remove);
        found
    }

    /// One name for each descriptor that was passed to us.
    fn listener_names(&self, own_pid: u32, fds_max: u64) -> Result<Vec<String>> {
        let Some(count) = &self.listen_fds else { return Ok(Vec::new()) };
        if let Some(pid) = &self.listen_pid
            && number::<u32>(LISTEN_PID, pid)? != own_pid
        {
            tracing::info!(listen_pid = ?pid, "the inherited listeners are another process's");
            return Ok(Vec::new());
        }
        let claimed: u64 = number(LISTEN_FDS, count)?;
        let count = claimed.min(fds_max);
        if count < claimed {
            tracing::warn!(claimed, limit = fds_max, "LISTEN_FDS names more descriptors than there can be");
        }
        let text = self.listen_fdnames.as_deref().unwrap_or_default().to_string_lossy();
        let given = text.split(':').map(|name| if name.is_empty() { UNNAMED } else { name });
        Ok(given.chain(std::iter::repeat(UNNAMED)).take(count as usize).map(str::to_owned).collect())
    }

    /// The directory that a successor is to take over.
    fn data_dir(self) -> Result<Option<Told>> {
        let Some(text) = &self.data_dir_id else { return Ok(None) };
        let identity = text.to_str().and_then(|text| text.parse().ok());
        let identity = identity.ok_or_else(|| {
            unusable(HANDOFF_DATA_DIR_ID, format!("{text:?} is no device and inode, such as 2049:131"))
        })?;
        Ok(Some(Told { identity, name: self.data_dir }))
    }

    /// The channel's descriptor, if this is a successor.
    fn control_fd(&self) -> Result<Option<RawFd>> {
        match self.role.as_deref() {
            None => return Ok(None),
            Some(role) if role == ROLE_SUCCESSOR => {}
            Some(role) => {
                tracing::warn!(?role, "an unknown HANDOFF_ROLE is taken for a cold start");
                return Ok(None);
            }
        }
        match &self.sock_fd {
            Some(text) => number(HANDOFF_SOCK_FD, text).map(Some),
            None => Err(unusable(HANDOFF_SOCK_FD, "a successor needs it, and it is not set")),
        }
    }
}

fn claim_control(raw: RawFd) -> Result<UnixStream> {
    if raw < FIRST_FD {
        return Err(unusable(HANDOFF_SOCK_FD, format!("{raw} is standard input, output or error")));
    }
    let (fd, ()): (OwnedFd, ()) = claim_inherited_stream(raw)
        .map_err(|error| unusable(HANDOFF_SOCK_FD, format!("descriptor {raw} is no connected Unix stream: {error}")))?;
    Ok(fd.into())
}

fn claim_inherited_stream(raw: RawFd) -> io::Result<(OwnedFd, ())> {
    sys::fd::claim_inherited(raw, |fd: BorrowedFd<'_>| {
        let is_stream = socket_domain(fd)? == AddressFamily::UNIX && socket_type(fd)? == SocketType::STREAM;
        if is_stream && !socket_acceptconn(fd)? { Ok(()) } else { Err(io::Error::other("a socket of another kind")) }
    })
}

fn number<N: std::str::FromStr>(variable: &'static str, text: &OsStr) -> Result<N> {
    let parsed = text.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| unusable(variable, format!("{text:?} is no number that fits")))
}

fn unusable(variable: &'static str, reason: impl Into<String>) -> Error {
    Error::Environment { variable, reason: reason.into() }
}

/// No descriptor is above this.
fn fds_max() -> u64 {
    getrlimit(Resource::Nofile).current.map_or(LISTENERS_MAX, |limit| limit.min(LISTENERS_MAX))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;
    use crate::spawn::spawn;
    use crate::testing::{arguments_for, run_alone};

    const OWN_PID: u32 = 100;
    const FDS_MAX: u64 = 1024;

    fn names(fds: &str, names: Option<&str>, pid: Option<&str>) -> Result<Vec<String>> {
        let variables = Variables {
            listen_fds: Some(fds.into()),
            listen_fdnames: names.map(OsString::from),
            listen_pid: pid.map(OsString::from),
            ..Variables::default()
        };
        variables.listener_names(OWN_PID, FDS_MAX)
    }

    fn control_fd(role: Option<&str>, sock_fd: Option<&str>) -> Result<Option<RawFd>> {
        let role = role.map(OsString::from);
        Variables { role, sock_fd: sock_fd.map(OsString::from), ..Variables::default() }.control_fd()
    }

    fn is_about<T: std::fmt::Debug>(result: Result<T>, name: &str) -> bool {
        matches!(result, Err(Error::Environment { variable, .. }) if variable == name)
    }

    #[test]
    fn every_descriptor_has_a_name() {
        assert_eq!(names("2", Some("http:admin"), Some("100")).unwrap(), ["http", "admin"]);
        assert_eq!(names("3", Some("http"), None).unwrap(), ["http", "unknown", "unknown"]);
        assert_eq!(names("3", Some(":http:"), None).unwrap(), ["unknown", "http", "unknown"]);
        assert_eq!(names("1", Some("http:one:too:many"), None).unwrap(), ["http"]);
        assert_eq!(names("2", None, None).unwrap(), ["unknown", "unknown"]);
        assert_eq!(names("0", Some(""), None).unwrap(), [""; 0]);
        assert_eq!(Variables::default().listener_names(OWN_PID, FDS_MAX).unwrap(), [""; 0]);
    }

    #[test]
    fn the_block_of_another_process_is_not_ours() {
        assert_eq!(names("2", Some("a:b"), Some("101")).unwrap(), [""; 0]);
    }

    #[test]
    fn an_absurd_count_is_bounded() {
        assert_eq!(names("18446744073709551615", None, None).unwrap().len(), FDS_MAX as usize);
    }

    #[test]
    fn what_is_no_number_is_named() {
        for text in ["", "-1", "two", "1 ", "99999999999999999999"] {
            assert!(is_about(names(text, None, None), LISTEN_FDS), "{text:?}");
        }
        assert!(is_about(names("1", None, Some("me")), LISTEN_PID));
        assert!(is_about(control_fd(Some("successor"), Some("x")), HANDOFF_SOCK_FD));
        assert!(is_about(control_fd(Some("successor"), Some("99999999999")), HANDOFF_SOCK_FD));
    }

    #[test]
    fn only_a_successor_needs_a_channel() {
        assert_eq!(control_fd(None, Some("5")).unwrap(), None);
        assert_eq!(control_fd(Some("emperor"), None).unwrap(), None);
        assert_eq!(control_fd(Some("Successor"), None).unwrap(), None);
        assert_eq!(control_fd(Some("successor"), Some("5")).unwrap(), Some(5));
        assert!(is_about(control_fd(Some("successor"), None), HANDOFF_SOCK_FD));
    }

    #[test]
    fn a_successor_is_told_which_directory_it_is_about() {
        let told = |id: Option<&str>| {
            let data_dir = Some("/d".into());
            Variables { data_dir_id: id.map(OsString::from), data_dir, ..Variables::default() }.data_dir()
        };
        assert!(told(None).unwrap().is_none());
        let known = told(Some("2049:131")).unwrap().unwrap();
        assert_eq!((known.identity.device, known.identity.inode, known.name), (2049, 131, Some("/d".into())));
        assert!(is_about(told(Some("/d")), HANDOFF_DATA_DIR_ID));
    }

    /// Runs the ignored test `path` as a supervisor starts a successor.
    fn run_as_successor(path: &str, listener: &TcpListener) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listeners = [("http".to_owned(), listener.as_fd())];
        let program = std::env::current_exe().unwrap();
        let mut process = spawn(&program, &arguments_for(path), &[], &listeners, Some(theirs.as_fd())).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
        ours
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn claims_a_successors_block() {
        let StartedAs::Successor { mut inherited, control, .. } = claim().unwrap() else { panic!() };
        assert_eq!(inherited.names(), ["http"]);
        assert!(inherited.take("http").is_some());
        assert!(rustix::io::fcntl_getfd(&control).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(VARIABLES.iter().all(|name| env::var_os(name).is_none()));
        assert_eq!(crate::listeners::retained().len(), 1);
        std::io::Write::write_all(&mut &control, b"hello").unwrap();
        assert!(matches!(claim().unwrap(), StartedAs::ColdStart { inherited } if inherited.is_empty()));
    }

    #[test]
    fn a_successor_finds_its_listeners_and_its_channel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = run_as_successor("environment::tests::claims_a_successors_block", &listener);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut ours, &mut said).unwrap();
        assert_eq!(said, "hello");
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn is_a_successor_without_a_usable_channel() {
        let wrong = claim();
        assert!(is_about(wrong, HANDOFF_SOCK_FD));
        assert!(VARIABLES.iter().all(|name| env::var_os(name).is_none()));
    }

    #[test]
    fn a_successor_without_a_usable_channel_is_told_so() {
        let path = "environment::tests::is_a_successor_without_a_usable_channel";
        for descriptor in ["0", "900", "-1", "999999", "garbage"] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(arguments_for(path)).env(HANDOFF_ROLE, ROLE_SUCCESSOR).env(HANDOFF_SOCK_FD, descriptor);
            assert!(command.output().unwrap().status.success(), "{descriptor}");
        }
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn refuses_a_listener_as_channel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(unix.path().join("s")).unwrap();
        for fd in [listener.as_fd(), unix.as_fd()] {
            assert!(is_about(claim_control(std::os::fd::AsRawFd::as_raw_fd(&fd)), HANDOFF_SOCK_FD));
        }
        assert!(is_about(claim_control(2), HANDOFF_SOCK_FD));
    }

    #[test]
    fn only_a_connected_unix_stream_is_a_channel() {
        run_alone("environment::tests::refuses_a_listener_as_channel");
    }

    #[cfg(feature = "service")]
    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn claims_as_a_supervisor() {
        let inherited = claim_listeners().unwrap();
        assert_eq!(inherited.names().len(), 1);
        assert!(crate::listeners::retained().is_empty());
        assert!(VARIABLES.iter().all(|name| env::var_os(name).is_none()));
    }

    #[cfg(feature = "service")]
    #[test]
    fn a_supervisor_keeps_no_duplicates() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [("http".to_owned(), listener.as_fd())];
        let program = std::env::current_exe().unwrap();
        let arguments = arguments_for("environment::tests::claims_as_a_supervisor");
        let mut process = spawn(program.as_ref(), &arguments, &[], &listeners, None).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
    }
}
