//! A process, held by a descriptor (pidfd_open(2)): a signal can never reach a later one of the same pid.
//!
//! Dropping a [`Process`] neither kills nor waits. Only a child of this process is ever reaped, and only when asked.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;

use handoff_proto::ProcessId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};

use crate::error::{Error, Result};

/// 52 fields of at most 20 digits, and a name.
const STAT_BYTES_MAX: usize = 2048;

/// One process that this one started or found.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: Arc<OwnedFd>,
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
        is_dead(&self.pidfd).map_err(|source| self.error("look at", source))
    }

    /// Waits until it is dead and gives its exit status, the same at every call. `None`: it is not our child, so the status
    /// is not ours to have; it is dead all the same.
    ///
    /// # Errors
    /// The system's, when it can't be waited for.
    pub fn wait(&mut self) -> Result<Option<ExitStatus>> {
        wait_for_death(&self.pidfd).map_err(|source| self.error("wait for", source))?;
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
        Ok(Self::open_with_parent(pid)?.map(|(process, _)| process))
    }

    /// This process itself; `None` when it is dead, also if its pid is another's by now.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn find(id: ProcessId) -> Result<Option<Self>> {
        Ok(Self::open(id.pid)?.filter(|process| process.id == id))
    }

    /// As [`open`](Self::open), with the pid of its parent, which is read in the same moment.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_with_parent(pid: u32) -> Result<Option<(Self, u32)>> {
        let doing = || format!("open process {pid}");
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: the pid of a thread that is no process.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(Error::io(doing(), error)),
        };
        let Descent { parent, start_time } = match descent_of(pid) {
            Ok(descent) => descent,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(Error::io(doing(), error)),
        };
        // Alive after this was read: it was this process's, not a later one's.
        if is_dead(&pidfd).map_err(|error| Error::io(doing(), error))? {
            return Ok(None);
        }
        Ok(Some((Self { id: ProcessId { pid, start_time }, pidfd: Arc::new(pidfd), status: None }, parent)))
    }

    /// A child that was just started and can't have been reaped.
    ///
    /// # Errors
    /// Its start time can't be read, for want of a descriptor for instance. It is ended then.
    pub(crate) fn started(pid: u32, pidfd: OwnedFd) -> Result<Self> {
        let mut process = Self { id: ProcessId { pid, start_time: 0 }, pidfd: Arc::new(pidfd), status: None };
        match descent_of(pid) {
            Ok(descent) => process.id.start_time = descent.start_time,
            Err(error) => {
                process.kill()?;
                process.wait()?;
                return Err(process.error("look at", error));
            }
        }
        Ok(process)
    }

    /// The same process, if it lives.
    pub(crate) fn if_alive(&self) -> Option<Self> {
        let is_alive = is_dead(&self.pidfd).is_ok_and(|is_dead| !is_dead);
        is_alive.then(|| self.duplicate())
    }

    /// The same process, dead or alive.
    pub(crate) fn duplicate(&self) -> Self {
        Self { id: self.id, pidfd: Arc::clone(&self.pidfd), status: self.status }
    }

    /// The pidfd, to wait for its death while another thread lets go of it.
    pub(crate) fn polled(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
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
    #[cfg(any(feature = "service", test))]
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
        match pidfd_send_signal(&*self.pidfd, signal) {
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

/// A pidfd is readable when its process is dead, whoever the parent is (pidfd_open(2)).
fn is_dead(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))? > 0)
}

fn wait_for_death(pidfd: &OwnedFd) -> io::Result<()> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, None))?;
    Ok(())
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

/// Where a process comes from.
struct Descent {
    parent: u32,
    /// Clock ticks after boot.
    start_time: u64,
}

/// Fields 4 and 22 of `/proc/PID/stat` (proc_pid_stat(5)).
fn descent_of(pid: u32) -> io::Result<Descent> {
    let stat = read_stat(Path::new(&format!("/proc/{pid}/stat")))?;
    let parsed = fields_behind_name(stat.as_bytes()).and_then(|mut fields| {
        let parent = u32::try_from(number(fields.nth(1)?)?).ok()?;
        Some(Descent { parent, start_time: number(fields.nth(17)?)? })
    });
    parsed.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn every_thread_is_stopped(pid: u32) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = match read_stat(&thread?.path().join("stat")) {
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let state = fields_behind_name(stat.as_bytes()).and_then(|mut fields| fields.next());
        if !matches!(state, Some(b"T" | b"t" | b"Z" | b"X" | b"x")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One read: the kernel makes the line at the first one, and it is never as long as this.
fn read_stat(path: &Path) -> io::Result<Stat> {
    let mut stat = Stat { line: [0; STAT_BYTES_MAX], bytes: 0 };
    let mut file = File::open(path)?;
    stat.bytes = loop {
        match file.read(&mut stat.line) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    Ok(stat)
}

struct Stat {
    line: [u8; STAT_BYTES_MAX],
    bytes: usize,
}

impl Stat {
    fn as_bytes(&self) -> &[u8] {
        &self.line[..self.bytes]
    }
}

/// The fields from the third on. The second, the name, may hold anything, parentheses and spaces too.
fn fields_behind_name(stat: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    Some(stat[end + 1..].split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A program that lives until it is killed, started as the supervisor starts one.
    fn sleeper() -> Process {
        crate::spawn::spawn(Path::new("sleep"), &["1000".into()], &[], &[], &[]).unwrap()
    }

    /// The same, but a grandchild, so not ours to reap.
    fn strangers_sleeper() -> Process {
        let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
        let output = Command::new("/bin/sh").args(["-c", script]).stderr(Stdio::inherit()).output().unwrap();
        let pid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        Process::open(pid).unwrap().unwrap()
    }

    fn wait_until_stopped(process: &Process) {
        while !process.is_stopped().unwrap() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_killed_child_gives_its_status_at_every_wait() {
        let mut process = sleeper();
        assert!(!process.has_exited().unwrap());
        assert_eq!(process.try_wait().unwrap(), None);
        process.kill().unwrap();
        let status = process.wait().unwrap().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(process.wait().unwrap(), Some(status));
        assert!(process.has_exited().unwrap());
        process.kill().unwrap();
        process.terminate().unwrap();
    }

    #[test]
    fn an_exit_status_is_the_programs_own() {
        let args = ["-c".into(), "exit 7".into()];
        let mut process = crate::spawn::spawn(Path::new("/bin/sh"), &args, &[], &[], &[]).unwrap();
        assert_eq!(process.wait().unwrap().unwrap().code(), Some(7));
    }

    #[test]
    fn a_dead_child_is_still_there_to_be_waited_for() {
        let mut process = sleeper();
        process.terminate().unwrap();
        wait_for_death(&process.pidfd).unwrap();
        assert!(process.has_exited().unwrap());
        assert!(Process::open(process.pid()).unwrap().is_none());
        assert_eq!(process.try_wait().unwrap().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn a_strangers_death_is_seen_but_its_status_is_not_ours() {
        let mut process = strangers_sleeper();
        assert!(!process.has_exited().unwrap());
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap(), None);
        assert!(process.has_exited().unwrap());
    }

    #[test]
    fn dropping_neither_kills_nor_waits() {
        let pid = strangers_sleeper().pid();
        let again = Process::open(pid).unwrap().unwrap();
        again.kill().unwrap();
    }

    #[test]
    fn a_process_is_stopped_and_goes_on() {
        let mut process = sleeper();
        assert!(!process.is_stopped().unwrap());
        process.stop().unwrap();
        wait_until_stopped(&process);
        assert!(!process.has_exited().unwrap());
        process.cont().unwrap();
        while process.is_stopped().unwrap() {
            std::thread::yield_now();
        }
        process.stop().unwrap();
        wait_until_stopped(&process);
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(process.is_stopped().unwrap());
    }

    #[test]
    fn the_same_process_has_the_same_id() {
        let own = Process::open(std::process::id()).unwrap().unwrap();
        assert_eq!(own.id().pid, std::process::id());
        assert_eq!(own.id(), Process::open(own.pid()).unwrap().unwrap().id());
        assert!(own.id().start_time > 0);
    }

    #[test]
    fn nobody_has_an_impossible_pid() {
        for pid in [0, u32::MAX, 1 << 22] {
            assert!(Process::open(pid).unwrap().is_none(), "{pid}");
        }
    }

    #[test]
    fn a_name_may_look_like_fields() {
        let stat = b"17 (a) T 4 (b)) S 1 2 3\n";
        let fields: Vec<_> = fields_behind_name(stat).unwrap().collect();
        assert_eq!(fields, [b"S", b"1", b"2", b"3"]);
        assert!(fields_behind_name(b"garbage").is_none());
    }
}
