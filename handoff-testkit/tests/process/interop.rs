//! Wire version 1 against the real thing: each role is played by this library and by `beyond-handoff` 0.1.4, in all mixes.

pub(crate) mod faults;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use handoff_testkit::mock::connect_with_retry;

use crate::daemons::{CONTROL_SOCKET, DATA_DIR, LISTENER};
use crate::{Outcome, check, trials};

trials![
    ours_ours_theirs,
    ours_theirs_ours,
    ours_theirs_theirs,
    theirs_ours_ours,
    theirs_ours_theirs,
    theirs_theirs_ours,
    theirs_theirs_theirs,
    our_lock_excludes_theirs,
    their_lock_excludes_ours,
];

/// Which library plays a role.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Library {
    Ours,
    Theirs,
}
use Library::{Ours, Theirs};

impl Library {
    /// The name by which the test program plays a daemon on this library.
    fn role(self) -> &'static str {
        match self {
            Ours => "daemon-ours",
            Theirs => "daemon-theirs",
        }
    }
}

fn ours_ours_theirs() -> Outcome {
    commit_path(Ours, Ours, Theirs)
}
fn ours_theirs_ours() -> Outcome {
    commit_path(Ours, Theirs, Ours)
}
fn ours_theirs_theirs() -> Outcome {
    commit_path(Ours, Theirs, Theirs)
}
fn theirs_ours_ours() -> Outcome {
    commit_path(Theirs, Ours, Ours)
}
fn theirs_ours_theirs() -> Outcome {
    commit_path(Theirs, Ours, Theirs)
}
fn theirs_theirs_ours() -> Outcome {
    commit_path(Theirs, Theirs, Ours)
}
fn theirs_theirs_theirs() -> Outcome {
    commit_path(Theirs, Theirs, Theirs)
}

/// One service of the small daemon, with the sockets in this process.
struct Service {
    dir: tempfile::TempDir,
    listener: TcpListener,
    first: Child,
}

impl Service {
    fn cold_start(library: Library) -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.envs(environment(dir.path(), library));
        let names = [(LISTENER.to_owned(), listener.as_fd())];
        handoff_runtime::pass_listener_fds_on_spawn(&mut command, &names).map_err(std::io::Error::other)?;
        let first = command.spawn()?;
        connect_with_retry(&dir.path().join("control.sock"));
        Ok(Self { dir, listener, first })
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }
}

fn environment(dir: &Path, library: Library) -> [(&'static str, String); 3] {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    [
        (handoff_testkit::ROLE_VARIABLE, library.role().to_owned()),
        (DATA_DIR, text(dir.join("data"))),
        (CONTROL_SOCKET, text(dir.join("control.sock"))),
    ]
}

/// What the serving daemon says of itself.
fn ask(address: SocketAddr) -> Result<(u32, u64), Box<dyn std::error::Error>> {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.read_to_string(&mut answer)?;
    let (pid, seals) = answer.trim().split_once(' ').ok_or_else(|| format!("answer {answer:?}"))?;
    Ok((pid.parse()?, seals.parse()?))
}

fn commit_path(supervisor: Library, incumbent: Library, successor: Library) -> Outcome {
    let mut service = Service::cold_start(incumbent)?;
    check(ask(service.address())? == (service.first.id(), 0), "the first daemon serves what is new")?;

    let new_pid = match supervisor {
        Ours => hand_over_by_ours(&service, successor)?,
        Theirs => hand_over_by_theirs(&service, successor)?,
    };
    // The old process leaves by itself, and only then is it certain who answers.
    let left = service.first.wait()?;
    check(left.success(), format!("the old process left with {left}"))?;
    let answer = ask(service.address())?;
    signal_and_reap(new_pid);
    check(answer == (new_pid, 1), format!("the successor {new_pid} serves what was sealed, not {answer:?}"))?;
    Ok(())
}

fn hand_over_by_ours(service: &Service, successor: Library) -> Result<u32, Box<dyn std::error::Error>> {
    let supervisor = handoff_runtime::Supervisor::new(&service.control())?
        .with_listener(LISTENER, &service.listener)
        .with_data_dir(service.dir.path().join("data"))
        .with_journal(service.dir.path().join("journal"));
    let mut spec = handoff_runtime::SpawnSpec::new(std::env::current_exe()?);
    spec.env = environment(service.dir.path(), successor).map(|(name, value)| (name.into(), value.into())).to_vec();
    spec.deadline = Duration::from_secs(20);
    let outcome = supervisor.perform_handoff(spec)?;
    check(outcome.committed, format!("aborted: {:?}", outcome.abort_reason))?;
    Ok(outcome.child.ok_or("no child")?.pid())
}

fn hand_over_by_theirs(service: &Service, successor: Library) -> Result<u32, Box<dyn std::error::Error>> {
    let supervisor = handoff::Supervisor::new(&service.control())?
        .with_listener(LISTENER, service.listener.as_raw_fd())
        .with_journal(service.dir.path().join("journal"));
    let mut spec = handoff::SpawnSpec::new(std::env::current_exe()?);
    spec.env = environment(service.dir.path(), successor).map(|(name, value)| (name.into(), value)).to_vec();
    spec.deadline = Duration::from_secs(20);
    let outcome = supervisor.perform_handoff(spec)?;
    check(outcome.committed, format!("aborted: {:?}", outcome.abort_reason))?;
    Ok(outcome.child.ok_or("no child")?.id())
}

/// Ends a child of this process and waits for it.
fn signal_and_reap(pid: u32) {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid of a child");
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
}

fn our_lock_excludes_theirs() -> Outcome {
    let dir = tempfile::tempdir()?;
    let ours = handoff_lock::DataDirLock::acquire(dir.path())?;
    match handoff::DataDirLock::acquire(dir.path()) {
        Err(handoff::Error::LockHeld { holder_pid }) => {
            check(holder_pid as u32 == std::process::id(), "their error names our pid, by the pidfile")?;
        }
        other => return Err(format!("not refused: {other:?}").into()),
    }
    ours.release()?;
    handoff::DataDirLock::acquire(dir.path()).map(drop)?;
    Ok(())
}

fn their_lock_excludes_ours() -> Outcome {
    let dir = tempfile::tempdir()?;
    let theirs = handoff::DataDirLock::acquire(dir.path())?;
    match handoff_lock::DataDirLock::acquire(dir.path()) {
        Err(handoff_lock::LockError::Held { holder: Some(holder) }) => {
            check(holder.pid == std::process::id() && holder.alive, format!("the holder is named: {holder:?}"))?;
        }
        other => return Err(format!("not refused with the holder named: {other:?}").into()),
    }
    drop(theirs);
    handoff_lock::DataDirLock::acquire(dir.path()).map(drop)?;
    Ok(())
}
