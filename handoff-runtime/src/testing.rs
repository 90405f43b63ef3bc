//! For this crate's unit tests: running one of them in a process of its own, because descriptors, limits, signals and the
//! environment belong to a whole process.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The arguments that make this test program run the ignored test `path` and nothing else.
pub(crate) fn arguments_for(path: &str) -> Vec<OsString> {
    ["--exact", "--ignored", "--nocapture", "--test-threads=1", path].map(OsString::from).into()
}

/// Runs the ignored test `path` in a process of its own; panics with what it wrote if it failed, or if there is none.
pub(crate) fn run_alone(path: &str) {
    let output = Command::new(env::current_exe().unwrap()).args(arguments_for(path)).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && stdout.contains("1 passed");
    assert!(passed, "{path}: {}\n{stdout}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// The open descriptors of this process.
pub(crate) fn open_fds() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut fds: Vec<i32> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    fds.sort_unstable();
    // The last one opened is the directory's own, closed again by now.
    fds.retain(|fd| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok());
    fds
}

/// Lowers the limit of open files of this process so that `count` more can be opened, while `action` runs.
pub(crate) fn with_free_fds<T>(count: usize, action: impl FnOnce() -> T) -> T {
    let open = open_fds();
    let limit = (0..).filter(|fd| !open.contains(fd)).nth(count).unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit as u64), ..before }).unwrap();
    let result = action();
    setrlimit(Resource::Nofile, before).unwrap();
    result
}
