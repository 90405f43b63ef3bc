//! Every row of the fault matrix once, a test each; rows at random in one service; and what the matrix must not overlook.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use handoff_testkit::Matrix;
use handoff_testkit::fixture::Setup;
use handoff_testkit::load::{Answer, Connection};
use handoff_testkit::matrix::manners::{self, Manner};
use handoff_testkit::matrix::{
    Bound, BuiltIn, Expected, Fault, Point, Row, RowReport, Serving, Strike, Subject, Written, trials,
};
use libtest_mimic::Trial;

use crate::skip::{self, Need};
use crate::{Outcome, check};

/// How many pairs of faults are drawn beside the likely ones.
const PAIRS: usize = 10;

static MATRIX: LazyLock<Matrix> = LazyLock::new(Matrix::built_in);

pub(crate) fn all() -> Vec<Trial> {
    let rows = trials(Matrix::built_in().pairs(PAIRS), env!("CARGO_MANIFEST_DIR"), "matrix::");
    let in_a_row = [
        Trial::test("matrix::over_a_unix_socket", over_a_unix_socket),
        Trial::test("matrix::ten_in_a_row", || in_a_row(10)),
        Trial::test("matrix::two_hundred_in_a_row", || in_a_row(200)).with_ignored_flag(true),
    ];
    rows.into_iter().chain(in_a_row).chain(what_it_must_see::all()).collect()
}

/// One service under load, with a fault at random in each of its handovers.
fn in_a_row(handovers: u32) -> Result<(), libtest_mimic::Failed> {
    let report = Matrix::built_in().clients(8).run_in_a_row(handovers, &|_| {});
    let all_were_struck = report.rows.len() == handovers as usize;
    if all_were_struck && report.is_clean() { Ok(()) } else { Err(report.to_string().into()) }
}

/// The built-in daemon, whose clients come over a Unix socket.
struct OverAUnixSocket(PathBuf);

impl Subject for OverAUnixSocket {
    fn setup(&self) -> io::Result<Setup> {
        Ok(Setup::role("matrix-daemon")?.listener("http", format!("unix:{}", self.0.display())))
    }

    fn opens_within(&self) -> Duration {
        BuiltIn.opens_within()
    }

    fn write(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        BuiltIn.write(connection, token)
    }

    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
        BuiltIn.written(data_dir)
    }
}

/// An undone handover, a death on either side, and a supervisor that is started again: each hands the socket on.
fn over_a_unix_socket() -> Result<(), libtest_mimic::Failed> {
    let dir = tempfile::tempdir()?;
    let matrix = Matrix::of(OverAUnixSocket(dir.path().join("http.sock")));
    let rows = [
        row(Point::OInDrain, Fault::Error),
        row(Point::OInSeal, Fault::Kill),
        row(Point::NAfterLock, Fault::Kill),
        row(Point::SAfterBeginSent, Fault::Kill),
    ];
    for it in &rows {
        let report = matrix.run_row(it, 1);
        if !report.fired || !report.ok {
            return Err(report.to_string().into());
        }
    }
    Ok(())
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
        an_answer_that_is_not_so,
        a_selection_of_nothing,
        every_bad_manner_by_its_name,
    ];
}

/// The built-in daemon, started by a script, read from disk by a liar, or spoiled by a [`Manner`].
struct Spoiled {
    script: Option<Script>,
    read: fn(Vec<Written>) -> Vec<Written>,
    manner: Manner,
    /// What is run as `handoff`.
    program: Option<PathBuf>,
}

/// What a successor does first.
#[derive(Clone)]
struct Script {
    path: PathBuf,
    first: &'static str,
}

const FAITHFUL: Spoiled = Spoiled { script: None, read: |writes| writes, manner: Manner::Good, program: None };

impl Subject for Spoiled {
    fn setup(&self) -> io::Result<Setup> {
        let setup = BuiltIn.setup()?.env(manners::VARIABLE, self.manner.name());
        let setup = match &self.program {
            Some(program) => setup.program(program),
            None => setup,
        };
        let Some(Script { path, first }) = &self.script else { return Ok(setup) };
        let program = setup.binary().display();
        // Only when something is to happen, else it would look as if it belonged there.
        let spoil = format!(
            "if [ \"$HANDOFF_ROLE\" = successor ] && grep -q CRASH_AT \"$HANDOFF_CRASH_PLAN\" 2>/dev/null; then {first}\nfi"
        );
        std::fs::write(path, format!("#!/bin/sh\n{spoil}\nexec '{program}' \"$@\"\n"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Setup::new(path).env(handoff_testkit::ROLE_VARIABLE, "matrix-daemon").listener("http", "127.0.0.1:0"))
    }

    fn opens_within(&self) -> Duration {
        BuiltIn.opens_within()
    }

    fn write(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        BuiltIn.write(connection, token)
    }

    fn reads(&self) -> bool {
        true
    }

    fn read(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        BuiltIn.read(connection, token)
    }

    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
        BuiltIn.written(data_dir).map(self.read)
    }
}

fn row(point: Point, fault: Fault) -> Row {
    let row = MATRIX.rows().iter().find(|row| row.strike() == Strike { point, fault } && row.second.is_none());
    *row.expect("it stands in the table")
}

/// The last of several runs in a service of its own.
fn report_of(spoiled: Spoiled, row: &Row) -> RowReport {
    Matrix::of(spoiled).run_row(row, 1)
}

fn a_lost_write() -> Outcome {
    // Each row audits its own service; without a fault too, so that the control must be let off.
    let drop_last = |mut writes: Vec<Written>| {
        if writes.iter().any(|write| write.epoch > Some(4)) || writes.len() < 3 {
            return writes;
        }
        writes.swap_remove(0);
        writes
    };
    let report = report_of(Spoiled { read: drop_last, ..FAITHFUL }, &row(Point::NAfterLock, Fault::Exit));
    check(report.fired && !report.ok && report.acked_lost == 1, report.to_string())
}

fn a_second_writer() -> Outcome {
    let mix = |mut writes: Vec<Written>| {
        if writes.iter().all(|write| write.epoch <= Some(4)) {
            writes.reverse();
        }
        writes
    };
    let report = report_of(Spoiled { read: mix, ..FAITHFUL }, &row(Point::NAfterLock, Fault::Exit));
    let mixed = report.two_writers.is_some_and(|count| count > 0);
    check(report.fired && !report.ok && report.acked_lost == 0 && mixed, report.to_string())
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

fn report_after(first: &'static str) -> io::Result<RowReport> {
    let dir = tempfile::tempdir()?;
    let script = Some(Script { path: dir.path().join("spoiled"), first });
    Ok(report_of(Spoiled { script, ..FAITHFUL }, &row(Point::NAfterHandshake, Fault::Error)))
}

fn another_process_than_expected() -> Outcome {
    let mut row = row(Point::NAfterLock, Fault::Kill);
    row.expected = Expected { serving: &[Serving::New], ..row.expected };
    let report = MATRIX.run_row(&row, 1);
    check(report.fired && !report.ok && report.outcome == "old", report.to_string())
}

fn an_outage_longer_than_the_bound() -> Outcome {
    let mut row = row(Point::OInDrain, Fault::Stop);
    row.expected = Expected { bound: Bound::Noticed(Duration::from_millis(200)), ..row.expected };
    let report = MATRIX.run_row(&row, 1);
    let told = report.problems.iter().any(|problem| problem.contains("at most 200ms"));
    check(report.fired && !report.ok && told && report.outage_ms > 1000.0, report.to_string())
}

/// `handoff upgrade` says that an aborted handover was committed.
fn an_answer_that_is_not_so() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("liar");
    let program = std::env::current_exe()?;
    let lies = "if [ \"$1\" = upgrade ]; then \"$0.real\" \"$@\"; code=$?; [ $code = 2 ] && exit 0; exit $code; fi";
    std::os::unix::fs::symlink(&program, dir.path().join("liar.real"))?;
    std::fs::write(&path, format!("#!/bin/sh\n{lies}\nexec \"$0.real\" \"$@\"\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    let report = report_of(Spoiled { program: Some(path), ..FAITHFUL }, &row(Point::NAfterLock, Fault::Kill));
    let told =
        report.problems.iter().any(|problem| problem.contains("upgrade exits with Some(0), and the old one serves"));
    check(report.fired && !report.ok && told, report.to_string())
}

fn a_selection_of_nothing() -> Outcome {
    let report = Matrix::built_in().filter("n-after-lokc/*").run(1);
    check(!report.is_clean(), report.to_string())
}

/// Each of them fails in at least one row or look, and the report says what it is.
fn every_bad_manner_by_its_name() -> Outcome {
    Manner::ALL.into_iter().try_for_each(is_told)
}

fn is_told(manner: Manner) -> Outcome {
    // So many that a request is in hand in most drains.
    let matrix = Matrix::of(Spoiled { manner, ..FAITHFUL }).clients(16);
    let expected = match manner {
        Manner::Good => return check_nothing_is_told(&matrix),
        Manner::NeverSyncs => "with 0 syncs",
        Manner::ForgetsWrites => "acknowledged writes are lost",
        Manner::SaysNo => "rejected",
        Manner::ReadsOld => "wrong_value",
        Manner::CutsRequests => "clients suffered",
        Manner::ResumesLate => "no service for",
        Manner::LeaksDescriptors => "descriptors",
        Manner::LeaksThreads => "threads",
        Manner::LeaksChildren => "children",
        Manner::LeavesFiles => "stray file: data/writes.left",
    };
    let mut told = Vec::new();
    for seed in 1..=SEEDS_MAX {
        told = what_is_told(&matrix, manner, seed)?;
        if told.iter().any(|problem| problem.contains(expected)) {
            return Ok(());
        }
    }
    check(false, format!("{manner:?} is not told by {expected:?}: {told:?}"))
}

/// A request is in hand in most drains, and not in each, and a write is forgotten only now and then.
const SEEDS_MAX: u64 = 5;

fn check_nothing_is_told(matrix: &Matrix) -> Outcome {
    let report = matrix.run_row(&row(Point::NAfterLock, Fault::Kill), 1);
    check(report.ok, report.to_string())?;
    check(matrix.check_durability().is_ok(), "it syncs")?;
    let grown = matrix.undo_again_and_again(2);
    check(grown.is_empty(), format!("{grown:?}"))
}

/// What is found wrong with it by the look that is for it.
fn what_is_told(matrix: &Matrix, manner: Manner, seed: u64) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    match manner {
        Manner::NeverSyncs => match matrix.check_durability() {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(why)) => Err(skip::without(Need::Strace, &why)),
            Err(problem) => Ok(vec![problem]),
        },
        Manner::LeaksThreads | Manner::LeaksChildren => Ok(matrix.undo_again_and_again(2)),
        _ => Ok(matrix.run_row(&row(Point::NAfterLock, Fault::Kill), seed).problems),
    }
}
