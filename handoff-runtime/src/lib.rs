//! placeholder
#![deny(unsafe_code)]
#![allow(dead_code)]

pub mod drainable;
pub mod error;

pub use drainable::{
    DrainContext, DrainReport, Drainable, HookError, ReadinessSnapshot, Resume, SealContext, SealReport,
    StateNotReadable, StateSnapshot,
};
pub use error::{Error, Result};
