//! What the library's two threads in a daemon wait for each other with. Nothing but the standard library's; the tests in
//! `tests/interleavings` build the same files on the model checker's.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
