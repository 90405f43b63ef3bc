//! What a run of the matrix came to: a row each, as a table for people and as JSON for programs.

use std::fmt;

use serde::Serialize;

use super::{Control, Row};
use crate::load::Counts;

/// One row, run once.
#[derive(Debug, Clone, Serialize)]
pub struct RowReport {
    /// Its whole name, by which it can be run alone.
    pub name: String,
    /// The seed by which it was run.
    pub seed: u64,
    /// Who was hit.
    pub role: String,
    /// Where.
    pub point: String,
    /// By what.
    pub fault: String,
    /// Whether it really happened: the marker is there, and the process was seen dead, stopped or gone on.
    pub fired: bool,
    /// Of two faults: whether the second one happened too.
    pub second_fired: bool,
    /// What was expected, in words.
    pub expected: String,
    /// Who served in the end.
    pub outcome: String,
    /// The exit status of `handoff upgrade`.
    pub code: Option<i32>,
    /// The longest time that the clients were without an acknowledgement, in milliseconds.
    pub outage_ms: f64,
    /// How often it was run before, with nothing wrong but a time: a machine that is slow by itself is not so again and again.
    pub repeats: u32,
    /// Those of its problems that are about time.
    pub too_late: Vec<String>,
    /// Acknowledged writes that are not on disk (promise 3).
    pub acked_lost: u64,
    /// Writes under an epoch that was over (promise 1); `None`: not checked.
    pub two_writers: Option<u64>,
    /// What nobody could look at.
    pub not_checked: Vec<&'static str>,
    /// What the clients saw.
    pub clients: Counts,
    /// Processes, files, descriptors, threads, maps that were left behind (promise 6).
    pub leaks: u64,
    /// Whether all was as expected.
    pub ok: bool,
    /// What was not.
    pub problems: Vec<String>,
}

impl RowReport {
    /// Before anything has happened.
    pub(super) fn of(row: &Row, seed: u64) -> Self {
        Self {
            name: row.name(),
            seed,
            role: row.point.role().to_string(),
            point: row.point.name().to_owned(),
            fault: row.fault.name().to_owned(),
            fired: false,
            second_fired: false,
            expected: in_words(row),
            outcome: "unknown".to_owned(),
            code: None,
            outage_ms: 0.0,
            repeats: 0,
            too_late: Vec::new(),
            acked_lost: 0,
            two_writers: None,
            not_checked: Vec::new(),
            clients: Counts::default(),
            leaks: 0,
            ok: false,
            problems: Vec::new(),
        }
    }
}

fn in_words(row: &Row) -> String {
    let who: Vec<String> = row.expected.serving.iter().map(ToString::to_string).collect();
    format!("{} serves within {} ms", who.join(" or "), row.expected.bound.time().as_millis())
}

/// All rows of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of the table; several of the same when it was run more than once.
    pub rows: Vec<RowReport>,
    /// How many of them were not as expected.
    pub failed: usize,
    /// What handovers without a fault were like, in words.
    pub control: Option<String>,
}

impl Report {
    pub(super) fn new(rows: Vec<RowReport>, control: Option<&Control>) -> Self {
        let failed = rows.iter().filter(|row| !row.ok).count();
        let words = |control: &Control| format!("clients without an answer {}; call {}", control.outage, control.call);
        Self { rows, failed, control: control.map(words) }
    }

    /// The figures in one line.
    pub fn summary(&self) -> String {
        let fired = self.rows.iter().filter(|row| row.fired).count();
        let repeated: u32 = self.rows.iter().map(|row| row.repeats).sum();
        let mut text = format!("{} rows, {fired} fired, {} failed", self.rows.len(), self.failed);
        if repeated > 0 {
            text += &format!(", {repeated} repeated since only a time was wrong");
        }
        if let Some(not_checked) = self.rows.first().map(|row| &row.not_checked).filter(|parts| !parts.is_empty()) {
            text += &format!("; not checked: {}", not_checked.join(", "));
        }
        text
    }

    /// Whether there were rows, none failed, and every fault fired. Nothing that was run proves nothing.
    pub fn is_clean(&self) -> bool {
        !self.rows.is_empty() && self.failed == 0 && self.rows.iter().all(|row| row.fired)
    }
}

impl fmt::Display for RowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome, outage_ms, expected, .. } = self;
        let verdict = if self.ok { "ok  " } else { "FAIL" };
        let role = name.find('/').map_or(0, |slash| slash + 1);
        write!(f, "{verdict} {:<44} {outcome:<9} {outage_ms:>8.1} ms  {expected}", &name[role..])?;
        if self.repeats > 0 {
            write!(f, ", repeated {} times, since only a time was wrong", self.repeats)?;
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\n       {problem}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        if let Some(control) = &self.control {
            writeln!(f, "without a fault: {control}")?;
        }
        f.write_str(&self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;

    #[test]
    fn a_run_of_no_rows_is_not_clean() {
        let report = |rows: Vec<RowReport>| Report::new(rows, None);
        assert!(!report(Vec::new()).is_clean());
        let matrix = Matrix::built_in();
        let row = || RowReport { ok: true, fired: true, ..RowReport::of(&matrix.rows()[0], 1) };
        assert!(report(vec![row()]).is_clean());
        assert!(!report(vec![RowReport { fired: false, ..row() }]).is_clean());
        assert!(!report(vec![row(), RowReport { ok: false, ..row() }]).is_clean());
    }

    #[test]
    fn what_is_not_checked_and_what_was_repeated_is_said() {
        let row = RowReport {
            not_checked: vec!["a second writer"],
            repeats: 2,
            ..RowReport::of(&Matrix::built_in().rows()[0], 1)
        };
        let summary = Report::new(vec![row], None).summary();
        assert!(summary.contains("not checked: a second writer") && summary.contains("2 repeated"), "{summary}");
    }
}
