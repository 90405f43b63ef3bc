//! What the supervisor's machine never does, whatever happens to it and in whatever order.

use std::time::Duration;

use handoff_proto::supervisor::{
    Effect, Input, LeaseReading, Outcome, Ownership, Plan, Stopped, Supervisor, Timer, Watchdog,
};
use handoff_proto::{
    Capabilities, HandoffId, LeaseState, LeaseView, Machine, Message, ProcessId, Side, Timing, short_name,
};
use proptest::prelude::*;

const ID: HandoffId = HandoffId::from_bytes([7; 16]);
const OTHER_ID: HandoffId = HandoffId::from_bytes([8; 16]);
const O: ProcessId = ProcessId { pid: 100, start_time: 1 };
const N: ProcessId = ProcessId { pid: 200, start_time: 2 };
const SEALED: u64 = 5;

fn plan(ownership: Ownership, watchdog: Watchdog) -> Plan {
    let second = Duration::from_secs(1);
    Plan {
        handoff_id: ID,
        deadline: second,
        drain_grace: second,
        warm: second,
        open: second,
        resume: second,
        unheard: None,
        ownership,
        watchdog,
    }
}

fn hello(role: Side, pid: u32, proto_max: u16) -> Message {
    let capabilities = Capabilities::default();
    Message::Hello { role, pid, build_id: Vec::new(), proto_min: 1, proto_max, capabilities }
}

fn ready(healthz_ok: bool, revision: u64) -> Message {
    Message::Ready {
        handoff_id: ID,
        listening_on: Vec::new(),
        healthz_ok,
        advertised_revision_per_shard: vec![revision],
    }
}

fn seal_complete() -> Message {
    Message::SealComplete { handoff_id: ID, last_revision_per_shard: vec![SEALED], data_dir_fingerprint: [0; 32] }
}

/// What a good handover brings, between peers of these versions.
fn good_way(o_max: u16, n_max: u16) -> Vec<Input> {
    let mut way = vec![
        Input::Connected(O),
        Input::FromIncumbent(hello(Side::Incumbent, O.pid, o_max)),
        Input::Spawned(N),
        Input::FromSuccessor(hello(Side::Successor, N.pid, n_max)),
        Input::JournalSynced,
    ];
    if n_max >= 2 {
        way.push(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    }
    way.extend([
        Input::FromIncumbent(Message::Drained { open_conns_remaining: 0, accept_closed: true }),
        Input::FromIncumbent(seal_complete()),
        lease(O, LeaseState::Sealed, ID),
        Input::FromSuccessor(ready(true, SEALED)),
        Input::ControlPath(Some(N.pid)),
        Input::JournalSynced,
    ]);
    way
}

fn lease(owner: ProcessId, state: LeaseState, id: HandoffId) -> Input {
    Input::Lease(LeaseReading::Found(LeaseView { epoch: 3, owner, state, handoff_id: Some(id) }))
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<bool>(), prop_oneof![Just(O.pid), Just(N.pid)], 0u16..4).prop_map(|(incumbent, pid, max)| {
            hello(if incumbent { Side::Incumbent } else { Side::Successor }, pid, max)
        }),
        Just(Message::Heartbeat { ts_ms: 0 }),
        Just(Message::Warmed { handoff_id: ID }),
        Just(Message::Drained { open_conns_remaining: 0, accept_closed: true }),
        Just(Message::DrainFailed { handoff_id: ID, error: "drain".into() }),
        Just(Message::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 1 }),
        Just(seal_complete()),
        Just(Message::SealFailed { handoff_id: ID, error: "seal".into(), partial_state: String::new() }),
        (any::<bool>(), 4u64..7).prop_map(|(ok, revision)| ready(ok, revision)),
        Just(Message::NotReady { handoff_id: ID, reason: "sick".into() }),
        Just(Message::OpenProgress { handoff_id: ID }),
        (0u32..2).prop_map(|first_shard| Message::Revisions { first_shard, revisions: vec![1] }),
        Just(Message::Resumed { handoff_id: ID }),
        Just(Message::Resumed { handoff_id: OTHER_ID }),
        Just(Message::Commit { handoff_id: ID }),
        Just(Message::Status),
    ]
}

fn timer() -> impl Strategy<Value = Timer> {
    prop::sample::select(Timer::ALL.to_vec())
}

fn any_input() -> impl Strategy<Value = Input> {
    let states = prop::sample::select(vec![LeaseState::Opening, LeaseState::Active, LeaseState::Sealed]);
    let owners = prop::sample::select(vec![O, N, ProcessId { pid: 300, start_time: 3 }]);
    prop_oneof![
        4 => message().prop_map(Input::FromIncumbent),
        4 => message().prop_map(Input::FromSuccessor),
        4 => timer().prop_map(Input::Fired),
        3 => (owners, states, any::<bool>())
            .prop_map(|(owner, state, ours)| lease(owner, state, if ours { ID } else { OTHER_ID })),
        3 => prop::sample::select(vec![
            Input::Cancel("stop".into()),
            Input::Connected(O),
            Input::ConnectFailed("x".into()),
            Input::Spawned(N),
            Input::SpawnFailed("x".into()),
            Input::JournalSynced,
            Input::JournalFailed("x".into()),
            Input::Lease(LeaseReading::Nobody),
            Input::Lease(LeaseReading::Unreadable("x".into())),
            Input::ControlPath(None),
            Input::ControlPath(Some(N.pid)),
            Input::ControlPath(Some(O.pid)),
            Input::SuccessorStopped(Stopped::Yes),
            Input::SuccessorStopped(Stopped::NotYet),
            Input::IncumbentClosed,
            Input::IncumbentMalformed("x".into()),
            Input::IncumbentGone,
            Input::SuccessorClosed,
            Input::SuccessorMalformed("x".into()),
            Input::SuccessorGone("died".into()),
            Input::WokeLate,
        ]),
    ]
}

/// A part of a good way, and then anything.
fn history() -> impl Strategy<Value = Vec<Input>> {
    let beginning = (1u16..3, 1u16..3, 0usize..14).prop_map(|(o_max, n_max, length)| {
        let mut way = good_way(o_max, n_max);
        way.truncate(length);
        way
    });
    (beginning, prop::collection::vec(any_input(), 0..40)).prop_map(|(way, rest)| way.into_iter().chain(rest).collect())
}

/// What has been seen so far, by an observer who knows the rules and not the machine.
#[derive(Default)]
struct Observer {
    /// The incumbent was asked to drain.
    asked: bool,
    sealed_or_dead: bool,
    fit: bool,
    unfit: bool,
    active_when_stopped: bool,
    answers: bool,
    /// The lease was asked for after the successor had been sent SIGSTOP.
    looking: bool,
    stopped: bool,
    begun: bool,
    successor_gone: bool,
    committed: bool,
    resumed: bool,
    continued: bool,
    /// The successor stands still, and nobody has decided about it.
    undecided: bool,
    /// The timers that run.
    armed: Vec<Timer>,
    /// The successor has just spoken while its silence was counted, and it is not counted anew yet.
    silence_goes_on: bool,
    outcome: Option<Outcome>,
}

impl Observer {
    fn before(&mut self, input: &Input) {
        self.silence_goes_on = matches!(input, Input::FromSuccessor(_)) && self.armed.contains(&Timer::SuccessorSilent);
        match input {
            Input::FromIncumbent(Message::SealComplete { .. }) | Input::IncumbentGone => self.sealed_or_dead = true,
            Input::FromSuccessor(Message::Ready { healthz_ok, advertised_revision_per_shard, .. }) => {
                if *healthz_ok && advertised_revision_per_shard.iter().all(|revision| *revision >= SEALED) {
                    self.fit = true;
                } else {
                    self.unfit = true;
                }
            }
            Input::FromSuccessor(Message::NotReady { .. }) => self.unfit = true,
            Input::Lease(LeaseReading::Found(lease)) if self.looking => {
                self.active_when_stopped = lease.owner == N && lease.state == LeaseState::Active;
                self.looking = false;
            }
            Input::ControlPath(pid) => self.answers = *pid == Some(N.pid),
            Input::SuccessorGone(_) => (self.successor_gone, self.undecided) = (true, false),
            Input::Fired(timer) => self.armed.retain(|armed| armed != timer),
            _ => {}
        }
    }

    fn after(&mut self, effect: &Effect) {
        assert!(self.outcome.is_none(), "{effect:?} after the end");
        match effect {
            Effect::SendSuccessor(_, Message::Begin { .. } | Message::BeginWith { .. }) => {
                assert!(self.sealed_or_dead, "Begin while the incumbent may hold the lock");
                assert!(!self.begun, "Begin twice");
                self.begun = true;
            }
            Effect::SendIncumbent(_, Message::Commit { .. }) => {
                assert!(self.begun && !self.resumed && !self.committed);
                assert!(self.fit || self.active_when_stopped || self.answers, "Commit without a passed check");
                self.committed = true;
            }
            Effect::SendIncumbent(_, Message::ResumeAfterAbort { .. }) => {
                assert!(!self.resumed && !self.committed);
                assert!(!self.begun || self.successor_gone, "resumed beside a successor that may be taking over");
                self.resumed = true;
            }
            Effect::StopSuccessor => (self.stopped, self.undecided) = (true, true),
            Effect::Arm(timer, _) => {
                self.silence_goes_on &= *timer != Timer::SuccessorSilent;
                self.armed.push(*timer);
            }
            Effect::Disarm(timer) => {
                self.silence_goes_on &= *timer != Timer::SuccessorSilent;
                self.armed.retain(|armed| armed != timer);
            }
            Effect::ReadLease => self.looking = self.stopped,
            Effect::ContinueSuccessor => (self.continued, self.undecided) = (true, false),
            Effect::KillSuccessor => {
                self.undecided = false;
                assert!(!self.continued && !self.committed, "a serving successor is killed");
                assert!(!self.active_when_stopped || self.unfit, "an Active successor is killed");
            }
            Effect::Finish(outcome) => {
                if let Outcome::Committed { .. } = outcome {
                    assert!(!self.resumed);
                }
                assert!(!self.undecided, "the successor is left standing still");
                assert!(self.armed.is_empty(), "{:?} run after the end", self.armed);
                self.outcome = Some(outcome.clone());
            }
            Effect::KillIncumbent => assert!(self.asked, "an incumbent is killed that was asked for nothing"),
            Effect::SendIncumbent(_, other) => {
                self.asked |= matches!(other, Message::PrepareHandoff { .. });
                assert!(
                    matches!(
                        other,
                        Message::HelloAck { .. }
                            | Message::PrepareHandoff { .. }
                            | Message::SealRequest { .. }
                            | Message::Heartbeat { .. }
                    ),
                    "{} to the incumbent",
                    short_name(other)
                );
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keeps_its_promises(
        history in history(),
        by_lease in any::<bool>(),
        ends in any::<bool>(),
    ) {
        let ownership = if by_lease { Ownership::ByLease } else { Ownership::ByControlPath };
        let watchdog = if ends { Watchdog::Ends } else { Watchdog::Spares };
        let mut machine = Supervisor::new(Timing::default());
        let mut observer = Observer::default();
        for input in std::iter::once(Input::Start(plan(ownership, watchdog))).chain(history) {
            observer.before(&input);
            for effect in machine.step(input) {
                observer.after(&effect);
            }
            prop_assert!(!observer.silence_goes_on, "a successor that speaks counts as silent");
        }
        prop_assert_eq!(observer.outcome.is_some(), machine.is_idle());
    }

    /// From anywhere, the end is reached when both peers die and every timer runs out.
    #[test]
    fn always_comes_to_an_end(history in history()) {
        let mut machine = Supervisor::new(Timing::default());
        let start = Input::Start(plan(Ownership::ByLease, Watchdog::Ends));
        for input in std::iter::once(start).chain(history) {
            let _ = machine.step(input);
        }
        let closing = [
            Input::ConnectFailed("x".into()),
            Input::SpawnFailed("x".into()),
            Input::Fired(Timer::Hello),
            Input::Fired(Timer::Warm),
            Input::JournalFailed("x".into()),
            Input::IncumbentGone,
            Input::Lease(LeaseReading::Nobody),
            Input::SuccessorGone("died".into()),
            Input::Fired(Timer::Resumed),
            Input::JournalSynced,
            Input::Lease(LeaseReading::Nobody),
            Input::JournalSynced,
        ];
        for input in closing {
            let _ = machine.step(input);
        }
        prop_assert!(machine.is_idle(), "{:?}", machine);
    }
}
