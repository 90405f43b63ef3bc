//! The library in the process of a daemon that goes wrong: what becomes of its lock, and of who listens to its events.

pub(crate) mod daemon;
pub(crate) mod listener;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use handoff_testkit::ROLE_VARIABLE;
use handoff_testkit::fixture::{Fixture, Setup};

use self::daemon::{Way, let_exit, seen, tell, turns};
use self::listener::{LISTENER, Listener};
use crate::daemons::{CONTROL_SOCKET, DATA_DIR};
use crate::stage::within_patience;
use crate::{Outcome, check, trials};

trials![
    a_main_that_returns_early_keeps_the_lock_until_the_process_is_gone,
    an_incumbent_that_is_dropped_keeps_the_lock_until_the_process_is_gone,
    a_successor_that_drops_its_lock_keeps_it_until_the_process_is_gone,
    a_successor_that_panics_serving_keeps_the_lock_until_the_process_is_gone,
    daemons_whose_events_block_hand_over,
    daemons_whose_events_panic_hand_over,
    a_supervisor_whose_events_block_hands_over,
    a_supervisor_whose_events_panic_hands_over,
    an_error_of_main_is_the_reason,
];

/// A daemon without a supervisor, ended with its test.
struct Alone(Child);

impl Alone {
    fn start(dir: &Path) -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE_VARIABLE, daemon::ROLE).env(DATA_DIR, dir).env(CONTROL_SOCKET, dir.join("control.sock"));
        Ok(Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A second daemon waits for the lock that the first should have until it is gone, and then writes too.
fn never_in_turns(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    tell(dir.path(), way)?;
    let mut first = Alone::start(dir.path())?;
    let pid = first.0.id();
    check(within_patience(|| seen(dir.path()).is_some()), "it lets go of what it has")?;
    let said = seen(dir.path()).unwrap_or_default();
    check(said == format!("{pid} held by {pid}"), said)?;
    tell(dir.path(), Way::Well)?;
    let second = Alone::start(dir.path())?;
    // Long enough for the second one to have begun to wait, or to write.
    let written = || std::fs::metadata(dir.path().join("writes")).map_or(0, |file| file.len());
    let before = written();
    check(within_patience(|| written() >= before + 2000), "the first one's thread writes on")?;
    check(turns(dir.path())? == [pid], format!("{:?} write while {pid} does", turns(dir.path())?))?;
    let_exit(dir.path())?;
    check(first.0.wait()?.code() == Some(1), "it ends by itself")?;
    let both = [pid, second.0.id()];
    let all = within_patience(|| turns(dir.path()).is_ok_and(|turns| turns.len() >= 2));
    check(all && turns(dir.path())? == both, format!("{:?} wrote, and not {both:?}", turns(dir.path())?))
}

fn a_main_that_returns_early_keeps_the_lock_until_the_process_is_gone() -> Outcome {
    never_in_turns(Way::ReturnsEarly)
}

fn an_incumbent_that_is_dropped_keeps_the_lock_until_the_process_is_gone() -> Outcome {
    never_in_turns(Way::DropsTheIncumbent)
}

fn guests() -> Result<Fixture, Box<dyn std::error::Error>> {
    Ok(Setup::role(daemon::ROLE)?.config("retire = \"2s\"").start()?)
}

/// A successor goes wrong under the lock, and lives on until it is ended.
fn kept_by_a_successor(way: Way) -> Result<(Fixture, u32), Box<dyn std::error::Error>> {
    let fixture = guests()?;
    let pid = fixture.incumbent_pid()?;
    tell(fixture.data_dir(), way)?;
    let upgrade = fixture.upgrade(&[])?;
    check(within_patience(|| seen(fixture.data_dir()).is_some()), format!("{upgrade:?}\n{}", fixture.log()))?;
    let said = seen(fixture.data_dir()).unwrap_or_default();
    let successor: u32 = said.split(' ').next().unwrap_or_default().parse()?;
    check(successor != pid && said == format!("{successor} held by {successor}"), format!("{said} {upgrade:?}"))?;
    Ok((fixture, successor))
}

fn a_successor_that_drops_its_lock_keeps_it_until_the_process_is_gone() -> Outcome {
    let (fixture, successor) = kept_by_a_successor(Way::DropsTheLock)?;
    let incumbent = fixture.incumbent_pid()?;
    let expected = [incumbent, successor, incumbent];
    let all = within_patience(|| turns(fixture.data_dir()).is_ok_and(|turns| turns.len() >= 3));
    let turns = turns(fixture.data_dir())?;
    check(all && turns == expected, format!("{turns:?} wrote, and not {expected:?}\n{}", fixture.log()))
}

/// Its lease says Active by then, so it is the newest owner, dying.
fn a_successor_that_panics_serving_keeps_the_lock_until_the_process_is_gone() -> Outcome {
    let (fixture, successor) = kept_by_a_successor(Way::PanicsServing)?;
    tell(fixture.data_dir(), Way::Well)?;
    let_exit(fixture.data_dir())?;
    let all = within_patience(|| turns(fixture.data_dir()).is_ok_and(|turns| turns.len() >= 3));
    let turns = turns(fixture.data_dir())?;
    let came_back = turns.iter().filter(|&&pid| pid == successor).count() == 1;
    check(all && came_back, format!("{successor} wrote once at a time: {turns:?}\n{}", fixture.log()))
}

/// Each of the daemons is a successor and then an incumbent, which once takes its data back.
fn hands_over_and_back(setup: Setup) -> Outcome {
    let fixture = setup.start()?;
    for _ in 0..2 {
        let upgrade = fixture.upgrade(&[])?;
        check(upgrade.committed(), format!("{upgrade:?}\n{}", fixture.log()))?;
    }
    let pid = fixture.incumbent_pid()?;
    tell(fixture.data_dir(), Way::DropsTheLock)?;
    let_exit(fixture.data_dir())?;
    let upgrade = fixture.upgrade(&[])?;
    let is_undone = upgrade.code == Some(2) && fixture.incumbent_pid()? == pid;
    check(is_undone, format!("{upgrade:?}\n{}", fixture.log()))?;
    tell(fixture.data_dir(), Way::Well)?;
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.committed(), format!("{upgrade:?}\n{}", fixture.log()))
}

fn daemons(listener: Listener) -> Outcome {
    hands_over_and_back(Setup::role(daemon::ROLE)?.env(LISTENER, format!("{listener:?}")))
}

fn supervisor(listener: Listener) -> Outcome {
    hands_over_and_back(Setup::role(daemon::ROLE)?.supervisor_env(LISTENER, format!("{listener:?}")))
}

fn daemons_whose_events_block_hand_over() -> Outcome {
    daemons(Listener::Blocks)
}

fn daemons_whose_events_panic_hand_over() -> Outcome {
    daemons(Listener::Panics)
}

fn a_supervisor_whose_events_block_hands_over() -> Outcome {
    supervisor(Listener::Blocks)
}

fn a_supervisor_whose_events_panic_hands_over() -> Outcome {
    supervisor(Listener::Panics)
}

/// Whoever ordered the handover reads why nothing came of it, at whichever step the successor's `main` failed.
fn an_error_of_main_is_the_reason() -> Outcome {
    let fixture = guests()?;
    let pid = fixture.incumbent_pid()?;
    let ways = [
        (Way::FailsWarming, "no certificate is there"),
        (Way::FailsOpening, "the store is torn at 4711"),
        (Way::PanicsOpening, "panicked: segment 12 is missing"),
    ];
    for (way, words) in ways {
        tell(fixture.data_dir(), way)?;
        let upgrade = fixture.upgrade(&[])?;
        let reason = upgrade.outcome.as_ref().map(|outcome| outcome["abort_reason"].to_string()).unwrap_or_default();
        check(upgrade.code == Some(2) && reason.contains(words), format!("{way:?}: {upgrade:?}\n{}", fixture.log()))?;
        check(fixture.incumbent_pid()? == pid, "the incumbent serves on")?;
    }
    tell(fixture.data_dir(), Way::Well)?;
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.committed(), format!("{upgrade:?}\n{}", fixture.log()))
}
