//! The fault matrix as a program: runs every row on the built-in daemon, prints a table, and writes it as JSON.
//!
//! Exit status 0 only if no row failed and every fault fired.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use handoff_testkit::matrix::{Matrix, Report, RowReport};

/// Lets every role of a handover fail in every way at every point, and checks what comes of it.
#[derive(Debug, Parser)]
#[command(name = "handoff-matrix")]
struct Args {
    /// How often every row is run
    #[arg(long, default_value_t = 1, value_name = "N")]
    runs: u32,
    /// Instead: hand one service over N times in a row, each time with a row that is drawn at random
    #[arg(long, value_name = "N", conflicts_with_all = ["runs", "jobs"], value_parser = clap::value_parser!(u32).range(1..))]
    in_a_row: Option<u32>,
    /// How many clients write at the same time
    #[arg(long, default_value_t = 2, value_name = "N")]
    clients: u32,
    /// Only these rows: a role, a point, a fault, POINT/FAULT or ROLE/POINT/FAULT, with * and ?
    #[arg(long, default_value = "*", value_name = "GLOB")]
    filter: String,
    /// Where the choices start that vary: the order of the rows, and how many writes go ahead of a fault
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many rows run at the same time
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
    /// Add so many pairs of faults in one handover, drawn by the seed
    #[arg(long, default_value_t = 0, value_name = "N")]
    pairs: usize,
    /// Run the rows once with this very seed, as a failed row names it
    #[arg(long, value_name = "N", conflicts_with_all = ["in_a_row", "runs"])]
    row_seed: Option<u64>,
}

fn main() -> ExitCode {
    handoff_testkit::init();
    let args = Args::parse();
    let matrix = Matrix::built_in()
        .seed(args.seed)
        .pairs(args.pairs)
        .filter(&args.filter)
        .side_by_side(args.jobs)
        .clients(args.clients);
    if matrix.rows().is_empty() {
        eprintln!("handoff-matrix: no row is meant by --filter {}; try \"n-*\" or \"kill\"", args.filter);
        return ExitCode::FAILURE;
    }
    let report = match (args.in_a_row, args.row_seed) {
        (Some(handovers), _) => matrix.run_in_a_row(handovers, &show),
        (None, Some(seed)) => matrix.run_with_seed(seed, &show),
        (None, None) => matrix.run_watched(args.runs, &show),
    };
    if let Some(control) = &report.control {
        println!("without a fault: {control}");
    }
    println!("{}", report.summary());
    match write(&args, &report) {
        Ok(()) => ExitCode::from(u8::from(!report.is_clean())),
        Err(error) => {
            eprintln!("handoff-matrix: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(row: &RowReport) {
    println!("{row}");
    if !row.ok {
        println!("       again, alone: handoff-matrix --filter '{}' --row-seed {}", row.name, row.seed);
    }
}

fn write(args: &Args, report: &Report) -> Result<(), String> {
    let Some(path) = &args.json else { return Ok(()) };
    let json = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    std::fs::write(path, json + "\n").map_err(|error| format!("{}: {error}", path.display()))
}
