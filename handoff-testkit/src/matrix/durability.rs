//! Whether an acknowledged write is on disk: between a request and its reply the daemon must sync. A process that is killed loses
//! nothing that the kernel has, so no crash shows a missing sync; strace(1) does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::settled::until;
use super::{Matrix, scene};
use crate::load::{Answer, Connection, next_token};

/// How many writes are looked at. They come one after the other, so each needs a sync of its own.
const WRITES: usize = 20;
/// The system calls by which data gets to the disk: those that sync, and those that open or write with the wish to.
const CALLS: &str = "trace=fsync,fdatasync,sync_file_range,msync,sync,syncfs,pwritev2,io_uring_enter";
/// Under strace everything takes its time.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the look came to.
#[derive(Debug)]
pub(super) enum Found {
    /// A sync for each write, or more.
    Synced,
    Problem(String),
    /// Nobody could look.
    NotChecked(String),
}

/// Starts a service, writes to it, and counts the syncs.
pub(super) fn look(matrix: &Matrix) -> io::Result<Found> {
    if !matrix.subject.syncs() {
        return Ok(Found::NotChecked("the daemon syncs by no system call of its own".to_owned()));
    }
    let mut fixture = scene::setup(&*matrix.subject)?.start()?;
    let file = fixture.path().join("syncs");
    let strace = match Strace::attach(&file, fixture.incumbent_pid()?)? {
        Ok(strace) => strace,
        Err(missing) => return Ok(Found::NotChecked(missing)),
    };
    let endpoint = fixture.endpoint(matrix.subject.listener())?;
    for _ in 0..WRITES {
        let (mut connection, _) = Connection::open(&endpoint, PATIENCE)?;
        let answer = matrix.subject.write(&mut connection, next_token())?;
        if !matches!(answer, Answer::Done | Answer::DoneAndLeaving) {
            return Ok(Found::Problem(format!("a write was answered {answer:?}")));
        }
    }
    let syncs = strace.count()?;
    fixture.stop()?;
    Ok(match syncs {
        syncs if syncs >= WRITES => Found::Synced,
        syncs => Found::Problem(format!(
            "{WRITES} writes were acknowledged one after the other, with {syncs} syncs: what is acknowledged is not on disk"
        )),
    })
}

/// strace on all threads of a process.
struct Strace {
    child: Child,
    file: PathBuf,
}

impl Strace {
    fn attach(file: &Path, pid: u32) -> io::Result<Result<Self, String>> {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", CALLS, "-e", "signal=none", "-o"]).arg(file).args(["-p", &pid.to_string()]);
        let Ok(child) = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn() else {
            return Ok(Err("strace is not installed".to_owned()));
        };
        let mut strace = Self { child, file: file.to_owned() };
        // It stops a process to take hold of it; from then on the process has a tracer (proc_pid_status(5)).
        let has_ended = until("strace has taken hold", || {
            let ended = strace.child.try_wait()?.is_some();
            Ok(if ended || is_traced(pid) { Ok(ended) } else { Err("not yet") })
        })?;
        Ok(if has_ended { Err("strace may not trace here".to_owned()) } else { Ok(strace) })
    }

    /// Lets go, and counts the calls that were made.
    fn count(mut self) -> io::Result<usize> {
        // A strace that is asked to stop waits for ever for a process that is ending. The kernel lets go of a tracer's
        // processes when the tracer dies (ptrace(2)), and each line is in the file by then.
        self.child.kill()?;
        self.child.wait()?;
        let text = fs::read_to_string(&self.file)?;
        // A call that another thread interrupts is told in two lines.
        Ok(text.lines().filter(|line| line.contains('(') && !line.contains("resumed>")).count())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether every thread of the process has a tracer.
fn is_traced(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut traced = tasks.map(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    });
    traced.all(|traced| traced)
}
