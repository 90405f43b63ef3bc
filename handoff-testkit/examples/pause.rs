//! How long a handover takes where the daemon itself does nothing: medians over many, on the disk that TMPDIR is on.
//!
//! All but *silent* are the supervisor's times. *Silent* is the daemons' own: from the moment at which the old process is told to
//! drain to the one at which the new process may accept.
//!
//! `cargo run --release -p handoff-testkit --example pause [HANDOVERS]`

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use handoff_runtime::{
    DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
    SealContext, SealReport, StateSnapshot, detect_role,
};
use handoff_testkit::ChildRole;
use handoff_testkit::fixture::Setup;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    handoff_testkit::init_with(&[ChildRole { name: "empty-daemon", main: |_| played(daemon()) }]);
    let handovers: usize = env::args().nth(1).map_or(Ok(50), |count| count.parse())?;
    let mut fixture = Setup::role("empty-daemon")?.start()?;

    let phases = ["spawn", "warm", "drain", "seal", "begin_to_ready", "pause", "total"];
    let mut samples = vec![Vec::with_capacity(handovers); phases.len()];
    for _ in 0..handovers {
        let upgrade = fixture.upgrade(&[])?;
        let outcome = upgrade.outcome.filter(|_| upgrade.code == Some(0)).ok_or(upgrade.stderr)?;
        for (phase, samples) in phases.iter().zip(&mut samples) {
            samples.push(outcome["timings_ms"][phase].as_f64().ok_or("a duration in milliseconds")?);
        }
    }
    fixture.stop()?;
    fixture.stop()?;
    let moments = fs::read_to_string(moments(fixture.data_dir()))?;
    println!("{handovers} handovers under {}, milliseconds", fixture.path().display());
    println!("{:<16}{:>10}{:>10}{:>10}", "", "min", "median", "max");
    for (phase, mut samples) in phases.into_iter().zip(samples).chain([("silent", silences(&moments)?)]) {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1).ok_or("no handover was seen")?;
        let (min, median, max) = (samples[0], samples[last / 2], samples[last]);
        println!("{phase:<16}{min:>10.3}{median:>10.3}{max:>10.3}");
    }
    Ok(())
}

/// Where the daemons write down when they were told to drain, and when they could serve: whole lines, since two do it at a time.
fn moments(data_dir: &Path) -> PathBuf {
    data_dir.with_file_name("moments")
}

/// From each drain to the successor that serves, in milliseconds. A process that was ended before it wrote is left out: the last
/// ones, when the service is stopped.
fn silences(moments: &str) -> Result<Vec<f64>, AnyError> {
    let of = |what: &str| -> Result<Vec<u64>, AnyError> {
        let lines = moments.lines().filter_map(|line| line.strip_prefix(what));
        let mut moments = lines.map(|ns| ns.trim().parse()).collect::<Result<Vec<u64>, _>>()?;
        moments.sort_unstable();
        Ok(moments)
    };
    let (drains, serves) = (of("drain")?, of("serve")?);
    let ms = |drain: u64, serve: u64| (serve - drain) as f64 / 1e6;
    let next = |drain: &u64| serves.get(serves.partition_point(|serve| serve < drain)).map(|serve| ms(*drain, *serve));
    Ok(drains.iter().filter_map(next).collect())
}

/// CLOCK_MONOTONIC, which all processes share.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// A daemon without data: all that is measured is the handover.
fn daemon() -> Result<(), AnyError> {
    let path = |name: &str| env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set"));
    let (data_dir, control_socket) = (path("HANDOFF_DATA_DIR")?, path("HANDOFF_CONTROL_SOCKET")?);
    let mut moments = File::options().append(true).create(true).open(moments(&data_dir))?;
    let incumbent = match detect_role()? {
        Role::ColdStart { .. } => Incumbent::bind_cold_start(&control_socket, DataDirLock::acquire(&data_dir)?)?,
        Role::Successor(successor) => {
            let mut greeted = successor.handshake(Vec::new())?;
            greeted.prepare(&data_dir, &control_socket)?;
            let mut begun = greeted.wait_for_begin()?;
            let lock = begun.lock(&data_dir)?;
            let ready = ReadinessSnapshot { healthz_ok: true, ..ReadinessSnapshot::default() };
            let mut serving_ns = 0;
            let incumbent = begun.announce_and_serve(ready, &control_socket, lock, || serving_ns = now_ns())?;
            moments.write_all(format!("serve {serving_ns}\n").as_bytes())?;
            incumbent
        }
    };
    incumbent.serve(Timed)?;
    if let Some(drained_ns) = DRAINED_NS.get() {
        moments.write_all(format!("drain {drained_ns}\n").as_bytes())?;
    }
    Ok(())
}

/// When this process was told to drain. No handover is undone here, so it happens once.
static DRAINED_NS: OnceLock<u64> = OnceLock::new();

/// Hooks that do nothing but look at the clock.
struct Timed;

impl Drainable for Timed {
    fn drain(&self, _cx: &DrainContext) -> Result<DrainReport, HookError> {
        DRAINED_NS.get_or_init(now_ns);
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self, _cx: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    fn resume_after_abort(&self, _resume: &Resume) -> Result<(), HookError> {
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

fn played(ended: Result<(), AnyError>) -> ExitCode {
    let reason: Option<OsString> = ended.err().map(|error| error.to_string().into());
    if let Some(reason) = &reason {
        eprintln!("{}", reason.display());
    }
    ExitCode::from(u8::from(reason.is_some()))
}
