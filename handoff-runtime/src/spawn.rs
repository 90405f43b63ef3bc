//! Starting a daemon: the successor of a handover, or the first one.
//!
//! The program that runs is the file that was opened and looked at, whatever happens to its path meanwhile (scripts are the
//! exception: their interpreter opens the path). It finds its listeners from descriptor 3 on, then its control channel, and
//! nothing else of ours; its signal handlers and mask are fresh; `LISTEN_PID` is its own pid.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::process::{Resource, getrlimit};

use crate::environment::{
    HANDOFF_ROLE, HANDOFF_SOCK_FD, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, ROLE_SUCCESSOR, VARIABLES,
};
use crate::error::{Error, Result};
use crate::listeners::check_name;
use crate::process::Process;
use crate::sys::spawn::{FIRST_FD, Order, Step, start};

/// Starts `binary` and returns when it runs.
///
/// `args` come behind the program's own name. `env` is added to this process's environment. With a `control` channel the
/// program is a successor.
///
/// # Errors
/// [`Error::CannotStart`] names the binary and says why. Nothing is left of it then.
pub(crate) fn spawn(
    binary: &Path,
    args: &[OsString],
    env: &[(OsString, OsString)],
    listeners: &[(String, BorrowedFd<'_>)],
    control: Option<BorrowedFd<'_>>,
) -> Result<Process> {
    listeners.iter().try_for_each(|(name, _)| check_name(name))?;
    let failed = |reason: String, source| Error::CannotStart { binary: binary.to_owned(), reason, source };

    let path = find(binary);
    let program = open(&path).map_err(|source| failed(why_not_opened(&source), source))?;
    let fds: Vec<_> = listeners.iter().map(|&(_, fd)| fd).chain(control).collect();
    let texts = texts_for(&path, args, &environment_for(env, listeners, control.is_some()));
    let texts = texts.map_err(|source| failed("its path, arguments or environment hold a zero byte".into(), source))?;

    let order = Order {
        binary: program.as_fd(),
        path: &texts.path,
        args: &texts.args,
        env: &texts.env,
        pid_variable: LISTEN_PID,
        fds: &fds,
    };
    let (pid, pidfd) =
        start(&order).map_err(|(step, source)| failed(why_not_started(step, &source, fds.len()), source))?;
    Process::started(pid, pidfd)
}

/// As a shell does: a name without a slash is looked up in `PATH`.
fn find(binary: &Path) -> PathBuf {
    let search = env::var_os("PATH").filter(|_| !binary.as_os_str().as_bytes().contains(&b'/'));
    let mut candidates = search.iter().flat_map(|search| env::split_paths(search)).map(|dir| dir.join(binary));
    candidates.find(|path| path.is_file()).unwrap_or_else(|| binary.to_owned())
}

/// Pins the file. O_PATH, because a program may be executable and not readable.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = File::from(retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?);
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "it is not executable; chmod +x it"));
    }
    Ok(file.into())
}

/// The environment of the program without `LISTEN_PID`, which it writes by itself.
fn environment_for(
    added: &[(OsString, OsString)],
    listeners: &[(String, BorrowedFd<'_>)],
    is_successor: bool,
) -> Vec<(OsString, OsString)> {
    let is_ours = |name: &OsStr| VARIABLES.iter().any(|variable| name == *variable);
    let is_added = |name: &OsStr| added.iter().any(|(added, _)| added == name);
    let inherited = env::vars_os().filter(|(name, _)| !is_ours(name) && !is_added(name));
    let mut environment: Vec<_> = inherited.collect();
    environment.extend(added.iter().filter(|(name, _)| !is_ours(name)).cloned());

    let names: Vec<_> = listeners.iter().map(|(name, _)| name.as_str()).collect();
    let mut set = |name: &str, value: String| environment.push((name.into(), value.into()));
    set(LISTEN_FDS, names.len().to_string());
    set(LISTEN_FDNAMES, names.join(":"));
    if is_successor {
        set(HANDOFF_ROLE, ROLE_SUCCESSOR.into());
        set(HANDOFF_SOCK_FD, (FIRST_FD as usize + names.len()).to_string());
    }
    environment
}

/// What the program gets, in the form that the system wants.
struct Texts {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn texts_for(path: &Path, args: &[OsString], env: &[(OsString, OsString)]) -> io::Result<Texts> {
    let program = path.as_os_str();
    let all_args = [program].into_iter().chain(args.iter().map(OsString::as_os_str));
    let all_env = env.iter().map(|(name, value)| {
        let mut entry = name.clone();
        entry.push("=");
        entry.push(value);
        CString::new(entry.into_vec())
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
    use std::os::unix::net::UnixStream;
    use std::process::ExitStatus;

    use super::*;

    const SH: &str = "/bin/sh";

    /// Runs a shell script with these listeners and channel, and gives what it wrote and how it ended.
    fn run_script(script: &str, listeners: &[(String, BorrowedFd<'_>)], with_control: bool) -> (String, ExitStatus) {
        let (control, _kept) = UnixStream::pair().unwrap();
        // Its standard output is the test's own, so the script writes to a file.
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let args = ["-c".into(), format!("{{ {script} ; }} > {} 2>&1", out.display()).into()];
        let control = with_control.then(|| control.as_fd());
        let mut process = spawn(Path::new(SH), &args, &[("ADDED".into(), "value".into())], listeners, control).unwrap();
        let status = process.wait().unwrap().unwrap();
        (fs::read_to_string(&out).unwrap(), status)
    }

    fn named<'a>(listeners: &'a [TcpListener]) -> Vec<(String, BorrowedFd<'a>)> {
        listeners.iter().enumerate().map(|(at, listener)| (format!("l{at}"), listener.as_fd())).collect()
    }

    fn inode(fd: impl AsFd) -> String {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap().display().to_string()
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
        let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let script =
            "echo $LISTEN_FDNAMES $HANDOFF_ROLE $HANDOFF_SOCK_FD; readlink /proc/$$/fd/3 /proc/$$/fd/4 /proc/$$/fd/5";
        let (out, _) = run_script(script, &named(&listeners), true);
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines[0], "l0:l1:l2 successor 6");
        assert_eq!(lines[1..], listeners.iter().map(inode).collect::<Vec<_>>());
    }

    #[test]
    fn more_than_a_thousand_listeners() {
        let listeners: Vec<_> = (0..1200).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut reversed = named(&listeners);
        reversed.reverse();
        let (out, status) = run_script("echo $LISTEN_FDS; readlink /proc/$$/fd/3 /proc/$$/fd/1202", &reversed, true);
        let lines: Vec<_> = out.lines().collect();
        assert!(status.success());
        assert_eq!(lines, ["1200", &inode(&listeners[1199]), &inode(&listeners[0])]);
    }

    #[test]
    fn nothing_else_of_ours_is_open_in_it() {
        // Not close-on-exec, as a careless library leaves it.
        let leak = rustix::io::fcntl_dupfd_cloexec(fs::File::open("/dev/null").unwrap(), 50).unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let listeners = [TcpListener::bind("127.0.0.1:0").unwrap()];
        let (out, _) = run_script("ls /proc/$$/fd", &named(&listeners), true);
        drop(leak);
        let mut fds: Vec<i32> = out.split_whitespace().map(|fd| fd.parse().unwrap()).collect();
        fds.sort_unstable();
        // A shell keeps the standard output that it replaced at 10 or above.
        fds.retain(|&fd| !(10..50).contains(&fd));
        assert_eq!(fds, [0, 1, 2, 3, 4]);
    }
}
