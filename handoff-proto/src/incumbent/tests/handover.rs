//! Drain, seal, release, commit, and every way back while the lock is held.

use super::*;

fn reached(effects: &[Effect], milestone: Milestone) -> bool {
    effects.contains(&Effect::Reached(id(1), milestone))
}

#[test]
fn both_versions_hand_over() {
    for version in [1, 2] {
        let mut rig = Rig::greeted(version);
        assert!(rig.prepare(A, 1).contains(&Effect::StampLease(id(1))));
        let effects = rig.step(Input::Stamped(Ok(())));
        let run = Effect::RunDrain { grace: Duration::from_secs(5) };
        let watch = Effect::WatchSuccessor { pid: SUCCESSOR_PID, parent: SUPERVISOR_PID };
        let place = |wanted: &Effect| effects.iter().position(|effect| effect == wanted).unwrap();
        assert!(place(&watch) < place(&run), "the daemon serves while the drain is prepared");
        assert!(effects.contains(&Effect::Arm(Timer::Deadline, Duration::from_secs(30))));
        assert!(effects.contains(&Effect::Arm(Timer::Late, Duration::from_secs(33))));

        let effects = rig.step(Input::DrainEnded(Ok(drain())));
        assert_eq!(messages(&effects), [&Message::Drained { open_conns_remaining: 3, accept_closed: true }]);
        assert!(reached(&effects, Milestone::DrainedSent));
        assert_eq!(
            rig.receive(A, Message::SealRequest { handoff_id: id(1) })
                .iter()
                .filter(|e| **e == Effect::RunSeal)
                .count(),
            1
        );

        let effects = rig.step(Input::SealEnded(Ok(seal())));
        assert!(effects.contains(&Effect::ReleaseLock(Directory::Released)));
        assert!(messages(&effects).is_empty(), "nothing is said before the lock is released");
        let effects = rig.step(Input::Released(Ok(())));
        let complete = Message::SealComplete {
            handoff_id: id(1),
            last_revision_per_shard: vec![10, 20],
            data_dir_fingerprint: [9; 32],
        };
        assert_eq!(messages(&effects), [&complete]);
        assert_eq!(effects[0], Effect::Reached(id(1), Milestone::LockReleased));
        assert!(!rig.machine.believes_to_hold_lock());

        let effects = rig.receive(A, Message::Commit { handoff_id: id(1) });
        assert!(reached(&effects, Milestone::CommitReceived) && effects.contains(&Effect::ReadLease));
        let effects = rig.step(Input::LeaseRead(Ok(Some(successor_lease(LeaseState::Active, 1)))));
        assert_eq!(effects.last(), Some(&Effect::Leave(Leaving::Committed)));
        assert!(rig.step(Input::Fired(Timer::Late)).is_empty());
    }
}

#[test]
fn a_commit_is_believed_unless_our_seal_is_the_last_word_and_the_lock_is_free() {
    let committing = || {
        let mut rig = Rig::sealed(2);
        rig.receive(A, Message::Commit { handoff_id: id(1) });
        rig
    };
    for lease in [Ok(Some(successor_lease(LeaseState::Opening, 1))), Err("EIO".into())] {
        assert_eq!(committing().step(Input::LeaseRead(lease)).last(), Some(&Effect::Leave(Leaving::Committed)));
    }
    let locking = || {
        let mut rig = committing();
        assert_eq!(rig.step(Input::LeaseRead(Ok(Some(own_seal(1))))), [Effect::TryLock]);
        rig
    };
    for tried in [LockTried::Held, LockTried::Failed] {
        assert_eq!(locking().step(Input::LockTried(tried)).last(), Some(&Effect::Leave(Leaving::Committed)));
    }
    let newer = LockTried::Locked(Some(successor_lease(LeaseState::Active, 1)));
    assert_eq!(locking().step(Input::LockTried(newer)), [Effect::Unlock, Effect::Leave(Leaving::Committed)]);

    let mut rig = locking();
    let effects = rig.step(Input::LockTried(LockTried::Locked(Some(own_seal(1)))));
    assert_eq!(effects[0], Effect::ClaimLease);
    assert_eq!(closes(&effects), [(A, Why::Violation)]);
    rig.step(Input::Claimed(Ok(6)));
    assert_eq!(resumes(&rig.step(Input::Activated(Ok(())))), [true]);
    rig.resume();
}

#[test]
fn an_early_seal_request_is_kept_once_and_only_in_version_2() {
    let request = Message::SealRequest { handoff_id: id(1) };
    let mut rig = Rig::draining(2);
    assert!(rig.receive(A, request.clone()).is_empty());
    let mut twice = rig.clone();
    assert_eq!(closes(&twice.receive(A, request.clone())), [(A, Why::Violation)]);
    let effects = rig.step(Input::DrainEnded(Ok(drain())));
    assert!(effects.contains(&Effect::RunSeal));
    let drained = Message::Drained { open_conns_remaining: 3, accept_closed: true };
    assert!(effects.contains(&Effect::SendWithNext(A, 2, drained.clone())), "the supervisor has asked for more");

    let mut rig = Rig::draining(2);
    let effects = rig.step(Input::DrainEnded(Ok(drain())));
    assert!(effects.contains(&Effect::Send(A, 2, drained)), "the supervisor waits for it");

    let mut rig = Rig::draining(1);
    assert_eq!(closes(&rig.receive(A, request)), [(A, Why::Violation)]);
}

#[test]
fn a_failed_drain_drops_the_early_seal_request_and_serves_again() {
    let mut rig = Rig::draining(2);
    rig.receive(A, Message::SealRequest { handoff_id: id(1) });
    let effects = rig.step(Input::DrainEnded(Err("disk".into())));
    assert_eq!(resumes(&effects), [false]);
    assert_eq!(messages(&effects), [&Message::DrainFailed { handoff_id: id(1), error: "disk".into() }]);
    assert!(messages(&rig.resume()).is_empty(), "told once");
    assert!(rig.receive(A, Message::SealRequest { handoff_id: id(1) }).iter().all(|e| !matches!(e, Effect::Close(..))));
    assert!(rig.prepare(A, 2).contains(&Effect::StampLease(id(2))), "ready for the next handover");
}

#[test]
fn version_1_has_no_word_for_a_failed_drain() {
    let mut rig = Rig::draining(1);
    rig.step(Input::DrainEnded(Err("disk".into())));
    assert_eq!(closes(&rig.resume()), [(A, Why::Failed)]);
    rig.greet(B);
    assert!(rig.prepare(B, 2).contains(&Effect::StampLease(id(2))));
}

#[test]
fn a_failed_seal_keeps_the_lock_and_is_told_at_once_or_in_version_1_when_the_daemon_serves() {
    for (version, told) in [(1, [0, 1]), (2, [1, 0])] {
        let mut rig = Rig::sealing(version);
        let effects = rig.step(Input::SealEnded(Err("disk".into())));
        assert_eq!(resumes(&effects), [false]);
        assert!(!effects.contains(&Effect::ReleaseLock(Directory::Released)));
        let failed = Message::SealFailed { handoff_id: id(1), error: "disk".into(), partial_state: String::new() };
        assert_eq!(messages(&effects), vec![&failed; told[0]]);
        assert_eq!(messages(&rig.resume()), vec![&failed; told[1]]);
        assert!(rig.prepare(A, 2).contains(&Effect::StampLease(id(2))));
    }
}

/// A resume that hangs would keep the supervisor waiting for the deadline first, and then for the resume.
#[test]
fn the_answer_to_a_failure_does_not_wait_for_a_resume_that_hangs() {
    let mut rig = Rig::draining(2);
    let failed = rig.step(Input::DrainEnded(Err("disk".into())));
    assert!(matches!(messages(&failed)[..], [Message::DrainFailed { .. }]), "{failed:?}");
    assert!(messages(&rig.abort()).is_empty(), "it does not serve yet");
    assert!(rig.step(Input::Fired(Timer::Heartbeat)).contains(&Effect::SendHeartbeat(A, 2)), "it is alive");
    assert_eq!(messages(&rig.resume()), [&Message::Resumed { handoff_id: id(1) }]);

    let mut rig = Rig::draining(2);
    rig.step(Input::DrainEnded(Err("disk".into())));
    rig.resume();
    assert_eq!(messages(&rig.abort()), [&Message::Resumed { handoff_id: id(1) }], "also when it crosses the answer");
}

/// The successor may be the only one that can serve: while a hook runs that may never return, nobody is told to end it.
#[test]
fn a_hook_that_was_cancelled_is_answered_for_when_it_has_returned() {
    let mut rig = Rig::draining(2);
    assert!(messages(&rig.step(Input::Fired(Timer::Deadline))).is_empty());
    let returned = rig.step(Input::DrainEnded(Ok(drain())));
    assert!(matches!(messages(&returned)[..], [Message::DrainFailed { .. }]), "{returned:?}");
}

#[test]
fn a_lease_that_cant_be_written_fails_its_step() {
    let mut rig = Rig::greeted(2);
    rig.prepare(A, 1);
    let effects = rig.step(Input::Stamped(Err("EIO".into())));
    assert!(matches!(messages(&effects)[..], [Message::DrainFailed { .. }]));
    assert!(resumes(&effects).is_empty() && rig.machine.is_serving(), "nothing was drained");

    let mut rig = Rig::releasing(2);
    let effects = rig.step(Input::Released(Err("EIO".into())));
    assert_eq!(resumes(&effects), [false]);
    assert!(rig.machine.believes_to_hold_lock());
    assert!(matches!(messages(&effects)[..], [Message::SealFailed { .. }]));
}

#[test]
fn a_report_that_cant_travel_is_refused_before_the_lock_is_released() {
    let many = |shards| Seal { last_revision_per_shard: vec![u64::MAX; shards], data_dir_fingerprint: [0; 32] };
    let mut rig = Rig::sealing(1);
    let effects = rig.step(Input::SealEnded(Ok(many(200_000))));
    assert!(!effects.contains(&Effect::ReleaseLock(Directory::Released)));
    assert_eq!(resumes(&effects), [false]);

    let mut rig = Rig::sealing(2);
    assert!(rig.step(Input::SealEnded(Ok(many(200_000)))).contains(&Effect::ReleaseLock(Directory::Released)));
    let effects = rig.step(Input::Released(Ok(())));
    let messages = messages(&effects);
    assert_eq!(messages.len(), 4);
    assert!(messages[..3].iter().all(|message| matches!(message, Message::Revisions { .. })));
    assert!(messages.iter().all(|message| crate::revisions::fits_a_frame(2, message)));

    let mut rig = Rig::sealing(2);
    assert!(
        !rig.step(Input::SealEnded(Ok(many(crate::revisions::SHARDS_MAX + 1))))
            .contains(&Effect::ReleaseLock(Directory::Released))
    );
    let mut rig = Rig::sealing(1);
    assert!(rig.step(Input::SealEnded(Ok(many(90_000)))).contains(&Effect::ReleaseLock(Directory::Released)));
}

#[test]
fn error_texts_of_any_length_fit_a_frame() {
    let mut rig = Rig::sealing(1);
    rig.step(Input::SealEnded(Err("ä".repeat(1 << 20))));
    let effects = rig.resume();
    assert!(crate::revisions::fits_a_frame(1, messages(&effects)[0]));
}

#[test]
fn an_abort_waits_for_the_hook_and_resumes_once() {
    for (mut rig, end) in [
        (Rig::draining(2), Input::DrainEnded(Ok(drain()))),
        (Rig::draining(2), Input::DrainEnded(Err("cancelled".into()))),
        (Rig::sealing(2), Input::SealEnded(Ok(seal()))),
        (Rig::sealing(2), Input::SealEnded(Err("cancelled".into()))),
    ] {
        let effects = rig.abort();
        assert!(effects.contains(&Effect::CancelHook) && resumes(&effects).is_empty());
        assert!(resumes(&rig.abort()).is_empty(), "twice is as good as once");
        let effects = rig.step(end);
        assert_eq!(resumes(&effects), [false]);
        assert!(
            !effects.contains(&Effect::ReleaseLock(Directory::Released)),
            "a seal that ends after an abort keeps the lock"
        );
        assert!(position(&effects, &Effect::RestoreListenerFlags) < effects.len() - 1);
        assert_eq!(messages(&rig.resume()), [&Message::Resumed { handoff_id: id(1) }]);
    }
}

#[test]
fn an_abort_of_a_drained_incumbent_resumes_at_once() {
    for version in [1, 2] {
        let mut rig = Rig::drained(version);
        let abort = Message::Abort { handoff_id: id(1), reason: "no".into() };
        assert_eq!(resumes(&rig.receive(A, abort)), [false]);
        assert_eq!(messages(&rig.resume()).len(), usize::from(version == 2), "version 1 knows no Resumed");
        assert!(rig.prepare(A, 2).contains(&Effect::StampLease(id(2))));
    }
}

#[test]
fn the_next_prepare_may_follow_an_abort_without_waiting() {
    let mut rig = Rig::drained(1);
    rig.abort();
    assert!(rig.prepare(A, 2).is_empty() || !rig.machine.is_serving());
    let effects = rig.step(Input::ResumeEnded(ResumeEnd::Serving));
    assert!(effects.contains(&Effect::StampLease(id(2))));

    let mut rig = Rig::drained(2);
    rig.abort();
    rig.prepare(A, 2);
    rig.receive(A, Message::SealRequest { handoff_id: id(2) });
    rig.step(Input::ResumeEnded(ResumeEnd::Serving));
    rig.step(Input::Stamped(Ok(())));
    assert!(rig.step(Input::DrainEnded(Ok(drain()))).contains(&Effect::RunSeal));
}

#[test]
fn a_waiting_prepare_can_be_called_off() {
    let mut rig = Rig::drained(2);
    rig.abort();
    rig.prepare(A, 2);
    rig.receive(A, Message::ResumeAfterAbort { handoff_id: id(2) });
    let effects = rig.resume();
    assert!(!effects.contains(&Effect::StampLease(id(2))));
    assert_eq!(messages(&effects).len(), 2, "both are answered: {effects:?}");
}

#[test]
fn a_late_abort_of_an_ended_handover_is_answered() {
    let mut rig = Rig::drained(2);
    rig.abort();
    rig.resume();
    assert_eq!(messages(&rig.abort()), [&Message::Resumed { handoff_id: id(1) }]);
    assert!(rig.machine.is_serving());
}

#[test]
fn a_lost_supervisor_is_undone_while_the_lock_is_held() {
    for mut rig in [Rig::draining(2), Rig::sealing(2)] {
        assert!(rig.step(Input::Closed(A)).contains(&Effect::CancelHook));
    }
    let mut rig = Rig::drained(2);
    assert_eq!(resumes(&rig.step(Input::Closed(A))), [false]);
    assert!(messages(&rig.resume()).is_empty());

    let mut rig = Rig::greeted(2);
    rig.prepare(A, 1);
    rig.step(Input::Closed(A));
    assert!(!rig.step(Input::Stamped(Ok(()))).iter().any(|e| matches!(e, Effect::RunDrain { .. })));
    assert!(rig.machine.is_serving());
}

#[test]
fn a_supervisor_lost_during_the_release_leads_to_limbo() {
    let mut rig = Rig::releasing(2);
    assert!(!rig.step(Input::Closed(A)).contains(&Effect::ReadLease), "the result decides");
    assert!(rig.clone().step(Input::Released(Ok(()))).contains(&Effect::ReadLease));
    assert_eq!(resumes(&rig.step(Input::Released(Err("EIO".into())))), [false]);
}

#[test]
fn the_deadline_ends_the_handover_while_the_lock_is_held() {
    let mut rig = Rig::draining(2);
    assert!(rig.step(Input::Fired(Timer::Deadline)).contains(&Effect::CancelHook));
    let returned = rig.step(Input::DrainEnded(Ok(drain())));
    assert!(matches!(messages(&returned)[..], [Message::DrainFailed { .. }]));

    let mut rig = Rig::sealing(1);
    assert!(rig.step(Input::Fired(Timer::Deadline)).contains(&Effect::CancelHook));
    rig.step(Input::SealEnded(Ok(seal())));
    assert!(matches!(messages(&rig.resume())[..], [Message::SealFailed { .. }]));

    let mut rig = Rig::drained(1);
    let effects = rig.step(Input::Fired(Timer::Deadline));
    assert_eq!(closes(&effects), [(A, Why::Late)]);
    assert_eq!(resumes(&effects), [false]);
}

#[test]
fn the_deadline_is_capped_by_our_own() {
    let mut rig = Rig::greeted(2);
    let prepare = Message::PrepareHandoff {
        handoff_id: id(1),
        successor_pid: SUCCESSOR_PID,
        deadline_ms: u64::MAX,
        drain_grace_ms: u64::MAX,
    };
    rig.receive(A, prepare);
    let effects = rig.step(Input::Stamped(Ok(())));
    let max = Timing::default().deadline_max;
    assert!(effects.contains(&Effect::RunDrain { grace: max }));
    assert!(effects.contains(&Effect::Arm(Timer::Deadline, max)));
}

#[test]
fn silence_counts_only_while_the_supervisor_makes_us_wait() {
    let silent = Effect::Arm(Timer::Silence, Timing::default().liveness);
    let mut rig = Rig::draining(2);
    assert!(rig.step(Input::DrainEnded(Ok(drain()))).contains(&silent));
    assert!(rig.receive(A, Message::Heartbeat { ts_ms: 0 }).contains(&silent));
    let effects = rig.clone().step(Input::Fired(Timer::Silence));
    assert_eq!((closes(&effects), resumes(&effects)), (vec![(A, Why::Silent)], vec![false]));
    assert!(rig.receive(A, Message::SealRequest { handoff_id: id(1) }).contains(&Effect::Disarm(Timer::Silence)));
    assert!(closes(&rig.step(Input::Fired(Timer::Silence))).is_empty());
    rig.step(Input::SealEnded(Ok(seal())));
    assert!(rig.step(Input::Released(Ok(()))).contains(&silent));
    assert!(rig.step(Input::Fired(Timer::Silence)).contains(&Effect::ReadLease), "sealed: limbo");

    let mut rig = Rig::draining(1);
    assert!(!rig.step(Input::DrainEnded(Ok(drain()))).contains(&silent), "version 1 sends no heartbeats");
}

#[test]
fn a_hook_that_outlives_deadline_and_slack_is_left_to_the_watchdog() {
    let beats = |rig: &mut Rig| {
        let own = rig.step(Input::Fired(Timer::Heartbeat));
        let echoed = rig.receive(B, Message::Heartbeat { ts_ms: 0 });
        own.iter().chain(&echoed).filter(|effect| matches!(effect, Effect::SendHeartbeat(..))).count()
    };
    let drain_ended = Input::DrainEnded(Ok(drain()));
    let seal_ended = Input::SealEnded(Ok(seal()));
    for (mut rig, ended) in [(Rig::draining(2), drain_ended), (Rig::sealing(2), seal_ended)] {
        rig.greet(B);
        rig.abort();
        assert_eq!(beats(&mut rig), 2, "it may return any moment");
        rig.step(Input::Fired(Timer::Deadline));
        rig.step(Input::Fired(Timer::Late));
        assert_eq!(beats(&mut rig), 0, "nobody serves, and nobody may believe so");
        rig.step(ended);
        assert_eq!(beats(&mut rig), 2, "it has returned after all");
        rig.resume();
    }
}

#[test]
fn heartbeats_are_sent_while_a_hook_runs() {
    for mut rig in [Rig::draining(1), Rig::sealing(2), Rig::retaken()] {
        rig.greet(B);
        let effects = rig.step(Input::Fired(Timer::Heartbeat));
        let beats = effects.iter().filter(|effect| matches!(effect, Effect::SendHeartbeat(..))).count();
        assert_eq!(beats, usize::from(rig.machine.handover().unwrap().link.is_some()));
    }
    let mut rig = Rig::drained(2);
    assert!(rig.step(Input::Fired(Timer::Heartbeat)).is_empty());
}

#[test]
fn a_late_loop_gives_everybody_a_fresh_interval() {
    let liveness = Timing::default().liveness;
    let mut rig = Rig::drained(2);
    assert!(rig.step(Input::WokeLate).contains(&Effect::Arm(Timer::Silence, liveness)));
    assert_eq!(rig.step(Input::Fired(Timer::Deadline)), [Effect::Arm(Timer::Deadline, liveness)]);
    assert_eq!(rig.step(Input::Fired(Timer::Late)), [Effect::Arm(Timer::Late, liveness)]);
    assert_eq!(resumes(&rig.step(Input::Fired(Timer::Deadline))), [false]);
}

#[test]
fn progress_is_reported_at_a_bounded_rate() {
    let progress = |n| Input::SealProgress(Progress { shards_sealed: n, shards_total: 9, last_revision: 1 });
    let mut rig = Rig::sealing(1);
    assert_eq!(messages(&rig.step(progress(1))).len(), 1);
    assert!(messages(&rig.step(progress(2))).is_empty());
    assert!(messages(&rig.step(progress(3))).is_empty());
    let effects = rig.step(Input::Fired(Timer::Progress));
    assert_eq!(messages(&effects), [&Message::SealProgress { shards_sealed: 3, shards_total: 9, last_revision: 1 }]);
    assert!(rig.step(Input::Fired(Timer::Progress)).is_empty());
    assert_eq!(messages(&rig.step(progress(4))).len(), 1);
    assert!(rig.step(Input::SealEnded(Ok(seal()))).contains(&Effect::Disarm(Timer::Progress)));
}

#[test]
fn only_a_process_that_can_be_the_successor_is_watched() {
    for pid in [0, 1, ME.pid, SUPERVISOR_PID] {
        let mut rig = Rig::greeted(2);
        rig.prepare_for(A, 1, pid);
        let effects = rig.step(Input::Stamped(Ok(())));
        assert!(effects.iter().any(|effect| matches!(effect, Effect::RunDrain { .. })), "noted, not refused");
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::WatchSuccessor { .. })));
    }
}

#[test]
fn a_resume_that_fails_is_tried_again_with_growing_pauses() {
    let mut rig = Rig::drained(2);
    rig.abort();
    for (tries, pause_ms) in [(0, 100), (1, 200), (2, 400), (6, 6_400), (7, 10_000), (8, 10_000)] {
        if let State::Undoing(undo, _) = &mut rig.machine.state {
            undo.tries = tries;
        }
        let effects = rig.step(Input::ResumeEnded(ResumeEnd::Failed("disk".into())));
        assert!(effects.contains(&Effect::Arm(Timer::Retry, Duration::from_millis(pause_ms))));
        assert!(messages(&effects).is_empty(), "not resumed yet");
        assert_eq!(resumes(&rig.step(Input::Fired(Timer::Retry))), [false]);
    }
    assert_eq!(messages(&rig.resume()), [&Message::Resumed { handoff_id: id(1) }]);
}

#[test]
fn a_failed_handover_of_version_1_is_told_even_if_the_resume_fails() {
    let mut rig = Rig::sealing(1);
    rig.step(Input::SealEnded(Err("disk".into())));
    let effects = rig.step(Input::ResumeEnded(ResumeEnd::Failed("net".into())));
    let [Message::SealFailed { error, .. }] = messages(&effects)[..] else { panic!("{effects:?}") };
    assert!(error.contains("disk") && error.contains("net"));
    rig.step(Input::Fired(Timer::Retry));
    assert!(messages(&rig.resume()).is_empty(), "told once");
}

#[test]
fn a_prepare_is_accepted_while_the_resume_keeps_failing() {
    let failing = || {
        let mut rig = Rig::retaken();
        rig.step(Input::ResumeEnded(ResumeEnd::Failed("disk".into())));
        rig.greet(B);
        rig
    };
    let mut rig = failing();
    assert!(rig.prepare(B, 2).contains(&Effect::StampLease(id(2))));
    rig.step(Input::Stamped(Ok(())));
    rig.step(Input::DrainEnded(Ok(drain())));
    assert_eq!(resumes(&rig.step(Input::Closed(B))), [true], "no resume has re-read the state since");

    // One that came while the resume ran is taken when it has failed.
    let mut rig = failing();
    rig.step(Input::Fired(Timer::Retry));
    assert!(!rig.prepare(B, 2).contains(&Effect::StampLease(id(2))));
    let effects = rig.step(Input::ResumeEnded(ResumeEnd::Failed("disk".into())));
    assert!(effects.contains(&Effect::StampLease(id(2))) && effects.contains(&Effect::Disarm(Timer::Retry)));
}

#[test]
fn a_resume_stays_owed_when_the_next_handover_does_not_come_to_its_drain() {
    let mut rig = Rig::drained(2);
    rig.abort();
    rig.step(Input::ResumeEnded(ResumeEnd::Failed("disk".into())));
    rig.prepare(A, 2);
    let effects = rig.step(Input::Stamped(Err("EIO".into())));
    assert_eq!(resumes(&effects), [false]);
    assert!(matches!(messages(&effects)[..], [Message::DrainFailed { .. }]));
}

#[test]
fn a_state_that_cant_be_read_is_given_up() {
    let mut rig = Rig::retaken();
    let effects = rig.step(Input::ResumeEnded(ResumeEnd::NotReadable("format 9".into())));
    assert!(
        position(&effects, &Effect::Unlock)
            < position(&effects, &Effect::Leave(Leaving::NotReadable("format 9".into())))
    );
}
