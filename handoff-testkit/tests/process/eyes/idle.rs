//! What a service costs while nothing happens: the supervisor wakes up once in an interval of the watchdog, which strace(1) counts, and
//! never without one; no thread of the daemon has a timer, which proc(5) tells. No time is waited for: what is measured is how long
//! they slept.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use handoff_testkit::fixture::Fixture;

use super::{Result, committed, history_with_retire, shards};
use crate::skip::{self, Need};
use crate::{Outcome, check};

/// Long enough to be told from everything else that happens, and longer than the shortest that is accepted.
const WATCHDOG: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

/// strace on one process.
struct Trace {
    strace: Child,
    file: PathBuf,
    /// strace goes on talking, and would die of a closed pipe.
    _said: BufReader<ChildStderr>,
}

impl Trace {
    fn of(fixture: &Fixture, pid: u32) -> Result<Self> {
        let file = fixture.path().join("idle");
        let mut command = Command::new("strace");
        command.args(["-f", "-ttt", "-o"]).arg(&file).args(["-p", &pid.to_string()]);
        let Ok(mut strace) = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn() else {
            return Err(skip::without(Need::Strace, "strace is not installed"));
        };
        let mut said = BufReader::new(strace.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        while said.read_line(&mut line)? > 0 {
            if line.contains("attached") {
                return Ok(Self { strace, file, _said: said });
            }
            line.clear();
        }
        strace.wait()?;
        Err(skip::without(Need::Strace, "strace may not trace here"))
    }

    /// Waits until it has woken up so often, and gives when that was, in seconds.
    fn wake_ups(&self, count: usize) -> Result<Vec<f64>> {
        let until = Instant::now() + PATIENCE;
        loop {
            let woken = wake_ups(&fs::read_to_string(&self.file)?);
            if woken.len() >= count {
                return Ok(woken);
            }
            check(Instant::now() < until, format!("it does not wake up {count} times: {woken:?}"))?;
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// When a poll(2) returned, in lines such as `PID SECONDS.FRACTION ppoll([…], N, TIMEOUT, NULL, 8) = RESULT`.
fn wake_ups(trace: &str) -> Vec<f64> {
    let woken = |line: &str| {
        let (_, rest) = line.split_once(' ')?;
        let (at, call) = rest.trim_start().split_once(' ')?;
        let at_s: f64 = at.parse().ok()?;
        // The time is that of the call, or of its second half; how long it slept shows in the next one.
        (call.contains("poll") && call.contains(" = ")).then_some(at_s)
    };
    trace.lines().filter_map(woken).collect()
}

/// A thread as it sleeps: the number of its system call and the arguments (proc_pid_syscall(5)). `None`: it runs, or waits for the
/// disk.
fn asleep(task: &Path) -> std::io::Result<Option<Vec<u64>>> {
    let text = fs::read_to_string(task.join("syscall"))?;
    if text.split_whitespace().next() == Some(&libc::SYS_fdatasync.to_string()) {
        return Ok(None);
    }
    let number = |field: &str| match field.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => field.parse().ok(),
    };
    Ok(text.split_whitespace().map(number).collect())
}

/// Waits until every thread of the process sleeps, and gives the calls in which they do.
fn all_asleep(pid: u32) -> Result<Vec<Vec<u64>>> {
    let until = Instant::now() + PATIENCE;
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.collect::<std::io::Result<Vec<_>>>()?;
        let calls = tasks.iter().map(|task| asleep(&task.path())).collect::<std::io::Result<Option<Vec<_>>>>()?;
        if let Some(calls) = calls {
            return Ok(calls);
        }
        check(Instant::now() < until, format!("process {pid} does not come to rest"))?;
        std::thread::yield_now();
    }
}

/// Whether a call ends by itself: ppoll(2) and futex(2) with a timeout. Any other call is none to sleep in.
fn has_timer(call: &[u64]) -> Result<bool> {
    let number = call.first().and_then(|number| i64::try_from(*number).ok()).unwrap_or_default();
    match number {
        libc::SYS_ppoll => Ok(call[3] != 0),
        libc::SYS_futex => Ok(call[4] != 0),
        // What a thread waits for in a read has no timer.
        libc::SYS_read | libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_accept4 => Ok(false),
        other => Err(format!("a thread sleeps in system call {other}").into()),
    }
}

/// A service when all that a handover sets in motion has come to rest.
fn at_rest(watchdog: &str) -> Result<Fixture> {
    let fixture = shards::setup()?.config("probation = \"0s\"").config(watchdog).start()?;
    committed(&fixture)?;
    history_with_retire(&fixture)?;
    Ok(fixture)
}

pub(super) fn an_idle_supervisor_wakes_up_once_in_an_interval() -> Outcome {
    let fixture = at_rest(&format!("watchdog = \"{}s\"", WATCHDOG.as_secs()))?;
    let trace = Trace::of(&fixture, fixture.supervisor_pid())?;
    let woken = trace.wake_ups(5)?;
    // The first ones may be strace's own doing, and what was still under way when it came.
    let slept: Vec<f64> = woken.windows(2).map(|pair| pair[1] - pair[0]).skip(2).collect();
    let whole = slept.iter().all(|slept_s| *slept_s >= 0.95 * WATCHDOG.as_secs_f64());
    check(whole, format!("it sleeps for a whole interval each time: {woken:?}"))
}

pub(super) fn an_idle_daemon_has_no_timer() -> Outcome {
    let mut fixture = at_rest("watchdog = \"10s\"")?;
    let daemon = fixture.incumbent_pid()?;
    // The session in which it is watched has begun when its heartbeat was answered.
    let until = Instant::now() + PATIENCE;
    loop {
        let calls = all_asleep(daemon)?;
        let armed = calls.iter().map(|call| has_timer(call)).collect::<Result<Vec<_>>>()?;
        if !armed.contains(&true) {
            break;
        }
        check(Instant::now() < until, format!("no thread of the daemon has a timer: {calls:?}"))?;
    }
    fixture.kill_supervisor()?;
    let calls = all_asleep(daemon)?;
    check(calls.iter().all(|call| matches!(has_timer(call), Ok(false))), format!("nor without a supervisor: {calls:?}"))
}

pub(super) fn without_a_watchdog_nobody_wakes_up() -> Outcome {
    let fixture = at_rest("watchdog = \"off\"")?;
    for pid in [fixture.supervisor_pid(), fixture.incumbent_pid()?] {
        let until = Instant::now() + PATIENCE;
        loop {
            let calls = all_asleep(pid)?;
            if calls.iter().map(|call| has_timer(call)).collect::<Result<Vec<_>>>()?.iter().all(|armed| !armed) {
                break;
            }
            check(Instant::now() < until, format!("process {pid} sleeps without a timer: {calls:?}"))?;
        }
    }
    Ok(())
}
