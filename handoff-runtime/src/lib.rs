//! placeholder
#![deny(unsafe_code)]
#![allow(dead_code)]

mod channel;
#[cfg(feature = "cli")]
pub mod cli;
mod control;
pub mod crash;
pub mod drainable;
mod environment;
pub mod error;
mod incumbent;
mod listeners;
mod outcome;
mod ownership;
mod process;
mod progress;
mod role;
#[cfg(feature = "service")]
pub mod service;
mod spawn;
mod successor;
mod supervisor;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod testing;
mod timers;
mod waker;
mod worker;

/// With this exit status a daemon says that it can't read its data, because a newer build wrote them
/// (`EX_DATAERR`, sysexits(3)): `handoff run` then starts the newest build that had the data. Leave with it when your store
/// says so at its start, and when [`Incumbent::serve`] returns [`Error::StateNotReadable`].
pub const STATE_NOT_READABLE_EXIT_STATUS: u8 = 65;

pub use drainable::{
    DrainContext, DrainReport, Drainable, HookError, ReadinessSnapshot, Resume, SealContext, SealReport,
    StateNotReadable, StateSnapshot,
};
pub use error::{Error, Result};
pub use handoff_journal::StateJournal;
pub use handoff_lock::{DataDirLock, LockError};
pub use handoff_proto::supervisor::Watchdog;
pub use handoff_proto::{BeginMode, HandoffId, Timing};
pub use incumbent::{Incumbent, Served};
pub use listeners::{InheritedListeners, pass_listener_fds_on_spawn};
pub use outcome::{HandoffOutcome, Recovery, SpawnSpec, Timings};
pub use process::Process;
pub use role::{BegunSuccessor, HandshookSuccessor, Role, Successor, detect_role};
pub use supervisor::Supervisor;
