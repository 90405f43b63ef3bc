//! Why a service could not be started: each one line that names what is wrong and what to do.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use handoff_lock::LockError;

use super::address::Listen;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Another supervisor runs with this state directory. Stop it first, or use a directory of your own.
    #[error("state directory {} is in use by the supervisor {}; stop it with `handoff stop`, or choose another --state-dir",
        path.display(), pid.map_or_else(|| "that is just starting".to_owned(), |pid| format!("with pid {pid}")))]
    StateDirTaken {
        /// The directory.
        path: PathBuf,
        /// Who holds it; none while it is just starting.
        pid: Option<u32>,
    },

    /// The state directory can't be made or written. Choose another, or give us the right to it.
    #[error("state directory {}: {source}", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The data directory can't be used. Give the right to it, or choose another.
    #[error("data directory {}: {source}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The data directory is held by a process that is none of ours, or can't be locked at all.
    #[error("data directory {}: {source}", path.display())]
    DataDirLock {
        /// The directory.
        path: PathBuf,
        /// Who holds it, or why it can't be locked.
        source: LockError,
    },

    /// Two listeners have the same name.
    #[error("two listeners are named \"{0}\"")]
    ListenerTwice(String),

    /// An address can't be listened on.
    #[error("listener {}: {}", listen.name, listener_reason(listen, source))]
    Listener {
        /// The listener.
        listen: Listen,
        /// What the kernel said.
        source: io::Error,
    },

    /// The listeners need more open files than this process may ever have. Raise the hard limit.
    #[error(
        "{listeners} listeners need {needed} open files, and the hard limit is {hard}; raise it (ulimit -Hn, LimitNOFILE=)"
    )]
    OpenFiles {
        /// How many listeners are configured.
        listeners: usize,
        /// How many descriptors they and the handover need.
        needed: u64,
        /// The hard limit (RLIMIT_NOFILE, getrlimit(2)).
        hard: u64,
    },

    /// The daemon's binary is missing or can't be executed.
    #[error("binary {}: {reason}", path.display())]
    Binary {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// The admin socket can't be made.
    #[error("admin socket {}: {source}", path.display())]
    AdminSocket {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The daemon lives, and its listeners can't be had back from it; a second one is not started beside it. Wait until it
    /// answers, or end it and start again.
    #[error("the daemon with pid {pid} lives and does not answer at {}: without its listeners it can't be handed over; start again when it answers, or end it first",
        control_socket.display())]
    DaemonSilent {
        /// The daemon.
        pid: u32,
        /// Where it should answer.
        control_socket: PathBuf,
    },

    /// Something else failed; nothing was started.
    #[error(transparent)]
    Runtime(#[from] crate::Error),
}

fn listener_reason(listen: &Listen, source: &io::Error) -> String {
    match source.kind() {
        ErrorKind::AddrInUse => format!("{} is in use by another process", listen.address),
        _ => format!("{}: {source}", listen.address),
    }
}
