//! One fault in one handover, and what came of it; a service for it alone, or many of them one after the other in one service.
//!
//! ```text
//! Serving ── upgrade ──▶ under way ── the point ──▶ fired ──▶ settled ─┬─ upgrade ──▶ committed ── stop ──▶ audit
//!    ▲                                                                 │
//!    └──────────────────────── in a row ───────────────────────────────┘
//! ```

use std::io;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::Writer;
use super::points::{Fault, Role};
use super::report::RowReport;
use super::scene::{End, Scene, under_load};
use super::settled::{PATIENCE, until, wait_until_served, wait_until_settled_alone};
use super::table::{Bound, Serving};
use super::{HOLD, Matrix, PAUSE, Random, Row, TIMING};
use crate::fixture::Fixture;

/// What the noticing of a silence costs besides the silence.
const NOTICED: Duration = Duration::from_millis(200);

/// Runs it in a service of its own; whatever goes wrong is in the report.
pub(super) fn run(matrix: &Matrix<'_>, row: &Row, seed: u64) -> RowReport {
    let mut report = RowReport::of(row);
    let end = under_load(matrix, |scene| {
        strike(scene, row, seed, &mut report)?;
        and_then_commit(scene, &mut report)
    });
    report.conclude(end);
    report
}

/// Rows drawn at random, one after the other in one service. The series ends early with a row after which nothing settles.
pub(super) fn run_series(matrix: &Matrix<'_>, handovers: u32, watch: &dyn Fn(&RowReport)) -> Vec<RowReport> {
    let mut random = Random(matrix.seed);
    let mut reports: Vec<RowReport> = Vec::new();
    let mut unsettled = None;
    let end = under_load(matrix, |scene| {
        for number in 1..=handovers {
            let drawn = usize::try_from(random.next() % matrix.rows.len() as u64).unwrap_or(0);
            let row = &matrix.rows[drawn];
            let mut report = RowReport::of(row);
            let struck = strike(scene, row, random.next(), &mut report);
            if let Err(error) = struck {
                unsettled = Some(report);
                return Err(error);
            }
            report.conclude_one();
            if number < handovers {
                watch(&report);
            }
            reports.push(report);
        }
        let last = reports.last_mut().ok_or_else(|| io::Error::other("a series has at least one handover"))?;
        and_then_commit(scene, last)
    });
    if let Some(mut last) = unsettled.or_else(|| reports.pop()) {
        last.conclude(end);
        watch(&last);
        reports.push(last);
    }
    reports
}

/// One handover with the row's fault; comes back when all has settled.
fn strike(scene: &mut Scene<'_>, row: &Row, seed: u64, report: &mut RowReport) -> io::Result<()> {
    let some_writes = 2 + usize::try_from(seed % 16).unwrap_or(0);
    if !scene.writer.wait_for(some_writes, PATIENCE) {
        return Err(io::Error::other("no write is acknowledged before the fault"));
    }
    let armed = scene.trap.set(row)?;
    let old = scene.fixture.incumbent_pid()?;
    let since = Instant::now();
    let upgrade = Order::give(scene.fixture, armed.doomed(scene.fixture, &scene.binary)?.as_deref())?;
    let hit = armed.wait_until_fired()?;
    let supervisor = scene.fixture.supervisor_pid();
    let known = [old, supervisor, upgrade.pid()];
    let born: Vec<u32> = scene.fixture.processes().into_iter().filter(|pid| !known.contains(pid)).collect();
    armed.confirm(scene.fixture, hit)?;
    report.fired = true;
    let frozen = go_on(row, scene.fixture, hit, &upgrade, scene.writer)?;
    let serving = scene.settle()?;
    let outage = scene.writer.outage_since(since);
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
        format!("{who} serves; upgrade said {answer}\n{}", scene.fixture.log())
    });
    let bound = bound(row.expected.bound) + scene.matrix.tolerance;
    report
        .complain(outage <= bound, || format!("no service for {outage:?}; at most {bound:?}\n{}", scene.fixture.log()));
    Ok(())
}

/// The next one commits, and nothing is left of those that were hit.
fn and_then_commit(scene: &mut Scene<'_>, report: &mut RowReport) -> io::Result<()> {
    let undisturbed = scene.hand_over_undisturbed()?;
    report.problems.extend(undisturbed.refusal);
    report.leak(undisturbed.leaks);
    Ok(())
}

impl RowReport {
    /// Before anything has happened.
    fn of(row: &Row) -> Self {
        Self {
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
        }
    }

    /// The service goes on.
    fn conclude_one(&mut self) {
        self.ok = self.fired && self.problems.is_empty();
    }

    /// The service has ended, or could not be played with any more.
    fn conclude(&mut self, end: io::Result<End>) {
        match end {
            Ok(end) => {
                self.complain(end.status.success(), || format!("the service ended with {}", end.status));
                self.leak(end.left.iter().map(|pid| format!("process {pid} lives on after the end")));
                let audit = end.audit;
                (self.acked_lost, self.two_writers) = (audit.acked_lost, audit.two_writers);
                self.complain(audit.acked_lost == 0, || format!("{} acknowledged writes are lost", audit.acked_lost));
                self.complain(audit.two_writers == 0, || format!("{} writes of a former owner", audit.two_writers));
                self.complain(audit.duplicated == 0, || format!("{} writes are there twice", audit.duplicated));
                self.complain(end.refused == 0, || format!("the clients were refused {} times", end.refused));
            }
            Err(error) => self.problems.push(error.to_string()),
        }
        self.conclude_one();
    }

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
            last(HOLD);
            wake(hit);
        }
        (Fault::Pause, _) => pause(&fixture.processes()),
        (Fault::Exit | Fault::Kill | Fault::Stop | Fault::Delay | Fault::Error, _) => {}
    }
    Ok(None)
}

/// Until the others have long given the frozen process up.
fn until_given_up() {
    last(TIMING.liveness * 2);
}

/// Nothing of the service runs for a while that is longer than anybody waits for a peer.
fn pause(processes: &[u32]) {
    processes.iter().for_each(|pid| signal(*pid, Signal::STOP));
    last(PAUSE);
    processes.iter().for_each(|pid| signal(*pid, Signal::CONT));
}

/// A fault that ends by itself lasts this long. Nothing is waited for: what comes of it is asked afterwards.
fn last(time: Duration) {
    thread::sleep(time);
}

fn wake(pid: u32) {
    signal(pid, Signal::CONT);
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended, or been ended, meanwhile; then nobody hears it.
        let _ = kill_process(pid, signal);
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
        Bound::Unanswered => TIMING.settle + TIMING.liveness * 2 + NOTICED,
        Bound::Woken => HOLD + NOTICED,
        Bound::Paused => PAUSE + NOTICED,
    }
}

fn in_words(row: &Row) -> String {
    let who: Vec<String> = row.expected.serving.iter().map(Serving::to_string).collect();
    format!("{} serves within {} ms", who.join(" or "), bound(row.expected.bound).as_millis())
}
