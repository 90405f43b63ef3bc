//! The fault matrix on a daemon that is not the built-in one: here the reference store, in its own binary's place yours.
//!
//! A test of yours has `harness = false` and `handoff_testkit::matrix_main!(YourDaemon);` in place of this `main`, see
//! `handoff-testkit/tests/store_matrix.rs`.
//!
//! `cargo run -p handoff-testkit --features store --example your_daemon [GLOB]`

use std::process::ExitCode;

use handoff_testkit::matrix::Matrix;

use daemon::YourDaemon;

mod daemon;

fn main() -> ExitCode {
    handoff_testkit::init(); // first of all: the store and the supervisor are this program, run again
    let filter = std::env::args().nth(1).unwrap_or_else(|| "n-after-*/kill".to_owned());
    let report = Matrix::of(YourDaemon).filter(&filter).side_by_side(2).run(1);
    println!("{report}");
    ExitCode::from(u8::from(!report.is_clean()))
}
