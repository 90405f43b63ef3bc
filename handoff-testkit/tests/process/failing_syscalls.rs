//! Every system call of a handover fails once, and every process is killed at every one of its calls, by strace(1) on
//! processes that know nothing of it.
//!
//! A *site* is the n-th call of one name in one thread, counted from the moment at which strace takes hold: just before the
//! order to hand over for supervisor and incumbent, at its start for the successor. Where a role has several threads under
//! strace, each counts for itself, so a name that two threads use fails in both.
//!
//! The normal run takes the first and the last site of each name; the ignored trials take all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use handoff_testkit::load::Cost;
use libtest_mimic::Trial;
use rustix::process::kill_process;

use crate::skip::{self, Need};
use crate::stage::{CLIENTS, Stage, within_patience};
use crate::strace::{LET_GO, Strace, is_dead, lines_of, sends};
use crate::{Outcome, check};

/// The number of Ready on the wire.
const READY: u8 = 9;

/// Which threads are under strace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The service's loop alone.
    SupervisorLoop,
    /// All of its threads. Its children are let go as they become programs.
    Supervisor,
    /// The loop that answers on the control socket, and the thread that runs drain and seal. Either may take an order.
    Incumbent,
    /// All of it from its start until it is ready.
    Successor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The error that fits the call best.
    Error,
    /// A signal came in the middle of it.
    Interrupted,
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    FirstAndLast,
    Every,
}

const ROLES: [(Role, &str); 4] = [
    (Role::SupervisorLoop, "supervisor_loop"),
    (Role::Supervisor, "supervisor"),
    (Role::Incumbent, "incumbent"),
    (Role::Successor, "successor"),
];
const FAULTS: [(Fault, &str); 3] =
    [(Fault::Error, "fails"), (Fault::Interrupted, "is_interrupted"), (Fault::Killed, "is_killed")];

pub(crate) fn all() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (role, role_name) in ROLES {
        for (fault, fault_name) in FAULTS {
            let trial = |name: String, extent| skip::trial(name, move || break_all(role, fault, extent));
            // What it would show in a short run, all of the supervisor's threads show too.
            if role != Role::SupervisorLoop {
                trials.push(trial(format!("failing_syscalls::{role_name}_{fault_name}"), Extent::FirstAndLast));
            }
            let every = format!("failing_syscalls::{role_name}_{fault_name}_at_every_site");
            trials.push(trial(every, Extent::Every).with_ignored_flag(true));
        }
    }
    trials
}

/// The error that this call may give on a healthy system that is out of something; none for a call that can't fail.
///
/// strace does not let the kernel see a call that it fails. So `close` is not among them: it closes whatever it says. Nor is
/// memory: Rust's runtime ends a process that gets none, which is a death like any other. `getrandom` fails on no system that
/// has started (getrandom(2)).
fn error_of(call: &str) -> Option<&'static str> {
    Some(match call {
        "open" | "openat" | "socket" | "socketpair" | "eventfd2" | "pidfd_open" | "accept4" | "inotify_init1"
        | "dup2" | "dup3" | "fcntl" | "epoll_create1" | "signalfd4" => "EMFILE",
        "ppoll" | "poll" | "recvmsg" | "execveat" | "ioctl" => "ENOMEM",
        "sendmsg" | "sendto" | "recvfrom" | "getsockopt" | "setsockopt" | "getsockname" | "listen" => "ENOBUFS",
        "clone" | "clone3" | "connect" => "EAGAIN",
        "write" | "pwrite64" | "ftruncate" | "rename" | "renameat" | "renameat2" | "mkdir" | "bind" | "linkat"
        | "inotify_add_watch" | "fallocate" => "ENOSPC",
        "read" | "pread64" | "fsync" | "fdatasync" | "lseek" | "statx" | "fstat" | "newfstatat" | "fstatfs"
        | "unlink" | "chmod" | "fchmod" | "access" | "getdents64" | "readlink" | "shutdown" | "pidfd_send_signal" => {
            "EIO"
        }
        "flock" => "ENOLCK",
        _ => return None,
    })
}

/// Calls that a signal may interrupt (signal(7)). They say EINTR, and the caller tries again.
fn is_interruptible(call: &str) -> bool {
    matches!(
        call,
        "read"
            | "write"
            | "pread64"
            | "pwrite64"
            | "ppoll"
            | "poll"
            | "recvmsg"
            | "sendmsg"
            | "recvfrom"
            | "sendto"
            | "accept4"
            | "connect"
            | "openat"
            | "open"
            | "flock"
            | "fdatasync"
            | "fsync"
            | "waitid"
            | "ftruncate"
    )
}

/// strace runs the successor's program itself, and a process that ends is not to be ended.
fn is_breakable(call: &str) -> bool {
    !matches!(call, "execve" | "exit" | "exit_group" | "restart_syscall" | "rt_sigreturn")
}

impl Fault {
    /// What strace is told to do to the n-th call of this name; none where it would mean nothing.
    fn injection(self, call: &str, nth: usize) -> Option<String> {
        let what = match self {
            Self::Error => format!("error={}", error_of(call)?),
            Self::Interrupted => is_interruptible(call).then_some("error=EINTR")?.to_owned(),
            Self::Killed => "signal=SIGKILL".to_owned(),
        };
        is_breakable(call).then(|| format!("inject={call}:{what}:when={nth}"))
    }

    fn has_fired(self, lines: &[String]) -> bool {
        let sign = if self == Self::Killed { "killed by SIGKILL" } else { "(INJECTED)" };
        lines.iter().any(|line| line.contains(sign))
    }
}

/// How often each call is made, by the thread that makes it most often.
type Counts = BTreeMap<String, usize>;

fn count(lines: &[String]) -> Counts {
    let mut by_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in lines {
        let Some((head, _)) = line.split_once('(') else { continue };
        let (thread, call) = head.rsplit_once(' ').unwrap_or(("", head));
        let is_name = !call.is_empty() && call.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
        if is_name && thread.bytes().all(|it| it.is_ascii_digit() || it == b' ') {
            *by_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut counts = Counts::new();
    for ((_, call), count) in by_thread {
        let most = counts.entry(call.to_owned()).or_default();
        *most = count.max(*most);
    }
    counts
}

fn of_the_thread_that_is_ready(lines: &[String]) -> Vec<String> {
    let thread = |line: &String| line.split_once(' ').map(|(thread, _)| thread.to_owned());
    let ready = lines.iter().find(|line| sends(line, READY)).and_then(thread);
    lines.iter().filter(|line| thread(line) == ready).cloned().collect()
}

fn sites(counts: &Counts, extent: Extent) -> Vec<(&str, usize)> {
    let nths = |most: usize| match extent {
        Extent::FirstAndLast if most > 1 => vec![1, most],
        Extent::FirstAndLast | Extent::Every => (1..=most).collect(),
    };
    counts.iter().flat_map(|(call, most)| nths(*most).into_iter().map(move |nth| (call.as_str(), nth))).collect()
}

/// Breaks one site after the other, in one service, and asks after each what must hold.
fn break_all(role: Role, fault: Fault, extent: Extent) -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let seen = hand_over(&stage, role, &["-e", "trace=all"])?;
    check(seen.upgrade.committed(), format!("strace alone changes nothing: {:?}", seen.upgrade))?;
    let counts = match role {
        // The store's own threads serve before Ready is said; a sync of theirs that fails is the store's affair, which
        // rightly acknowledges nothing any more.
        Role::Successor => count(&of_the_thread_that_is_ready(&seen.lines)),
        Role::SupervisorLoop | Role::Supervisor | Role::Incumbent => count(&seen.lines),
    };
    stage.hands_over()?;
    let (mut tried, mut fired) = (0, 0);
    let mut wrong = Vec::new();
    for (call, nth) in sites(&counts, extent) {
        let Some(injection) = fault.injection(call, nth) else { continue };
        tried += 1;
        let log_before = stage.fixture.log().len();
        match break_one(&mut stage, role, fault, call, &injection) {
            Ok(has_fired) => fired += usize::from(has_fired),
            Err(error) => {
                let mut log = stage.fixture.log().split_off(log_before);
                log = log.lines().filter(|line| !line.contains(" INFO ")).collect::<Vec<_>>().join("\n");
                wrong.push(format!("{injection}: {error}\n{log}"));
                // What is left of it is nobody's measure for the next.
                stage = Stage::start(Stage::setup()?)?;
            }
        }
    }
    println!("{role:?}, {fault:?}: {fired} of {tried} sites were reached, {} went wrong", wrong.len());
    check(wrong.is_empty(), wrong.join("\n\n"))?;
    check(2 * fired >= tried, format!("only {fired} of {tried} sites were reached"))?;
    stage.finish()
}

/// One handover with one fault in it; whether it fired.
fn break_one(
    stage: &mut Stage,
    role: Role,
    fault: Fault,
    call: &str,
    injection: &str,
) -> Result<bool, Box<dyn std::error::Error>> {
    let trace = format!("trace={call}");
    let before = stage.counts();
    // It could a moment ago: that it can't any more is no reason to skip.
    let seen = hand_over(stage, role, &["-e", &trace, "-e", injection]).map_err(|error| error.to_string())?;
    let upgrade = &seen.upgrade;
    let has_fired = fault.has_fired(&seen.lines);
    has_a_clear_end(upgrade)?;
    // The loader of programs is not ours, and gives up on the first interrupted call.
    if fault == Fault::Interrupted && role != Role::Successor {
        check(upgrade.committed(), format!("an interrupted call changes nothing: {upgrade:?}"))?;
    }
    if is_dead(stage.fixture.supervisor_pid()) {
        check(has_fired && fault == Fault::Killed, "the supervisor has ended")?;
        stage.restart_supervisor()?;
    }
    stage.serves().map_err(|error| format!("{error}; {upgrade:?}"))?;
    stage.is_tidy().map_err(|error| format!("{error}; {upgrade:?}"))?;
    stage.hands_over()?;
    stage.charge(&before, cost(role, fault)).map_err(|error| format!("{error}; {upgrade:?}"))?;
    Ok(has_fired)
}

/// What it may cost the clients: nothing, whatever happens to the supervisor. A daemon's own call for a client may be the one that fails, and
/// then the store refuses to write until another process has opened it.
fn cost(role: Role, fault: Fault) -> Cost {
    match (role, fault) {
        (Role::Supervisor | Role::SupervisorLoop, _) | (_, Fault::Interrupted) => Cost::NOTHING,
        (Role::Incumbent | Role::Successor, Fault::Killed) => Cost::connections(CLIENTS as u64),
        (Role::Incumbent | Role::Successor, Fault::Error) => {
            Cost { rejected: u64::MAX, ..Cost::connections(CLIENTS as u64) }
        }
    }
}

/// Committed, aborted or refused, with one line that says why.
fn has_a_clear_end(upgrade: &handoff_testkit::fixture::Upgrade) -> Outcome {
    let said = upgrade.stderr.trim_end();
    match upgrade.code {
        Some(0) => check(upgrade.outcome.as_ref().is_some_and(|it| it["committed"] == true), format!("{upgrade:?}")),
        Some(2 | 3) => check(!said.is_empty() && !said.contains('\n'), format!("one line says why: {upgrade:?}")),
        _ => Err(format!("an exit code is 0, 2 or 3: {upgrade:?}").into()),
    }
}

struct Seen {
    upgrade: handoff_testkit::fixture::Upgrade,
    lines: Vec<String>,
}

/// A handover with `role` under strace.
fn hand_over(stage: &Stage, role: Role, options: &[&str]) -> Result<Seen, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    let file = stage.fixture.path().join("trace");
    let daemon = stage.fixture.incumbent_pid()?;
    let (more, threads): (&[&str], Vec<u32>) = match role {
        Role::SupervisorLoop => (&[], vec![stage.fixture.supervisor_pid()]),
        Role::Supervisor => (&["-f", "-b", "execve"], vec![stage.fixture.supervisor_pid()]),
        Role::Incumbent => (&[], vec![daemon, hooks_thread_of(daemon)?]),
        Role::Successor => return hand_over_to_a_traced(stage, &program, options),
    };
    let strace = Strace::attach(&file, &[more, options].concat(), &threads)?;
    let upgrade = stage.upgrade(&[&program])?;
    // The client may have left early. strace can't let go of a thread that waits for its child's exec, and a call that it lets
    // go of in the middle of failing it fails in another way. So the end of all that is under way is awaited.
    let supervisor = stage.fixture.supervisor_pid();
    let is_over = || {
        is_dead(supervisor)
            || (thread_named(supervisor, "handover").is_none_or(|worker| waits_for_a_thread(supervisor, worker))
                && stage.family().len() == 2
                && threads.iter().all(|thread| is_asleep(*thread)))
    };
    check(within_patience(is_over), "the handover ends")?;
    Ok(Seen { upgrade, lines: strace.lines()? })
}

fn hooks_thread_of(daemon: u32) -> Result<u32, Box<dyn std::error::Error>> {
    let mut found = None;
    within_patience(|| {
        found = thread_named(daemon, "handoff");
        found.is_some()
    });
    found.ok_or_else(|| format!("daemon {daemon} has no thread for its hooks").into())
}

/// Whether this thread is given what it waits for by another thread: the supervisor's worker is, when it has no order.
fn waits_for_a_thread(pid: u32, thread: u32) -> bool {
    let waits_in = fs::read_to_string(format!("/proc/{pid}/task/{thread}/wchan")).unwrap_or_default();
    waits_in.starts_with("futex")
}

/// Or gone.
fn is_asleep(thread: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['S', 'Z', 'X']))
}

fn thread_named(pid: u32, name: &str) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let is_named = |comm: String| comm.trim_end() == name;
    let mut named = tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(is_named));
    named.next()?.file_name().to_str()?.parse().ok()
}

/// The successor is a script that becomes the program, with a strace beside it: once, and plainly ever after.
fn hand_over_to_a_traced(stage: &Stage, program: &str, options: &[&str]) -> Result<Seen, Box<dyn std::error::Error>> {
    let path = |name: &str| -> PathBuf { stage.fixture.path().join(name) };
    let (script, file, used) = (path("traced"), path("trace"), path("used"));
    let _ = fs::remove_file(&used);
    let _ = fs::remove_file(&file);
    // Its file must not be open for writing when it is started: the traced one of the last handover may just start a child.
    let strace = format!("strace -D -I 2 -f -xx -s 16 -o '{}' {}", file.display(), options.join(" "));
    let text = format!(
        "#!/bin/sh\n[ -e '{used}' ] && exec '{program}' \"$@\"\n: > '{used}'\nexec {strace} '{program}' \"$@\"\n",
        used = used.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    let upgrade = stage.upgrade(&[&script.to_string_lossy()])?;
    // It counts for each thread, and would strike again when this process is the incumbent of the next handover.
    let is_gone = || stage.straces().into_iter().filter(|strace| kill_process(*strace, LET_GO).is_ok()).count() == 0;
    check(within_patience(is_gone), "strace lets go")?;
    let Ok(mut lines) = lines_of(&file) else {
        return Err(skip::without(Need::Strace, "strace is not installed, or may not trace here"));
    };
    if let Some(ready) = lines.iter().position(|line| sends(line, READY)) {
        lines.truncate(ready + 1);
    }
    Ok(Seen { upgrade, lines })
}
