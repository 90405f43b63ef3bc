//! Every row of the fault matrix once, a test each.

use std::sync::LazyLock;
use std::time::Duration;

use handoff_testkit::Matrix;
use handoff_testkit::matrix::Row;
use libtest_mimic::Trial;

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
    Row::all().into_iter().map(trial).collect()
}
