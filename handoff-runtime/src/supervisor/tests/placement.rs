//! The data directory's name comes to mean another directory, between peers of version 1: they say nothing of theirs, so the
//! supervisor's own comparison is all that there is.

use std::fs;
use std::os::unix::fs::symlink;

use handoff_proto::HandoffId;

use super::cast::{Incumbent, Manner, Stage};
use crate::progress::{Cancel, Onlooker, Progress};
use crate::supervisor::AtHand;

/// The data directory is a link, and there is another directory that it may lead to.
fn linked() -> Stage {
    let stage = Stage::set();
    for name in ["a", "b"] {
        fs::create_dir(stage.dir.path().join(name)).unwrap();
    }
    lead_to(&stage, "a");
    stage
}

fn lead_to(stage: &Stage, name: &str) {
    let next = stage.dir.path().join("next");
    symlink(stage.dir.path().join(name), &next).unwrap();
    fs::rename(next, stage.data_dir()).unwrap();
}

fn assert_untouched(stage: &Stage) {
    assert_eq!(fs::read_dir(stage.dir.path().join("b")).unwrap().count(), 0, "the other directory was not touched");
}

#[test]
fn a_link_that_was_switched_between_two_handovers_refuses_the_next_one() {
    let stage = linked();
    let incumbent = Incumbent::serve(&stage, Manner::Version1);
    let supervisor = stage.supervisor();
    lead_to(&stage, "b");
    let error = supervisor.perform_handoff(stage.successor("version 1")).unwrap_err().to_string();
    assert!(error.contains("data directory") && error.contains("/b"), "{error}");
    let (lock, heard) = incumbent.end();
    assert!(lock.is_some() && heard.is_empty(), "{heard:?}");
    assert!(!stage.pid_file().exists(), "no successor was started");
    assert_untouched(&stage);
}

struct Switches<'a>(&'a Stage);

impl Onlooker for Switches<'_> {
    fn see(&self, _: Vec<Progress>) {}

    fn successor_started(&self) {
        lead_to(self.0, "b");
    }
}

#[test]
fn a_link_that_is_switched_while_the_successor_starts_undoes_the_handover_before_the_drain() {
    let stage = linked();
    let incumbent = Incumbent::serve(&stage, Manner::Version1);
    let cancel = Cancel::new().unwrap();
    let (id, spec, at_hand) = (HandoffId::new(), stage.successor("version 1"), AtHand::default());
    let outcome =
        stage.supervisor().perform_watched(id, spec, at_hand, &Switches(&stage), &cancel, |outcome, _| outcome);
    let outcome = outcome.unwrap().unwrap();
    let reason = outcome.abort_reason.unwrap();
    assert!(!outcome.committed && reason.contains("/b"), "{reason}");
    let (lock, heard) = incumbent.end();
    assert_eq!(heard, ["HelloAck"], "the incumbent was not asked to drain");
    assert!(lock.is_some());
    assert_untouched(&stage);
}
