//! The figures of a run: as a table for people, as JSON for programs.
//!
//! The top-level `ratio` is that of the first directory; `ratios` has those of each one, with their 95 % intervals.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::args::Args;
use super::micro::Step;
use super::rounds::{Measured, Samples};
use super::sides::{PHASES, Side};
use super::stats::{Ratio, Summary};

/// A run's figures.
#[derive(Debug)]
pub(super) struct Report {
    handovers: u32,
    clients: u16,
    fsync_delay: Option<Duration>,
    machine: Machine,
    pub(super) dirs: Vec<Measured>,
}

/// Where it ran, and what else ran there.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    kernel: String,
    cpus: usize,
    load_before: String,
    load_after: String,
}

impl Machine {
    pub(super) fn before() -> Self {
        Self {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            load_before: load(),
            load_after: String::new(),
        }
    }

    pub(super) fn after(self) -> Self {
        Self { load_after: load(), ..self }
    }
}

fn load() -> String {
    first_line("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

/// The ratios that are reported, and between which samples they are.
const RATIOS: [&str; 7] = [
    "pause_vs_peer",
    "pause_vs_floor",
    "call_vs_peer",
    "perform_vs_peer",
    "lock_vs_peer",
    "lock_in_a_handover_vs_peer",
    "journal_vs_peer",
];

fn ratio(name: &str, measured: &Measured) -> Option<Ratio> {
    let [handoff, peer, floor, _] = &measured.sides[..] else { return None };
    match name {
        "pause_vs_peer" => Ratio::of(&handoff.pause, &peer.pause),
        "pause_vs_floor" => Ratio::of(&handoff.pause, &floor.pause),
        "call_vs_peer" => Ratio::of(&handoff.call, &peer.call),
        "perform_vs_peer" => Ratio::of(&handoff.perform, &peer.perform),
        "lock_vs_peer" => against_the_peer(&measured.steps.lock),
        "lock_in_a_handover_vs_peer" => against_the_peer(&measured.steps.lock_in_a_handover),
        "journal_vs_peer" => against_the_peer(&measured.steps.journal),
        _ => None,
    }
}

fn against_the_peer(step: &Step) -> Option<Ratio> {
    Ratio::of(&step.handoff, &step.peer)
}

impl Report {
    pub(super) fn new(args: &Args, machine: Machine, dirs: Vec<Measured>) -> Self {
        Self { handovers: args.handovers, clients: args.clients, fsync_delay: args.fsync_delay, machine, dirs }
    }

    pub(super) fn to_json(&self) -> Value {
        let by_dir = |of: &dyn Fn(&Measured) -> Value| -> Value {
            let entries = self.dirs.iter().map(|measured| (name_of(&measured.dir), of(measured)));
            Value::Object(entries.collect())
        };
        let first = self.dirs.first();
        let of_first =
            RATIOS.map(|name| (name.to_owned(), json!(first.and_then(|it| ratio(name, it)).map(|it| it.ratio))));
        json!({
            "handovers": self.handovers,
            "clients": self.clients,
            "fsync_delay_us": self.fsync_delay.map(super::sides::us),
            "machine": {
                "kernel": self.machine.kernel,
                "cpus": self.machine.cpus,
                "load_before": self.machine.load_before,
                "load_after": self.machine.load_after,
            },
            "dirs": by_dir(&sides_to_json),
            "ratio": Value::Object(of_first.into_iter().collect()),
            "ratios": by_dir(&|measured| Value::Object(
                RATIOS.iter().map(|name| ((*name).to_owned(), json!(ratio(name, measured)))).collect()
            )),
            "steps_us": by_dir(&steps_to_json),
        })
    }

    /// What is measured in a directory, in one line.
    pub(super) fn title(&self, measured: &Measured) -> String {
        format!("{}: {} handovers, {} clients{}", measured.dir.display(), self.handovers, self.clients, self.slower())
    }

    fn slower(&self) -> String {
        self.fsync_delay.map_or(String::new(), |delay| format!(", every sync {delay:?} slower"))
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{} handovers of each side, {} clients{}; Linux {}, {} processors, load {} -> {}\n\
             microseconds: median (a tenth below - a tenth above)",
            self.handovers,
            self.clients,
            self.slower(),
            self.machine.kernel,
            self.machine.cpus,
            self.machine.load_before,
            self.machine.load_after
        );
        for measured in &self.dirs {
            directory_table(&mut out, measured);
        }
        out
    }
}

fn directory_table(out: &mut String, measured: &Measured) {
    let _ = writeln!(
        out,
        "\n{}\n{:<10}{:>24}{:>24}{:>24}{:>24}",
        measured.dir.display(),
        "",
        "pause",
        "without a handover",
        "call",
        "of it by the supervisor"
    );
    for (side, samples) in Side::ALL.iter().zip(&measured.sides) {
        let cells = [&samples.pause, &samples.control, &samples.call, &samples.perform].map(|samples| cell(samples));
        let [pause, control, call, perform] = cells;
        let _ = writeln!(out, "{:<10}{pause:>24}{control:>24}{call:>24}{perform:>24}", side.name());
    }
    let _ = writeln!(out, "where the supervisor's time goes:");
    for (side, samples) in Side::ALL.iter().zip(&measured.sides) {
        let parts: Vec<String> = phases(samples).map(|(name, it)| format!("{name} {:.0}", it.p50)).collect();
        let _ = writeln!(out, "{:<10}{}", side.name(), parts.join(", "));
    }
    for (side, samples) in Side::ALL.iter().zip(&measured.sides) {
        let (seen, lost) = (&samples.seen, samples.lost());
        let held = samples.syncs_held.map_or(String::new(), |held| format!(", {held} syncs made slower"));
        let _ = writeln!(out, "{:<10}{} replies, {lost} lost{held}", side.name(), seen.acked);
    }
    for (what, step) in [
        ("lock, taken and released", &measured.steps.lock),
        ("the same in a handover", &measured.steps.lock_in_a_handover),
        ("journal record, durable", &measured.steps.journal),
        ("journal record, no sync", &measured.steps.journal_unsynced),
    ] {
        let [handoff, peer, floor] = [&step.handoff, &step.peer, &step.floor].map(|samples| cell(samples));
        let _ = writeln!(out, "{what:<26}handoff{handoff:>22}   peer{peer:>22}   floor{floor:>22}");
    }
    for name in RATIOS {
        match ratio(name, measured) {
            Some(it) => drop(writeln!(out, "{name:<28}{:>7.3}   ({:.3} - {:.3})", it.ratio, it.low, it.high)),
            None => drop(writeln!(out, "{name:<28}      -")),
        }
    }
}

fn cell(samples: &[f64]) -> String {
    match samples {
        [] => "-".to_owned(),
        _ => {
            let it = Summary::of(samples);
            let digits = usize::from(it.p50 < 100.0);
            format!("{:.digits$} ({:.digits$} - {:.digits$})", it.p50, it.p10, it.p90)
        }
    }
}

fn sides_to_json(measured: &Measured) -> Value {
    let sides = Side::ALL.iter().zip(&measured.sides);
    Value::Object(sides.map(|(side, samples)| (side.name().to_owned(), side_to_json(samples))).collect())
}

fn side_to_json(samples: &Samples) -> Value {
    let parts: Map<String, Value> = phases(samples).map(|(name, it)| (name.to_owned(), json!(it))).collect();
    json!({
        "pause_us": Summary::of(&samples.pause),
        "control_us": Summary::of(&samples.control),
        "call_us": Summary::of(&samples.call),
        "perform_us": Summary::of(&samples.perform),
        "phases_us": parts,
        "load": samples.seen,
        "syncs_made_slower": samples.syncs_held,
    })
}

fn steps_to_json(measured: &Measured) -> Value {
    let step = |step: &Step| {
        let of = |samples: &[f64]| Some(Summary::of(samples)).filter(|_| !samples.is_empty());
        json!({ "handoff": of(&step.handoff), "peer": of(&step.peer), "floor": of(&step.floor) })
    };
    let steps = &measured.steps;
    json!({
        "lock": step(&steps.lock),
        "lock_in_a_handover": step(&steps.lock_in_a_handover),
        "journal": step(&steps.journal),
        "journal_unsynced": step(&steps.journal_unsynced),
    })
}

/// The parts of a side's handover that it has, in order.
pub(super) fn phases(samples: &Samples) -> impl Iterator<Item = (&'static str, Summary)> {
    let named = PHASES.iter().zip(&samples.phases).filter(|(_, samples)| !samples.is_empty());
    named.map(|((name, _), samples)| (*name, Summary::of(samples)))
}

fn name_of(dir: &Path) -> String {
    dir.to_string_lossy().into_owned()
}
