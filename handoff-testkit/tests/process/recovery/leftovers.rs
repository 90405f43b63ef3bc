//! Processes that should have left: old generations, holders of the lock, and everything at a stop.

use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use handoff_journal::{Details, HandoffId, Phase, StateJournal};
use handoff_runtime::DataDirLock;
use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::Cost;
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::daemon::{Mood, build};
use super::frozen::upgrade_in_background;
use super::scene::{EVERYBODY_DIED, Result, Scene, ended, fixed_address, run, signal};
use super::trial;
use crate::{Outcome, check};

/// The name of a role that locks the directory in its argument and never leaves.
pub(crate) const LOCKER: &str = "locker";

pub(super) fn all() -> Vec<Trial> {
    vec![
        trial("old_generations_do_not_live_on", || old_generations(Mood::Stays, "", Supervisor::Lives)),
        trial("old_generations_that_are_deaf_do_not_live_on", || {
            old_generations(Mood::Stays, "trap '' TERM", Supervisor::Lives)
        }),
        trial("old_generations_do_not_outlive_a_restart", || old_generations(Mood::Stays, "", Supervisor::IsKilled)),
        trial("a_leftover_of_the_journal_loses_the_lock", a_leftover_of_the_journal_loses_the_lock),
        trial("one_that_was_told_to_leave_loses_the_lock", || {
            one_that_was_told_to_leave_loses_the_lock(Record::IsWhole)
        }),
        trial("one_that_was_told_to_leave_loses_the_lock_when_the_end_was_not_written_down", || {
            one_that_was_told_to_leave_loses_the_lock(Record::LacksTheEnd)
        }),
        trial("old_generations_keep_no_address", old_generations_keep_no_address),
        trial("a_stranger_with_the_lock_is_named", a_stranger_with_the_lock_is_named),
        trial("sigterm_in_a_handover_leaves_nothing", sigterm_in_a_handover_leaves_nothing),
    ]
}

const SOON: &str = "retire = \"300ms\"";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Supervisor {
    Lives,
    IsKilled,
}

fn old_generations(mood: Mood, lines: &str, supervisor: Supervisor) -> Outcome {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(build(dir.path(), "first", mood, lines)?).listener("http", fixed_address()?);
    let retire = if supervisor == Supervisor::Lives { SOON } else { "retire = \"1h\"" };
    let mut scene = Scene::start(setup.config(retire))?;
    for _ in 0..3 {
        scene.upgrade()?;
    }
    if supervisor == Supervisor::IsKilled {
        scene.fixture.kill_supervisor()?;
        let living = scene.fixture.processes();
        check(living.len() == 4, format!("three old generations and the daemon live: {living:?}"))?;
        scene.configure("retire", SOON)?;
        scene.fixture.start_supervisor()?;
    }
    scene.serves()?;
    scene.only(2)?;
    scene.end(Cost::NOTHING)
}

/// A process that holds the lock of a data directory and does nothing else.
pub(crate) fn locker(args: Vec<std::ffi::OsString>) -> ExitCode {
    let dir = std::path::PathBuf::from(args.get(1).cloned().unwrap_or_default());
    match DataDirLock::acquire_timeout(&dir, Duration::from_secs(10)) {
        Ok(lock) => {
            lock.forget();
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("locker: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A locker that does not outlive its test.
struct Locker(Child);

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whoever took over the data of a fixture whose service is dead: the lock is held, and the lease names nobody who lives.
fn with_a_locker(setup: Setup) -> Result<(Fixture, Locker)> {
    let fixture = setup.prepare()?;
    // A process of its own takes the lock; the lease is then made that of nobody.
    let mut locker = Command::new(std::env::current_exe()?);
    locker.env(handoff_testkit::ROLE_VARIABLE, LOCKER).arg(fixture.data_dir());
    locker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let locker = Locker(locker.spawn()?);
    let until = std::time::Instant::now() + super::scene::PATIENCE;
    while handoff_lock::look(fixture.data_dir())?.locked_by != Some(locker.0.id())
        || handoff_lock::read_lease(fixture.data_dir())?.is_none()
    {
        check(std::time::Instant::now() < until, "the locker takes the lock")?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    let lease = std::fs::File::options().write(true).open(fixture.data_dir().join(".handoff.lock"))?;
    let length = lease.metadata()?.len();
    std::os::unix::fs::FileExt::write_all_at(&lease, &vec![0; usize::try_from(length)?], 0)?;
    Ok((fixture, locker))
}

fn a_leftover_of_the_journal_loses_the_lock() -> Outcome {
    let setup = Setup::store()?.config("watchdog = \"3s\"");
    let (mut fixture, mut locker) = with_a_locker(setup)?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", locker.0.id()))?;
    let start_time = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).ok_or("a start time")?;
    let record = StateJournal {
        handoff_id: HandoffId::new(),
        phase: Phase::Committed,
        incumbent_pid: locker.0.id(),
        successor_pid: None,
        started_at_unix_ms: 1,
        details: Details { incumbent_start_time: Some(start_time.parse()?), ..Details::default() },
    };
    record.write_atomic(&fixture.state_dir().join("journal"))?;
    // It is our child, so its end must be taken note of for it to be gone.
    let waiting =
        std::thread::spawn(move || ended(&mut locker.0).map(|status| status.code()).map_err(|e| e.to_string()));
    fixture.start_supervisor()?;
    check(waiting.join().map_err(|_| "a panic")??.is_none(), "the leftover is ended")?;
    Scene::on(fixture)?.end(Cost::NOTHING)
}

/// What a service that was killed has left in its own record of the last handover.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Record {
    IsWhole,
    /// It was killed after its client had its answer, and before the end was written down.
    LacksTheEnd,
}

/// Makes the daemon before this one the last that the service knew of.
fn take_the_end_out_of_the_record(fixture: &Fixture) -> Outcome {
    let path = fixture.state_dir().join("service");
    let records = std::fs::read_to_string(&path)?;
    let last = records.lines().last().ok_or("a record")?;
    let mut record: serde_json::Value = serde_json::from_str(last)?;
    let retiring = record["retiring"].as_array_mut().ok_or("a list of those that were told to leave")?;
    check(retiring.len() == 2, "both old processes stand there")?;
    record["daemon"] = retiring.pop().ok_or("the daemon of before")?;
    Ok(std::fs::write(&path, record.to_string())?)
}

/// Two handovers later the journal does not name it any more; the service's own record does.
fn one_that_was_told_to_leave_loses_the_lock(record: Record) -> Outcome {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(build(dir.path(), "first", Mood::ComesBack, "")?).listener("http", fixed_address()?);
    let mut scene = Scene::start(setup.config("watchdog = \"3s\"").config("retire = \"1h\""))?;
    let oldest = scene.fixture.incumbent_pid()?;
    for _ in 0..2 {
        scene.upgrade()?;
    }
    // It is written down behind the answer to the upgrade, and before that to the next question.
    scene.fixture.status()?;
    scene.fixture.kill_supervisor()?;
    if record == Record::LacksTheEnd {
        take_the_end_out_of_the_record(&scene.fixture)?;
    }
    for newer in scene.fixture.processes().into_iter().filter(|pid| *pid != oldest) {
        signal(newer, Signal::KILL)?;
    }
    scene.only(1)?;
    std::fs::write(scene.fixture.data_dir().with_file_name("come-back"), "")?;
    scene.wait_for_a_frozen_process()?;
    let holder = handoff_lock::look(scene.fixture.data_dir())?.locked_by;
    check(holder == Some(oldest), format!("{oldest} has the lock, not {holder:?}"))?;
    std::fs::remove_file(scene.fixture.data_dir().with_file_name("come-back"))?;
    scene.configure("retire", SOON)?;
    scene.fixture.start_supervisor()?;
    scene.serves()?;
    check(!scene.fixture.processes().contains(&oldest), format!("it is ended:\n{}", scene.fixture.log()))?;
    scene.end(EVERYBODY_DIED)
}

/// Nobody serves when the service is started again, and those that were to leave have not.
fn old_generations_keep_no_address() -> Outcome {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(build(dir.path(), "first", Mood::Stays, "")?).listener("http", fixed_address()?);
    let mut scene = Scene::start(setup.config("retire = \"1h\""))?;
    for _ in 0..2 {
        scene.upgrade()?;
    }
    let serving = scene.fixture.incumbent_pid()?;
    scene.fixture.kill_supervisor()?;
    signal(serving, Signal::KILL)?;
    scene.only(2)?;
    scene.configure("retire", SOON)?;
    scene.fixture.start_supervisor()?;
    scene.serves()?;
    scene.end(EVERYBODY_DIED)
}

fn a_stranger_with_the_lock_is_named() -> Outcome {
    let setup = Setup::store()?.config("watchdog = \"3s\"");
    let (mut fixture, mut locker) = with_a_locker(setup)?;
    let mut refused = run(&fixture, &[])?;
    let status = ended(&mut refused)?;
    let log = fixture.log();
    check(status.code() == Some(3), format!("{status}: {log}"))?;
    check(log.lines().count() == 1 && log.contains(&locker.0.id().to_string()), format!("one line names it: {log}"))?;
    check(locker.0.try_wait()?.is_none(), "the stranger lives on")?;
    signal(locker.0.id(), Signal::KILL)?;
    ended(&mut locker.0)?;
    fixture.start_supervisor()?;
    Scene::on(fixture)?.end(Cost::NOTHING)
}

fn sigterm_in_a_handover_leaves_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(build(dir.path(), "first", Mood::Good, "")?).listener("http", fixed_address()?);
    let scene = Scene::start(setup)?;
    let slow = build(dir.path(), "other", Mood::OpensSlowly, "")?;
    let mut upgrade = upgrade_in_background(&scene, &slow.to_string_lossy())?;
    scene.wait_until_the_successor_has_the_lock()?;
    let (fixture, verdict) = scene.stop()?;
    check(ended(&mut upgrade)?.code() == Some(2), format!("the handover is undone first:\n{}", fixture.log()))?;
    check(fixture.processes().is_empty(), format!("{:?}", fixture.processes()))?;
    check(verdict.is_clean(), format!("{:?}\n{}", verdict.problems(), fixture.log()))
}
