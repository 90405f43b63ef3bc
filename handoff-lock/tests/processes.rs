//! The lock between real processes. Each is this test program run again, with a role named in its environment.

#[cfg(target_os = "linux")]
#[path = "processes/elsewhere.rs"]
mod elsewhere;
#[cfg(target_os = "linux")]
#[path = "processes/executed.rs"]
mod executed;
#[cfg(target_os = "linux")]
#[path = "processes/passing.rs"]
mod passing;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use handoff_lock::{DataDirLock, LeaseState, LockError, holder, read_lease};

const PATIENCE: Duration = Duration::from_secs(60);

/// A process in a role; `stdin` tells it to go on.
struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Role {
    fn start(role: &str, dir: &Path) -> Self {
        Self::start_by(&mut Command::new(std::env::current_exe().unwrap()), role, dir)
    }

    fn start_by(command: &mut Command, role: &str, dir: &Path) -> Self {
        let mut child = command
            .args(["--exact", "role", "--nocapture"])
            .env("HANDOFF_LOCK_TEST_ROLE", role)
            .env("HANDOFF_LOCK_TEST_DIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let lines = Box::new(BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok));
        Self { child, stdin, lines }
    }

    fn says(&mut self, word: &str) {
        assert!(self.lines.any(|line| line == word), "the process ended without saying {word:?}");
    }

    /// To go on.
    fn tell(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn kill(self) {
        drop(self);
    }

    fn let_finish(mut self) -> ExitStatus {
        drop(self.stdin.take());
        self.child.wait().unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // One that was waited for is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(word: &str) {
    // The harness may have written a part of a line.
    println!("\n{word}");
}

fn wait_to_be_told() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Not a test but the entrance of the processes that the tests start.
#[test]
fn role() {
    let Ok(role) = std::env::var("HANDOFF_LOCK_TEST_ROLE") else { return };
    let dir = std::env::var_os("HANDOFF_LOCK_TEST_DIR").unwrap();
    let dir = Path::new(&dir);
    match role.as_str() {
        "owner" => own(dir),
        "contender" => contend(dir),
        "full-disk" => write_no_more(dir),
        #[cfg(target_os = "linux")]
        other => play_on_linux(other, dir),
        #[cfg(not(target_os = "linux"))]
        other => panic!("no role {other}"),
    }
}

#[cfg(target_os = "linux")]
fn play_on_linux(role: &str, dir: &Path) {
    match role {
        "passer" => passing::pass(dir),
        "directory-locker" => passing::lock_the_directory(dir),
        "file-locker" => passing::lock_the_file(dir),
        "root-changer" => elsewhere::change_root(dir),
        "root-changer-and-moved" => elsewhere::change_root_and_be_moved(dir),
        "directory-changer" => elsewhere::change_directory(dir),
        "without-proc" => elsewhere::see_no_proc(dir),
        "exec-leaver" => executed::leave_by_exec(dir),
        "exec-goer" => executed::go_on_by_exec(dir),
        "executed" => executed::be_executed(dir),
        "mounted-over" => elsewhere::be_mounted_over(dir),
        other => panic!("no role {other}"),
    }
}

fn own(dir: &Path) {
    let mut lock = DataDirLock::acquire(dir).unwrap();
    lock.activate(b"owner").unwrap();
    say("active");
    wait_to_be_told();
}

const ROUNDS: usize = 25;

/// Takes the lock again and again; a marker file that is made and removed under it shows if two hold it.
fn contend(dir: &Path) {
    for _ in 0..ROUNDS {
        let mut lock = DataDirLock::acquire_timeout(dir, PATIENCE).unwrap();
        let marker = dir.join("inside");
        File::create_new(&marker).expect("two holders");
        let mut log = OpenOptions::new().append(true).create(true).open(dir.join("epochs")).unwrap();
        writeln!(log, "{}", lock.epoch()).unwrap();
        if lock.epoch().is_multiple_of(2) {
            lock.activate(b"contender").unwrap();
        }
        fs::remove_file(&marker).unwrap();
        match lock.epoch() % 3 {
            0 => drop(lock.seal().map_err(|(_, error)| error).unwrap()),
            1 => lock.release().unwrap(),
            _ => drop(lock),
        }
    }
}

/// Started with a limit on the size of files that forbids any further write, as a full disk does.
fn write_no_more(dir: &Path) {
    let mut lock = DataDirLock::acquire(dir).unwrap();
    lock.activate(b"full").unwrap();
    let limit = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    assert!(matches!(lock.stamp(Some([1; 16])), Err(LockError::Io { .. })));
    assert_eq!(lock.lease().handoff_id, None);
    let Err((lock, LockError::Io { path, .. })) = lock.seal() else { panic!("sealed without a lease that says so") };
    assert_eq!(path, dir.join(".handoff.lock"));
    assert!(matches!(DataDirLock::acquire(dir), Err(LockError::Held { .. })));
    assert_eq!(read_lease(dir).unwrap().as_ref(), Some(lock.lease()));
    assert_eq!(lock.lease().state, LeaseState::Active);
    lock.release().unwrap();
    assert!(matches!(DataDirLock::acquire(dir), Err(LockError::Io { .. })));
    assert_eq!(holder(dir).unwrap(), None, "who could not claim it does not keep it");
}

#[test]
fn a_killed_owner_leaves_the_lock_and_its_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = Role::start("owner", dir.path());
    owner.says("active");
    let pid = owner.child.id();
    let Err(LockError::Held { holder: Some(holder) }) = DataDirLock::acquire(dir.path()) else { panic!("not held") };
    assert_eq!((holder.pid, holder.alive, holder.inherited), (pid, true, false));
    assert_eq!(holder.since_unix_ms, read_lease(dir.path()).unwrap().map(|lease| lease.since_unix_ms));
    owner.kill();
    let lease = read_lease(dir.path()).unwrap().unwrap();
    assert_eq!((lease.owner.pid, lease.state, lease.epoch), (pid, LeaseState::Active, 1));
    assert_eq!(fs::read_to_string(dir.path().join(".handoff.pidfile")).unwrap().trim(), pid.to_string());
    let lock = DataDirLock::acquire_or_break_stale(dir.path()).unwrap();
    assert_eq!(lock.epoch(), 2);
}

#[test]
fn an_owner_that_ends_releases() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = Role::start("owner", dir.path());
    owner.says("active");
    assert!(owner.let_finish().success());
    assert_eq!(DataDirLock::acquire(dir.path()).unwrap().epoch(), 2);
}

#[test]
fn of_many_processes_one_at_a_time_holds_the_lock() {
    const PROCESSES: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let processes: Vec<Role> = (0..PROCESSES).map(|_| Role::start("contender", dir.path())).collect();
    for process in processes {
        assert!(process.let_finish().success());
    }
    let log = fs::read_to_string(dir.path().join("epochs")).unwrap();
    let epochs: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(epochs, (1..=PROCESSES * ROUNDS).collect::<Vec<_>>(), "in the order of their writes");
}

#[test]
fn a_step_that_cannot_write_its_lease_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    // The signal that comes with the limit is ignored, so that the write fails instead.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    assert!(Role::start_by(&mut shell, "full-disk", dir.path()).let_finish().success());
}
