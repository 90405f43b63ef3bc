//! Real successors, each a process of its own, under a scripted supervisor. This program is its own children: a child finds
//! its script in the environment and never comes to the harness, so that it finds its role before any thread runs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use handoff_lock::{LeaseState, read_lease};
use handoff_proto::frame::{read_message, write_message};
use handoff_proto::{Message, Side};
use handoff_runtime::{
    BeginMode, BegunSuccessor, DataDirLock, HandoffId, ReadinessSnapshot, Role, detect_role, pass_listener_fds_on_spawn,
};
use libtest_mimic::{Arguments, Trial};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

const SCRIPT: &str = "SUCCESSOR_TEST_SCRIPT";
const DIR: &str = "SUCCESSOR_TEST_DIR";
const ID: HandoffId = HandoffId::from_bytes([8; 16]);
const PATIENCE: Duration = Duration::from_secs(60);
const SEALED: [u64; 2] = [5, 6];
/// What a child leaves with that gave up as it should.
const GAVE_UP: u8 = 3;

fn main() -> ExitCode {
    if let Ok(script) = std::env::var(SCRIPT) {
        return child(&script);
    }
    let mut arguments = Arguments::from_args();
    // A descriptor on its way to one child must not be inherited by another.
    arguments.test_threads = Some(1);
    let mut trials = vec![
        trial("a_successor_takes_over_and_serves_on_the_same_listener", takes_over),
        trial("a_supervisor_that_dies_after_begin_does_not_stop_it", outlives_its_supervisor),
        trial("an_unfit_successor_holds_the_lock_until_it_exits", unfit),
        trial("a_successor_that_loses_its_supervisor_before_begin_touches_nothing", before_begin),
    ];
    if cfg!(feature = "crash-points") {
        trials.push(trial("a_successor_dies_at_each_of_its_crash_points", crash_points));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// The daemon of these tests.
fn child(script: &str) -> ExitCode {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let (_, in_hand_before) = in_hand(&dir);
    let environment: Vec<_> = std::env::vars_os().collect();
    let Role::Successor(successor) = detect_role().unwrap() else { panic!("not a successor") };
    assert_eq!(std::env::vars_os().collect::<Vec<_>>(), environment, "another thread may read it at any time");
    assert!(matches!(detect_role().unwrap(), Role::ColdStart { inherited } if inherited.is_empty()));
    assert_eq!(successor.listener_names(), ["http"]);
    match successor.handshake(b"child".to_vec()).and_then(|greeted| greeted.wait_for_begin()) {
        Ok(begun) => take_over(begun, &dir, script, &in_hand_before),
        Err(_) => ExitCode::from(GAVE_UP),
    }
}

fn take_over(mut begun: BegunSuccessor, dir: &Path, script: &str, in_hand_before: &[String]) -> ExitCode {
    assert_eq!((begun.handoff_id(), begun.mode()), (ID, BeginMode::Sealed));
    assert!(library_thread_leaves_signals_alone());
    let lock = begun.lock(dir).unwrap();
    let listener = begun.take_listener("http").unwrap();
    if script == "slow" {
        say_and_wait("opening");
    }
    let readiness = ReadinessSnapshot {
        listening_on: vec![listener.local_addr().unwrap().to_string()],
        healthz_ok: script != "unfit",
        advertised_revision_per_shard: SEALED.to_vec(),
        ..ReadinessSnapshot::default()
    };
    let Ok(_incumbent) = begun.announce_and_bind(readiness, &dir.join("control"), lock) else {
        say_and_wait("gave up");
        return ExitCode::from(GAVE_UP);
    };
    assert_holds_no_more_than_it_needs(in_hand_before, dir);
    println!("serving");
    let (mut client, _) = listener.accept().unwrap();
    client.write_all(b"from the successor").unwrap();
    ExitCode::SUCCESS
}

/// How many threads this process has, and what it has open, each by its kind.
fn in_hand(data_dir: &Path) -> (usize, Vec<String>) {
    let entries = |dir: &str| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let data_dir = data_dir.canonicalize().unwrap();
    // The directory that was read is closed by now.
    let targets = entries("/proc/self/fd").into_iter().filter_map(|path| std::fs::read_link(path).ok());
    let kind = |target: PathBuf| match target.strip_prefix(&data_dir) {
        Ok(within) => format!("data dir/{}", within.display()),
        Err(_) if Some(target.as_path()) == data_dir.parent() => "data dir's parent".to_owned(),
        Err(_) => target.to_str().unwrap().split(":[").next().unwrap().to_owned(),
    };
    (entries("/proc/self/task").len(), targets.map(kind).collect())
}

/// Taking over leaves nothing in hand but what serving needs: the lock's two files and the directory above, what the two threads wait with, the control socket, and
/// the listener once more, to be given back.
fn assert_holds_no_more_than_it_needs(before: &[String], data_dir: &Path) {
    let (threads, mut more) = in_hand(data_dir);
    for held in before {
        let at = more.iter().position(|now| now == held);
        // The supervisor's channel is closed when the supervisor is gone.
        at.map(|at| more.swap_remove(at));
    }
    more.sort_unstable();
    let (sockets, others): (Vec<_>, Vec<_>) = more.iter().partition(|kind| *kind == "socket");
    assert_eq!(others, ["anon_inode", "anon_inode", "data dir's parent", "data dir/", "data dir/.handoff.lock"]);
    assert!(sockets.len() <= 2, "{more:?}");
    assert_eq!(threads, 2, "this one and the library's");
}

/// A signal that the daemon waits for must not find a thread of the library instead. That one may still be starting.
fn library_thread_leaves_signals_alone() -> bool {
    const SIGTERM_BIT: u64 = 1 << (15 - 1);
    let leaves_alone = |status: &str| {
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        status.starts_with("Name:\thandoff\n") && u64::from_str_radix(blocked, 16).unwrap() & SIGTERM_BIT != 0
    };
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mut statuses = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap());
        if statuses.any(|status| leaves_alone(&status)) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Lets the test look at this process in this state; returns when the test says so.
fn say_and_wait(what: &str) {
    println!("{what}");
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
}

/// A data dir that was just sealed, and the listener of the service.
struct World {
    dir: tempfile::TempDir,
    epoch: u64,
    listener: TcpListener,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = DataDirLock::acquire(dir.path()).unwrap();
        lock.stamp(Some(*ID.as_bytes())).unwrap();
        lock.activate(b"old").unwrap();
        let epoch = lock.epoch();
        drop(lock.seal().map_err(|(_, error)| error).unwrap());
        Self { dir, epoch, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn start(&self, script: &str, env: &[(&str, &OsStr)]) -> Run {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        // Out of the listeners' way.
        let control = fcntl_dupfd_cloexec(&theirs, 64).unwrap();
        fcntl_setfd(&control, FdFlags::empty()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(SCRIPT, script).env(DIR, self.dir.path()).envs(env.iter().copied());
        command.env("HANDOFF_ROLE", "successor").env("HANDOFF_SOCK_FD", control.as_raw_fd().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        pass_listener_fds_on_spawn(&mut command, &[("http".into(), self.listener.as_fd())]).unwrap();
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Run { child, said, supervisor: ours }
    }

    fn begin(&self) -> Message {
        Message::BeginWith {
            handoff_id: ID,
            mode: BeginMode::Sealed,
            sealed_revision_per_shard: SEALED.to_vec(),
            data_dir_fingerprint: [0; 32],
            epoch: self.epoch,
            deadline_ns: u64::MAX,
            open_ms: 10_000,
        }
    }

    fn lease(&self) -> (u64, LeaseState, u32) {
        let lease = read_lease(self.dir.path()).unwrap().unwrap();
        (lease.epoch, lease.state, lease.owner.pid)
    }

    fn is_locked(&self) -> bool {
        DataDirLock::acquire(self.dir.path()).is_err()
    }
}

/// A successor under way; killed when the test fails.
struct Run {
    child: Child,
    said: BufReader<ChildStdout>,
    supervisor: UnixStream,
}

impl Run {
    /// The next message that is no heartbeat; `None`: the successor has ended the session.
    fn hear(&mut self) -> Option<Message> {
        loop {
            match read_message(&mut self.supervisor) {
                Ok((_, Message::Heartbeat { .. })) => {}
                Ok((_, message)) => return Some(message),
                Err(_) => return None,
            }
        }
    }

    fn tell(&mut self, message: &Message) {
        // A successor that has died at a crash point hears nothing any more.
        let _ = write_message(&mut self.supervisor, 2, message);
    }

    /// Goes on until the successor is told to begin, unless it ends before.
    fn conduct_to_begin(&mut self, world: &World) -> Option<()> {
        match self.hear()? {
            Message::Hello { role: Side::Successor, pid, .. } => assert_eq!(pid, self.child.id()),
            other => panic!("{other:?}"),
        }
        self.tell(&Message::HelloAck { proto_version_chosen: 2, handoff_id: ID });
        assert_eq!(self.hear()?, Message::Warmed { handoff_id: ID });
        self.tell(&world.begin());
        Some(())
    }

    /// Whether it is ready, unless it ends without a word.
    fn hear_ready(&mut self) -> Option<bool> {
        match self.hear()? {
            Message::Ready { handoff_id: ID, healthz_ok, .. } => Some(healthz_ok),
            Message::NotReady { handoff_id: ID, .. } => Some(false),
            other => panic!("{other:?}"),
        }
    }

    fn expect(&mut self, line: &str) {
        let mut said = String::new();
        self.said.read_line(&mut said).unwrap();
        assert_eq!(said.trim_end(), line);
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_serves(world: &World, run: &mut Run) {
    run.expect("serving");
    assert_eq!(world.lease(), (world.epoch + 1, LeaseState::Active, run.child.id()));
    UnixStream::connect(world.dir.path().join("control")).unwrap();
    let mut answer = String::new();
    TcpStream::connect(world.address()).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "from the successor");
    assert_eq!(run.exit_code(), Some(0));
}

fn takes_over() {
    let world = World::new();
    let mut run = world.start("serve", &[]);
    run.conduct_to_begin(&world).unwrap();
    assert_eq!(run.hear_ready(), Some(true));
    assert_serves(&world, &mut run);
}

fn outlives_its_supervisor() {
    let world = World::new();
    let mut run = world.start("slow", &[]);
    run.conduct_to_begin(&world).unwrap();
    run.expect("opening");
    run.supervisor.shutdown(Shutdown::Both).unwrap();
    run.go_on();
    assert_serves(&world, &mut run);
}

fn unfit() {
    let world = World::new();
    let mut run = world.start("unfit", &[]);
    run.conduct_to_begin(&world).unwrap();
    assert_eq!(run.hear_ready(), Some(false));
    run.expect("gave up");
    assert!(world.is_locked(), "its store may still be open");
    assert_eq!(world.lease(), (world.epoch + 1, LeaseState::Opening, run.child.id()));
    run.go_on();
    assert_eq!(run.exit_code(), Some(GAVE_UP.into()));
    assert!(!world.is_locked());
}

fn before_begin() {
    let world = World::new();
    let mut run = world.start("serve", &[]);
    assert!(matches!(run.hear(), Some(Message::Hello { .. })));
    run.supervisor.shutdown(Shutdown::Both).unwrap();
    assert_eq!(run.exit_code(), Some(GAVE_UP.into()));
    assert_eq!(world.lease(), (world.epoch, LeaseState::Sealed, std::process::id()));
}

fn crash_points() {
    for (point, state, ready) in [
        ("n-before-handshake", LeaseState::Sealed, None),
        ("n-after-handshake", LeaseState::Sealed, None),
        ("n-after-begin", LeaseState::Sealed, None),
        ("n-after-lock", LeaseState::Opening, None),
        ("n-before-announce-ready", LeaseState::Opening, None),
        ("n-after-ready", LeaseState::Active, Some(true)),
    ] {
        let world = World::new();
        let mut run = world.start(
            "serve",
            &[
                ("HANDOFF_CRASH_AT", OsStr::new(point)),
                ("HANDOFF_CRASH_MARKER_DIR", world.dir.path().as_os_str()),
                ("HANDOFF_CRASH_ROLE", OsStr::new("n")),
            ],
        );
        let said = run.conduct_to_begin(&world).and_then(|()| run.hear_ready());
        assert_eq!((run.exit_code(), said), (Some(99), ready), "{point}");
        assert_eq!(std::fs::read_to_string(world.dir.path().join("crashed-n.marker")).unwrap(), point);
        assert_eq!(world.lease().1, state, "{point}");
        assert!(!world.is_locked(), "{point}");
    }
}
