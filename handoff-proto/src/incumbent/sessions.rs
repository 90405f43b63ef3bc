//! The sessions on the control socket, side by side, and what is legal in each.
//!
//! Whatever a peer sends costs at most its own session: the socket goes on, and a quiet or hostile client never keeps a
//! supervisor out. The quietest session gives way when there are too many; the handover's own never does.

use std::time::Duration;

use super::holding::Early;
use super::{Channel, Effect, Effects, Incumbent, Link, Prepare, SessionId, State, Timer, Why};
use crate::message::{Capabilities, HandoffId, Message, Side};
use crate::version::{PROTO_MAX, PROTO_MIN, ProtoVersion};

/// The most sessions that are served side by side. Two of them can't be closed for others: the handover's and the next one's.
pub(super) const SESSIONS_MAX: usize = 16;

/// The open sessions, the one that was quiet for longest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Sessions {
    list: Vec<Session>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    id: SessionId,
    peer_pid: Option<u32>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Standing {
    /// Our Hello is sent, its HelloAck is awaited.
    Greeting,
    Greeted {
        version: ProtoVersion,
        /// The handover that ended last in this session.
        last: Option<HandoffId>,
        /// The next one, for which a direct channel to its successor has come.
        channel_for: Option<HandoffId>,
    },
}

/// What a supervisor says to the handover that it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Order {
    Seal,
    Commit,
    /// `Abort` or `ResumeAfterAbort`: to the incumbent they are the same.
    Undo,
}

impl Sessions {
    fn get(&self, id: SessionId) -> Option<&Session> {
        self.list.iter().find(|session| session.id == id)
    }

    fn remove(&mut self, id: SessionId) -> Option<Session> {
        let at = self.list.iter().position(|session| session.id == id)?;
        Some(self.list.remove(at))
    }

    /// Moves a session to the loud end.
    fn heard(&mut self, id: SessionId) -> Option<Standing> {
        let session = self.remove(id)?;
        let standing = session.standing;
        self.list.push(session);
        Some(standing)
    }

    fn greeted(&mut self, id: SessionId, version: ProtoVersion) {
        if let Some(session) = self.list.iter_mut().find(|session| session.id == id) {
            session.standing = Standing::Greeted { version, last: None, channel_for: None };
        }
    }

    /// Remembers which handover ended last in a session.
    fn ended(&mut self, id: SessionId, handoff_id: HandoffId) {
        for session in &mut self.list {
            if let Standing::Greeted { last, .. } = &mut session.standing
                && session.id == id
            {
                *last = Some(handoff_id);
            }
        }
    }

    /// Remembers for which handover a channel has come; the newest one counts.
    fn channel_came(&mut self, id: SessionId, handoff_id: HandoffId) {
        for session in &mut self.list {
            if let Standing::Greeted { channel_for, .. } = &mut session.standing
                && session.id == id
            {
                *channel_for = Some(handoff_id);
            }
        }
    }

    /// Whether one has come for this handover.
    fn take_channel(&mut self, id: SessionId, handoff_id: HandoffId) -> Channel {
        let session = self.list.iter_mut().find(|session| session.id == id);
        let came_for = session.and_then(|session| match &mut session.standing {
            Standing::Greeted { channel_for, .. } => channel_for.take(),
            Standing::Greeting => None,
        });
        if came_for == Some(handoff_id) { Channel::Came } else { Channel::None }
    }

    /// Who must give way to a new session: who has not even greeted, then the quietest, but none of `needed`.
    fn crowded_out(&self, needed: &[SessionId]) -> Option<SessionId> {
        if self.list.len() < SESSIONS_MAX {
            return None;
        }
        let greeting = self.list.iter().find(|session| session.standing == Standing::Greeting);
        let quietest = self.list.iter().find(|session| !needed.contains(&session.id));
        greeting.or(quietest).map(|session| session.id)
    }

    /// Gives everybody who has not greeted yet a fresh interval.
    pub(super) fn greet_again(&self, hello: Duration, out: &mut Effects) {
        for session in self.list.iter().filter(|session| session.standing == Standing::Greeting) {
            out.push(Effect::Arm(Timer::Session(session.id), hello));
        }
    }
}

impl Incumbent {
    pub(super) fn connected(&mut self, id: SessionId, peer_pid: Option<u32>, out: &mut Effects) {
        if self.sessions.get(id).is_some() {
            return;
        }
        if let Some(crowded_out) = self.sessions.crowded_out(&self.needed_sessions()) {
            self.dismiss(crowded_out, Why::Crowded, out);
        }
        self.sessions.list.push(Session { id, peer_pid, standing: Standing::Greeting });
        let hello = Message::Hello {
            role: Side::Incumbent,
            pid: self.config.me.pid,
            build_id: self.config.build_id.clone(),
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            capabilities: Capabilities::OURS,
        };
        out.push(Effect::Send(id, PROTO_MIN, hello));
        out.push(Effect::Arm(Timer::Session(id), self.config.timing.hello));
    }

    pub(super) fn received(&mut self, id: SessionId, frame: ProtoVersion, message: Message, out: &mut Effects) {
        let Some(standing) = self.sessions.heard(id) else { return };
        if !(PROTO_MIN..=PROTO_MAX).contains(&frame) {
            return self.dismiss(id, Why::Violation, out);
        }
        match standing {
            Standing::Greeting => self.greet(id, message, out),
            Standing::Greeted { version, last, .. } => {
                match message {
                    Message::Heartbeat { .. } => self.bear_with(id, out),
                    _ => self.restart_patience(id, out),
                }
                self.receive_greeted(Link { session: id, version }, last, message, out);
            }
        }
    }

    fn greet(&mut self, id: SessionId, message: Message, out: &mut Effects) {
        match message {
            Message::HelloAck { proto_version_chosen, .. }
                if (PROTO_MIN..=PROTO_MAX).contains(&proto_version_chosen) =>
            {
                self.sessions.greeted(id, proto_version_chosen);
                self.restart_patience(id, out);
            }
            Message::Heartbeat { .. } => self.show_life(Link { session: id, version: PROTO_MIN }, out),
            _ => self.dismiss(id, Why::Violation, out),
        }
    }

    /// Silence is counted from the last message.
    fn restart_patience(&mut self, id: SessionId, out: &mut Effects) {
        if !self.is_handover_session(id) {
            // Between Hello and Prepare a supervisor waits for its successor to warm up, for as long as a handover may take.
            out.push(Effect::Arm(Timer::Session(id), self.config.timing.deadline_max));
        } else if self.silence == super::Running::Armed {
            out.push(Effect::Arm(Timer::Silence, self.config.timing.liveness));
        }
    }

    /// Who says nothing but that it is alive wants to know whether we are: a supervisor between two handovers. Its session may
    /// stay for as long as nobody needs the room, and no timer wakes us for it.
    fn bear_with(&mut self, id: SessionId, out: &mut Effects) {
        if self.is_handover_session(id) {
            self.restart_patience(id, out);
        } else {
            out.push(Effect::Disarm(Timer::Session(id)));
        }
    }

    fn receive_greeted(&mut self, link: Link, last: Option<HandoffId>, message: Message, out: &mut Effects) {
        if message.since_version() > link.version {
            return self.dismiss(link.session, Why::Violation, out);
        }
        match message {
            Message::Heartbeat { .. } => self.show_life(link, out),
            Message::Status => {
                let (session, phase, epoch) = (link.session, self.phase(), self.config.epoch);
                out.push(Effect::SendStatus { session, phase, epoch });
            }
            Message::ListenersRequest => out.push(Effect::SendListeners(link.session)),
            Message::PrepareHandoff { handoff_id, successor_pid, deadline_ms, drain_grace_ms } => {
                let deadline = Duration::from_millis(deadline_ms).min(self.config.timing.deadline_max);
                let grace = Duration::from_millis(drain_grace_ms).min(deadline);
                let (early, channel) = (Early::NotAsked, self.sessions.take_channel(link.session, handoff_id));
                self.prepare(Prepare { link, id: handoff_id, successor_pid, deadline, grace, early, channel }, out);
            }
            Message::TransferChannel { handoff_id } => self.channel_came(link, handoff_id, out),
            Message::SealRequest { handoff_id } => self.order(link, last, handoff_id, Order::Seal, out),
            Message::Commit { handoff_id } => self.order(link, last, handoff_id, Order::Commit, out),
            Message::Abort { handoff_id, .. } | Message::ResumeAfterAbort { handoff_id } => {
                self.order(link, last, handoff_id, Order::Undo, out);
            }
            Message::Hello { .. }
            | Message::HelloAck { .. }
            | Message::Drained { .. }
            | Message::SealProgress { .. }
            | Message::SealComplete { .. }
            | Message::SealFailed { .. }
            | Message::Begin { .. }
            | Message::Ready { .. }
            | Message::Warmed { .. }
            | Message::BeginWith { .. }
            | Message::Resumed { .. }
            | Message::DrainFailed { .. }
            | Message::Listeners { .. }
            | Message::StatusReport(_)
            | Message::Revisions { .. }
            | Message::NotReady { .. }
            | Message::OpenProgress { .. } => self.dismiss(link.session, Why::Violation, out),
        }
    }

    /// It comes ahead of the Prepare of its handover, and so in none that is under way but an undone one.
    fn channel_came(&mut self, link: Link, id: HandoffId, out: &mut Effects) {
        let is_under_way = self.is_handover_session(link.session) && !matches!(self.state, State::Undoing(..));
        match is_under_way {
            true => self.dismiss(link.session, Why::Violation, out),
            false => self.sessions.channel_came(link.session, id),
        }
    }

    fn order(&mut self, link: Link, last: Option<HandoffId>, id: HandoffId, order: Order, out: &mut Effects) {
        let waits = self.pending.as_ref().is_some_and(|next| next.link == link && next.id == id);
        let runs = self.handover().is_some_and(|handover| handover.link == Some(link) && handover.id == id);
        if waits {
            self.order_pending(link, order, out);
        } else if runs {
            self.obey(order, out);
        } else if last == Some(id) && !self.is_handover_session(link.session) {
            self.order_ended(link, id, order, out);
        } else {
            self.dismiss(link.session, Why::Violation, out);
        }
    }

    /// An order for a handover that has not begun, because the one before it is still being undone.
    fn order_pending(&mut self, link: Link, order: Order, out: &mut Effects) {
        match (self.pending.as_mut().map(|next| &mut next.early), order) {
            (Some(early @ Early::NotAsked), Order::Seal) if link.version >= 2 => *early = Early::Asked,
            (Some(early @ (Early::NotAsked | Early::Asked)), Order::Undo) => *early = Early::CalledOff,
            (Some(Early::CalledOff), Order::Undo) => {}
            (Some(Early::NotAsked | Early::Asked | Early::CalledOff) | None, Order::Seal | Order::Commit)
            | (None, Order::Undo) => self.dismiss(link.session, Why::Violation, out),
        }
    }

    /// An order that crossed the end of its handover on the wire.
    fn order_ended(&mut self, link: Link, id: HandoffId, order: Order, out: &mut Effects) {
        match order {
            Order::Undo if link.version < 2 => {}
            Order::Undo => out.push(Effect::Send(link.session, link.version, Message::Resumed { handoff_id: id })),
            Order::Seal if link.version >= 2 => {}
            Order::Seal | Order::Commit => self.dismiss(link.session, Why::Violation, out),
        }
    }

    fn prepare(&mut self, prepare: Prepare, out: &mut Effects) {
        let session = prepare.link.session;
        match &self.state {
            State::Serving => self.accept(prepare, out),
            State::Undoing(_, step) if step.takes_prepare() => {
                self.give_up_resume(out);
                self.accept(prepare, out);
            }
            State::Undoing(..) => match &self.pending {
                None => self.pending = Some(prepare),
                Some(next) if next.link == prepare.link && next.early == Early::CalledOff => {
                    self.pending = Some(prepare)
                }
                Some(next) if next.link == prepare.link => self.dismiss(session, Why::Violation, out),
                Some(_) => self.dismiss(session, Why::Busy, out),
            },
            State::Stamping(handover, _)
            | State::Draining(handover, _)
            | State::Drained(handover)
            | State::Sealing(handover, _)
            | State::Releasing(handover, _)
            | State::Sealed(handover)
            | State::Committing(handover, _) => {
                let why = if handover.link == Some(prepare.link) { Why::Violation } else { Why::Busy };
                self.dismiss(session, why, out);
            }
            State::Left => {}
        }
    }

    /// Closes a session. If it was the handover's, the handover is undone.
    pub(super) fn dismiss(&mut self, id: SessionId, why: Why, out: &mut Effects) {
        if self.sessions.get(id).is_some() {
            out.push(Effect::Close(id, why));
            self.lost(id, out);
        }
    }

    /// A session is no more.
    pub(super) fn lost(&mut self, id: SessionId, out: &mut Effects) {
        if self.sessions.remove(id).is_none() {
            return;
        }
        out.push(Effect::Disarm(Timer::Session(id)));
        if self.pending.as_ref().is_some_and(|next| next.link.session == id) {
            self.pending = None;
        }
        if self.is_handover_session(id) {
            if let Some(handover) = self.handover_mut() {
                handover.link = None;
            }
            self.supervisor_lost(out);
        }
    }

    pub(super) fn session_silent(&mut self, id: SessionId, out: &mut Effects) {
        if !self.is_handover_session(id) {
            self.dismiss(id, Why::Silent, out);
        }
    }

    pub(super) fn supervisor_silent(&mut self, out: &mut Effects) {
        if self.silence == super::Running::Armed
            && let Some(link) = self.handover().and_then(|handover| handover.link)
        {
            self.dismiss(link.session, Why::Silent, out);
        }
    }

    /// Keeps the session of a handover that has ended for the next one.
    pub(super) fn release_session(&mut self, link: Option<Link>, id: HandoffId, out: &mut Effects) {
        if let Some(link) = link {
            self.sessions.ended(link.session, id);
            out.push(Effect::Arm(Timer::Session(link.session), self.config.timing.deadline_max));
        }
    }

    /// The supervisor's pid, as the kernel told it.
    pub(super) fn peer_pid(&self, id: SessionId) -> Option<u32> {
        self.sessions.get(id).and_then(|session| session.peer_pid)
    }

    fn is_handover_session(&self, id: SessionId) -> bool {
        self.handover().and_then(|handover| handover.link).is_some_and(|link| link.session == id)
    }

    fn needed_sessions(&self) -> Vec<SessionId> {
        let handover = self.handover().and_then(|handover| handover.link);
        let pending = self.pending.as_ref().map(|next| next.link);
        handover.into_iter().chain(pending).map(|link| link.session).collect()
    }
}
