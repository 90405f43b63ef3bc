//! A daemon with scripted hooks, and a supervisor that says what a test tells it.

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use handoff_lock::DataDirLock;
use handoff_proto::frame::{self, read_message, write_message};
use handoff_proto::{HandoffId, Message, ProtoVersion, Timing, WireError, short_name};
use handoff_runtime::{
    DrainContext, DrainReport, Drainable, HookError, Incumbent, Resume, SealContext, SealReport, Served,
    StateNotReadable, StateSnapshot,
};

use crate::BOUND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Drain,
    Seal,
    Resume { changed: bool },
}

#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    /// How many calls `wait_for` has seen.
    seen: usize,
    drain_error: Option<String>,
    seal_error: Option<String>,
    resume_error: Option<String>,
    panics: bool,
    not_readable: bool,
    blocked: bool,
    /// Of the hooks, only the seal is held.
    seal_only: bool,
    resume_hangs: bool,
    progress: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Mock(Arc<(Mutex<Script>, Condvar)>);

impl Mock {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.0.lock().unwrap()
    }

    fn called(&self, call: Call) -> MutexGuard<'_, Script> {
        let mut script = self.script();
        script.calls.push(call);
        self.0.1.notify_all();
        script
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.script().calls.clone()
    }

    /// Waits for a call that comes after all that were waited for before.
    pub(crate) fn wait_for(&self, call: Call) {
        let end = Instant::now() + BOUND;
        let mut script = self.script();
        loop {
            if let Some(at) = script.calls[script.seen..].iter().position(|made| *made == call) {
                script.seen += at + 1;
                return;
            }
            let left =
                end.checked_duration_since(Instant::now()).unwrap_or_else(|| panic!("no {call:?}: {:?}", script.calls));
            script = self.0.1.wait_timeout(script, left).unwrap().0;
        }
    }

    pub(crate) fn fail_next_drain(&self, text: &str) {
        self.script().drain_error = Some(text.into());
    }

    pub(crate) fn fail_next_seal(&self, text: &str) {
        self.script().seal_error = Some(text.into());
    }

    pub(crate) fn fail_next_resume(&self, text: &str) {
        self.script().resume_error = Some(text.into());
    }

    pub(crate) fn panic_instead(&self) {
        self.script().panics = true;
    }

    pub(crate) fn state_not_readable(&self) {
        self.script().not_readable = true;
    }

    pub(crate) fn block_until_cancelled(&self) {
        self.script().blocked = true;
    }

    /// Also lets a drain that is held end.
    pub(crate) fn block_seal(&self) {
        let mut script = self.script();
        script.seal_only = true;
        script.blocked = true;
        self.0.1.notify_all();
    }

    /// Until `unblock`.
    pub(crate) fn hang_in_resume(&self) {
        self.script().resume_hangs = true;
    }

    pub(crate) fn report_progress(&self) {
        self.script().progress = true;
        self.block_seal();
    }

    pub(crate) fn unblock(&self) {
        let mut script = self.script();
        (script.blocked, script.resume_hangs) = (false, false);
        self.0.1.notify_all();
    }

    pub(crate) fn seal_complete(&self, handoff_id: HandoffId) -> Message {
        Message::SealComplete { handoff_id, last_revision_per_shard: vec![41, 42], data_dir_fingerprint: [7; 32] }
    }

    /// Holds a hook until it is let go or cancelled; the flag has no descriptor, so it is looked at now and then.
    fn hold(&self, is_held: impl Fn(&Script) -> bool, cancelled: impl Fn() -> bool) {
        let mut script = self.script();
        while is_held(&script) && !cancelled() {
            script = self.0.1.wait_timeout(script, Duration::from_millis(5)).unwrap().0;
        }
    }
}

impl Drainable for Mock {
    fn drain(&self, cx: &DrainContext) -> Result<DrainReport, HookError> {
        let mut script = self.called(Call::Drain);
        let (error, panics) = (script.drain_error.take(), script.panics);
        script.panics = false;
        drop(script);
        self.hold(|script| script.blocked && !script.seal_only, || cx.cancelled());
        match error {
            Some(text) if panics => panic!("{text}"),
            Some(text) => Err(text.into()),
            None => Ok(DrainReport { open_conns_remaining: 2, accept_closed: true }),
        }
    }

    fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError> {
        let mut script = self.called(Call::Seal);
        let (error, progress) = (script.seal_error.take(), script.progress);
        drop(script);
        if progress {
            cx.progress(1, 2, 41);
        }
        self.hold(|script| script.blocked, || cx.cancelled());
        match error {
            Some(text) => Err(text.into()),
            None => Ok(SealReport { last_revision_per_shard: vec![41, 42], data_dir_fingerprint: [7; 32] }),
        }
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError> {
        let mut script = self.called(Call::Resume { changed: resume.state_may_have_changed });
        if script.not_readable {
            return Err(StateNotReadable { reason: "format 9".into() }.into());
        }
        let error = script.resume_error.take();
        drop(script);
        self.hold(|script| script.resume_hangs, || false);
        error.map_or(Ok(()), |text| Err(text.into()))
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot { shard_count: 2, open_conns: 2, last_revision_per_shard: vec![41, 42] }
    }
}

/// An incumbent in a directory of its own, on a thread of its own.
pub(crate) struct Daemon {
    dir: tempfile::TempDir,
    pub(crate) mock: Mock,
    served: Receiver<handoff_runtime::Result<Served>>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_beating(Duration::from_millis(50))
    }

    /// Its heartbeats, with which whatever was held back would go, come after every test.
    pub(crate) fn start_without_heartbeats() -> Self {
        Self::start_beating(BOUND * 10)
    }

    fn start_beating(heartbeat: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mock = Mock::default();
        let lock = DataDirLock::acquire(&dir.path().join("data")).unwrap();
        let timing = Timing {
            heartbeat,
            // Long enough that a busy test machine makes nobody silent, except for the test that is about it.
            liveness: Duration::from_secs(2),
            limbo_slack: Duration::from_millis(100),
            ..Timing::default()
        };
        let incumbent = Incumbent::bind_cold_start(&dir.path().join("control.sock"), lock).unwrap();
        let incumbent = incumbent.with_build_id(b"test build".to_vec()).with_timing(timing);
        let (sender, served) = channel();
        let drainable = mock.clone();
        std::thread::spawn(move || sender.send(incumbent.serve(drainable)));
        Self { dir, mock, served }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn control_path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub(crate) fn pidfile(&self) -> Option<String> {
        std::fs::read_to_string(self.data_dir().join(".handoff.pidfile")).ok()
    }

    /// It comes when nobody waits for it.
    pub(crate) fn wait_for_pidfile(&self) {
        let end = Instant::now() + BOUND;
        let own = format!("{}\n", std::process::id());
        while self.pidfile().as_ref() != Some(&own) {
            assert!(Instant::now() < end, "{:?}", self.pidfile());
            std::thread::yield_now();
        }
    }

    pub(crate) fn lock_is_free(&self) -> bool {
        DataDirLock::acquire(&self.data_dir()).is_ok()
    }

    pub(crate) fn supervisor(&self) -> Supervisor {
        self.supervisor_of(2)
    }

    /// Connects and greets; tries again while the control path is being published anew.
    pub(crate) fn supervisor_of(&self, version: ProtoVersion) -> Supervisor {
        let end = Instant::now() + BOUND;
        loop {
            match Supervisor::greet(&self.control_path(), version) {
                Ok(supervisor) => return supervisor,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
        }
    }

    /// A whole handover still works.
    pub(crate) fn hand_over(&self) {
        let mut supervisor = self.supervisor();
        let id = supervisor.prepare();
        supervisor.expect("Drained");
        supervisor.send(Message::SealRequest { handoff_id: id });
        supervisor.expect("SealComplete");
        let _successor = DataDirLock::acquire(&self.data_dir()).unwrap();
        supervisor.send(Message::Commit { handoff_id: id });
        assert_eq!(self.served().unwrap(), Served::Committed);
    }

    pub(crate) fn served(&self) -> handoff_runtime::Result<Served> {
        self.served.recv_timeout(BOUND).expect("serve returns")
    }
}

pub(crate) struct Supervisor {
    stream: RefCell<UnixStream>,
    version: ProtoVersion,
    pub(crate) hello: Message,
}

impl Supervisor {
    fn greet(path: &std::path::Path, version: ProtoVersion) -> Result<Self, WireError> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(BOUND))?;
        let (frame, hello) = read_message(&mut stream)?;
        assert_eq!(frame, 1, "a Hello travels in a frame of version 1");
        let ack = Message::HelloAck { proto_version_chosen: version, handoff_id: HandoffId::new() };
        write_message(&mut stream, version, &ack)?;
        Ok(Self { stream: RefCell::new(stream), version, hello })
    }

    pub(crate) fn send(&mut self, message: Message) {
        write_message(self.stream.get_mut(), self.version, &message).unwrap();
    }

    /// As one write.
    pub(crate) fn send_together(&mut self, messages: &[Message]) {
        let frames: Vec<u8> =
            messages.iter().flat_map(|message| frame::encode(self.version, message).unwrap()).collect();
        self.stream.get_mut().write_all(&frames).unwrap();
    }

    pub(crate) fn prepare(&mut self) -> HandoffId {
        self.prepare_for(0, 60_000)
    }

    pub(crate) fn prepare_for(&mut self, successor_pid: u32, deadline_ms: u64) -> HandoffId {
        let handoff_id = HandoffId::new();
        self.send(prepare(handoff_id, successor_pid, deadline_ms));
        handoff_id
    }

    /// A supervisor of version 2 does so when it has nothing to wait for in between.
    pub(crate) fn prepare_and_seal(&mut self) -> HandoffId {
        let handoff_id = HandoffId::new();
        self.send_together(&[prepare(handoff_id, 0, 60_000), Message::SealRequest { handoff_id }]);
        handoff_id
    }

    pub(crate) fn read(&mut self) -> Result<Message, WireError> {
        let (version, message) = read_message(self.stream.get_mut())?;
        assert_eq!(version, self.version);
        Ok(message)
    }

    /// The next message, heartbeats apart, which must be of this kind.
    pub(crate) fn expect(&mut self, name: &str) -> Message {
        loop {
            match self.read().unwrap_or_else(|error| panic!("{name} was due: {error}")) {
                Message::Heartbeat { .. } => {}
                message => {
                    assert_eq!(short_name(&message), name, "{message:?}");
                    return message;
                }
            }
        }
    }

    /// Nothing comes any more but heartbeats that were under way.
    pub(crate) fn expect_closed(&mut self) {
        loop {
            match self.read() {
                Ok(Message::Heartbeat { .. }) => {}
                Ok(message) => panic!("the session goes on: {message:?}"),
                Err(_) => return,
            }
        }
    }
}

fn prepare(handoff_id: HandoffId, successor_pid: u32, deadline_ms: u64) -> Message {
    Message::PrepareHandoff { handoff_id, successor_pid, deadline_ms, drain_grace_ms: 1_000 }
}
