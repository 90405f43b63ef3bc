//! What can go wrong in a role, in one line for a person and typed for a program.

use std::io;
use std::path::PathBuf;

use handoff_journal::JournalError;
use handoff_lock::LockError;
use handoff_proto::WireError;

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call of this crate failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed. `doing` says what it was for.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path or pid it was done to.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// A peer or the channel to it failed. The peer's fault, or it died.
    #[error(transparent)]
    Wire(#[from] WireError),

    /// The data-dir lock could not be had or kept.
    #[error(transparent)]
    Lock(#[from] LockError),

    /// The supervisor's journal could not be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),

    /// An environment variable of the handover is unusable. The fault of whoever started this process.
    #[error("environment variable {variable}: {reason}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// A Unix socket's path does not fit `sockaddr_un` (unix(7)). Use a shorter path.
    #[error("socket path {} is {bytes} bytes long, the system allows {bytes_max}; use a shorter path", path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The longest that fits.
        bytes_max: usize,
    },

    /// A program could not be started. `reason` says what to do; nothing is left of the attempt.
    #[error("cannot start {}: {reason}", binary.display())]
    CannotStart {
        /// The program.
        binary: PathBuf,
        /// Why, for people.
        reason: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// A peer of a foreign user connected.
    #[error("a process of uid {uid} is not allowed on this socket")]
    PeerNotPermitted {
        /// The peer's user.
        uid: u32,
    },

    /// This supervisor is in the middle of another handover; try again when it is over.
    #[error("another handover is under way")]
    HandoffInProgress,

    /// A handover was refused before anything was started; the incumbent was not touched.
    #[error("handover not tried: {reason}")]
    NotTried {
        /// Why.
        reason: String,
    },

    /// Nobody serves, and a process that is not ours to end holds the data directory. Start nothing; look at that process.
    #[error(
        "process {pid} holds the data directory, and neither the lease nor the journal knows it; start nothing beside it"
    )]
    DataDirHeld {
        /// The process.
        pid: u32,
    },

    /// A process that was remembered is hidden from us, so that it can't be told from a later one with its pid. It was sent no
    /// signal: end it by hand if it is to go, or let its start time be seen.
    #[error(
        "process {pid} is hidden in /proc (hidepid, ProtectProc= or PR_SET_DUMPABLE) and may be a later one of the same pid, so \
         it gets no signal; end it yourself if it is in the way"
    )]
    ProcessHidden {
        /// The process.
        pid: u32,
    },

    /// The data directory's name does not mean the directory that is held, or handed over: put that one back. Nobody was asked
    /// to stop for it, and nothing in it was touched.
    #[error("data directory {}: {reason}", path.display())]
    DataDirElsewhere {
        /// The name.
        path: PathBuf,
        /// What it means now.
        reason: String,
    },

    /// The handover is off: the supervisor said so, or is gone, or the deadline has passed. Exit; the incumbent serves.
    #[error("handover aborted: {reason}")]
    Aborted {
        /// Why.
        reason: String,
    },

    /// This successor reported itself unfit, or its revisions are lower than the sealed ones (promise 3). Exit.
    #[error("not fit to take over: {reason}")]
    Unfit {
        /// What is wrong.
        reason: String,
    },

    /// The daemon's `resume_after_abort` can't read what a newer build wrote. Exit: the supervisor starts that build.
    #[error("the data can't be taken back: {reason}")]
    StateNotReadable {
        /// What the hook said.
        reason: String,
    },

    /// The supervisor or the incumbent did what the protocol forbids.
    #[error("protocol violation: {0}")]
    Protocol(String),

    /// The caller left something out or called at the wrong moment.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// An [`Error::Io`] that says what was being done.
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing: doing.into(), source: source.into() }
    }
}
