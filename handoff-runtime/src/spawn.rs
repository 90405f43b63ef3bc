//! Starting a daemon: the successor of a handover, or the first one.
//!
//! The program that runs is the file that was opened and looked at, whatever happens to its path meanwhile (scripts are the
//! exception: their interpreter opens the path). It finds its listeners from descriptor 3 on, then its channels, and
//! nothing else of ours; its signal handlers and mask are fresh; `LISTEN_PID` is its own pid.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::retry_on_intr;
use rustix::process::{Resource, getrlimit};

use crate::environment::{
    HANDOFF_DATA_DIR_ID, HANDOFF_ROLE, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, ROLE_SUCCESSOR, VARIABLES,
};
use crate::error::{Error, Result};
use crate::listeners::check_name;
use crate::process::Process;
use crate::sys::spawn::{FIRST_FD, Order, Step, start};

/// Starts `binary` and returns when it has replaced the child; its arguments show in `/proc` a moment later.
///
/// `args` come behind the program's own name. `env` is added to this process's environment. With `channels`, each
/// of which is told by a variable of that name, the program is a successor.
///
/// # Errors
/// [`Error::CannotStart`] names the binary and says why. Nothing is left of it then.
pub(crate) fn spawn(
    binary: &Path,
    args: &[OsString],
    env: &[(OsString, OsString)],
    listeners: &[(String, BorrowedFd<'_>)],
    channels: &[(&str, BorrowedFd<'_>)],
) -> Result<Process> {
    listeners.iter().try_for_each(|(name, _)| check_name(name))?;
    let failed = |reason: String, source| Error::CannotStart { binary: binary.to_owned(), reason, source };

    let path = find(binary);
    let program = open(&path).map_err(|source| failed(why_not_opened(&source), source))?;
    let fds: Vec<_> = listeners.iter().map(|&(_, fd)| fd).chain(channels.iter().map(|&(_, fd)| fd)).collect();
    let texts = texts_for(&path, args, environment_for(env, listeners, channels));
    let texts = texts.map_err(|source| failed("its path, arguments or environment hold a zero byte".into(), source))?;

    let order = Order {
        binary: program.as_fd(),
        path: &texts.path,
        args: &texts.args,
        env: &texts.env,
        pid_variable: LISTEN_PID,
        fds: &fds,
    };
    let started = start(&order).map_err(|(step, source)| match (step, check(&program)) {
        (Step::Exec, Err(source)) => failed(why_not_opened(&source), source),
        (_, _) => failed(why_not_started(step, &source, fds.len()), source),
    })?;
    Process::started(started)
}

/// As a shell does: a name without a slash is looked up in `PATH`.
fn find(binary: &Path) -> PathBuf {
    let search = env::var_os("PATH").filter(|_| !binary.as_os_str().as_bytes().contains(&b'/'));
    let mut candidates = search.iter().flat_map(|search| env::split_paths(search)).map(|dir| dir.join(binary));
    candidates.find(|path| path.is_file()).unwrap_or_else(|| binary.to_owned())
}

/// Pins the file. O_PATH, because a program may be executable and not readable.
fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(retry_on_intr(|| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))?)
}

/// What the system does not say of a file that it did not execute.
fn check(program: &OwnedFd) -> io::Result<()> {
    let file = fstat(program)?;
    match FileType::from_raw_mode(file.st_mode) {
        FileType::RegularFile if file.st_mode & 0o111 == 0 => {
            Err(io::Error::new(ErrorKind::PermissionDenied, "it is not executable; chmod +x it"))
        }
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// The environment of the program without `LISTEN_PID`, which it writes by itself.
fn environment_for(
    added: &[(OsString, OsString)],
    listeners: &[(String, BorrowedFd<'_>)],
    channels: &[(&str, BorrowedFd<'_>)],
) -> Vec<(OsString, OsString)> {
    let is_ours = |name: &OsStr| VARIABLES.iter().any(|variable| name == *variable);
    let is_added = |name: &OsStr| added.iter().any(|(added, _)| added == name);
    // Who sets it adds it: one that is inherited is of a service around this one.
    let is_told = |name: &OsStr| name == HANDOFF_DATA_DIR_ID;
    let inherited = env::vars_os().filter(|(name, _)| !is_ours(name) && !is_added(name) && !is_told(name));
    let mut environment: Vec<_> = inherited.collect();
    environment.extend(added.iter().filter(|(name, _)| !is_ours(name)).cloned());

    let names: Vec<_> = listeners.iter().map(|(name, _)| name.as_str()).collect();
    let mut set = |name: &str, value: String| environment.push((name.into(), value.into()));
    set(LISTEN_FDS, names.len().to_string());
    set(LISTEN_FDNAMES, names.join(":"));
    if !channels.is_empty() {
        set(HANDOFF_ROLE, ROLE_SUCCESSOR.into());
    }
    for (at, (variable, _)) in channels.iter().enumerate() {
        set(variable, (FIRST_FD as usize + names.len() + at).to_string());
    }
    environment
}

/// What the program gets, in the form that the system wants.
struct Texts {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn texts_for(path: &Path, args: &[OsString], env: Vec<(OsString, OsString)>) -> io::Result<Texts> {
    let program = path.as_os_str();
    let all_args = [program].into_iter().chain(args.iter().map(OsString::as_os_str));
    let all_env = env.into_iter().map(|(name, value)| {
        let mut entry = name.into_vec();
        // With room for the zero that follows.
        entry.reserve_exact(value.len() + 2);
        entry.push(b'=');
        entry.extend_from_slice(value.as_bytes());
        CString::new(entry)
    });
    Ok(Texts {
        path: CString::new(program.as_bytes())?,
        args: all_args.map(|arg| CString::new(arg.as_bytes())).collect::<std::result::Result<_, _>>()?,
        env: all_env.collect::<std::result::Result<_, _>>()?,
    })
}

/// The usual reason: the highest of them, and those that must be moved on the way, have no number left.
fn limit_of_files() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or_else(String::new, |limit| format!(" with a limit of {limit} open files (ulimit -n, LimitNOFILE=)"))
}

fn why_not_opened(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".into(),
        ErrorKind::IsADirectory => "it is a directory".into(),
        _ => error.to_string(),
    }
}

fn why_not_started(step: Step, error: &io::Error, fd_count: usize) -> String {
    match (step, error.raw_os_error()) {
        (Step::Clone, Some(libc::EAGAIN)) => "the limit of processes is reached (ulimit -u, TasksMax=)".into(),
        (Step::Clone, Some(libc::EMFILE | libc::ENFILE)) => "the limit of open files is reached (ulimit -n)".into(),
        (Step::Clone, _) => format!("no new process: {error}"),
        (Step::ReadStat, _) => {
            format!("its start time can't be read from /proc/self/stat{}: {error}", limit_of_files())
        }
        (Step::PlaceFds, _) => format!("{fd_count} descriptors can't be passed to it{}: {error}", limit_of_files()),
        (Step::Exec, Some(libc::ENOENT)) => {
            "its interpreter, named in its first line or by its linker, is missing".into()
        }
        (Step::Exec, Some(libc::EACCES)) => {
            "permission denied: not executable for this user, or on a file system mounted noexec".into()
        }
        (Step::Exec, Some(libc::ENOEXEC)) => "it is no program for this machine, nor a script with a #! line".into(),
        (Step::Exec, Some(libc::ETXTBSY)) => "it is still being written; wait until it is complete".into(),
        (Step::Exec, Some(libc::E2BIG)) => "its arguments, environment or listener names are too long".into(),
        (Step::Exec, _) => format!("it can't be executed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, ExitStatus};

    use super::*;
    use crate::environment::HANDOFF_SOCK_FD;
    use crate::testing::{open_fds, run_alone, with_free_fds};

    const SH: &str = "/bin/sh";

    /// Runs a shell script with these listeners and channel, and gives what it wrote and how it ended.
    fn run_script(script: &str, listeners: &[(String, BorrowedFd<'_>)], with_control: bool) -> (String, ExitStatus) {
        let (control, _kept) = UnixStream::pair().unwrap();
        // Its standard output is the test's own, so the script writes to a file.
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let args = ["-c".into(), format!("{{ {script} ; }} > {} 2>&1", out.display()).into()];
        let added =
            [("ADDED".into(), "value".into()), (LISTEN_PID.into(), "1".into()), (HANDOFF_ROLE.into(), "x".into())];
        let control = [(HANDOFF_SOCK_FD, control.as_fd())];
        let channels = if with_control { &control[..] } else { &[] };
        let mut process = spawn(Path::new(SH), &args, &added, listeners, channels).unwrap();
        let status = process.wait().unwrap().unwrap();
        (fs::read_to_string(&out).unwrap(), status)
    }

    fn tcp(count: usize) -> Vec<TcpListener> {
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect()
    }

    fn named(listeners: &[TcpListener]) -> Vec<(String, BorrowedFd<'_>)> {
        listeners.iter().enumerate().map(|(at, listener)| (format!("l{at}"), listener.as_fd())).collect()
    }

    fn target_of(fd: impl AsFd) -> String {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap().to_str().unwrap().to_owned()
    }

    /// A file with this content and mode in a directory of its own. Another process writes it: a child of another test
    /// would inherit our descriptor for a moment, and what is open for writing can't be executed.
    fn file(name: &str, content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (draft, path) = (dir.path().join("draft"), dir.path().join(name));
        fs::write(&draft, content).unwrap();
        copy(&draft, &path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn copy(from: &Path, to: &Path) {
        assert!(Command::new("cp").args([from, to]).status().unwrap().success());
    }

    fn why(binary: &Path) -> String {
        match spawn(binary, &[], &[], &[], &[]) {
            Err(Error::CannotStart { binary: named, reason, .. }) => {
                assert_eq!(named, binary);
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    /// Neither living nor waiting to be reaped.
    fn assert_no_children() {
        let child = rustix::process::waitid(rustix::process::WaitId::All, rustix::process::WaitIdOptions::EXITED);
        assert_eq!(child.unwrap_err(), rustix::io::Errno::CHILD);
    }

    #[test]
    fn listen_pid_is_the_programs_own() {
        let (out, status) = run_script("echo $LISTEN_PID $$ $LISTEN_FDS $ADDED ${HANDOFF_ROLE-none}", &[], false);
        let words: Vec<_> = out.split_whitespace().collect();
        assert_eq!(words[0], words[1]);
        assert_eq!(words[2..], ["0", "value", "none"]);
        assert!(status.success());
    }

    #[test]
    fn listeners_are_in_order_and_the_channel_is_behind_them() {
        let listeners = tcp(3);
        let script =
            "echo $LISTEN_FDNAMES $HANDOFF_ROLE $HANDOFF_SOCK_FD; for n in 3 4 5; do readlink /proc/$$/fd/$n; done";
        let (out, _) = run_script(script, &named(&listeners), true);
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines[0], "l0:l1:l2 successor 6");
        assert_eq!(lines[1..], listeners.iter().map(target_of).collect::<Vec<_>>());
    }

    #[test]
    fn more_than_a_thousand_listeners() {
        let listeners = tcp(1200);
        let mut reversed = named(&listeners);
        reversed.reverse();
        let (out, status) = run_script("echo $LISTEN_FDS; readlink /proc/$$/fd/3 /proc/$$/fd/1202", &reversed, true);
        let lines: Vec<_> = out.lines().collect();
        assert!(status.success());
        assert_eq!(lines, ["1200", &target_of(&listeners[1199]), &target_of(&listeners[0])]);
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn passes_what_sits_at_the_places() {
        let listeners = tcp(20);
        assert!(listeners.iter().any(|listener| listener.as_raw_fd() < FIRST_FD + 20));
        let mut reversed = named(&listeners);
        reversed.reverse();
        let before = open_fds();
        let (out, _) = run_script("for n in $(seq 3 22); do readlink /proc/$$/fd/$n; done", &reversed, true);
        assert_eq!(out.lines().collect::<Vec<_>>(), listeners.iter().rev().map(target_of).collect::<Vec<_>>());
        assert_eq!(open_fds(), before, "nothing is left open");
    }

    #[test]
    fn listeners_that_sit_at_each_others_places_are_placed_right() {
        run_alone("spawn::tests::passes_what_sits_at_the_places");
    }

    #[test]
    fn nothing_else_of_ours_is_open_in_it() {
        // Not close-on-exec, as a careless library leaves it.
        let leak = rustix::io::fcntl_dupfd_cloexec(fs::File::open("/dev/null").unwrap(), 50).unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let (out, _) = run_script("ls /proc/$$/fd", &named(&tcp(1)), true);
        let mut fds: Vec<i32> = out.split_whitespace().map(|fd| fd.parse().unwrap()).collect();
        fds.sort_unstable();
        // A shell keeps the standard output that it replaced at 10 or above.
        fds.retain(|fd| !(10..50).contains(fd));
        assert_eq!(fds, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn signals_are_as_a_program_expects_them() {
        let dir = tempfile::tempdir().unwrap();
        // No shell, which would put its own mask right.
        let args = ["/proc/self/status".into(), dir.path().into()];
        let mut process = spawn(Path::new("cp"), &args, &[], &[], &[]).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
        let status = fs::read_to_string(dir.path().join("status")).unwrap();
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(mask("SigBlk:"), 0);
        assert_eq!(mask("SigIgn:") & (1 << (libc::SIGPIPE - 1)), 0);
    }

    #[test]
    fn a_program_carries_its_own_name() {
        let (dir, path) = file("my-daemon", &fs::read("/bin/cp").unwrap(), 0o755);
        let args = ["/proc/self/cmdline".into(), dir.path().into()];
        let mut process = spawn(&path, &args, &[], &[], &[]).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
        let cmdline = fs::read_to_string(dir.path().join("cmdline")).unwrap();
        assert_eq!(cmdline, format!("{}\0/proc/self/cmdline\0{}\0", path.display(), dir.path().display()));
    }

    #[test]
    fn the_file_that_was_opened_runs_whatever_its_path_leads_to() {
        let (dir, path) = file("daemon", &fs::read("/bin/true").unwrap(), 0o755);
        let program = open(&path).unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        copy(Path::new("/bin/false"), &path);
        let texts = texts_for(&path, &[], Vec::new()).unwrap();
        let order = Order {
            binary: program.as_fd(),
            path: &texts.path,
            args: &texts.args,
            env: &texts.env,
            pid_variable: LISTEN_PID,
            fds: &[],
        };
        let started = start(&order).unwrap();
        assert!(Process::started(started).unwrap().wait().unwrap().unwrap().success());
    }

    #[test]
    fn a_name_without_a_slash_is_looked_up() {
        let mut process = spawn(Path::new("true"), &[], &[], &[], &[]).unwrap();
        assert!(process.wait().unwrap().unwrap().success());
        assert_eq!(why(Path::new("no-such-program-anywhere")), "there is no such file");
    }

    #[test]
    fn a_script_runs_by_its_interpreter() {
        let (_dir, path) = file("script", b"#!/bin/sh\nexit 7\n", 0o755);
        let mut process = spawn(&path, &[], &[], &[], &[]).unwrap();
        assert_eq!(process.wait().unwrap().unwrap().code(), Some(7));
    }

    #[test]
    fn what_can_not_be_started_is_named_with_the_reason() {
        let (dir, data) = file("data", b"no program", 0o644);
        let (_kept, empty) = file("empty", b"\x01\x02\x03\x04", 0o755);
        let (_kept, orphan) = file("orphan", b"#!/no/such/interpreter\n", 0o755);
        let (_kept, busy) = file("busy", &fs::read("/bin/true").unwrap(), 0o755);
        let _writer = fs::OpenOptions::new().append(true).open(&busy).unwrap();
        assert_eq!(why(Path::new("/nowhere/at/all")), "there is no such file");
        assert_eq!(why(dir.path()), "it is a directory");
        assert_eq!(why(Path::new("/dev/null")), "it is no regular file");
        assert_eq!(why(&data), "it is not executable; chmod +x it");
        assert!(why(&data.join("below")).contains("Not a directory"));
        assert!(why(&empty).starts_with("it is no program for this machine"));
        assert!(why(&orphan).starts_with("its interpreter"));
        assert!(why(&busy).starts_with("it is still being written"));
        let zero = spawn(Path::new(SH), &["a\0b".into()], &[], &[], &[]).unwrap_err();
        assert!(zero.to_string().contains("zero byte"), "{zero}");
        let too_long = spawn(Path::new(SH), &["x".repeat(1 << 20).into()], &[], &[], &[]).unwrap_err();
        assert!(too_long.to_string().contains("too long"), "{too_long}");
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn fails_and_starts() {
        let listeners = tcp(5);
        let before = open_fds();
        for _ in 0..3 {
            why(Path::new("/nowhere/at/all"));
            why(Path::new("/etc/hostname"));
            spawn(Path::new("/proc/self/exe/x"), &[], &[], &named(&listeners), &[]).unwrap_err();
            run_script("true", &named(&listeners), true);
        }
        assert_eq!(open_fds(), before);
        assert_no_children();
    }

    #[test]
    fn neither_descriptors_nor_processes_are_left_behind() {
        run_alone("spawn::tests::fails_and_starts");
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn starts_at_the_limit_of_files() {
        let listeners = tcp(10);
        let open = open_fds();
        let mut reversed = named(&listeners);
        reversed.reverse();
        reversed.extend(named(&listeners));
        let start = |listeners: &[_]| spawn(Path::new("/bin/true"), &[], &[], listeners, &[]).unwrap_err().to_string();
        // Room for the program's own descriptor and its pidfd, and none to move a listener.
        let crowded = with_free_fds(2, || start(&reversed));
        let full = with_free_fds(0, || start(&[]));
        let without_pidfd = with_free_fds(1, || start(&[]));
        assert!(crowded.contains("20 descriptors") && crowded.contains("ulimit -n"), "{crowded}");
        assert!(full.contains("/bin/true") && full.contains("Too many open files"), "{full}");
        assert!(without_pidfd.contains("open files"), "{without_pidfd}");
        assert_no_children();
        assert_eq!(open_fds(), open);
    }

    #[test]
    fn the_limit_of_files_is_named() {
        run_alone("spawn::tests::starts_at_the_limit_of_files");
    }

    #[test]
    fn many_threads_start_programs_at_once() {
        let start_ten = || {
            for code in 0..10 {
                let args = ["-c".into(), format!("[ $LISTEN_PID = $$ ] && exit {code}").into()];
                let mut process = spawn(Path::new(SH), &args, &[], &[], &[]).unwrap();
                assert_eq!(process.wait().unwrap().unwrap().code(), Some(code));
            }
        };
        std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(start_ten));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    /// Fills 10 GiB; see `docs/performance.md`.
    #[test]
    #[ignore = "measures, and wants 10 GiB: cargo test -p handoff-runtime --lib -- --ignored --nocapture large_process"]
    fn starting_from_a_large_process() {
        let medians = || {
            let by = |start: &dyn Fn()| {
                let times = std::iter::repeat_with(|| {
                    let before = std::time::Instant::now();
                    start();
                    before.elapsed()
                });
                let mut times: Vec<_> = times.take(21).collect();
                times.sort();
                times[times.len() / 2]
            };
            let ours = by(&|| {
                let mut process = spawn(Path::new("/bin/true"), &[], &[], &[], &[]).unwrap();
                assert!(process.wait().unwrap().is_some_and(|status| status.success()));
            });
            let forked = by(&|| {
                let mut command = Command::new("/bin/true");
                // Something to do between the two makes the standard library fork.
                crate::sys::spawn::place_at_exec(&mut command, Vec::new());
                assert!(command.status().unwrap().success());
            });
            format!("spawn {ours:?}, fork {forked:?}")
        };
        println!("small: {}", medians());
        let mut large = vec![0u8; 10 << 30];
        large.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        println!("10 GiB: {}", medians());
        assert_eq!(large[4096], 1);
    }
}
