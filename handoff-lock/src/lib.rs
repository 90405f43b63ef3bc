//! A data directory belongs to one process at a time. This crate is the lock that says which.
//!
//! ```
//! use handoff_lock::{DataDirLock, LockError};
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path();
//!
//! let lock = DataDirLock::acquire(dir)?;
//! println!("{} is ours, under epoch {}", dir.display(), lock.epoch());
//!
//! match DataDirLock::acquire(dir) {
//!     Err(error @ LockError::Held { .. }) => println!("{error}"), // the data dir is locked by pid 4711 (stored) since …
//!     other => panic!("two owners: {other:?}"),
//! }
//! lock.release()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod data_dir_lock;
mod error;
mod filesystem;
mod holder;
mod lease;
mod lock_file;
mod mark;
mod pair;
mod pidfile;
#[allow(unsafe_code)]
mod sys;

pub use data_dir_lock::{Claim, DataDirLock};
pub use error::LockError;
pub use filesystem::check_filesystem;
pub use holder::{Holder, Look, holder, look, read_lease};
pub use lease::{BUILD_ID_BYTES_MAX, Lease, LeaseState, Owner};
pub use pair::{Attempt, LOCK_FILE, Unlocked};
