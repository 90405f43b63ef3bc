//! How long a handover takes where the daemon itself does nothing: medians over many, on the disk that TMPDIR is on.
//!
//! `cargo run --release -p handoff-testkit --example pause [HANDOVERS]`

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use handoff_runtime::{DataDirLock, Incumbent, ReadinessSnapshot, Role, detect_role};
use handoff_testkit::fixture::Setup;
use handoff_testkit::{ChildRole, MockDrainable};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    handoff_testkit::init_with(&[ChildRole { name: "empty-daemon", main: |_| played(daemon()) }]);
    let handovers: usize = env::args().nth(1).map_or(Ok(50), |count| count.parse())?;
    let fixture = Setup::role("empty-daemon")?.start()?;

    let phases = ["spawn", "warm", "drain", "seal", "begin_to_ready", "pause", "total"];
    let mut samples = vec![Vec::with_capacity(handovers); phases.len()];
    for _ in 0..handovers {
        let upgrade = fixture.upgrade(&[])?;
        let outcome = upgrade.outcome.filter(|_| upgrade.code == Some(0)).ok_or(upgrade.stderr)?;
        for (phase, samples) in phases.iter().zip(&mut samples) {
            samples.push(outcome["timings_ms"][phase].as_f64().ok_or("a duration in milliseconds")?);
        }
    }
    println!("{handovers} handovers under {}, milliseconds", fixture.path().display());
    println!("{:<16}{:>10}{:>10}{:>10}", "", "min", "median", "max");
    for (phase, mut samples) in phases.iter().zip(samples) {
        samples.sort_by(f64::total_cmp);
        let (min, median, max) = (samples[0], samples[handovers / 2], samples[handovers - 1]);
        println!("{phase:<16}{min:>10.3}{median:>10.3}{max:>10.3}");
    }
    Ok(())
}

/// A daemon without data: all that is measured is the handover.
fn daemon() -> Result<(), AnyError> {
    let path = |name: &str| env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set"));
    let (data_dir, control_socket) = (path("HANDOFF_DATA_DIR")?, path("HANDOFF_CONTROL_SOCKET")?);
    let incumbent = match detect_role()? {
        Role::ColdStart { .. } => Incumbent::bind_cold_start(&control_socket, DataDirLock::acquire(&data_dir)?)?,
        Role::Successor(successor) => {
            let mut greeted = successor.handshake(Vec::new())?;
            greeted.prepare(&data_dir, &control_socket)?;
            let mut begun = greeted.wait_for_begin()?;
            let lock = begun.lock(&data_dir)?;
            let ready = ReadinessSnapshot { healthz_ok: true, ..ReadinessSnapshot::default() };
            begun.announce_and_bind(ready, &control_socket, lock)?
        }
    };
    incumbent.serve(MockDrainable::default())?;
    Ok(())
}

fn played(ended: Result<(), AnyError>) -> ExitCode {
    let reason: Option<OsString> = ended.err().map(|error| error.to_string().into());
    if let Some(reason) = &reason {
        eprintln!("{}", reason.display());
    }
    ExitCode::from(u8::from(reason.is_some()))
}
