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
mod alone;
mod builds;
mod config;
mod daemon;
mod error;
mod greeting;
mod handover;
mod ledger;
mod listen;
mod notify;
mod open_files;
mod own_file;
mod preflight;
mod report;
mod retire;
mod runner;
mod spans;
mod state_dir;
mod watch;

use std::sync::Arc;

use handoff_lock::LeaseState;
use handoff_proto::supervisor::Watchdog as WatchdogRule;
use handoff_proto::{ProcessId, Timing};

pub use address::{Address, AddressError, Listen, ListenError};
pub use config::{Restart, ServiceConfig, Watchdog};
pub use error::ServiceError;
pub use report::{
    DurationText, Event, HandoverReport, HandoverStatus, IncumbentStatus, ListenerStatus, Refusal, Request, SealStatus,
    ServiceState, ServiceStatus, Stopped, TimingsMs, build_id_text,
};
pub use runner::Ended;

use crate::control;
use crate::crash;
use crate::data_dir::DataDir;
use crate::environment::claim_listeners;
use crate::events;
use crate::listeners::InheritedListeners;
use crate::outcome::{GivenBack, Recovery};
use crate::process::Process;
use crate::supervisor::{Remembered, Supervisor};
use crate::sys::signals::Signals;
use crate::{Error, Result};
use admin::AdminSocket;
use alone::Silence;
use builds::{Lineage, Shelf};
use ledger::{Ledger, Place, Record};
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
    /// Call it first in `main`: it takes over what `LISTEN_FDS` names, and blocks SIGTERM, SIGINT and SIGHUP for this
    /// thread and those that it starts.
    ///
    /// # Errors
    /// One line that says what is wrong. Then no daemon was started, and whatever was made on the way is removed again.
    pub fn prepare(config: ServiceConfig) -> std::result::Result<Self, ServiceError> {
        let mut inherited = claim_listeners()?;
        let silence = silence(&config);
        let existing = StateDir::take_existing(&config.state_dir, silence)?;
        let (ledger, known) = Ledger::open(&config);
        let (config, data_dir) = with_data_dir(config, &known);
        let to_start = |lineage: &Lineage| Shelf::new(&config.state_dir).to_start(lineage.serving());
        preflight::check(&config, &known.lineage.as_ref().map_or_else(|| config.binary.clone(), to_start))?;
        preflight::tell_exposure(&config);
        open_files::make_room(config.listeners.len())?;
        let visitors = if config.allowed_uids.is_empty() { Visitors::OwnUserOnly } else { Visitors::OtherUsers };
        let mut state_dir = existing.map_or_else(|| StateDir::create(&config.state_dir, visitors, silence), Ok)?;
        let supervisor = supervisor(&config, data_dir.clone())?;
        let recovery = recover(&supervisor, &config, &inherited, &known)?;
        let in_the_way = in_the_way(&known, &recovery);
        let (listeners, supervisor) = listeners(&config, &mut inherited, supervisor, in_the_way)?;
        let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
            .map_err(|error| Error::io("block signals", error))?;
        let admin = AdminSocket::bind(&config.admin_socket(), &config.allowed_uids)
            .map_err(|source| ServiceError::AdminSocket { path: config.admin_socket(), source })?;
        let core = Core::new(&config, supervisor, ledger, known, data_dir)?;
        state_dir.keep();
        let runner = Runner { config, _state_dir: state_dir, listeners, admin, signals, core };
        Ok(Self { runner, recovery })
    }

    /// Starts the daemon, or adopts the one that lives, and runs until the service has ended: by SIGTERM, SIGINT, an order
    /// on the admin socket, or a daemon that left for good.
    ///
    /// # Errors
    /// The system's, when the service can't even wait for events. The daemon lives on, and a service that is started again
    /// adopts it (promise 7).
    pub fn run(self) -> Result<Ended> {
        events::prepare();
        let ended = self.runner.run(self.recovery);
        events::settle();
        ended
    }
}

/// Who serves already. A daemon of another supervisor is named in the error and not adopted: ours listens on our control
/// path, which nobody else is given, or was written down by the service before this one.
///
/// One that is frozen is ended, with the watchdog on: it would keep its listeners from everybody for ever.
fn recover(
    supervisor: &Supervisor,
    config: &ServiceConfig,
    inherited: &InheritedListeners,
    known: &Record,
) -> std::result::Result<Recovery, ServiceError> {
    let remembered = Remembered { daemon: known.daemon, leaving: &known.retiring };
    let mut silent = 0;
    for _ in 0..ASKED_FOR_LISTENERS_MAX {
        if active_owner(config).is_some_and(|owner| !is_ours(owner, config, known)) {
            preflight::check_data_dir_is_free(config)?;
        }
        let recovery = supervisor.resume_with(remembered).or_else(|error| match error {
            Error::DataDirHeld { .. } => preflight::check_data_dir_is_free(config).and(Err(error.into())),
            other => Err(ServiceError::from(other)),
        })?;
        let Some(serving) = &recovery.serving else {
            preflight::check_data_dir_is_free(config)?;
            return Ok(recovery);
        };
        let is_named = recovery.interrupted.is_some() || known.names(serving.id());
        if !is_named && !listens_on_our_path(serving.pid(), config) {
            preflight::check_data_dir_is_free(config)?;
            return Err(Error::DataDirHeld { pid: serving.pid() }.into());
        }
        let all_passed_in = config.listeners.iter().all(|listen| inherited.names().contains(&listen.name));
        if recovery.listeners != GivenBack::NotInTime || all_passed_in {
            return Ok(recovery);
        }
        silent = serving.pid();
        end_if_frozen(recovery.serving, config)?;
    }
    Err(ServiceError::DaemonSilent { pid: silent, control_socket: config.control_socket.clone() })
}

/// How often a living daemon is asked for its listeners, each time for as long as silence is borne.
const ASKED_FOR_LISTENERS_MAX: u32 = 6;

fn end_if_frozen(serving: Option<Process>, config: &ServiceConfig) -> Result<()> {
    let Some(mut serving) = serving else { return Ok(()) };
    if config.watchdog != Watchdog::Off && serving.is_stopped()? {
        events::error!(pid = serving.pid(), "the daemon is frozen: it is ended");
        serving.kill()?;
        serving.wait()?;
    }
    Ok(())
}

fn silence(config: &ServiceConfig) -> Silence {
    match config.watchdog {
        Watchdog::Off => Silence::default(),
        Watchdog::After(listening) => Silence { listening, ..Silence::default() },
    }
}

/// The process that serves, by the lease. One that is dead has left its lease behind, and serves nobody.
fn active_owner(config: &ServiceConfig) -> Option<ProcessId> {
    let lease = handoff_lock::read_lease(config.data_dir.as_deref()?).ok().flatten()?;
    let id = ProcessId { pid: lease.owner.pid, start_time: lease.owner.start_time };
    let is_active = lease.of_this_boot() && lease.state == LeaseState::Active;
    (is_active && Process::find(id).is_ok_and(|owner| owner.is_some())).then_some(id)
}

/// Its control path may be its successor's for a moment, after a handover that was undone. Who was told to leave may have
/// taken the data back, since everybody newer had died.
fn is_ours(owner: ProcessId, config: &ServiceConfig, known: &Record) -> bool {
    known.names(owner) || listens_on_our_path(owner.pid, config)
}

/// By the kernel's word, so that a frozen daemon is known too.
fn listens_on_our_path(pid: u32, config: &ServiceConfig) -> bool {
    let channel = control::connect(&config.control_socket);
    channel.is_ok_and(|channel| channel.peer().is_ok_and(|peer| peer.pid == pid))
}

/// The data directory: the one that a living process of the service before this one was given, else the one that its name means
/// now. From here on everybody is told its path without links.
fn with_data_dir(config: ServiceConfig, known: &Record) -> (ServiceConfig, Option<Arc<DataDir>>) {
    let Some(name) = &config.data_dir else { return (config, None) };
    let data_dir = match known.data_dir.clone().filter(|_| known.lives()) {
        Some(Place { path, identity }) => DataDir::recorded(name, path, identity),
        None => DataDir::resolve(name),
    };
    if let Err(error) = data_dir.check() {
        events::warn!(%error, "no handover is tried as long as this is so");
    }
    let path = data_dir.path().to_owned();
    (ServiceConfig { data_dir: Some(path), ..config }, Some(Arc::new(data_dir)))
}

fn supervisor(config: &ServiceConfig, data_dir: Option<Arc<DataDir>>) -> Result<Supervisor> {
    let supervisor = Supervisor::new(&config.control_socket)?.with_journal(config.journal());
    let supervisor = match config.watchdog {
        Watchdog::Off => supervisor.with_watchdog(WatchdogRule::Spares),
        Watchdog::After(liveness) => {
            let heartbeat = Timing::default().heartbeat;
            if liveness <= heartbeat {
                events::warn!(
                    ?liveness,
                    ?heartbeat,
                    "the watchdog is not longer than a heartbeat takes: a healthy process may be ended"
                );
            }
            supervisor.with_watchdog(WatchdogRule::Ends).with_timing(Timing { liveness, ..crash::initial_timing() })
        }
    };
    Ok(match data_dir {
        Some(data_dir) => supervisor.with_held_data_dir(data_dir),
        None => supervisor,
    })
}

/// Those that were told to leave, when nobody serves: they may still have the addresses, and nobody else has them to give.
fn in_the_way(known: &Record, recovery: &Recovery) -> Vec<Process> {
    if recovery.serving.is_some() {
        return Vec::new();
    }
    let mut leaving = known.still_to_leave(None);
    let last = recovery.retiring.as_ref().and_then(Process::if_alive);
    leaving.extend(last.filter(|one| leaving.iter().all(|other| other.id() != one.id())));
    leaving
}

/// Ends those that are in the way; false if nobody was, or one of them serves after all.
fn make_way(in_the_way: Vec<Process>, config: &ServiceConfig) -> bool {
    let serves = active_owner(config);
    if in_the_way.is_empty() || in_the_way.iter().any(|process| Some(process.id()) == serves) {
        return false;
    }
    let pids: Vec<_> = in_the_way.iter().map(Process::pid).collect();
    events::warn!(?pids, "an address is in use, and processes that were told to leave have not left: they are ended");
    retire::end_all(in_the_way, config.retire)
        .inspect_err(|error| events::warn!(%error, "an old process could not be ended"))
        .is_ok()
}

/// The service's sockets: those that a living daemon gave back, and those of the configuration that it does not have. The
/// supervisor gets the latter too. An address that is in use is tried again when those in the way are gone.
fn listeners(
    config: &ServiceConfig,
    inherited: &mut InheritedListeners,
    supervisor: Supervisor,
    mut in_the_way: Vec<Process>,
) -> std::result::Result<(Listeners, Supervisor), ServiceError> {
    let given_back = supervisor.listeners()?;
    let is_missing = |listen: &&Listen| !given_back.iter().any(|(name, _)| *name == listen.name);
    let missing: Vec<_> = config.listeners.iter().filter(is_missing).cloned().collect();
    let make_way = || make_way(std::mem::take(&mut in_the_way), config);
    let mut listeners = Listeners::open(&missing, inherited, make_way)?;
    let supervisor = listeners.for_a_child().into_iter().fold(supervisor, |s, (name, fd)| s.with_listener(name, fd));
    listeners.add_given_back(given_back, &config.listeners);
    Ok((listeners, supervisor))
}
