//! The measurement in one directory: all sides' services run there, and take turns under load.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::Args;
use super::micro::{self, Steps};
use super::service::{Handover, Service};
use super::sides::{PHASES, Side};
use crate::load::{Cost, Counts, Kept, Load, LoadSpec};

const THINK: Duration = Duration::from_micros(500);
/// How many replies each client gets before anything is measured, and then in the control.
const REPLIES_BEFORE: u64 = 20;
/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the single steps are measured, for each handover.
const STEPS_PER_HANDOVER: u32 = 4;

/// What was measured in a directory.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) dir: PathBuf,
    /// In the order of [`Side::ALL`].
    pub(super) sides: Vec<Samples>,
    pub(super) steps: Steps,
}

/// One side's samples, in the order of the rounds; microseconds.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// The longest gap between replies, around a handover.
    pub(super) pause: Vec<f64>,
    /// The longest gap between replies, before it.
    pub(super) control: Vec<f64>,
    /// From the order to the answer.
    pub(super) call: Vec<f64>,
    /// What the supervisor did for it, by its own clock.
    pub(super) perform: Vec<f64>,
    /// The parts of that, in the order of [`PHASES`]; empty where there is no such part.
    pub(super) phases: [Vec<f64>; PHASES.len()],
    /// What the clients have seen, in all.
    pub(super) seen: Counts,
    /// How many syncs were held, if they were.
    pub(super) syncs_held: Option<u64>,
}

/// Measures all sides in `dir`, which is created. What is put there is removed again.
///
/// # Errors
/// A side can't be started or can't hand over, or the disk refuses.
pub(super) fn measure(dir: &Path, args: &Args) -> io::Result<Measured> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(named)?;
    let dir = dir.canonicalize().map_err(named)?;
    let room = tempfile::Builder::new().prefix("bench-").tempdir_in(&dir).map_err(named)?;
    let steps =
        micro::measure(&subdirectory(room.path(), "steps")?, args.handovers * STEPS_PER_HANDOVER, args.fsync_delay)?;
    let mut turns = Turns::start(&Side::ALL, room.path(), args)?;
    (0..args.handovers).try_for_each(|_| turns.round())?;
    let sides = turns.stop()?;
    Ok(Measured { dir, sides, steps })
}

/// Services that hand over in turns.
pub(super) struct Turns {
    services: Vec<Service>,
    samples: Vec<Samples>,
    clients: usize,
    rounds: usize,
    acks: tempfile::TempDir,
}

impl Turns {
    /// Starts the services of these sides in `room`. Each has handed over once already: the first one finds cold caches and an empty
    /// store, and is not counted.
    ///
    /// # Errors
    /// A side can't be started or can't hand over.
    pub(super) fn start(sides: &[Side], room: &Path, args: &Args) -> io::Result<Self> {
        let clients = usize::from(args.clients);
        let start = |side: &Side| Service::start(*side, &subdirectory(room, side.name())?, clients, args.fsync_delay);
        let services = sides.iter().map(start).collect::<io::Result<Vec<_>>>()?;
        let none = || sides.iter().map(|_| Samples::default()).collect();
        let mut turns = Self { services, samples: none(), clients, rounds: 0, acks: tempfile::tempdir()? };
        turns.round()?;
        turns.samples = none();
        Ok(turns)
    }

    /// One handover of each side, in another order than the round before.
    ///
    /// # Errors
    /// A side can't hand over.
    pub(super) fn round(&mut self) -> io::Result<()> {
        let sides = self.services.len();
        for turn in 0..sides {
            let side = (self.rounds + turn) % sides;
            take_turn(&mut self.services[side], self.clients, self.acks.path(), &mut self.samples[side])?;
        }
        self.rounds += 1;
        Ok(())
    }

    /// What was measured so far, in the order of the sides.
    pub(super) fn samples(&self) -> &[Samples] {
        &self.samples
    }

    /// Stops the services, and gives what was measured.
    ///
    /// # Errors
    /// One does not stop.
    pub(super) fn stop(mut self) -> io::Result<Vec<Samples>> {
        for (service, samples) in self.services.iter_mut().zip(&mut self.samples) {
            samples.syncs_held = service.syncs_held();
            service.stop()?;
        }
        Ok(self.samples)
    }
}

/// One handover of one side under load.
fn take_turn(service: &mut Service, clients: usize, acks: &Path, samples: &mut Samples) -> io::Result<()> {
    let spec = LoadSpec { clients, kept: Kept::All, think: THINK, ..LoadSpec::new(service.address(), acks) };
    let load = Load::start(&spec, service.client())?;
    wait_for_replies(&load, clients)?;
    let control_from = Instant::now();
    wait_for_replies(&load, clients)?;
    let control = load.gaps().longest_between(control_from, Instant::now());
    let handover = service.hand_over()?;
    if !load.gaps().wait_for_reply_after(handover.answered, PATIENCE) {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no client got a reply after the handover"));
    }
    let pause = load.gaps().longest_between(handover.ordered, handover.answered);
    service.settle(&handover)?;
    samples.take(pause, control, &handover, &load.stop()?.counts);
    Ok(())
}

fn wait_for_replies(load: &Load, clients: usize) -> io::Result<()> {
    match load.wait_for_acks(REPLIES_BEFORE * clients as u64, PATIENCE) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the clients get no replies: {}", load.counts()))),
    }
}

fn subdirectory(room: &Path, name: &str) -> io::Result<PathBuf> {
    let path = room.join(name);
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

impl Samples {
    /// What befell the clients: with anything at all, the times mean nothing.
    pub(super) fn problems(&self) -> Vec<String> {
        self.seen.problems(Cost::NOTHING)
    }

    fn take(&mut self, pause: Duration, control: Duration, handover: &Handover, seen: &Counts) {
        let us = super::sides::us;
        self.pause.push(us(pause));
        self.control.push(us(control));
        self.call.push(us(handover.answered - handover.ordered));
        self.perform.push(handover.answer.perform);
        for ((name, _), samples) in PHASES.iter().zip(&mut self.phases) {
            samples.extend(handover.answer.phases.get(*name));
        }
        self.seen += seen;
    }
}
