
/// Whether the planted fault of this name is switched on, by the environment. Only a copy of the tree has this function.
#[doc(hidden)]
#[allow(dead_code)]
pub fn planted(fault: &str) -> bool {
    static ON: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var_os("HANDOFF_PLANTED")).as_deref().is_some_and(|on| on == fault)
}

/// The same, and only at every second asking: for faults that come now and then.
#[doc(hidden)]
#[allow(dead_code)]
pub fn planted_now_and_then(fault: &str) -> bool {
    static ASKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    planted(fault) && ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 64 == 0
}
