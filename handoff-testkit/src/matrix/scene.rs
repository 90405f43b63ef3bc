//! A service under load whose processes can be made to fail, and the reckoning at its end.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{self, Fact, Supervisor};
use super::place::Place;
use super::settled::{lease, until, until_within, wait_until_settled};
use super::subject::{Spoken, Subject};
use super::trap::Trap;
use super::{ATTEMPT, CLOSED_WITHIN, Matrix, RESUME, Serving, TIMING};
use crate::audit::{OnDisk, Verdict};
use crate::fixture::{Fixture, Setup};
use crate::leaks::descriptors;
use crate::load::{Cost, Load, LoadSpec};
use crate::yardstick::Metronome;

/// Between two writes of a client.
const THINK: Duration = Duration::from_millis(2);

/// A running service with its clients.
pub(super) struct Scene<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) fixture: &'a mut Fixture,
    pub(super) load: &'a Load,
    pub(super) metronome: &'a Metronome,
    pub(super) trap: Trap,
    /// Where the data is.
    pub(super) place: Place,
    /// The program that serves, and takes over.
    pub(super) binary: PathBuf,
    /// What the faults so far may have cost the clients.
    pub(super) cost: Cost,
}

/// What was found when it had stopped.
pub(super) struct End {
    pub(super) status: ExitStatus,
    /// Processes that live on.
    pub(super) left: Vec<u32>,
    pub(super) verdict: Verdict,
}

/// The daemon's service with the matrix's intervals, and with deadlines that leave its openings their time.
pub(super) fn setup(subject: &dyn Subject) -> io::Result<Setup> {
    let (name, timing) = handoff_runtime::crash::timing_variable(&TIMING);
    let opens = subject.opens_within();
    let ms = |key: &str, time: Duration| format!("{key} = \"{}ms\"", time.as_millis());
    let lines = [
        ms("watchdog", TIMING.liveness),
        ms("deadline", Duration::from_secs(4) + opens * 2),
        ms("drain_grace", Duration::from_secs(2)),
        ms("warm", Duration::from_secs(3) + opens),
        ms("retire", Duration::from_millis(700)),
        ms("resume", RESUME + opens),
    ];
    Ok(lines.iter().fold(subject.setup()?.supervisor_env(name, timing), |setup, line| setup.config(line)))
}

/// Starts a service and its clients, lets `play` do with it what it likes, stops it and compares what the clients were told with what
/// is on disk.
pub(super) fn under_load(matrix: &Matrix, play: impl FnOnce(&mut Scene<'_>) -> io::Result<()>) -> io::Result<End> {
    let trap = Trap::new(matrix.subject.points())?;
    let place = Place::new()?;
    let setup = setup(&*matrix.subject)?.data_dir(place.name());
    let binary = setup.binary().to_owned();
    let (name, value) = trap.variable();
    let mut fixture = setup.supervisor_env(name, value).prepare()?;
    let end = play_out(matrix, &mut fixture, (trap, place), binary, play);
    end.map_err(|error| io::Error::new(error.kind(), format!("{error}\n{}", screenful(&fixture.log()))))
}

fn play_out(
    matrix: &Matrix,
    fixture: &mut Fixture,
    (trap, place): (Trap, Place),
    binary: PathBuf,
    play: impl FnOnce(&mut Scene<'_>) -> io::Result<()>,
) -> io::Result<End> {
    fixture.start_supervisor()?;
    let spec = LoadSpec {
        clients: matrix.clients as usize,
        readers: usize::from(matrix.subject.reads()),
        kept: matrix.subject.kept(),
        think: THINK,
        patience: ATTEMPT,
        ..LoadSpec::new(fixture.endpoint(matrix.subject.listener())?, &fixture.path().join("acks"))
    };
    let load = Load::start(&spec, Arc::new(Spoken(Arc::clone(&matrix.subject))))?;
    let metronome = Metronome::start(fixture.path())?;
    let mut scene =
        Scene { matrix, fixture, load: &load, metronome: &metronome, trap, place, binary, cost: Cost::NOTHING };
    play(&mut scene)?;
    let cost = scene.cost;
    let seen = load.stop()?;
    let status = fixture.stop()?;
    let written = matrix.subject.written(fixture.data_dir())?;
    let disk = OnDisk::compare(&seen.acks_dir, &written, matrix.subject.check(fixture.data_dir()))?;
    Ok(End { status, left: fixture.processes(), verdict: Verdict::new(&seen, disk, cost) })
}

/// The end of a log, as much as fits a screen.
pub(super) fn screenful(log: &str) -> String {
    const LINES_MAX: usize = 40;
    let lines: Vec<&str> = log.lines().collect();
    let left_out = lines.len().saturating_sub(LINES_MAX);
    let note = if left_out > 0 { format!("… {left_out} lines of log before\n") } else { String::new() };
    note + &lines[left_out..].join("\n")
}

/// What a handover without a fault came to.
#[derive(Debug)]
pub(super) struct Undisturbed {
    pub(super) serving: u32,
    pub(super) outage: Duration,
    pub(super) call: Duration,
    pub(super) problems: Vec<String>,
}

impl Scene<'_> {
    /// Waits until one daemon serves alone, and gives its pid.
    pub(super) fn settle(&self) -> io::Result<u32> {
        wait_until_settled(self.fixture, self.load)
    }

    /// The epoch that the lease names.
    pub(super) fn epoch(&self) -> u64 {
        lease(self.fixture).map_or(0, |lease| lease.epoch)
    }

    /// A handover without a fault.
    pub(super) fn hand_over(&mut self) -> io::Result<Undisturbed> {
        let old = self.fixture.incumbent_pid()?;
        let from = Instant::now();
        let upgrade = self.fixture.upgrade(&[])?;
        let call = from.elapsed();
        let serving = self.settle()?;
        let outage = self.load.gaps().longest_between(from, Instant::now());
        let who = if serving == old { Serving::Old } else { Serving::New };
        let fact = Fact { who, old, serving, epoch: self.epoch(), supervisor: Supervisor::Lived };
        let mut problems = answer::contradictions(&upgrade, &fact);
        if !upgrade.committed() {
            problems.push(format!("a handover without a fault does not commit: {upgrade:?}"));
        }
        let told = until("the history says what upgrade said", || answer::history_contradicts(self.fixture, &upgrade));
        problems.extend(told.err().map(|error| error.to_string()));
        Ok(Undisturbed { serving, outage, call, problems })
    }

    /// The same with what the descriptors are that are too many.
    fn with_descriptors(&self, leaks: Vec<String>, serving: u32) -> Vec<String> {
        let named = |leak: String| {
            let pid = if leak.starts_with("the supervisor") { self.fixture.supervisor_pid() } else { serving };
            match leak.contains(" descriptors") {
                true => format!("{leak}: {:?}", descriptors(pid).unwrap_or_default()),
                false => leak,
            }
        };
        leaks.into_iter().map(named).collect()
    }

    /// What there is more of than without any fault, when everything had time to be closed.
    pub(super) fn leaks(&self, serving: u32) -> io::Result<Vec<String>> {
        let control = self.matrix.control()?;
        let mut leaks = Vec::new();
        let none = until_within(CLOSED_WITHIN, "nothing is left behind", || {
            leaks = control.footprint.leaks(&super::footprint::Footprint::of(self.fixture, serving)?);
            Ok(if leaks.is_empty() { Ok(()) } else { Err(()) })
        });
        match none {
            Err(error) if error.kind() != io::ErrorKind::TimedOut => Err(error),
            _ => Ok(self.with_descriptors(leaks, serving)),
        }
    }
}
