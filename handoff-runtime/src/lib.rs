//! Replace the binary of a running, stateful daemon: no client is refused, no acknowledged write is lost, and there are never
//! two writers on one data directory.
//!
//! Three roles, each a process of its own: a **supervisor** keeps the listening sockets and leads; the **incumbent** drains,
//! seals its data and releases a lock; the **successor** takes the lock, opens, and says that it is ready. Whatever fails in
//! between, the old process goes on serving. What is promised stands in `docs/protocol.md` of the repository, section 2; the
//! documentation here cites the promises by number.
//!
//! | you write | you use |
//! |---|---|
//! | a daemon | [`detect_role`] at the start of `main`, [`Drainable`], [`Incumbent`], [`Successor`] |
//! | a supervisor of your own | [`Supervisor`], [`SpawnSpec`] |
//! | a program that embeds the long-lived one | `service`, with the feature of that name |
//! | none of these | the program `handoff`, with the feature `cli` |
//!
//! ```no_run
//! use std::path::Path;
//!
//! use handoff_runtime::{Incumbent, ReadinessSnapshot, Role, detect_role};
//! use handoff_runtime::DataDirLock;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (data_dir, control_socket) = (Path::new("/var/lib/counter"), Path::new("/run/counter/control.sock"));
//! let incumbent = match detect_role()? {
//!     Role::ColdStart { .. } => Incumbent::bind_cold_start(control_socket, DataDirLock::acquire(data_dir)?)?,
//!     Role::Successor(successor) => {
//!         let mut successor = successor.handshake(b"counter 2.0".to_vec())?.wait_for_begin()?;
//!         let lock = successor.lock(data_dir)?;
//!         // open the data here
//!         let ready = ReadinessSnapshot { healthz_ok: true, ..ReadinessSnapshot::default() };
//!         successor.announce_and_bind(ready, control_socket, lock)?
//!     }
//! };
//! # let _ = incumbent;
//! // serve clients on threads of your own, and hand over with `incumbent.serve(hooks)`
//! # Ok(())
//! # }
//! ```
//!
//! The library never exits the process, never installs a signal handler, and needs no async runtime. What a role decides is
//! decided by the pure machines of `handoff-proto`; this crate performs their effects, with one `poll` loop a role.
//!
//! # Features
//!
//! - `service`: the long-lived supervisor with its admin socket.
//! - `cli`: `cli::main`, which is the whole program `handoff`, and that program.
//! - `crash-points`: `crash_here!` leaves the process at the point that HANDOFF_CRASH_AT names. Without it nothing is left of
//!   the points in the program.

#![deny(unsafe_code)]

mod channel;
#[cfg(feature = "cli")]
pub mod cli;
mod control;
pub mod crash;
mod data_dir;
pub mod drainable;
mod environment;
pub mod error;
mod events;
mod helper;
mod incumbent;
mod listeners;
#[cfg(feature = "measure")]
#[doc(hidden)]
pub mod measure;
mod outcome;
mod ownership;
mod process;
mod progress;
mod relief;
mod role;
#[cfg(feature = "service")]
pub mod service;
mod spawn;
mod successor;
mod supervisor;
mod sync;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod testing;
mod timers;
mod transfer;
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
pub use environment::forget_role;
pub use error::{Error, Result};
pub use handoff_journal::StateJournal;
pub use handoff_lock::{DataDirLock, LockError, ServingLock};
pub use handoff_proto::supervisor::Watchdog;
pub use handoff_proto::{BeginMode, HandoffId, Timing};
pub use incumbent::{Incumbent, Served};
pub use listeners::{InheritedListeners, pass_listener_fds_on_spawn};
pub use outcome::{GivenBack, HandoffOutcome, OldProcess, Recovery, SpawnSpec, Timings};
pub use process::Process;
pub use role::{BegunSuccessor, HandshookSuccessor, Role, Successor, detect_role};
pub use successor::{OpenProgress, telling_why};
pub use supervisor::Supervisor;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
