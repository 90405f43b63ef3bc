//! What a process is told by its starter: `LISTEN_*` (sd_listen_fds(3)) and `HANDOFF_*`.
//!
//! They are read and never changed: unsetenv(3) races with every other thread's getenv(3). The descriptors that they name are
//! claimed once in the life of a process. A program that this process starts in its turn finds the variables too, and can tell
//! by `LISTEN_PID`, and by the descriptors that it was not given, that they are not meant for it; [`forget_role`] spares it that.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::parent_id;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, getrlimit};

use crate::data_dir::Told;
use crate::error::{Error, Result};
use crate::events;
use crate::listeners::{InheritedListeners, is_listener, retain};
use crate::sys;
use crate::sys::fork::StaysHere;
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
/// The descriptor of its channel to the incumbent.
pub(crate) const HANDOFF_TRANSFER_FD: &str = "HANDOFF_TRANSFER_FD";
/// Which directory a successor is to take over: its device and inode. Only a supervisor that has one sets it.
pub(crate) const HANDOFF_DATA_DIR_ID: &str = "HANDOFF_DATA_DIR_ID";
/// The data directory's path, which a service sets.
const HANDOFF_DATA_DIR: &str = "HANDOFF_DATA_DIR";
/// All that speak of descriptors and of the role, and are never passed on.
pub(crate) const VARIABLES: [&str; 6] =
    [LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID, HANDOFF_ROLE, HANDOFF_SOCK_FD, HANDOFF_TRANSFER_FD];
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
        control: StaysHere,
        /// The data directory that it is about, if the supervisor says.
        data_dir: Option<Told>,
        /// The channel to the incumbent, if that one speaks a version with one.
        transfer: Option<StaysHere>,
    },
}

/// Reads the variables, claims the descriptors, and keeps duplicates of the listeners until
/// [`listeners::forget`](crate::listeners::forget). Only the first call finds anything.
///
/// # Errors
/// [`Error::Environment`]: this is a successor without a usable channel, or with one that is none, `LISTEN_FDS` is no number, or
/// all was meant for the shell that has started this process. [`Error::Io`]: the system does not say what a descriptor is.
pub(crate) fn claim() -> Result<StartedAs> {
    let Some(variables) = Variables::once()? else {
        return Ok(StartedAs::ColdStart { inherited: InheritedListeners::default() });
    };
    let inherited = InheritedListeners::claim(variables.listener_names(fds_max())?)?;
    let started_as = match variables.control_fd()? {
        None => StartedAs::ColdStart { inherited },
        Some(raw) => {
            let control = claim_channel(HANDOFF_SOCK_FD, raw)?;
            let transfer = variables.transfer_fd()?.map(|raw| claim_channel(HANDOFF_TRANSFER_FD, raw)).transpose()?;
            StartedAs::Successor { inherited, control, transfer, data_dir: variables.data_dir()? }
        }
    };
    let (StartedAs::ColdStart { inherited } | StartedAs::Successor { inherited, .. }) = &started_as;
    retain(inherited);
    Ok(started_as)
}

/// The listeners that a supervisor was started with; it is nobody's successor. Once, as [`claim`].
///
/// # Errors
/// As [`claim`].
#[cfg(feature = "service")]
pub(crate) fn claim_listeners() -> Result<InheritedListeners> {
    match Variables::once()? {
        Some(variables) => InheritedListeners::claim(variables.listener_names(fds_max())?),
        None => Ok(InheritedListeners::default()),
    }
}

/// Keeps the variables by which this process was told its role from a program that is to be started: from one that asks for its
/// own role in the same way, or looks for sockets that it was given without comparing `LISTEN_PID`.
///
/// [`detect_role`](crate::detect_role) leaves the environment of this process as it is. Call it before
/// [`pass_listener_fds_on_spawn`](crate::pass_listener_fds_on_spawn), which sets some of them anew.
pub fn forget_role(command: &mut Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
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
    transfer_fd: Option<OsString>,
}

impl Variables {
    /// Those that are meant for this process, the first time that it asks.
    fn once() -> Result<Option<Self>> {
        static ASKED: AtomicBool = AtomicBool::new(false);
        if ASKED.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let found = Self {
            listen_fds: env::var_os(LISTEN_FDS),
            listen_fdnames: env::var_os(LISTEN_FDNAMES),
            listen_pid: env::var_os(LISTEN_PID),
            role: env::var_os(HANDOFF_ROLE),
            sock_fd: env::var_os(HANDOFF_SOCK_FD),
            data_dir_id: env::var_os(HANDOFF_DATA_DIR_ID),
            data_dir: env::var_os(HANDOFF_DATA_DIR),
            transfer_fd: env::var_os(HANDOFF_TRANSFER_FD),
        };
        Ok(found.is_for(std::process::id())?.then_some(found))
    }

    /// Whether this process is the one that was told. Whoever leaves `LISTEN_PID` out, tells whoever reads it.
    ///
    /// # Errors
    /// Another process was told, and all that was meant for it has come here: a shell that should have used exec.
    fn is_for(&self, own_pid: u32) -> Result<bool> {
        let Some(pid) = &self.listen_pid else { return Ok(true) };
        let told: u32 = number(LISTEN_PID, pid)?;
        if told == own_pid {
            return Ok(true);
        }
        let has_channel = self.has_channel();
        if self.has_listener() && (has_channel || told == parent_id()) {
            let mend = "write `exec` before the program in the script that starts it";
            return Err(unusable(LISTEN_PID, format!("it names process {told}, and this one is {own_pid}: {mend}")));
        }
        if !has_channel {
            events::info!(listen_pid = told, "the inherited listeners are another process's");
        }
        // A supervisor of another make may leave the variable as its own manager has set it.
        Ok(has_channel)
    }

    /// Whether a successor's channel has come to this process.
    fn has_channel(&self) -> bool {
        self.control_fd().ok().flatten().is_some_and(|raw| sys::fd::look_at_inherited(raw, is_stream).is_ok())
    }

    /// Whether the first listener has come to this process.
    fn has_listener(&self) -> bool {
        self.listen_fds.is_some() && sys::fd::look_at_inherited(FIRST_FD, is_listener).is_ok()
    }

    /// One name for each descriptor that was passed to us.
    fn listener_names(&self, fds_max: u64) -> Result<Vec<String>> {
        let Some(count) = &self.listen_fds else { return Ok(Vec::new()) };
        let claimed: u64 = number(LISTEN_FDS, count)?;
        let count = claimed.min(fds_max);
        if count < claimed {
            events::warn!(claimed, limit = fds_max, "LISTEN_FDS names more descriptors than there can be");
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
                events::warn!(?role, "an unknown HANDOFF_ROLE is taken for a cold start");
                return Ok(None);
            }
        }
        match &self.sock_fd {
            Some(text) => number(HANDOFF_SOCK_FD, text).map(Some),
            None => Err(unusable(HANDOFF_SOCK_FD, "a successor needs it, and it is not set")),
        }
    }

    /// The descriptor of a successor's channel to the incumbent, if it has one.
    fn transfer_fd(&self) -> Result<Option<RawFd>> {
        self.transfer_fd.as_deref().map(|text| number(HANDOFF_TRANSFER_FD, text)).transpose()
    }
}

fn claim_channel(variable: &'static str, raw: RawFd) -> Result<StaysHere> {
    if raw < FIRST_FD {
        return Err(unusable(variable, format!("{raw} is standard input, output or error")));
    }
    let (fd, ()): (OwnedFd, ()) = claim_inherited_stream(raw)
        .map_err(|error| unusable(variable, format!("descriptor {raw} is no connected Unix stream: {error}")))?;
    Ok(fd.into())
}

fn claim_inherited_stream(raw: RawFd) -> io::Result<(OwnedFd, ())> {
    sys::fd::claim_inherited(raw, is_stream)
}

/// # Errors
/// It is no connected Unix stream.
fn is_stream(fd: BorrowedFd<'_>) -> io::Result<()> {
    let is_stream = socket_domain(fd)? == AddressFamily::UNIX && socket_type(fd)? == SocketType::STREAM;
    if is_stream && !socket_acceptconn(fd)? { Ok(()) } else { Err(io::Error::other("a socket of another kind")) }
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
    use std::os::fd::{AsFd, IntoRawFd};
    use std::process::Command;

    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::spawn::spawn;
    use crate::sys::fork::beside_a_child;
    use crate::testing::{arguments_for, hears_the_end, run_alone};

    const OWN_PID: u32 = 100;
    const FDS_MAX: u64 = 1024;

    fn names(fds: &str, names: Option<&str>, pid: Option<&str>) -> Result<Vec<String>> {
        let variables = Variables {
            listen_fds: Some(fds.into()),
            listen_fdnames: names.map(OsString::from),
            listen_pid: pid.map(OsString::from),
            ..Variables::default()
        };
        match variables.is_for(OWN_PID)? {
            true => variables.listener_names(FDS_MAX),
            false => Ok(Vec::new()),
        }
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
        assert_eq!(Variables::default().listener_names(FDS_MAX).unwrap(), [""; 0]);
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
    fn run_as_successor(path: &str, listener: &TcpListener) -> [UnixStream; 2] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (incumbents, transfer) = UnixStream::pair().unwrap();
        let channels = [(HANDOFF_SOCK_FD, theirs.as_fd()), (HANDOFF_TRANSFER_FD, transfer.as_fd())];
        let listeners = [("http".to_owned(), listener.as_fd())];
        let program = std::env::current_exe().unwrap();
        let mut process = spawn(&program, &arguments_for(path), &[], &listeners, &channels).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
        [ours, incumbents]
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn claims_a_successors_block() {
        let environment: Vec<_> = env::vars_os().collect();
        let StartedAs::Successor { mut inherited, control, transfer, .. } = claim().unwrap() else { panic!() };
        assert_eq!(inherited.names(), ["http"]);
        assert!(inherited.take("http").is_some());
        assert!(rustix::io::fcntl_getfd(&control).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(env::vars_os().collect::<Vec<_>>(), environment, "other threads may read it at any time");
        assert_eq!(crate::listeners::retained().len(), 1);
        rustix::io::write(&control, b"hello").unwrap();
        rustix::io::write(transfer.unwrap(), b"to the incumbent").unwrap();
        assert!(matches!(claim().unwrap(), StartedAs::ColdStart { inherited } if inherited.is_empty()));
    }

    #[test]
    fn a_successor_finds_its_listeners_and_its_channels() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ends = run_as_successor("environment::tests::claims_a_successors_block", &listener);
        let said = ends.map(|mut end| {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut end, &mut said).unwrap();
            said
        });
        assert_eq!(said, ["hello", "to the incumbent"]);
    }

    #[test]
    #[ignore = "run by the next two tests in a process of its own"]
    fn was_meant_for_its_parent() {
        let error = claim().unwrap_err().to_string();
        let parent = parent_id();
        assert!(error.contains(&format!("process {parent}")) && error.contains("exec"), "{error}");
    }

    /// Runs the ignored test `path` as a shell does that does not become the program that it starts.
    fn run_behind_a_shell(path: &str, control: Option<BorrowedFd<'_>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut args: Vec<OsString> = ["-c", "\"$@\"; exit $?", "sh"].into_iter().map(OsString::from).collect();
        args.push(env::current_exe().unwrap().into());
        args.extend(arguments_for(path));
        let listeners = [("http".to_owned(), listener.as_fd())];
        let channels: Vec<_> = control.map(|control| (HANDOFF_SOCK_FD, control)).into_iter().collect();
        let mut shell = spawn("/bin/sh".as_ref(), &args, &[], &listeners, &channels).unwrap();
        assert!(shell.wait().unwrap().unwrap().success());
    }

    #[test]
    fn a_shell_that_was_told_instead_of_the_daemon_is_named() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        run_behind_a_shell("environment::tests::was_meant_for_its_parent", Some(theirs.as_fd()));
        run_behind_a_shell("environment::tests::was_meant_for_its_parent", None);
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn starts_one_that_asks_too() {
        assert!(matches!(claim().unwrap(), StartedAs::Successor { .. }));
        run_alone("environment::tests::is_started_by_a_daemon");
        let mut command = Command::new("/usr/bin/env");
        forget_role(&mut command);
        let seen = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(!VARIABLES.iter().any(|name| seen.contains(name)), "{seen}");
    }

    #[test]
    #[ignore = "run by the test before in a process of its own"]
    fn is_started_by_a_daemon() {
        assert_eq!(env::var_os(HANDOFF_ROLE).unwrap(), ROLE_SUCCESSOR);
        assert!(matches!(claim().unwrap(), StartedAs::ColdStart { inherited } if inherited.is_empty()));
    }

    #[test]
    fn what_a_daemon_starts_takes_the_role_not_for_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        run_as_successor("environment::tests::starts_one_that_asks_too", &listener);
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn is_a_successor_without_a_usable_channel() {
        let wrong = claim();
        assert!(is_about(wrong, HANDOFF_SOCK_FD));
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
            let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
            assert!(is_about(claim_channel(HANDOFF_TRANSFER_FD, raw), HANDOFF_TRANSFER_FD));
        }
        assert!(is_about(claim_channel(HANDOFF_SOCK_FD, 2), HANDOFF_SOCK_FD));
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
        assert!(claim_listeners().unwrap().is_empty(), "not twice");
    }

    #[cfg(feature = "service")]
    #[test]
    fn a_supervisor_keeps_no_duplicates() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [("http".to_owned(), listener.as_fd())];
        let program = std::env::current_exe().unwrap();
        let arguments = arguments_for("environment::tests::claims_as_a_supervisor");
        let mut process = spawn(program.as_ref(), &arguments, &[], &listeners, &[]).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
    }

    #[test]
    fn a_forked_child_keeps_no_channel_that_was_inherited() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
        let claimed = claim_channel(HANDOFF_TRANSFER_FD, theirs.into_raw_fd()).unwrap();
        beside_a_child(|| {
            drop(claimed);
            hears_the_end(ours);
        });
    }
}
