//! Tests for a stateful daemon that is handed over: crashes on purpose, stand-ins, real processes, and an oracle that counts
//! what was lost.
//!
//! # Layers of tests
//!
//! From the quickest to the most real; each one finds what those above it can't.
//!
//! | layer | crashes by | with |
//! |---|---|---|
//! | all three machines, no process | a move that may come between any two effects | `model`, `world` |
//! | one write path, in process | a panic at a named point | [`CrashInjector`], [`run_with_crash`] |
//! | one role, against a script | closed and silent channels | [`MockDrainable`], [`ScriptedSupervisor`] |
//! | one daemon's hooks under load | aborts | `store::hooks`, `load`, `oracle` |
//! | real processes | `_exit` at a named point, signals | [`init`], [`ProcessCrash`] |
//! | every point × every fault, on real processes | `_exit`, SIGKILL, SIGSTOP, delays, errors | [`matrix`] |
//!
//! What all of them check is in two places: the `oracle` compares what clients were told with what is on disk, and [`leaks`]
//! finds what was left behind.
//!
//! # Features
//!
//! - `crash-points` (default): the reference store asks the injector at its crash points. Without it nothing is left of them.
//! - `store`: the reference store and its oracle.
//! - `demo`: the program `handoff-demo`.
//! - `bench`: the measurement `handoff-bench`. Brings the library that it is measured against.
//! - `model`: the shipped role machines in a small world of their own, and the exhaustive checks on it. Brings `stateright`.

#![cfg_attr(not(feature = "bench"), forbid(unsafe_code))]
#![deny(unsafe_code)]

pub mod audit;
#[cfg(feature = "bench")]
pub mod bench;
pub mod crash;
pub mod fixture;
pub mod leaks;
pub mod load;
pub mod matrix;
pub mod mock;
#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "store")]
pub mod oracle;
mod roles;
mod spread;
#[cfg(feature = "store")]
pub mod store;
pub mod strangers;
#[cfg(feature = "model")]
pub mod world;
pub mod yardstick;

pub use crash::{
    CrashInjector, CrashPoint, ProcessCrash, check_crash_point, clear_injector, install_injector, run_with_crash,
};
pub use fixture::{Fixture, Setup};
pub use matrix::Matrix;
pub use mock::{HookCall, MockDrainable, ScriptedSupervisor, connect_with_retry};
pub use roles::{ChildRole, ROLE_VARIABLE, init, init_with};
pub use spread::Spread;
pub use yardstick::{Metronome, Yardstick};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The project's own pages: their code compiles, or the tests fail.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/integrating.md")]
#[doc = include_str!("../../docs/testing.md")]
struct ProjectPages;
