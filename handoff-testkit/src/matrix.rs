//! The fault matrix: role × point × fault → expected outcome, on real processes; runs on the built-in daemon or on yours.
//!
//! Each [`Row`] is a service of its own in a temporary directory, with a client that writes all the time. A handover is
//! ordered, one process fails at the row's point, and when all has settled it is checked that the fault really happened, who
//! serves, how long nobody did, that every acknowledged write is on disk, that no two writers were at work, that nothing was
//! left behind, and that the next handover commits. [`Matrix::run_in_a_row`] does the same to one service again and again.
//!
//! The expectations stand in one table, written by hand. The protocol's intervals are shortened for the processes
//! under test, by variables that only a build with the feature `crash-points` of `handoff-runtime` reads: the daemon under
//! test needs that feature, and nothing else.
//!
//! ```no_run
//! use handoff_testkit::matrix::Matrix;
//!
//! handoff_testkit::init(); // first in `main`
//! let report = Matrix::built_in().filter("n-*").run(1);
//! println!("{report}");
//! assert!(report.is_clean());
//! ```

mod client;
pub(crate) mod daemon;
mod points;
mod report;
mod row;
mod scene;
mod settled;
mod subject;
mod table;
mod trap;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, thread};

use handoff_runtime::Timing;

pub use points::{Fault, Point, Role};
pub use report::{Report, RowReport};
pub use subject::{BuiltIn, Subject, Written};
pub use table::{Bound, Expected, Serving, expected};

use settled::Control;

/// A fault, and what must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Where it happens, and to whom.
    pub point: Point,
    /// What happens.
    pub fault: Fault,
    /// What must come of it.
    pub expected: Expected,
}

impl Row {
    /// All rows of the table.
    pub fn all() -> Vec<Self> {
        let pairs = Point::ALL.iter().flat_map(|point| Fault::ALL.iter().map(move |fault| (*point, *fault)));
        pairs
            .filter_map(|(point, fault)| expected(point, fault).map(|expected| Self { point, fault, expected }))
            .collect()
    }

    /// `ROLE/POINT/FAULT`, such as `successor/n-after-lock/kill`.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.point.role(), self.point.name(), self.fault.name())
    }

    /// Whether a pattern with `*` and `?` means this row: by its role, its point, its fault, `POINT/FAULT` or its whole name.
    pub fn is_meant_by(&self, pattern: &str) -> bool {
        let (role, point, fault) = (self.point.role().to_string(), self.point.name(), self.fault.name());
        let names = [role.as_str(), point, fault, &format!("{point}/{fault}"), &self.name()].map(str::to_owned);
        names.iter().any(|name| matches(pattern.as_bytes(), name.as_bytes()))
    }
}

/// The matrix for one daemon.
pub struct Matrix<'a> {
    subject: &'a dyn Subject,
    rows: Vec<Row>,
    tolerance: Duration,
    side_by_side: usize,
    clients: u32,
    seed: u64,
    /// What a service looks like after handovers without any fault.
    control: OnceLock<Result<Control, String>>,
}

impl Matrix<'static> {
    /// On the built-in daemon.
    pub fn built_in() -> Self {
        Self::of(&BuiltIn)
    }
}

impl<'a> Matrix<'a> {
    /// On a daemon of the caller's own.
    pub fn of(subject: &'a dyn Subject) -> Self {
        Self {
            subject,
            rows: Row::all(),
            tolerance: Duration::from_secs(1),
            side_by_side: 1,
            clients: 1,
            seed: 1,
            control: OnceLock::new(),
        }
    }

    /// Only the rows that the pattern means; see [`Row::is_meant_by`].
    #[must_use]
    pub fn filter(mut self, pattern: &str) -> Self {
        self.rows.retain(|row| row.is_meant_by(pattern));
        self
    }

    /// Added to every bound: what the machine itself may be slow, and what the daemon needs to open its data. 1 s by default.
    #[must_use]
    pub fn tolerance(self, tolerance: Duration) -> Self {
        Self { tolerance, ..self }
    }

    /// How many rows run at the same time. 1 by default: the outages are then the most exact.
    #[must_use]
    pub fn side_by_side(self, rows: usize) -> Self {
        Self { side_by_side: rows.max(1), ..self }
    }

    /// How many clients write at the same time. 1 by default.
    #[must_use]
    pub fn clients(self, clients: u32) -> Self {
        Self { clients: clients.max(1), ..self }
    }

    /// Where the choices start that vary from run to run: the order of the rows, those that a series draws, and how many
    /// writes go ahead of a fault.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The rows that are left.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Runs every row this often.
    pub fn run(&self, times: u32) -> Report {
        self.run_watched(times, &|_| {})
    }

    /// The same; each row is shown as soon as it is done.
    pub fn run_watched(&self, times: u32, watch: &(dyn Fn(&RowReport) + Sync)) -> Report {
        let mut random = Random(self.seed);
        let mut runs: Vec<(usize, u64)> = Vec::new();
        for run in 0..times as usize {
            let places = (0..self.rows.len()).map(|row| run * self.rows.len() + row);
            let mut order: Vec<_> = places.map(|place| (place, random.next())).collect();
            order.sort_unstable_by_key(|(_, random)| *random);
            runs.append(&mut order);
        }
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(runs.len())));
        let work = || {
            while let Some((place, seed)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let report = self.run_row(&self.rows[place % self.rows.len()], *seed);
                watch(&report);
                done.lock().unwrap_or_else(PoisonError::into_inner).push((*place, report));
            }
        };
        thread::scope(|scope| {
            (0..self.side_by_side).for_each(|_| drop(scope.spawn(work)));
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(place, _)| *place);
        Report::new(done.into_iter().map(|(_, report)| report).collect())
    }

    /// Runs one row once. What went wrong is in the report, the fixture's own failures too.
    pub fn run_row(&self, row: &Row, seed: u64) -> RowReport {
        row::run(self, row, seed)
    }

    /// Hands one service over this often, each time with the fault of a row that is drawn at random; a row is shown as soon
    /// as the service has settled after it. What only the end can tell, such as a lost write, stands in the last row.
    pub fn run_in_a_row(&self, handovers: u32, watch: &dyn Fn(&RowReport)) -> Report {
        Report::new(row::run_series(self, handovers, watch))
    }

    fn control(&self) -> io::Result<&Control> {
        let control = self.control.get_or_init(|| Control::observe(self).map_err(|error| error.to_string()));
        control.as_ref().map_err(|error| io::Error::other(format!("without any fault: {error}")))
    }
}

/// The protocol's intervals in a row: those of `docs/protocol.md`, shorter where only the bound changes.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(150),
    liveness: Duration::from_millis(1500),
    hello: Duration::from_millis(1500),
    successor_slack: Duration::from_millis(300),
    limbo_slack: Duration::from_millis(900),
    closed_grace: Duration::from_millis(200),
    limbo_poll: Duration::from_millis(20),
    deadline_max: Duration::from_secs(3600),
    settle: Duration::from_secs(3),
};

/// How long a frozen daemon sleeps before it is woken, and a slow process dawdles: well within what its peers wait.
const HOLD: Duration = Duration::from_millis(400);
/// How long the whole machine stands still: longer than a peer is waited for, and shorter than a handover may take.
const PAUSE: Duration = Duration::from_millis(2000);
/// A descriptor may be closed a moment later than the last answer was given.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// A small generator of numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Whether a pattern with `*` and `?` means the whole name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        (Some((b'?', rest)), Some((_, name))) => matches(rest, name),
        (Some((wanted, rest)), Some((found, name))) => wanted == found && matches(rest, name),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_rows_and_every_name_is_its_own() {
        let rows = Row::all();
        assert!(Point::ALL.iter().all(|point| rows.iter().filter(|row| row.point == *point).count() >= 4));
        assert!(Fault::ALL.iter().all(|fault| rows.iter().any(|row| row.fault == *fault)));
        let mut names: Vec<_> = rows.iter().map(Row::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rows.len());
    }

    #[test]
    fn a_filter_means_parts_of_the_name() {
        let count = |pattern| Matrix::built_in().filter(pattern).rows().len();
        let all = Row::all().len();
        assert_eq!(count("*"), all);
        assert_eq!(count("s-*") + count("o-*") + count("n-*"), all);
        assert_eq!(count("successor"), count("n-*"));
        assert_eq!(count("n-after-lock/kill"), 1);
        assert_eq!(count("successor/n-after-lock/kill"), 1);
        assert_eq!(count("stop"), count("*/stop"));
        assert!(count("stop*") > count("stop"));
        assert_eq!(count("n-after-loc?/kill"), 1);
        assert_eq!(count("nothing"), 0);
    }
}
