//! Single steps, for this project's own benchmarks. Nothing here is kept stable.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::{Process, Result};

/// Starts a daemon with these listeners as a supervisor does, and returns when the program has replaced the child.
///
/// # Errors
/// As a handover that can't start its successor.
pub fn spawn(binary: &Path, listeners: &[(String, BorrowedFd<'_>)]) -> Result<Process> {
    crate::spawn::spawn(binary, &[], &[], listeners, &[])
}
