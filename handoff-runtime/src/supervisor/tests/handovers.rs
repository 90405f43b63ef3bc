//! Handovers that are committed or undone.

use std::cell::RefCell;
use std::sync::mpsc;
use std::thread;

use handoff_journal::{Phase, StateJournal};
use handoff_lock::{LeaseState, read_lease};
use handoff_proto::HandoffId;
use handoff_proto::supervisor::Milestone;
use rustix::event::{PollFd, PollFlags};

use super::cast::{Incumbent, Manner, Stage, played_alone};
use crate::error::Error;
use crate::outcome::HandoffOutcome;
use crate::process::Process;
use crate::progress::{Cancel, Onlooker, Progress, Step};
use crate::supervisor::AtHand;
use crate::sys::poll;
use crate::testing::{assert_nothing_is_left, footprint};

/// Plays one handover and gives its outcome and what the incumbent heard.
fn play(stage: &Stage, manner: Manner, script: &str) -> (HandoffOutcome, Vec<&'static str>) {
    let incumbent = Incumbent::serve(stage, manner);
    let supervisor = stage.supervisor();
    let outcome = supervisor.perform_handoff(stage.successor(script)).unwrap();
    let (lock, heard) = incumbent.end();
    assert_eq!(lock.is_some(), !outcome.committed, "exactly one of the two owns the data");
    (outcome, heard)
}

/// Plays one that must be undone and gives its reason.
fn play_undone(manner: Manner, script: &str) -> (String, Vec<&'static str>) {
    let stage = Stage::set();
    let (outcome, heard) = play(&stage, manner, script);
    assert!(!outcome.committed && outcome.child.is_none());
    stage.assert_successor_left_nothing();
    assert_eq!(StateJournal::read(&stage.journal()).unwrap(), None, "nothing is under way any more");
    (outcome.abort_reason.unwrap(), heard)
}

const GOOD_WAY: [&str; 4] = ["HelloAck", "PrepareHandoff", "SealRequest", "Commit"];
const SEALED_AND_BACK: [&str; 4] = ["HelloAck", "PrepareHandoff", "SealRequest", "ResumeAfterAbort"];

#[test]
fn commits_and_says_how_long_it_took() {
    let stage = Stage::set();
    let (mut outcome, heard) = play(&stage, Manner::Good, "good");
    assert!(outcome.committed, "{outcome:?}");
    assert_eq!(heard, GOOD_WAY);
    let mut child = outcome.child.take().unwrap();
    assert_eq!(child.pid(), stage.successor_pid());
    let lease = read_lease(&stage.data_dir()).unwrap().unwrap();
    assert_eq!((lease.owner.pid, lease.state), (child.pid(), LeaseState::Active));
    assert_eq!(outcome.epoch, Some(lease.epoch));
    assert_eq!(outcome.old_pid, std::process::id());
    let timings = outcome.timings;
    assert!(timings.total >= timings.pause && timings.pause >= timings.drain + timings.seal + timings.begin_to_ready);
    assert!(!timings.spawn.is_zero() && !timings.begin_to_ready.is_zero());

    let journal = StateJournal::read(&stage.journal()).unwrap().unwrap();
    assert_eq!((journal.phase, journal.successor_pid), (Phase::Committed, Some(child.pid())));
    assert_eq!(child.wait().unwrap().and_then(|status| status.code()), Some(0));
}

#[test]
fn reaches_its_steps_in_order() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let (steps, told) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let note = |news: Vec<Progress>| {
        for progress in news {
            match progress.step {
                Step::Reached(milestone) => steps.borrow_mut().push((progress.at_ns, milestone)),
                more => told.borrow_mut().push(more),
            }
        }
    };
    let cancel = Cancel::new().unwrap();
    let conclude = |outcome: crate::Result<HandoffOutcome>, rest| {
        note(rest);
        outcome
    };
    let outcome = stage.supervisor().perform_watched(
        HandoffId::new(),
        stage.successor("good"),
        AtHand::default(),
        &note,
        &cancel,
        conclude,
    );
    outcome.unwrap().unwrap().child.unwrap().wait().unwrap();
    incumbent.end();
    let (moments, steps): (Vec<_>, Vec<_>) = steps.into_inner().into_iter().unzip();
    assert!(moments.is_sorted() && moments[0] > 0, "{moments:?}");
    assert!(matches!(told.into_inner()[..], [Step::SuccessorBuild(_)]));
    assert_eq!(
        steps,
        [
            Milestone::IncumbentGreeted,
            Milestone::SuccessorSpawned,
            Milestone::SuccessorGreeted,
            Milestone::Warmed,
            Milestone::PrepareSent,
            Milestone::DrainedReceived,
            Milestone::SealRequestSent,
            Milestone::SealCompleteReceived,
            Milestone::BeginSent,
            Milestone::ReadyReceived,
            Milestone::CommitSent,
            Milestone::JournalClosed,
        ]
    );
}

#[test]
fn an_incumbent_that_was_connected_to_before_is_not_looked_for() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let connected = crate::control::connect(&stage.control()).unwrap();
    std::fs::remove_file(stage.control()).unwrap();
    let (supervisor, cancel) = (stage.supervisor(), Cancel::new().unwrap());
    let unseen = |_: Vec<Progress>| {};
    let hand_over = |connected| {
        let at_hand = AtHand { process: None, connected };
        supervisor
            .perform_watched(HandoffId::new(), stage.successor("good"), at_hand, &unseen, &cancel, |outcome, _| outcome)
            .unwrap()
    };
    assert!(matches!(hand_over(None), Err(Error::Io { .. })), "nobody is to be found");
    let outcome = hand_over(Some(connected)).unwrap();
    assert!(outcome.committed, "{outcome:?}");
    outcome.child.unwrap().wait().unwrap();
    incumbent.end();
}

#[test]
fn commits_without_a_data_dir_and_without_a_journal() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let supervisor = crate::Supervisor::new(&stage.control()).unwrap().with_timing(super::cast::timing());
    let outcome = supervisor.perform_handoff(stage.successor("good")).unwrap();
    assert!(outcome.committed && outcome.epoch.is_none(), "{outcome:?}");
    outcome.child.unwrap().wait().unwrap();
    incumbent.end();
}

#[test]
fn both_peers_may_be_of_version_1() {
    let stage = Stage::set();
    let (outcome, heard) = play(&stage, Manner::Version1, "version 1");
    assert!(outcome.committed, "{outcome:?}");
    assert_eq!(heard, GOOD_WAY);
    outcome.child.unwrap().wait().unwrap();
}

#[test]
fn failed_hooks_are_told_in_their_own_words() {
    let (reason, heard) = play_undone(Manner::DrainFails, "good");
    assert_eq!(reason, "drain failed: queue stuck");
    assert_eq!(heard, ["HelloAck", "PrepareHandoff", "SealRequest", "ResumeAfterAbort"]);
    let (reason, heard) = play_undone(Manner::SealFails, "good");
    assert_eq!(reason, "seal failed: disk on fire");
    assert_eq!(heard, SEALED_AND_BACK);
}

#[test]
fn an_incumbent_that_hangs_up_ends_the_handover() {
    let stage = Stage::set();
    let (outcome, _) = play(&stage, Manner::HangsUpAtPrepare, "good");
    assert!(!outcome.committed && outcome.child.is_none());
    stage.assert_successor_left_nothing();
    assert_eq!(outcome.abort_reason.as_deref(), Some("the incumbent closed its session"));
    let record = StateJournal::read(&stage.journal()).unwrap().unwrap();
    assert_eq!(record.phase, Phase::ResumingAfterAbort, "nobody has heard that it serves again");
}

#[test]
fn nobody_begins_while_the_lease_is_not_sealed() {
    let (reason, heard) = play_undone(Manner::LiesAboutTheSeal, "good");
    assert!(reason.contains("the lease is not the incumbent's seal"), "{reason}");
    assert_eq!(heard, SEALED_AND_BACK);
}

#[test]
fn an_unfit_successor_is_gone_before_the_incumbent_resumes() {
    let (reason, heard) = play_undone(Manner::Good, "unhealthy");
    assert_eq!(reason, "the successor reports itself unhealthy");
    assert_eq!(heard, SEALED_AND_BACK);
    let (reason, _) = play_undone(Manner::Good, "too low");
    assert_eq!(reason, "the successor opened shard 1 at revision 5, the incumbent sealed it at 6");
}

#[test]
fn a_successor_that_dies_at_its_turn_is_undone() {
    let (reason, heard) = play_undone(Manner::Good, "dies at begin");
    assert_eq!(reason, "the successor exited with status 7 before it was ready");
    assert_eq!(heard, SEALED_AND_BACK);
}

#[test]
fn a_silent_successor_that_is_not_active_is_ended() {
    let (reason, heard) = play_undone(Manner::Good, "silent while opening");
    assert_eq!(reason, "the successor was silent for 700ms");
    assert_eq!(heard, SEALED_AND_BACK);
}

#[test]
fn a_silent_successor_that_is_active_is_committed() {
    let stage = Stage::set();
    let (outcome, heard) = play(&stage, Manner::Good, "silent and active");
    assert!(outcome.committed, "{outcome:?}");
    assert_eq!(heard, GOOD_WAY);
    let status = outcome.child.unwrap().wait().unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "it was let run again");
}

/// A service that has something to write down before the incumbent is touched.
struct Clerk<'a> {
    stage: &'a Stage,
    phases: RefCell<Vec<(&'static str, Option<Phase>)>>,
}

impl Clerk<'_> {
    fn note(&self, when: &'static str) {
        let phase = StateJournal::read(&self.stage.journal()).unwrap().map(|journal| journal.phase);
        self.phases.borrow_mut().push((when, phase));
    }
}

impl Onlooker for Clerk<'_> {
    fn see(&self, _: Vec<Progress>) {}

    fn successor_started(&self) {
        self.note("started");
    }

    fn before_sync(&self) {
        self.note("before the sync");
    }
}

#[test]
fn an_order_can_be_written_down_while_the_successor_starts() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let clerk = Clerk { stage: &stage, phases: RefCell::default() };
    let cancel = Cancel::new().unwrap();
    let outcome = stage
        .supervisor()
        .perform_watched(HandoffId::new(), stage.successor("good"), AtHand::default(), &clerk, &cancel, |outcome, _| {
            outcome
        })
        .unwrap();
    outcome.unwrap().child.unwrap().wait().unwrap();
    incumbent.end();
    let negotiating = Some(Phase::Negotiating);
    assert_eq!(clerk.phases.into_inner(), [("started", negotiating), ("before the sync", negotiating)]);
}

/// Keeps the supervisor busy until the successor is dead.
struct Mourner<'a>(&'a Stage);

impl Onlooker for Mourner<'_> {
    fn see(&self, _: Vec<Progress>) {}

    fn before_sync(&self) {
        if let Some(successor) = Process::open(self.0.successor_pid()).unwrap() {
            poll::wait(&mut [PollFd::new(&successor, PollFlags::IN)], None).unwrap();
        }
    }
}

#[test]
fn what_a_peer_has_said_is_heard_before_its_death() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let (spec, cancel) = (stage.successor("dies when it is warmed"), Cancel::new().unwrap());
    let outcome = stage
        .supervisor()
        .perform_watched(HandoffId::new(), spec, AtHand::default(), &Mourner(&stage), &cancel, |outcome, _| outcome)
        .unwrap();
    let reason = outcome.unwrap().abort_reason.unwrap();
    assert!(reason.contains("6") && reason.ends_with("before its turn"), "not before it was warmed: {reason}");
    assert_eq!(incumbent.end().1, SEALED_AND_BACK);
}

#[test]
fn a_second_call_is_refused_at_once_and_a_cancel_undoes() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let supervisor = stage.supervisor();
    let cancel = Cancel::new().unwrap();
    let (greeted, is_greeted) = mpsc::channel();
    let note = move |news: Vec<Progress>| {
        if news.iter().any(|progress| progress.step == Step::Reached(Milestone::SuccessorGreeted)) {
            greeted.send(()).unwrap();
        }
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let spec = stage.successor("never warms");
            supervisor
                .perform_watched(HandoffId::new(), spec, AtHand::default(), &{ note }, &cancel, |outcome, _| outcome)
                .unwrap()
                .unwrap()
        });
        is_greeted.recv().unwrap();
        let second = supervisor.perform_handoff(stage.successor("good"));
        assert!(matches!(second, Err(Error::HandoffInProgress)), "{second:?}");
        assert!(matches!(supervisor.resume_from_journal(), Err(Error::HandoffInProgress)));
        cancel.cancel("asked to stop");
        let outcome = first.join().unwrap();
        assert_eq!(outcome.abort_reason.as_deref(), Some("asked to stop"));
    });
    stage.assert_successor_left_nothing();
    assert_eq!(incumbent.end().1, ["HelloAck"]);
}

/// It becomes the owner when SIGSTOP is under way to it, and before it has stopped.
#[test]
fn a_successor_is_looked_at_when_it_has_stopped_and_not_before() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let outcome = stage.supervisor().perform_handoff(stage.successor("hangs up and is late to stop")).unwrap();
    assert!(outcome.committed, "it serves: {outcome:?}");
    let mut child = outcome.child.unwrap();
    assert!(!child.is_stopped().unwrap() || child.has_exited().unwrap(), "it was not let go on");
    assert_eq!(child.wait().unwrap().unwrap().code(), Some(0));
    assert!(incumbent.end().1.ends_with(&["Commit"]));
}

#[test]
fn one_after_the_other() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let supervisor = stage.supervisor();
    for script in ["unhealthy", "dies at begin", "silent while opening"] {
        assert!(!supervisor.perform_handoff(stage.successor(script)).unwrap().committed);
        stage.assert_successor_left_nothing();
    }
    let outcome = supervisor.perform_handoff(stage.successor("good")).unwrap();
    assert!(outcome.committed, "{outcome:?}");
    outcome.child.unwrap().wait().unwrap();
    incumbent.end();
}

#[test]
fn no_descriptor_and_no_thread_is_left() {
    played_alone("supervisor::tests::handovers::counts_what_is_left");
}

#[test]
fn one_supervisor_keeps_nothing_of_undone_handovers() {
    played_alone("supervisor::tests::handovers::counts_what_one_supervisor_keeps");
}

#[test]
#[ignore = "run by one_supervisor_keeps_nothing_of_undone_handovers in a process of its own"]
fn counts_what_one_supervisor_keeps() {
    let stage = Stage::set();
    let incumbent = Incumbent::serve(&stage, Manner::Good);
    let supervisor = stage.supervisor();
    let undo = || {
        for script in ["unhealthy", "dies at begin", "exits with 3", "wrong pid"] {
            assert!(!supervisor.perform_handoff(stage.successor(script)).unwrap().committed);
        }
    };
    // The journal, the lease and the incumbent's process stay open from here on.
    undo();
    let before = footprint();
    undo();
    assert_nothing_is_left(before, "four more");
    incumbent.end();
}

#[test]
#[ignore = "run by no_descriptor_and_no_thread_is_left in a process of its own: other tests open descriptors too"]
fn counts_what_is_left() {
    let stage = Stage::set();
    let before = footprint();
    for (manner, script) in [
        (Manner::DrainFails, "good"),
        (Manner::SealFails, "good"),
        (Manner::HangsUpAtPrepare, "good"),
        (Manner::Good, "unhealthy"),
        (Manner::Good, "dies at begin"),
        (Manner::Good, "exits with 3"),
        (Manner::Good, "wrong pid"),
        (Manner::Good, "missing"),
        (Manner::Good, "good"),
    ] {
        let incumbent = Incumbent::serve(&stage, manner);
        let mut spec = stage.successor(script);
        if script == "missing" {
            spec.binary = "/nonexistent".into();
        }
        let outcome = stage.supervisor().perform_handoff(spec);
        assert_eq!(outcome.is_ok_and(|outcome| outcome.committed), script == "good" && manner == Manner::Good);
        drop(incumbent.end());
        std::fs::remove_file(stage.control()).unwrap();
        assert_nothing_is_left(before, &format!("{manner:?}, {script}"));
    }
}
