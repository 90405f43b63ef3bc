//! One of the two other processes of a handover: the process by the kernel's word, its channel, and whether its death was told.
//! Decides nothing.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use rustix::event::PollFlags;

use crate::channel::Channel;
use crate::control;
use crate::error::{Error, Result};
use crate::process::Process;

use super::AtHand;

/// An incumbent or a successor, seen from the supervisor.
pub(super) struct Peer {
    pub(super) process: Process,
    /// None when either side has closed it.
    pub(super) channel: Option<Channel>,
    pub(super) life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Watched,
    /// Its death was told to the machine.
    Told,
}

impl Peer {
    pub(super) fn new(process: Process, channel: Channel) -> Self {
        Self { process, channel: Some(channel), life: Life::Watched }
    }

    /// The incumbent that answers at `control_path`, by what is `at_hand` of it where that is so.
    ///
    /// # Errors
    /// Nobody listens there, or a process that is not to be seen from here.
    pub(super) fn incumbent(control_path: &Path, at_hand: AtHand) -> Result<Self> {
        let AtHand { process: known, connected } = at_hand;
        let channel = connected.map_or_else(|| control::connect(control_path), Ok)?;
        let doing = || format!("ask who listens at {}", control_path.display());
        let pid = channel.peer().map_err(|error| Error::io(doing(), error))?.pid;
        let known = known.filter(|known| known.pid() == pid).and_then(|known| known.if_alive());
        match known.map_or_else(|| Process::open(pid), |known| Ok(Some(known)))? {
            Some(process) => Ok(Self::new(process, channel)),
            None => Err(Error::NotTried {
                reason: format!(
                    "{}: process {pid} listens there, but is not to be seen from here",
                    control_path.display()
                ),
            }),
        }
    }

    /// How it has died, for people.
    pub(super) fn how_it_ended(&mut self) -> String {
        match self.process.try_wait() {
            Ok(Some(status)) => describe(status),
            Ok(None) | Err(_) => "died".into(),
        }
    }
}

/// What is to be waited for on a channel.
pub(super) fn channel_events(channel: &Channel) -> PollFlags {
    if channel.wants_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
}

/// Who listens at the control path, by the kernel's word: it needs not even answer.
pub(super) fn listener_at(control_path: &Path) -> Option<u32> {
    control::connect(control_path).ok()?.peer().ok().map(|peer| peer.pid)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "died".into(),
    }
}
