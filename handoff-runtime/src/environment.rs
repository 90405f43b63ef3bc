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
/// All of them.
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
    },
}

/// Reads and consumes the variables, claims the descriptors, and keeps duplicates of the listeners until
/// [`listeners::forget`](crate::listeners::forget). Call it before any other thread runs.
///
/// # Errors
/// [`Error::Environment`]: this is a successor without a usable channel, or `LISTEN_FDS` is no number.
pub(crate) fn claim() -> Result<StartedAs> {
    let variables = Variables::take();
    let inherited = InheritedListeners::claim(variables.listener_names(std::process::id(), fds_max())?);
    let started_as = match variables.control_fd()? {
        None => StartedAs::ColdStart { inherited },
        Some(raw) => StartedAs::Successor { inherited, control: claim_control(raw)? },
    };
    let (StartedAs::ColdStart { inherited } | StartedAs::Successor { inherited, .. }) = &started_as;
    retain(inherited);
    Ok(started_as)
}

/// The listeners that a supervisor was started with; it is nobody's successor. Consumes the variables as [`claim`] does.
///
/// # Errors
/// As [`claim`].
pub(crate) fn claim_listeners() -> Result<InheritedListeners> {
    Ok(InheritedListeners::claim(Variables::take().listener_names(std::process::id(), fds_max())?))
}

/// The variables as they were found.
#[derive(Debug, Default)]
struct Variables {
    listen_fds: Option<OsString>,
    listen_fdnames: Option<OsString>,
    listen_pid: Option<OsString>,
    role: Option<OsString>,
    sock_fd: Option<OsString>,
}

impl Variables {
    fn take() -> Self {
        let found = Self {
            listen_fds: env::var_os(LISTEN_FDS),
            listen_fdnames: env::var_os(LISTEN_FDNAMES),
            listen_pid: env::var_os(LISTEN_PID),
            role: env::var_os(HANDOFF_ROLE),
            sock_fd: env::var_os(HANDOFF_SOCK_FD),
        };
        VARIABLES.into_iter().for_each(sys::env::remove);
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
