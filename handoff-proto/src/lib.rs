//! The messages and the three role machines of a handover: a running, stateful daemon is replaced by a new build without a
//! refused client, a lost write, or two writers.
//!
//! This crate decides and does nothing: it never opens a file or a socket, never reads a clock, never draws a random number
//! inside a machine, and has no `unsafe`. A driver (`handoff-runtime`, or a model checker) feeds [`Machine::step`] with what
//! happened and performs the effects that come back, in order.
//!
//! | module | what it holds |
//! |---|---|
//! | [`message`] | the wire messages of versions 1 and 2 |
//! | [`frame`] | length-prefixed frames around them |
//! | [`version`] | the negotiation of a version |
//! | [`lease`] | what the machines see of the data-dir lock's lease |
//! | [`revisions`] | how the revisions of many shards travel |
//! | [`machine`] | the contract that every machine keeps |
//! | [`contract`] | a check of the driver's part of it, in debug builds |
//! | [`supervisor`], [`incumbent`], [`successor`] | the three roles |
//! | [`transfer`] | what goes over the direct channel from an incumbent to its successor |
//! | [`recovery`] | what a restarted supervisor does with what it finds |
//!
//! The numbered promises that the documentation cites are those of `docs/protocol.md`.

#![forbid(unsafe_code)]

mod body;
mod bounded;
pub mod contract;
mod ending;
pub mod error;
pub mod frame;
pub mod incumbent;
pub mod lease;
pub mod machine;
pub mod message;
pub mod recovery;
pub mod revisions;
pub mod successor;
pub mod supervisor;
pub mod transfer;
pub mod version;

pub use contract::Checked;
pub use error::{Result, WireError};
pub use frame::MAX_FRAME_BYTES;
pub use lease::{LeaseState, LeaseView, ProcessId};
pub use machine::{Machine, Timing};
pub use message::{BeginMode, Capabilities, HandoffId, Message, Phase, Side, StatusReport, short_name};
pub use version::{PROTO_MAX, PROTO_MIN, ProtoVersion, negotiate_version};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
