//! The successor's machine and what its effects act on: the channel, the timers, and what the daemon's thread is to do next.
//!
//! One input at a time, whichever thread has it, under the mutex; nothing here waits. Which thread waits stands in `shifts`.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use handoff_proto::successor::{Answer, Effect, Errand, GaveUp, Input, Milestone, Successor as Machine, Timer, Wire};
use handoff_proto::{Checked, HandoffId, Message, ProtoVersion, WireError};
use rustix::event::{PollFd, PollFlags};
use rustix::net::Shutdown;
use tracing::Level;

use crate::channel::{Channel, Received};
use crate::crash_here;
use crate::events;
use crate::sys::fork::StaysHere;
use crate::timers::Timers;

/// The target of the events of a handover; with the names of the steps it is an interface (`docs/operating.md`).
const EVENTS: &str = "handoff::successor";

/// The machine and what its effects act on.
#[derive(Debug)]
pub(super) struct Core {
    machine: Checked<Machine>,
    pub(super) channel: Option<Channel>,
    pub(super) timers: Timers<Timer>,
    pub(super) errands: VecDeque<Errand>,
    pub(super) answers: VecDeque<Answer>,
    handoff_id: Option<HandoffId>,
    /// When `Begin` arrived, by the clock that leases are stamped with.
    pub(super) begun_unix_ms: u64,
    /// What the library thread waits for has changed.
    pub(super) wake_due: bool,
    outbound: Outbound,
    pub(super) thread: Thread,
    pub(super) listener: Listener,
}

/// Which thread waits for the supervisor and for time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    Daemon,
    /// The daemon's is at work, and the library's is called in if that takes longer than a moment.
    OnCall,
    Library,
    /// It has taken over.
    Nobody,
}

/// Whether the supervisor still takes what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outbound {
    Works,
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    Running,
    Ended,
}

impl Core {
    pub(super) fn new(machine: Machine, channel: Channel) -> Self {
        Self {
            machine: Checked::new(machine),
            channel: Some(channel),
            timers: Timers::new(),
            errands: VecDeque::new(),
            answers: VecDeque::new(),
            handoff_id: None,
            begun_unix_ms: 0,
            wake_due: false,
            outbound: Outbound::Works,
            thread: Thread::Running,
            listener: Listener::Daemon,
        }
    }

    pub(super) fn step(&mut self, input: Input) {
        for effect in self.machine.step(input) {
            if let Err(error) = self.perform(effect) {
                events::debug!(handoff_id = self.shown_id(), %error, "the supervisor can't be told any more");
                self.outbound = Outbound::Broken;
                self.wake_due = true;
            }
        }
        self.wake_due |= self.machine.is_over();
    }

    /// Only what lets the library thread wait for something else, or sooner, wakes it: it is idle in the pause.
    fn perform(&mut self, effect: Effect) -> std::result::Result<(), WireError> {
        match effect {
            Effect::Send(version, message) => return self.send(version, &message),
            Effect::Heartbeat(version) => return self.send(version, &Message::Heartbeat { ts_ms: unix_ms() }),
            Effect::HangUp => self.hang_up(),
            Effect::Arm(timer, after) => {
                self.timers.arm(timer, after);
                self.wake_due = true;
            }
            Effect::ArmAt(timer, at_ns) => {
                self.timers.arm_at(timer, at_ns);
                self.wake_due = true;
            }
            Effect::Disarm(timer) => self.timers.disarm(timer),
            Effect::Reached(milestone) => self.note(&milestone),
            Effect::Answer(answer) => self.answers.push_back(answer),
            Effect::Do(errand) => self.errands.push_back(errand),
        }
        Ok(())
    }

    fn send(&mut self, version: ProtoVersion, message: &Message) -> std::result::Result<(), WireError> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        channel.send(version, message)?;
        self.wake_due |= channel.wants_write();
        Ok(())
    }

    /// The library thread waits on a duplicate of the socket, so closing alone would not end the connection.
    pub(super) fn hang_up(&mut self) {
        self.wake_due = true;
        if let Some(channel) = self.channel.take() {
            // Fails only when the supervisor has closed first, and then there is nothing left to end.
            let _ = rustix::net::shutdown(&channel, Shutdown::Both);
        }
    }

    /// The one table of milestones: crash point, event, and what is remembered.
    fn note(&mut self, milestone: &Milestone) {
        match milestone {
            Milestone::Starting => crash_here!(crate::crash::points::N_BEFORE_HANDSHAKE),
            Milestone::Greeted(handoff_id) => {
                self.handoff_id = Some(*handoff_id);
                self.tell("greeted", None);
                crash_here!(crate::crash::points::N_AFTER_HANDSHAKE);
            }
            Milestone::Warmed => self.tell("warmed", None),
            Milestone::Begun => {
                self.begun_unix_ms = unix_ms();
                self.tell("begun", None);
                crash_here!(crate::crash::points::N_AFTER_BEGIN);
            }
            Milestone::Locked { epoch } => {
                self.tell("locked", Some(*epoch));
                crash_here!(crate::crash::points::N_AFTER_LOCK);
            }
            Milestone::Announcing => crash_here!(crate::crash::points::N_BEFORE_ANNOUNCE_READY),
            Milestone::Active => self.tell("active", None),
            Milestone::Ready => crash_here!(crate::crash::points::N_AFTER_READY),
            Milestone::Left(GaveUp::Dropped) => self.tell("dropped", None),
            Milestone::Left(why) => {
                let handoff_id = self.shown_id();
                events::warn!(target: EVENTS, handoff_id, step = "gave_up", reason = %why, "handover");
            }
        }
    }

    /// Most of it is said within the pause.
    fn tell(&self, step: &'static str, epoch: Option<u64>) {
        if events::is_wanted(Level::INFO) {
            let handoff_id = self.shown_id();
            events::leave(move || tracing::info!(target: EVENTS, handoff_id, step, epoch, "handover"));
        }
    }

    fn shown_id(&self) -> Option<tracing::field::DisplayValue<HandoffId>> {
        self.handoff_id.map(tracing::field::display)
    }

    /// What to wait for now; `None`: nothing can come any more.
    pub(super) fn wait(&self) -> Option<Wait> {
        let interest = match &self.channel {
            None => PollFlags::empty(),
            Some(channel) if channel.wants_write() => PollFlags::IN | PollFlags::OUT,
            Some(_) => PollFlags::IN,
        };
        (!self.machine.is_over()).then(|| Wait { interest, timeout: self.timers.timeout() })
    }

    /// Takes all that has arrived, and then time.
    pub(super) fn turn(&mut self) {
        let is_late = self.timers.woke_late();
        self.receive();
        if is_late {
            self.step(Input::WokeLate);
        }
        while let Some(timer) = self.timers.pop_expired() {
            self.step(Input::Fired(timer));
        }
    }

    /// What has arrived comes before the news that nothing can be sent: it may be the order to begin.
    fn receive(&mut self) {
        if self.channel.as_mut().is_some_and(|channel| channel.flush().is_err()) {
            self.outbound = Outbound::Broken;
        }
        while let Some(channel) = &mut self.channel {
            let wire = match (channel.receive(), self.outbound) {
                (Received::Message { message, .. }, _) => {
                    self.step(Input::Wire(Wire::Message(message)));
                    continue;
                }
                (Received::Nothing, Outbound::Works) => return,
                (Received::Nothing, Outbound::Broken) => Wire::Closed,
                (Received::Closed | Received::Malformed(WireError::Io(_)), _) => Wire::Closed,
                (Received::Malformed(error), _) => {
                    events::warn!(handoff_id = self.shown_id(), %error, "the supervisor's bytes make no sense");
                    Wire::Garbage
                }
            };
            return self.step(Input::Wire(wire));
        }
    }
}

/// What is waited for; no interest in the socket once it is hung up.
pub(super) struct Wait {
    interest: PollFlags,
    pub(super) timeout: Option<Duration>,
}

impl Wait {
    pub(super) fn on<'fd>(&self, socket: &'fd StaysHere) -> Vec<PollFd<'fd>> {
        let mut fds = Vec::with_capacity(2);
        if !self.interest.is_empty() {
            fds.push(PollFd::new(socket, self.interest));
        }
        fds
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
