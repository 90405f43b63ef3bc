//! One row of the matrix: a service, a writing client, a handover, a fault, and what came of it.
//!
//! ```text
//! Serving ── upgrade ──▶ under way ── the point ──▶ fired ──▶ settled ── upgrade ──▶ committed ── stop ──▶ audit
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::Writer;
use super::points::{Fault, Point, Role};
use super::report::RowReport;
use super::settled::{
    Footprint, PATIENCE, until, until_within, wait_until_served, wait_until_settled, wait_until_settled_alone,
};
use super::subject::Subject;
use super::table::{Bound, Serving, led_to_by};
use super::{Matrix, Row, TIMING};
use crate::crash::ProcessCrash;
use crate::fixture::{Fixture, Setup};
use crate::leaks::process_state;

/// How long a frozen daemon sleeps before it is woken, and a slow process dawdles: well within what its peers wait.
const HOLD: Duration = Duration::from_millis(400);
/// A descriptor may be closed a moment later than the last answer was given.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// What the noticing of a silence costs besides the silence.
const NOTICED: Duration = Duration::from_millis(200);

/// The daemon's service with the matrix's intervals.
pub(super) fn setup(subject: &dyn Subject) -> io::Result<Setup> {
    let (name, timing) = handoff_runtime::crash::timing_variable(&TIMING);
    let watchdog = format!("watchdog = \"{}ms\"", TIMING.liveness.as_millis());
    let lines = ["deadline = \"4s\"", "drain_grace = \"2s\"", "warm = \"3s\"", "retire = \"700ms\"", &watchdog];
    Ok(lines.iter().fold(subject.setup()?.supervisor_env(name, timing), |setup, line| setup.config(line)))
}

/// Runs it; whatever goes wrong is in the report.
pub(super) fn run(matrix: &Matrix<'_>, row: &Row, seed: u64) -> RowReport {
    let mut report = RowReport {
        role: row.point.role().to_string(),
        point: row.point.name().to_owned(),
        fault: row.fault.name().to_owned(),
        fired: false,
        expected: in_words(row),
        outcome: "unknown".to_owned(),
        outage_ms: 0.0,
        acked_lost: 0,
        two_writers: 0,
        leaks: 0,
        ok: false,
        problems: Vec::new(),
    };
    if let Err(error) = attempt(matrix, row, seed, &mut report) {
        report.problems.push(error.to_string());
    }
    report.ok = report.fired && report.problems.is_empty();
    report
}

fn attempt(matrix: &Matrix<'_>, row: &Row, seed: u64, report: &mut RowReport) -> io::Result<()> {
    matrix.control()?;
    let markers = tempfile::tempdir()?;
    let setup = setup(matrix.subject)?;
    let binary = setup.binary().to_owned();
    let mut fixture = armed(setup, row, markers.path()).prepare()?;
    let outcome =
        under_load(matrix, row, seed, report, &mut fixture, &Place { markers: markers.path(), binary: &binary });
    outcome.map_err(|error| io::Error::new(error.kind(), format!("{error}\n{}", fixture.log())))
}

/// Where a row finds its files.
struct Place<'a> {
    markers: &'a Path,
    binary: &'a Path,
}

fn under_load(
    matrix: &Matrix<'_>,
    row: &Row,
    seed: u64,
    report: &mut RowReport,
    fixture: &mut Fixture,
    place: &Place<'_>,
) -> io::Result<()> {
    fixture.start_supervisor()?;
    let address = fixture.address(matrix.subject.listener())?;
    let writer = Writer::default();
    thread::scope(|scope| {
        scope.spawn(|| writer.run(matrix.subject, address));
        let done = fault_and_after(matrix, row, seed, report, fixture, place, &writer);
        writer.stop();
        done
    })?;
    let ended = fixture.stop()?;
    report.complain(ended.success(), || format!("the service ended with {ended}"));
    report.leak(fixture.processes().iter().map(|pid| format!("process {pid} lives on after the end")));
    let audit = writer.audit(&matrix.subject.written(fixture.data_dir())?);
    (report.acked_lost, report.two_writers) = (audit.acked_lost, audit.two_writers);
    let refused = writer.refused();
    report.complain(audit.acked_lost == 0, || format!("{} acknowledged writes are lost", audit.acked_lost));
    report.complain(audit.two_writers == 0, || format!("{} writes of a former owner", audit.two_writers));
    report.complain(audit.duplicated == 0, || format!("{} writes are there twice", audit.duplicated));
    report.complain(refused == 0, || format!("the client was refused {refused} times"));
    Ok(())
}

fn fault_and_after(
    matrix: &Matrix<'_>,
    row: &Row,
    seed: u64,
    report: &mut RowReport,
    fixture: &mut Fixture,
    place: &Place<'_>,
    writer: &Writer,
) -> io::Result<()> {
    let some_writes = 2 + usize::try_from(seed % 16).unwrap_or(0);
    if !writer.wait_for(some_writes, PATIENCE) {
        return Err(io::Error::other("no write is acknowledged before the fault"));
    }
    let old = fixture.incumbent_pid()?;
    let since = Instant::now();
    let upgrade = Order::give(fixture, doomed(row.point, fixture, place)?.as_deref())?;
    let hit = wait_until_fired(row, place.markers)?;
    let supervisor = fixture.supervisor_pid();
    let known = [old, supervisor, upgrade.pid()];
    let born: Vec<u32> = fixture.processes().into_iter().filter(|pid| !known.contains(pid)).collect();
    confirm(row, fixture, hit, place.markers)?;
    report.fired = true;
    let frozen = go_on(row, fixture, hit, &upgrade, writer)?;
    let serving = wait_until_settled(fixture, writer)?;
    let outage = writer.outage_since(since);
    report.outage_ms = outage.as_secs_f64() * 1e3;
    if let Some(mut frozen) = frozen {
        // The second supervisor has ended it.
        until("the frozen supervisor is gone", || Ok(frozen.try_wait()?.ok_or("it lives")))?;
    }
    let answer = upgrade.answer()?;
    let successors = answer["new_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).map_or(born, |pid| vec![pid]);
    let who = match serving {
        pid if pid == old => Serving::Old,
        pid if successors.contains(&pid) => Serving::New,
        _ => Serving::Fresh,
    };
    report.outcome = who.to_string();
    report.complain(row.expected.serving.contains(&who), || {
        format!("{who} serves; upgrade said {answer}\n{}", fixture.log())
    });
    let bound = bound(row.expected.bound) + matrix.tolerance;
    report.complain(outage <= bound, || format!("no service for {outage:?}; at most {bound:?}\n{}", fixture.log()));
    next_handover(matrix, report, fixture, writer)
}

/// The next one commits, and nothing is left of the one that was hit.
fn next_handover(
    matrix: &Matrix<'_>,
    report: &mut RowReport,
    fixture: &mut Fixture,
    writer: &Writer,
) -> io::Result<()> {
    let upgrade = fixture.upgrade(&[])?;
    report
        .complain(upgrade.committed(), || format!("the next handover does not commit: {upgrade:?}\n{}", fixture.log()));
    let serving = wait_until_settled(fixture, writer)?;
    let control = matrix.control()?;
    let leaks = until_within(CLOSED_WITHIN, "nothing is left behind", || {
        let leaks = control.leaks(&Footprint::of(fixture, serving)?);
        Ok(if leaks.is_empty() { Ok(()) } else { Err(leaks) })
    });
    report.leak(leaks.err().map(|error| error.to_string()));
    Ok(())
}

impl RowReport {
    fn complain(&mut self, held: bool, problem: impl FnOnce() -> String) {
        if !held {
            self.problems.push(problem());
        }
    }

    fn leak(&mut self, leaks: impl IntoIterator<Item = String>) {
        let before = self.problems.len();
        self.problems.extend(leaks);
        self.leaks += (self.problems.len() - before) as u64;
    }
}

/// The fault in the environment of every process of the service; it happens once.
fn armed(setup: Setup, row: &Row, markers: &Path) -> Setup {
    let how = match row.fault {
        Fault::Exit => "exit".to_owned(),
        Fault::Kill => "kill".to_owned(),
        Fault::Stop | Fault::StopCont => "stop".to_owned(),
        Fault::Delay => format!("delay:{}", HOLD.as_millis()),
        Fault::Error => "error".to_owned(),
    };
    let crash = crash(row, markers);
    let variables =
        crash.env().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    let setup = variables.into_iter().fold(setup, |setup, (name, value)| setup.supervisor_env(name, value));
    setup.supervisor_env("HANDOFF_CRASH_HOW", how).supervisor_env("HANDOFF_CRASH_ONCE", "1")
}

fn crash(row: &Row, markers: &Path) -> ProcessCrash {
    ProcessCrash::new(row.point.name(), &row.point.role().to_string(), markers)
}

/// A successor that dies, where the point is reached only through its death: the same binary with a fault of its own.
fn doomed(point: Point, fixture: &Fixture, place: &Place<'_>) -> io::Result<Option<PathBuf>> {
    let Some(death) = led_to_by(point) else { return Ok(None) };
    let path = fixture.path().join("doomed");
    let quoted = place.binary.to_string_lossy().replace('\'', "'\\''");
    let name = death.name();
    let script = format!(
        "#!/bin/sh\nHANDOFF_CRASH_AT={name} HANDOFF_CRASH_HOW=exit HANDOFF_CRASH_ROLE=doomed exec '{quoted}' \"$@\"\n"
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(Some(path))
}

/// Waits for the marker, and gives the pid of the process that left it.
fn wait_until_fired(row: &Row, markers: &Path) -> io::Result<u32> {
    let crash = crash(row, markers);
    // It is there a moment before it is whole.
    until("the point is reached", || Ok(if crash.has_fired().unwrap_or(false) { Ok(()) } else { Err("no marker") }))?;
    let pid = fs::read_to_string(crash.marker_path().with_extension("pid"))?;
    pid.trim().parse().map_err(io::Error::other)
}

/// What the marker announces is seen from outside: by the exit status where the process is our child, else by its state.
fn confirm(row: &Row, fixture: &mut Fixture, hit: u32, markers: &Path) -> io::Result<()> {
    let awake = crash(row, markers).marker_path().with_extension("awake");
    match (row.fault, row.point.role()) {
        (Fault::Exit | Fault::Kill, Role::Supervisor) => {
            let status = fixture.wait_for_supervisor(PATIENCE)?;
            let as_told = |status: ExitStatus| match row.fault {
                Fault::Exit => ProcessCrash::is_crash(status),
                _ => status.signal() == Some(Signal::KILL.as_raw()),
            };
            if as_told(status) { Ok(()) } else { Err(io::Error::other(format!("the supervisor ended with {status}"))) }
        }
        (Fault::Exit | Fault::Kill, _) => until("it is dead", || {
            let state = process_state(hit);
            Ok(if matches!(state, None | Some('Z' | 'X')) { Ok(()) } else { Err(state) })
        }),
        (Fault::Stop | Fault::StopCont, _) => until("it is stopped", || {
            let state = process_state(hit);
            // Whoever watches it may have ended it, or told it to go on, already.
            let was_stopped = matches!(state, None | Some('T' | 't' | 'Z' | 'X'));
            Ok(if was_stopped || awake.exists() { Ok(()) } else { Err(state) })
        }),
        (Fault::Delay | Fault::Error, _) => Ok(()),
    }
}

/// What the world does after the fault: wakes who is to wake, starts the supervisor again. Gives a frozen supervisor beside
/// which another one was started.
fn go_on(row: &Row, fixture: &mut Fixture, hit: u32, upgrade: &Order, writer: &Writer) -> io::Result<Option<Child>> {
    match (row.fault, row.point.role()) {
        (Fault::Exit, Role::Supervisor) => fixture.start_supervisor()?,
        (Fault::Kill, Role::Supervisor) => {
            wait_until_settled_alone(fixture, &[upgrade.pid()], writer)?;
            fixture.start_supervisor()?;
        }
        (Fault::Stop, Role::Supervisor) => {
            // A successor that waits for its turn hears of nobody until the channel closes, and may be there still.
            until_given_up();
            wait_until_served(fixture, writer)?;
            let frozen = fixture.release_supervisor();
            fixture.start_supervisor()?;
            return Ok(frozen);
        }
        (Fault::StopCont, Role::Supervisor) => {
            until_given_up();
            wake(hit);
        }
        (Fault::StopCont, Role::Incumbent | Role::Successor) => {
            thread::sleep(HOLD);
            wake(hit);
        }
        (Fault::Exit | Fault::Kill | Fault::Stop | Fault::Delay | Fault::Error, _) => {}
    }
    Ok(None)
}

/// The fault's own length: until the others have long given the frozen process up.
fn until_given_up() {
    thread::sleep(TIMING.liveness * 2);
}

fn wake(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have been ended meanwhile; then nobody wakes.
        let _ = kill_process(pid, Signal::CONT);
    }
}

/// `handoff upgrade`, under way. Dropping it kills the client, which is nobody's role.
struct Order(Option<Child>);

impl Order {
    fn give(fixture: &Fixture, binary: Option<&Path>) -> io::Result<Self> {
        let mut command = fixture.command(&["upgrade", "--json", "--state-dir"])?;
        command.arg(fixture.state_dir()).args(binary).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self(Some(command.spawn()?)))
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// What it printed; null when its supervisor went away.
    fn answer(mut self) -> io::Result<Value> {
        let Some(child) = self.0.take() else { return Ok(Value::Null) };
        let output = child.wait_with_output()?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn bound(bound: Bound) -> Duration {
    match bound {
        Bound::Nothing => Duration::ZERO,
        Bound::Noticed(within) => within,
        Bound::Silence => TIMING.liveness + NOTICED,
        Bound::Watched => TIMING.liveness * 2 + NOTICED,
        Bound::Woken => HOLD + NOTICED,
    }
}

fn in_words(row: &Row) -> String {
    let who: Vec<String> = row.expected.serving.iter().map(Serving::to_string).collect();
    format!("{} serves within {} ms", who.join(" or "), bound(row.expected.bound).as_millis())
}
