//! Leaving the process, and signals to itself.

/// Leaves at once: no destructor runs, no buffer is flushed (_exit(2)).
#[cfg(feature = "crash-points")]
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status, touches no memory of ours and does not return.
    unsafe { libc::_exit(status) }
}

/// Sends a signal to the calling thread (raise(3)): it has arrived when this returns, so SIGSTOP stops the process here.
#[cfg(feature = "crash-points")]
pub(crate) fn signal_self(signal: i32) {
    // SAFETY: raise(3) takes any number, and touches no memory of ours.
    unsafe { libc::raise(signal) };
}
