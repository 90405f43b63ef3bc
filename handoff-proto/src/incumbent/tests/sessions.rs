//! Sessions side by side, and what each message costs out of turn.

use super::*;
use crate::message::{BeginMode, Capabilities, Side, StatusReport};

fn wrong_direction() -> Vec<Message> {
    let handoff_id = id(1);
    vec![
        Message::Hello {
            role: Side::Successor,
            pid: 1,
            build_id: Vec::new(),
            proto_min: 1,
            proto_max: 2,
            capabilities: Capabilities::default(),
        },
        Message::HelloAck { proto_version_chosen: 2, handoff_id },
        Message::Drained { open_conns_remaining: 0, accept_closed: true },
        Message::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 0 },
        Message::SealComplete { handoff_id, last_revision_per_shard: vec![1], data_dir_fingerprint: [0; 32] },
        Message::SealFailed { handoff_id, error: String::new(), partial_state: String::new() },
        Message::Begin { handoff_id },
        Message::Ready { handoff_id, listening_on: vec![], healthz_ok: true, advertised_revision_per_shard: vec![] },
        Message::Warmed { handoff_id },
        Message::BeginWith {
            handoff_id,
            mode: BeginMode::Sealed,
            sealed_revision_per_shard: vec![],
            data_dir_fingerprint: [0; 32],
            epoch: 1,
            deadline_ns: 1,
            open_ms: 1,
        },
        Message::Resumed { handoff_id },
        Message::DrainFailed { handoff_id, error: String::new() },
        Message::Listeners { names: vec![] },
        Message::StatusReport(StatusReport::default()),
        Message::Revisions { first_shard: 0, revisions: vec![] },
        Message::NotReady { handoff_id, reason: String::new() },
        Message::OpenProgress { handoff_id },
    ]
}

/// One machine in each state that a supervisor can leave it in.
fn states() -> Vec<(&'static str, Rig)> {
    let mut cancelling = Rig::draining(2);
    cancelling.abort();
    let mut resuming = Rig::drained(2);
    resuming.abort();
    let mut committing = Rig::sealed(2);
    committing.receive(A, Message::Commit { handoff_id: id(1) });
    let mut limbo = Rig::sealed(2);
    limbo.abort();
    vec![
        ("serving", Rig::greeted(2)),
        ("draining", Rig::draining(2)),
        ("drained", Rig::drained(2)),
        ("sealing", Rig::sealing(2)),
        ("sealed", Rig::sealed(2)),
        ("cancelling", cancelling),
        ("resuming", resuming),
        ("committing", committing),
        ("limbo", limbo),
    ]
}

#[test]
fn a_violation_costs_the_session_and_the_socket_goes_on() {
    for (name, rig) in states() {
        let mut bad = wrong_direction();
        bad.push(Message::SealRequest { handoff_id: id(9) });
        bad.push(Message::Commit { handoff_id: id(9) });
        bad.push(Message::Abort { handoff_id: id(9), reason: String::new() });
        bad.push(Message::ResumeAfterAbort { handoff_id: id(9) });
        if name != "sealed" {
            bad.push(Message::Commit { handoff_id: id(1) });
        }
        for message in bad {
            let mut rig = rig.clone();
            let effects = rig.receive(A, message.clone());
            assert_eq!(closes(&effects), [(A, Why::Violation)], "{name}: {message:?}");
            assert!(messages(&effects).is_empty(), "{name}: nothing is said after it");
            rig.greet(B);
            assert!(rig.receive(B, Message::Status).iter().any(|e| matches!(e, Effect::SendStatus { .. })));
        }
    }
}

#[test]
fn garbage_costs_the_session() {
    for (name, mut rig) in states() {
        assert_eq!(closes(&rig.step(Input::Malformed(A))), [(A, Why::Violation)], "{name}");
        assert!(rig.step(Input::Malformed(A)).is_empty());
        assert!(rig.receive(A, Message::Heartbeat { ts_ms: 0 }).is_empty(), "{name}: it is closed");
    }
}

#[test]
fn a_heartbeat_is_echoed_in_every_state_and_changes_nothing() {
    for (name, mut rig) in states() {
        let before = rig.machine.clone();
        let effects = rig.receive(A, Message::Heartbeat { ts_ms: 1 });
        assert!(effects.contains(&Effect::SendHeartbeat(A, 2)), "{name}");
        assert_eq!(rig.machine, before, "{name}");
    }
    let mut rig = Rig { machine: machine(), version: 1 };
    rig.step(Input::Connected { session: A, peer_pid: None });
    assert!(
        rig.receive(A, Message::Heartbeat { ts_ms: 1 }).contains(&Effect::SendHeartbeat(A, 1)),
        "before the greeting"
    );
}

#[test]
fn a_second_prepare_is_refused_while_one_is_under_way() {
    for (name, rig) in states() {
        if ["serving", "cancelling", "resuming", "limbo"].contains(&name) {
            continue;
        }
        let mut same = rig.clone();
        assert_eq!(closes(&same.prepare(A, 2)), [(A, Why::Violation)], "{name}");
        let mut other = rig.clone();
        other.greet(B);
        assert_eq!(closes(&other.prepare(B, 2)), [(B, Why::Busy)], "{name}");
        assert_eq!(other.machine.state, rig.machine.state, "{name}: the first goes on");
    }
}

#[test]
fn only_one_prepare_waits_for_the_end_of_an_undone_handover() {
    let mut rig = Rig::drained(2);
    rig.step(Input::Closed(A));
    rig.greet(A);
    rig.greet(B);
    assert!(closes(&rig.prepare(A, 2)).is_empty());
    assert_eq!(closes(&rig.prepare(B, 3)), [(B, Why::Busy)]);
    let mut twice = rig.clone();
    assert_eq!(closes(&twice.prepare(A, 3)), [(A, Why::Violation)]);
    let mut gone = rig.clone();
    gone.step(Input::Closed(A));
    assert!(!gone.resume().contains(&Effect::StampLease(id(2))));
    assert!(rig.step(Input::Fired(Timer::Heartbeat)).contains(&Effect::SendHeartbeat(A, 2)), "it is told that we live");
    assert!(rig.step(Input::ResumeEnded(ResumeEnd::Serving)).contains(&Effect::StampLease(id(2))));
}

#[test]
fn the_greeting_is_strict() {
    let connected = || {
        let mut rig = Rig { machine: machine(), version: 2 };
        let effects = rig.step(Input::Connected { session: A, peer_pid: None });
        let [
            Effect::Send(A, 1, Message::Hello { role: Side::Incumbent, pid: 100, proto_min: 1, proto_max: 2, .. }),
            ..,
        ] = &effects[..]
        else {
            panic!("{effects:?}")
        };
        assert!(effects.contains(&Effect::Arm(Timer::Session(A), Timing::default().hello)));
        rig
    };
    for version in [0, 3] {
        let ack = Message::HelloAck { proto_version_chosen: version, handoff_id: id(1) };
        assert_eq!(closes(&connected().receive(A, ack)), [(A, Why::Violation)]);
    }
    assert_eq!(closes(&connected().prepare(A, 1)), [(A, Why::Violation)]);
    assert_eq!(closes(&connected().step(Input::Fired(Timer::Session(A)))), [(A, Why::Silent)]);
    let ack = Message::HelloAck { proto_version_chosen: 1, handoff_id: id(1) };
    assert_eq!(closes(&connected().step(Input::Received(A, 9, ack.clone()))), [(A, Why::Violation)]);
    assert!(closes(&connected().step(Input::Received(A, 2, ack))).is_empty());
}

#[test]
fn version_1_does_not_know_the_messages_of_version_2() {
    for message in [Message::Status, Message::ListenersRequest] {
        let mut rig = Rig::greeted(1);
        assert_eq!(closes(&rig.receive(A, message)), [(A, Why::Violation)]);
    }
    let mut rig = Rig::greeted(2);
    assert!(rig.receive(A, Message::ListenersRequest).contains(&Effect::SendListeners(A)));
}

#[test]
fn crowds_never_keep_a_supervisor_out() {
    let mut rig = Rig::draining(2);
    for n in 10..30 {
        rig.step(Input::Connected { session: SessionId(n), peer_pid: None });
    }
    assert_eq!(rig.machine.handover().unwrap().link.unwrap().session, A, "the handover goes on");
    let effects = rig.step(Input::Connected { session: B, peer_pid: None });
    assert_eq!(closes(&effects), [(SessionId(15), Why::Crowded)], "who has not greeted and waits longest");
    assert!(matches!(messages(&effects)[..], [Message::Hello { .. }]));

    let mut rig = Rig::greeted(2);
    for n in 10..25 {
        rig.greet(SessionId(n));
    }
    rig.receive(A, Message::Heartbeat { ts_ms: 0 });
    assert_eq!(closes(&rig.step(Input::Connected { session: B, peer_pid: None })), [(SessionId(10), Why::Crowded)]);
}

#[test]
fn an_idle_session_may_wait_as_long_as_a_handover() {
    let mut rig = Rig::greeted(2);
    let effects = rig.receive(A, Message::Status);
    assert!(effects.contains(&Effect::Arm(Timer::Session(A), Timing::default().deadline_max)));
    assert_eq!(closes(&rig.step(Input::Fired(Timer::Session(A)))), [(A, Why::Silent)]);
    let mut rig = Rig::draining(2);
    assert!(closes(&rig.step(Input::Fired(Timer::Session(A)))).is_empty(), "other timers judge a handover");
}

#[test]
fn a_supervisor_that_watches_costs_no_timer() {
    let mut rig = Rig::greeted(2);
    let effects = rig.receive(A, Message::Heartbeat { ts_ms: 0 });
    assert_eq!(effects, [Effect::Disarm(Timer::Session(A)), Effect::SendHeartbeat(A, 2)]);
    let effects = rig.receive(A, Message::Status);
    assert!(effects.contains(&Effect::Arm(Timer::Session(A), Timing::default().deadline_max)), "until it asks more");
    let mut rig = Rig::draining(2);
    let effects = rig.receive(A, Message::Heartbeat { ts_ms: 0 });
    assert!(!effects.contains(&Effect::Disarm(Timer::Session(A))), "in a handover its silence counts");
}

#[test]
fn the_control_path_is_published_again_only_by_the_owner() {
    let mut rig = Rig::greeted(2);
    assert_eq!(rig.step(Input::ControlPathLost), [Effect::PublishControl]);
    let effects = rig.step(Input::ControlPublished(Err("EACCES".into())));
    assert_eq!(effects, [Effect::Arm(Timer::Publish, Duration::from_millis(100))]);
    assert_eq!(rig.step(Input::Fired(Timer::Publish)), [Effect::PublishControl]);
    assert!(rig.step(Input::ControlPublished(Ok(()))).is_empty());
    assert!(Rig::sealed(2).step(Input::ControlPathLost).is_empty());
    assert!(Rig::limbo().step(Input::ControlPathLost).is_empty());
}
