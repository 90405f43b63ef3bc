//! The incumbent's machine, driven by hand: paths, violations, failures, limbo, and random walks.

mod handover;
mod limbo;
mod random;
mod sessions;
mod transfer;

use super::*;
use crate::lease::{LeaseState, LeaseView, ProcessId};
use crate::machine::Timing;

pub(super) const ME: ProcessId = ProcessId { pid: 100, start_time: 7 };
pub(super) const SUPERVISOR_PID: u32 = 50;
pub(super) const SUCCESSOR_PID: u32 = 200;
pub(super) const SUCCESSOR: ProcessId = ProcessId { pid: SUCCESSOR_PID, start_time: 9 };
pub(super) const A: SessionId = SessionId(1);
pub(super) const B: SessionId = SessionId(2);

pub(super) fn id(n: u8) -> HandoffId {
    HandoffId::from_bytes([n; 16])
}

pub(super) fn machine() -> Incumbent {
    Incumbent::new(Config { me: ME, epoch: 5, build_id: b"build".to_vec(), timing: Timing::default() })
}

pub(super) fn drain() -> Drain {
    Drain { open_conns_remaining: 3, accept_closed: true }
}

pub(super) fn seal() -> Seal {
    Seal { last_revision_per_shard: vec![10, 20], data_dir_fingerprint: [9; 32] }
}

pub(super) fn own_seal(n: u8) -> LeaseView {
    LeaseView { epoch: 5, owner: ME, state: LeaseState::Sealed, handoff_id: Some(id(n)) }
}

pub(super) fn successor_lease(state: LeaseState, n: u8) -> LeaseView {
    LeaseView { epoch: 6, owner: SUCCESSOR, state, handoff_id: Some(id(n)) }
}

/// A machine and the version that its supervisor speaks.
#[derive(Clone)]
pub(super) struct Rig {
    pub(super) machine: Incumbent,
    pub(super) version: ProtoVersion,
}

impl Rig {
    /// A supervisor has greeted in session A.
    pub(super) fn greeted(version: ProtoVersion) -> Self {
        let mut rig = Self { machine: machine(), version };
        rig.greet(A);
        rig
    }

    pub(super) fn greet(&mut self, session: SessionId) {
        self.step(Input::Connected { session, peer_pid: Some(SUPERVISOR_PID) });
        let ack = Message::HelloAck { proto_version_chosen: self.version, handoff_id: id(1) };
        self.receive(session, ack);
    }

    pub(super) fn draining(version: ProtoVersion) -> Self {
        let mut rig = Self::greeted(version);
        assert!(rig.prepare(A, 1).contains(&Effect::StampLease(id(1))));
        rig.step(Input::Stamped(Ok(())));
        rig.step(Input::SuccessorWatched);
        rig
    }

    pub(super) fn drained(version: ProtoVersion) -> Self {
        let mut rig = Self::draining(version);
        rig.step(Input::DrainEnded(Ok(drain())));
        rig
    }

    pub(super) fn sealing(version: ProtoVersion) -> Self {
        let mut rig = Self::drained(version);
        rig.receive(A, Message::SealRequest { handoff_id: id(1) });
        rig
    }

    pub(super) fn releasing(version: ProtoVersion) -> Self {
        let mut rig = Self::sealing(version);
        rig.step(Input::SealEnded(Ok(seal())));
        rig
    }

    pub(super) fn sealed(version: ProtoVersion) -> Self {
        let mut rig = Self::releasing(version);
        rig.step(Input::Released(Ok(())));
        rig
    }

    /// In limbo, the lease just read.
    pub(super) fn limbo() -> Self {
        let mut rig = Self::sealed(2);
        assert!(rig.step(Input::Closed(A)).contains(&Effect::ReadLease));
        rig
    }

    /// The lock is taken back; `resume_after_abort` runs.
    pub(super) fn retaken() -> Self {
        let mut rig = Self::limbo();
        rig.step(Input::LeaseRead(Ok(Some(own_seal(1)))));
        rig.step(Input::LockTried(LockTried::Locked(Some(own_seal(1)))));
        rig.step(Input::Claimed(Ok(6)));
        rig.step(Input::Activated(Ok(())));
        rig
    }

    pub(super) fn step(&mut self, input: Input) -> Vec<Effect> {
        self.machine.step(input)
    }

    pub(super) fn receive(&mut self, session: SessionId, message: Message) -> Vec<Effect> {
        self.step(Input::Received(session, self.version, message))
    }

    pub(super) fn prepare(&mut self, session: SessionId, n: u8) -> Vec<Effect> {
        self.prepare_for(session, n, SUCCESSOR_PID)
    }

    pub(super) fn prepare_for(&mut self, session: SessionId, n: u8, successor_pid: u32) -> Vec<Effect> {
        let prepare =
            Message::PrepareHandoff { handoff_id: id(n), successor_pid, deadline_ms: 30_000, drain_grace_ms: 5_000 };
        self.receive(session, prepare)
    }

    pub(super) fn abort(&mut self) -> Vec<Effect> {
        self.receive(A, Message::ResumeAfterAbort { handoff_id: id(1) })
    }

    /// Lets the resume that runs succeed.
    pub(super) fn resume(&mut self) -> Vec<Effect> {
        let effects = self.step(Input::ResumeEnded(ResumeEnd::Serving));
        assert!(self.machine.is_serving(), "{:?}", self.machine.state);
        effects
    }
}

pub(super) fn messages(effects: &[Effect]) -> Vec<&Message> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send(_, _, message) | Effect::SendWithNext(_, _, message) => Some(message),
            _ => None,
        })
        .collect()
}

pub(super) fn resumes(effects: &[Effect]) -> Vec<bool> {
    let changed = |effect: &Effect| match effect {
        Effect::RunResume { state_may_have_changed, .. } => Some(*state_may_have_changed),
        _ => None,
    };
    effects.iter().filter_map(changed).collect()
}

pub(super) fn closes(effects: &[Effect]) -> Vec<(SessionId, Why)> {
    let close = |effect: &Effect| if let Effect::Close(session, why) = effect { Some((*session, *why)) } else { None };
    effects.iter().filter_map(close).collect()
}

pub(super) fn position(effects: &[Effect], wanted: &Effect) -> usize {
    effects.iter().position(|effect| effect == wanted).unwrap_or_else(|| panic!("no {wanted:?} in {effects:#?}"))
}
