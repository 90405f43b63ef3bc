//! The demo: the real supervisor, the reference store and a load of clients; hands over again and again, with faults on the
//! way, then counts.
//!
//! It is a measurement too: it ends with a table and a verdict, and its exit status is 0 only if the clients suffered nothing at all, no
//! acknowledged write is missing, none is there twice, no two writers were at work, and the pause was no longer than a small multiple of what
//! this machine needs for a start of a process and a sync.
//!
//! What it says while it runs is `show.rs`'s.

#![forbid(unsafe_code)]

mod faults;
mod show;

use std::collections::BTreeMap;
use std::io;
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
use handoff_testkit::{Spread, Yardstick};
use serde::Serialize;
use show::Show;

/// How long after a handover its effects on the clients are still looked for.
const AFTERMATH: Duration = Duration::from_millis(20);
/// How long the clients may hear nothing before the demo stops waiting for them.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause is in the median so many times a start of a process and a sync at most, beside the longest gap without any handover. It is
/// two to four times; a part of it that grew to as much as all the rest is found by the benchmark.
const STARTS_MAX: u32 = 20;

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
    /// The longest gap between replies over all clients around each handover without a fault.
    pause_ms: Spread,
    /// The same around a moment without a handover.
    control_ms: Spread,
    handover_ms: Spread,
    /// The longest gap around each handover with a fault, by what was struck.
    struck: BTreeMap<&'static str, Spread>,
    /// Every promise that was broken, in words.
    problems: Vec<String>,
}

fn main() -> ExitCode {
    handoff_testkit::init();
    let args = Args::parse();
    let mut show = Show::new(args.handovers);
    match run(&args, &mut show) {
        Ok(report) => conclude(&args, &report, &show),
        Err(error) => {
            show.end_line();
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, show: &mut Show) -> io::Result<Report> {
    let mut fixture = setup(args)?.start()?;
    let yardstick = Yardstick::measure(fixture.path())?;
    let spec =
        LoadSpec { clients: args.clients, ..LoadSpec::new(fixture.endpoint("http")?, &fixture.path().join("acks")) };
    show.begin(&spec.endpoint, args.clients, if args.no_faults { "no faults" } else { "faults on the way" });
    let load = Load::start(&spec, StoreClient::new())?;
    let handovers = hand_over(args, &mut fixture, &load, show)?;
    let yardstick = yardstick.again(fixture.path())?;
    let seen = load.stop()?;
    fixture.stop()?;
    show.checking();
    Ok(report(args, &handovers, &fixture.verify(&seen, Cost::NOTHING)?, &yardstick))
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
    pauses: Vec<Duration>,
    controls: Vec<Duration>,
    calls: Vec<Duration>,
    struck: BTreeMap<Fault, Vec<Duration>>,
    problems: Vec<String>,
}

fn hand_over(args: &Args, fixture: &mut Fixture, load: &Load, show: &mut Show) -> io::Result<Handovers> {
    let mut handovers = Handovers::default();
    let mut mischief = Mischief::new(args.seed);
    let faults = if args.no_faults { vec![None; args.handovers as usize] } else { plan(args.handovers, args.seed) };
    for (number, fault) in (1..).zip(faults) {
        let told = |error: io::Error| io::Error::other(format!("handover {number}: {error}"));
        match fault {
            None => handovers.undisturbed(number, fixture, load, show).map_err(told)?,
            Some(fault) => handovers.disturbed(number, fault, &mut mischief, fixture, load, show).map_err(told)?,
        }
    }
    show.end_line();
    Ok(handovers)
}

impl Handovers {
    /// One handover as it should be; it alone counts for the times.
    fn undisturbed(&mut self, number: u32, fixture: &Fixture, load: &Load, show: &mut Show) -> io::Result<()> {
        let before = Instant::now();
        self.controls.push(longest_gap(load, before, before)?);
        let from = Instant::now();
        let upgrade = fixture.upgrade(&[])?;
        let to = Instant::now();
        let pause = longest_gap(load, from, to)?;
        if upgrade.committed() {
            self.committed += 1;
            self.calls.push(to - from);
            self.pauses.push(pause);
            show.committed(number, fixture.incumbent_pid()?, pause, load.counts().acked);
        } else {
            self.rolled_back += 1;
            self.problems.push(format!("handover {number} failed without a fault: {}", upgrade.stderr.trim()));
        }
        Ok(())
    }

    fn disturbed(
        &mut self,
        number: u32,
        fault: Fault,
        mischief: &mut Mischief,
        fixture: &mut Fixture,
        load: &Load,
        show: &mut Show,
    ) -> io::Result<()> {
        show.strikes(number, fault);
        let from = Instant::now();
        let ended = mischief.hand_over(fixture, fault)?;
        let outage = longest_gap(load, from, Instant::now())?;
        match ended {
            Ended::Committed => self.committed += 1,
            Ended::RolledBack => self.rolled_back += 1,
        }
        self.struck.entry(fault).or_default().push(outage);
        show.struck(ended, fixture.incumbent_pid()?, outage);
        Ok(())
    }
}

/// The longest gap between replies from then to a moment after, when every gap in it is closed.
fn longest_gap(load: &Load, from: Instant, to: Instant) -> io::Result<Duration> {
    let longest = load.gaps().longest_around(from, to + AFTERMATH, PATIENCE);
    longest.ok_or_else(|| io::Error::other("nobody answers the clients"))
}

fn report(args: &Args, handovers: &Handovers, verdict: &Verdict, yardstick: &Yardstick) -> Report {
    let (pause, control) = (Spread::of(&handovers.pauses), Spread::of(&handovers.controls));
    let mut problems = verdict.problems();
    problems.extend(handovers.problems.iter().cloned());
    problems.extend(too_long(pause, control, yardstick));
    problems.extend((handovers.committed == 0).then(|| "nothing was handed over".to_owned()));
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
        pause_ms: pause,
        control_ms: control,
        handover_ms: Spread::of(&handovers.calls),
        struck: handovers.struck.iter().map(|(fault, outages)| (fault.in_words(), Spread::of(outages))).collect(),
        problems,
    }
}

/// Whether the pause is longer than this machine explains.
fn too_long(pause: Spread, control: Spread, yardstick: &Yardstick) -> Option<String> {
    let anyway = Duration::from_secs_f64(control.p50 / 1e3);
    yardstick.explains("the pause", pause, STARTS_MAX, anyway).err()
}

/// Prints the table and the verdict, and writes the file that was asked for.
fn conclude(args: &Args, report: &Report, show: &Show) -> ExitCode {
    show.table(report);
    if let Some(path) = &args.json
        && let Err(error) = std::fs::write(path, serde_json::json!(report).to_string())
    {
        eprintln!("demo: {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if report.problems.is_empty() {
        println!("verdict: nobody was refused, nothing was lost, never two writers");
        ExitCode::SUCCESS
    } else {
        report.problems.iter().for_each(|problem| println!("  {problem}"));
        println!("verdict: FAILED");
        ExitCode::FAILURE
    }
}
