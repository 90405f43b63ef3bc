//! The monotonic clock, which never goes back and is the same for every process of the machine.

use rustix::time::{ClockId, clock_gettime};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds of CLOCK_MONOTONIC (clock_gettime(2)).
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Both fields of this clock are never negative.
    now.tv_sec as u64 * NS_PER_SECOND + now.tv_nsec as u64
}
