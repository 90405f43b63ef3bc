//! Crashes on purpose: in this process by a panic at a named point ([`injector`]), in another one by leaving it without a
//! goodbye ([`process`]).

pub mod injector;
pub mod process;

pub use injector::{CrashInjector, CrashPoint, check_crash_point, clear_injector, install_injector, run_with_crash};
pub use process::{CRASH_EXIT_STATUS, ProcessCrash};
