//! The `handoff` program as a function: `handoff run`, `upgrade`, `rollback`, `status`, `history`, `stop`, `lock`.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done; for `upgrade` and `rollback`: committed |
//! | 1 | `run`: the daemon ended and is not to be started again |
//! | 2 | `upgrade`, `rollback`: aborted after the successor was started; the line says what is known of the old process |
//! | 3 | nothing was done: bad arguments, nobody answers, refused; one line on stderr says why |
//! | 4 | `upgrade`, `rollback`: another handover is under way |
//! | 6 | `upgrade`, `rollback`: the supervisor went away, and what is left does not say who serves |
//!
//! It never panics on a closed stdout, and prints one line for one error.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

mod aftermath;
mod args;
mod client;
mod config;
mod history;
mod lock;
mod output;
mod plot;
mod progress;
mod run;
mod status;
mod stop;
mod upgrade;

/// The new process serves.
const COMMITTED: u8 = 0;
/// The old process serves, and a new one had been started.
const ABORTED: u8 = 2;
/// Nothing was done; stderr says why.
const NOT_DONE: u8 = 3;
/// The supervisor went away, and nothing says who serves.
const NOT_KNOWN: u8 = 6;

/// Runs the program with these arguments, the first of which is its own name.
///
/// `run` changes the calling process: it blocks SIGTERM, SIGINT and SIGHUP, takes over `LISTEN_FDS`, and installs a
/// `tracing` subscriber that writes to stderr. Call it at the start of `main`, before any thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stdout or stderr is nobody's concern here.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(NOT_DONE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Upgrade(args) => upgrade::upgrade(&args),
        Command::Rollback(args) => upgrade::rollback(&args),
        Command::Status(args) => status::status(&args),
        Command::History(args) => history::history(&args),
        Command::Stop(args) => stop::stop(&args),
        Command::Lock(args) => lock::lock(&args),
    };
    done.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::from(NOT_DONE)
    })
}
