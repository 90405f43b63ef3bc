//! What a [`Service`](super::Service) is told: plain data, no I/O. The program fills it from a file and a command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::address::Listen;

/// Whether a daemon that left is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Restart {
    /// After a death by a signal or an exit status other than 0. A daemon that leaves with status 0 ends the service.
    #[default]
    OnFailure,
    /// Whatever its exit status.
    Always,
    /// Never: its end is the service's end.
    Never,
}

/// Whether an incumbent that falls silent in the middle of a handover is ended so that the successor can take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watchdog {
    /// It is left alone.
    Off,
    /// It is ended after this much silence where heartbeats are due.
    After(Duration),
}

impl Default for Watchdog {
    fn default() -> Self {
        Self::After(Duration::from_secs(10))
    }
}

/// How one service is run.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The daemon's binary. Absolute.
    pub binary: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// Added to the inherited environment of every child.
    pub env: Vec<(OsString, OsString)>,
    /// The sockets that the service owns and passes to every child.
    pub listeners: Vec<Listen>,
    /// The daemon's data directory; given to it as `HANDOFF_DATA_DIR`. Without it the lease can't be read: recovery after
    /// a fault is then limited to what needs no lease.
    pub data_dir: Option<PathBuf>,
    /// The service's own directory: lock, admin socket, journal. Absolute.
    pub state_dir: PathBuf,
    /// Where the incumbent listens for supervisors; given to it as `HANDOFF_CONTROL_SOCKET`. Absolute.
    pub control_socket: PathBuf,
    /// The bound on a whole handover, from the order to drain.
    pub deadline: Duration,
    /// The bound on the drain.
    pub drain_grace: Duration,
    /// The bound on a successor's start-up before the drain.
    pub warm: Duration,
    /// The bound on a successor's opening of its data, from its turn or its last word of progress on.
    pub open: Duration,
    /// The bound on an incumbent's way back to serving after an abort.
    pub resume: Duration,
    /// How long a daemon that was told to leave may take before SIGTERM and again before SIGKILL.
    pub retire: Duration,
    /// How long a new daemon is on probation after a commit.
    pub probation: Duration,
    /// What is done about a frozen incumbent.
    pub watchdog: Watchdog,
    /// Whether a daemon that left is started again.
    pub restart: Restart,
    /// Users who may give orders on the admin socket, besides root and our own.
    pub allowed_uids: Vec<u32>,
    /// The only binaries that a client may name in an upgrade; empty: any.
    pub allowed_binaries: Vec<PathBuf>,
}

impl ServiceConfig {
    /// A service with the documented defaults: no listeners, the control socket in the state directory.
    pub fn new(state_dir: impl Into<PathBuf>, binary: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        Self {
            binary: binary.into(),
            args: Vec::new(),
            env: Vec::new(),
            listeners: Vec::new(),
            data_dir: None,
            control_socket: state_dir.join("control.sock"),
            state_dir,
            deadline: Duration::from_secs(300),
            drain_grace: Duration::from_secs(60),
            warm: Duration::from_secs(60),
            open: Duration::from_secs(10),
            resume: Duration::from_secs(30),
            retire: Duration::from_secs(30),
            probation: Duration::from_secs(10),
            watchdog: Watchdog::default(),
            restart: Restart::default(),
            allowed_uids: Vec::new(),
            allowed_binaries: Vec::new(),
        }
    }

    /// The admin socket: `<state_dir>/admin.sock`.
    pub fn admin_socket(&self) -> PathBuf {
        self.state_dir.join("admin.sock")
    }

    /// The journal of the handover under way: `<state_dir>/journal`.
    pub fn journal(&self) -> PathBuf {
        self.state_dir.join("journal")
    }

    /// What came of the handovers so far: `<state_dir>/history`.
    pub fn history(&self) -> PathBuf {
        self.state_dir.join("history")
    }
}
