//! Sealed without a supervisor: the lease decides.

use super::*;

fn waits(effects: &[Effect]) -> bool {
    effects.contains(&Effect::Arm(Timer::Poll, Timing::default().limbo_poll))
}

fn superseded(effects: &[Effect]) -> bool {
    effects.last() == Some(&Effect::Leave(Leaving::Superseded))
}

fn read(rig: &mut Rig, lease: LeaseView) -> Vec<Effect> {
    rig.step(Input::LeaseRead(Ok(Some(lease))))
}

fn another() -> LeaseView {
    LeaseView { epoch: 7, owner: SUCCESSOR, state: LeaseState::Opening, handoff_id: Some(id(2)) }
}

/// In limbo, the lease says this, and the lock is held by somebody.
fn held(lease: LeaseView) -> (Rig, Vec<Effect>) {
    let mut rig = Rig::limbo();
    assert_eq!(read(&mut rig, lease), [Effect::TryLock]);
    let effects = rig.step(Input::LockTried(LockTried::Held));
    (rig, effects)
}

#[test]
fn every_way_out_of_sealed_leads_to_the_lease() {
    let inputs = [
        Input::Closed(A),
        Input::Malformed(A),
        Input::Fired(Timer::Silence),
        Input::Fired(Timer::Late),
        Input::Received(A, 2, Message::SealRequest { handoff_id: id(1) }),
    ];
    for input in inputs {
        let mut rig = Rig::sealed(2);
        let effects = rig.step(input.clone());
        assert!(effects.contains(&Effect::ReadLease), "{input:?}");
        assert!(effects.contains(&Effect::Reached(id(1), Milestone::InLimbo)), "{input:?}");
    }
    assert!(Rig::sealed(2).step(Input::Fired(Timer::Deadline)).is_empty(), "only the slack after it counts");
}

#[test]
fn an_abort_takes_the_data_back_and_is_answered() {
    let mut rig = Rig::sealed(2);
    assert!(rig.abort().contains(&Effect::ReadLease));
    assert_eq!(read(&mut rig, own_seal(1)), [Effect::TryLock]);
    assert_eq!(rig.step(Input::LockTried(LockTried::Locked(Some(own_seal(1))))), [Effect::ClaimLease]);
    assert!(rig.step(Input::Claimed(Ok(6))).contains(&Effect::ActivateLease));
    let effects = rig.step(Input::Activated(Ok(())));
    let run = Effect::RunResume { state_may_have_changed: true, epoch: 6 };
    assert!(position(&effects, &Effect::KillSuccessor) < position(&effects, &run));
    assert!(position(&effects, &Effect::RestoreListenerFlags) < position(&effects, &run));
    assert!(effects.contains(&Effect::PublishControl));
    let effects = rig.resume();
    assert_eq!(messages(&effects), [&Message::Resumed { handoff_id: id(1) }]);
    assert_eq!(rig.machine.epoch(), 6);
    rig.prepare(A, 2);
    rig.step(Input::Stamped(Ok(())));
    rig.step(Input::DrainEnded(Ok(drain())));
    let again = rig.receive(A, Message::ResumeAfterAbort { handoff_id: id(2) });
    assert_eq!(resumes(&again), [false], "the state was read again since");
}

#[test]
fn our_own_seal_or_our_own_successor_may_be_taken_back_from() {
    for lease in [own_seal(1), successor_lease(LeaseState::Opening, 1), LeaseView { epoch: 4, ..another() }] {
        let mut rig = Rig::limbo();
        assert_eq!(read(&mut rig, lease), [Effect::TryLock], "{lease:?}");
        assert_eq!(rig.step(Input::LockTried(LockTried::Locked(Some(lease)))), [Effect::ClaimLease], "{lease:?}");
    }
    let mut rig = Rig::limbo();
    assert_eq!(rig.step(Input::LeaseRead(Ok(None))), [Effect::TryLock]);
    assert_eq!(rig.step(Input::LockTried(LockTried::Locked(None))), [Effect::ClaimLease]);
}

#[test]
fn another_owner_supersedes_us_without_a_try_of_the_lock() {
    for lease in [
        another(),
        LeaseView { state: LeaseState::Active, ..another() },
        LeaseView { handoff_id: None, ..another() },
        successor_lease(LeaseState::Sealed, 1),
        LeaseView { owner: SUCCESSOR, handoff_id: None, ..own_seal(1) },
    ] {
        let mut rig = Rig::limbo();
        let effects = read(&mut rig, lease);
        assert!(superseded(&effects) && !effects.contains(&Effect::TryLock), "{lease:?}");
    }
}

#[test]
fn what_the_lease_says_under_the_lock_is_what_counts() {
    let mut rig = Rig::limbo();
    read(&mut rig, own_seal(1));
    let effects = rig.step(Input::LockTried(LockTried::Locked(Some(another()))));
    assert_eq!(effects[0], Effect::Unlock);
    assert!(superseded(&effects) && !effects.contains(&Effect::ClaimLease));
}

#[test]
fn an_active_successor_that_holds_the_lock_supersedes_us() {
    let active = successor_lease(LeaseState::Active, 1);
    let finding = || {
        let mut rig = Rig::limbo();
        assert_eq!(read(&mut rig, active), [Effect::FindHolder]);
        rig
    };
    let effects = finding().step(Input::HolderFound(Some(SUCCESSOR_PID)));
    assert!(superseded(&effects));
    assert!(effects.contains(&Effect::ContinueSuccessor), "a supervisor may have died when it had just stopped it");

    let mut dead = finding();
    assert_eq!(dead.step(Input::HolderFound(None)), [Effect::TryLock]);
    assert_eq!(dead.step(Input::LockTried(LockTried::Locked(Some(active)))), [Effect::ClaimLease]);

    let mut third = finding();
    third.step(Input::HolderFound(Some(999)));
    assert!(waits(&third.step(Input::LockTried(LockTried::Held))), "it has not written its lease yet");

    let mut unseen = finding();
    unseen.step(Input::HolderFound(None));
    assert!(superseded(&unseen.step(Input::LockTried(LockTried::Held))));

    let mut gone = finding();
    gone.step(Input::SuccessorExited);
    gone.step(Input::HolderFound(None));
    assert!(waits(&gone.step(Input::LockTried(LockTried::Held))));
}

#[test]
fn an_opening_successor_is_waited_for_until_the_slack_is_over() {
    let (mut rig, effects) = held(successor_lease(LeaseState::Opening, 1));
    assert!(waits(&effects));
    assert_eq!(rig.clone().step(Input::Fired(Timer::Poll)), [Effect::ReadLease]);
    assert!(rig.clone().step(Input::SuccessorExited).contains(&Effect::ReadLease), "its end wakes us");

    rig.step(Input::Fired(Timer::Late));
    rig.step(Input::Fired(Timer::Poll));
    read(&mut rig, successor_lease(LeaseState::Opening, 1));
    let effects = rig.step(Input::LockTried(LockTried::Held));
    assert_eq!(effects, [Effect::StopSuccessor, Effect::SeeSuccessor]);
    assert!(matches!(rig.step(Input::SuccessorRunning)[..], [Effect::Arm(Timer::Stopping, _)]));
    assert_eq!(rig.step(Input::Fired(Timer::Stopping)), [Effect::SeeSuccessor]);
    assert_eq!(rig.step(Input::SuccessorStopped), [Effect::ReadLease]);

    let mut became_active = rig.clone();
    let effects = read(&mut became_active, successor_lease(LeaseState::Active, 1));
    assert_eq!(effects[0], Effect::ContinueSuccessor, "a serving successor is never ended");
    let mut unreadable = rig.clone();
    let effects = unreadable.step(Input::LeaseRead(Err("EIO".into())));
    assert!(matches!(effects[..], [Effect::Arm(Timer::Stopping, _)]), "a supervisor may count on that it stands still");
    assert_eq!(unreadable.step(Input::Fired(Timer::Stopping)), [Effect::SeeSuccessor]);

    let effects = read(&mut rig, successor_lease(LeaseState::Opening, 1));
    assert_eq!(effects[0], Effect::KillSuccessor);
    assert!(waits(&effects));
}

#[test]
fn only_our_own_watched_successor_is_ended() {
    let stranger = ProcessId { pid: 777, start_time: 1 };
    let (mut rig, _) = held(LeaseView { owner: stranger, ..successor_lease(LeaseState::Opening, 1) });
    rig.step(Input::Fired(Timer::Late));
    rig.step(Input::Fired(Timer::Poll));
    read(&mut rig, LeaseView { owner: stranger, ..successor_lease(LeaseState::Opening, 1) });
    assert!(waits(&rig.step(Input::LockTried(LockTried::Held))));
}

#[test]
fn a_successor_that_writes_no_lease_is_asked_for_on_the_control_path() {
    let (rig, effects) = held(own_seal(1));
    assert_eq!(effects[0], Effect::AskControlPath);
    assert!(superseded(&rig.clone().step(Input::PathAnswered(Some(SUCCESSOR_PID)))));
    for input in [Input::PathAnswered(Some(ME.pid)), Input::PathAnswered(None), Input::Fired(Timer::Ask)] {
        let effects = rig.clone().step(input);
        assert!(waits(&effects) && effects.contains(&Effect::StopAsking));
    }
    assert!(rig.clone().step(Input::SuccessorExited).contains(&Effect::ReadLease));

    // Frozen between the lock and the lease, and the supervisor gone.
    let mut frozen = rig;
    frozen.step(Input::Fired(Timer::Late));
    assert!(frozen.step(Input::PathAnswered(None)).contains(&Effect::StopSuccessor));
    frozen.step(Input::SuccessorStopped);
    assert_eq!(read(&mut frozen, own_seal(1))[0], Effect::KillSuccessor);
}

#[test]
fn limbo_survives_every_error() {
    assert!(waits(&Rig::limbo().step(Input::LeaseRead(Err("EIO".into())))));
    let mut rig = Rig::limbo();
    read(&mut rig, own_seal(1));
    assert!(waits(&rig.clone().step(Input::LockTried(LockTried::Failed))));
    rig.step(Input::LockTried(LockTried::Locked(Some(own_seal(1)))));
    assert!(waits(&rig.clone().step(Input::Claimed(Err("ENOSPC".into())))));
    rig.step(Input::Claimed(Ok(6)));
    let effects = rig.step(Input::Activated(Err("EIO".into())));
    assert_eq!(effects[0], Effect::Arm(Timer::Retry, Duration::from_millis(100)));
    assert_eq!(rig.step(Input::Fired(Timer::Retry)), [Effect::ActivateLease]);
    assert_eq!(resumes(&rig.step(Input::Activated(Ok(())))), [true]);
}

#[test]
fn a_supervisor_that_asked_is_told_that_we_live() {
    let mut rig = Rig::sealed(2);
    assert!(rig.abort().contains(&Effect::Arm(Timer::Heartbeat, Timing::default().heartbeat)));
    assert!(rig.step(Input::Fired(Timer::Heartbeat)).contains(&Effect::SendHeartbeat(A, 2)));
}

#[test]
fn a_prepare_in_limbo_waits_for_the_outcome() {
    let (mut rig, _) = held(successor_lease(LeaseState::Opening, 1));
    rig.greet(B);
    assert!(closes(&rig.prepare(B, 2)).is_empty());
    assert!(superseded(&{
        let mut rig = rig.clone();
        rig.step(Input::Fired(Timer::Poll));
        read(&mut rig, another())
    }));
    rig.step(Input::SuccessorExited);
    read(&mut rig, successor_lease(LeaseState::Opening, 1));
    rig.step(Input::LockTried(LockTried::Locked(Some(successor_lease(LeaseState::Opening, 1)))));
    rig.step(Input::Claimed(Ok(7)));
    let effects = rig.step(Input::Activated(Ok(())));
    assert!(!effects.contains(&Effect::KillSuccessor), "it is gone already");
    assert!(rig.step(Input::ResumeEnded(ResumeEnd::Serving)).contains(&Effect::StampLease(id(2))));
}
