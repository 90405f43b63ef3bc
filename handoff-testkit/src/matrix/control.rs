//! What handovers without any fault look like on this machine, in this run: the measure for those that are disturbed.

use std::io;
use std::time::Duration;

use rustix::process::Signal;

use super::Matrix;
use super::footprint::Footprint;
use super::row::signal;
use super::scene::{self, Scene};
use super::settled::{settled, until};
use crate::Spread;
use crate::load::Cost;
use crate::yardstick::Yardstick;

/// How many handovers are measured.
const HANDOVERS: usize = 8;
/// How many times the control's median an undisturbed part may take, beside what a bound says: a row is a single sample, and no bound of a
/// distribution.
const MULTIPLE: u32 = 8;
/// A role waits for the machine several times in a handover, and each time it may be as late as it was at its latest.
const LATE_TIMES: u32 = 4;
/// A handover's whole call is so many times a bare start of a process at most, and so is what its clients wait for it. In the suite it is
/// two to five times; a part that grew by as much as all the rest is found by the benchmark.
const STARTS_MAX: u32 = 25;

/// Without any fault.
#[derive(Debug, Clone)]
pub struct Control {
    /// The longest time without an acknowledgement around each handover.
    pub outage: Spread,
    /// From the order to the answer.
    pub call: Spread,
    /// What the machine needs without any handover.
    pub yardstick: Yardstick,
    /// The most that a service at rest has in its hands.
    pub(super) footprint: Footprint,
}

impl Control {
    /// Hands over again and again, and looks after each.
    pub(super) fn observe(matrix: &Matrix) -> io::Result<Self> {
        let (mut control, mut problems) = (None, Vec::new());
        let end = scene::under_load(matrix, |scene| {
            control = Some(Self::measure(matrix, scene, &mut problems)?);
            Ok(())
        })?;
        problems.extend(end.verdict.problems());
        if !problems.is_empty() {
            return Err(io::Error::other(problems.join("; ")));
        }
        control.ok_or_else(|| io::Error::other("nothing was measured"))
    }

    fn measure(matrix: &Matrix, scene: &mut Scene<'_>, problems: &mut Vec<String>) -> io::Result<Self> {
        let yardstick = Yardstick::measure(scene.fixture.path())?;
        let serving = scene.settle()?;
        let mut footprint = Footprint::of(scene.fixture, serving)?;
        let (mut outages, mut calls) = (Vec::new(), Vec::new());
        for _ in 0..HANDOVERS {
            let handover = scene.hand_over()?;
            if let Some(problem) = handover.problems.first() {
                return Err(io::Error::other(problem.clone()));
            }
            outages.push(handover.outage);
            calls.push(handover.call);
            footprint = footprint.max(&Footprint::of(scene.fixture, handover.serving)?);
        }
        let yardstick = yardstick.again(scene.fixture.path())?;
        // So far nothing may have cost the clients anything; the death that follows may.
        problems.extend(scene.load.counts().problems(Cost::NOTHING));
        footprint = footprint.max(&after_a_death(scene)?);
        let control = Self { outage: Spread::of(&outages), call: Spread::of(&calls), yardstick, footprint };
        control.check(matrix.subject.opens_within())?;
        Ok(control)
    }

    /// A handover costs no more than a small multiple of what the machine needs anyway, and what the daemon says that it needs.
    fn check(&self, opens_within: Duration) -> io::Result<()> {
        let times = [("a handover without a fault", self.call), ("its time without an answer", self.outage)];
        let explained = |(what, spread)| self.yardstick.explains(what, spread, STARTS_MAX, opens_within);
        times.into_iter().try_for_each(explained).map_err(io::Error::other)
    }

    /// How long an outage may be whose bound is this, when the machine was so late meanwhile.
    pub(super) fn outage_max(&self, bound: Duration, late: Duration) -> Duration {
        bound + ms(self.outage.p50) * MULTIPLE + late * LATE_TIMES
    }

    /// The same for a whole call without a fault.
    pub(super) fn call_max(&self, late: Duration) -> Duration {
        ms(self.call.p50) * MULTIPLE + late * LATE_TIMES
    }
}

/// A daemon that is started in place of a dead one is no fault of a handover's either: the service may remember the dead.
fn after_a_death(scene: &mut Scene<'_>) -> io::Result<Footprint> {
    let dies = scene.settle()?;
    signal(dies, Signal::KILL);
    scene.cost += Cost::connections(u64::from(scene.matrix.clients) + u64::from(scene.matrix.subject.reads()));
    let serving = until("another daemon serves", || {
        Ok(settled(scene.fixture, scene.load)
            .and_then(|pid| if pid == dies { Err("the dead one".to_owned()) } else { Ok(pid) }))
    })?;
    Footprint::of(scene.fixture, serving)
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}
