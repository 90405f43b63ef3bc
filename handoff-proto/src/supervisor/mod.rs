//! The supervisor's side of one handover: it starts the successor, lets the incumbent drain and seal, lets the successor
//! begin, checks it, and commits, or puts everything back. It never ends a successor that serves, and it says `Begin` only
//! to a successor whose turn it is.
//!
//! ```text
//!  Idle ─Start─▶ Connecting ─▶ GreetingIncumbent ─▶ Spawning ─▶ GreetingSuccessor ─▶ Preparing     intent journaled,
//!                     │                │                │               │                │          successor warmed
//!                     ▼                ▼                ▼               │                ▼ PrepareHandoff, SealRequest
//!                 refused: nothing was started, nothing to undo         │            Draining ──────────┐
//!                                                                       │                │ Drained      │ O died
//!                                                                       │                ▼              ▼
//!                                                                       │            Sealing ──────▶ Looking
//!                                                                       │                │ SealComplete ▲ │ the lease
//!                                                                       │                └──────────────┘ │ allows it
//!                                                                       │                                 ▼ Begin
//!                       Undoing ◀── any failure, cancel ────────────────┴───────────────────────── AwaitingReady
//!                          │  end N (stop, look, kill) and let O resume                                   │ checks
//!                          │                                                              (N of version 1)▼
//!                          │                                                                        AwaitingPath
//!                          │  N turned out to be Active: as good as Ready                                 │ Commit
//!                          ├─────────────────────────────────────────────────────────────────────────▶    ▼
//!                          └────────────────────────────────────────────────────────────────────────▶ Over
//! ```
//!
//! An incumbent of version 1 gets its `SealRequest` only when it has drained.
//!
//! What holds, as absences: it never reads a clock or a lease itself; it sends nothing but its greeting (and, in version 2,
//! heartbeats) to an incumbent before the intent is durable and the successor warmed; it never waits for the disk between
//! `PrepareHandoff` and `Commit`; it never sends `ResumeAfterAbort` while a successor that has begun may be alive.
//!
//! What its driver promises beyond [`crate::machine`]: everything that a peer had sent is given in before that peer's
//! [`Input::IncumbentGone`], [`Input::SuccessorGone`] or end of channel; the result of an effect is given in before anything
//! that happened later.

mod checks;
mod clock;
mod handover;
mod lost;
mod peer;
mod turn;
mod undo;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::lease::{LeaseView, ProcessId};
use crate::machine::{Machine, Timing};
use crate::message::{HandoffId, Message, Phase};
use crate::version::ProtoVersion;

use handover::Handover;

/// What a handover is to be like. The id is drawn outside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The handover's name.
    pub handoff_id: HandoffId,
    /// How long it may take, from `PrepareHandoff` on; at most [`Timing::deadline_max`].
    pub deadline: Duration,
    /// How long the drain may take; at most as long as the whole.
    pub drain_grace: Duration,
    /// How long a successor of version 2 may take from its greeting until it is warmed; at most [`Timing::deadline_max`].
    pub warm: Duration,
    /// How long a successor may go on opening its data without a word of progress.
    pub open: Duration,
    /// How long an incumbent may take to serve again once it was told to. One that needs longer counts as dead.
    pub resume: Duration,
    /// Whether the lease can be looked at.
    pub ownership: Ownership,
    /// What becomes of a frozen incumbent.
    pub watchdog: Watchdog,
    /// The incumbent of an earlier handover that ended with [`Standing::NotHeard`], until a later one ends otherwise.
    pub unheard: Option<ProcessId>,
}

impl Plan {
    /// No longer than what an incumbent agrees to; more would only let the two count differently.
    fn within(self, max: Duration) -> Self {
        let deadline = self.deadline.min(max);
        Self {
            deadline,
            drain_grace: self.drain_grace.min(deadline),
            warm: self.warm.min(max),
            open: self.open.min(deadline),
            ..self
        }
    }
}

/// Where the supervisor learns who owns the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// The data directory is known: its lease says it.
    ByLease,
    /// No data directory was given: only who answers on the control path is known.
    ByControlPath,
}

/// What becomes of an incumbent that is silent where heartbeats are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watchdog {
    /// It is ended and the successor promoted.
    Ends,
    /// It is left alone; the handover is undone.
    Spares,
}

/// What can happen to a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// Hand over. Ignored while a handover is under way.
    Start(Plan),
    /// Put everything back, and finish; the text says why.
    Cancel(String),

    /// Result of [`Effect::ConnectIncumbent`]: the peer, by the kernel's word.
    Connected(ProcessId),
    /// Result of [`Effect::ConnectIncumbent`].
    ConnectFailed(String),
    /// Result of [`Effect::SpawnSuccessor`].
    Spawned(ProcessId),
    /// Result of [`Effect::SpawnSuccessor`].
    SpawnFailed(String),
    /// Result of [`Effect::SyncJournal`].
    JournalSynced,
    /// Result of a failed [`Effect::Record`], [`Effect::RecordUndone`] or [`Effect::SyncJournal`].
    JournalFailed(String),
    /// Result of [`Effect::ReadLease`].
    Lease(LeaseReading),
    /// Result of [`Effect::AskControlPath`]: who listens there.
    ControlPath(Option<u32>),
    /// Result of [`Effect::StopSuccessor`] and [`Effect::LookIfStopped`].
    SuccessorStopped(Stopped),

    /// A message of the incumbent.
    FromIncumbent(Message),
    /// The incumbent's channel ended.
    IncumbentClosed,
    /// The incumbent sent what is no message.
    IncumbentMalformed(String),
    /// The incumbent's process is dead.
    IncumbentGone,
    /// A message of the successor.
    FromSuccessor(Message),
    /// The successor's channel ended.
    SuccessorClosed,
    /// The successor sent what is no message.
    SuccessorMalformed(String),
    /// The successor's process is dead; the text says how ("exited with status 1").
    SuccessorGone(String),

    /// A timer has run out.
    Fired(Timer),
    /// The driver's own loop was late: peers get fresh intervals.
    WokeLate,
}

/// What a look at the lease gave.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LeaseReading {
    /// A lease.
    Found(LeaseView),
    /// None, or one of an earlier boot.
    Nobody,
    /// It could not be read.
    Unreadable(String),
}

/// Whether a process that was sent SIGSTOP has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stopped {
    /// All of its threads.
    Yes,
    /// Not yet.
    NotYet,
}

/// What a supervisor asks its driver to do. One act each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Connect to the control path.
    ConnectIncumbent,
    /// Start the successor, with the listeners and a control channel.
    SpawnSuccessor(Transfer),
    /// Send to the incumbent. The driver fills in a heartbeat's `ts_ms`.
    SendIncumbent(ProtoVersion, Message),
    /// Send to the incumbent together with its end of the direct channel, of which nothing is kept.
    PassTransfer(ProtoVersion, Message),
    /// Send to the successor. The driver fills in `deadline_ns` of `BeginWith`: when [`Timer::Deadline`] runs out.
    SendSuccessor(ProtoVersion, Message),
    /// Close the channel to the incumbent.
    CloseIncumbent,
    /// Close the channel to the successor.
    CloseSuccessor,
    /// Write the journal, without waiting for the disk.
    Record(Phase),
    /// Write into the journal that the handover is undone and has left no successor.
    RecordUndone,
    /// Make the journal durable. That it is over, its driver makes durable when whoever gave the order knows it.
    SyncJournal,
    /// Look at the lease.
    ReadLease,
    /// Ask who listens on the control path.
    AskControlPath,
    /// SIGSTOP to the successor, and look whether it has stopped.
    StopSuccessor,
    /// Look whether it has stopped by now.
    LookIfStopped,
    /// SIGCONT to the successor.
    ContinueSuccessor,
    /// SIGKILL to the successor; its death comes as [`Input::SuccessorGone`].
    KillSuccessor,
    /// SIGKILL to the incumbent; its death comes as [`Input::IncumbentGone`].
    KillIncumbent,
    /// Start, or start again, a timer.
    Arm(Timer, Duration),
    /// Stop a timer; fine if it does not run.
    Disarm(Timer),
    /// A point has been reached: for journals of events, time stamps, and crash tests.
    Reached(Milestone),
    /// The handover is over: close what is open.
    Finish(Outcome),
}

/// Whether a successor gets an end of a direct channel to the incumbent. The supervisor holds the other end until
/// [`Effect::PassTransfer`], and never looks into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transfer {
    /// The incumbent takes the other end.
    Offered,
    /// The incumbent knows of no such channel.
    None,
}

/// The timers of a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// A greeting is due.
    Hello,
    /// The successor should be warmed.
    Warm,
    /// The drain should be done.
    DrainGrace,
    /// The whole handover should be done; its expiry is the successor's deadline.
    Deadline,
    /// The successor is late and has had its slack.
    Late,
    /// The successor has opened for long enough without a word of progress.
    Open,
    /// The incumbent has been silent where heartbeats are due.
    IncumbentSilent,
    /// The successor has been silent where heartbeats are due.
    SuccessorSilent,
    /// The incumbent is to hear from us.
    Heartbeat,
    /// The incumbent's channel has ended and its process has had time to be seen dead.
    IncumbentClosed,
    /// The same of the successor.
    SuccessorClosed,
    /// Ask again who listens on the control path.
    AskPath,
    /// Look again at a successor that is being ended.
    Look,
    /// The successor that is being ended should be gone.
    Ended,
    /// The incumbent should have resumed.
    Resumed,
}

impl Timer {
    /// Every one: none of them runs when a handover is over.
    pub const ALL: [Self; 15] = [
        Self::Hello,
        Self::Warm,
        Self::DrainGrace,
        Self::Deadline,
        Self::Late,
        Self::Open,
        Self::IncumbentSilent,
        Self::SuccessorSilent,
        Self::Heartbeat,
        Self::IncumbentClosed,
        Self::SuccessorClosed,
        Self::AskPath,
        Self::Look,
        Self::Ended,
        Self::Resumed,
    ];
}

/// The points of a handover, in the order of a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Milestone {
    /// Greeted the incumbent.
    IncumbentGreeted,
    /// The successor's process exists.
    SuccessorSpawned,
    /// Greeted the successor.
    SuccessorGreeted,
    /// The successor has loaded what it can.
    Warmed,
    /// `PrepareHandoff` is sent.
    PrepareSent,
    /// `Drained` has come.
    DrainedReceived,
    /// `SealRequest` is sent.
    SealRequestSent,
    /// `SealComplete` has come.
    SealCompleteReceived,
    /// `Begin` is sent.
    BeginSent,
    /// `Ready` has come.
    ReadyReceived,
    /// `Commit` is sent.
    CommitSent,
    /// The end is in the journal, or could not be written.
    JournalClosed,
    /// The incumbent died before it had sealed; the successor is promoted.
    Promoted,
    /// The incumbent was silent, or did not serve again in time, and is ended.
    WatchdogFired,
    /// The handover is being undone.
    UndoStarted,
    /// A successor that was to be ended is Active: it has taken over.
    FoundActive,
    /// `ResumeAfterAbort` is sent.
    ResumeSent,
    /// The incumbent serves again.
    ResumedReceived,
    /// The incumbent did not say in time that it serves again.
    ResumeUnanswered,
    /// An ended successor was not gone in time: the kernel still holds it.
    SuccessorLingers,
    /// The handover goes on without a look at the lease.
    WithoutLease,
}

/// How a handover ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing was started.
    Refused {
        /// Why.
        reason: String,
    },
    /// The successor is gone.
    Aborted {
        /// Why.
        reason: String,
        /// What is known of the incumbent.
        incumbent: Standing,
    },
    /// The successor serves.
    Committed {
        /// The epoch under which it writes, if a lease says it.
        epoch: Option<u64>,
    },
}

/// What is known of the incumbent of a handover that was undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It serves: it said so, or was not asked to stop.
    Serves,
    /// It lives, takes its data back by itself, and was not heard to serve again. One of version 1 never says so.
    NotHeard,
    /// It is dead.
    Dead,
}

/// The machine. One can run any number of handovers, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Supervisor {
    timing: Timing,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Idle,
    HandingOver(Box<Handover>),
}

impl Supervisor {
    /// An idle one.
    pub fn new(timing: Timing) -> Self {
        Self { timing, state: State::Idle }
    }

    /// Whether no handover is under way.
    pub fn is_idle(&self) -> bool {
        match &self.state {
            State::Idle => true,
            State::HandingOver(_) => false,
        }
    }
}

impl Machine for Supervisor {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match (&mut self.state, input) {
            (State::Idle, Input::Start(plan)) => {
                let handover = Handover::start(plan, self.timing, &mut effects);
                self.state = State::HandingOver(Box::new(handover));
            }
            (State::Idle, _) => {}
            (State::HandingOver(handover), input) => {
                handover.step(input, &mut effects);
                if handover.is_over() {
                    self.state = State::Idle;
                }
            }
        }
        effects
    }
}
