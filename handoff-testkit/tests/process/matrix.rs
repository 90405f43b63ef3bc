//! Every row of the fault matrix once, a test each; rows at random in one service; and what the matrix must not overlook.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use handoff_testkit::Matrix;
use handoff_testkit::fixture::Setup;
use handoff_testkit::matrix::{Bound, BuiltIn, Expected, Fault, Point, Row, RowReport, Serving, Subject, Written};
use libtest_mimic::Trial;

use crate::{Outcome, check};

/// How slow a machine may be on which other tests run at the same time.
const TOLERANCE: Duration = Duration::from_secs(5);

static MATRIX: LazyLock<Matrix<'static>> = LazyLock::new(|| Matrix::built_in().tolerance(TOLERANCE));

pub(crate) fn all() -> Vec<Trial> {
    let trial = |row: Row| {
        Trial::test(format!("matrix::{}", row.name()), move || {
            let report = MATRIX.run_row(&row, 1);
            if report.ok { Ok(()) } else { Err(report.to_string().into()) }
        })
    };
    let in_a_row = [
        Trial::test("matrix::ten_in_a_row", || in_a_row(10)),
        Trial::test("matrix::two_hundred_in_a_row", || in_a_row(200)).with_ignored_flag(true),
    ];
    Row::all().into_iter().map(trial).chain(in_a_row).chain(what_it_must_see::all()).collect()
}

/// One service under load, with a fault at random in each of its handovers.
fn in_a_row(handovers: u32) -> Result<(), libtest_mimic::Failed> {
    let report = Matrix::built_in().tolerance(TOLERANCE).clients(8).run_in_a_row(handovers, &|_| {});
    let all_were_struck = report.rows.len() == handovers as usize;
    if all_were_struck && report.is_clean() { Ok(()) } else { Err(report.to_string().into()) }
}

mod what_it_must_see {
    use super::*;
    use crate::trials;

    trials![
        a_lost_write,
        a_second_writer,
        a_file_left_behind,
        a_process_left_behind,
        another_process_than_expected,
        an_outage_longer_than_the_bound,
    ];
}

/// The built-in daemon, started by a script or read from disk by a liar.
struct Spoiled<'a> {
    script: Option<Script<'a>>,
    read: fn(Vec<Written>) -> Vec<Written>,
}

/// What a successor does first.
#[derive(Clone, Copy)]
struct Script<'a> {
    path: &'a Path,
    first: &'a str,
}

impl Subject for Spoiled<'_> {
    fn setup(&self) -> io::Result<Setup> {
        let setup = BuiltIn.setup()?;
        let Some(Script { path, first }) = self.script else { return Ok(setup) };
        let program = setup.binary().display();
        // Only under an armed supervisor, else it would look as if it belonged there.
        let spoil =
            format!("if [ \"$HANDOFF_ROLE${{HANDOFF_CRASH_PLAN:+armed}}\" = successorarmed ]; then {first}\nfi");
        std::fs::write(path, format!("#!/bin/sh\n{spoil}\nexec '{program}' \"$@\"\n"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Setup::new(path).env(handoff_testkit::ROLE_VARIABLE, "matrix-daemon").listener("http", "127.0.0.1:0"))
    }

    fn write(&self, address: SocketAddr, token: u64, patience: Duration) -> io::Result<()> {
        BuiltIn.write(address, token, patience)
    }

    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
        BuiltIn.written(data_dir).map(self.read)
    }
}

fn row(point: Point, fault: Fault) -> Row {
    let row = Row::all().into_iter().find(|row| (row.point, row.fault) == (point, fault));
    row.expect("it stands in the table")
}

fn report_of(spoiled: &Spoiled<'_>, row: &Row) -> RowReport {
    Matrix::of(spoiled).tolerance(TOLERANCE).run_row(row, 1)
}

fn a_lost_write() -> Outcome {
    let drop_one = |writes: Vec<Written>| writes.into_iter().skip(1).collect();
    let report = report_of(&Spoiled { script: None, read: drop_one }, &row(Point::NAfterLock, Fault::Exit));
    check(report.fired && !report.ok && report.acked_lost == 1, report.to_string())
}

fn a_second_writer() -> Outcome {
    let mix = |mut writes: Vec<Written>| {
        writes.reverse();
        writes
    };
    let report = report_of(&Spoiled { script: None, read: mix }, &row(Point::NAfterLock, Fault::Exit));
    check(report.fired && !report.ok && report.acked_lost == 0 && report.two_writers > 0, report.to_string())
}

fn a_file_left_behind() -> Outcome {
    let report = report_after(": > \"$HANDOFF_DATA_DIR/left.tmp\"")?;
    let told = report.problems.iter().any(|problem| problem.contains("stray file: data/left.tmp"));
    check(report.fired && !report.ok && report.leaks > 0 && told, report.to_string())
}

fn a_process_left_behind() -> Outcome {
    let report = report_after("sleep 1000 &")?;
    let told = report.problems.iter().any(|problem| problem.contains("are there too"));
    check(report.fired && !report.ok && told, report.to_string())
}

fn report_after(first: &str) -> io::Result<RowReport> {
    let dir = tempfile::tempdir()?;
    let script = Script { path: &dir.path().join("spoiled"), first };
    let spoiled = Spoiled { script: Some(script), read: |writes| writes };
    Ok(report_of(&spoiled, &row(Point::NAfterHandshake, Fault::Error)))
}

fn another_process_than_expected() -> Outcome {
    let mut row = row(Point::NAfterLock, Fault::Kill);
    row.expected = Expected { serving: &[Serving::New], ..row.expected };
    let report = MATRIX.run_row(&row, 1);
    check(report.fired && !report.ok && report.outcome == "old", report.to_string())
}

fn an_outage_longer_than_the_bound() -> Outcome {
    let mut row = row(Point::OInDrain, Fault::Stop);
    row.expected = Expected { bound: Bound::Nothing, ..row.expected };
    let report = Matrix::built_in().tolerance(Duration::from_millis(500)).run_row(&row, 1);
    check(report.fired && !report.ok && report.outage_ms > 500.0, report.to_string())
}
