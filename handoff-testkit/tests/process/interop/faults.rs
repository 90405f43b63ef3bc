//! Wire version 1 beside the commit path: deaths, frozen processes and failing hooks in a handover between this library and
//! `beyond-handoff` 0.1.4.
//!
//! A process of the handover is held at a point and struck there; then it is checked who serves, how soon, what the call was told, that
//! nothing is left over, that the next handover commits, and that no acknowledged write is lost and no two have written.

pub(crate) mod daemon;
mod stage;
pub(crate) mod supervisor;

use std::time::Duration;

use libtest_mimic::Trial;
use rustix::process::Signal;

use super::Library::{self, Ours, Theirs};
use crate::{Outcome, check, skip};
use daemon::{DRAIN, OPENING, SEAL, WARM, WHY};
use stage::{DATA, DEADLINE, DRAIN_GRACE, Noisy, OTHER, Stage, THEIR_SLACK, TIMING};

/// Who plays what.
#[derive(Clone, Copy)]
struct Cast {
    supervisor: Library,
    incumbent: Library,
    successor: Library,
}

const fn cast(supervisor: Library, incumbent: Library, successor: Library) -> Cast {
    Cast { supervisor, incumbent, successor }
}

/// Those in which version 1 is spoken on both of our supervisor's sides, or on one; and their supervisor with our daemons.
const CASTS: [(&str, Cast); 4] = [
    ("ours_theirs_ours", cast(Ours, Theirs, Ours)),
    ("ours_ours_theirs", cast(Ours, Ours, Theirs)),
    ("ours_theirs_theirs", cast(Ours, Theirs, Theirs)),
    ("theirs_ours_ours", cast(Theirs, Ours, Ours)),
];

type Test = fn(Cast) -> Outcome;

const EVERYWHERE: [(&str, Test); 11] = [
    ("successor_dies_before_begin", successor_dies_before_begin),
    ("successor_dies_under_the_lock", successor_dies_under_the_lock),
    ("successor_freezes_under_the_lock", successor_freezes_under_the_lock),
    ("incumbent_dies_in_the_drain", incumbent_dies_in_the_drain),
    ("incumbent_dies_behind_the_seal", incumbent_dies_behind_the_seal),
    ("drain_fails", drain_fails),
    ("seal_fails", seal_fails),
    ("incumbent_freezes_in_the_drain", incumbent_freezes_in_the_drain),
    ("successor_freezes_before_begin", successor_freezes_before_begin),
    ("incumbent_dies_in_the_seal", incumbent_dies_in_the_seal),
    ("incumbent_freezes_behind_the_seal", incumbent_freezes_behind_the_seal),
];

const SUPERVISOR_TESTS: [(&str, Test); 3] = [
    ("supervisor_dies_in_the_drain", |cast| supervisor_dies_before_begin(cast, DRAIN)),
    ("supervisor_dies_in_the_seal", |cast| supervisor_dies_before_begin(cast, SEAL)),
    ("supervisor_dies_after_begin", supervisor_dies_after_begin),
];

const THEIR_SUPERVISOR: [(&str, Test); 2] = [
    ("supervisor_freezes_in_the_drain", supervisor_freezes_in_the_drain),
    ("supervisor_freezes_after_begin", supervisor_freezes_after_begin),
];

/// That supervisor looks at no directory.
const OUR_SUPERVISOR: [(&str, Test); 2] = [
    ("data_dir_is_switched_between_handovers", data_dir_is_switched_between_handovers),
    ("data_dir_is_switched_while_the_successor_warms", data_dir_is_switched_while_the_successor_warms),
];

pub(crate) fn all() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (mix, cast) in CASTS {
        let more: &[_] = if cast.supervisor == Theirs { &THEIR_SUPERVISOR } else { &OUR_SUPERVISOR };
        for (name, test) in EVERYWHERE.iter().chain(&SUPERVISOR_TESTS).chain(more) {
            trials.push(skip::trial(format!("interop::faults::{mix}::{name}"), move || repeated(*test, cast)));
        }
    }
    trials
}

/// How often a trial is tried on a machine that is too noisy for its times.
const TRIES: usize = 5;

fn repeated(test: Test, cast: Cast) -> Outcome {
    for _ in 1..TRIES {
        match test(cast) {
            Err(error) if error.is::<Noisy>() => eprintln!("{error}; it is repeated"),
            other => return other,
        }
    }
    test(cast)
}

/// A death is noticed, and the incumbent resumes.
const RESUMED: Duration = Duration::from_millis(200);
/// The kernel tears an owner down, and the next one recovers its data.
const PROMOTED: Duration = Duration::from_millis(500);

impl Cast {
    fn start(self) -> stage::Result<(Stage, u32)> {
        let stage = Stage::start(self.supervisor, self.incumbent)?;
        let old = stage.serving()?;
        Ok((stage, old))
    }
}

/// The call has ended like this.
fn answered(stage: &Stage, call: std::process::Child, code: i32, says: &str) -> Outcome {
    let (found, said) = stage.end_of(call)?;
    let log = stage.fixture.log();
    check(found == Some(code) && said.contains(says), format!("exit {code}, {says:?}; not {found:?}: {said}\n{log}"))
}

fn serves(expected: u32, found: u32, stage: &Stage) -> Outcome {
    check(found == expected, format!("{expected} serves, not {found}\n{}", stage.fixture.log()))
}

fn successor_dies(cast: Cast, point: &str) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(point, cast.successor)?;
    let struck = stage.strike(held.pid, Signal::KILL)?;
    answered(&stage, held.call, 2, "")?;
    serves(old, stage.paused_within(&struck, RESUMED)?, &stage)?;
    stage.end(cast.successor)
}

fn successor_dies_before_begin(cast: Cast) -> Outcome {
    successor_dies(cast, WARM)
}

fn successor_dies_under_the_lock(cast: Cast) -> Outcome {
    successor_dies(cast, OPENING)
}

fn successor_freezes(cast: Cast, point: &str) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(point, cast.successor)?;
    let struck = stage.strike(held.pid, Signal::STOP)?;
    let given_up = match cast.supervisor {
        Ours => TIMING.liveness,
        Theirs => DEADLINE + THEIR_SLACK,
    };
    answered(&stage, held.call, 2, "")?;
    serves(old, stage.paused_within(&struck, given_up + RESUMED)?, &stage)?;
    stage.end(cast.successor)
}

fn successor_freezes_under_the_lock(cast: Cast) -> Outcome {
    successor_freezes(cast, OPENING)
}

/// Under version 1 nobody notices it before its turn has come, and the incumbent is drained and sealed for it.
fn successor_freezes_before_begin(cast: Cast) -> Outcome {
    successor_freezes(cast, WARM)
}

fn incumbent_dies_in_the_drain(cast: Cast) -> Outcome {
    incumbent_dies(cast, DRAIN)
}

fn incumbent_dies_in_the_seal(cast: Cast) -> Outcome {
    incumbent_dies(cast, SEAL)
}

fn incumbent_dies(cast: Cast, hook: &str) -> Outcome {
    let (mut stage, old) = cast.start()?;
    let held = stage.held_at(hook, cast.successor)?;
    let struck = stage.strike(held.pid, Signal::KILL)?;
    check(held.pid == old, "the incumbent is held")?;
    if cast.supervisor == Theirs {
        // That supervisor promotes nobody: it ends the successor, and its caller starts the daemon anew.
        answered(&stage, held.call, 2, "")?;
        stage.start_a_daemon()?;
        check(stage.serving()? != old, "another one serves")?;
        return stage.end(cast.successor);
    }
    let new = stage.serves_within(&struck, PROMOTED)?;
    answered(&stage, held.call, 0, &new.to_string())?;
    stage.end(cast.successor)
}

fn incumbent_dies_behind_the_seal(cast: Cast) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(OPENING, cast.successor)?;
    stage.strike(old, Signal::KILL)?;
    let gone = stage.let_go()?;
    serves(held.pid, stage.serves_within(&gone, PROMOTED)?, &stage)?;
    answered(&stage, held.call, 0, "")?;
    stage.end(cast.successor)
}

fn incumbent_freezes_in_the_drain(cast: Cast) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(DRAIN, cast.successor)?;
    let struck = stage.strike(old, Signal::STOP)?;
    if cast.supervisor == Theirs {
        // That supervisor ends nobody but its successor: whoever froze the incumbent wakes it.
        answered(&stage, held.call, 2, "")?;
        stage.let_go()?;
        let woken = stage.strike(old, Signal::CONT)?;
        serves(old, stage.serves_within(&woken, RESUMED)?, &stage)?;
        return stage.end(cast.successor);
    }
    let new = stage.serves_within(&struck, TIMING.liveness + PROMOTED)?;
    answered(&stage, held.call, 0, &new.to_string())?;
    stage.gone(old)?;
    stage.end(cast.successor)
}

/// It is no longer needed: the successor serves. Woken, it finds that out, and leaves.
fn incumbent_freezes_behind_the_seal(cast: Cast) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(OPENING, cast.successor)?;
    stage.strike(old, Signal::STOP)?;
    let opened = stage.let_go()?;
    serves(held.pid, stage.serves_within(&opened, RESUMED)?, &stage)?;
    answered(&stage, held.call, 0, "")?;
    if cast.supervisor == Theirs {
        stage.strike(old, Signal::CONT)?;
    }
    stage.gone(old)?;
    stage.end(cast.successor)
}

fn hook_fails(cast: Cast, hook: &str, says: &str) -> Outcome {
    let (stage, old) = cast.start()?;
    let call = stage.failing_at(hook, cast.successor)?;
    answered(&stage, call, 2, says)?;
    serves(old, stage.serving()?, &stage)?;
    stage.end(cast.successor)
}

/// Version 1 has no word for a failed drain: it closes the session, and the reason is in the incumbent's log.
fn drain_fails(cast: Cast) -> Outcome {
    hook_fails(cast, DRAIN, "")
}

fn seal_fails(cast: Cast) -> Outcome {
    hook_fails(cast, SEAL, WHY)
}

impl Cast {
    /// What the call was told by whom: the command of ours sees who serves, theirs was the supervisor and is dead.
    fn after_its_death(self, stage: &mut Stage, call: std::process::Child, code: i32) -> Outcome {
        if self.supervisor == Theirs {
            let (found, _) = stage.end_of(call)?;
            return check(found.is_none(), "it was killed");
        }
        answered(stage, call, code, "")?;
        stage.start_our_supervisor()
    }
}

fn supervisor_dies_before_begin(cast: Cast, point: &str) -> Outcome {
    let (mut stage, old) = cast.start()?;
    let held = stage.held_at(point, cast.successor)?;
    stage.kill_supervisor(&held.call)?;
    let returned = stage.let_go()?;
    serves(old, stage.serves_within(&returned, RESUMED)?, &stage)?;
    cast.after_its_death(&mut stage, held.call, 2)?;
    serves(old, stage.serving()?, &stage)?;
    stage.end(cast.successor)
}

fn supervisor_dies_after_begin(cast: Cast) -> Outcome {
    let (mut stage, old) = cast.start()?;
    let held = stage.held_at(OPENING, cast.successor)?;
    stage.kill_supervisor(&held.call)?;
    let opened = stage.let_go()?;
    // One of ours serves without its supervisor; one of theirs can't say Ready, and leaves.
    let (expected, code) = if cast.successor == Ours { (held.pid, 0) } else { (old, 2) };
    serves(expected, stage.serves_within(&opened, RESUMED)?, &stage)?;
    cast.after_its_death(&mut stage, held.call, code)?;
    serves(expected, stage.serving()?, &stage)?;
    stage.end(cast.successor)
}

/// It holds the lock, so it resumes by itself at the end of the time that it was given.
fn supervisor_freezes_in_the_drain(cast: Cast) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(DRAIN, cast.successor)?;
    let struck = stage.strike(held.call.id(), Signal::STOP)?;
    stage.let_go()?;
    serves(old, stage.serves_within(&struck, DEADLINE)?, &stage)?;
    check(DRAIN_GRACE < DEADLINE, "the drain's own time is over before")?;
    stage.strike(held.call.id(), Signal::CONT)?;
    answered(&stage, held.call, 2, "")?;
    serves(old, stage.serving()?, &stage)?;
    stage.end(cast.successor)
}

/// The successor serves at once; the incumbent asks the lease when deadline and slack are over, and leaves before anybody commits it.
fn supervisor_freezes_after_begin(cast: Cast) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(OPENING, cast.successor)?;
    let frozen = stage.strike(held.call.id(), Signal::STOP)?;
    let opened = stage.let_go()?;
    serves(held.pid, stage.serves_within(&opened, RESUMED)?, &stage)?;
    stage.gone(old)?;
    stage.within(&frozen, DEADLINE + TIMING.limbo_slack + RESUMED)?;
    stage.strike(held.call.id(), Signal::CONT)?;
    answered(&stage, held.call, 0, "")?;
    serves(held.pid, stage.serving()?, &stage)?;
    stage.end(cast.successor)
}

fn data_dir_is_switched_between_handovers(cast: Cast) -> Outcome {
    let (stage, old) = cast.start()?;
    stage.lead_to(OTHER)?;
    answered(&stage, stage.call(cast.successor)?, 3, "data directory")?;
    serves(old, stage.serving()?, &stage)?;
    check(stage.strays()?.is_empty(), format!("written to the wrong directory: {:?}", stage.strays()?))?;
    stage.lead_to(DATA)?;
    stage.end(cast.successor)
}

/// A successor of version 1 does not say when it is warm, so the supervisor has looked when it said Hello; it has a path without links, and
/// the switch misses it. One of version 2 is looked at when it is warm.
fn data_dir_is_switched_while_the_successor_warms(cast: Cast) -> Outcome {
    let (stage, old) = cast.start()?;
    let held = stage.held_at(WARM, cast.successor)?;
    stage.lead_to(OTHER)?;
    stage.let_go()?;
    let expected = match cast.successor {
        Ours => {
            answered(&stage, held.call, 2, "data directory")?;
            old
        }
        Theirs => {
            answered(&stage, held.call, 0, "")?;
            held.pid
        }
    };
    serves(expected, stage.serving()?, &stage)?;
    check(stage.strays()?.is_empty(), format!("written to the wrong directory: {:?}", stage.strays()?))?;
    stage.lead_to(DATA)?;
    stage.end(cast.successor)
}
