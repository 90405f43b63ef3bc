//! The fault matrix: role × point × fault → expected outcome, on real processes; runs on the built-in daemon or on yours.
//!
//! Each [`Row`] is a service of its own in a temporary directory, with clients that write all the time. Something brings a process to the
//! row's point, mostly a handover, and it fails there. When all has settled it is checked that the fault really happened, who serves, how
//! long nobody did, what `handoff upgrade` and the history said of it, that the processes that went through it have nothing more in their
//! hands than before, that the next handover commits within its time, that every acknowledged write is on disk and came back right, that
//! no two writers were at work, and that no client suffered anything that the fault does not explain. [`Matrix::run_in_a_row`] does the same
//! to one service again and again.
//!
//! The expectations stand in one table, written by hand. The protocol's intervals are shortened for the processes under test, by variables
//! that only a build with the feature `crash-points` of `handoff-runtime` reads: the daemon under test needs that feature (a dev-dependency
//! on this crate turns it on), and nothing else.
//!
//! # As tests
//!
//! A test of your own with `harness = false` in `Cargo.toml`, one trial for each row, for `cargo test` and for nextest:
//!
//! ```no_run
//! use std::io::{self, Write};
//! use std::path::Path;
//!
//! use handoff_testkit::fixture::Setup;
//! use handoff_testkit::load::{Answer, Connection};
//! use handoff_testkit::matrix::{Subject, Written};
//!
//! struct Counter;
//!
//! impl Subject for Counter {
//!     fn setup(&self) -> io::Result<Setup> {
//!         Ok(Setup::new("target/debug/counter").listener("http", "127.0.0.1:0")) // yours: env!("CARGO_BIN_EXE_counter")
//!     }
//!
//!     fn write(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
//!         writeln!(connection, "ADD {token}")?;
//!         match connection.read_line()?.as_deref() {
//!             Some("OK") => Ok(Answer::Done),
//!             Some(other) => Err(io::Error::other(other.to_owned())),
//!             None => Err(io::ErrorKind::UnexpectedEof.into()),
//!         }
//!     }
//!
//!     fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
//!         let text = std::fs::read_to_string(data_dir.join("log"))?;
//!         Ok(text.lines().filter_map(|line| line.parse().ok()).map(Written::plain).collect())
//!     }
//! }
//!
//! handoff_testkit::matrix_main!(Counter);
//! ```
//!
//! A row that fails prints how to run it again by itself, and is kept in `handover-regressions.txt` beside your `Cargo.toml`; what stands
//! there is run again, with its seed, every time.

mod answer;
mod besides;
mod beyond;
mod control;
pub(crate) mod daemon;
mod durability;
mod footprint;
pub mod manners;
mod place;
mod points;
mod report;
mod row;
mod rows;
mod scene;
mod series;
mod settled;
mod subject;
mod table;
mod trap;
mod trials;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, thread};

use handoff_runtime::Timing;

pub use crate::audit::Written;
pub use besides::{Limits, Meanwhile, Moved, Times};
pub use control::Control;
pub use points::{Fault, OwnPoint, Place, Point, Role};
pub use report::{Report, RowReport};
pub use rows::{Beside, Hooks, Row, Strike};
pub use subject::{BuiltIn, Subject};
pub use table::{Bound, Epoch, Expected, Serving, expected};
pub use trials::{main, trials};

/// The matrix for one daemon.
pub struct Matrix {
    subject: Arc<dyn Subject>,
    rows: Vec<Row>,
    side_by_side: usize,
    clients: u32,
    seed: u64,
    /// What a service looks like after handovers without any fault.
    control: OnceLock<Result<Control, String>>,
}

impl Matrix {
    /// On the built-in daemon.
    pub fn built_in() -> Self {
        Self::of(BuiltIn)
    }

    /// On a daemon of the caller's own.
    pub fn of(subject: impl Subject) -> Self {
        let rows = Row::all(subject.points());
        Self { subject: Arc::new(subject), rows, side_by_side: 1, clients: 2, seed: 1, control: OnceLock::new() }
    }

    /// What `change` makes of it.
    #[must_use]
    pub fn with(self, change: impl FnOnce(Self) -> Self) -> Self {
        change(self)
    }

    /// Only the rows that the pattern means; see [`Row::is_meant_by`]. A run of no rows is not clean.
    #[must_use]
    pub fn filter(mut self, pattern: &str) -> Self {
        self.rows.retain(|row| row.is_meant_by(pattern));
        self
    }

    /// How many rows run at the same time. 1 by default: the outages are then the most exact.
    #[must_use]
    pub fn side_by_side(self, rows: usize) -> Self {
        Self { side_by_side: rows.max(1), ..self }
    }

    /// How many clients write at the same time. 2 by default.
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

    /// Adds so many pairs of faults, drawn by the [`seed`](Self::seed): the second may strike while the first one is being settled.
    #[must_use]
    pub fn pairs(mut self, count: usize) -> Self {
        let mut random = Random(self.seed);
        let single: Vec<Row> = Row::all(&[]).into_iter().filter(Row::is_plain).collect();
        let first: Vec<_> =
            single.iter().filter(|row| matches!(row.fault, Fault::Exit | Fault::Kill | Fault::Error)).collect();
        let second: Vec<_> = first.iter().filter(|row| row.point.role() != Role::Supervisor).collect();
        let mut drawn = 0;
        while drawn < count {
            let (one, other) = (first[random.below(first.len())], second[random.below(second.len())]);
            // With both of them gone nobody has the listening sockets any more.
            let nobody_listens = one.point.role() == Role::Supervisor && other.point.role() == Role::Incumbent
                || other.point == Point::NAfterReady;
            if nobody_listens
                || one.point == other.point
                || self.rows.iter().any(|row| row.strike() == one.strike() && row.second == Some(other.strike()))
            {
                continue;
            }
            self.rows.extend(Row::pair(one.strike(), other.strike()));
            drawn += 1;
        }
        self
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
        let mut runs: Vec<(usize, u32)> = Vec::new();
        for run in 0..times {
            let mut order: Vec<_> = (0..self.rows.len()).map(|row| (row, random.next())).collect();
            order.sort_unstable_by_key(|(_, random)| *random);
            runs.extend(order.into_iter().map(|(row, _)| (row, run)));
        }
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(runs.len())));
        let work = || {
            while let Some((at, run)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let row = &self.rows[*at];
                let report = self.run_row(row, self.seed_of(row, *run));
                watch(&report);
                done.lock().unwrap_or_else(PoisonError::into_inner).push((*run, *at, report));
            }
        };
        thread::scope(|scope| {
            (0..self.side_by_side).for_each(|_| drop(scope.spawn(work)));
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(run, at, _)| (*run, *at));
        Report::new(done.into_iter().map(|(_, _, report)| report).collect(), self.control().ok())
    }

    /// Runs every row once with this very seed, as a report names it.
    pub fn run_with_seed(&self, seed: u64, watch: &dyn Fn(&RowReport)) -> Report {
        let run = |row: &Row| {
            let report = self.run_row(row, seed);
            watch(&report);
            report
        };
        Report::new(self.rows.iter().map(run).collect(), self.control().ok())
    }

    /// Undoes so many handovers of one service, and compares what its processes have in their hands after the first and after the last.
    /// Gives what there is more of, a line each; the reason, where it can't be told.
    pub fn undo_again_and_again(&self, handovers: u32) -> Vec<String> {
        series::undo(self, handovers)
    }

    /// Whether the daemon syncs before it acknowledges, by its system calls. A text says why nobody could look.
    ///
    /// # Errors
    /// It does not, or the service does not serve.
    pub fn check_durability(&self) -> Result<Option<String>, String> {
        match durability::look(self).map_err(|error| error.to_string())? {
            durability::Found::Synced => Ok(None),
            durability::Found::NotChecked(why) => Ok(Some(why)),
            durability::Found::Problem(problem) => Err(problem),
        }
    }

    /// A row's own seed in a run: the same whatever else is run, so that it can be run again alone.
    fn seed_of(&self, row: &Row, run: u32) -> u64 {
        let named = row.name().bytes().fold(self.seed, |seed, byte| Random(seed ^ u64::from(byte)).next());
        Random(named.wrapping_add(u64::from(run))).next()
    }

    /// Runs one row once. What went wrong is in the report, the fixture's own failures too.
    pub fn run_row(&self, row: &Row, seed: u64) -> RowReport {
        row::run(self, row, seed)
    }

    /// Hands one service over this often, each time with the fault of a row that is drawn at random; a row is shown as soon
    /// as the service has settled after it. What only the end can tell, such as a lost write, stands in the last row.
    pub fn run_in_a_row(&self, handovers: u32, watch: &dyn Fn(&RowReport)) -> Report {
        Report::new(series::run(self, handovers, watch), self.control().ok())
    }

    /// What handovers without any fault look like; measured once.
    ///
    /// # Errors
    /// Something is wrong without any fault.
    pub fn control(&self) -> io::Result<&Control> {
        let control = self.control.get_or_init(|| Control::observe(self).map_err(|error| error.to_string()));
        control.as_ref().map_err(|error| io::Error::other(format!("without any fault: {error}")))
    }
}

/// The protocol's intervals in a row: those of `docs/protocol.md`, shorter where only the bound changes.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(150),
    liveness: Duration::from_millis(1500),
    hello: Duration::from_millis(4000),
    successor_slack: Duration::from_millis(300),
    limbo_slack: Duration::from_millis(900),
    closed_grace: Duration::from_millis(200),
    limbo_poll: Duration::from_millis(20),
    deadline_max: Duration::from_secs(3600),
    settle: Duration::from_secs(3),
    promotion: Duration::from_millis(600),
    parting: Duration::from_millis(300),
};

/// How long a frozen daemon sleeps before it is woken, and a slow process dawdles: well within what its peers wait.
const HOLD: Duration = Duration::from_millis(400);
/// How long the whole machine stands still: longer than a peer is waited for, and shorter than a handover may take.
const PAUSE: Duration = Duration::from_millis(2000);
/// How long a resume may take before the incumbent counts as dead. The protocol's is 30 s.
const RESUME: Duration = Duration::from_millis(2000);
/// A drain grace, or a deadline, that is over before a silence means death; longer than a handover up to its seal takes.
const SHORT_LIMIT: Duration = Duration::from_millis(600);
/// One attempt of a client takes no longer: a process that froze with a request in hand must not hide that another one serves.
const ATTEMPT: Duration = Duration::from_millis(250);
/// A descriptor may be closed a moment later than the last answer was given.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// A small generator of numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

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
    use super::rows::LIKELY_PAIRS;
    use super::*;

    #[test]
    fn every_point_has_rows_and_every_name_is_its_own() {
        let matrix = Matrix::built_in();
        let rows = matrix.rows();
        assert!(Point::ALL.iter().all(|point| rows.iter().filter(|row| row.point == *point).count() >= 4));
        assert!(Fault::ALL.iter().all(|fault| rows.iter().any(|row| row.fault == *fault)));
        assert!(daemon::POINTS.iter().all(|own| rows.iter().any(|row| row.point == Point::Own(*own))));
        assert!(
            rows.iter().any(|row| row.hooks == Hooks::Slow)
                && rows.iter().any(|row| matches!(row.hooks, Hooks::Opening(_)))
        );
        let mut names: Vec<_> = rows.iter().map(Row::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rows.len());
    }

    #[test]
    fn every_likely_pair_is_a_row() {
        let pairs = Matrix::built_in().rows().iter().filter(|row| row.second.is_some()).count();
        assert_eq!(pairs, LIKELY_PAIRS.len());
    }

    #[test]
    fn pairs_are_drawn_by_the_seed() {
        let names = |seed| -> Vec<String> {
            Matrix::built_in().filter("").seed(seed).pairs(20).rows().iter().map(Row::name).collect()
        };
        assert_eq!(names(1).len(), 20);
        assert_eq!(names(1), names(1));
        assert_ne!(names(1), names(2));
    }

    #[test]
    fn a_row_keeps_its_seed_when_it_is_run_alone() {
        let (all, alone) = (Matrix::built_in().seed(7), Matrix::built_in().seed(7).filter("n-after-lock/kill"));
        let row = alone.rows()[0];
        assert_eq!(all.seed_of(&row, 0), alone.seed_of(&row, 0));
        assert_ne!(all.seed_of(&row, 0), all.seed_of(&row, 1));
        assert_ne!(all.seed_of(&row, 0), all.seed_of(&all.rows()[0], 0));
    }

    #[test]
    fn a_filter_means_parts_of_the_name() {
        let count = |pattern| Matrix::built_in().filter(pattern).rows().len();
        let all = Matrix::built_in().rows().len();
        assert_eq!(count("*"), all);
        assert_eq!(count("supervisor") + count("incumbent") + count("successor"), all);
        assert_eq!(count("s-*") + count("o-*") + count("n-*") + count("matrix-*"), all);
        assert_eq!(count("n-after-lock/kill"), 1);
        assert_eq!(count("successor/n-after-lock/kill"), 1);
        assert_eq!(count("n-after-loc?/kill"), 1);
        assert_eq!(count("n-after-lock/kill+o-*"), 1);
        assert!(count("*+slow-hooks") > 4);
        assert!(count("stop*") > count("stop"));
        assert_eq!(count("nothing"), 0);
    }
}
