//! How a handover is undone, and who is ended for it.

use super::*;

#[test]
fn an_unfit_successor_is_ended_even_if_it_is_active() {
    for report in [ready(false, &[5, 6]), ready(true, &[5, 5]), ready(true, &[5])] {
        let mut desk = Desk::begun();
        desk.give(report);
        assert!(!desk.did(&Effect::ReadLease) && desk.sent().is_empty());
        desk.killed_and_resumed();
    }
}

#[test]
fn a_silent_successor_is_stopped_looked_at_and_killed() {
    let mut desk = Desk::begun();
    desk.give(Input::Fired(Timer::SuccessorSilent));
    assert!(desk.did(&Effect::StopSuccessor) && !desk.did(&Effect::KillSuccessor));
    desk.give(Input::SuccessorStopped(Stopped::NotYet)).give(Input::Fired(Timer::Look));
    assert!(desk.did(&Effect::LookIfStopped) && !desk.did(&Effect::ReadLease));
    desk.give(Input::SuccessorStopped(Stopped::Yes)).give(lease(N, LeaseState::Opening, EPOCH + 1));
    assert!(desk.sent().is_empty(), "told before the successor is gone: {:?}", desk.sent());
    desk.killed_and_resumed();
    assert_eq!(desk.reason(), "the successor was silent for 10s");
}

#[test]
fn a_successor_found_active_is_committed_not_killed() {
    let mut desk = Desk::begun();
    desk.give(Input::Fired(Timer::Deadline)).give(Input::Fired(Timer::Late));
    desk.give(Input::SuccessorStopped(Stopped::Yes)).give(lease(N, LeaseState::Active, EPOCH + 1));
    assert!(desk.did(&Effect::ContinueSuccessor) && !desk.did(&Effect::KillSuccessor));
    assert_eq!(desk.sent(), ["O:Commit"]);
    desk.give(Input::JournalSynced);
    assert_eq!(desk.outcome(), Some(&Outcome::Committed { epoch: Some(EPOCH + 1) }));
}

#[test]
fn a_late_word_of_unfitness_condemns() {
    let mut desk = Desk::begun();
    desk.give(Input::Fired(Timer::SuccessorSilent)).give(ready(false, &[]));
    desk.give(Input::SuccessorStopped(Stopped::Yes)).give(lease(N, LeaseState::Active, EPOCH + 1));
    assert!(!desk.did(&Effect::ContinueSuccessor));
    desk.killed_and_resumed();
    assert_eq!(desk.reason(), "the successor reports itself unhealthy");
}

#[test]
fn a_successor_that_dies_after_its_turn_came_is_undone() {
    let mut desk = Desk::begun();
    desk.give(Input::SuccessorGone("was killed by signal 9".into()));
    assert_eq!(desk.sent(), ["O:ResumeAfterAbort"]);
    desk.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID })).give(Input::JournalSynced);
    assert_eq!(desk.reason(), "the successor was killed by signal 9 before it was ready");
}

#[test]
fn a_closed_channel_is_death_only_with_a_dead_process() {
    let mut desk = Desk::begun();
    desk.give(Input::SuccessorClosed);
    assert!(desk.did(&Effect::Arm(Timer::SuccessorClosed, Timing::default().closed_grace)));
    assert!(!desk.did(&Effect::StopSuccessor));
    desk.give(Input::Fired(Timer::SuccessorClosed));
    assert!(desk.did(&Effect::StopSuccessor));

    let mut desk = Desk::draining();
    desk.give(Input::IncumbentClosed).give(Input::Fired(Timer::IncumbentClosed));
    desk.give(Input::SuccessorGone("was killed".into())).give(Input::JournalSynced);
    assert_eq!(desk.reason(), "the incumbent closed its session");
}

#[test]
fn a_killed_successor_that_the_kernel_holds_leaves_the_incumbent_to_itself() {
    let mut desk = Desk::begun();
    desk.give(ready(false, &[])).give(Input::Fired(Timer::Ended)).give(Input::JournalSynced);
    assert!(desk.did(&Effect::CloseIncumbent) && desk.sent().is_empty());
    assert!(!desk.did(&Effect::RecordUndone), "a restarted supervisor must find it");
    assert!(matches!(desk.outcome(), Some(Outcome::Aborted { .. })));
}

#[test]
fn an_incumbent_that_was_not_heard_to_serve_stays_in_the_journal() {
    for lost in [Input::Fired(Timer::Resumed), Input::IncumbentMalformed("noise".into())] {
        let mut desk = Desk::begun();
        desk.give(ready(false, &[])).give(Input::SuccessorGone("was killed".into())).give(lost);
        assert!(desk.did(&Effect::Record(Phase::ResumingAfterAbort)) && !desk.did(&Effect::RecordUndone));
    }
    let mut desk = Desk::begun();
    desk.give(ready(false, &[])).give(Input::SuccessorGone("was killed".into()));
    desk.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID }));
    assert!(desk.did(&Effect::RecordUndone));
}

#[test]
fn an_unreadable_lease_does_not_kill_at_once() {
    let mut desk = Desk::begun();
    desk.give(Input::Fired(Timer::SuccessorSilent)).give(Input::SuccessorStopped(Stopped::Yes));
    desk.give(Input::Lease(LeaseReading::Unreadable("EIO".into())));
    assert!(!desk.did(&Effect::KillSuccessor));
    desk.give(Input::Fired(Timer::Look)).give(lease(N, LeaseState::Active, EPOCH + 1));
    assert!(desk.did(&Effect::ContinueSuccessor) && !desk.did(&Effect::KillSuccessor));
}

#[test]
fn before_begin_the_incumbent_is_told_at_once() {
    let mut desk = Desk::sealing();
    desk.done.clear();
    desk.give(Input::SuccessorGone("exited with status 3".into()));
    assert_eq!(desk.sent(), ["O:ResumeAfterAbort"]);
    desk.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID })).give(Input::JournalSynced);
    assert_eq!(desk.reason(), "the successor exited with status 3 before its turn");
}
