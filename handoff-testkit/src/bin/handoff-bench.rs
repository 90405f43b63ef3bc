//! The measurement: this library, `beyond-handoff`, a bare floor and a restart, side by side. What it does is in
//! `handoff_testkit::bench`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    handoff_testkit::init();
    handoff_testkit::bench::main(std::env::args_os())
}
