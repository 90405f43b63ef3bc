//! Others at the data directory: whoever may read it can lock it, flock(2), and somebody may start a second daemon on the same
//! data. Neither gets in while the service lives, whatever a handover comes to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use handoff_testkit::crash::ProcessCrash;
use handoff_testkit::load::Cost;
use handoff_testkit::strangers::{Manner, Outsider};

use crate::stage::{CLIENTS, Stage};
use crate::{Outcome, check, trials};

trials![
    a_stranger_that_queues_on_the_directory_never_gets_it,
    a_stranger_that_tries_in_a_loop_never_gets_it,
    second_daemons_in_a_loop_stop_no_handover,
    the_incumbent_dies_while_a_stranger_waits,
    a_directory_that_others_may_read_is_told_once,
];

/// A build that dies at this point of its handover.
fn dying_at(stage: &Stage, point: &str) -> std::io::Result<PathBuf> {
    let crash = ProcessCrash::new(point, "successor", stage.fixture.path());
    let variables = crash.env().map(|(name, value)| format!("export {}='{}'\n", name.display(), value.display()));
    let program = std::env::current_exe()?;
    let path = stage.fixture.path().join(format!("dies-{point}"));
    fs::write(&path, format!("#!/bin/sh\n{}exec '{}' \"$@\"\n", variables.concat(), program.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Handovers that commit, and handovers whose successor dies on each of its steps, with one at the data directory that gets it in none
/// of them.
fn hand_over_beside(manner: Manner) -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let mut outsider = Outsider::start(manner, stage.fixture.data_dir(), stage.fixture.path())?;
    for _ in 0..3 {
        stage.hands_over()?;
        outsider.is_out()?;
    }
    for point in ["n-after-handshake", "n-after-begin", "n-after-lock", "n-before-announce-ready"] {
        let upgrade = stage.upgrade(&[&dying_at(&stage, point)?.to_string_lossy()])?;
        check(!upgrade.committed(), format!("{point}: {upgrade:?}"))?;
        stage.serves()?;
        fs::remove_file(stage.fixture.path().join("crashed-successor.marker"))?;
        outsider.is_out()?;
    }
    stage.hands_over()?;
    outsider.is_out()?;
    check(outsider.is_queued() == (manner == Manner::Queues), "it waits still")?;
    drop(outsider);
    stage.finish()
}

fn a_stranger_that_queues_on_the_directory_never_gets_it() -> Outcome {
    hand_over_beside(Manner::Queues)
}

fn a_stranger_that_tries_in_a_loop_never_gets_it() -> Outcome {
    hand_over_beside(Manner::Tries)
}

fn second_daemons_in_a_loop_stop_no_handover() -> Outcome {
    hand_over_beside(Manner::SecondDaemon)
}

/// The successor has a part in the directory's lock before the incumbent drains: its death leaves no gap.
fn the_incumbent_dies_while_a_stranger_waits() -> Outcome {
    let setup = Stage::setup()?;
    let dir = tempfile::tempdir()?;
    let crash = ProcessCrash::new("o-after-drained-sent", "incumbent", dir.path());
    let once = ("HANDOFF_CRASH_ONCE".into(), "1".into());
    let setup = crash
        .env()
        .into_iter()
        .chain([once])
        .fold(setup, |setup, (name, value)| setup.env(name.to_string_lossy(), value.to_string_lossy()));
    let mut stage = Stage::start_fresh(setup)?;
    let mut stranger = Outsider::start(Manner::Queues, stage.fixture.data_dir(), stage.fixture.path())?;
    let before = stage.counts();
    let incumbent = stage.fixture.incumbent_pid()?;
    let upgrade = stage.upgrade(&[])?;
    check(crash.has_fired()?, "the incumbent dies in its drain")?;
    check(upgrade.committed(), format!("the successor is promoted: {upgrade:?}"))?;
    stage.serves()?;
    check(stage.fixture.incumbent_pid()? != incumbent, "another one serves")?;
    stranger.is_out()?;
    check(stranger.is_queued(), "it waits still")?;
    stage.charge(&before, Cost { connections: 2 * CLIENTS as u64, patience: 2, ..Cost::NOTHING })?;
    drop(stranger);
    stage.finish()
}

fn a_directory_that_others_may_read_is_told_once() -> Outcome {
    for (mode, told) in [(0o755, 1), (0o750, 1), (0o700, 0)] {
        let mut fixture = Stage::setup()?.prepare()?;
        fs::create_dir_all(fixture.data_dir())?;
        fs::set_permissions(fixture.data_dir(), fs::Permissions::from_mode(mode))?;
        fixture.start_supervisor()?;
        let upgrade = fixture.upgrade(&[])?;
        check(upgrade.committed(), format!("{mode:o}: {upgrade:?}"))?;
        let advice = format!("chmod 0700 {}", fixture.data_dir().display());
        let count = fixture.log().matches(&advice).count();
        check(count == told, format!("{mode:o}: {count} times\n{}", fixture.log()))?;
        fixture.stop()?;
    }
    Ok(())
}
