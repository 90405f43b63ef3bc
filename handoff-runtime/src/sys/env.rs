//! Removing environment variables, which is only sound while no other thread reads them.

/// Removes `name` from the environment of this process.
///
/// The caller's duty: no other thread runs yet. `detect_role` says so in its contract.
pub(crate) fn remove(name: &str) {
    // SAFETY: setenv(3) and getenv(3) race between threads; `detect_role` is documented to be called before any thread
    // is started, and it alone comes here.
    unsafe { std::env::remove_var(name) }
}
