//! The incumbent's machine: it owns the data until it is told to hand over, and it comes back unless somebody else owns them.
//!
//! It decides when to drain, to seal, to release the lock, to leave, and above all when to serve again. It never touches a
//! descriptor, a clock or the data: its driver performs the effects in order and reports each result as an input.
//!
//! ```text
//! forward   Serving ─Prepare─► Stamping ─► Draining ─► Drained ─SealRequest─► Sealing ─► Releasing ─► Sealed
//!           Sealed ─Commit─► Committing ─► Left (committed), unless our seal is the last word and the lock is free
//!
//! back      on Abort, ResumeAfterAbort, EOF, violation, silence, the deadline, a failed hook or a failed lease write:
//!           Stamping ─► Serving
//!           Draining, Sealing ─► Cancelling ─the hook has returned─► Resuming
//!           Drained, Releasing, a failed hook ─► Resuming
//!           Sealed ─► Reading (limbo)
//!           Resuming ─ok─► Serving
//!              │ ▲ └─"state not readable"─► unlock, Left
//!              ▼ │ timer
//!           ResumeFailed ─Prepare─► Stamping
//!
//! limbo     Waiting ─timer, or N ends─► Reading ─the lease permits─► Locking ─ours, and it still does─► Claiming
//!              ▲                          │ │                           │                                  ▼
//!              │                          │ └─our N is Active─► Finding ─┘ held                        Activating
//!              │                          └─another owner─► Left           │                               ▼
//!              └──────────────────────────────────────────────────────────┤                           Resuming
//!                           the lease is our own seal: Asking on the path ─┤─another pid answers─► Left
//!                           our own N is late: Ending: stop it, look, and kill it or let it go on
//! ```
//!
//! **The lock.** Held in every state but `Sealed`, `Committing`, limbo up to `Locking`, and `Left`; in `Releasing` until the
//! result comes. Hooks run only while it is held, one at a time. After a drain the state is never `Serving` again before a
//! resume has succeeded, and a resume that has succeeded is not repeated (promise 9).
//!
//! **Local results come first.** The effects that name a result in their documentation are answered by the very next input.
//! An order of the peer in between is out of turn: it costs the session, and the handover is undone once the result is there.

mod holding;
mod interface;
mod limbo;
mod sessions;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use interface::{
    Config, Directory, Drain, Effect, Input, Leaving, LockTried, Milestone, Progress, ResumeEnd, Seal, SessionId,
    Timer, Why,
};

use crate::machine::Machine;
use crate::message::{HandoffId, Message, Phase};
use crate::supervisor::Stopped;
use crate::version::ProtoVersion;

use holding::{Early, Pace};
use limbo::{CommitStep, UndoStep};
use sessions::Sessions;

/// The machine. See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incumbent {
    /// Its epoch is the one under which it last held the lock.
    config: Config,
    memory: Memory,
    daemon: Daemon,
    sessions: Sessions,
    state: State,
    /// A Prepare that waits until the handover before it is undone.
    pending: Option<Prepare>,
    heartbeat: Running,
    silence: Running,
    publish_tries: u8,
}

type Effects = Vec<Effect>;

/// Whether what the daemon has in memory is what is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Memory {
    Good,
    /// The lock was released, and no resume has succeeded since.
    Stale,
}

/// Whether the daemon was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Daemon {
    Serves,
    /// A drain was begun, and no resume has succeeded since.
    Drained,
}

/// Whether a timer that follows from the state is armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Running {
    Armed,
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Serving,
    /// The directory's lock is being passed, or the lease stamped.
    Stamping(Handover, Prepare),
    Draining(Handover, Early),
    Drained(Handover),
    Sealing(Handover, Pace),
    Releasing(Handover, Seal),
    Sealed(Handover),
    Committing(Handover, CommitStep),
    Undoing(Undo, UndoStep),
    Left,
}

/// A handover under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Handover {
    id: HandoffId,
    /// `None`: the session is lost.
    link: Option<Link>,
    successor: Successor,
    directory: Directory,
    /// The deadline and the slack have passed.
    late: Clock,
    /// What the next expiry of the deadline means.
    deadline_judges: Judging,
    /// What the next expiry of the slack means.
    late_judges: Judging,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Link {
    session: SessionId,
    version: ProtoVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Successor {
    /// It can't be watched, and so never be ended.
    Unwatched(u32),
    Watched(u32),
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Clock {
    InTime,
    Late,
}

/// Whether a timer that runs out is obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Judging {
    AtOnce,
    /// Our own loop was late: a fresh interval first.
    AfterFreshInterval,
}

/// A handover that is being undone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Undo {
    handover: Handover,
    reply: Reply,
    tries: u8,
}

/// What the supervisor is told about an undone handover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Reply {
    Nothing,
    Resumed,
    DrainFailed(String),
    SealFailed(String),
}

/// What a supervisor asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Prepare {
    link: Link,
    id: HandoffId,
    successor_pid: u32,
    deadline: Duration,
    grace: Duration,
    early: Early,
    channel: Channel,
}

/// Whether the supervisor has sent a direct channel to the successor ahead of its Prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Channel {
    None,
    Came,
}

impl Machine for Incumbent {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.state != State::Left {
            self.take(input, &mut out);
            self.settle(&mut out);
        }
        out
    }
}

impl Incumbent {
    /// An incumbent that serves: it holds the lock, its lease is Active.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            memory: Memory::Good,
            daemon: Daemon::Serves,
            sessions: Sessions::default(),
            state: State::Serving,
            pending: None,
            heartbeat: Running::Off,
            silence: Running::Off,
            publish_tries: 0,
        }
    }

    /// The epoch under which it last held the lock.
    pub fn epoch(&self) -> u64 {
        self.config.epoch
    }

    /// Whether it serves and no handover is under way or being undone.
    pub fn is_serving(&self) -> bool {
        self.state == State::Serving
    }

    /// Whether it has left.
    pub fn has_left(&self) -> bool {
        self.state == State::Left
    }

    /// Whether it believes that the lock is its own. A checker holds this against the real lock (promise 1).
    pub fn believes_to_hold_lock(&self) -> bool {
        match &self.state {
            State::Serving
            | State::Stamping(..)
            | State::Draining(..)
            | State::Drained(_)
            | State::Sealing(..)
            | State::Releasing(..) => true,
            State::Sealed(_) | State::Committing(..) | State::Left => false,
            State::Undoing(_, step) => step.holds_lock(),
        }
    }

    /// The phase for a `StatusReport`.
    fn phase(&self) -> Option<Phase> {
        match &self.state {
            State::Serving | State::Left => None,
            State::Stamping(..) | State::Draining(..) | State::Drained(_) => Some(Phase::Draining),
            State::Sealing(..) | State::Releasing(..) => Some(Phase::Sealing),
            State::Sealed(_) => Some(Phase::AwaitingReady),
            State::Committing(..) => Some(Phase::Committed),
            State::Undoing(..) => Some(Phase::ResumingAfterAbort),
        }
    }

    fn take(&mut self, input: Input, out: &mut Effects) {
        match input {
            Input::Connected { session, peer_pid } => self.connected(session, peer_pid, out),
            Input::Received(session, version, message) => self.received(session, version, message, out),
            Input::Malformed(session) => self.dismiss(session, Why::Violation, out),
            Input::Closed(session) => self.lost(session, out),
            Input::DrainEnded(result) => self.drain_ended(result, out),
            Input::SealProgress(progress) => self.seal_progressed(progress, out),
            Input::SealEnded(result) => self.seal_ended(result, out),
            Input::ResumeEnded(end) => self.resume_ended(end, out),
            Input::DirectoryPassed(result) => self.directory_passed(result, out),
            Input::Stamped(result) => self.stamped(result, out),
            Input::Released(result) => self.released(result, out),
            Input::LeaseRead(lease) => self.lease_read(lease, out),
            Input::HolderFound(holder) => self.holder_found(holder, out),
            Input::LockTried(tried) => self.lock_tried(tried, out),
            Input::Claimed(result) => self.claimed(result, out),
            Input::Activated(result) => self.activated(result, out),
            Input::SuccessorWatched => self.successor_watched(),
            Input::SuccessorExited => self.successor_exited(out),
            Input::SuccessorStopped => self.successor_seen(Stopped::Yes, out),
            Input::SuccessorRunning => self.successor_seen(Stopped::NotYet, out),
            Input::PathAnswered(pid) => self.path_answered(pid, out),
            Input::ControlPathLost => self.publish(out),
            Input::ControlPublished(result) => self.published(result, out),
            Input::Fired(timer) => self.fired(timer, out),
            Input::WokeLate => self.woke_late(out),
        }
    }

    fn fired(&mut self, timer: Timer, out: &mut Effects) {
        match timer {
            Timer::Session(session) => self.session_silent(session, out),
            Timer::Heartbeat => self.beat(out),
            Timer::Silence => self.supervisor_silent(out),
            Timer::Deadline => self.deadline_passed(out),
            Timer::Late => self.slack_passed(out),
            Timer::Progress => self.progress_due(out),
            Timer::Poll => self.poll_due(out),
            Timer::Stopping => self.stopping_due(out),
            Timer::Ask => self.path_answered(None, out),
            Timer::Retry => self.retry_due(out),
            Timer::Publish => self.publish(out),
        }
    }

    /// The control path must lead to us whenever the data are ours.
    fn publish(&mut self, out: &mut Effects) {
        if self.believes_to_hold_lock() {
            out.push(Effect::PublishControl);
        }
    }

    fn published(&mut self, result: Result<(), String>, out: &mut Effects) {
        match result {
            Ok(()) => self.publish_tries = 0,
            Err(_) => {
                out.push(Effect::Arm(Timer::Publish, backoff(self.publish_tries)));
                self.publish_tries = self.publish_tries.saturating_add(1);
            }
        }
    }

    fn woke_late(&mut self, out: &mut Effects) {
        self.sessions.greet_again(self.config.timing.hello, out);
        if self.silence == Running::Armed {
            out.push(Effect::Arm(Timer::Silence, self.config.timing.liveness));
        }
        if let Some(handover) = self.handover_mut() {
            handover.deadline_judges = Judging::AfterFreshInterval;
            handover.late_judges = Judging::AfterFreshInterval;
        }
    }

    fn beat(&mut self, out: &mut Effects) {
        if self.heartbeat == Running::Armed {
            for link in self.waiting_for_us() {
                self.show_life(link, out);
            }
            out.push(Effect::Arm(Timer::Heartbeat, self.config.timing.heartbeat));
        }
    }

    /// Sends a heartbeat, unless this process can't come back by itself: then whoever watches it must see it as frozen.
    fn show_life(&self, link: Link, out: &mut Effects) {
        if !self.is_stuck() {
            out.push(Effect::SendHeartbeat(link.session, link.version));
        }
    }

    /// Whether a cancelled hook has outlived the deadline and the slack. Nobody serves until it returns, if it ever does.
    fn is_stuck(&self) -> bool {
        matches!(&self.state, State::Undoing(undo, UndoStep::Cancelling) if undo.handover.late == Clock::Late)
    }

    /// Starts and stops the timers that follow from the state alone.
    fn settle(&mut self, out: &mut Effects) {
        let timing = self.config.timing;
        let beating = !self.waiting_for_us().is_empty();
        settle_timer(&mut self.heartbeat, beating, Timer::Heartbeat, timing.heartbeat, out);
        let listening = self.is_kept_waiting();
        settle_timer(&mut self.silence, listening, Timer::Silence, timing.liveness, out);
    }

    /// Who waits for us and is told that we are alive: nobody else can see how long a hook takes.
    fn waiting_for_us(&self) -> Vec<Link> {
        let busy = match &self.state {
            State::Draining(handover, _) | State::Sealing(handover, _) => handover.link,
            State::Undoing(undo, _) => undo.handover.link,
            State::Serving
            | State::Stamping(..)
            | State::Drained(_)
            | State::Releasing(..)
            | State::Sealed(_)
            | State::Committing(..)
            | State::Left => None,
        };
        let mut links: Vec<Link> = busy.into_iter().collect();
        if let Some(pending) = &self.pending
            && busy.is_none_or(|link| link.session != pending.link.session)
        {
            links.push(pending.link);
        }
        links
    }

    /// Whether the supervisor makes us wait, and speaks a version in which it then sends heartbeats.
    fn is_kept_waiting(&self) -> bool {
        match &self.state {
            State::Drained(handover) | State::Sealed(handover) => handover.link.is_some_and(|link| link.version >= 2),
            State::Serving
            | State::Stamping(..)
            | State::Draining(..)
            | State::Sealing(..)
            | State::Releasing(..)
            | State::Committing(..)
            | State::Undoing(..)
            | State::Left => false,
        }
    }

    fn handover(&self) -> Option<&Handover> {
        match &self.state {
            State::Serving | State::Left => None,
            State::Stamping(handover, _)
            | State::Draining(handover, _)
            | State::Drained(handover)
            | State::Sealing(handover, _)
            | State::Releasing(handover, _)
            | State::Sealed(handover)
            | State::Committing(handover, _) => Some(handover),
            State::Undoing(undo, _) => Some(&undo.handover),
        }
    }

    fn handover_mut(&mut self) -> Option<&mut Handover> {
        match &mut self.state {
            State::Serving | State::Left => None,
            State::Stamping(handover, _)
            | State::Draining(handover, _)
            | State::Drained(handover)
            | State::Sealing(handover, _)
            | State::Releasing(handover, _)
            | State::Sealed(handover)
            | State::Committing(handover, _) => Some(handover),
            State::Undoing(undo, _) => Some(&mut undo.handover),
        }
    }

    /// Takes the state out to build the next one from it; every caller puts one back.
    fn take_state(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Left)
    }

    fn leave(&mut self, leaving: Leaving, out: &mut Effects) {
        self.state = State::Left;
        out.push(Effect::Leave(leaving));
    }
}

impl Handover {
    fn version(&self) -> ProtoVersion {
        self.link.map_or(0, |link| link.version)
    }

    fn reached(&self, milestone: Milestone, out: &mut Effects) {
        out.push(Effect::Reached(self.id, milestone));
    }

    fn send(&self, message: Message, out: &mut Effects) {
        if let Some(link) = self.link {
            out.push(Effect::Send(link.session, link.version, message));
        }
    }

    fn send_with_next(&self, message: Message, out: &mut Effects) {
        if let Some(link) = self.link {
            out.push(Effect::SendWithNext(link.session, link.version, message));
        }
    }
}

fn settle_timer(running: &mut Running, wanted: bool, timer: Timer, after: Duration, out: &mut Effects) {
    match (*running, wanted) {
        (Running::Off, true) => {
            *running = Running::Armed;
            out.push(Effect::Arm(timer, after));
        }
        (Running::Armed, false) => {
            *running = Running::Off;
            out.push(Effect::Disarm(timer));
        }
        (Running::Off, false) | (Running::Armed, true) => {}
    }
}

/// 100 ms, doubled with every failure, at most 10 s.
fn backoff(tries: u8) -> Duration {
    Duration::from_millis(100u64 << tries.min(7)).min(Duration::from_secs(10))
}
