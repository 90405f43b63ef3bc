//! The successor's machine: each rule of section 6 of `docs/protocol.md`, and what must hold for any input.

use std::time::Duration;

use handoff_proto::successor::{
    Age, Answer, Call, Effect, Errand, Found, GaveUp, Input, LockShown, Milestone, Outcome, Report, Successor, Timer,
    Unfit, Wire,
};
use handoff_proto::{BeginMode, HandoffId, LeaseState, LeaseView, Machine, Message, ProcessId, Timing};
use proptest::prelude::*;

const OWN: HandoffId = HandoffId::from_bytes([7; 16]);
const OTHER: HandoffId = HandoffId::from_bytes([9; 16]);
const EPOCH: u64 = 41;
const DEADLINE_NS: u64 = 5_000_000_000;

fn wire(message: Message) -> Input {
    Input::Wire(Wire::Message(message))
}

fn ack(version: u16) -> Input {
    wire(Message::HelloAck { proto_version_chosen: version, handoff_id: OWN })
}

fn begin_with(mode: BeginMode, sealed: &[u64]) -> Input {
    wire(Message::BeginWith {
        handoff_id: OWN,
        mode,
        sealed_revision_per_shard: sealed.to_vec(),
        data_dir_fingerprint: [3; 32],
        epoch: EPOCH,
        deadline_ns: DEADLINE_NS,
        open_ms: 10_000,
    })
}

fn abort() -> Input {
    wire(Message::Abort { handoff_id: OWN, reason: "enough".into() })
}

fn lease(epoch: u64, state: LeaseState, handoff_id: Option<HandoffId>, age: Age) -> Found {
    let owner = ProcessId { pid: 100, start_time: 5 };
    Found::Lease { lease: LeaseView { epoch, owner, state, handoff_id }, age }
}

fn sealed_lease() -> Found {
    lease(EPOCH, LeaseState::Sealed, Some(OWN), Age::BeforeBegin)
}

fn report(revisions: &[u64]) -> Report {
    let listening_on = vec!["[::]:80".into()];
    Report { listening_on, healthz_ok: true, advertised_revision_per_shard: revisions.to_vec(), ..Report::default() }
}

fn announce(report: Report) -> Input {
    Input::Daemon(Call::Announce { report, lock: LockShown { epoch: EPOCH + 1, handoff_id: Some(OWN) } })
}

fn call(call: Call) -> Input {
    Input::Daemon(call)
}

fn did(outcome: Outcome) -> Input {
    Input::Did(outcome)
}

/// A machine after these inputs.
fn after(inputs: impl IntoIterator<Item = Input>) -> Successor {
    let mut machine = Successor::new(200, b"build".to_vec(), Timing::default());
    for input in inputs {
        let _ = machine.step(input);
    }
    machine
}

fn waiting(version: u16) -> Vec<Input> {
    vec![call(Call::Handshake), ack(version), call(Call::WaitForBegin)]
}

fn begun(version: u16) -> Vec<Input> {
    let mut inputs = waiting(version);
    inputs.push(if version == 1 {
        wire(Message::Begin { handoff_id: OWN })
    } else {
        begin_with(BeginMode::Sealed, &[5, 6])
    });
    inputs
}

fn opening(version: u16) -> Vec<Input> {
    let mut inputs = begun(version);
    inputs.extend([call(Call::Lock), did(Outcome::Locked(sealed_lease())), did(Outcome::Claimed { epoch: EPOCH + 1 })]);
    inputs
}

fn activating(version: u16) -> Vec<Input> {
    let mut inputs = opening(version);
    inputs.extend([announce(report(&[5, 7])), did(Outcome::Done), did(Outcome::Done)]);
    inputs
}

fn answers(effects: &[Effect]) -> Vec<&Answer> {
    effects.iter().filter_map(|effect| if let Effect::Answer(answer) = effect { Some(answer) } else { None }).collect()
}

fn gave_up(effects: &[Effect]) -> Option<&GaveUp> {
    effects.iter().find_map(|effect| if let Effect::Reached(Milestone::Left(why)) = effect { Some(why) } else { None })
}

fn errands(effects: &[Effect]) -> Vec<&Errand> {
    effects.iter().filter_map(|effect| if let Effect::Do(errand) = effect { Some(errand) } else { None }).collect()
}

/// What the supervisor is told at last: whether it is ready.
fn ready(effects: &[Effect]) -> Option<bool> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send(_, Message::Ready { healthz_ok, .. }) => Some(*healthz_ok),
        Effect::Send(2, Message::NotReady { .. }) => Some(false),
        _ => None,
    })
}

#[test]
fn the_hello_announces_both_versions_in_a_frame_of_version_1() {
    let mut machine = after([]);
    let effects = machine.step(call(Call::Handshake));
    let Some(Effect::Send(1, Message::Hello { proto_min: 1, proto_max: 2, pid: 200, .. })) =
        effects.iter().find(|effect| matches!(effect, Effect::Send(..)))
    else {
        panic!("{effects:?}")
    };
}

#[test]
fn a_version_that_was_not_offered_is_refused() {
    for version in [0, 3] {
        let effects = after([call(Call::Handshake)]).step(ack(version));
        assert_eq!(answers(&effects), [&Answer::GaveUp(GaveUp::Version { chosen: version })]);
        assert!(effects.contains(&Effect::HangUp));
    }
}

#[test]
fn a_greeting_ends_by_silence_a_close_an_abort_or_nonsense() {
    let expect = |input: Input, why: GaveUp| {
        let effects = after([call(Call::Handshake)]).step(input);
        assert_eq!(answers(&effects), [&Answer::GaveUp(why)]);
    };
    expect(Input::Fired(Timer::Hello), GaveUp::SupervisorSilent);
    expect(Input::Wire(Wire::Closed), GaveUp::SupervisorGone);
    expect(Input::Wire(Wire::Garbage), GaveUp::Garbage);
    expect(abort(), GaveUp::Aborted { reason: "enough".into() });
    expect(wire(Message::Begin { handoff_id: OWN }), GaveUp::Unexpected { message: "Begin" });
}

#[test]
fn warmed_is_said_once_and_only_in_version_2() {
    for version in [1, 2] {
        let mut machine = after([call(Call::Handshake), ack(version)]);
        let mut effects = machine.step(call(Call::Warmed));
        effects.extend(machine.step(call(Call::Warmed)));
        effects.extend(machine.step(call(Call::WaitForBegin)));
        let said = effects.iter().filter(|e| matches!(e, Effect::Send(2, Message::Warmed { .. }))).count();
        assert_eq!(said, usize::from(version == 2));
        let mut machine = after([call(Call::Handshake), ack(version)]);
        let effects = machine.step(call(Call::WaitForBegin));
        assert_eq!(effects.contains(&Effect::Send(2, Message::Warmed { handoff_id: OWN })), version == 2);
    }
}

#[test]
fn before_begin_every_end_of_the_supervisor_ends_it_and_nothing_was_touched() {
    for version in [1, 2] {
        for end in [
            Input::Wire(Wire::Closed),
            Input::Wire(Wire::Garbage),
            abort(),
            Input::Fired(Timer::Supervisor),
            wire(Message::Begin { handoff_id: OTHER }),
            wire(Message::Commit { handoff_id: OWN }),
        ] {
            let effects = after(waiting(version)).step(end);
            assert!(matches!(answers(&effects)[..], [Answer::GaveUp(_)]), "{effects:?}");
            assert!(errands(&effects).is_empty());
            assert_eq!(ready(&effects), None);
        }
    }
}

#[test]
fn version_1_has_no_messages_of_version_2() {
    let effects = after(waiting(1)).step(begin_with(BeginMode::Sealed, &[]));
    assert_eq!(gave_up(&effects), Some(&GaveUp::Unexpected { message: "BeginWith" }));
}

#[test]
fn begin_that_comes_before_the_daemon_asks_is_kept_for_it() {
    let mut machine = after([call(Call::Handshake), ack(2), begin_with(BeginMode::Sealed, &[5])]);
    let effects = machine.step(call(Call::WaitForBegin));
    assert!(matches!(answers(&effects)[..], [Answer::Begun { mode: BeginMode::Sealed, sealed: Some(_) }]));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send(..))), "Warmed after BeginWith: {effects:?}");
}

#[test]
fn the_parts_of_a_long_seal_are_put_together() {
    let mut machine = after(waiting(2));
    let _ = machine.step(wire(Message::Revisions { first_shard: 0, revisions: vec![1, 2] }));
    let effects = machine.step(begin_with(BeginMode::Sealed, &[3]));
    let [Answer::Begun { sealed: Some(sealed), .. }] = answers(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(sealed.last_revision_per_shard, [1, 2, 3]);
    assert_eq!(sealed.data_dir_fingerprint, [3; 32]);

    let mut machine = after(waiting(2));
    let effects = machine.step(wire(Message::Revisions { first_shard: 1, revisions: vec![1] }));
    assert_eq!(gave_up(&effects), Some(&GaveUp::Unexpected { message: "Revisions" }));
}

#[test]
fn the_deadline_is_absolute() {
    let effects = after(waiting(2)).step(begin_with(BeginMode::Recover, &[]));
    assert!(effects.contains(&Effect::ArmAt(Timer::Deadline, DEADLINE_NS)));
    assert!(matches!(answers(&effects)[..], [Answer::Begun { mode: BeginMode::Recover, sealed: None }]));
}

#[test]
fn the_lock_is_tried_at_once_and_again_after_a_growing_pause() {
    let mut machine = after(begun(2));
    assert_eq!(errands(&machine.step(call(Call::Lock))), [&Errand::TryLock]);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let effects = machine.step(did(Outcome::Held(sealed_lease())));
        let [Effect::Arm(Timer::LockRetry, pause)] = effects[..] else { panic!("{effects:?}") };
        pauses.push(pause.as_micros());
        assert_eq!(errands(&machine.step(Input::Fired(Timer::LockRetry))), [&Errand::TryLock]);
    }
    assert_eq!(pauses, [200, 400, 800, 1600, 2000, 2000]);
    let effects = machine.step(Input::Fired(Timer::Deadline));
    assert_eq!(answers(&effects), [&Answer::GaveUp(GaveUp::LockHeld)]);
    assert_eq!(errands(&machine.step(did(Outcome::Locked(sealed_lease())))), [&Errand::Unlock], "late, so given back");
}

#[test]
fn only_the_named_epoch_may_be_found_under_the_lock() {
    for (found, goes_on) in [
        (sealed_lease(), true),
        (lease(EPOCH + 1, LeaseState::Active, None, Age::BeforeBegin), false),
        (lease(EPOCH + 2, LeaseState::Sealed, Some(OWN), Age::BeforeBegin), false),
        (lease(EPOCH - 1, LeaseState::Sealed, Some(OWN), Age::BeforeBegin), false),
        (Found::Nothing, false),
    ] {
        let mut machine = after(begun(2));
        let _ = machine.step(call(Call::Lock));
        let effects = machine.step(did(Outcome::Locked(found)));
        if goes_on {
            assert_eq!(errands(&effects), [&Errand::ClaimLease { handoff_id: OWN }]);
        } else {
            assert_eq!(errands(&effects), [&Errand::Unlock], "{found:?}");
            assert!(matches!(gave_up(&effects), Some(GaveUp::NotItsTurn { expected: Some(EPOCH), .. })));
            assert_eq!(ready(&effects), None, "the supervisor of that handover knows");
        }
    }
}

#[test]
fn a_newer_lease_ends_the_wait_for_the_lock() {
    let mut machine = after(begun(2));
    let _ = machine.step(call(Call::Lock));
    let effects = machine.step(did(Outcome::Held(lease(EPOCH + 1, LeaseState::Opening, None, Age::AfterBegin))));
    assert!(matches!(gave_up(&effects), Some(GaveUp::NotItsTurn { .. })));
}

#[test]
fn version_1_goes_on_under_its_own_seal_or_a_lease_that_is_not_newer() {
    for (found, goes_on) in [
        (Found::Nothing, true),
        (lease(EPOCH, LeaseState::Sealed, Some(OWN), Age::AfterBegin), true),
        (lease(EPOCH, LeaseState::Sealed, Some(OTHER), Age::BeforeBegin), true),
        (lease(EPOCH, LeaseState::Sealed, Some(OTHER), Age::AfterBegin), false),
        (lease(EPOCH, LeaseState::Active, Some(OWN), Age::AfterBegin), false),
        (lease(EPOCH, LeaseState::Active, None, Age::AfterBegin), false),
    ] {
        let mut machine = after(begun(1));
        let _ = machine.step(call(Call::Lock));
        let effects = machine.clone().step(did(Outcome::Locked(found)));
        let expected = if goes_on { Errand::ClaimLease { handoff_id: OWN } } else { Errand::Unlock };
        assert_eq!(errands(&effects), [&expected], "{found:?}");
        let waits = gave_up(&machine.step(did(Outcome::Held(found)))).is_none();
        assert_eq!(waits, goes_on, "{found:?}");
    }
}

#[test]
fn how_the_data_was_left_is_told_by_the_supervisor_or_else_by_the_lease() {
    let bare = wire(Message::Begin { handoff_id: OWN });
    let dead = lease(EPOCH, LeaseState::Active, Some(OWN), Age::BeforeBegin);
    let recover = begin_with(BeginMode::Recover, &[]);
    for (version, begin, found, before, under) in [
        (1, &bare, Found::Nothing, BeginMode::Sealed, BeginMode::Sealed),
        (2, &bare, sealed_lease(), BeginMode::Recover, BeginMode::Sealed),
        (2, &bare, dead, BeginMode::Recover, BeginMode::Recover),
        (2, &recover, sealed_lease(), BeginMode::Recover, BeginMode::Recover),
    ] {
        let mut machine = after(waiting(version));
        let effects = machine.step(begin.clone());
        assert_eq!(answers(&effects), [&Answer::Begun { mode: before, sealed: None }]);
        let _ = machine.step(call(Call::Lock));
        let _ = machine.step(did(Outcome::Locked(found)));
        let effects = machine.step(did(Outcome::Claimed { epoch: EPOCH + 1 }));
        assert_eq!(answers(&effects), [&Answer::Locked { mode: under }]);
    }
}

#[test]
fn active_comes_last_and_ready_behind_it() {
    let mut machine = after(opening(2));
    let same = Report { data_dir_fingerprint: Some([3; 32]), ..report(&[5, 6]) };
    assert_eq!(errands(&machine.step(announce(same))), [&Errand::StageControl]);
    assert_eq!(errands(&machine.step(did(Outcome::Done))), [&Errand::PublishControl]);
    let effects = machine.step(did(Outcome::Done));
    assert_eq!(errands(&effects), [&Errand::ActivateLease { not_after_ns: Some(DEADLINE_NS) }]);
    assert_eq!(ready(&effects), None);
    let effects = machine.step(did(Outcome::Done));
    assert_eq!(ready(&effects), Some(true));
    assert_eq!(answers(&effects), [&Answer::Announced]);
    assert!(!effects.contains(&Effect::HangUp), "a channel that closes now looks like a death");
    assert!(machine.step(Input::Wire(Wire::Closed)).contains(&Effect::HangUp));
    assert!(machine.is_over() && machine.is_active());
}

#[test]
fn an_unfit_daemon_never_becomes_active() {
    let sick = Report { healthz_ok: false, ..report(&[5, 6]) };
    let other = Report { data_dir_fingerprint: Some([8; 32]), ..report(&[5, 6]) };
    for (report, unfit) in [
        (sick, Unfit::Unhealthy),
        (other, Unfit::OtherData),
        (report(&[5]), Unfit::FewerShards { opened: 1, sealed: 2 }),
        (report(&[9, 5]), Unfit::LowerRevision { shard: 1, opened: 5, sealed: 6 }),
    ] {
        let mut machine = after(opening(2));
        let effects = machine.step(announce(report));
        assert_eq!(answers(&effects), [&Answer::GaveUp(GaveUp::Unfit(unfit))]);
        assert_eq!(ready(&effects), Some(false));
        assert!(errands(&effects).is_empty(), "the lock is kept until the process exits");
    }
}

#[test]
fn after_a_death_there_is_no_sealed_revision_to_compare_with() {
    let mut inputs = waiting(2);
    inputs.extend([begin_with(BeginMode::Recover, &[]), call(Call::Lock)]);
    let dead = lease(EPOCH, LeaseState::Active, None, Age::BeforeBegin);
    inputs.extend([did(Outcome::Locked(dead)), did(Outcome::Claimed { epoch: EPOCH + 1 })]);
    assert_eq!(errands(&after(inputs).step(announce(report(&[])))), [&Errand::StageControl]);
}

#[test]
fn a_report_too_large_for_version_1_is_found_before_active_and_travels_in_parts_in_version_2() {
    let many = report(&vec![u64::MAX; 200_000]);
    let effects = after(opening(1)).step(announce(many.clone()));
    assert_eq!(gave_up(&effects), Some(&GaveUp::Unfit(Unfit::ReportTooLarge)));

    let mut machine = after(opening(2));
    let _ = machine.step(announce(many));
    let _ = machine.step(did(Outcome::Done));
    let _ = machine.step(did(Outcome::Done));
    let effects = machine.step(did(Outcome::Done));
    let parts = effects.iter().filter(|e| matches!(e, Effect::Send(2, Message::Revisions { .. }))).count();
    assert_eq!((parts, ready(&effects)), (3, Some(true)));
}

#[test]
fn to_a_version_1_supervisor_no_is_said_by_hanging_up() {
    for end in [announce(Report::default()), call(Call::Dropped), Input::Fired(Timer::Deadline)] {
        let effects = after(opening(1)).step(end);
        assert_eq!(ready(&effects), None, "it takes any Ready for a success");
        assert!(effects.contains(&Effect::HangUp));
    }
}

#[test]
fn only_the_lock_of_this_handover_is_accepted() {
    for lock in [
        LockShown { epoch: EPOCH + 2, handoff_id: Some(OWN) },
        LockShown { epoch: EPOCH + 1, handoff_id: None },
        LockShown { epoch: EPOCH + 1, handoff_id: Some(OTHER) },
    ] {
        let effects = after(opening(2)).step(call(Call::Announce { report: report(&[5, 6]), lock }));
        assert_eq!(answers(&effects), [&Answer::GaveUp(GaveUp::WrongLock)]);
    }
    let effects = after(begun(2)).step(announce(report(&[5, 6])));
    assert_eq!(answers(&effects), [&Answer::GaveUp(GaveUp::WrongLock)]);
}

#[test]
fn a_second_lock_is_a_misuse_that_changes_nothing() {
    let mut machine = after(opening(2));
    let before = machine.clone();
    assert_eq!(machine.step(call(Call::Lock)), [Effect::Answer(Answer::Misuse)]);
    assert_eq!(machine, before);
}

#[test]
fn a_broken_channel_does_not_stop_it_after_begin() {
    for broken in [Input::Wire(Wire::Closed), Input::Wire(Wire::Garbage), wire(Message::Status)] {
        for (start, rest) in [(begun(2), &activating(2)[4..]), (opening(2), &activating(2)[7..])] {
            let mut machine = after(start);
            assert_eq!(machine.step(broken.clone()), [Effect::HangUp]);
            for input in rest {
                assert_eq!(gave_up(&machine.step(input.clone())), None);
            }
            let effects = machine.step(did(Outcome::Done));
            assert_eq!(answers(&effects), [&Answer::Announced]);
            assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send(..) | Effect::Heartbeat(_))));
            assert!(machine.is_over());
        }
    }
}

#[test]
fn an_abort_ends_it_until_the_lease_is_being_activated() {
    for inputs in [begun(2), opening(2), [opening(2), vec![announce(report(&[5, 6]))]].concat()] {
        let effects = after(inputs).step(abort());
        assert_eq!(gave_up(&effects), Some(&GaveUp::Aborted { reason: "enough".into() }));
        assert_eq!(ready(&effects), None);
    }
    for late in [abort(), Input::Fired(Timer::Deadline)] {
        let mut machine = after(activating(2));
        assert_eq!(machine.step(late), []);
        assert_eq!(answers(&machine.step(did(Outcome::Done))), [&Answer::Announced]);
    }
}

#[test]
fn an_abort_of_another_handover_is_not_obeyed_after_begin() {
    let foreign = wire(Message::Abort { handoff_id: OTHER, reason: String::new() });
    assert_eq!(after(opening(2)).step(foreign), [Effect::HangUp]);
}

#[test]
fn a_late_or_failed_successor_says_so_and_later_calls_return_the_reason() {
    for (end, why) in [(Input::Fired(Timer::Deadline), GaveUp::Late), (call(Call::Dropped), GaveUp::Dropped)] {
        let mut machine = after(opening(2));
        let effects = machine.step(end);
        assert_eq!((gave_up(&effects), ready(&effects)), (Some(&why), Some(false)));
        let effects = machine.step(announce(report(&[5, 6])));
        assert_eq!(effects, [Effect::Answer(Answer::GaveUp(why))]);
    }
    let effects = after(activating(2)).step(did(Outcome::TooLate));
    assert_eq!((gave_up(&effects), ready(&effects)), (Some(&GaveUp::Late), Some(false)));
}

/// What the supervisor is told of a successor that gives up.
fn told(effects: &[Effect]) -> Option<&str> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send(2, Message::NotReady { handoff_id: OWN, reason }) => Some(reason.as_str()),
        _ => None,
    })
}

#[test]
fn the_supervisor_hears_the_reason_itself() {
    let failed = || did(Outcome::Failed { reason: "/d/.handoff.lock: EIO".into() });
    let gives_up = || call(Call::GiveUp("the store is torn".into()));
    let mut trying = begun(2);
    trying.push(call(Call::Lock));
    let sick = Report { healthz_ok: false, ..report(&[5, 6]) };
    for (before, end, reason) in [
        (trying.clone(), failed(), "/d/.handoff.lock: EIO"),
        (trying, Input::Fired(Timer::Deadline), "another process held the data directory's lock until the deadline"),
        (opening(2), gives_up(), "the store is torn"),
        (waiting(2), gives_up(), "the store is torn"),
        (opening(2), announce(sick), "it reports itself unhealthy"),
        (opening(2), announce(report(&[9, 5])), "it opened shard 1 at revision 5, sealed was 6"),
        (activating(2), did(Outcome::TooLate), "the handover's deadline has passed"),
    ] {
        let effects = after(before).step(end);
        assert!(told(&effects).is_some_and(|told| told.starts_with(reason)), "{reason}: {effects:?}");
        let hang_up = effects.iter().position(|effect| *effect == Effect::HangUp);
        let sent = effects.iter().position(|effect| matches!(effect, Effect::Send(..)));
        assert!(sent < hang_up);
    }
    let effects = after(opening(2)).step(call(Call::GiveUp("x".repeat(1 << 20))));
    assert!(told(&effects).is_some_and(|told| told.len() < 1 << 16), "a reason fits a frame");
    let effects = after(opening(1)).step(gives_up());
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send(..))), "version 1 hears a closed channel");
}

#[test]
fn an_opening_tells_its_progress_at_once_and_then_at_most_once_in_an_interval() {
    let progress = Effect::Send(2, Message::OpenProgress { handoff_id: OWN });
    let interval = Effect::Arm(Timer::Progress, Duration::from_millis(10_000 / 8));
    let said = [progress, interval];
    let mut machine = after(opening(2));
    assert_eq!(machine.step(Input::Progressed), said);
    assert_eq!(machine.step(Input::Progressed), []);
    assert_eq!(machine.step(Input::Progressed), []);
    assert_eq!(machine.step(Input::Fired(Timer::Progress)), said, "what waited");
    assert_eq!(machine.step(Input::Fired(Timer::Progress)), []);
    assert_eq!(machine.step(Input::Progressed), said);
    for silent in [begun(2), opening(1)] {
        assert_eq!(after(silent).step(Input::Progressed), [], "nobody waits for it");
    }
}

#[test]
fn a_lock_that_comes_after_the_end_is_given_back() {
    let mut inputs = begun(2);
    inputs.extend([call(Call::Lock), did(Outcome::Locked(sealed_lease())), abort()]);
    let mut machine = after(inputs);
    assert_eq!(machine.step(did(Outcome::Claimed { epoch: EPOCH + 1 })), [Effect::Do(Errand::Unlock)]);
    assert_eq!(machine.step(did(Outcome::Done)), []);
}

#[test]
fn heartbeats_flow_where_somebody_reads_them() {
    let beats = |inputs: Vec<Input>| after(inputs).step(Input::Fired(Timer::Heartbeat));
    for (inputs, version) in [(waiting(2), 2), (begun(2), 2), (opening(2), 2), (begun(1), 1), (opening(1), 1)] {
        assert!(beats(inputs).contains(&Effect::Heartbeat(version)));
    }
    let armed = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Arm(Timer::Heartbeat, _)));
    assert!(!armed(&after([call(Call::Handshake)]).step(ack(1))), "version 1 reads nothing before Begin");
    assert!(armed(&after(waiting(1)).step(wire(Message::Begin { handoff_id: OWN }))));
}

#[test]
fn a_loop_that_woke_late_gives_the_supervisor_a_fresh_interval() {
    let timing = Timing::default();
    assert_eq!(after([call(Call::Handshake)]).step(Input::WokeLate), [Effect::Arm(Timer::Hello, timing.hello)]);
    assert_eq!(after(waiting(2)).step(Input::WokeLate), [Effect::Arm(Timer::Supervisor, timing.deadline_max)]);
    assert_eq!(after(opening(2)).step(Input::WokeLate), [], "its own deadline stays");
}

fn any_message() -> impl Strategy<Value = Message> {
    let id = prop_oneof![4 => Just(OWN), 1 => Just(OTHER)];
    prop_oneof![
        (0u16..4, id.clone()).prop_map(|(v, handoff_id)| Message::HelloAck { proto_version_chosen: v, handoff_id }),
        id.clone().prop_map(|handoff_id| Message::Begin { handoff_id }),
        id.clone().prop_map(|handoff_id| Message::Abort { handoff_id, reason: String::new() }),
        (id.clone(), any::<bool>()).prop_map(|(handoff_id, sealed)| Message::BeginWith {
            handoff_id,
            mode: if sealed { BeginMode::Sealed } else { BeginMode::Recover },
            sealed_revision_per_shard: vec![5],
            data_dir_fingerprint: [0; 32],
            epoch: EPOCH,
            deadline_ns: DEADLINE_NS,
            open_ms: 10_000,
        }),
        (0u32..3).prop_map(|first_shard| Message::Revisions { first_shard, revisions: vec![1] }),
        Just(Message::Heartbeat { ts_ms: 0 }),
        id.prop_map(|handoff_id| Message::Commit { handoff_id }),
        Just(Message::ListenersRequest),
    ]
}

fn any_found() -> impl Strategy<Value = Found> {
    prop_oneof![
        Just(Found::Nothing),
        Just(sealed_lease()),
        Just(sealed_lease()),
        (EPOCH - 1..EPOCH + 3).prop_map(|epoch| lease(epoch, LeaseState::Active, None, Age::AfterBegin)),
        Just(lease(EPOCH, LeaseState::Sealed, Some(OTHER), Age::AfterBegin)),
    ]
}

/// Any input at all, those that lead on more often than the others.
fn any_input() -> impl Strategy<Value = Input> {
    let way = [opening(1), activating(2), vec![did(Outcome::Done)]].concat();
    prop_oneof![
        8 => proptest::sample::select(way),
        2 => any_message().prop_map(wire),
        1 => any_found().prop_map(|found| did(Outcome::Locked(found))),
        1 => any_found().prop_map(|found| did(Outcome::Held(found))),
        1 => proptest::sample::select(vec![
            Input::Wire(Wire::Closed),
            Input::Wire(Wire::Garbage),
            call(Call::Warmed),
            call(Call::Dropped),
            announce(report(&[4])),
            did(Outcome::TooLate),
            did(Outcome::Failed { reason: "EIO".into() }),
            Input::Fired(Timer::Hello),
            Input::Fired(Timer::Supervisor),
            Input::Fired(Timer::Heartbeat),
            Input::Fired(Timer::Deadline),
            Input::Fired(Timer::LockRetry),
            Input::WokeLate,
        ]),
    ]
}

/// What the effects so far say, and what they must not say.
#[derive(Default)]
struct Witness {
    errand: Option<Errand>,
    claimed: bool,
    activated: bool,
    warmed: usize,
    ready: usize,
    hung_up: bool,
    calls: usize,
    answers: usize,
}

impl Witness {
    /// An outcome counts only as that of the errand under way; everything else may come at any time.
    fn admits(&self, input: &Input) -> bool {
        let Input::Did(outcome) = input else { return true };
        match self.errand {
            None => false,
            Some(Errand::TryLock) => {
                matches!(outcome, Outcome::Held(_) | Outcome::Locked(_) | Outcome::Failed { .. })
            }
            Some(Errand::ClaimLease { .. }) => {
                matches!(outcome, Outcome::Claimed { .. } | Outcome::Failed { .. })
            }
            Some(Errand::Unlock) => *outcome == Outcome::Done,
            Some(Errand::StageControl | Errand::PublishControl) => {
                matches!(outcome, Outcome::Done | Outcome::Failed { .. })
            }
            Some(Errand::ActivateLease { .. }) => {
                matches!(outcome, Outcome::Done | Outcome::TooLate | Outcome::Failed { .. })
            }
        }
    }

    fn takes(&mut self, input: &Input) {
        match (input, self.errand) {
            (Input::Did(Outcome::Claimed { .. }), _) => self.claimed = true,
            (Input::Did(Outcome::Done), Some(Errand::ActivateLease { .. })) => self.activated = true,
            (Input::Daemon(call), _) if *call != Call::Dropped => self.calls += 1,
            _ => {}
        }
        if matches!(input, Input::Did(_)) {
            self.errand = None;
        }
    }

    fn sees(&mut self, input: &Input, effect: &Effect) {
        match effect {
            Effect::Do(errand) => {
                assert_eq!(self.errand, None, "two errands at once");
                match errand {
                    Errand::ClaimLease { .. } => {
                        let Input::Did(Outcome::Locked(found)) = input else { panic!("claims without the lock") };
                        assert!(found.epoch() == EPOCH || *found == Found::Nothing || found.epoch() < EPOCH);
                    }
                    Errand::ActivateLease { .. } => assert!(self.claimed && !self.activated),
                    _ => {}
                }
                self.errand = Some(*errand);
            }
            Effect::Send(_, Message::Warmed { .. }) => self.warmed += 1,
            Effect::Send(_, Message::Ready { healthz_ok, .. }) => {
                self.ready += 1;
                assert_eq!(*healthz_ok, self.activated, "Ready says what the lease says");
            }
            Effect::Answer(answer) => {
                self.answers += 1;
                assert_eq!(*answer == Answer::Announced, self.activated && self.ready_or_alone(answer));
            }
            Effect::HangUp => {
                assert!(!self.hung_up);
                self.hung_up = true;
            }
            _ => {}
        }
        if matches!(effect, Effect::Send(..) | Effect::Heartbeat(_)) {
            assert!(!self.hung_up, "speaks into a closed channel");
        }
    }

    fn ready_or_alone(&self, answer: &Answer) -> bool {
        *answer == Answer::Announced && (self.ready == 1 || self.hung_up)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_rules_hold(inputs in proptest::collection::vec(any_input(), 0..60)) {
        let mut machine = after([]);
        let mut witness = Witness::default();
        for input in inputs {
            if !witness.admits(&input) {
                continue;
            }
            witness.takes(&input);
            let effects = machine.step(input.clone());
            for effect in &effects {
                witness.sees(&input, effect);
            }
            prop_assert!(witness.warmed <= 1 && witness.ready <= 1);
            prop_assert!(witness.answers <= witness.calls);
            prop_assert_eq!(machine.is_active(), witness.activated);
            if machine.is_over() {
                prop_assert!(witness.hung_up);
                prop_assert_eq!(witness.answers, witness.calls, "a call that nobody answers");
            }
        }
    }

    #[test]
    fn outcomes_that_nobody_asked_for_never_panic(inputs in proptest::collection::vec(any_input(), 0..60)) {
        let _ = after(inputs);
    }
}
