//! A program of which one instance runs per data directory.
//!
//! `cargo run -p handoff-lock --example exclusive -- /tmp/demo-data`, and the same in a second terminal: the second one names
//! the first and leaves with status 3. Enter or end of input ends it.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use handoff_lock::DataDirLock;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: exclusive DATA_DIR");
        return ExitCode::from(3);
    };
    let mut lock = match DataDirLock::acquire(&dir) {
        Ok(lock) => lock,
        Err(error) => {
            eprintln!("exclusive: {error}");
            return ExitCode::from(3);
        }
    };
    // Open the data here. Then say that it is served, and by which build.
    if let Err(error) = lock.activate(env!("CARGO_PKG_VERSION").as_bytes()) {
        eprintln!("exclusive: {error}");
        return ExitCode::FAILURE;
    }
    println!("{} is ours under epoch {}; press Enter to leave", dir.display(), lock.epoch());
    let _ = io::stdin().read_line(&mut String::new());
    match lock.release() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exclusive: {error}");
            ExitCode::FAILURE
        }
    }
}
