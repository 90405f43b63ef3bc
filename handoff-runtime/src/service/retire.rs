//! Processes on their way out: told to leave, then SIGTERM, then SIGKILL, each after `retire` time; no old generation lives on.
//!
//! ```text
//!   Asked ── retire ──► Terminated ── retire ──► Killed
//!     └──────── leaves ──────┴────────────────────┴──► reaped and forgotten
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use handoff_proto::{HandoffId, ProcessId};
use rustix::event::{PollFd, PollFlags};

use crate::events::{info, warn};
use crate::process::Process;
use crate::sys::poll;
use crate::timers::instant_after;
use crate::{Error, Result};

/// Sends SIGTERM to all of them, and SIGKILL to those that are still there after `retire`. They are gone then.
///
/// # Errors
/// The system's: one may not be signalled, or can't be waited for.
pub(super) fn end_all(mut leaving: Vec<Process>, retire: Duration) -> Result<()> {
    leaving.iter().try_for_each(Process::terminate)?;
    let until = instant_after(retire);
    for process in &mut leaving {
        while !process.has_exited()? && Instant::now() < until {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            let left = until.saturating_duration_since(Instant::now());
            poll::wait(&mut fds, Some(left)).map_err(|error| Error::io("wait for old processes", error))?;
        }
        process.kill()?;
        process.wait()?;
    }
    Ok(())
}

/// One process on its way out.
#[derive(Debug)]
pub(super) struct Retiring {
    process: Process,
    stage: Stage,
    replaced: Option<Replaced>,
}

/// The handover in which a process was told to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replaced {
    pub(super) handoff_id: HandoffId,
    /// When, on CLOCK_MONOTONIC.
    pub(super) committed_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    Terminated,
    Killed,
}

/// How a process went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// It had come to its end.
    ByItself,
    /// In the middle of anything, as far as this knows.
    CutOff,
}

impl Retiring {
    /// It was told to leave by other means, such as `Commit`.
    pub(super) fn asked(process: Process) -> Self {
        Self { process, stage: Stage::Asked, replaced: None }
    }

    /// It was told to leave by the `Commit` of this handover.
    pub(super) fn committed(process: Process, replaced: Option<Replaced>) -> Self {
        Self { replaced, ..Self::asked(process) }
    }

    /// It was killed already, and the kernel still holds it.
    pub(super) fn killed(process: Process) -> Self {
        Self { process, stage: Stage::Killed, replaced: None }
    }

    pub(super) fn id(&self) -> ProcessId {
        self.process.id()
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The handover that it left in, if this service has seen it.
    pub(super) fn replaced(&self) -> Option<Replaced> {
        self.replaced
    }

    /// Its pidfd.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Sends SIGTERM if it has not been sent yet.
    pub(super) fn terminate(&mut self) {
        if self.stage == Stage::Asked {
            self.stage = Stage::Terminated;
            self.report(self.process.terminate());
        }
    }

    /// Its time is over.
    pub(super) fn press(&mut self) {
        match self.stage {
            Stage::Asked => {
                warn!(pid = self.pid(), "the old process has not left in time: SIGTERM");
                self.terminate();
            }
            Stage::Terminated | Stage::Killed => {
                warn!(pid = self.pid(), "the process has not left after SIGTERM: SIGKILL");
                self.stage = Stage::Killed;
                self.report(self.process.kill());
            }
        }
    }

    /// How it went, once it is gone; it is then reaped, if it was our child.
    pub(super) fn gone(&mut self) -> Option<Gone> {
        if !self.process.has_exited().unwrap_or(false) {
            return None;
        }
        match self.process.try_wait() {
            Ok(Some(status)) => {
                info!(pid = self.pid(), %status, "the process has left");
                return Some(if status.success() { Gone::ByItself } else { Gone::CutOff });
            }
            Ok(None) => info!(pid = self.pid(), "the process has left"),
            Err(error) => warn!(pid = self.pid(), %error, "the process has left and can't be reaped"),
        }
        Some(Gone::CutOff)
    }

    fn report(&self, sent: crate::Result<()>) {
        if let Err(error) = sent {
            warn!(pid = self.pid(), %error, "a signal could not be sent");
        }
    }
}
