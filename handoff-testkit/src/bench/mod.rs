//! What a handover costs, beside what it could cost: `handoff-bench`.
//!
//! | side | what hands over |
//! |---|---|
//! | `handoff` | the program `handoff` and the reference daemon on this library |
//! | `peer` | `beyond-handoff` 0.1.4, the same daemon on it |
//! | `floor` | the same steps, as plain as they can be written, without any safety |
//! | `restart` | the old process is told to stop, then a new one is started on the same listening socket |
//!
//! All four run the same store with the same load, as real processes: the calling program, run again.
//!
//! Invariants:
//!
//! - The sides take turns within one run, in another order each round: what disturbs the machine disturbs all of them.
//! - Only the side that is measured has clients. The next turn begins when the old process of the last one is gone.
//! - Every side is timed in the same way: from the order to the answer, on a pipe or a connection that was there before; the pause
//!   is what the clients see.
//! - A figure whose clients lost something is no figure: the report counts it.

mod args;
mod check;
mod growth;
pub mod micro;
mod picture;
mod report;
mod rounds;
mod service;
mod sides;
mod slow_sync;
mod stats;
#[allow(unsafe_code)]
mod sys;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use crate::ChildRole;

use args::Args;
use report::{Machine, Report};

/// Whatever went wrong, for the one who started the measurement.
pub type AnyError = Box<dyn std::error::Error>;

/// What the program plays in the children that it starts.
pub(crate) const ROLES: &[ChildRole] = &[
    ChildRole { name: sides::peer::SUPERVISOR, main: |_| sides::played(sides::peer::supervise()) },
    ChildRole { name: sides::peer::DAEMON, main: |_| sides::played(sides::peer::serve()) },
    ChildRole { name: sides::floor::SUPERVISOR, main: |_| sides::played(sides::floor::supervise()) },
    ChildRole { name: sides::floor::DAEMON, main: |_| sides::played(sides::floor::serve()) },
    ChildRole { name: sides::restart::SUPERVISOR, main: |_| sides::played(sides::restart::supervise()) },
    ChildRole { name: "bench", main: |args| main(args) },
    ChildRole { name: growth::ROLE, main: |_| sides::played(growth::serve()) },
    ChildRole { name: micro::ROLE, main: |args| sides::played(micro::main(&args)) },
    ChildRole { name: sides::restart::DAEMON, main: |_| sides::played(sides::restart::serve()) },
];

/// What [`crate::init`] must do ahead of everything else, so that it holds for all that the process does.
pub(crate) fn enter() {
    slow_sync::enter();
}

/// The program; `args` begin with its name. Call [`crate::init`] before.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match args::parse(args) {
        Ok(args) => args,
        Err(answer) => return answer,
    };
    if args.check {
        return check::main(&args);
    }
    match if args.growth { run_growth(&args) } else { run(&args) } {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("handoff-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the table.
fn run(args: &Args) -> io::Result<String> {
    let machine = Machine::before();
    let mut dirs = Vec::with_capacity(args.dirs.len());
    for dir in &args.dirs {
        dirs.push(rounds::measure(dir, args)?);
    }
    let report = Report::new(args, machine.after(), dirs);
    write_json(args, &report.to_json())?;
    if let Some(path) = &args.svg {
        std::fs::write(path, picture::draw(&report)).map_err(|error| named(path, &error))?;
    }
    Ok(report.table())
}

fn run_growth(args: &Args) -> io::Result<String> {
    let mut table = String::new();
    let mut json = serde_json::Map::new();
    for dir in &args.dirs {
        let growth = growth::measure(dir, args)?;
        table.push_str(&format!("\n{}\n{}", dir.display(), growth.table()));
        json.insert(dir.to_string_lossy().into_owned(), growth.to_json());
    }
    write_json(args, &serde_json::json!({ "growth": json }))?;
    Ok(table)
}

fn write_json(args: &Args, json: &serde_json::Value) -> io::Result<()> {
    let Some(path) = &args.json else { return Ok(()) };
    let mut text = serde_json::to_string_pretty(json)?;
    text.push('\n');
    std::fs::write(path, text).map_err(|error| named(path, &error))
}

fn named(path: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
