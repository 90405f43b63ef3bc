//! The crash-safe journal of the handoff supervisor: what handover is under way, between which processes, in which phase.
//!
//! A supervisor that dies in the middle of a handover is started again, reads this file, and knows what to finish or undo
//! (promise 7 of `docs/protocol.md`). Two forms share one file format and one path:
//!
//! * [`StateJournal`]'s own functions, for a program that writes seldom: each write is durable on return;
//! * [`Journal`], the long-lived form: records are ordered and cost microseconds, and the disk is waited for only where
//!   [`Journal::sync`] is called. This keeps the disk out of the pause of a handover.
//!
//! What is read is always a record that was written, whole: a torn, truncated or foreign file gives an older record or an
//! error that names the file, never a mixture and never a panic. A whole record that only a newer build understands is such an
//! error, and no older record is given in its place. What can't be read is never overwritten or deleted.
//!
//! Beside it stands the [`History`]: what came of each handover, for people. It never waits for the disk, is bounded in size, and
//! nothing is decided by it.
//!
//! This crate never locks: the file belongs to one supervisor at a time, which its caller sees to. It never decides what a
//! phase means, and has no `unsafe`.

#![forbid(unsafe_code)]

#[cfg(test)]
mod crash_tests;
mod error;
mod history;
mod journal;
mod record;
mod slots;
mod storage;

pub use error::{JournalError, Result};
pub use handoff_proto::{HandoffId, Phase};
pub use history::{HISTORY_BYTES_MAX, History, HistoryEntry, HistoryTimings, PhaseSpan, Recent};
pub use journal::{Journal, SetAside};
pub use record::{BINARY_BYTES_MAX, BUILD_ID_BYTES_MAX, Details, StateJournal};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
