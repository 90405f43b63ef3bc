//! The `handoff` program. Everything is in `handoff_runtime::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    handoff_runtime::cli::main(std::env::args_os())
}
