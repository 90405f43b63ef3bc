//! System calls of a handover, counted by strace(1) on the real processes.

use handoff_testkit::fixture::Setup;

use crate::strace::{Strace, sends};
use crate::{Outcome, check, trials};

trials![no_sync_between_drained_and_ready];

/// The calls that wait for a disk.
const SYNCS: [&str; 6] = ["fsync(", "fdatasync(", "sync_file_range(", "syncfs(", "sync(", "msync("];

/// Everything that a fixture's processes, and all that they start, write to a socket or make durable.
const OPTIONS: [&str; 6] =
    ["-f", "-xx", "-s", "16", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,sync,msync,%network"];

fn no_sync_between_drained_and_ready() -> Outcome {
    let fixture = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").start()?;
    let Some(trace) = Strace::attach(&fixture.path().join("trace"), &OPTIONS, &fixture.processes())? else {
        return Ok(());
    };
    let upgrade = fixture.upgrade(&[])?;
    let lines = trace.lines()?;
    check(upgrade.committed(), format!("{upgrade:?}"))?;

    let drained = lines.iter().position(|line| sends(line, 3)).ok_or("Drained was not seen on the wire")?;
    let ready = lines.iter().position(|line| sends(line, 9)).ok_or("Ready was not seen on the wire")?;
    check(drained < ready, "Drained comes before Ready")?;

    let syncs = |lines: &[String]| lines.iter().filter(|line| SYNCS.iter().any(|it| line.contains(it))).count();
    let inside: Vec<&String> =
        lines[drained..ready].iter().filter(|line| SYNCS.iter().any(|it| line.contains(it))).collect();
    check(inside.is_empty(), format!("syncs between Drained and Ready: {inside:?}"))?;
    // The same count finds the journal's own, or it proves nothing.
    check(syncs(&lines[..drained]) > 0, "the journal's intent is synced before the drain")?;
    check(syncs(&lines[ready..]) > 0, "the journal's end is synced after the commit")
}
