//! A disk whose every sync is slower, for all sides alike.
//!
//! ```text
//! a side's process ──fsync, fdatasync──▶ held by the kernel ──▶ here: so much later ──▶ the kernel goes on with it
//! ```
//!
//! A filter of the kernel's (seccomp(2), user notification) holds exactly these two calls, whoever makes them: through libc or
//! not, in a side's supervisor or in any of its daemons. No other call is touched, and what was held is then really done. It
//! needs no privilege and no other program.
//!
//! Each side counts the syncs that were held, so that the report can show that the delay reached it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::sys;

/// Where a process that is to be slowed down hands in its filter.
const VARIABLE: &str = "HANDOFF_BENCH_SLOW_SYNC";

/// Turns this process into one whose syncs are slow, if its environment says so; its children inherit that. It runs itself
/// again without the variable, because its descendants must not do it once more.
pub(super) fn enter() {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    let error = match hand_in(Path::new(&path)) {
        Ok(()) => {
            let again = std::env::current_exe();
            again.map_or_else(|error| error, |exe| again_without_the_variable(&exe))
        }
        Err(error) => error,
    };
    eprintln!("handoff-bench: syncs can't be made slower here: {error}");
    std::process::exit(1);
}

fn again_without_the_variable(exe: &Path) -> io::Error {
    Command::new(exe).args(std::env::args_os().skip(1)).env_remove(VARIABLE).exec()
}

fn hand_in(path: &Path) -> io::Result<()> {
    let bench = UnixStream::connect(path)?;
    let filter = sys::hold_syncs()?;
    let fds = [filter.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    message.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&bench, &[IoSlice::new(b"f")], &mut message, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Makes the syncs of one side slower. Dropping it ends nothing: its processes must end first.
#[derive(Debug)]
pub(super) struct SlowSync {
    path: PathBuf,
    held: Arc<AtomicU64>,
}

impl SlowSync {
    /// Waits for processes that hand in their filter at `path`.
    ///
    /// # Errors
    /// The socket can't be bound.
    pub(super) fn start(path: &Path, delay: Duration) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let held = Arc::new(AtomicU64::new(0));
        let slow = Self { path: path.to_owned(), held: Arc::clone(&held) };
        thread::Builder::new().name("slow-sync-door".into()).spawn(move || {
            for process in listener.incoming().flatten() {
                let held = Arc::clone(&held);
                if let Ok(filter) = receive(&process) {
                    let _ =
                        thread::Builder::new().name("slow-sync".into()).spawn(move || slow_down(&filter, delay, &held));
                }
            }
        })?;
        Ok(slow)
    }

    /// What a process must find in its environment.
    pub(super) fn variable(&self) -> (String, String) {
        (VARIABLE.to_owned(), self.path.to_string_lossy().into_owned())
    }

    /// How many syncs were held so far.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

fn receive(process: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(process, &mut [IoSliceMut::new(&mut byte)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    let fds = message.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.flatten().next().ok_or_else(|| io::Error::other("no filter was handed in"))
}

/// Lets every held sync go on when its time has come, until no process is left. The delay is the same for all of them, so the
/// first one that was held is the first one to go on.
fn slow_down(filter: &OwnedFd, delay: Duration, count: &AtomicU64) {
    let mut held = VecDeque::new();
    loop {
        let now = Instant::now();
        while let Some(&(_, due)) = held.front()
            && due <= now
        {
            if let Some((id, _)) = held.pop_front() {
                // The process may have been killed meanwhile.
                let _ = sys::go_on(filter.as_fd(), id);
            }
        }
        let wait = held.front().map(|(_, due): &(u64, Instant)| due.saturating_duration_since(now));
        let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let mut fds = [PollFd::new(filter, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let said = fds[0].revents();
        if said.contains(PollFlags::IN) {
            if let Ok(id) = sys::next_held(filter.as_fd()) {
                count.fetch_add(1, Ordering::Relaxed);
                held.push_back((id, Instant::now() + delay));
            }
        } else if said.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            return;
        }
    }
}
