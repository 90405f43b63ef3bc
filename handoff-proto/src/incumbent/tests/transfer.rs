//! The directory's lock goes over ahead of the drain and is then never let go; where it can't go over, nothing is drained.

use super::*;

const CHANNEL: Message = Message::TransferChannel { handoff_id: HandoffId::from_bytes([1; 16]) };

/// A channel has come for the handover, and the directory is being passed.
fn passing() -> Rig {
    let mut rig = Rig::greeted(2);
    assert_eq!(rig.receive(A, CHANNEL), [Effect::Arm(Timer::Session(A), Timing::default().deadline_max)]);
    let effects = rig.prepare(A, 1);
    assert!(
        effects.contains(&Effect::PassDirectory(A)) && !effects.contains(&Effect::StampLease(id(1))),
        "{effects:?}"
    );
    rig
}

fn release_in(effects: &[Effect]) -> Directory {
    let release = |effect: &Effect| if let Effect::ReleaseLock(directory) = effect { Some(*directory) } else { None };
    effects.iter().find_map(release).unwrap_or_else(|| panic!("nothing is released: {effects:?}"))
}

fn is_passed(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::PassDirectory(_)))
}

#[test]
fn a_directory_that_was_passed_is_never_let_go() {
    let mut rig = passing();
    assert_eq!(rig.step(Input::DirectoryPassed(Ok(()))), [Effect::StampLease(id(1))]);
    rig.step(Input::Stamped(Ok(())));
    rig.step(Input::DrainEnded(Ok(drain())));
    rig.receive(A, Message::SealRequest { handoff_id: id(1) });
    assert_eq!(release_in(&rig.step(Input::SealEnded(Ok(seal())))), Directory::Passed);
}

/// Its successor may be dead by now, and a stranger waits for the directory: the daemon goes on serving.
#[test]
fn a_directory_that_can_not_be_passed_refuses_the_handover_before_the_drain() {
    let mut rig = passing();
    let effects = rig.step(Input::DirectoryPassed(Err("EPIPE".into())));
    let error = "the lock of the data directory can't be passed to the successor: EPIPE".to_owned();
    assert_eq!(messages(&effects), [&Message::DrainFailed { handoff_id: id(1), error }]);
    assert!(rig.machine.is_serving() && resumes(&effects).is_empty());
    assert!(rig.prepare(A, 2).contains(&Effect::StampLease(id(2))));
}

#[test]
fn without_a_channel_nothing_is_passed() {
    let mut rig = Rig::greeted(2);
    assert!(!is_passed(&rig.prepare(A, 1)));
    assert_eq!(release_in(&Rig::sealing(2).step(Input::SealEnded(Ok(seal())))), Directory::Released);
}

#[test]
fn the_channel_of_another_handover_or_session_is_not_this_ones() {
    let mut rig = Rig::greeted(2);
    rig.receive(A, Message::TransferChannel { handoff_id: id(7) });
    assert!(!is_passed(&rig.prepare(A, 1)));
    let mut rig = Rig::greeted(2);
    rig.greet(B);
    rig.receive(B, CHANNEL);
    assert!(!is_passed(&rig.prepare(A, 1)));
}

#[test]
fn a_channel_serves_one_handover() {
    let mut rig = Rig::greeted(2);
    rig.receive(A, CHANNEL);
    assert!(is_passed(&rig.prepare(A, 1)));
    rig.step(Input::DirectoryPassed(Ok(())));
    rig.step(Input::Stamped(Ok(())));
    rig.step(Input::DrainEnded(Ok(drain())));
    rig.abort();
    rig.resume();
    assert!(!is_passed(&rig.prepare(A, 2)));
    rig.step(Input::Stamped(Ok(())));
    rig.step(Input::DrainEnded(Ok(drain())));
    rig.receive(A, Message::SealRequest { handoff_id: id(2) });
    assert_eq!(release_in(&rig.step(Input::SealEnded(Ok(seal())))), Directory::Released);
}

/// The next supervisor may send its Prepare while the handover before is still being undone: nothing can be passed before the
/// lock is held again.
#[test]
fn a_handover_that_waits_for_the_resume_of_another_passes_the_directory_when_it_begins() {
    let mut rig = Rig::sealed(2);
    rig.step(Input::Closed(A));
    rig.greet(B);
    rig.receive(B, Message::TransferChannel { handoff_id: id(2) });
    assert!(!is_passed(&rig.prepare(B, 2)));
    rig.step(Input::LeaseRead(Ok(Some(own_seal(1)))));
    rig.step(Input::LockTried(LockTried::Locked(Some(own_seal(1)))));
    rig.step(Input::Claimed(Ok(6)));
    rig.step(Input::Activated(Ok(())));
    let effects = rig.step(Input::ResumeEnded(ResumeEnd::Serving));
    assert!(is_passed(&effects));
}

#[test]
fn version_1_knows_no_channel_and_a_handover_under_way_takes_none() {
    for mut rig in [Rig::greeted(1), Rig::draining(2), Rig::drained(2), Rig::sealing(2), Rig::sealed(2)] {
        assert_eq!(closes(&rig.receive(A, CHANNEL)), [(A, Why::Violation)]);
    }
}
