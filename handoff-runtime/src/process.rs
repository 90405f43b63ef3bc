//! A process, held by a descriptor (pidfd_open(2)): a signal can never reach a later one of the same pid.
//!
//! Dropping a [`Process`] neither kills nor waits. Only a child of this process is ever reaped, and only when asked.

mod answers;
mod stat;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use handoff_proto::ProcessId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};

use crate::error::{Error, Result};
use crate::sys::spawn::Started;
use answers::{Call, Meaning, meaning};
use stat::{Descent, every_thread_is_stopped};

/// The start time of a process that could not be seen when it was written down.
const START_TIME_UNKNOWN: u64 = 0;

/// One process that this one started or found.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    identity: Identity,
    pidfd: Arc<OwnedFd>,
    /// Kept, because the kernel tells it once.
    status: Option<ExitStatus>,
}

/// How it is known that the pidfd leads to the process that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// It was started here, or it was asked for by its pid alone, or its start time is the remembered one.
    Proven,
    /// It lives and has the remembered pid, and `/proc` hides its start time from us: it may be a later one of the same pid.
    /// It counts as the remembered one, but gets no signal that could harm.
    Assumed,
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

    /// The process that has this pid now; `None` when it is dead, or the pid is a mere thread's.
    ///
    /// # Errors
    /// The system's: no descriptor is left, or a sandbox forbids the call.
    pub(crate) fn open(pid: u32) -> Result<Option<Self>> {
        Ok(Self::open_with_parent(pid)?.map(|(process, _)| process))
    }

    /// This process itself; `None` when it is dead, also if its pid is another's by now. One that lives with this pid, and
    /// whose start time is hidden (hidepid, ProtectProc=, PR_SET_DUMPABLE), counts as this one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn find(id: ProcessId) -> Result<Option<Self>> {
        Ok(Self::open(id.pid)?.and_then(|process| process.taken_for(id)))
    }

    /// As [`open`](Self::open), with the pid of its parent, which is read in the same moment; `None` when that is hidden.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_with_parent(pid: u32) -> Result<Option<(Self, Option<u32>)>> {
        let failed = |error| Error::io(format!("look at process {pid}"), error);
        let Some(pidfd) = open_pidfd(pid)? else { return Ok(None) };
        let descent = Descent::of(pid).map_err(failed)?;
        // Alive after this was read: it was this process's, not a later one's.
        if is_dead(&pidfd).map_err(failed)? {
            return Ok(None);
        }
        let start_time = descent.map_or(START_TIME_UNKNOWN, |descent| descent.start_time);
        let process = Self::new(ProcessId { pid, start_time }, pidfd);
        Ok(Some((process, descent.map(|descent| descent.parent))))
    }

    /// A child that was just started.
    ///
    /// # Errors
    /// It has told no start time. It is ended then.
    pub(crate) fn started(started: Started) -> Result<Self> {
        let Started { pid, pidfd, stat } = started;
        let mut process = Self::new(ProcessId { pid, start_time: START_TIME_UNKNOWN }, pidfd);
        match Descent::parse(&stat) {
            Ok(descent) => process.id.start_time = descent.start_time,
            Err(error) => {
                process.kill()?;
                process.wait()?;
                return Err(process.error("look at", error));
            }
        }
        Ok(process)
    }

    fn new(id: ProcessId, pidfd: OwnedFd) -> Self {
        Self { id, identity: Identity::Proven, pidfd: Arc::new(pidfd), status: None }
    }

    /// This one as the process that was remembered; `None` if it is another.
    fn taken_for(self, remembered: ProcessId) -> Option<Self> {
        let is_known = [self.id, remembered].iter().all(|id| id.start_time != START_TIME_UNKNOWN);
        match is_known {
            true => (self.id == remembered).then_some(self),
            false => Some(Self { id: remembered, identity: Identity::Assumed, ..self }),
        }
    }

    /// The same, now that the kernel's word for its pid has come by another way: it answers at the other end of a socket.
    pub(crate) fn vouched_for(self) -> Self {
        Self { identity: Identity::Proven, ..self }
    }

    /// The same process, if it lives.
    pub(crate) fn if_alive(&self) -> Option<Self> {
        let is_alive = is_dead(&self.pidfd).is_ok_and(|is_dead| !is_dead);
        is_alive.then(|| self.duplicate())
    }

    /// The same process, dead or alive.
    pub(crate) fn duplicate(&self) -> Self {
        Self { pidfd: Arc::clone(&self.pidfd), ..*self }
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
                Err(errno) => match meaning(Call::Waitid, errno) {
                    Meaning::NotOurs => {}
                    _ => return Err(self.error("wait for", failure(Call::Waitid, errno))),
                },
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

    /// Lets it run again (SIGCONT): also one that may be another, whom that does no harm.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub(crate) fn cont(&self) -> Result<()> {
        self.send(Signal::CONT)
    }

    /// Whether none of its threads can run: every one is stopped, or dead. One that lives and is hidden from us can't be
    /// seen to be stopped, so it is not.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub(crate) fn is_stopped(&self) -> Result<bool> {
        let stopped = match every_thread_is_stopped(self.id.pid) {
            Ok(Some(stopped)) => Ok(stopped),
            Ok(None) => is_dead(&self.pidfd).map(|is_dead| is_dead || self.is_a_stopped_child()),
            Err(error) => Err(error),
        };
        stopped.map_err(|source| self.error("look at", source))
    }

    /// What the kernel tells the parent of a stopped child, once all of its threads stand still (waitid(2)).
    fn is_a_stopped_child(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let told = retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options));
        told.is_ok_and(|status| status.is_some_and(|status| status.stopped()))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if self.identity == Identity::Assumed {
            return Err(Error::ProcessHidden { pid: self.id.pid });
        }
        self.send(signal)
    }

    fn send(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&*self.pidfd, signal) {
            Ok(()) => Ok(()),
            Err(errno) => match meaning(Call::PidfdSendSignal, errno) {
                Meaning::NoProcess => Ok(()),
                _ => Err(self.error("send a signal to", failure(Call::PidfdSendSignal, errno))),
            },
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

/// The pidfd of the process that has this pid; `None`: there is none.
fn open_pidfd(pid: u32) -> Result<Option<OwnedFd>> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(errno) => match meaning(Call::PidfdOpen, errno) {
            Meaning::NoProcess => Ok(None),
            _ => Err(Error::io(format!("open process {pid}"), failure(Call::PidfdOpen, errno))),
        },
    }
}

/// A failure for people; a call that is not to be had is named, because only the rules of a sandbox or a newer kernel mend it.
fn failure(call: Call, errno: Errno) -> io::Error {
    let source = io::Error::from(errno);
    match meaning(call, errno) {
        Meaning::NoSuchCall => {
            let name = call.name();
            io::Error::new(source.kind(), format!("{name}: {source}; it needs Linux 5.9 and a sandbox that allows it"))
        }
        _ => source,
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::mpsc::channel;

    use super::*;
    use crate::testing::{arguments_for, in_new_namespaces};

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
    fn a_child_is_known_by_the_start_time_that_it_read_itself() {
        let child = sleeper();
        assert_eq!(child.id(), Process::open(child.pid()).unwrap().unwrap().id());
        child.kill().unwrap();
    }

    #[test]
    fn the_pid_of_a_mere_thread_is_nobodys() {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_pid() as u32).unwrap();
            ended.recv().unwrap_err();
        });
        let pid = told.recv().unwrap();
        assert!(Process::open(pid).unwrap().is_none());
        assert!(Process::find(ProcessId { pid, start_time: 1 }).unwrap().is_none());
        drop(end);
        thread.join().unwrap();
    }

    const HIDDEN_PID: &str = "HANDOFF_TEST_HIDDEN_PID";
    const HIDDEN_START_TIME: &str = "HANDOFF_TEST_HIDDEN_START_TIME";

    /// Runs the ignored test `path` where `/proc` does not show this process, as with hidepid=2. Its children are its parent's.
    fn run_where_hidden(process: &Process, path: &str) {
        let nothing = tempfile::tempdir().unwrap();
        let mut command = in_new_namespaces("m");
        command.args(["sh", "-c", "mount --bind $0 /proc/$1 && shift && exec \"$@\""]);
        command.arg(nothing.path()).arg(process.pid().to_string()).arg(std::env::current_exe().unwrap());
        command.args(arguments_for(path));
        command.env(HIDDEN_PID, process.pid().to_string());
        command.env(HIDDEN_START_TIME, process.id().start_time.to_string());
        let output = command.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let passed = output.status.success() && stdout.contains("1 passed");
        assert!(passed, "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    }

    fn hidden() -> ProcessId {
        let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
        ProcessId { pid: number(HIDDEN_PID) as u32, start_time: number(HIDDEN_START_TIME) }
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn finds_one_that_is_hidden() {
        let id = hidden();
        assert_eq!(Descent::of(id.pid).unwrap(), None);
        assert_eq!(Process::open(id.pid).unwrap().unwrap().id(), ProcessId { start_time: 0, ..id });
        assert!(Process::open_with_parent(id.pid).unwrap().unwrap().1.is_none());
        let mut found = Process::find(id).unwrap().unwrap();
        assert_eq!(found.id(), id);
        assert!(!found.is_stopped().unwrap() && !found.has_exited().unwrap());
        for refused in [found.stop(), found.terminate(), found.kill()] {
            let text = refused.unwrap_err().to_string();
            assert!(text.contains(&id.pid.to_string()) && text.contains("hidepid"), "{text}");
        }
        let found = found.vouched_for();
        found.kill().unwrap();
        wait_for_death(&found.pidfd).unwrap();
        assert!(found.is_stopped().unwrap());
        assert!(Process::find(id).unwrap().is_none());
    }

    #[test]
    fn who_is_hidden_lives_as_long_as_its_pidfd_says_and_gets_no_signal_by_its_pid_alone() {
        let mut process = sleeper();
        run_where_hidden(&process, "process::tests::finds_one_that_is_hidden");
        assert_eq!(process.wait().unwrap().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn sees_a_hidden_child_stop() {
        let mut child = sleeper();
        let nothing = tempfile::tempdir().unwrap();
        let place = format!("/proc/{}", child.pid());
        assert!(Command::new("mount").arg("--bind").arg(nothing.path()).arg(&place).status().unwrap().success());
        assert!(!child.is_stopped().unwrap());
        child.stop().unwrap();
        wait_until_stopped(&child);
        child.cont().unwrap();
        while child.is_stopped().unwrap() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(child.is_stopped().unwrap());
    }

    #[test]
    fn a_child_that_hides_is_seen_to_be_stopped() {
        let mut process = sleeper();
        run_where_hidden(&process, "process::tests::sees_a_hidden_child_stop");
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
