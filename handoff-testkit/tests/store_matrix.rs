//! The fault matrix on the reference store, as any daemon has it: its `main` is `matrix_main!`'s. A few rows; all of them are run by
//! `cargo run -p handoff-testkit --features store --example your_daemon '*'`.

use daemon::YourDaemon;

/// The same daemon as the example's.
#[path = "../examples/your_daemon/daemon.rs"]
mod daemon;

handoff_testkit::matrix_main!(YourDaemon, |matrix| matrix.filter("n-after-lock/*"));
