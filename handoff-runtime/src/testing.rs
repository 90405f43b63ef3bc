//! For this crate's unit tests: running one of them in a process of its own, because descriptors, limits, signals and the
//! environment belong to a whole process. And one that takes the data while it can't be stopped.

use std::env;
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff_lock::{DataDirLock, LeaseState, read_lease};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::process::Process;

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

/// unshare(1) with namespaces by their letters, to be followed by a program and its arguments; root needs no user namespace.
pub(crate) fn in_new_namespaces(letters: &str) -> Command {
    let mut command = Command::new("unshare");
    let user = if rustix::process::geteuid().is_root() { "" } else { "r" };
    command.arg(format!("-{user}{letters}"));
    command
}

/// Waits until nobody has the other end any more; whatever was sent is thrown away.
pub(crate) fn hears_the_end(mut end: std::os::unix::net::UnixStream) {
    end.set_nonblocking(false).unwrap();
    end.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    end.read_to_end(&mut Vec::new()).expect("somebody has the other end still");
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

/// How many descriptors and threads this process has. Only one that runs alone can count them.
pub(crate) fn footprint() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|all| std::fs::read_dir(all).unwrap().count())
}

/// Waits until there are no more than before: who has ended may be listed for a moment still, also when it was counted before.
pub(crate) fn assert_nothing_is_left(before: [usize; 2], what: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while footprint().into_iter().zip(before).any(|(now, before)| now > before) {
        assert!(Instant::now() < until, "descriptors and threads {:?} instead of {before:?} after {what}", footprint());
        std::thread::yield_now();
    }
}

/// How many clients must find room before anybody is accepted: what the system allows, or as many as a test should try.
pub(crate) fn backlog_wanted() -> usize {
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    allowed.trim().parse::<usize>().unwrap().min(4096)
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

const TAKER_DIR: &str = "HANDOFF_TEST_TAKER_DIR";
const TAKER_ID: &str = "HANDOFF_TEST_TAKER_ID";

/// A successor of the handover `id` that takes the lock as soon as it is free, and then is [late to stop](activate_when_told_to_stop).
/// It lives until its standard input ends.
pub(crate) fn start_late_taker(data_dir: &Path, id: [u8; 16]) -> LateTaker {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(arguments_for("testing::takes_the_lock_and_is_late_to_stop"));
    command.env(TAKER_DIR, data_dir).env(TAKER_ID, u128::from_be_bytes(id).to_string());
    let mut taker = LateTaker(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    // No start of a process is in the time that a test gives it for the lock.
    taker.wait_until(|_| data_dir.with_extension(WAITS).exists());
    taker
}

/// Beside the data dir: the taker waits for the lock.
const WAITS: &str = "taker-waits";

/// Killed when the test fails.
pub(crate) struct LateTaker(Child);

impl LateTaker {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has the lock and can't be stopped at once.
    pub(crate) fn wait_until_taken(&mut self, data_dir: &Path) {
        self.wait_until(|pid| {
            let lease = read_lease(data_dir).unwrap();
            lease.is_some_and(|lease| lease.owner.pid == pid && lease.handoff_id.is_some())
        });
    }

    fn wait_until(&mut self, is_so: impl Fn(u32) -> bool) {
        while !is_so(self.pid()) {
            assert!(self.0.try_wait().unwrap().is_none(), "it has ended");
            std::thread::yield_now();
        }
    }

    /// Ends one that was let go on: one that is stopped still would not see the end of its input.
    pub(crate) fn end(mut self) {
        let process = Process::open(self.pid()).unwrap().unwrap();
        assert!(!process.is_stopped().unwrap(), "it was not let go on");
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for LateTaker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "run by start_late_taker in a process of its own"]
fn takes_the_lock_and_is_late_to_stop() {
    let Some(data_dir) = env::var_os(TAKER_DIR) else { return };
    let id: u128 = env::var(TAKER_ID).unwrap().parse().unwrap();
    std::fs::write(Path::new(&data_dir).with_extension(WAITS), "").unwrap();
    let mut lock = DataDirLock::acquire_timeout(Path::new(&data_dir), Duration::from_secs(60)).unwrap();
    // That it is named in the lease says that it is so far.
    activate_when_told_to_stop(&mut lock, |lock| lock.stamp(Some(id.to_be_bytes())).unwrap());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Becomes Active in the last moment before it is stopped: between a SIGSTOP, which must have been sent, and the stop. Who does
/// not send it, looks at the lease before, or does not wait for the stop, finds Opening and ends the owner of the data. `begin`
/// is called when it can't be stopped at once any more.
pub(crate) fn activate_when_told_to_stop(lock: &mut DataDirLock, begin: impl FnOnce(&mut DataDirLock)) {
    assert_eq!(lock.lease().state, LeaseState::Opening);
    let (pid, parent) = (std::process::id(), std::os::unix::process::parent_id());
    crate::sys::held_up::while_it_can_not_be_stopped(|| {
        begin(lock);
        if is_told_to_stop(pid, parent) {
            lock.activate(b"late").unwrap();
        }
    });
}

/// Waits until SIGSTOP has been sent to a process; false: it, or who started it, died before.
fn is_told_to_stop(pid: u32, parent: u32) -> bool {
    const STOP_BIT: u64 = 1 << (libc::SIGSTOP - 1);
    let read = |status: &Path| std::fs::read_to_string(status).unwrap_or_default();
    fn field<'a>(status: &'a str, name: &str) -> &'a str {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
    }
    let is_told = |status: String| {
        let is_pending = |name| u64::from_str_radix(field(&status, name), 16).is_ok_and(|set| set & STOP_BIT != 0);
        is_pending("ShdPnd:") || is_pending("SigPnd:") || field(&status, "State:").starts_with('T')
    };
    loop {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        if threads.map(|thread| read(&thread.path().join("status"))).any(is_told) {
            return true;
        }
        let status = read(Path::new(&format!("/proc/{pid}/status")));
        if field(&status, "State:").starts_with(['Z', 'X']) || field(&status, "PPid:") != parent.to_string() {
            return false;
        }
        std::thread::yield_now();
    }
}
