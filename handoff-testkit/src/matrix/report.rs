//! What a run of the matrix came to: a row each, as a table for people and as JSON for programs.

use std::fmt;

use serde::Serialize;

/// One row, run once.
#[derive(Debug, Clone, Serialize)]
pub struct RowReport {
    /// Who was hit.
    pub role: String,
    /// Where.
    pub point: String,
    /// By what.
    pub fault: String,
    /// Whether it really happened: the marker is there, and the process was seen dead, stopped or gone on.
    pub fired: bool,
    /// What was expected, in words.
    pub expected: String,
    /// Who served in the end.
    pub outcome: String,
    /// The longest time that the client was without an acknowledgement, in milliseconds.
    pub outage_ms: f64,
    /// Acknowledged writes that are not on disk (promise 3).
    pub acked_lost: u64,
    /// Writes under an epoch that was over (promise 1).
    pub two_writers: u64,
    /// Processes, files and descriptors that were left behind (promise 6).
    pub leaks: u64,
    /// Whether all was as expected.
    pub ok: bool,
    /// What was not.
    pub problems: Vec<String>,
}

/// All rows of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of the table; several of the same when it was run more than once.
    pub rows: Vec<RowReport>,
    /// How many of them were not as expected.
    pub failed: usize,
}

impl Report {
    pub(super) fn new(rows: Vec<RowReport>) -> Self {
        let failed = rows.iter().filter(|row| !row.ok).count();
        Self { rows, failed }
    }

    /// The figures in one line.
    pub fn summary(&self) -> String {
        let fired = self.rows.iter().filter(|row| row.fired).count();
        format!("{} rows, {fired} fired, {} failed", self.rows.len(), self.failed)
    }

    /// Whether no row failed, and every fault fired.
    pub fn is_clean(&self) -> bool {
        self.failed == 0 && self.rows.iter().all(|row| row.fired)
    }
}

impl fmt::Display for RowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, point, fault, outcome, outage_ms, expected, .. } = self;
        let verdict = if self.ok { "ok  " } else { "FAIL" };
        write!(f, "{verdict} {role:<10} {point:<28} {fault:<9} {outcome:<9} {outage_ms:>8.1} ms  {expected}")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n       {problem}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        f.write_str(&self.summary())
    }
}
