//! Who is waited for, how long, and what becomes of him when he is not heard.

use super::*;

fn warming() -> Desk {
    let mut desk = Desk::new(plan());
    desk.greeted(2, 2);
    desk.done.clear();
    desk
}

/// An incumbent that was told to resume, with the successor gone.
fn resuming() -> Desk {
    let mut desk = Desk::begun();
    desk.give(ready(false, &[])).give(Input::SuccessorGone("was killed".into()));
    assert!(desk.did(&Effect::Arm(Timer::Resumed, plan().resume)), "{:?}", desk.done);
    desk.done.clear();
    desk
}

fn armed(desk: &Desk, timer: Timer) -> Option<Duration> {
    desk.done.iter().rev().find_map(|effect| match effect {
        Effect::Arm(armed, after) if *armed == timer => Some(*after),
        _ => None,
    })
}

#[test]
fn a_bound_that_passes_while_the_incumbent_is_silent_ends_nobody() {
    for (mut desk, bound) in
        [(Desk::draining(), Timer::DrainGrace), (Desk::draining(), Timer::Deadline), (Desk::sealing(), Timer::Deadline)]
    {
        desk.done.clear();
        desk.give(Input::Fired(bound));
        assert_eq!(desk.done, [Effect::SendIncumbent(2, Message::Heartbeat { ts_ms: 0 })], "it is asked, and no more");
        desk.give(Input::Fired(Timer::IncumbentSilent));
        assert!(desk.did(&Effect::KillIncumbent) && !desk.did(&Effect::KillSuccessor));
        desk.give(Input::IncumbentGone).give(lease(O, LeaseState::Active, EPOCH));
        assert_eq!(desk.sent().last().unwrap(), "N:BeginWith", "it was kept warm for this");
    }
}

#[test]
fn an_incumbent_that_is_late_and_lives_resumes_at_its_next_word() {
    let beat = Message::Heartbeat { ts_ms: 5 };
    let sealed =
        || Message::SealComplete { handoff_id: ID, last_revision_per_shard: vec![1], data_dir_fingerprint: [0; 32] };
    for (mut desk, bound, word, reason) in [
        (Desk::draining(), Timer::DrainGrace, beat.clone(), "the incumbent did not drain within 60s"),
        (Desk::draining(), Timer::DrainGrace, DRAINED, "the incumbent did not drain within 60s"),
        (Desk::sealing(), Timer::Deadline, beat, "the incumbent was not done within the deadline of 300s"),
        (Desk::sealing(), Timer::Deadline, sealed(), "the incumbent was not done within the deadline of 300s"),
    ] {
        desk.give(Input::Fired(bound)).give(Input::FromIncumbent(word));
        assert!(!desk.did(&Effect::KillIncumbent));
        desk.killed_and_resumed();
        assert_eq!(desk.reason(), reason);
    }
    let mut failed = Desk::draining();
    let error = "the drain ran past the deadline".into();
    failed
        .give(Input::Fired(Timer::Deadline))
        .give(Input::FromIncumbent(Message::DrainFailed { handoff_id: ID, error }));
    failed.killed_and_resumed();
    assert_eq!(failed.reason(), "drain failed: the drain ran past the deadline", "its own word says more");
}

#[test]
fn an_incumbent_that_the_kernel_holds_after_its_end_is_not_waited_for_without_end() {
    let mut desk = Desk::draining();
    desk.give(Input::Fired(Timer::IncumbentSilent));
    assert_eq!(armed(&desk, Timer::IncumbentSilent), Some(Timing::default().settle));
    desk.give(Input::Fired(Timer::IncumbentSilent)).give(Input::SuccessorGone("was killed".into()));
    desk.give(Input::Fired(Timer::IncumbentSilent));
    assert_eq!(desk.done.iter().filter(|effect| **effect == Effect::KillIncumbent).count(), 1);
    assert_eq!(
        desk.outcome(),
        Some(&Outcome::Aborted { reason: "the incumbent was silent for 10s".into(), incumbent: Standing::NotHeard })
    );
}

#[test]
fn after_an_abort_the_watchdog_stays_with_the_incumbent_until_it_has_resumed() {
    let mut desk = resuming();
    desk.give(Input::FromIncumbent(Message::Heartbeat { ts_ms: 1 }));
    assert_eq!(armed(&desk, Timer::IncumbentSilent), Some(Timing::default().liveness));
    desk.give(Input::Fired(Timer::IncumbentSilent));
    assert!(desk.did(&Effect::KillIncumbent));
    assert_eq!(desk.outcome(), None, "it is waited for");
    desk.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID }));
    assert_eq!(desk.outcome(), None, "a word that it said before its end");
    desk.give(Input::IncumbentGone);
    assert!(matches!(desk.outcome(), Some(Outcome::Aborted { incumbent: Standing::Dead, .. })));
    assert!(desk.did(&Effect::RecordUndone));
}

#[test]
fn a_resume_that_takes_too_long_is_a_death() {
    let mut desk = resuming();
    desk.give(Input::Fired(Timer::Resumed));
    assert!(desk.did(&Effect::KillIncumbent));
    desk.give(Input::IncumbentGone);
    assert!(matches!(desk.outcome(), Some(Outcome::Aborted { incumbent: Standing::Dead, .. })));

    let mut spared = Desk::new(Plan { watchdog: Watchdog::Spares, ..plan() });
    spared.greeted(2, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    spared.give(Input::Cancel("stop".into())).give(Input::SuccessorGone("was killed".into()));
    spared.give(Input::Fired(Timer::Resumed));
    assert!(!spared.did(&Effect::KillIncumbent));
    assert!(matches!(spared.outcome(), Some(Outcome::Aborted { incumbent: Standing::NotHeard, .. })));
}

#[test]
fn it_is_said_what_is_known_of_the_incumbent() {
    let standing = |desk: &Desk| match desk.outcome() {
        Some(Outcome::Aborted { incumbent, .. }) => *incumbent,
        other => panic!("{other:?}"),
    };
    let mut never_asked = warming();
    never_asked.give(Input::SuccessorGone("was killed".into()));
    assert_eq!(standing(&never_asked), Standing::Serves);
    let mut resumed = resuming();
    resumed.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID }));
    assert_eq!(standing(&resumed), Standing::Serves);
    let mut unheard = resuming();
    unheard.give(Input::IncumbentMalformed("noise".into()));
    assert_eq!(standing(&unheard), Standing::NotHeard);
    let mut dead = resuming();
    dead.give(Input::IncumbentGone);
    assert_eq!(standing(&dead), Standing::Dead);
}

#[test]
fn one_that_was_not_heard_does_not_serve_because_the_next_handover_asked_it_for_nothing() {
    let in_doubt = || Plan { unheard: Some(O), ..plan() };
    let mut desk = Desk::new(in_doubt());
    desk.greeted(2, 2).give(Input::SuccessorGone("was killed".into()));
    assert!(matches!(desk.outcome(), Some(Outcome::Aborted { incumbent: Standing::NotHeard, .. })), "{:?}", desk.done);
    let mut desk = Desk::new(in_doubt());
    desk.greeted(2, 2).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    desk.give(Input::SuccessorGone("was killed".into()))
        .give(Input::FromIncumbent(Message::Resumed { handoff_id: ID }));
    assert!(matches!(desk.outcome(), Some(Outcome::Aborted { incumbent: Standing::Serves, .. })));
}

#[test]
fn a_successor_whose_incumbent_is_dead_has_a_short_time_to_warm_up() {
    let promotion = Timing::default().promotion;
    let mut desk = warming();
    desk.give(Input::IncumbentGone);
    assert_eq!(armed(&desk, Timer::Warm), Some(promotion));
    desk.give(Input::Fired(Timer::Warm)).give(Input::SuccessorGone("was killed".into()));
    let reason = "the incumbent died, and the successor was not warmed within 2s of that".into();
    assert_eq!(desk.outcome(), Some(&Outcome::Aborted { reason, incumbent: Standing::Dead }));

    let mut desk = warming();
    desk.give(Input::IncumbentGone).give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    desk.give(lease(O, LeaseState::Active, EPOCH));
    assert_eq!(desk.sent(), ["N:BeginWith"], "as soon as it is warm");

    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, 2)));
    desk.give(Input::Spawned(N)).give(Input::IncumbentGone);
    desk.give(Input::FromSuccessor(hello(Side::Successor, N.pid, 2)));
    assert_eq!(armed(&desk, Timer::Warm), Some(promotion));
}

#[test]
fn a_dead_incumbent_shortens_the_wait_for_its_successors_greeting() {
    let promotion = Timing::default().promotion;
    for dies_first in [true, false] {
        let mut desk = Desk::new(plan());
        desk.give(Input::Connected(O)).give(Input::FromIncumbent(hello(Side::Incumbent, O.pid, 2)));
        match dies_first {
            true => desk.give(Input::IncumbentGone).give(Input::Spawned(N)),
            false => desk.give(Input::Spawned(N)).give(Input::IncumbentGone),
        };
        assert_eq!(armed(&desk, Timer::Hello), Some(promotion), "dies first: {dies_first}");
        desk.done.clear();
        desk.give(Input::WokeLate);
        assert_eq!(armed(&desk, Timer::Hello), Some(promotion));
        desk.give(Input::Fired(Timer::Hello)).give(Input::SuccessorGone("was killed".into()));
        desk.give(Input::JournalSynced);
        assert_eq!(desk.reason(), "the incumbent died, and the successor did not say Hello within 2s of that");
    }
}

#[test]
fn an_opening_has_a_bound_of_its_own_and_progress_puts_it_off() {
    let mut desk = Desk::sealing();
    desk.give(seal_complete(&[5, 6])).give(lease(O, LeaseState::Sealed, EPOCH));
    assert_eq!(armed(&desk, Timer::Open), Some(plan().open));
    desk.done.clear();
    desk.give(Input::FromSuccessor(Message::OpenProgress { handoff_id: ID }));
    assert_eq!(armed(&desk, Timer::Open), Some(plan().open));
    desk.give(Input::FromSuccessor(Message::Heartbeat { ts_ms: 1 }));
    assert_eq!(desk.done.len(), 3, "to be alive is not to get on: {:?}", desk.done);
    desk.give(Input::Fired(Timer::Open));
    assert!(desk.did(&Effect::StopSuccessor) && !desk.did(&Effect::KillSuccessor));
    desk.give(Input::SuccessorStopped(Stopped::Yes)).give(lease(N, LeaseState::Opening, EPOCH + 1));
    desk.killed_and_resumed();
    assert_eq!(desk.reason(), "the successor was still opening after 10s, without a word of progress");
}

#[test]
fn a_successor_that_gives_up_says_why_and_leaves_by_itself() {
    let words = || Input::FromSuccessor(Message::NotReady { handoff_id: ID, reason: "the store is torn".into() });
    for mut desk in [Desk::begun(), Desk::sealing(), Desk::draining(), warming()] {
        desk.give(words());
        assert_eq!(armed(&desk, Timer::Ended), Some(Timing::default().parting));
        assert!(!desk.did(&Effect::KillSuccessor) && !desk.did(&Effect::StopSuccessor), "{:?}", desk.done);
        desk.give(Input::SuccessorGone("exited with status 1".into()));
        desk.give(Input::FromIncumbent(Message::Resumed { handoff_id: ID }));
        assert_eq!(
            desk.outcome(),
            Some(&Outcome::Aborted {
                reason: "the successor can't take over: the store is torn".into(),
                incumbent: Standing::Serves
            })
        );
        assert!(!desk.did(&Effect::KillSuccessor));
    }
    let mut stays = Desk::begun();
    stays.give(words()).give(Input::Fired(Timer::Ended));
    stays.killed_and_resumed();
}
