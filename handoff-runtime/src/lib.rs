//! placeholder
#![deny(unsafe_code)]
#![allow(dead_code)]

mod channel;
mod control;
pub mod crash;
pub mod drainable;
pub mod error;
mod process;
#[cfg(feature = "service")]
pub mod service;
#[allow(unsafe_code)]
mod sys;
mod timers;
mod waker;

pub use drainable::{
    DrainContext, DrainReport, Drainable, HookError, ReadinessSnapshot, Resume, SealContext, SealReport,
    StateNotReadable, StateSnapshot,
};
pub use error::{Error, Result};
pub use process::Process;
