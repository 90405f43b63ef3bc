//! One row in a service of its own, and what came of it.
//!
//! ```text
//! Serving ── provoked ──▶ the point ──▶ fired ──▶ settled ──▶ looked at ── upgrade ──▶ committed ── stop ──▶ audit
//!                           │              ▲
//!                           └─ the second ─┘
//! ```

use std::io;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::answer::{Fact, Order, Supervisor, contradictions, history_contradicts};
use super::beyond;
use super::points::{Fault, Point, Provocation, Role};
use super::report::RowReport;
use super::scene::{End, Scene, screenful, under_load};
use super::settled::{PATIENCE, settled, until, wait_until_served, wait_until_settled_alone};
use super::table::{Epoch, Serving};
use super::trap::{Armed, doomed};
use super::{ATTEMPT, Beside, HOLD, Hooks, Limits, Matrix, Meanwhile, PAUSE, Row, SHORT_LIMIT, Strike, TIMING, Times};
use crate::load::Cost;
use crate::strangers::{Manner, Outsider};

/// A row in which nothing is wrong but a time is repeated so often: the machine may have been slow in a way that nothing beside it has
/// felt. What the service does wrong it does again.
const REPEATS_MAX: u32 = 2;

/// Runs it in a service of its own; whatever goes wrong is in the report.
pub(super) fn run(matrix: &Matrix, row: &Row, seed: u64) -> RowReport {
    let mut repeats = 0;
    loop {
        let mut report = RowReport::of(row, seed);
        let end = match matrix.control() {
            Ok(_) => under_load(matrix, |scene| {
                strike(scene, row, seed, &mut report)?;
                and_then_commit(scene, &mut report)
            }),
            Err(error) => Err(error),
        };
        report.conclude(end);
        report.repeats = repeats;
        if report.ok || !report.is_only_late() || repeats == REPEATS_MAX {
            return report;
        }
        repeats += 1;
    }
}

/// One row's faults; comes back when all has settled and was looked at.
pub(super) fn strike(scene: &mut Scene<'_>, row: &Row, seed: u64, report: &mut RowReport) -> io::Result<()> {
    if !scene.load.wait_for_acks(2 + seed % 16, PATIENCE) {
        return Err(io::Error::other("no write is acknowledged before the fault"));
    }
    let mut strangers = strangers_at(scene, row)?;
    let old = scene.fixture.incumbent_pid()?;
    let epoch = scene.epoch();
    let mut armed = scene.trap.set(row)?;
    let since = Instant::now();
    let mut act = Act { row, old, since, order: provoke(scene, row, old)?, born: Vec::new(), frozen: None };
    let serving = act.play(scene, &mut armed, report)?;
    let outage = scene.load.gaps().longest_between(since, Instant::now());
    report.outage_ms = outage.as_secs_f64() * 1e3;
    scene.trap.clear()?;
    report.judge_time(scene, row, since, outage);
    if let Some(mut frozen) = act.frozen.take() {
        // The second supervisor has ended it.
        until("the frozen supervisor is gone", || Ok(frozen.try_wait()?.ok_or("it lives")))?;
    }
    let who = act.who(scene, report, serving)?;
    report.outcome = who.to_string();
    report
        .complain(row.expected.serving.contains(&who), || format!("{who} serves\n{}", screenful(&scene.fixture.log())));
    let stays = row.expected.epoch == Epoch::MayRise || scene.epoch() == epoch;
    report.complain(stays, || format!("the lock was let go: epoch {epoch}, then {}", scene.epoch()));
    strangers.iter_mut().try_for_each(Outsider::is_out)?;
    let missed = if who == Serving::New { 0 } else { scene.trap.resumes_that_did_not_fail() };
    report.complain(missed == 0, || format!("{missed} resumes less have failed than were to fail"));
    if let Meanwhile::MovesAfterwards(moved) = row.meanwhile {
        report.problems.extend(beyond::no_handover_while_moved(scene, moved, serving)?);
    }
    // Of the very process that went through the undone handover, before the next one.
    report.leak(scene.leaks(serving)?);
    scene.cost += cost(scene.matrix, row, outage);
    Ok(())
}

fn strangers_at(scene: &Scene<'_>, row: &Row) -> io::Result<Vec<Outsider>> {
    let manners: &[Manner] = match row.beside {
        Beside::Nobody => &[],
        Beside::Strangers => &[Manner::Queues, Manner::SecondDaemon],
    };
    let start = |manner: &Manner| Outsider::start(*manner, scene.fixture.data_dir(), scene.fixture.path());
    manners.iter().map(start).collect()
}

/// Brings the process to the row's point.
fn provoke(scene: &mut Scene<'_>, row: &Row, old: u32) -> io::Result<Option<Order>> {
    match row.point.provoked_by() {
        Provocation::Upgrade => {
            let binary = match row.point.led_to_by() {
                Some(death) => Some(doomed(scene.fixture, &scene.binary, death)?),
                None => None,
            };
            return Order::give(scene.fixture, binary.as_deref(), row.limits).map(Some);
        }
        Provocation::Nothing => {}
        Provocation::DeathOfTheDaemon => signal(old, Signal::KILL),
        Provocation::DeathOfTheSupervisor => {
            scene.fixture.kill_supervisor()?;
            scene.fixture.launch_supervisor()?;
        }
    }
    Ok(None)
}

/// A row under way.
pub(super) struct Act<'a> {
    pub(super) row: &'a Row,
    /// Who served before.
    pub(super) old: u32,
    /// Since when.
    pub(super) since: Instant,
    pub(super) order: Option<Order>,
    /// Processes that were there when the fault struck, and are none of those before.
    pub(super) born: Vec<u32>,
    /// A frozen supervisor beside which another one was started.
    frozen: Option<Child>,
}

impl Act<'_> {
    /// Until all faults that must strike have struck, and somebody serves alone; gives its pid.
    fn play(&mut self, scene: &mut Scene<'_>, armed: &mut Vec<Armed>, report: &mut RowReport) -> io::Result<u32> {
        let mut waiting = std::mem::take(armed);
        // Two faults that were drawn may exclude each other: then one is enough.
        let wanted = waiting.len().saturating_sub(usize::from(self.row.second.is_some()));
        let mut struck = 0;
        let deadline = Instant::now() + PATIENCE * 2;
        loop {
            let mut due = Vec::new();
            waiting.retain(|fault| match fault.hit() {
                Ok(Some(pid)) => {
                    due.push((fault.clone(), pid));
                    false
                }
                _ => true,
            });
            for (fault, pid) in due {
                struck += 1;
                self.note_births(scene);
                fault.confirm(scene.fixture, pid)?;
                report.fired = struck >= wanted;
                report.second_fired |= self.row.second == Some(fault.strike);
                self.go_on(fault.strike, scene, pid)?;
            }
            report.problems.extend(self.put_back_what_was_moved(scene)?);
            self.catch_a_lie(scene, report);
            let unsettled = match struck >= wanted && !scene.place.is_moved() {
                true => match settled(scene.fixture, scene.load) {
                    Ok(serving) => return Ok(serving),
                    Err(unsettled) => unsettled,
                },
                false => "the point is not reached".to_owned(),
            };
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("not in time: {unsettled}")));
            }
            // Nothing tells: processes, leases and markers are looked at from outside.
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    pub(super) fn note_births(&mut self, scene: &Scene<'_>) {
        let client = self.order.as_ref().map_or(0, Order::pid);
        let known = [self.old, scene.fixture.supervisor_pid(), client];
        self.born.extend(scene.fixture.processes().into_iter().filter(|pid| !known.contains(pid)));
    }

    /// What the world does after a fault: wakes who is to wake, starts the supervisor again.
    fn go_on(&mut self, strike: Strike, scene: &mut Scene<'_>, hit: u32) -> io::Result<()> {
        let client = self.order.as_ref().map_or(0, Order::pid);
        if strike == self.row.strike() && self.row.meanwhile.is_at_the_point() {
            return self.while_it_stands(strike, scene, hit);
        }
        match (strike.fault, strike.point.role()) {
            (Fault::Exit, Role::Supervisor) => scene.fixture.launch_supervisor()?,
            (Fault::Kill, Role::Supervisor) => {
                // Of a pair the other fault may strike them meanwhile, and somebody has to see to it.
                if self.row.second.is_none() {
                    wait_until_settled_alone(scene.fixture, &[client], scene.load)?;
                }
                scene.fixture.launch_supervisor()?;
            }
            (Fault::Stop, Role::Supervisor) => {
                // A successor that waits for its turn hears of nobody until the channel closes, and may be there still.
                until_given_up();
                wait_until_served(scene.fixture, scene.load)?;
                self.frozen = scene.fixture.release_supervisor();
                scene.fixture.launch_supervisor()?;
            }
            (Fault::StopCont, Role::Supervisor) => {
                until_given_up();
                signal(hit, Signal::CONT);
            }
            (Fault::StopCont, Role::Incumbent | Role::Successor) => {
                last(match self.row.limits {
                    Limits::AsConfigured => HOLD,
                    Limits::ShortGrace | Limits::ShortDeadline => SHORT_LIMIT + HOLD,
                });
                signal(hit, Signal::CONT);
            }
            (Fault::Pause, _) => pause(&scene.fixture.processes()),
            (Fault::Exit | Fault::Kill | Fault::Stop | Fault::Delay | Fault::Error, _) => {}
        }
        Ok(())
    }

    /// Who serves; the order's answer and the history are compared with that.
    fn who(&mut self, scene: &Scene<'_>, report: &mut RowReport, serving: u32) -> io::Result<Serving> {
        let old = self.old;
        let Some(order) = self.order.take() else {
            return Ok(if serving == old { Serving::Old } else { Serving::Fresh });
        };
        let answer = order.answer()?;
        let named = answer.outcome.as_ref().and_then(|said| u32::try_from(said["new_pid"].as_u64()?).ok());
        let who = match serving {
            pid if pid == old => Serving::Old,
            pid if named.map_or(self.born.contains(&pid), |named| named == pid) => Serving::New,
            _ => Serving::Fresh,
        };
        let strikes = [Some(self.row.strike()), self.row.second];
        let dies = |strike: &Strike| strike.point.role() == Role::Supervisor && strike.fault != Fault::Delay;
        let was_hit = strikes.into_iter().flatten().any(|strike| dies(&strike) && strike.fault != Fault::Pause);
        let supervisor = if was_hit { Supervisor::WasHit } else { Supervisor::Lived };
        let fact = Fact { who, old, serving, epoch: scene.epoch(), supervisor };
        report.problems.extend(contradictions(&answer, &fact));
        if !was_hit {
            let told = until("the history says what upgrade said", || history_contradicts(scene.fixture, &answer));
            report.problems.extend(told.err().map(|error| error.to_string()));
        }
        report.problems.extend(beyond::untold(self.row, &answer));
        report.code = answer.code;
        Ok(who)
    }
}

/// What the row's faults may cost the clients: the connections of processes that die while they may serve, and patience where nobody serves
/// for longer than that.
fn cost(matrix: &Matrix, row: &Row, outage: Duration) -> Cost {
    let clients = u64::from(matrix.clients) + u64::from(matrix.subject.reads());
    let killed = u64::from(row.point.provoked_by() == Provocation::DeathOfTheDaemon);
    let strikes = [Some(row.strike()), row.second];
    let dies = |strike: &&Strike| may_have_clients(strike.point) && strike.fault.is_deadly();
    let ended = row.meanwhile == Meanwhile::IncumbentDies || row.hooks == Hooks::FailingResume(Times::Always);
    let dying = strikes.iter().flatten().filter(dies).count() as u64 + u64::from(ended);
    let attempts = (outage.as_millis() / ATTEMPT.as_millis()) as u64;
    let may_wait = row.expected.bound.time() >= ATTEMPT;
    let frozen =
        strikes.iter().flatten().any(|strike| matches!(strike.fault, Fault::Stop | Fault::StopCont | Fault::Pause));
    let patience = if may_wait || frozen { clients * (attempts + 2) } else { 0 };
    Cost { connections: clients * (dying + killed), patience, ..Cost::NOTHING }
}

/// Whether the process that comes by there may have connections of clients: a successor has none before it is ready.
fn may_have_clients(point: Point) -> bool {
    match point.role() {
        Role::Supervisor => false,
        Role::Incumbent => true,
        Role::Successor => point == Point::NAfterReady,
    }
}

/// The next one commits within its time, and nothing is left of those that were hit.
pub(super) fn and_then_commit(scene: &mut Scene<'_>, report: &mut RowReport) -> io::Result<()> {
    let from = Instant::now();
    let handover = scene.hand_over()?;
    let late = scene.metronome.worst_since(from);
    let control = scene.matrix.control()?;
    let (call, outage) = (control.call_max(late), control.outage_max(Duration::ZERO, late));
    report.problems.extend(handover.problems);
    report.hold(handover.call <= call, || format!("the next handover takes {:?}; at most {call:?}", handover.call));
    report.hold(handover.outage <= outage, || {
        format!("the next handover stops the clients for {:?}; at most {outage:?}", handover.outage)
    });
    report.leak(scene.leaks(handover.serving)?);
    Ok(())
}

impl RowReport {
    /// The service goes on.
    pub(super) fn conclude_one(&mut self) {
        self.problems.extend(self.too_late.iter().cloned());
        self.ok = self.fired && self.problems.is_empty();
    }

    /// The service has ended, or could not be played with any more.
    pub(super) fn conclude(&mut self, end: io::Result<End>) {
        match end {
            Ok(end) => {
                self.complain(end.status.success(), || format!("the service ended with {}", end.status));
                self.leak(end.left.iter().map(|pid| format!("process {pid} lives on after the end")));
                (self.acked_lost, self.two_writers) = (end.verdict.disk.acked_lost, end.verdict.disk.two_writers);
                self.not_checked = end.verdict.disk.not_checked();
                self.problems.extend(end.verdict.problems());
                self.clients = end.verdict.clients;
            }
            Err(error) => self.problems.push(error.to_string()),
        }
        self.conclude_one();
    }

    /// Compares the outage with the row's bound and what this machine adds to it.
    fn judge_time(&mut self, scene: &Scene<'_>, row: &Row, since: Instant, outage: Duration) {
        let late = scene.metronome.worst_since(since);
        let bound = row.expected.bound.time() + row.opens(scene.matrix);
        let most = scene.matrix.control().map_or(bound, |control| control.outage_max(bound, late));
        self.hold(outage <= most, || {
            let log = screenful(&scene.fixture.log());
            format!("no service for {outage:?}; at most {bound:?}, and on this machine {most:?}\n{log}")
        });
    }

    /// A time that must be held.
    fn hold(&mut self, held: bool, problem: impl FnOnce() -> String) {
        if !held {
            self.too_late.push(problem());
        }
    }

    /// Whether nothing is wrong but times. Clients that lose patience lose it by time too.
    fn is_only_late(&self) -> bool {
        let by_time = |problem: &String| self.too_late.contains(problem) || problem.ends_with(" timed_out");
        self.fired && self.problems.iter().all(by_time)
    }

    pub(super) fn complain(&mut self, held: bool, problem: impl FnOnce() -> String) {
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
    std::thread::sleep(time);
}

pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended, or been ended, meanwhile; then nobody hears it.
        let _ = kill_process(pid, signal);
    }
}
