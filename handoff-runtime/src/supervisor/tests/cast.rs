//! The scripted incumbent and successors, and the stage that they play on.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handoff_lock::{Attempt, DataDirLock, LeaseState, Unlocked};
use handoff_proto::frame::{read_message, write_message};
use handoff_proto::{Capabilities, HandoffId, Message, Side, Timing, short_name};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::control::StagedControl;
use crate::environment::{StartedAs, claim};
use crate::outcome::SpawnSpec;
use crate::supervisor::Supervisor;
use crate::testing::activate_when_told_to_stop;

const SCRIPT: &str = "HANDOFF_TEST_SCRIPT";
const DATA_DIR: &str = "HANDOFF_TEST_DATA_DIR";
const CONTROL: &str = "HANDOFF_TEST_CONTROL";
const PID_FILE: &str = "HANDOFF_TEST_PID_FILE";

/// What the incumbent seals.
pub(super) const SEALED: [u64; 2] = [5, 6];

/// One play at a time: descriptors and children are counted.
static STAGE: Mutex<()> = Mutex::new(());

/// A directory with a control path, a data directory, and an incumbent if one is wanted.
pub(super) struct Stage {
    pub(super) dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// Short where nobody should have to wait, long where nobody should be in a hurry.
pub(super) fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(100),
        liveness: Duration::from_millis(700),
        hello: Duration::from_secs(20),
        settle: Duration::from_secs(20),
        ..Timing::default()
    }
}

impl Stage {
    pub(super) fn set() -> Self {
        let alone = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: tempfile::tempdir().unwrap(), _alone: alone }
    }

    pub(super) fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.dir.path().join("successor.pid")
    }

    pub(super) fn supervisor(&self) -> Supervisor {
        let supervisor = Supervisor::new(&self.control()).unwrap().with_timing(timing());
        supervisor.with_journal(self.journal()).with_data_dir(self.data_dir())
    }

    /// This program, as a successor that plays this part.
    pub(super) fn successor(&self, script: &str) -> SpawnSpec {
        let mut spec = SpawnSpec::new(std::env::current_exe().unwrap());
        let part = "supervisor::tests::cast::plays_successor";
        spec.args = ["--exact", part, "--ignored", "--nocapture", "--test-threads=1"].map(OsString::from).to_vec();
        spec.env = vec![
            (SCRIPT.into(), script.into()),
            (DATA_DIR.into(), self.data_dir().into()),
            (CONTROL.into(), self.control().into()),
            (PID_FILE.into(), self.pid_file().into()),
        ];
        spec
    }

    /// The pid of the successor that was started last.
    pub(super) fn successor_pid(&self) -> u32 {
        fs::read_to_string(self.pid_file()).unwrap().trim().parse().unwrap()
    }

    /// No process and no file is left of the successor.
    pub(super) fn assert_successor_left_nothing(&self) {
        let pid = self.successor_pid();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left, perhaps as a zombie");
        let staging = format!("control.sock.{pid}");
        assert!(!self.dir.path().join(staging).exists());
    }
}

/// Runs one ignored test in a process of its own.
pub(super) fn played_alone(test: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--ignored", "--test-threads=1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// How the incumbent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Good,
    Version1,
    DrainFails,
    SealFails,
    HangsUpAtPrepare,
    /// Keeps the lock and says that it has sealed.
    LiesAboutTheSeal,
    /// Has this many listeners to give back.
    Gives(usize),
}

/// An incumbent on a thread of this process.
pub(super) struct Incumbent {
    over: Arc<AtomicBool>,
    control: PathBuf,
    thread: JoinHandle<(Option<DataDirLock>, Vec<&'static str>)>,
}

impl Incumbent {
    pub(super) fn serve(stage: &Stage, manner: Manner) -> Self {
        let mut lock = DataDirLock::acquire(&stage.data_dir()).unwrap();
        lock.activate(b"old").unwrap();
        let listener = UnixListener::bind(stage.control()).unwrap();
        let over = Arc::<AtomicBool>::default();
        let actor = Actor {
            manner,
            data_dir: stage.data_dir(),
            lock: Some(lock),
            unlocked: None,
            heard: Vec::new(),
            over: Arc::clone(&over),
        };
        let thread = thread::spawn(move || actor.play(&listener));
        Self { over, control: stage.control(), thread }
    }

    /// Ends it. Gives the lock, if it holds it, and the names of the messages that it was sent, heartbeats left out.
    pub(super) fn end(self) -> (Option<DataDirLock>, Vec<&'static str>) {
        self.over.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.control);
        let (lock, heard) = self.thread.join().unwrap();
        (lock, heard.into_iter().filter(|name| *name != "Heartbeat").collect())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    Over,
    Committed,
}

struct Actor {
    manner: Manner,
    data_dir: PathBuf,
    lock: Option<DataDirLock>,
    unlocked: Option<Unlocked>,
    heard: Vec<&'static str>,
    over: Arc<AtomicBool>,
}

impl Actor {
    fn play(mut self, listener: &UnixListener) -> (Option<DataDirLock>, Vec<&'static str>) {
        loop {
            let (stream, _) = listener.accept().unwrap();
            if self.over.load(Ordering::Acquire) || self.session(stream) == Session::Committed {
                return (self.lock, self.heard);
            }
        }
    }

    fn session(&mut self, mut stream: UnixStream) -> Session {
        let proto_max = if self.manner == Manner::Version1 { 1 } else { 2 };
        let (role, pid) = (Side::Incumbent, std::process::id());
        let capabilities = Capabilities::default();
        let hello = Message::Hello { role, pid, build_id: b"old".to_vec(), proto_min: 1, proto_max, capabilities };
        if write_message(&mut stream, 1, &hello).is_err() {
            return Session::Over;
        }
        while let Ok((_, message)) = read_message(&mut stream) {
            self.heard.push(short_name(&message));
            let Some(answers) = self.answer(&message, &stream) else { return Session::Over };
            for answer in answers {
                let _ = write_message(&mut stream, proto_max, &answer);
            }
            if let Message::Commit { .. } = message {
                return Session::Committed;
            }
        }
        Session::Over
    }

    /// None: hang up.
    fn answer(&mut self, message: &Message, stream: &UnixStream) -> Option<Vec<Message>> {
        let answers = match *message {
            Message::PrepareHandoff { handoff_id, .. } => match self.manner {
                Manner::HangsUpAtPrepare => return None,
                Manner::DrainFails => vec![Message::DrainFailed { handoff_id, error: "queue stuck".into() }],
                _ => {
                    self.lock.as_mut().unwrap().stamp(Some(*handoff_id.as_bytes())).unwrap();
                    vec![Message::Drained { open_conns_remaining: 0, accept_closed: true }]
                }
            },
            Message::SealRequest { handoff_id } => vec![self.seal(handoff_id)],
            Message::ResumeAfterAbort { handoff_id } => {
                self.retake();
                if self.manner == Manner::Version1 { vec![] } else { vec![Message::Resumed { handoff_id }] }
            }
            Message::Heartbeat { ts_ms } => vec![Message::Heartbeat { ts_ms }],
            Message::ListenersRequest => {
                self.give_back(stream);
                vec![]
            }
            _ => vec![],
        };
        Some(answers)
    }

    fn seal(&mut self, handoff_id: HandoffId) -> Message {
        match self.manner {
            Manner::SealFails => {
                return Message::SealFailed { handoff_id, error: "disk on fire".into(), partial_state: String::new() };
            }
            Manner::LiesAboutTheSeal => {}
            _ => self.unlocked = Some(self.lock.take().unwrap().seal().unwrap()),
        }
        let last_revision_per_shard = SEALED.to_vec();
        Message::SealComplete { handoff_id, last_revision_per_shard, data_dir_fingerprint: [1; 32] }
    }

    /// The successor is gone, so the lock is to be had at once.
    fn retake(&mut self) {
        if self.lock.is_some() {
            return;
        }
        let unlocked = self.unlocked.take().unwrap_or_else(|| Unlocked::open(&self.data_dir).unwrap());
        let Attempt::Locked(claim) = unlocked.try_lock() else { panic!("told to resume beside a living successor") };
        let mut lock = claim.claim(None).unwrap();
        lock.activate(b"old").unwrap();
        self.lock = Some(lock);
    }

    /// In messages of at most 253; the last one has fewer.
    fn give_back(&self, stream: &UnixStream) {
        let count = if let Manner::Gives(count) = self.manner { count } else { 0 };
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let names: Vec<String> = (0..count).map(|n| format!("listener-{n}")).collect();
        let mut chunks: Vec<_> = names.chunks(253).map(<[String]>::to_vec).collect();
        if count.is_multiple_of(253) {
            chunks.push(Vec::new());
        }
        for names in chunks {
            let fds = vec![socket.as_fd(); names.len()];
            let frame = handoff_proto::frame::encode(2, &Message::Listeners { names }).unwrap();
            let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
            let sent = sendmsg(stream, &[std::io::IoSlice::new(&frame)], &mut control, SendFlags::empty()).unwrap();
            assert_eq!(sent, frame.len());
        }
    }
}

/// The successor's part, in a process of its own.
#[test]
#[ignore = "run by the other tests in a process of its own"]
fn plays_successor() {
    let Ok(script) = std::env::var(SCRIPT) else { return };
    let variable = |name| PathBuf::from(std::env::var_os(name).unwrap());
    fs::write(variable(PID_FILE), std::process::id().to_string()).unwrap();
    let Ok(StartedAs::Successor { control, .. }) = claim() else { return };
    let control = control.as_fd().try_clone_to_owned().unwrap().into();
    let part = Part { script, control, data_dir: variable(DATA_DIR), path: variable(CONTROL) };
    part.play();
    // Nothing of the test harness's own may run behind the play.
    std::process::exit(0);
}

struct Part {
    script: String,
    control: UnixStream,
    data_dir: PathBuf,
    path: PathBuf,
}

impl Part {
    fn play(mut self) {
        match self.script.as_str() {
            "never says hello" => return self.wait_for_the_end(),
            "exits with 3" => std::process::exit(3),
            _ => {}
        }
        let pid = std::process::id() + u32::from(self.script == "wrong pid");
        let (proto_min, proto_max) = match self.script.as_str() {
            "version 1" => (1, 1),
            "version 9" => (9, 9),
            _ => (1, 2),
        };
        let capabilities = Capabilities::default();
        let hello =
            Message::Hello { role: Side::Successor, pid, build_id: Vec::new(), proto_min, proto_max, capabilities };
        self.say(1, &hello);
        let Some(Message::HelloAck { proto_version_chosen: version, handoff_id }) = self.hear() else { return };
        if self.script == "never warms" {
            return self.wait_for_the_end();
        }
        if version >= 2 {
            self.say(2, &Message::Warmed { handoff_id });
        }
        if self.script == "dies when it is warmed" {
            std::process::exit(6);
        }
        self.await_turn();
        if self.script == "dies at begin" {
            std::process::exit(7);
        }
        let mut lock = self.take_lock(handoff_id);
        if self.script == "hangs up and is late to stop" {
            let starter = std::os::unix::process::parent_id();
            activate_when_told_to_stop(&mut lock, |_| self.control.shutdown(Shutdown::Both).unwrap());
            // It serves, until the test ends it; and it does not outlive the test.
            while std::os::unix::process::parent_id() == starter {
                thread::park_timeout(Duration::from_millis(100));
            }
        }
        self.report(version, handoff_id);
        self.wait_for_the_end();
        lock.forget();
    }

    fn await_turn(&mut self) {
        loop {
            match self.hear() {
                Some(Message::Begin { .. } | Message::BeginWith { .. }) => return,
                Some(_) => {}
                None => std::process::exit(0),
            }
        }
    }

    fn take_lock(&self, handoff_id: HandoffId) -> DataDirLock {
        let Attempt::Locked(claim) = Unlocked::open(&self.data_dir).unwrap().try_lock() else { std::process::exit(8) };
        if self.script != "version 1" {
            let lease = claim.found().unwrap();
            assert!(lease.state == LeaseState::Sealed && lease.handoff_id == Some(*handoff_id.as_bytes()));
        }
        let mut lock = claim.claim(Some(*handoff_id.as_bytes())).unwrap();
        if !matches!(self.script.as_str(), "silent while opening" | "hangs up and is late to stop") {
            lock.activate(b"new").unwrap();
        }
        lock
    }

    fn report(&mut self, version: u16, handoff_id: HandoffId) {
        if self.script.starts_with("silent") || self.script.starts_with("hangs up") {
            return;
        }
        let ready = Message::Ready {
            handoff_id,
            listening_on: Vec::new(),
            healthz_ok: self.script != "unhealthy",
            advertised_revision_per_shard: if self.script == "too low" { vec![5, 5] } else { SEALED.to_vec() },
        };
        // One of version 1 says that it is ready first, and then takes the path.
        if version < 2 {
            self.say(1, &ready);
        }
        let staged = StagedControl::bind(&self.path).unwrap();
        let healthy = !matches!(self.script.as_str(), "unhealthy" | "too low");
        if healthy {
            std::mem::forget(staged.publish().unwrap());
        } else {
            // Left under its staging name, for the supervisor to remove.
            std::mem::forget(staged);
        }
        if version >= 2 {
            self.say(2, &ready);
        }
    }

    fn say(&mut self, version: u16, message: &Message) {
        let _ = write_message(&mut self.control, version, message);
    }

    fn hear(&mut self) -> Option<Message> {
        read_message(&mut self.control).ok().map(|(_, message)| message)
    }

    /// The supervisor hangs up.
    fn wait_for_the_end(&mut self) {
        let mut byte = [0];
        loop {
            match rustix::net::recv(&self.control, &mut byte, RecvFlags::empty()).map_err(std::io::Error::from) {
                Ok((0, _)) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}
