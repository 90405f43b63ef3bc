//! System calls of a handover, counted by strace(1) on the real processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use handoff_testkit::fixture::{Fixture, Setup};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Outcome, check, trials};

trials![no_sync_between_drained_and_ready];

/// The calls that wait for a disk.
const SYNCS: [&str; 6] = ["fsync(", "fdatasync(", "sync_file_range(", "syncfs(", "sync(", "msync("];

/// strace on the processes of a fixture, and on all that they start.
struct Trace {
    strace: Child,
    file: PathBuf,
    /// strace goes on talking, and would die of a closed pipe.
    _said: BufReader<ChildStderr>,
}

impl Trace {
    /// `None`, said aloud, where strace is missing or may not trace.
    fn of(fixture: &Fixture) -> std::io::Result<Option<Self>> {
        let file = fixture.path().join("trace");
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-xx",
            "-s",
            "16",
            "-e",
            "trace=fsync,fdatasync,sync_file_range,syncfs,sync,msync,%network",
        ]);
        command.arg("-o").arg(&file).stdin(Stdio::null()).stderr(Stdio::piped());
        let pids = fixture.processes();
        for pid in &pids {
            command.args(["-p", &pid.to_string()]);
        }
        let Ok(mut strace) = command.spawn() else {
            println!("skipped: strace is not installed");
            return Ok(None);
        };
        // One line for each process that it has taken hold of.
        let mut said = BufReader::new(strace.stderr.take().expect("stderr is piped"));
        let mut attached = 0;
        let mut line = String::new();
        while said.read_line(&mut line)? > 0 {
            attached += usize::from(line.contains("attached"));
            if attached >= pids.len() {
                return Ok(Some(Self { strace, file, _said: said }));
            }
            line.clear();
        }
        strace.wait()?;
        println!("skipped: strace may not trace here");
        Ok(None)
    }

    /// Lets go of the processes, and gives the lines that were seen.
    fn lines(mut self) -> std::io::Result<Vec<String>> {
        let pid = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::INT)?;
        self.strace.wait()?;
        read_lines(&self.file)
    }
}

fn read_lines(file: &Path) -> std::io::Result<Vec<String>> {
    Ok(fs::read_to_string(file)?.lines().map(str::to_owned).collect())
}

/// Whether the line sends a frame of version 2 with the message of this number in front.
fn sends(line: &str, message: u8) -> bool {
    let body = format!("\\x00\\x00\\x02\\x00\\x{message:02x}");
    line.contains("send") && line.contains(&body)
}

fn no_sync_between_drained_and_ready() -> Outcome {
    let fixture = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").start()?;
    let Some(trace) = Trace::of(&fixture)? else {
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
