//! Many handovers of one service, one after the other: each with a fault that is drawn, or each of them undone.

use std::io;

use super::footprint::Footprint;
use super::report::RowReport;
use super::row::{and_then_commit, strike};
use super::scene::{Scene, under_load};
use super::settled::until_within;
use super::trap::doomed;
use super::{CLOSED_WITHIN, Matrix, Point, Random};

/// Rows drawn at random, one after the other in one service. The series ends early with a row after which nothing settles.
pub(super) fn run(matrix: &Matrix, handovers: u32, watch: &dyn Fn(&RowReport)) -> Vec<RowReport> {
    let mut random = Random(matrix.seed);
    let mut reports: Vec<RowReport> = Vec::new();
    let mut unsettled = None;
    let end = under_load(matrix, |scene| {
        for number in 1..=handovers {
            let drawn = usize::try_from(random.next() % matrix.rows.len().max(1) as u64).unwrap_or(0);
            let row = matrix.rows.get(drawn).ok_or_else(|| io::Error::other("no row to draw from"))?;
            let seed = random.next();
            let mut report = RowReport::of(row, seed);
            if let Err(error) = strike(scene, row, seed, &mut report) {
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

/// Where the successors die of a series of handovers that are undone: O has not been asked yet; O has sealed, and takes everything back.
const DEATHS: [Point; 2] = [Point::NAfterHandshake, Point::NAfterLock];

/// Undoes handovers again and again; what the processes have more of in the end.
pub(super) fn undo(matrix: &Matrix, handovers: u32) -> Vec<String> {
    let mut grown = Vec::new();
    let end = under_load(matrix, |scene| {
        for death in DEATHS {
            grown.extend(growth_by(scene, death, handovers)?);
        }
        Ok(())
    });
    match end {
        Ok(end) => grown.extend(end.verdict.problems()),
        Err(error) => grown.push(error.to_string()),
    }
    grown
}

/// What is made only once is there after the first.
fn growth_by(scene: &mut Scene<'_>, death: Point, handovers: u32) -> io::Result<Vec<String>> {
    undo_one(scene, death)?;
    undo_one(scene, death)?;
    let before = Footprint::of(scene.fixture, scene.settle()?)?;
    for _ in 0..handovers {
        undo_one(scene, death)?;
    }
    let mut grown = Vec::new();
    let steady = until_within(CLOSED_WITHIN, "everything is given back", || {
        grown = before.growth(&Footprint::of(scene.fixture, scene.settle()?)?);
        Ok(if grown.is_empty() { Ok(()) } else { Err(()) })
    });
    if let Err(error) = steady
        && error.kind() != io::ErrorKind::TimedOut
    {
        return Err(error);
    }
    let after = |what: String| format!("after {handovers} handovers undone at {}: {what}", death.name());
    Ok(grown.into_iter().map(after).collect())
}

fn undo_one(scene: &mut Scene<'_>, death: Point) -> io::Result<()> {
    let binary = doomed(scene.fixture, &scene.binary, death)?;
    let upgrade = scene.fixture.upgrade(&[&binary.to_string_lossy()])?;
    match upgrade.code {
        Some(2) => scene.settle().map(drop),
        _ => Err(io::Error::other(format!("the handover was to be undone: {upgrade:?}"))),
    }
}
