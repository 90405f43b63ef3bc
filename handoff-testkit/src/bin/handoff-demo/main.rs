//! The demo: the real supervisor, the reference store and a load of clients; hands over again and again, with faults on the
//! way, then counts.
//!
//! It is a measurement too: it ends with a table and a verdict, and its exit status is 0 only if no client was refused or left
//! without an answer, no acknowledged write is missing, none is there twice, and no two writers were at work.

#![forbid(unsafe_code)]

mod faults;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use faults::{Ended, Fault, Mischief, plan};
use handoff_runtime::Timing;
use handoff_runtime::crash::timing_variable;
use handoff_testkit::audit::Verdict;
use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::{Cost, Load, LoadSpec};
use handoff_testkit::store::StoreClient;
use serde::Serialize;

/// How long after a handover its effects on the clients are still looked for.
const AFTERMATH: Duration = Duration::from_millis(20);

/// How long the clients may hear nothing before the demo stops waiting for them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Hands a running store over again and again under load, and counts what went wrong.
#[derive(Debug, Parser)]
#[command(name = "cargo demo")]
struct Args {
    /// How many handovers
    #[arg(long, default_value_t = 50, value_name = "N")]
    handovers: u32,
    /// How many writing clients, half of them on kept connections
    #[arg(long, default_value_t = 32, value_name = "N")]
    clients: usize,
    /// No faults on the way: no killed successor, no failed seal, no killed and no frozen supervisor
    #[arg(long)]
    no_faults: bool,
    /// Where the choice of faults starts
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The figures of a run, as they are printed and written.
#[derive(Debug, Serialize)]
struct Report {
    handovers: u32,
    committed: u32,
    rolled_back: u32,
    clients: usize,
    acked: u64,
    refused: u64,
    closed_unanswered: u64,
    acked_lost: u64,
    duplicated: u64,
    two_writers: Option<u64>,
    /// Every promise that was broken, in words.
    problems: Vec<String>,
    pause_ms: Spread,
    handover_ms: Spread,
}

/// A distribution in three figures, in milliseconds.
#[derive(Debug, Default, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let at = |quantile: f64| {
            let index = ((samples.len().max(1) - 1) as f64 * quantile).round() as usize;
            samples.get(index).map_or(0.0, |sample| sample.as_secs_f64() * 1e3)
        };
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

fn main() -> ExitCode {
    handoff_testkit::init();
    let args = Args::parse();
    match run(&args) {
        Ok(report) => conclude(&args, &report),
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<Report> {
    let mut fixture = setup(args)?.start()?;
    let address = fixture.address("http")?;
    let acks = fixture.path().join("acks");
    let company = if args.no_faults { "no faults" } else { "faults on the way" };
    println!("{} handovers of the reference store at {address}, {} clients, {company}", args.handovers, args.clients);

    let spec = LoadSpec { clients: args.clients, ..LoadSpec::new(address, &acks) };
    let load = Load::start(&spec, StoreClient::new())?;
    let handovers = hand_over(args, &mut fixture, &load)?;
    if handovers.unexpected > 0 {
        return Err(io::Error::other(format!("{} handovers failed without a fault", handovers.unexpected)));
    }
    let seen = load.stop()?;
    fixture.stop()?;
    let verdict = fixture.verify(&seen, Cost::NOTHING)?;
    Ok(report(args, handovers, &verdict))
}

/// With faults, whoever falls silent is noticed sooner than in earnest, so that the demo need not wait.
fn setup(args: &Args) -> io::Result<Setup> {
    let setup = Setup::store()?;
    if args.no_faults {
        return Ok(setup);
    }
    let timing =
        Timing { liveness: Duration::from_secs(2), heartbeat: Duration::from_millis(400), ..Timing::default() };
    let (name, value) = timing_variable(&timing);
    Ok(setup.env(name, value.clone()).supervisor_env(name, value))
}

/// What the handovers of a run came to.
#[derive(Debug, Default)]
struct Handovers {
    committed: u32,
    rolled_back: u32,
    /// Rolled back without a fault on the way.
    unexpected: u32,
    pauses: Vec<Duration>,
    calls: Vec<Duration>,
}

fn hand_over(args: &Args, fixture: &mut Fixture, load: &Load) -> io::Result<Handovers> {
    let mut handovers = Handovers::default();
    let mut mischief = Mischief::new(args.seed);
    let faults = if args.no_faults { vec![None; args.handovers as usize] } else { plan(args.handovers, args.seed) };
    for (number, fault) in (1..).zip(faults) {
        match fault {
            None => hand_over_undisturbed(number, fixture, load, &mut handovers)?,
            Some(fault) => hand_over_disturbed(number, fault, &mut mischief, fixture, load, &mut handovers)?,
        }
        show_progress(number, args.handovers)?;
    }
    Ok(handovers)
}

/// One handover as it should be; it alone counts for the times.
fn hand_over_undisturbed(number: u32, fixture: &Fixture, load: &Load, handovers: &mut Handovers) -> io::Result<()> {
    let from = Instant::now();
    let upgrade = fixture.upgrade(&[])?;
    let to = Instant::now();
    if upgrade.committed() {
        handovers.committed += 1;
        handovers.calls.push(to - from);
        let pause = load.gaps().longest_around(from, to + AFTERMATH, PATIENCE);
        handovers.pauses.push(pause.ok_or_else(|| io::Error::other("nobody answers the clients"))?);
    } else {
        handovers.rolled_back += 1;
        handovers.unexpected += 1;
        eprintln!("handover {number}: {}", upgrade.stderr.trim());
    }
    Ok(())
}

fn hand_over_disturbed(
    number: u32,
    fault: Fault,
    mischief: &mut Mischief,
    fixture: &mut Fixture,
    load: &Load,
    handovers: &mut Handovers,
) -> io::Result<()> {
    let told = |error: io::Error| io::Error::other(format!("handover {number}, {fault:?}: {error}"));
    match mischief.hand_over(fixture, fault).map_err(told)? {
        Ended::Committed => handovers.committed += 1,
        Ended::RolledBack => handovers.rolled_back += 1,
    }
    if !load.gaps().wait_for_reply_after(Instant::now(), PATIENCE) {
        return Err(told(io::Error::other("nobody answers the clients")));
    }
    Ok(())
}

/// On a terminal, one line that counts up; a log has the table at the end.
fn show_progress(number: u32, of: u32) -> io::Result<()> {
    let mut out = io::stdout();
    if !out.is_terminal() {
        return Ok(());
    }
    let end = if number == of { "\n" } else { "" };
    write!(out, "\rhandover {number} of {of}{end}")?;
    out.flush()
}

fn report(args: &Args, handovers: Handovers, verdict: &Verdict) -> Report {
    Report {
        handovers: args.handovers,
        committed: handovers.committed,
        rolled_back: handovers.rolled_back,
        clients: args.clients,
        acked: verdict.clients.acked,
        refused: verdict.clients.refused(),
        closed_unanswered: verdict.clients.closed_unanswered(),
        acked_lost: verdict.disk.acked_lost,
        duplicated: verdict.disk.duplicated,
        two_writers: verdict.disk.two_writers,
        problems: verdict.problems(),
        pause_ms: Spread::of(handovers.pauses),
        handover_ms: Spread::of(handovers.calls),
    }
}

/// Prints the table and the verdict, and writes the file that was asked for.
fn conclude(args: &Args, report: &Report) -> ExitCode {
    let wrong = [
        ("refused", report.refused),
        ("closed without an answer", report.closed_unanswered),
        ("acknowledged and lost", report.acked_lost),
        ("written twice", report.duplicated),
        ("two writers", report.two_writers.unwrap_or_default()),
    ];
    println!("  {:<28}{:>12}", "handovers committed", report.committed);
    println!("  {:<28}{:>12}", "handovers rolled back", report.rolled_back);
    println!("  {:<28}{:>12}", "writes acknowledged", report.acked);
    for (what, count) in wrong {
        println!("  {what:<28}{count:>12}");
    }
    for (what, spread) in [("pause, ms", &report.pause_ms), ("handover, ms", &report.handover_ms)] {
        println!("  {what:<28}{:>12.2} p50 {:>9.2} p99 {:>9.2} max", spread.p50, spread.p99, spread.max);
    }
    if let Some(path) = &args.json
        && let Err(error) = std::fs::write(path, serde_json::json!(report).to_string())
    {
        eprintln!("demo: {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    for problem in &report.problems {
        println!("  {problem}");
    }
    if report.problems.is_empty() && report.committed > 0 {
        println!("verdict: nobody was refused, nothing was lost, never two writers");
        ExitCode::SUCCESS
    } else {
        println!("verdict: FAILED");
        ExitCode::FAILURE
    }
}
