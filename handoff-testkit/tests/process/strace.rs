//! strace(1) on the real processes: sees their system calls, and makes chosen ones fail.
//!
//! Where strace is missing or may not trace, the error is that the test is skipped.

use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::skip::{self, Need};
use crate::stage::within_patience;

/// What makes a strace let go of its processes at once, whatever they are about.
///
/// Any other signal asks it to wait for each process to stop. It waits for ever for one that is ending, whose last thread
/// waits in turn for strace to look at it: a dead process that nobody can be told of. The kernel lets go of a tracer's
/// processes when the tracer dies (ptrace(2)); what strace saw is in its file by then, it writes whole lines.
pub(crate) const LET_GO: Signal = Signal::KILL;

/// A strace that has taken hold of its processes.
pub(crate) struct Strace {
    strace: Child,
    file: PathBuf,
    pids: Vec<u32>,
    /// strace goes on talking, and would die of a closed pipe.
    _said: BufReader<ChildStderr>,
}

impl Strace {
    /// Takes hold of these processes, or single threads if `options` don't say `-f`; what is seen goes to `file`.
    pub(crate) fn attach<S: AsRef<OsStr>>(file: &Path, options: &[S], pids: &[u32]) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new("strace");
        command.args(options).arg("-o").arg(file).stdin(Stdio::null()).stderr(Stdio::piped());
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let Ok(mut strace) = command.spawn() else {
            return Err(skip::without(Need::Strace, "strace is not installed"));
        };
        // One line for each process that it has taken hold of.
        let mut said = BufReader::new(strace.stderr.take().expect("stderr is piped"));
        let (mut attached, mut line) = (0, String::new());
        while said.read_line(&mut line)? > 0 {
            attached += usize::from(line.contains("attached"));
            if attached >= pids.len() {
                return Ok(Self { strace, file: file.to_owned(), pids: pids.to_vec(), _said: said });
            }
            line.clear();
        }
        strace.wait()?;
        Err(skip::without(Need::Strace, "strace may not trace here"))
    }

    /// Lets go of the processes, and gives the lines that were seen.
    pub(crate) fn lines(mut self) -> io::Result<Vec<String>> {
        let pid = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw).expect("a pid");
        // Of the dead it must yet tell, and then it ends by itself.
        if !self.pids.iter().all(|pid| is_dead(*pid)) {
            kill_process(pid, LET_GO)?;
        }
        if !within_patience(|| self.strace.try_wait().is_ok_and(|ended| ended.is_some())) {
            self.strace.kill()?;
            self.strace.wait()?;
            return Err(io::Error::other("strace does not let go"));
        }
        lines_of(&self.file)
    }
}

/// Whether this process, or thread, is gone or a zombie.
pub(crate) fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

/// The lines that a strace has written so far.
pub(crate) fn lines_of(file: &Path) -> io::Result<Vec<String>> {
    Ok(fs::read_to_string(file)?.lines().map(str::to_owned).collect())
}

/// Whether the line, of a strace with `-xx`, sends a frame of version 2 with the message of this number in front.
pub(crate) fn sends(line: &str, message: u8) -> bool {
    let body = format!("\\x00\\x00\\x02\\x00\\x{message:02x}");
    line.contains("send") && line.contains(&body)
}
