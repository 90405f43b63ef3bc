//! One test for each way that a handover can go.

mod bounds;
mod transfer;
mod undoing;
mod version_1;

use std::time::Duration;

use super::*;
use crate::lease::LeaseState;
use crate::message::{BeginMode, Capabilities, Side};

const ID: HandoffId = HandoffId::from_bytes([7; 16]);
const O: ProcessId = ProcessId { pid: 100, start_time: 1 };
const N: ProcessId = ProcessId { pid: 200, start_time: 2 };
const EPOCH: u64 = 41;

/// A supervisor at work, and all that it has asked for.
struct Desk {
    machine: Supervisor,
    done: Vec<Effect>,
}

fn plan() -> Plan {
    Plan {
        handoff_id: ID,
        deadline: Duration::from_secs(300),
        drain_grace: Duration::from_secs(60),
        warm: Duration::from_secs(50),
        open: Duration::from_secs(10),
        resume: Duration::from_secs(30),
        ownership: Ownership::ByLease,
        watchdog: Watchdog::Ends,
        unheard: None,
    }
}

fn hello(role: Side, pid: u32, proto_max: u16) -> Message {
    let capabilities = Capabilities::default();
    Message::Hello { role, pid, build_id: Vec::new(), proto_min: 1, proto_max, capabilities }
}

fn lease(owner: ProcessId, state: LeaseState, epoch: u64) -> Input {
    Input::Lease(LeaseReading::Found(LeaseView { epoch, owner, state, handoff_id: Some(ID) }))
}

fn ready(healthz_ok: bool, revisions: &[u64]) -> Input {
    Input::FromSuccessor(Message::Ready {
        handoff_id: ID,
        listening_on: Vec::new(),
        healthz_ok,
        advertised_revision_per_shard: revisions.to_vec(),
    })
}

fn seal_complete(revisions: &[u64]) -> Input {
    Input::FromIncumbent(Message::SealComplete {
        handoff_id: ID,
        last_revision_per_shard: revisions.to_vec(),
        data_dir_fingerprint: [9; 32],
    })
}

const DRAINED: Message = Message::Drained { open_conns_remaining: 0, accept_closed: true };

impl Desk {
    fn new(plan: Plan) -> Self {
        let mut desk = Self { machine: Supervisor::new(Timing::default()), done: Vec::new() };
        desk.give(Input::Start(plan));
        desk
    }

    /// Gives one input and keeps what it leads to.
    fn give(&mut self, input: Input) -> &mut Self {
        self.done.extend(self.machine.step(input));
        self
    }

    fn greeted(&mut self, o_max: u16, n_max: u16) -> &mut Self {
        self.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, o_max)));
        self.give(Input::Spawned(N)).give(Input::FromSuccessor(hello(Side::Successor, N.pid, n_max)));
        self.give(Input::JournalSynced)
    }

    fn draining() -> Self {
        let mut desk = Self::new(plan());
        desk.greeted(2, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
        desk
    }

    fn sealing() -> Self {
        let mut desk = Self::draining();
        desk.give(Input::FromIncumbent(DRAINED));
        desk
    }

    fn begun() -> Self {
        let mut desk = Self::sealing();
        desk.give(seal_complete(&[5, 6])).give(lease(O, LeaseState::Sealed, EPOCH));
        desk.done.clear();
        desk
    }

    /// The names of the messages sent, in order, with the peer's letter.
    fn sent(&self) -> Vec<String> {
        let names = self.done.iter().filter_map(|effect| match effect {
            Effect::SendIncumbent(_, message) => Some(format!("O:{}", crate::short_name(message))),
            Effect::SendSuccessor(_, message) => Some(format!("N:{}", crate::short_name(message))),
            _ => None,
        });
        names.collect()
    }

    fn did(&self, effect: &Effect) -> bool {
        self.done.contains(effect)
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.done.iter().find_map(|effect| match effect {
            Effect::Finish(outcome) => Some(outcome),
            _ => None,
        })
    }

    fn reason(&self) -> &str {
        match self.outcome() {
            Some(Outcome::Aborted { reason, .. } | Outcome::Refused { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// The way from a killed successor to the end.
    fn killed_and_resumed(&mut self) {
        assert!(self.did(&Effect::KillSuccessor));
        self.give(Input::SuccessorGone("was killed".into()));
        assert!(self.sent().iter().any(|sent| sent == "O:ResumeAfterAbort"), "{:?}", self.sent());
        self.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID })).give(Input::JournalSynced);
        assert!(matches!(self.outcome(), Some(Outcome::Aborted { .. })));
    }
}

#[test]
fn commits_in_the_written_order() {
    let mut desk = Desk::sealing();
    desk.give(seal_complete(&[5, 6])).give(lease(O, LeaseState::Sealed, EPOCH));
    desk.give(ready(true, &[5, 7])).give(Input::JournalSynced);
    assert_eq!(
        desk.sent(),
        ["O:HelloAck", "N:HelloAck", "O:PrepareHandoff", "O:SealRequest", "N:BeginWith", "O:Commit"]
    );
    let phases: Vec<_> = desk.done.iter().filter(|e| matches!(e, Effect::Record(_) | Effect::SyncJournal)).collect();
    assert_eq!(
        phases,
        [
            &Effect::Record(Phase::Negotiating),
            &Effect::Record(Phase::Negotiating),
            &Effect::SyncJournal,
            &Effect::Record(Phase::Draining),
            &Effect::Record(Phase::Sealing),
            &Effect::Record(Phase::AwaitingReady),
            &Effect::Record(Phase::Committed),
        ]
    );
    assert_eq!(desk.outcome(), Some(&Outcome::Committed { epoch: Some(EPOCH + 1) }));
    assert!(desk.machine.is_idle());
}

#[test]
fn tells_the_successor_what_was_sealed() {
    let mut desk = Desk::sealing();
    desk.give(Input::FromIncumbent(Message::Revisions { first_shard: 0, revisions: vec![1, 2] }));
    desk.give(seal_complete(&[3])).give(lease(O, LeaseState::Sealed, EPOCH));
    let begin = Message::BeginWith {
        handoff_id: ID,
        mode: BeginMode::Sealed,
        sealed_revision_per_shard: vec![1, 2, 3],
        data_dir_fingerprint: [9; 32],
        epoch: EPOCH,
        deadline_ns: 0,
        open_ms: 10_000,
    };
    assert!(desk.did(&Effect::SendSuccessor(2, begin)));
}

#[test]
fn the_incumbent_is_not_touched_before_the_successor_is_warm_and_the_intent_durable() {
    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, 2)));
    desk.give(Input::Spawned(N)).give(Input::FromSuccessor(hello(Side::Successor, N.pid, 2)));
    desk.give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    assert_eq!(desk.sent(), ["O:HelloAck", "N:HelloAck"]);
    desk.give(Input::JournalSynced);
    assert_eq!(desk.sent()[2..], ["O:PrepareHandoff", "O:SealRequest"]);
}

#[test]
fn refuses_without_an_incumbent_or_a_binary() {
    let mut desk = Desk::new(plan());
    desk.give(Input::ConnectFailed("nobody listens".into()));
    assert_eq!(desk.outcome(), Some(&Outcome::Refused { reason: "nobody listens".into() }));

    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, 2)));
    desk.give(Input::SpawnFailed("no such file".into()));
    assert_eq!(desk.reason(), "no such file");
    assert_eq!(desk.sent(), ["O:HelloAck"]);
}

#[test]
fn refuses_an_incumbent_that_is_not_who_it_says() {
    for hello in [
        hello(Side::Successor, O.pid, 2),
        hello(Side::Incumbent, O.pid + 1, 2),
        Message::Hello {
            role: Side::Incumbent,
            pid: O.pid,
            build_id: Vec::new(),
            proto_min: 9,
            proto_max: 12,
            capabilities: Capabilities::default(),
        },
        DRAINED,
    ] {
        let mut desk = Desk::new(plan());
        desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello));
        assert!(matches!(desk.outcome(), Some(Outcome::Refused { .. })));
        assert!(desk.sent().is_empty());
    }
}

#[test]
fn a_bad_successor_costs_the_incumbent_nothing() {
    let inputs = [
        Input::SuccessorGone("exited with status 1".into()),
        Input::Fired(Timer::Hello),
        Input::FromSuccessor(hello(Side::Successor, N.pid + 1, 2)),
        Input::FromSuccessor(hello(Side::Incumbent, N.pid, 2)),
        Input::SuccessorMalformed("noise".into()),
        Input::Cancel("asked to stop".into()),
        Input::JournalFailed("disk full".into()),
    ];
    for input in inputs {
        let mut desk = Desk::new(plan());
        desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, 2)));
        desk.give(Input::Spawned(N)).give(input).give(Input::SuccessorGone("was killed".into()));
        desk.give(Input::JournalSynced);
        assert!(matches!(desk.outcome(), Some(Outcome::Aborted { .. })), "{:?}", desk.machine);
        assert!(!desk.sent().iter().any(|sent| sent.starts_with("O:") && sent != "O:HelloAck"), "{:?}", desk.sent());
        assert!(desk.did(&Effect::RecordUndone));
    }
}

#[test]
fn waits_for_warmth_within_its_bound() {
    let mut desk = Desk::new(plan());
    desk.greeted(2, 2);
    assert!(desk.did(&Effect::Arm(Timer::Warm, plan().warm)));
    desk.give(Input::Fired(Timer::Warm)).give(Input::SuccessorGone("was killed".into())).give(Input::JournalSynced);
    assert_eq!(desk.reason(), "the successor was not warmed within 50s");
}

#[test]
fn a_journal_that_fails_after_the_drain_began_stops_nothing() {
    let mut desk = Desk::sealing();
    desk.give(Input::JournalFailed("disk full".into()));
    desk.give(seal_complete(&[1])).give(lease(O, LeaseState::Sealed, EPOCH));
    desk.give(ready(true, &[1])).give(Input::JournalFailed("disk full".into()));
    assert!(matches!(desk.outcome(), Some(Outcome::Committed { .. })));
}

/// A number that is too large means "no limit" to whoever writes it.
#[test]
fn any_plan_is_taken_and_none_is_longer_than_an_incumbent_agrees_to() {
    let max = Timing::default().deadline_max;
    let endless = Plan { deadline: Duration::MAX, drain_grace: Duration::MAX, warm: Duration::MAX, ..plan() };
    let mut desk = Desk::new(endless);
    desk.greeted(2, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID })).give(Input::WokeLate);
    for armed in [
        Effect::Arm(Timer::Warm, max),
        Effect::Arm(Timer::Deadline, max),
        Effect::Arm(Timer::DrainGrace, max + Timing::default().successor_slack),
    ] {
        assert!(desk.did(&armed), "{armed:?}");
    }
    let timing = Timing { deadline_max: Duration::MAX, ..Timing::default() };
    let mut machine = Supervisor::new(timing);
    let unbounded = Plan { deadline: Duration::MAX, drain_grace: Duration::MAX, ..plan() };
    let _ = machine.step(Input::Start(unbounded));
    let mut desk = Desk { machine, done: Vec::new() };
    desk.greeted(2, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID })).give(Input::WokeLate);
    assert!(desk.did(&Effect::Arm(Timer::DrainGrace, Duration::MAX)));
}

#[test]
fn failed_hooks_keep_their_words() {
    let mut desk = Desk::draining();
    desk.give(Input::FromIncumbent(Message::DrainFailed { handoff_id: ID, error: "queue stuck".into() }));
    desk.killed_and_resumed();
    assert_eq!(desk.reason(), "drain failed: queue stuck");

    let mut desk = Desk::sealing();
    let (error, partial_state) = ("EIO".into(), "2 of 4 shards".into());
    desk.give(Input::FromIncumbent(Message::SealFailed { handoff_id: ID, error, partial_state }));
    desk.killed_and_resumed();
    assert_eq!(desk.reason(), "seal failed: EIO (2 of 4 shards)");
}

#[test]
fn begins_only_under_the_incumbents_own_seal() {
    for look in [
        lease(O, LeaseState::Active, EPOCH),
        lease(N, LeaseState::Sealed, EPOCH),
        Input::Lease(LeaseReading::Nobody),
        Input::Lease(LeaseReading::Unreadable("EIO".into())),
        Input::Lease(LeaseReading::Found(LeaseView {
            epoch: EPOCH,
            owner: O,
            state: LeaseState::Sealed,
            handoff_id: Some(HandoffId::from_bytes([8; 16])),
        })),
    ] {
        let mut desk = Desk::sealing();
        desk.give(seal_complete(&[1])).give(look);
        assert!(!desk.sent().iter().any(|sent| sent == "N:BeginWith"), "{:?}", desk.sent());
        desk.killed_and_resumed();
    }
}

#[test]
fn without_a_data_dir_it_begins_without_a_look_and_says_so() {
    let mut desk = Desk::new(Plan { ownership: Ownership::ByControlPath, ..plan() });
    desk.greeted(2, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    desk.give(Input::FromIncumbent(DRAINED)).give(seal_complete(&[1]));
    assert_eq!(desk.sent().last().unwrap(), "N:Begin");
    assert!(desk.did(&Effect::Reached(Milestone::WithoutLease)) && !desk.did(&Effect::ReadLease));
    desk.give(ready(true, &[1])).give(Input::JournalSynced);
    assert_eq!(desk.outcome(), Some(&Outcome::Committed { epoch: None }));
}

#[test]
fn a_successor_is_promoted_when_the_incumbent_dies_before_it_sealed() {
    let early = {
        let mut desk = Desk::new(plan());
        desk.greeted(2, 2).give(Input::IncumbentGone);
        desk.give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
        desk
    };
    let mut desks = [early, Desk::draining(), Desk::sealing()];
    for desk in &mut desks {
        desk.give(Input::IncumbentClosed).give(Input::IncumbentGone).give(lease(O, LeaseState::Active, EPOCH));
        let begin = Message::BeginWith {
            handoff_id: ID,
            mode: BeginMode::Recover,
            sealed_revision_per_shard: Vec::new(),
            data_dir_fingerprint: [0; 32],
            epoch: EPOCH,
            deadline_ns: 0,
            open_ms: 10_000,
        };
        let armed = desk.done.iter().rposition(|e| *e == Effect::Arm(Timer::Deadline, plan().deadline)).unwrap();
        let sent = desk.done.iter().position(|e| *e == Effect::SendSuccessor(2, begin.clone())).unwrap();
        assert!(armed < sent, "a promoted successor has a new deadline");
        desk.give(ready(true, &[1])).give(Input::JournalSynced);
        assert!(matches!(desk.outcome(), Some(Outcome::Committed { .. })));
    }
}

#[test]
fn nobody_is_promoted_over_a_newer_lease() {
    let mut desk = Desk::draining();
    desk.give(Input::IncumbentGone).give(lease(N, LeaseState::Active, EPOCH + 3));
    assert!(!desk.sent().iter().any(|sent| sent == "N:BeginWith"));
    desk.give(Input::SuccessorGone("was killed".into())).give(Input::JournalSynced);
    assert!(desk.reason().contains("not its own"));
}

#[test]
fn the_incumbents_death_after_the_seal_changes_nothing() {
    let mut desk = Desk::begun();
    desk.give(Input::IncumbentClosed).give(Input::IncumbentGone).give(ready(true, &[5, 6]));
    desk.give(Input::JournalSynced);
    assert!(matches!(desk.outcome(), Some(Outcome::Committed { .. })));
}

#[test]
fn a_frozen_incumbent_is_ended_and_its_successor_promoted_or_spared() {
    let mut desk = Desk::draining();
    desk.give(Input::Fired(Timer::IncumbentSilent));
    assert!(desk.did(&Effect::KillIncumbent));
    desk.give(Input::IncumbentGone).give(lease(O, LeaseState::Active, EPOCH));
    assert_eq!(desk.sent().last().unwrap(), "N:BeginWith");

    let mut desk = Desk::new(Plan { watchdog: Watchdog::Spares, ..plan() });
    desk.greeted(2, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    desk.give(Input::Fired(Timer::IncumbentSilent));
    assert!(!desk.did(&Effect::KillIncumbent));
    desk.give(Input::SuccessorGone("was killed".into())).give(Input::Fired(Timer::Resumed));
    desk.give(Input::JournalSynced);
    assert_eq!(desk.reason(), "the incumbent was silent for 10s");
}

#[test]
fn an_incumbent_that_is_lost_while_the_successor_starts_is_asked_for_nothing_and_not_killed() {
    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, 2)));
    desk.give(Input::IncumbentMalformed("HelloAck could not be sent".into())).give(Input::Spawned(N));
    assert!(desk.did(&Effect::KillSuccessor), "{:?}", desk.done);
    desk.give(Input::SuccessorGone("was killed".into())).give(Input::JournalSynced);
    assert_eq!(desk.reason(), "the incumbent's session ended while the successor was started");
    assert_eq!(desk.sent(), ["O:HelloAck", "N:Abort"]);
}

#[test]
fn while_the_incumbents_session_closes_nobody_is_asked_to_drain() {
    let closing = || {
        let mut desk = Desk::new(plan());
        desk.greeted(2, 2).give(Input::IncumbentClosed).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
        assert_eq!(desk.sent(), ["O:HelloAck", "N:HelloAck"]);
        desk
    };
    let mut alive = closing();
    alive.give(Input::Fired(Timer::IncumbentClosed)).give(Input::SuccessorGone("was killed".into()));
    alive.give(Input::JournalSynced);
    assert_eq!(alive.reason(), "the incumbent closed its session");
    let mut dead = closing();
    dead.give(Input::IncumbentGone).give(lease(O, LeaseState::Active, EPOCH));
    assert_eq!(dead.sent().last().unwrap(), "N:BeginWith", "it is promoted at once");
}

#[test]
fn every_word_of_the_incumbent_puts_its_silence_off() {
    let mut desk = Desk::draining();
    desk.done.clear();
    desk.give(Input::FromIncumbent(Message::Heartbeat { ts_ms: 1 }));
    assert_eq!(desk.done, [Effect::Arm(Timer::IncumbentSilent, Timing::default().liveness)]);
}

#[test]
fn every_word_of_the_successor_puts_its_silence_off() {
    let mut warming = Desk::new(plan());
    warming.greeted(2, 2);
    for mut desk in [warming, Desk::draining(), Desk::sealing(), Desk::begun()] {
        desk.done.clear();
        desk.give(Input::FromSuccessor(Message::Heartbeat { ts_ms: 1 }));
        assert_eq!(desk.done, [Effect::Arm(Timer::SuccessorSilent, Timing::default().liveness)]);
    }
}

#[test]
fn nothing_beats_after_the_commit() {
    let mut desk = Desk::begun();
    desk.give(ready(true, &[5, 6]));
    assert!(desk.did(&Effect::Disarm(Timer::Heartbeat)));
    desk.done.clear();
    desk.give(Input::Fired(Timer::Heartbeat));
    assert_eq!(desk.done, []);
}

#[test]
fn an_incumbent_of_version_2_hears_from_us_while_it_waits() {
    let beat = Effect::SendIncumbent(2, Message::Heartbeat { ts_ms: 0 });
    let again = Effect::Arm(Timer::Heartbeat, Timing::default().heartbeat);
    for (version, is_told) in [(1, false), (2, true)] {
        let mut desk = Desk::new(plan());
        desk.greeted(version, 2);
        assert_eq!(desk.did(&again), is_told, "from its greeting on");
    }
    for mut desk in [Desk::draining(), Desk::sealing(), Desk::begun()] {
        desk.done.clear();
        desk.give(Input::Fired(Timer::Heartbeat));
        assert_eq!(desk.done, [beat.clone(), again.clone()]);
    }
    let mut desk = Desk::begun();
    desk.give(Input::IncumbentGone);
    desk.done.clear();
    desk.give(Input::Fired(Timer::Heartbeat));
    assert_eq!(desk.done, [], "nobody is there to hear it");
}

#[test]
fn the_deadline_ends_a_slow_incumbents_handover_without_killing_it() {
    let mut desk = Desk::sealing();
    desk.give(Input::Fired(Timer::Deadline)).give(Input::FromIncumbent(Message::Heartbeat { ts_ms: 1 }));
    assert!(!desk.did(&Effect::KillIncumbent));
    desk.killed_and_resumed();
}

#[test]
fn a_cancel_after_begin_finishes_or_undoes() {
    let mut desk = Desk::begun();
    desk.give(Input::Cancel("asked to stop".into())).give(Input::SuccessorStopped(Stopped::Yes));
    desk.give(lease(O, LeaseState::Sealed, EPOCH));
    desk.killed_and_resumed();
    assert_eq!(desk.reason(), "asked to stop");

    let mut desk = Desk::begun();
    desk.give(ready(true, &[5, 6])).give(Input::Cancel("asked to stop".into())).give(Input::JournalSynced);
    assert!(matches!(desk.outcome(), Some(Outcome::Committed { .. })));
}

#[test]
fn a_peer_that_breaks_the_protocol_ends_the_handover() {
    for input in [
        Input::FromIncumbent(Message::Resumed { handoff_id: ID }),
        Input::FromIncumbent(DRAINED),
        Input::IncumbentMalformed("noise".into()),
        Input::FromIncumbent(Message::Revisions { first_shard: 3, revisions: vec![1] }),
        Input::FromSuccessor(Message::Warmed { handoff_id: ID }),
        ready(true, &[9]),
    ] {
        let mut desk = Desk::sealing();
        desk.give(input).give(Input::SuccessorGone("was killed".into()));
        desk.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID })).give(Input::JournalSynced);
        assert!(desk.reason().contains("broke the protocol"), "{}", desk.reason());
    }
}

#[test]
fn whoever_is_awaited_gets_a_fresh_interval_when_we_were_late() {
    let mut desk = Desk::sealing();
    desk.done.clear();
    desk.give(Input::WokeLate);
    for timer in [Timer::Deadline, Timer::IncumbentSilent, Timer::SuccessorSilent] {
        assert!(desk.done.iter().any(|effect| matches!(effect, Effect::Arm(armed, _) if *armed == timer)), "{timer:?}");
    }
    let mut desk = Desk::begun();
    desk.give(Input::WokeLate);
    let fresh =
        [Effect::Arm(Timer::Open, plan().open), Effect::Arm(Timer::SuccessorSilent, Timing::default().liveness)];
    assert_eq!(desk.done, fresh);
}

#[test]
fn an_incumbent_that_never_says_hello_stays_in_the_journal() {
    let mut desk = Desk::new(plan());
    desk.give(Input::ConnectFailed("nobody listens".into()));
    assert!(!desk.done.iter().any(|effect| matches!(effect, Effect::Record(_) | Effect::RecordUndone)));

    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::Fired(Timer::Hello));
    assert!(desk.did(&Effect::Record(Phase::ResumingAfterAbort)) && !desk.did(&Effect::RecordUndone));

    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::IncumbentGone);
    assert!(desk.did(&Effect::RecordUndone));
}
