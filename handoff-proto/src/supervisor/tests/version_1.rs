//! What is different when one of the two others speaks version 1 only.

use super::*;

#[test]
fn only_an_incumbent_of_version_2_is_asked_to_seal_ahead_of_its_drain() {
    for (version, asked) in [(1, vec!["O:PrepareHandoff"]), (2, vec!["O:PrepareHandoff", "O:SealRequest"])] {
        let mut desk = Desk::new(plan());
        desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, version)));
        desk.give(Input::Spawned(N)).give(Input::FromSuccessor(hello(Side::Successor, N.pid, 2)));
        desk.give(Input::FromSuccessor(Message::Warmed { handoff_id: ID })).give(Input::JournalSynced);
        assert_eq!(desk.sent()[2..], asked);
        desk.give(Input::FromIncumbent(Message::Drained { open_conns_remaining: 0, accept_closed: true }));
        assert_eq!(desk.sent()[2..], ["O:PrepareHandoff", "O:SealRequest"]);
    }
}

#[test]
fn an_incumbent_of_version_1_is_not_told_to_resume_from_its_own_failure() {
    let mut desk = Desk::new(plan());
    desk.greeted(1, 1).give(Input::FromIncumbent(DRAINED));
    let failed = Message::SealFailed { handoff_id: ID, error: "EIO".into(), partial_state: String::new() };
    desk.give(Input::FromIncumbent(failed)).give(Input::SuccessorGone("was killed".into()));
    desk.give(Input::JournalSynced);
    assert_eq!(desk.reason(), "seal failed: EIO");
    assert_eq!(desk.sent(), ["O:HelloAck", "N:HelloAck", "O:PrepareHandoff", "O:SealRequest", "N:Abort"]);
}

#[test]
fn an_incumbent_of_version_1_has_no_lease_and_is_taken_over_all_the_same() {
    let mut desk = Desk::new(plan());
    desk.greeted(1, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    desk.give(Input::FromIncumbent(DRAINED)).give(seal_complete(&[1])).give(Input::Lease(LeaseReading::Nobody));
    assert_eq!(desk.sent().last().unwrap(), "N:BeginWith");
}

#[test]
fn a_successor_of_version_1_must_own_the_control_path() {
    let mut desk = Desk::new(plan());
    desk.greeted(1, 1).give(Input::FromIncumbent(DRAINED)).give(seal_complete(&[1]));
    desk.give(Input::Lease(LeaseReading::Nobody));
    assert_eq!(desk.sent().last().unwrap(), "N:Begin");
    // It hangs up as soon as it has said Ready.
    desk.give(ready(true, &[1])).give(Input::SuccessorClosed).give(Input::ControlPath(Some(O.pid)));
    assert!(!desk.sent().iter().any(|sent| sent == "O:Commit"));
    desk.give(Input::Fired(Timer::SuccessorClosed));
    desk.give(Input::Fired(Timer::AskPath)).give(Input::ControlPath(Some(N.pid)));
    assert_eq!(desk.sent().last().unwrap(), "O:Commit");
    desk.give(Input::JournalSynced);
    assert_eq!(desk.outcome(), Some(&Outcome::Committed { epoch: None }));
}

#[test]
fn before_a_successor_of_version_1_is_ended_the_control_path_is_asked() {
    for (answer, committed) in [(Some(N.pid), true), (None, false)] {
        let mut desk = Desk::new(plan());
        desk.greeted(1, 1).give(Input::FromIncumbent(DRAINED)).give(seal_complete(&[1]));
        desk.give(Input::Lease(LeaseReading::Nobody)).give(Input::Fired(Timer::SuccessorSilent));
        assert!(desk.did(&Effect::AskControlPath) && !desk.did(&Effect::StopSuccessor));
        desk.give(Input::ControlPath(answer));
        assert_eq!(desk.did(&Effect::StopSuccessor), !committed);
        assert_eq!(desk.sent().iter().any(|sent| sent == "O:Commit"), committed);
    }
}

#[test]
fn what_version_1_does_not_know_breaks_it() {
    let mut desk = Desk::new(plan());
    desk.greeted(1, 1).give(Input::FromIncumbent(Message::DrainFailed { handoff_id: ID, error: "x".into() }));
    desk.give(Input::SuccessorGone("was killed".into())).give(Input::JournalSynced);
    assert_eq!(desk.reason(), "the incumbent broke the protocol: DrainFailed in version 1");
}

#[test]
fn heartbeats_go_to_an_incumbent_of_version_2_alone() {
    let mut desk = Desk::draining();
    desk.give(Input::Fired(Timer::Heartbeat));
    assert_eq!(desk.sent().last().unwrap(), "O:Heartbeat");
    let mut desk = Desk::new(plan());
    desk.greeted(1, 1);
    assert!(!desk.done.iter().any(|effect| matches!(effect, Effect::Arm(Timer::Heartbeat, _))));
}
