//! The loop: waits for descriptors and timers, and feeds the machine what they bring.
//!
//! All input that has arrived is fed before a timer is obeyed. Whatever one client sends in one go is bounded, so that
//! nobody keeps the loop to himself.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handoff_proto::incumbent::{Config, Incumbent as IncumbentMachine, Input, Leaving, SessionId, Timer};
use handoff_proto::{Machine, Message, ProcessId, Side};
use rustix::event::{PollFd, PollFlags};

use super::lock_slot::LockSlot;
use super::path_watch::PathWatch;
use super::{Incumbent, Served};
use crate::channel::{Channel, Received};
use crate::control::ControlSocket;
use crate::drainable::Drainable;
use crate::error::{Error, Result};
use crate::process::Process;
use crate::sys::poll;
use crate::timers::Timers;
use crate::waker::Waker;
use crate::worker::{Gone, Worker};

/// What one session may bring in one turn.
const MESSAGES_PER_TURN_MAX: usize = 64;
/// How many clients are taken in one turn.
const ACCEPTS_PER_TURN_MAX: usize = 16;
/// How long the control socket rests when the system has no descriptor left for a client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A poll that fails this often in a row will not work again.
const POLL_FAILURES_MAX: u32 = 100;

/// Everything that the machine's effects act on.
pub(super) struct Driver {
    machine: IncumbentMachine,
    pub(super) timers: Timers<Alarm>,
    pub(super) sessions: Vec<Session>,
    next_session: u64,
    pub(super) control: ControlSocket,
    pub(super) path_watch: PathWatch,
    accepting: Accepting,
    pub(super) lock: Arc<Mutex<LockSlot>>,
    pub(super) worker: Worker,
    waker: Waker,
    pub(super) drainable: Arc<dyn Drainable>,
    pub(super) successor: Option<Process>,
    pub(super) asked: Option<Channel>,
    pub(super) build_id: Vec<u8>,
    /// What local effects have brought: the machine's next inputs.
    pub(super) results: VecDeque<Input>,
    pub(super) left: Option<Leaving>,
    pub(super) worker_gone: Option<Gone>,
    poll_failures: u32,
}

/// One client.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) channel: Channel,
    pub(super) writing: Writing,
    /// More than one turn's worth has arrived.
    reading: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    Works,
    /// What it has sent still counts; then it is closed.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    WhenReady,
    AtOnce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Open,
    /// Until its timer runs out.
    Resting,
}

/// The machine's timers and the driver's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alarm {
    Machine(Timer),
    Accept,
}

/// What the last wait has found.
#[derive(Default)]
struct Ready {
    accept: bool,
    worker: bool,
    path: bool,
    successor: bool,
    asked: bool,
    sessions: Vec<SessionId>,
}

impl Driver {
    /// Makes everything that a handover needs ahead of it. Nothing here can fail: this process serves already.
    pub(super) fn start(incumbent: Incumbent, drainable: Arc<dyn Drainable>) -> Self {
        let Incumbent { control, lock, build_id, timing, worker } = incumbent;
        let owner = lock.lease().owner;
        let me = ProcessId { pid: owner.pid, start_time: owner.start_time };
        let config = Config { me, epoch: lock.epoch(), build_id: build_id.clone(), timing };
        // From here on a failure keeps the lock: the slot's drop does.
        let lock = Arc::new(Mutex::new(LockSlot::new(lock)));
        let (worker, waker) = worker.employ(Arc::clone(&drainable));
        let path_watch = PathWatch::new(control.path());
        let mut driver = Self {
            machine: IncumbentMachine::new(config),
            timers: Timers::new(),
            sessions: Vec::new(),
            next_session: 0,
            control,
            path_watch,
            accepting: Accepting::Open,
            lock,
            worker,
            waker,
            drainable,
            successor: None,
            asked: None,
            build_id,
            results: VecDeque::new(),
            left: None,
            worker_gone: None,
            poll_failures: 0,
        };
        driver.reserve_epochs();
        driver.path_changed();
        driver
    }

    /// Serves until the machine leaves.
    pub(super) fn run(mut self) -> Result<Served> {
        loop {
            let ready = self.wait()?;
            self.turn(ready);
            if let Some(gone) = self.worker_gone.take() {
                return Err(Error::Usage(format!("the thread of the hooks is lost: {gone:?}")));
            }
            if let Some(leaving) = self.left.take() {
                return self.leave(leaving);
            }
        }
    }

    pub(super) fn lock_slot(&self) -> MutexGuard<'_, LockSlot> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(self, leaving: Leaving) -> Result<Served> {
        // No hook runs when the machine leaves.
        self.worker.finish();
        match leaving {
            Leaving::Committed => Ok(Served::Committed),
            Leaving::Superseded => Ok(Served::Superseded),
            Leaving::NotReadable(reason) => Err(Error::StateNotReadable { reason }),
        }
    }

    /// Keeps a later claim from having to wait for the disk. Off the pause: nobody waits for this.
    fn reserve_epochs(&mut self) {
        let slot = Arc::clone(&self.lock);
        let errand = move || {
            let reserved = slot.lock().unwrap_or_else(PoisonError::into_inner).reserve_epochs();
            if let Err(error) = reserved {
                tracing::warn!(error, "epochs could not be reserved ahead");
            }
        };
        if let Err(gone) = self.worker.run_errand(errand) {
            self.worker_gone = Some(gone);
        }
    }

    fn wait(&mut self) -> Result<Ready> {
        let timeout = if self.has_unread() { Some(Duration::ZERO) } else { self.timers.timeout() };
        let accept_events = match self.accepting {
            Accepting::Open => PollFlags::IN,
            Accepting::Resting => PollFlags::empty(),
        };
        let mut fds = vec![PollFd::new(&self.waker, PollFlags::IN), PollFd::new(&self.control, accept_events)];
        let sessions_from = fds.len();
        for session in &self.sessions {
            let write = if session.channel.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            fds.push(PollFd::new(&session.channel, PollFlags::IN | write));
        }
        let path_at = push(&mut fds, self.path_watch.as_fd());
        let successor_at = push(&mut fds, self.successor.as_ref().map(AsFd::as_fd));
        let asked_at = push(&mut fds, self.asked.as_ref().map(AsFd::as_fd));
        let waited = poll::wait(&mut fds, timeout);
        // After a failure everything is looked at: no call here blocks.
        let is_ready = |at: usize| waited.is_err() || !fds[at].revents().is_empty();
        let ready = Ready {
            worker: is_ready(0),
            accept: self.accepting == Accepting::Open && is_ready(1),
            path: path_at.is_some_and(is_ready),
            successor: successor_at.is_some_and(|at| !fds[at].revents().is_empty()),
            asked: asked_at.is_some_and(is_ready),
            sessions: (self.sessions.iter().zip(sessions_from..))
                .filter(|(session, at)| session.reading == Reading::AtOnce || is_ready(*at))
                .map(|(session, _)| session.id)
                .collect(),
        };
        drop(fds);
        self.count_failure(waited)?;
        Ok(ready)
    }

    fn count_failure(&mut self, waited: std::io::Result<()>) -> Result<()> {
        match waited {
            Ok(()) => self.poll_failures = 0,
            Err(error) if self.poll_failures < POLL_FAILURES_MAX => {
                tracing::warn!(%error, "the control loop could not wait");
                self.poll_failures += 1;
            }
            Err(error) => return Err(Error::io("wait in the control loop", error)),
        }
        Ok(())
    }

    fn has_unread(&self) -> bool {
        self.sessions.iter().any(|session| session.reading == Reading::AtOnce || session.writing == Writing::Failed)
    }

    /// Feeds what has arrived, and only then what has run out.
    fn turn(&mut self, ready: Ready) {
        if self.timers.woke_late() {
            self.feed(Input::WokeLate);
        }
        if ready.worker {
            self.take_hooks();
        }
        for id in ready.sessions {
            self.serve_session(id);
        }
        self.close_unwritable();
        if ready.successor {
            self.successor = None;
            self.feed(Input::SuccessorExited);
        }
        if ready.asked {
            self.take_answer();
        }
        if ready.path {
            self.path_watch.drain();
            self.path_changed();
        }
        if ready.accept {
            self.accept();
        }
        while let Some(alarm) = self.timers.pop_expired() {
            match alarm {
                Alarm::Machine(timer) => self.feed(Input::Fired(timer)),
                Alarm::Accept => self.accepting = Accepting::Open,
            }
        }
    }

    /// Feeds one input and then every result that its effects bring, each as the very next input.
    pub(super) fn feed(&mut self, input: Input) {
        self.results.push_back(input);
        while let Some(input) = self.results.pop_front() {
            for effect in self.machine.step(input) {
                self.perform(effect);
            }
        }
    }

    fn take_hooks(&mut self) {
        self.waker.drain();
        loop {
            match self.worker.take() {
                Ok(Some(input)) => self.feed(input),
                Ok(None) => return,
                Err(gone) => {
                    self.worker_gone = Some(gone);
                    return;
                }
            }
        }
    }

    fn serve_session(&mut self, id: SessionId) {
        if let Some(session) = self.session(id)
            && session.channel.flush().is_err()
        {
            session.writing = Writing::Failed;
        }
        for _ in 0..MESSAGES_PER_TURN_MAX {
            // It may have been closed by what it said.
            let Some(session) = self.session(id) else { return };
            session.reading = Reading::WhenReady;
            match session.channel.receive() {
                Received::Message { version, message, .. } => self.feed(Input::Received(id, version, message)),
                Received::Nothing => return,
                Received::Closed => return self.closed(id),
                Received::Malformed(error) => {
                    tracing::warn!(session = id.0, %error, "a client sent what is no message");
                    self.feed(Input::Malformed(id));
                }
            }
        }
        if let Some(session) = self.session(id) {
            session.reading = Reading::AtOnce;
        }
    }

    /// Who can't be written to is gone, once all that it has sent is read.
    fn close_unwritable(&mut self) {
        let failed: Vec<SessionId> = (self.sessions.iter())
            .filter(|session| session.writing == Writing::Failed && session.reading == Reading::WhenReady)
            .map(|session| session.id)
            .collect();
        for id in failed {
            self.serve_session(id);
            if self.session(id).is_some_and(|session| session.reading == Reading::WhenReady) {
                self.closed(id);
            }
        }
    }

    fn closed(&mut self, id: SessionId) {
        let before = self.sessions.len();
        self.sessions.retain(|session| session.id != id);
        if self.sessions.len() < before {
            self.feed(Input::Closed(id));
        }
    }

    pub(super) fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            match self.control.accept() {
                Ok(Some(channel)) => self.welcome(channel),
                Ok(None) => return,
                Err(error) => {
                    // The client still waits, so the socket stays readable: rest instead of spinning.
                    tracing::warn!(%error, "a client has to wait");
                    self.accepting = Accepting::Resting;
                    self.timers.arm(Alarm::Accept, ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, channel: Channel) {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let peer_pid = channel.peer().ok().map(|peer| peer.pid);
        let (writing, reading) = (Writing::Works, Reading::WhenReady);
        self.sessions.push(Session { id: session, channel, writing, reading });
        self.feed(Input::Connected { session, peer_pid });
    }

    fn path_changed(&mut self) {
        if !self.control.is_published() {
            self.feed(Input::ControlPathLost);
        }
    }

    /// What the one that was asked on the control path says.
    fn take_answer(&mut self) {
        let Some(asked) = &mut self.asked else { return };
        let answer = match asked.receive() {
            Received::Nothing => return,
            Received::Message { message: Message::Hello { role: Side::Incumbent, .. }, .. } => {
                asked.peer().ok().map(|peer| peer.pid)
            }
            Received::Message { .. } | Received::Closed | Received::Malformed(_) => None,
        };
        self.asked = None;
        self.feed(Input::PathAnswered(answer));
    }
}

/// Adds a descriptor if there is one, and says where.
fn push<'fd>(fds: &mut Vec<PollFd<'fd>>, fd: Option<std::os::fd::BorrowedFd<'fd>>) -> Option<usize> {
    let fd = fd?;
    fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    Some(fds.len() - 1)
}
