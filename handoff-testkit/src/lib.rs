//! Tests for a stateful daemon that is handed over.
#![forbid(unsafe_code)]

pub mod crash;
pub mod leaks;
#[cfg(feature = "store")]
pub mod load;
pub mod mock;
#[cfg(feature = "store")]
pub mod oracle;

pub use crash::{CrashInjector, CrashPoint, check_crash_point, clear_injector, install_injector, run_with_crash};
pub use mock::{HookCall, MockDrainable, ScriptedSupervisor, connect_with_retry};
#[cfg(feature = "store")]
pub mod store;
