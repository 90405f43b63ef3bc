//! A process, held by a descriptor (pidfd_open(2)): a signal can never reach a later one of the same pid.
//!
//! Dropping a [`Process`] neither kills nor waits. Only a child of this process is ever reaped, and only when asked.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use handoff_proto::ProcessId;
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};

use crate::error::{Error, Result};
use crate::sys::poll;

/// One process that this one started or found.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
    /// Kept, because the kernel tells it once.
    status: Option<ExitStatus>,
}

impl Process {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.id.pid
    }

    /// Whether it is dead. It may be so and still be there to be [waited](Self::wait) for.
    ///
    /// # Errors
    /// The system's, when not even a poll(2) is possible.
    pub fn has_exited(&mut self) -> Result<bool> {
        if self.status.is_some() {
            return Ok(true);
        }
        exited_within(&self.pidfd, Some(Duration::ZERO)).map_err(|source| self.error("look at", source))
    }

    /// Waits until it is dead and gives its exit status, the same at every call. `None`: it is not our child, so the status
    /// is not ours to have; it is dead all the same.
    ///
    /// # Errors
    /// The system's, when it can't be waited for.
    pub fn wait(&mut self) -> Result<Option<ExitStatus>> {
        exited_within(&self.pidfd, None).map_err(|source| self.error("wait for", source))?;
        self.try_wait()
    }

    /// Kills it (SIGKILL). That it is dead already is no error.
    ///
    /// # Errors
    /// This process may not (EPERM).
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// The process that has this pid now; `None` when it is dead.
    ///
    /// # Errors
    /// The system's: no descriptor is left, or `/proc` can't be read.
    pub(crate) fn open(pid: u32) -> Result<Option<Self>> {
        let doing = || format!("open process {pid}");
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: the pid of a thread that is no process.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(Error::io(doing(), error)),
        };
        let start_time = match start_time_of(pid) {
            Ok(start_time) => start_time,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(Error::io(doing(), error)),
        };
        // Alive after the start time was read: it was this process's, not a later one's.
        if exited_within(&pidfd, Some(Duration::ZERO)).map_err(|error| Error::io(doing(), error))? {
            return Ok(None);
        }
        Ok(Some(Self { id: ProcessId { pid, start_time }, pidfd, status: None }))
    }

    /// A child that was just started and can't have been reaped.
    pub(crate) fn started(pid: u32, pidfd: OwnedFd) -> Result<Self> {
        let start_time = start_time_of(pid).map_err(|error| Error::io(format!("look at child {pid}"), error))?;
        Ok(Self { id: ProcessId { pid, start_time }, pidfd, status: None })
    }

    /// Its pid together with its start time.
    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    /// The exit status, if it is dead and our child; never waits.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            match retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options)) {
                Ok(status) => self.status = status.as_ref().map(exit_status),
                // Not our child, or somebody else has reaped it.
                Err(Errno::CHILD) => {}
                Err(error) => return Err(self.error("wait for", error)),
            }
        }
        Ok(self.status)
    }

    /// Asks it to leave (SIGTERM). That it is dead already is no error.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Freezes it (SIGSTOP); done only when [`is_stopped`](Self::is_stopped) says so.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub(crate) fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run again (SIGCONT).
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub(crate) fn cont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Whether none of its threads can run: every one is stopped, or dead.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub(crate) fn is_stopped(&self) -> Result<bool> {
        match every_thread_is_stopped(self.id.pid) {
            Err(error) if is_gone(&error) => Ok(true),
            result => result.map_err(|source| self.error("look at", source)),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(self.error("send a signal to", error)),
        }
    }

    fn error(&self, doing: &str, source: impl Into<io::Error>) -> Error {
        Error::io(format!("{doing} process {}", self.id.pid), source)
    }
}

impl AsFd for Process {
    /// The pidfd; it is readable when the process is dead.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Waits for the death of a process, whoever its parent is. A signal starts an unlimited wait anew.
fn exited_within(pidfd: &OwnedFd, limit: Option<Duration>) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        poll::wait(&mut fds, limit)?;
        let exited = !fds[0].revents().is_empty();
        if exited || limit.is_some() {
            return Ok(exited);
        }
    }
}

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    // The form of wait(2): the exit status in the second byte, a signal in the first, with 0x80 for a core dump.
    let core = if status.dumped() { 0x80 } else { 0 };
    let raw = match status.exit_status() {
        Some(code) => (code & 0xff) << 8,
        None => status.terminating_signal().unwrap_or(0) | core,
    };
    ExitStatus::from_raw(raw)
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)): clock ticks after boot.
fn start_time_of(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let field = fields_behind_name(&stat).and_then(|mut fields| fields.nth(19));
    let parsed = field.and_then(|field| std::str::from_utf8(field).ok()).and_then(|field| field.parse().ok());
    parsed.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

fn every_thread_is_stopped(pid: u32) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = match fs::read(thread?.path().join("stat")) {
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let state = fields_behind_name(&stat).and_then(|mut fields| fields.next());
        if !matches!(state, Some(b"T" | b"t" | b"Z" | b"X" | b"x")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The fields from the third on. The second, the name, may hold anything, parentheses and spaces too.
fn fields_behind_name(stat: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    Some(stat[end + 1..].split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}
