//! Stand-ins for tests of one role: a [`MockDrainable`] that records and fails on request, and a [`ScriptedSupervisor`] that
//! says exactly what a test wants said, in whatever order.
//!
//! Nothing here follows the protocol by itself: what is sent, wrong order and garbage included, is the test's choice.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use handoff_proto::frame::{read_message, write_message};
use handoff_proto::{HandoffId, Message, ProtoVersion, Side, WireError, short_name};
use handoff_runtime::{
    DrainContext, DrainReport, Drainable, HookError, Resume, SealContext, SealReport, StateSnapshot,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// How long [`connect_with_retry`] and a scripted peer's reads wait before they fail the test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One call of a hook, as [`MockDrainable::calls`] tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookCall {
    /// [`Drainable::drain`].
    Drain,
    /// [`Drainable::seal`].
    Seal,
    /// [`Drainable::resume_after_abort`], with what it was told.
    Resume(Resume),
}

/// A [`Drainable`] without data: records every call, and fails or blocks when told to. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct MockDrainable {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<MockState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct MockState {
    calls: Vec<HookCall>,
    drain: Script<DrainReport>,
    seal: Script<SealReport>,
    resume: Script<()>,
}

/// What the next call of one hook does.
#[derive(Debug, Default)]
struct Script<R> {
    failure: Option<String>,
    blocked: bool,
    report: R,
}

impl MockDrainable {
    /// The hooks' calls so far, in order, those under way included.
    pub fn calls(&self) -> Vec<HookCall> {
        self.state().calls.clone()
    }

    /// Waits until at least `count` calls were made, and returns them.
    ///
    /// # Panics
    /// When they were not made within [`PATIENCE`].
    pub fn wait_for_calls(&self, count: usize) -> Vec<HookCall> {
        let waited = self.shared.changed.wait_timeout_while(self.state(), PATIENCE, |state| state.calls.len() < count);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "expected {count} hook calls, got {:?}", state.calls);
        state.calls.clone()
    }

    /// Makes the next drain fail with `text`.
    pub fn fail_next_drain(&self, text: impl Into<String>) {
        self.state().drain.failure = Some(text.into());
    }

    /// Makes the next seal fail with `text`.
    pub fn fail_next_seal(&self, text: impl Into<String>) {
        self.state().seal.failure = Some(text.into());
    }

    /// Makes the next resume fail with `text`.
    pub fn fail_next_resume(&self, text: impl Into<String>) {
        self.state().resume.failure = Some(text.into());
    }

    /// Holds every drain inside the hook until [`unblock_drain`](Self::unblock_drain), a cancelled one too: so a test sees
    /// what happens around a hook that does not come back.
    pub fn block_drain(&self) {
        self.state().drain.blocked = true;
    }

    /// Lets the drains go.
    pub fn unblock_drain(&self) {
        self.state().drain.blocked = false;
        self.shared.changed.notify_all();
    }

    /// Holds every seal inside the hook until [`unblock_seal`](Self::unblock_seal), a cancelled one too.
    pub fn block_seal(&self) {
        self.state().seal.blocked = true;
    }

    /// Lets the seals go.
    pub fn unblock_seal(&self) {
        self.state().seal.blocked = false;
        self.shared.changed.notify_all();
    }

    /// What drains report from now on.
    pub fn set_drain_report(&self, report: DrainReport) {
        self.state().drain.report = report;
    }

    /// What seals report from now on; revisions are also in the snapshot.
    pub fn set_seal_report(&self, report: SealReport) {
        self.state().seal.report = report;
    }

    /// Records the call, waits while its hook is blocked, then plays its script.
    fn play<R: Clone>(
        &self,
        call: HookCall,
        script: impl Fn(&mut MockState) -> &mut Script<R>,
    ) -> Result<R, HookError> {
        let mut state = self.state();
        state.calls.push(call);
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_while(state, |state| script(state).blocked);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let script = script(&mut state);
        match script.failure.take() {
            Some(text) => Err(text.into()),
            None => Ok(script.report.clone()),
        }
    }

    fn state(&self) -> MutexGuard<'_, MockState> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drainable for MockDrainable {
    fn drain(&self, _cx: &DrainContext) -> Result<DrainReport, HookError> {
        self.play(HookCall::Drain, |state| &mut state.drain)
    }

    fn seal(&self, _cx: &SealContext) -> Result<SealReport, HookError> {
        self.play(HookCall::Seal, |state| &mut state.seal)
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError> {
        self.play(HookCall::Resume(*resume), |state| &mut state.resume)
    }

    fn snapshot_state(&self) -> StateSnapshot {
        let last_revision_per_shard = self.state().seal.report.last_revision_per_shard.clone();
        let shard_count = u32::try_from(last_revision_per_shard.len()).unwrap_or(u32::MAX);
        StateSnapshot { shard_count, open_conns: 0, last_revision_per_shard }
    }
}

/// Connects to a socket that may not be there yet.
///
/// Sleeps until something happens in the socket's directory; a socket that is bound but does not listen yet makes no event,
/// so it looks again every few milliseconds besides.
///
/// # Panics
/// When nobody listens there within [`PATIENCE`].
pub fn connect_with_retry(path: &Path) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    let events = watch(path.parent().unwrap_or(Path::new("."))).ok();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() >= deadline => panic!("connect to {}: {error}", path.display()),
            Err(_) => wait_for_event(events.as_ref()),
        }
    }
}

fn watch(dir: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&events, dir, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
    Ok(events)
}

/// Returns on an event or after 5 ms. Errors do not matter: the caller looks again and has a deadline.
fn wait_for_event(events: Option<&std::os::fd::OwnedFd>) {
    let mut fds: Vec<_> = events.into_iter().map(|events| PollFd::new(events, PollFlags::IN)).collect();
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
    if let Some(events) = events {
        let _ = rustix::io::read(events, &mut [0_u8; 4096]);
    }
}

/// The supervisor's end of a control channel, under a test's control. It speaks to an incumbent and to a successor alike.
///
/// # Panics
/// Its methods panic when the peer does not do what they wait for: this is a test's tool.
#[derive(Debug)]
pub struct ScriptedSupervisor {
    stream: UnixStream,
    version: ProtoVersion,
    handoff_id: HandoffId,
}

impl ScriptedSupervisor {
    /// Connects to an incumbent's control socket.
    pub fn connect(control_socket: &Path) -> Self {
        Self::over(connect_with_retry(control_socket))
    }

    /// Takes an open channel, say one end of a socket pair whose other end is the successor's.
    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a read timeout");
        Self { stream, version: 1, handoff_id: HandoffId::new() }
    }

    /// The id of the handover that this one scripts.
    pub fn handoff_id(&self) -> HandoffId {
        self.handoff_id
    }

    /// Reads the peer's Hello, checks its role, and answers with `version` and a fresh handover id.
    pub fn greet(&mut self, expected: Side, version: ProtoVersion) -> Message {
        let hello = self.receive();
        assert!(matches!(&hello, Message::Hello { role, .. } if *role == expected), "expected a Hello, got {hello:?}");
        self.send(&Message::HelloAck { proto_version_chosen: version, handoff_id: self.handoff_id });
        self.version = version;
        hello
    }

    /// Sends PrepareHandoff that names `successor_pid`, with `deadline` for the whole and for the drain.
    pub fn prepare(&mut self, successor_pid: u32, deadline: Duration) {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.send(&Message::PrepareHandoff {
            handoff_id: self.handoff_id,
            successor_pid,
            deadline_ms,
            drain_grace_ms: deadline_ms,
        });
    }

    /// Sends SealRequest.
    pub fn request_seal(&mut self) {
        self.send(&Message::SealRequest { handoff_id: self.handoff_id });
    }

    /// Sends Commit.
    pub fn commit(&mut self) {
        self.send(&Message::Commit { handoff_id: self.handoff_id });
    }

    /// Sends Abort.
    pub fn abort(&mut self, reason: &str) {
        self.send(&Message::Abort { handoff_id: self.handoff_id, reason: reason.into() });
    }

    /// Sends ResumeAfterAbort.
    pub fn resume(&mut self) {
        self.send(&Message::ResumeAfterAbort { handoff_id: self.handoff_id });
    }

    /// Begins another handover in the same session, under a fresh id.
    pub fn renew(&mut self) -> HandoffId {
        self.handoff_id = HandoffId::new();
        self.handoff_id
    }

    /// Sends any message, also one of the wrong direction or out of order.
    pub fn send(&mut self, message: &Message) {
        self.try_send(message).unwrap_or_else(|error| panic!("sending {}: {error}", short_name(message)));
    }

    /// Sends any message to a peer that may be gone.
    ///
    /// # Errors
    /// The peer closed the channel.
    pub fn try_send(&mut self, message: &Message) -> Result<(), WireError> {
        write_message(&mut self.stream, self.version, message)
    }

    /// Sends bytes that are no frame.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the channel takes bytes");
    }

    /// The next message that is neither a heartbeat nor progress.
    pub fn receive(&mut self) -> Message {
        self.try_receive().unwrap_or_else(|error| panic!("receiving: {error}"))
    }

    /// The next message that is neither a heartbeat nor progress.
    ///
    /// # Errors
    /// The peer closed the channel, sent garbage, or said nothing for [`PATIENCE`].
    pub fn try_receive(&mut self) -> Result<Message, WireError> {
        loop {
            match read_message(&mut self.stream)?.1 {
                Message::Heartbeat { .. } | Message::SealProgress { .. } => {}
                message => return Ok(message),
            }
        }
    }

    /// The next message, heartbeats and progress included.
    pub fn receive_any(&mut self) -> Message {
        read_message(&mut self.stream).unwrap_or_else(|error| panic!("receiving: {error}")).1
    }

    /// Reads until the peer closes the channel, whatever it still says.
    pub fn wait_until_closed(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("the peer did not close the channel: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use handoff_proto::Capabilities;

    use super::*;

    fn drain(mock: &MockDrainable) -> Result<DrainReport, HookError> {
        mock.drain(&DrainContext::for_test(Instant::now() + PATIENCE))
    }

    #[test]
    fn clones_share_the_record() {
        let mock = MockDrainable::default();
        let clone = mock.clone();
        drain(&clone).expect("drains");
        clone.seal(&SealContext::for_test()).expect("seals");
        clone.resume_after_abort(&Resume::new(true, 3)).expect("resumes");
        assert_eq!(mock.calls(), [HookCall::Drain, HookCall::Seal, HookCall::Resume(Resume::new(true, 3))]);
    }

    #[test]
    fn a_failure_is_for_one_call() {
        let mock = MockDrainable::default();
        mock.fail_next_drain("no");
        assert_eq!(drain(&mock).expect_err("told to fail").to_string(), "no");
        drain(&mock).expect("only once");
        mock.fail_next_seal("nor this");
        assert_eq!(mock.seal(&SealContext::for_test()).expect_err("told to fail").to_string(), "nor this");
        mock.fail_next_resume("nor that");
        let resume = Resume::new(false, 1);
        assert_eq!(mock.resume_after_abort(&resume).expect_err("told to fail").to_string(), "nor that");
        mock.resume_after_abort(&resume).expect("only once");
    }

    #[test]
    fn a_blocked_hook_returns_after_unblock() {
        let mock = MockDrainable::default();
        mock.block_drain();
        thread::scope(|scope| {
            let draining = scope.spawn(|| drain(&mock));
            assert_eq!(mock.wait_for_calls(1), [HookCall::Drain]);
            assert!(!draining.is_finished());
            mock.unblock_drain();
            draining.join().expect("no panic").expect("drains");
        });
    }

    #[test]
    fn reports_are_the_tests_choice() {
        let mock = MockDrainable::default();
        let report = SealReport { last_revision_per_shard: vec![4, 2], data_dir_fingerprint: [7; 32] };
        mock.set_seal_report(report.clone());
        assert_eq!(mock.seal(&SealContext::for_test()).expect("seals"), report);
        assert_eq!(mock.snapshot_state().last_revision_per_shard, [4, 2]);
    }

    #[test]
    fn connecting_waits_for_the_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("late.sock");
        thread::scope(|scope| {
            let connecting = scope.spawn(|| connect_with_retry(&path));
            let listener = UnixListener::bind(&path).expect("binds");
            listener.accept().expect("somebody connects");
            connecting.join().expect("connected");
        });
    }

    #[test]
    fn the_script_speaks_both_ways() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let hello = Message::Hello {
            role: Side::Incumbent,
            pid: 1,
            build_id: vec![],
            proto_min: 1,
            proto_max: 2,
            capabilities: Capabilities::default(),
        };
        write_message(&mut theirs, 1, &hello).expect("sent");
        let mut supervisor = ScriptedSupervisor::over(ours);
        assert_eq!(supervisor.greet(Side::Incumbent, 2), hello);
        supervisor.abort("enough");
        assert!(matches!(read_message(&mut theirs), Ok((1, Message::HelloAck { proto_version_chosen: 2, .. }))));
        assert!(matches!(read_message(&mut theirs), Ok((2, Message::Abort { .. }))));
        write_message(&mut theirs, 2, &Message::Heartbeat { ts_ms: 1 }).expect("sent");
        drop(theirs);
        supervisor.wait_until_closed();
    }
}
