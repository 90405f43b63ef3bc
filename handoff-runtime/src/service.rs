//! The long-lived supervisor: what `handoff run` is made of, for programs that want it inside.
//!
//! It owns the listening sockets, starts the daemon, watches it, starts it again when it dies, hands it over when a client
//! on the admin socket says so, and makes what it replaced leave. It never opens the daemon's data and never accepts a
//! connection on a listener.
//!
//! ```no_run
//! use handoff_runtime::service::{Service, ServiceConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // First in `main`, before any thread.
//! let mut config = ServiceConfig::new("/run/my-service", "/usr/bin/my-daemon");
//! config.listeners = vec!["http=127.0.0.1:8080".parse()?];
//! config.data_dir = Some("/var/lib/my-service".into());
//! let ended = Service::prepare(config)?.run()?;
//! println!("{ended:?}");
//! # Ok(())
//! # }
//! ```
//!
//! A child is told by its environment: `LISTEN_FDS`, `LISTEN_FDNAMES` and `LISTEN_PID` (`sd_listen_fds(3)`),
//! `HANDOFF_CONTROL_SOCKET`, and `HANDOFF_DATA_DIR` where one is configured.

mod address;
mod admin;
mod config;
mod daemon;
mod error;
mod greeting;
mod handover;
mod listen;
mod preflight;
mod report;
mod retire;
mod runner;
mod state_dir;

use std::sync::Arc;

use handoff_lock::LeaseState;
use handoff_proto::Timing;
use handoff_proto::supervisor::Watchdog as WatchdogRule;

pub use address::{Address, AddressError, Listen, ListenError};
pub use config::{Restart, ServiceConfig, Watchdog};
pub use error::ServiceError;
pub use report::{
    DurationText, Event, HandoverReport, HandoverStatus, IncumbentStatus, ListenerStatus, Refusal, Request,
    ServiceState, ServiceStatus, Stopped, TimingsMs, build_id_text,
};
pub use runner::Ended;

use crate::control;
use crate::crash;
use crate::environment::claim_listeners;
use crate::listeners::InheritedListeners;
use crate::outcome::Recovery;
use crate::supervisor::Supervisor;
use crate::sys::signals::Signals;
use crate::{Error, Result};
use admin::AdminSocket;
use listen::Listeners;
use runner::{Core, Runner};
use state_dir::{StateDir, Visitors};

/// A service that is ready to run: everything was checked, its sockets are bound, and no daemon was started yet.
pub struct Service {
    runner: Runner,
    recovery: Recovery,
}

impl Service {
    /// Checks everything, takes the state directory, looks for a daemon that lives already, and binds the listeners, or
    /// takes those of our own `LISTEN_FDS` that have their names.
    ///
    /// Call it first in `main`: it consumes `LISTEN_FDS` and its companions, and blocks SIGTERM, SIGINT and SIGHUP for this
    /// thread and those that it starts.
    ///
    /// # Errors
    /// One line that says what is wrong. Then no daemon was started, and whatever was made on the way is removed again.
    pub fn prepare(config: ServiceConfig) -> std::result::Result<Self, ServiceError> {
        let mut inherited = claim_listeners()?;
        let existing = StateDir::take_existing(&config.state_dir)?;
        preflight::check(&config)?;
        let visitors = if config.allowed_uids.is_empty() { Visitors::OwnUserOnly } else { Visitors::OtherUsers };
        let mut state_dir = existing.map_or_else(|| StateDir::create(&config.state_dir, visitors), Ok)?;
        let supervisor = supervisor(&config)?;
        let recovery = recover(&supervisor, &config)?;
        let (listeners, supervisor) = listeners(&config, &mut inherited, supervisor)?;
        let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
            .map_err(|error| Error::io("block signals", error))?;
        let admin = AdminSocket::bind(&config.admin_socket(), &config.allowed_uids)
            .map_err(|source| ServiceError::AdminSocket { path: config.admin_socket(), source })?;
        let core = Core::new(config.binary.clone())?;
        state_dir.keep();
        let supervisor = Arc::new(supervisor);
        let runner = Runner { config, _state_dir: state_dir, listeners, supervisor, admin, signals, core };
        Ok(Self { runner, recovery })
    }

    /// Starts the daemon, or adopts the one that lives, and runs until the service has ended: by SIGTERM, SIGINT, an order
    /// on the admin socket, or a daemon that left for good.
    ///
    /// # Errors
    /// The system's, when the service can't even wait for events. The daemon lives on, and a service that is started again
    /// adopts it (promise 7).
    pub fn run(self) -> Result<Ended> {
        self.runner.run(self.recovery)
    }
}

/// Who serves already. A daemon of another supervisor is named in the error and not adopted: ours listens on our control
/// path, which nobody else is given.
fn recover(supervisor: &Supervisor, config: &ServiceConfig) -> std::result::Result<Recovery, ServiceError> {
    if active_owner(config).is_some_and(|owner| !listens_on_our_path(owner, config)) {
        preflight::check_data_dir_is_free(config)?;
    }
    let recovery = supervisor.resume_from_journal().or_else(|error| match error {
        Error::DataDirHeld { .. } => preflight::check_data_dir_is_free(config).and(Err(error.into())),
        other => Err(other.into()),
    })?;
    match &recovery.serving {
        None => preflight::check_data_dir_is_free(config)?,
        Some(serving) if listens_on_our_path(serving.pid(), config) => {}
        Some(stranger) => {
            preflight::check_data_dir_is_free(config)?;
            return Err(Error::DataDirHeld { pid: stranger.pid() }.into());
        }
    }
    Ok(recovery)
}

/// The process that serves, by the lease.
fn active_owner(config: &ServiceConfig) -> Option<u32> {
    let lease = handoff_lock::read_lease(config.data_dir.as_deref()?).ok().flatten()?;
    (lease.of_this_boot() && lease.state == LeaseState::Active).then_some(lease.owner.pid)
}

/// By the kernel's word, so that a frozen daemon is known too.
fn listens_on_our_path(pid: u32, config: &ServiceConfig) -> bool {
    let channel = control::connect(&config.control_socket);
    channel.is_ok_and(|channel| channel.peer().is_ok_and(|peer| peer.pid == pid))
}

fn supervisor(config: &ServiceConfig) -> Result<Supervisor> {
    let supervisor = Supervisor::new(&config.control_socket)?.with_journal(config.journal());
    let supervisor = match config.watchdog {
        Watchdog::Off => supervisor.with_watchdog(WatchdogRule::Spares),
        Watchdog::After(liveness) => {
            supervisor.with_watchdog(WatchdogRule::Ends).with_timing(Timing { liveness, ..crash::initial_timing() })
        }
    };
    Ok(match &config.data_dir {
        Some(data_dir) => supervisor.with_data_dir(data_dir.clone()),
        None => supervisor,
    })
}

/// The service's sockets: those that a living daemon gave back, and those of the configuration that it does not have. The
/// supervisor gets the latter too.
fn listeners(
    config: &ServiceConfig,
    inherited: &mut InheritedListeners,
    supervisor: Supervisor,
) -> std::result::Result<(Listeners, Supervisor), ServiceError> {
    let given_back = supervisor.listeners()?;
    let is_missing = |listen: &&Listen| !given_back.iter().any(|(name, _)| *name == listen.name);
    let missing: Vec<_> = config.listeners.iter().filter(is_missing).cloned().collect();
    let mut listeners = Listeners::open(&missing, inherited)?;
    let supervisor = listeners.for_a_child().into_iter().fold(supervisor, |s, (name, fd)| s.with_listener(name, fd));
    listeners.add_given_back(given_back, &config.listeners);
    Ok((listeners, supervisor))
}
