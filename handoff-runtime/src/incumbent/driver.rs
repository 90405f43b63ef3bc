//! What an incumbent works on: feeds the machine what clients, hooks and time bring.
//!
//! All input that has arrived is fed before a timer is obeyed. Whatever one client sends in one go is bounded, so that
//! nobody keeps the loop to himself. Which thread waits for it stands in `crew`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handoff_proto::incumbent::{Config, Incumbent as IncumbentMachine, Input, Leaving, SessionId, Timer};
use handoff_proto::{Checked, Message, ProcessId, Side};
use rustix::event::PollFlags;

use super::crew::{Hooks, IdleWorker};
use super::lock_slot::{InItsPlace, LockSlot};
use super::path_watch::PathWatch;
use super::watch::{Found, Until, Watch, What};
use super::{Incumbent, Served};
use crate::channel::{Channel, Received};
use crate::control::ControlSocket;
use crate::drainable::Drainable;
use crate::error::{Error, Result};
use crate::events;
use crate::process::Process;
use crate::sys::fork::StaysHere;
use crate::timers::Timers;
use crate::waker::Waker;
use crate::worker::{Bench, Jobs};

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
    machine: Checked<IncumbentMachine>,
    pub(super) timers: Timers<Alarm>,
    pub(super) sessions: Vec<Session>,
    next_session: u64,
    pub(super) control: ControlSocket,
    pub(super) path_watch: PathWatch,
    /// The lock is ours, and with it the path.
    pub(super) owns_path: bool,
    accepting: Accepting,
    pub(super) lock: Arc<Mutex<LockSlot>>,
    pub(super) jobs: Jobs,
    pub(super) hooks: Hooks,
    /// What a thread is waiting for now.
    pub(super) watched: Option<Watch>,
    waker: Waker,
    pub(super) drainable: Arc<dyn Drainable>,
    pub(super) successor: Option<Process>,
    pub(super) asked: Option<Channel>,
    /// To the supervisor that this process was the successor of: closed early, it would look like a death.
    parting: Option<Channel>,
    pub(super) build_id: Vec<u8>,
    /// What local effects have brought: the machine's next inputs.
    pub(super) results: VecDeque<Input>,
    pub(super) left: Option<Leaving>,
    failure: Failure,
    poll_failures: u32,
}

/// Why the loop can't go on.
enum Failure {
    None,
    Found(Error),
    /// The caller has it.
    Told,
}

/// One client.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) channel: Channel,
    /// The end of the direct channel that came with its last `TransferChannel`.
    pub(super) transfer: Option<StaysHere>,
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

impl Driver {
    /// Makes everything that a handover needs ahead of it. Nothing here can fail: this process serves already.
    pub(super) fn new(incumbent: Incumbent, drainable: Arc<dyn Drainable>) -> (Self, Bench, IdleWorker) {
        let Incumbent { control, lock, build_id, timing, worker, parting } = incumbent;
        let owner = lock.lease().owner;
        let me = ProcessId { pid: owner.pid, start_time: owner.start_time };
        let config = Config { me, epoch: lock.epoch(), build_id: build_id.clone(), timing };
        let lock = Arc::new(Mutex::new(LockSlot::new(lock)));
        let waker = worker.waker();
        let hooks = InItsPlace { hooks: Arc::clone(&drainable), lock: Arc::clone(&lock) };
        let (jobs, bench) = Jobs::new(Arc::new(hooks), waker.clone());
        let path_watch = PathWatch::new(control.path());
        let mut driver = Self {
            machine: Checked::new(IncumbentMachine::new(config)),
            timers: Timers::new(),
            sessions: Vec::new(),
            next_session: 0,
            control,
            path_watch,
            owns_path: true,
            accepting: Accepting::Open,
            lock,
            jobs,
            hooks: Hooks::Idle,
            watched: None,
            waker,
            drainable,
            successor: None,
            asked: None,
            parting,
            build_id,
            results: VecDeque::new(),
            left: None,
            failure: Failure::None,
            poll_failures: 0,
        };
        driver.catch_up();
        driver.path_changed();
        (driver, bench, worker)
    }

    /// Whether nothing more is to be done.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_some() || !matches!(self.failure, Failure::None)
    }

    /// How it ended, if it did.
    pub(super) fn take_end(&mut self) -> Option<Result<Served>> {
        if let failure @ Failure::Found(_) = &mut self.failure
            && let Failure::Found(error) = std::mem::replace(failure, Failure::Told)
        {
            return Some(Err(error));
        }
        self.left.as_ref().map(|leaving| match leaving {
            Leaving::Committed => Ok(Served::Committed),
            Leaving::Superseded => Ok(Served::Superseded),
            Leaving::NotReadable(reason) => Err(Error::StateNotReadable { reason: reason.clone() }),
        })
    }

    /// The library's thread is gone: nobody could drain.
    pub(super) fn hooks_are_gone(&mut self) {
        self.hooks = Hooks::Gone;
        if !self.is_over() {
            self.failure = Failure::Found(Error::Usage("the thread of the hooks is lost".into()));
        }
    }

    pub(super) fn lock_slot(&self) -> MutexGuard<'_, LockSlot> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an owner of the lock owes who goes on serving, and nobody waits for: to name itself to people, and to keep a later
    /// claim from having to wait for the disk.
    pub(super) fn catch_up(&mut self) {
        let slot = Arc::clone(&self.lock);
        let errand = move || {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.announce();
            if let Err(error) = slot.reserve_epochs() {
                events::warn!(error, "epochs could not be reserved ahead");
            }
        };
        self.jobs.run_errand(errand);
    }

    /// What is to be waited for now.
    pub(super) fn watch(&self) -> Watch {
        let until = if self.has_unread() { Until::Now } else { self.timers.next_ns().map_or(Until::Never, Until::At) };
        let mut watch = Watch::new(until);
        watch.add(What::Waker, self.waker.polled(), PollFlags::IN);
        let accept_events = match self.accepting {
            Accepting::Open => PollFlags::IN,
            Accepting::Resting => PollFlags::empty(),
        };
        watch.add(What::Clients, self.control.polled(), accept_events);
        for session in &self.sessions {
            let write = if session.channel.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            watch.add(What::Session(session.id), session.channel.polled(), PollFlags::IN | write);
        }
        // Beside a hook, and once the lock is given away, the path is looked at later: it is the successor's to take.
        if let Some(inotify) = self.path_watch.polled().filter(|_| self.owns_path && self.is_idle()) {
            watch.add(What::Path, inotify, PollFlags::IN);
        }
        if let Some(successor) = &self.successor {
            watch.add(What::Successor(successor.pid()), successor.polled(), PollFlags::IN);
        }
        if let Some(asked) = &self.asked {
            watch.add(What::Asked, asked.polled(), PollFlags::IN);
        }
        if let Some(parting) = &self.parting {
            let write = if parting.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            watch.add(What::Parting, parting.polled(), PollFlags::IN | write);
        }
        watch
    }

    /// No hook runs or is about to.
    fn is_idle(&self) -> bool {
        self.hooks == Hooks::Idle && self.jobs.is_empty()
    }

    fn count_failure(&mut self, error: Option<io::Error>) {
        match error {
            None => self.poll_failures = 0,
            Some(error) if self.poll_failures < POLL_FAILURES_MAX => {
                events::warn!(%error, "the control loop could not wait");
                self.poll_failures += 1;
            }
            Some(error) => self.failure = Failure::Found(Error::io("wait in the control loop", error)),
        }
    }

    fn has_unread(&self) -> bool {
        self.sessions.iter().any(|session| session.reading == Reading::AtOnce || session.writing == Writing::Failed)
    }

    /// Feeds what has arrived, and only then what has run out.
    pub(super) fn turn(&mut self, found: io::Result<Found>) {
        // After a failure everything is looked at, as no call here blocks; but nobody is taken for dead.
        let (found, exited, error) = match found {
            Ok(found) => {
                let exited = self.successor.as_ref().is_some_and(|it| found.has(What::Successor(it.pid())));
                (found, exited, None)
            }
            Err(error) => (self.watch().all(), false, Some(error)),
        };
        self.count_failure(error);
        if self.timers.woke_late() {
            self.feed(Input::WokeLate);
        }
        if found.has(What::Waker) {
            self.take_progress();
        }
        let is_ready = |session: &&Session| session.reading == Reading::AtOnce || found.has(What::Session(session.id));
        let ready: Vec<SessionId> = self.sessions.iter().filter(is_ready).map(|session| session.id).collect();
        for id in ready {
            self.serve_session(id);
        }
        self.close_unwritable();
        if exited {
            self.successor = None;
            self.feed(Input::SuccessorExited);
        }
        if found.has(What::Asked) {
            self.take_answer();
        }
        if found.has(What::Parting) {
            self.part();
        }
        if found.has(What::Path) {
            self.path_watch.drain();
            self.path_changed();
        }
        if self.accepting == Accepting::Open && found.has(What::Clients) {
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

    fn take_progress(&mut self) {
        self.waker.drain();
        if let Some(progress) = self.jobs.take_progress() {
            self.feed(progress);
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
                Received::Message { version, message, fds } => {
                    // What comes with any other message is for nobody, and closed.
                    if let Message::TransferChannel { .. } = message {
                        session.transfer = fds.into_iter().next().map(StaysHere::from);
                    }
                    self.feed(Input::Received(id, version, message));
                }
                Received::Nothing => return,
                Received::Closed => return self.closed(id),
                Received::Malformed(error) => {
                    events::warn!(session = id.0, %error, "a client sent what is no message");
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
                    events::warn!(%error, "a client has to wait");
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
        self.sessions.push(Session { id: session, channel, transfer: None, writing, reading });
        self.feed(Input::Connected { session, peer_pid });
    }

    fn path_changed(&mut self) {
        if !self.control.is_published() {
            self.feed(Input::ControlPathLost);
        }
    }

    /// Tells the supervisor the rest of the Ready, until it hangs up. It has nothing more to say.
    fn part(&mut self) {
        let Some(parting) = &mut self.parting else { return };
        let told = parting.flush();
        for _ in 0..MESSAGES_PER_TURN_MAX {
            match (parting.receive(), &told) {
                (Received::Message { .. }, _) => {}
                (Received::Nothing, Ok(())) => return,
                (Received::Nothing, Err(_)) | (Received::Closed | Received::Malformed(_), _) => break,
            }
        }
        self.parting = None;
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
