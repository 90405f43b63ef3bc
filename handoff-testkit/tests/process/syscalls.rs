//! System calls of a handover, counted by strace(1) on the real processes.

use handoff_testkit::fixture::Setup;

use crate::stage::within_patience;
use crate::strace::{Strace, lines_of, sends};
use crate::{Outcome, check, trials};

trials![no_sync_between_drained_and_ready, few_calls_in_the_supervisor];

/// The calls that wait for a disk.
const SYNCS: [&str; 6] = ["fsync(", "fdatasync(", "sync_file_range(", "syncfs(", "sync(", "msync("];

/// Everything that a fixture's processes, and all that they start, write to a socket or make durable.
const OPTIONS: [&str; 6] =
    ["-f", "-xx", "-s", "16", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,sync,msync,%network"];

/// What a whole handover may sync: the intent before the drain, the end after the commit.
const SYNCS_MAX: usize = 2;

/// What the supervisor may ask of the system from the connect to the commit.
const CALLS_MAX: usize = 45;

fn no_sync_between_drained_and_ready() -> Outcome {
    let mut fixture = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").start()?;
    let file = fixture.path().join("trace");
    let trace = Strace::attach(&file, &OPTIONS, &fixture.processes())?;
    let syncs = |lines: &[String]| lines.iter().filter(|line| SYNCS.iter().any(|it| line.contains(it))).count();
    let upgrade = fixture.upgrade(&[])?;
    // Its end is made durable behind its answer, though nobody asks for anything more.
    let both = within_patience(|| lines_of(&file).is_ok_and(|lines| syncs(&lines) >= SYNCS_MAX));
    fixture.stop()?;
    let lines = trace.lines()?;
    check(upgrade.committed(), format!("{upgrade:?}"))?;

    let drained = lines.iter().position(|line| sends(line, 3)).ok_or("Drained was not seen on the wire")?;
    let ready = lines.iter().position(|line| sends(line, 9)).ok_or("Ready was not seen on the wire")?;
    check(drained < ready, "Drained comes before Ready")?;

    let inside: Vec<&String> =
        lines[drained..ready].iter().filter(|line| SYNCS.iter().any(|it| line.contains(it))).collect();
    check(inside.is_empty(), format!("syncs between Drained and Ready: {inside:?}"))?;
    check(syncs(&lines) <= SYNCS_MAX, format!("{} syncs in one handover", syncs(&lines)))?;
    // The same count finds the journal's own, or it proves nothing.
    check(both, format!("only {} syncs", syncs(&lines)))?;
    check(syncs(&lines[..drained]) > 0, "the journal's intent is synced before the drain")?;
    check(syncs(&lines[ready..]) > 0, "the journal's end is synced after the commit")
}

/// Counted at the first handover and at the second. The service connects while it looks at the order, all else is done by the
/// thread that hands over.
///
/// What it tells the log and its service is not counted, nor the wait before it: it comes when the handover is over, or after
/// a while, which under strace is over sooner than the handover. Nor is a wait for the service's record of the order, which
/// under strace may take longer than the successor's start.
fn few_calls_in_the_supervisor() -> Outcome {
    let fixture = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").start()?;
    for number in ["first", "second"] {
        let options = ["-f", "-xx", "-s", "16"];
        let trace = Strace::attach(&fixture.path().join(number), &options, &[fixture.supervisor_pid()])?;
        let upgrade = fixture.upgrade(&[])?;
        let lines = trace.lines()?;
        check(upgrade.committed(), format!("{number}: {upgrade:?}"))?;
        are_few(&lines, fixture.supervisor_pid()).map_err(|error| format!("{number}: {error}"))?;
    }
    Ok(())
}

fn are_few(lines: &[String], supervisor: u32) -> Outcome {
    let commit = lines.iter().position(|line| sends(line, 10)).ok_or("Commit was not seen on the wire")?;
    let thread = lines[commit].split(' ').next().unwrap_or_default();
    let service = supervisor.to_string();
    let by = |line: &str, task: &str| line.split(' ').next() == Some(task);
    let connect = lines.iter().position(|line| line.contains(" socket(")).ok_or("no connect was seen")?;
    let connects = |line: &str| by(line, &service) && [" socket(", " connect("].iter().any(|it| line.contains(it));
    let own: Vec<&String> = lines[connect..=commit].iter().filter(|line| by(line, thread) || connects(line)).collect();
    // The standard library looks at each descriptor that it closes, in builds with debug assertions. A signal is no call.
    let is_none =
        |line: &str| ["resumed>", " write(", " futex(", "F_GETFD", " --- "].iter().any(|it| line.contains(it));
    let calls = own.iter().filter(|line| !is_none(line));
    // The first is the look whether the incumbent lives.
    let waited_in_vain = own.iter().filter(|line| line.contains("ppoll") && line.contains("(Timeout)")).skip(1);
    let count = calls.count() - waited_in_vain.count();
    check(count <= CALLS_MAX, format!("{count} calls: {own:#?}"))?;

    // The child borrows the memory and the page tables, so a start costs the same however large this process is.
    let clone = own.iter().find(|line| line.contains(" clone(")).ok_or("no clone was seen")?;
    check(clone.contains("CLONE_VM") && clone.contains("CLONE_VFORK"), clone.as_str())
}
