//! What becomes of a supervisor that has the state directory and says nothing: it is ended, so that the service has one that
//! works. One that answers is left alone, whatever it answers.
//!
//! Silence is told on the admin socket: whoever listens there answers a `status` at once, also in the middle of a handover.
//! One that does not listen yet may be at work on its start, and gets longer. Nobody is ended who has not the directory's
//! lock file open.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::crash;
use crate::events::warn;
use crate::process::Process;
use crate::sys::poll;
use crate::timers::Timers;

/// How long a supervisor may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    /// One that listens.
    pub(super) listening: Duration,
    /// One that does not, yet.
    pub(super) starting: Duration,
}

impl Default for Silence {
    fn default() -> Self {
        Self { listening: crash::initial_timing().liveness, starting: Duration::from_secs(60) }
    }
}

/// What a first supervisor was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// It answers, or could not be ended: leave it alone.
    Stays,
    /// It is gone.
    Gone,
}

/// How often one that does not listen is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a killed process may take to be gone.
const GOING: Duration = Duration::from_secs(10);

/// Waits for a word of the supervisor with this pid, which holds the lock on `lock_file`, and ends it if none comes.
///
/// # Errors
/// The system's.
pub(super) fn outlive(pid: u32, lock_file: &File, admin_socket: &Path, silence: Silence) -> crate::Result<First> {
    // A program that runs two services must not end itself.
    if pid == std::process::id() {
        return Ok(First::Stays);
    }
    let Some(process) = Process::open(pid)? else { return Ok(First::Gone) };
    if !has_open(pid, lock_file) {
        return Ok(First::Stays);
    }
    let failed = |error| crate::Error::io("wait for the other supervisor", error);
    match hear(&process, admin_socket, silence).map_err(failed)? {
        Heard::Word => Ok(First::Stays),
        Heard::End => Ok(First::Gone),
        Heard::Nothing => {
            warn!(pid, "the supervisor with this state directory is silent: it is ended");
            process.kill()?;
            let mut fds = [PollFd::new(&process, PollFlags::IN)];
            poll::wait(&mut fds, Some(GOING)).map_err(failed)?;
            Ok(if fds[0].revents().is_empty() { First::Stays } else { First::Gone })
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Word,
    End,
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Silent,
}

fn hear(process: &Process, admin_socket: &Path, silence: Silence) -> io::Result<Heard> {
    let mut timers = Timers::new();
    let mut asked: Option<UnixStream> = None;
    let mut patience = silence.starting;
    timers.arm(Timer::Silent, patience);
    loop {
        if asked.is_none() {
            let answer = ask(admin_socket);
            let listens = answer.as_ref().map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |_| true);
            if listens && patience != silence.listening {
                patience = silence.listening;
                timers.arm(Timer::Silent, patience);
            }
            asked = answer.ok();
        }
        let left = timers.timeout().unwrap_or_default();
        let pause = if asked.is_some() { left } else { left.min(LOOK_AGAIN) };
        let mut fds = vec![PollFd::new(process, PollFlags::IN)];
        fds.extend(asked.as_ref().map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)));
        poll::wait(&mut fds, Some(pause))?;
        if !fds[0].revents().is_empty() {
            return Ok(Heard::End);
        }
        match asked.as_mut().map(|stream| stream.read(&mut [0; 1])) {
            Some(Ok(1..)) => return Ok(Heard::Word),
            // It went away, or has another socket by now: ask again.
            Some(Ok(0)) => asked = None,
            Some(Err(error)) if error.kind() != ErrorKind::WouldBlock => asked = None,
            Some(Err(_)) | None => {}
        }
        if timers.woke_late() {
            // It did not run either, perhaps.
            timers.arm(Timer::Silent, patience);
        }
        if timers.pop_expired().is_some() {
            return Ok(Heard::Nothing);
        }
    }
}

/// Never blocks: the backlog of one that is frozen may be full, and then it listens and is silent.
fn ask(admin_socket: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(admin_socket)?)?;
    let mut stream = UnixStream::from(socket);
    stream.write_all(b"{\"cmd\":\"status\"}\n")?;
    Ok(stream)
}

/// Whether the process has this very file open: who took the lock has.
fn has_open(pid: u32, file: &File) -> bool {
    let Ok(wanted) = file.metadata() else { return false };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut files = descriptors.filter_map(|descriptor| descriptor.path().metadata().ok());
    files.any(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const SHORT: Silence = Silence { listening: Duration::from_millis(50), starting: Duration::from_millis(100) };

    /// A process that has `file` open.
    fn holder(file: &File) -> Child {
        Command::new("sleep").arg("1000").stdin(Stdio::from(file.try_clone().unwrap())).spawn().unwrap()
    }

    #[test]
    fn a_silent_one_is_ended_and_only_one_that_has_the_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let admin = dir.path().join("admin.sock");
        let (file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut stranger = holder(&other);
        assert_eq!(outlive(stranger.id(), &file, &admin, SHORT).unwrap(), First::Stays);
        assert_eq!(stranger.try_wait().unwrap(), None);
        stranger.kill().unwrap();
        stranger.wait().unwrap();

        for listens in [false, true] {
            let _listener = listens.then(|| UnixListener::bind(&admin).unwrap());
            let mut first = holder(&file);
            assert_eq!(outlive(first.id(), &file, &admin, SHORT).unwrap(), First::Gone);
            first.wait().unwrap();
        }
    }

    #[test]
    fn one_that_answers_stays() {
        let dir = tempfile::tempdir().unwrap();
        let admin = dir.path().join("admin.sock");
        let file = tempfile::tempfile().unwrap();
        let listener = UnixListener::bind(&admin).unwrap();
        let mut first = holder(&file);
        let answering = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"{").unwrap());
        assert_eq!(outlive(first.id(), &file, &admin, Silence::default()).unwrap(), First::Stays);
        answering.join().unwrap();
        first.kill().unwrap();
        first.wait().unwrap();
    }
}
