//! The successor N: owns nothing until `Begin`, then takes the lock, opens the data, and becomes the incumbent.
//!
//! ```text
//!        Handshake            HelloAck                 Begin / BeginWith
//!  New ────────────▶ Greeting ────────▶ Waiting ───────────────┬───────────────▶ Begun
//!                       │                  │   the daemon asks │ later             │ Lock
//!                       │                  │                   ▼                   ▼
//!                       │                  │                Called ──▶ Begun    Locking  TryLock ⇄ pause,
//!                       │                  │                   │                   │     look, ClaimLease
//!                       ▼                  ▼                   ▼                   ▼
//!                      Left ◀────────────────────────────────────────────────── Opening
//!                       ▲  Abort, deadline, not its turn, unfit,                   │ Announce
//!                       │  a failed step, dropped; before Begin                    ▼
//!                       │  also a supervisor that is gone or silent            Announcing  StageControl,
//!                       └──────────────────────────────────────────────────────────┤     PublishControl,
//!                                                                                  ▼     ActivateLease
//!                                              Over ◀── the supervisor hangs up ─ Active, then Ready
//! ```
//!
//! What it never does (promises 3 and 5): write without the lock; go on under a lease that is not the one it was sent for;
//! become Active when unfit or late; report itself healthy before its lease is Active; let a broken channel stop it once
//! it was told to begin. The decision about the lease is made on what was read under the lock.
//!
//! An [`Errand`] is an act on the file system. At most one is under way; its [`Outcome`] comes back as an input, and other
//! inputs may come in between. Errands come last in a step, so a driver can run them where they block nobody.

mod inputs;
mod turn;
mod why;

pub use inputs::{
    Age, Answer, Call, Effect, Errand, Found, Input, LockShown, Milestone, Outcome, Report, Sealed, Timer, Wire,
};
pub use why::{GaveUp, Unfit};

use std::time::Duration;

use crate::machine::{Machine, Timing};
use crate::message::{BeginMode, Capabilities, Message, Side, short_name};
use crate::revisions::Parts;
use crate::version::{PROTO_MAX, PROTO_MIN};
use turn::{Order, Session, Turn};

/// The lock is normally free when `Begin` arrives; the first pauses are short for when its holder is just leaving.
const LOCK_PAUSE_FIRST: Duration = Duration::from_micros(200);
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(2);

/// The machine of the successor. See the module for its states.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Successor {
    pid: u32,
    build_id: Vec<u8>,
    timing: Timing,
    link: Link,
    state: State,
}

/// Whether the supervisor can still be told anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Link {
    Up,
    Down,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    New,
    Greeting,
    Waiting { session: Session, daemon: Daemon, parts: Parts },
    Called { turn: Turn },
    Begun { turn: Turn },
    Locking { turn: Turn, attempt: Attempt },
    Opening { turn: Turn, epoch: u64, pace: Pace },
    Announcing { turn: Turn, report: Report, stage: Stage },
    Active,
    Over,
    Left { why: GaveUp },
}

/// How far the daemon is while nobody has said `Begin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Daemon {
    Warming,
    Warmed,
    Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Attempt {
    Trying { pause: Duration },
    Pausing { pause: Duration },
    Claiming { mode: BeginMode },
}

/// When the next word of progress may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pace {
    AtOnce,
    OnTimer,
    /// On the timer, and there is one.
    Waiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Staging,
    Publishing,
    Activating,
}

/// What an input that belongs to no particular step comes to.
enum Verdict {
    Stay,
    Leave(GaveUp),
}

impl Machine for Successor {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        let state = std::mem::replace(&mut self.state, State::Over);
        self.state = match state {
            State::New => self.when_new(input, &mut out),
            State::Greeting => self.when_greeting(input, &mut out),
            State::Waiting { session, daemon, parts } => self.when_waiting(session, daemon, parts, input, &mut out),
            State::Called { turn } => self.when_called(turn, input, &mut out),
            State::Begun { turn } => self.when_begun(turn, input, &mut out),
            State::Locking { turn, attempt } => self.when_locking(turn, attempt, input, &mut out),
            State::Opening { turn, epoch, pace } => self.when_opening(turn, epoch, pace, input, &mut out),
            State::Announcing { turn, report, stage } => self.when_announcing(turn, report, stage, input, &mut out),
            State::Active => self.when_active(input, &mut out),
            State::Over => when_over(input, &mut out),
            State::Left { why } => when_left(why, input, &mut out),
        };
        out
    }
}

impl Successor {
    /// A successor that has said nothing yet.
    pub fn new(pid: u32, build_id: Vec<u8>, timing: Timing) -> Self {
        Self { pid, build_id, timing, link: Link::Up, state: State::New }
    }

    /// Whether no wire and no timer can change anything any more.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over | State::Left { .. })
    }

    /// Whether it has become the incumbent.
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Active | State::Over)
    }

    fn when_new(&mut self, input: Input, out: &mut Vec<Effect>) -> State {
        match input {
            Input::Daemon(Call::Handshake) => {
                out.push(Effect::Reached(Milestone::Starting));
                out.push(Effect::Send(PROTO_MIN, self.hello()));
                out.push(Effect::Arm(Timer::Hello, self.timing.hello));
                State::Greeting
            }
            Input::Daemon(call) => match call.parting() {
                Some(why) => self.leave(None, why, out),
                None => misuse(State::New, out),
            },
            Input::Wire(_) | Input::Did(_) | Input::Fired(_) | Input::WokeLate | Input::Progressed => State::New,
        }
    }

    fn hello(&self) -> Message {
        Message::Hello {
            role: Side::Successor,
            pid: self.pid,
            build_id: self.build_id.clone(),
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            capabilities: Capabilities::OURS,
        }
    }

    fn when_greeting(&mut self, input: Input, out: &mut Vec<Effect>) -> State {
        let why = match input {
            Input::Wire(Wire::Message(Message::HelloAck { proto_version_chosen: version, handoff_id })) => {
                if (PROTO_MIN..=PROTO_MAX).contains(&version) {
                    return self.greeted(Session { version, handoff_id }, out);
                }
                GaveUp::Version { chosen: version }
            }
            Input::Wire(Wire::Message(Message::Abort { reason, .. })) => GaveUp::Aborted { reason },
            Input::Wire(Wire::Message(Message::Heartbeat { .. })) => return State::Greeting,
            Input::Wire(Wire::Message(other)) => GaveUp::Unexpected { message: short_name(&other) },
            Input::Wire(Wire::Garbage) => GaveUp::Garbage,
            Input::Wire(Wire::Closed) => GaveUp::SupervisorGone,
            Input::Fired(Timer::Hello) => GaveUp::SupervisorSilent,
            Input::WokeLate => {
                out.push(Effect::Arm(Timer::Hello, self.timing.hello));
                return State::Greeting;
            }
            Input::Daemon(call) => match call.parting() {
                Some(why) => why,
                None => return misuse(State::Greeting, out),
            },
            Input::Fired(_) | Input::Did(_) | Input::Progressed => return State::Greeting,
        };
        self.leave_call(None, why, out)
    }

    fn greeted(&mut self, session: Session, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Disarm(Timer::Hello));
        out.push(Effect::Reached(Milestone::Greeted(session.handoff_id)));
        out.push(Effect::Arm(Timer::Supervisor, self.timing.deadline_max));
        // A supervisor of version 1 reads nothing before `Begin`: heartbeats would fill its socket.
        if session.version >= 2 {
            out.push(Effect::Arm(Timer::Heartbeat, self.timing.heartbeat));
        }
        out.push(Effect::Answer(Answer::Greeted { handoff_id: session.handoff_id, version: session.version }));
        State::Waiting { session, daemon: Daemon::Warming, parts: Parts::default() }
    }

    fn when_waiting(
        &mut self,
        session: Session,
        mut daemon: Daemon,
        mut parts: Parts,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        let why = match input {
            Input::Wire(Wire::Message(message)) => match self.heard_waiting(session, &mut parts, message, out) {
                Ok(Some(turn)) => return self.begin(turn, daemon, out),
                Ok(None) => return State::Waiting { session, daemon, parts },
                Err(why) => why,
            },
            Input::Wire(Wire::Garbage) => GaveUp::Garbage,
            Input::Wire(Wire::Closed) => GaveUp::SupervisorGone,
            Input::Fired(Timer::Supervisor) => GaveUp::SupervisorSilent,
            Input::Fired(Timer::Heartbeat) => {
                self.beat(session, out);
                return State::Waiting { session, daemon, parts };
            }
            Input::WokeLate => {
                out.push(Effect::Arm(Timer::Supervisor, self.timing.deadline_max));
                return State::Waiting { session, daemon, parts };
            }
            Input::Daemon(call) => match call.parting() {
                Some(why) => why,
                None => {
                    daemon = self.called_waiting(session, daemon, &call, out);
                    return State::Waiting { session, daemon, parts };
                }
            },
            Input::Fired(_) | Input::Did(_) | Input::Progressed => return State::Waiting { session, daemon, parts },
        };
        // Before its turn a closed channel says enough; the daemon's own words are worth a message.
        let told = matches!(why, GaveUp::Daemon { .. }).then_some(session);
        match daemon {
            Daemon::Asked => self.leave_call(told, why, out),
            Daemon::Warming | Daemon::Warmed => self.leave(told, why, out),
        }
    }

    /// A message while nobody has said `Begin`: the order to begin, nothing, or the end.
    fn heard_waiting(
        &self,
        session: Session,
        parts: &mut Parts,
        message: Message,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Turn>, GaveUp> {
        let unexpected = GaveUp::Unexpected { message: short_name(&message) };
        if message.since_version() > session.version {
            return Err(unexpected);
        }
        let order = match message {
            Message::Heartbeat { .. } => None,
            Message::Revisions { first_shard, revisions } => {
                parts.push(first_shard, &revisions).map_err(|_| unexpected)?;
                None
            }
            Message::Abort { handoff_id, reason } if handoff_id == session.handoff_id => {
                return Err(GaveUp::Aborted { reason });
            }
            Message::Begin { handoff_id } if handoff_id == session.handoff_id => Some(Order::Begin),
            Message::BeginWith {
                handoff_id,
                mode,
                sealed_revision_per_shard: rest,
                data_dir_fingerprint,
                epoch,
                deadline_ns,
                open_ms,
            } if handoff_id == session.handoff_id => {
                let sealed = Sealed { last_revision_per_shard: parts.complete(&rest), data_dir_fingerprint };
                Some(Order::BeginWith { mode, sealed, epoch, deadline_ns, open_ms })
            }
            _ => return Err(unexpected),
        };
        if order.is_none() {
            out.push(Effect::Arm(Timer::Supervisor, self.timing.deadline_max));
        }
        Ok(order.map(|order| Turn { session, order }))
    }

    fn called_waiting(&self, session: Session, daemon: Daemon, call: &Call, out: &mut Vec<Effect>) -> Daemon {
        if matches!((call, daemon), (Call::Warmed | Call::WaitForBegin, Daemon::Warming)) {
            if session.version >= 2 {
                out.push(Effect::Send(session.version, Message::Warmed { handoff_id: session.handoff_id }));
            }
            out.push(Effect::Reached(Milestone::Warmed));
        }
        match (call, daemon) {
            (Call::WaitForBegin, Daemon::Warming | Daemon::Warmed) => Daemon::Asked,
            (Call::Warmed, Daemon::Warming | Daemon::Warmed) => {
                out.push(Effect::Answer(Answer::Done));
                Daemon::Warmed
            }
            (_, _) => {
                out.push(Effect::Answer(Answer::Misuse));
                daemon
            }
        }
    }

    fn begin(&mut self, turn: Turn, daemon: Daemon, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Disarm(Timer::Supervisor));
        out.push(Effect::Reached(Milestone::Begun));
        out.push(match turn.deadline_ns() {
            Some(deadline_ns) => Effect::ArmAt(Timer::Deadline, deadline_ns),
            None => Effect::Arm(Timer::Deadline, self.timing.deadline_max),
        });
        if turn.session.version < 2 {
            out.push(Effect::Arm(Timer::Heartbeat, self.timing.heartbeat));
        }
        match daemon {
            Daemon::Asked => {
                out.push(Effect::Answer(turn.answer()));
                State::Begun { turn }
            }
            Daemon::Warming | Daemon::Warmed => State::Called { turn },
        }
    }

    fn when_called(&mut self, turn: Turn, input: Input, out: &mut Vec<Effect>) -> State {
        match input {
            Input::Daemon(Call::WaitForBegin) => {
                out.push(Effect::Answer(turn.answer()));
                State::Begun { turn }
            }
            Input::Daemon(Call::Warmed) => {
                out.push(Effect::Answer(Answer::Done));
                State::Called { turn }
            }
            Input::Daemon(Call::Handshake | Call::Lock | Call::Announce { .. }) => misuse(State::Called { turn }, out),
            other => match self.on_the_way(turn.session, other, out) {
                Verdict::Stay => State::Called { turn },
                Verdict::Leave(why) => self.leave(Some(turn.session), why, out),
            },
        }
    }

    fn when_begun(&mut self, turn: Turn, input: Input, out: &mut Vec<Effect>) -> State {
        match input {
            Input::Daemon(Call::Lock) => {
                out.push(Effect::Do(Errand::TryLock));
                State::Locking { turn, attempt: Attempt::Trying { pause: LOCK_PAUSE_FIRST } }
            }
            Input::Daemon(Call::Announce { .. }) => self.leave_call(Some(turn.session), GaveUp::WrongLock, out),
            Input::Daemon(Call::Handshake | Call::Warmed | Call::WaitForBegin) => misuse(State::Begun { turn }, out),
            other => match self.on_the_way(turn.session, other, out) {
                Verdict::Stay => State::Begun { turn },
                Verdict::Leave(why) => self.leave(Some(turn.session), why, out),
            },
        }
    }

    fn when_locking(&mut self, turn: Turn, attempt: Attempt, input: Input, out: &mut Vec<Effect>) -> State {
        let why = match (attempt, input) {
            (Attempt::Trying { pause }, Input::Did(Outcome::Held(found))) => {
                if !turn.is_overtaken(&found) {
                    out.push(Effect::Arm(Timer::LockRetry, pause));
                    return State::Locking { turn, attempt: Attempt::Pausing { pause } };
                }
                turn.not_its_turn(&found)
            }
            (Attempt::Pausing { pause }, Input::Fired(Timer::LockRetry)) => {
                let pause = (pause * 2).min(LOCK_PAUSE_MAX);
                out.push(Effect::Do(Errand::TryLock));
                return State::Locking { turn, attempt: Attempt::Trying { pause } };
            }
            (Attempt::Trying { .. }, Input::Did(Outcome::Locked(found))) => {
                if turn.has_come(&found) {
                    out.push(Effect::Do(Errand::ClaimLease { handoff_id: turn.session.handoff_id }));
                    let mode = turn.mode_under_the_lock(&found);
                    return State::Locking { turn, attempt: Attempt::Claiming { mode } };
                }
                let left = self.leave_call(Some(turn.session), turn.not_its_turn(&found), out);
                out.push(Effect::Do(Errand::Unlock));
                return left;
            }
            (Attempt::Claiming { mode }, Input::Did(Outcome::Claimed { epoch })) => {
                out.push(Effect::Reached(Milestone::Locked { epoch }));
                out.push(Effect::Answer(Answer::Locked { mode }));
                return State::Opening { turn, epoch, pace: Pace::AtOnce };
            }
            (Attempt::Trying { .. } | Attempt::Claiming { .. }, Input::Did(Outcome::Failed { reason })) => {
                GaveUp::StepFailed { reason }
            }
            (Attempt::Trying { .. } | Attempt::Pausing { .. }, Input::Fired(Timer::Deadline)) => GaveUp::LockHeld,
            (attempt, Input::Daemon(call)) if call.parting().is_none() => {
                return misuse(State::Locking { turn, attempt }, out);
            }
            (attempt, other) => match self.on_the_way(turn.session, other, out) {
                Verdict::Stay => return State::Locking { turn, attempt },
                Verdict::Leave(why) => why,
            },
        };
        self.leave_call(Some(turn.session), why, out)
    }

    fn when_opening(&mut self, turn: Turn, epoch: u64, pace: Pace, input: Input, out: &mut Vec<Effect>) -> State {
        match input {
            Input::Progressed | Input::Fired(Timer::Progress) => {
                let pace = self.report_progress(&turn, pace, &input, out);
                State::Opening { turn, epoch, pace }
            }
            Input::Daemon(Call::Announce { report, lock }) => {
                out.push(Effect::Reached(Milestone::Announcing));
                let claimed = LockShown { epoch, handoff_id: Some(turn.session.handoff_id) };
                let why =
                    if lock == claimed { turn.unfit(&report).map(GaveUp::Unfit) } else { Some(GaveUp::WrongLock) };
                if let Some(why) = why {
                    return self.leave_call(Some(turn.session), why, out);
                }
                out.push(Effect::Do(Errand::StageControl));
                State::Announcing { turn, report, stage: Stage::Staging }
            }
            Input::Daemon(Call::Handshake | Call::Warmed | Call::WaitForBegin | Call::Lock) => {
                misuse(State::Opening { turn, epoch, pace }, out)
            }
            other => match self.on_the_way(turn.session, other, out) {
                Verdict::Stay => State::Opening { turn, epoch, pace },
                Verdict::Leave(why) => self.leave(Some(turn.session), why, out),
            },
        }
    }

    /// It gets on with its opening: the supervisor hears so, at most once in an interval.
    fn report_progress(&self, turn: &Turn, pace: Pace, input: &Input, out: &mut Vec<Effect>) -> Pace {
        let Some(interval) = turn.progress_interval().filter(|_| self.link == Link::Up) else { return pace };
        match (pace, input) {
            (Pace::OnTimer | Pace::Waiting, Input::Progressed) => Pace::Waiting,
            (Pace::AtOnce | Pace::OnTimer, Input::Fired(_)) => Pace::AtOnce,
            (Pace::AtOnce | Pace::Waiting, _) => {
                let progress = Message::OpenProgress { handoff_id: turn.session.handoff_id };
                out.push(Effect::Send(turn.session.version, progress));
                out.push(Effect::Arm(Timer::Progress, interval));
                Pace::OnTimer
            }
            (Pace::OnTimer, _) => pace,
        }
    }

    fn when_announcing(
        &mut self,
        turn: Turn,
        report: Report,
        stage: Stage,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        let why = match (stage, input) {
            (Stage::Staging, Input::Did(Outcome::Done)) => {
                out.push(Effect::Do(Errand::PublishControl));
                return State::Announcing { turn, report, stage: Stage::Publishing };
            }
            (Stage::Publishing, Input::Did(Outcome::Done)) => {
                out.push(Effect::Do(Errand::ActivateLease { not_after_ns: turn.deadline_ns() }));
                return State::Announcing { turn, report, stage: Stage::Activating };
            }
            (Stage::Activating, Input::Did(Outcome::Done)) => return self.activated(&turn, report, out),
            (Stage::Activating, Input::Did(Outcome::TooLate)) => GaveUp::Late,
            (_, Input::Did(Outcome::Failed { reason })) => GaveUp::StepFailed { reason },
            (stage, Input::Daemon(call)) if call.parting().is_none() => {
                return misuse(State::Announcing { turn, report, stage }, out);
            }
            (stage, other) => match (stage, self.on_the_way(turn.session, other, out)) {
                // Whether it is Active is being settled at this moment, and only the lease's write can say how.
                (Stage::Activating, _) | (_, Verdict::Stay) => {
                    return State::Announcing { turn, report, stage };
                }
                (_, Verdict::Leave(why)) => why,
            },
        };
        self.leave_call(Some(turn.session), why, out)
    }

    fn activated(&mut self, turn: &Turn, report: Report, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Disarm(Timer::Deadline));
        out.push(Effect::Disarm(Timer::Heartbeat));
        out.push(Effect::Reached(Milestone::Active));
        if self.link == Link::Up {
            let (ahead, ready) = turn.ready(report);
            out.extend(ahead.into_iter().map(|part| Effect::Send(turn.session.version, part)));
            out.push(Effect::Send(turn.session.version, ready));
            out.push(Effect::Reached(Milestone::Ready));
        }
        out.push(Effect::Answer(Answer::Announced));
        match self.link {
            Link::Up => State::Active,
            Link::Down => State::Over,
        }
    }

    /// It serves. The channel stays open for the supervisor's sake: closed early, it would look like a death.
    fn when_active(&mut self, input: Input, out: &mut Vec<Effect>) -> State {
        match input {
            Input::Wire(Wire::Closed | Wire::Garbage) => {
                self.hang_up(out);
                State::Over
            }
            Input::Daemon(call) if call.parting().is_none() => misuse(State::Active, out),
            Input::Wire(Wire::Message(_))
            | Input::Daemon(_)
            | Input::Did(_)
            | Input::Fired(_)
            | Input::WokeLate
            | Input::Progressed => State::Active,
        }
    }

    /// What means the same in every state after `Begin`: a broken or misbehaving supervisor is done without.
    fn on_the_way(&mut self, session: Session, input: Input, out: &mut Vec<Effect>) -> Verdict {
        match input {
            Input::Wire(Wire::Message(Message::Abort { handoff_id, reason })) if handoff_id == session.handoff_id => {
                return Verdict::Leave(GaveUp::Aborted { reason });
            }
            Input::Wire(Wire::Message(Message::Heartbeat { .. })) => {}
            Input::Wire(_) => self.hang_up(out),
            Input::Fired(Timer::Heartbeat) => self.beat(session, out),
            Input::Fired(Timer::Deadline) => return Verdict::Leave(GaveUp::Late),
            Input::Daemon(call) => return call.parting().map_or(Verdict::Stay, Verdict::Leave),
            Input::Fired(_) | Input::Did(_) | Input::WokeLate | Input::Progressed => {}
        }
        Verdict::Stay
    }

    fn beat(&self, session: Session, out: &mut Vec<Effect>) {
        if self.link == Link::Up {
            out.push(Effect::Heartbeat(session.version));
            out.push(Effect::Arm(Timer::Heartbeat, self.timing.heartbeat));
        }
    }

    fn hang_up(&mut self, out: &mut Vec<Effect>) {
        if self.link == Link::Up {
            self.link = Link::Down;
            out.push(Effect::HangUp);
        }
    }

    /// Leaves while the daemon waits for an answer.
    fn leave_call(&mut self, session: Option<Session>, why: GaveUp, out: &mut Vec<Effect>) -> State {
        let left = self.leave(session, why.clone(), out);
        out.push(Effect::Answer(Answer::GaveUp(why)));
        left
    }

    /// Leaves. Once its turn has come, the supervisor hears at once that nothing will come of it, and why.
    fn leave(&mut self, session: Option<Session>, why: GaveUp, out: &mut Vec<Effect>) -> State {
        if let Some(session) = session
            && self.link == Link::Up
            && session.tells(&why)
        {
            out.push(Effect::Send(session.version, session.not_ready(&why)));
        }
        self.hang_up(out);
        out.push(Effect::Reached(Milestone::Left(why.clone())));
        State::Left { why }
    }
}

/// A call that the daemon's handles do not allow at this point.
fn misuse(state: State, out: &mut Vec<Effect>) -> State {
    out.push(Effect::Answer(Answer::Misuse));
    state
}

fn when_over(input: Input, out: &mut Vec<Effect>) -> State {
    match input {
        Input::Daemon(call) if call.parting().is_none() => misuse(State::Over, out),
        _ => State::Over,
    }
}

/// It has given up; what an errand still brings home is given back.
fn when_left(why: GaveUp, input: Input, out: &mut Vec<Effect>) -> State {
    match input {
        Input::Did(Outcome::Locked(_) | Outcome::Claimed { .. }) => out.push(Effect::Do(Errand::Unlock)),
        Input::Daemon(call) if call.parting().is_none() => out.push(Effect::Answer(Answer::GaveUp(why.clone()))),
        Input::Daemon(_) | Input::Wire(_) | Input::Did(_) | Input::Fired(_) | Input::WokeLate | Input::Progressed => {}
    }
    State::Left { why }
}
