//! The matrix as a test's `main`: a trial for each row, as libtest has them, and the rows that have failed before.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::{Matrix, Row, RowReport};

/// The file of rows that have failed, beside a `Cargo.toml`.
const REGRESSIONS: &str = "handover-regressions.txt";

/// How many handovers are undone in a row to see whether something is left of each.
const UNDONE: u32 = 6;

/// Makes the `main` of a test with `harness = false` that runs the matrix on a [`Subject`](crate::matrix::Subject). A second argument
/// changes the [`Matrix`](crate::Matrix) before it is run: `matrix_main!(Counter, |matrix| matrix.clients(8).pairs(20))`.
#[macro_export]
macro_rules! matrix_main {
    ($subject:expr $(,)?) => {
        $crate::matrix_main!($subject, ::std::convert::identity);
    };
    ($subject:expr, $change:expr $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::init(); // first of all: the supervisor, and perhaps the daemon, is this program, run again
            $crate::matrix::main($crate::Matrix::of($subject).with($change), env!("CARGO_MANIFEST_DIR"))
        }
    };
}

/// Runs the matrix's [`trials`] with the arguments of `cargo test`. No row at all, as after a filter with a typing error, is a failure.
pub fn main(matrix: Matrix, package: impl AsRef<Path>) -> ExitCode {
    let arguments = Arguments::from_args();
    let conclusion = libtest_mimic::run(&arguments, trials(matrix, package, ""));
    let nothing = conclusion.num_passed + conclusion.num_failed + conclusion.num_ignored == 0;
    if nothing && !arguments.list {
        eprintln!("no row of the matrix is meant by {:?}", arguments.filter.unwrap_or_default());
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// A trial for each row, one for each run that has failed before, one for handovers that are undone again and again, and one for the
/// syncs of acknowledged writes. `package` is the directory of the caller's `Cargo.toml`, where the failed runs
/// are kept. Each name begins with `prefix`.
pub fn trials(matrix: Matrix, package: impl AsRef<Path>, prefix: &str) -> Vec<Trial> {
    let kept = Regressions { path: package.as_ref().join(REGRESSIONS) };
    let matrix = Arc::new(matrix);
    let before = kept.runs();
    let again = before.into_iter().map(|(name, seed)| {
        let (matrix, again) = (Arc::clone(&matrix), prefix.to_owned());
        Trial::test(format!("{prefix}{name} seed {seed}"), move || {
            let row = matrix.rows.iter().find(|row| row.name() == name);
            let row =
                row.ok_or_else(|| Failed::from(format!("there is no such row: {name}; take it out of {REGRESSIONS}")))?;
            judge(&matrix.run_row(row, seed), &again)
        })
    });
    let rows: Vec<Row> = matrix.rows.clone();
    let rows = rows.into_iter().map(|row| {
        let (matrix, kept, again) = (Arc::clone(&matrix), kept.clone(), prefix.to_owned());
        Trial::test(format!("{prefix}{}", row.name()), move || {
            let report = matrix.run_row(&row, matrix.seed_of(&row, 0));
            let judged = judge(&report, &again);
            if judged.is_err() {
                kept.keep(&report)?;
            }
            judged
        })
    });
    let one_more = Arc::clone(&matrix);
    let undone = Trial::test(format!("{prefix}undone/again-and-again"), move || {
        let grown = one_more.undo_again_and_again(UNDONE);
        if grown.is_empty() { Ok(()) } else { Err(grown.join("\n").into()) }
    });
    let all = Arc::clone(&matrix);
    let synced = Trial::ignorable_test(format!("{prefix}acknowledged/synced"), move || match all.check_durability() {
        Ok(None) => Ok(Completion::Completed),
        Ok(Some(why)) if std::env::var_os(NO_SKIP).is_some() => Err(format!("{why}, and {NO_SKIP} is set").into()),
        Ok(Some(why)) => Ok(Completion::ignored_with(why)),
        Err(problem) => Err(problem.into()),
    });
    again.chain(rows).chain([undone, synced]).collect()
}

/// With it in the environment, a trial that can't be run has failed.
const NO_SKIP: &str = "HANDOFF_NO_SKIP";

fn judge(report: &RowReport, prefix: &str) -> Result<(), Failed> {
    if report.ok {
        return Ok(());
    }
    let again = format!("cargo test -- --exact '{prefix}{} seed {}'", report.name, report.seed);
    Err(format!("{report}\nagain, alone and with the same seed: {again}").into())
}

/// Runs that have failed, a line each: the row and its seed.
#[derive(Debug, Clone)]
struct Regressions {
    path: PathBuf,
}

impl Regressions {
    fn runs(&self) -> Vec<(String, u64)> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let run = |line: &str| {
            let (name, seed) = line.split_once(" seed ")?;
            Some((name.to_owned(), seed.trim().parse().ok()?))
        };
        text.lines().filter(|line| !line.starts_with('#')).filter_map(run).collect()
    }

    fn keep(&self, report: &RowReport) -> io::Result<()> {
        if self.runs().contains(&(report.name.clone(), report.seed)) {
            return Ok(());
        }
        let mut file = fs::File::options().append(true).create(true).open(&self.path)?;
        if file.metadata()?.len() == 0 {
            file.write_all(b"# Rows of the fault matrix that have failed. Each is run again, with its seed, by every test. Keep this file.\n")?;
        }
        file.write_all(format!("{} seed {}\n", report.name, report.seed).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_failed_is_kept_once_and_run_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let kept = Regressions { path: dir.path().join(REGRESSIONS) };
        assert!(kept.runs().is_empty());
        let matrix = Matrix::built_in().filter("n-after-lock/kill");
        let report = RowReport::of(&matrix.rows[0], 17);
        kept.keep(&report).expect("written");
        kept.keep(&report).expect("written");
        assert_eq!(kept.runs(), [(matrix.rows[0].name(), 17)]);
        let names: Vec<_> = trials(matrix, dir.path(), "").iter().map(|trial| trial.name().to_owned()).collect();
        let expected = ["successor/n-after-lock/kill seed 17", "successor/n-after-lock/kill"];
        assert_eq!(names[..2], expected);
    }

    #[test]
    fn a_row_that_failed_says_how_to_run_it_again() {
        let report = RowReport::of(&Matrix::built_in().rows[0], 5);
        let failed = judge(&report, "").expect_err("it has not fired");
        let told = failed.message().expect("a text");
        assert!(told.contains(&format!("--exact '{} seed 5'", report.name)), "{told}");
    }
}
