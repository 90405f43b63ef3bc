//! A successor's errands: the lock, the lease and the control socket. Each is one act, run on the daemon's thread.
//!
//! What a failed errand had to say is kept for the error that the daemon's call returns with.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use handoff_lock::{Attempt, Claim, Lease, ServingLock, Unlocked};
use handoff_proto::successor::{Age, Errand, Found, Outcome};

use crate::control::{ControlSocket, StagedControl};
use crate::error::{Error, Result};
use crate::events;
use crate::ownership;
use crate::sys::fork::StaysHere;
use crate::timers::now_ns;
use crate::transfer::{self, Collected};

/// What the errands have brought so far.
#[derive(Debug)]
pub(super) struct Hands {
    build_id: Vec<u8>,
    control_path: PathBuf,
    /// To the incumbent, until what lies in it is collected.
    transfer: Option<StaysHere>,
    hold: Hold,
    control: Control,
    error: Option<Error>,
}

/// What a successor that has taken over serves with.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) control: ControlSocket,
    pub(crate) lock: ServingLock,
    pub(crate) build_id: Vec<u8>,
}

#[derive(Debug)]
enum Hold {
    Nothing,
    Unlocked(Unlocked),
    Claim(Claim),
    /// A drop keeps it until the process exits: the daemon's store may be open.
    Lock(ServingLock),
}

#[derive(Debug)]
enum Control {
    Nothing,
    Staged(StagedControl),
    Published(ControlSocket),
}

impl Hands {
    pub(super) fn new(build_id: Vec<u8>, transfer: Option<StaysHere>) -> Self {
        let (hold, control) = (Hold::Nothing, Control::Nothing);
        Self { build_id, control_path: PathBuf::new(), transfer, hold, control, error: None }
    }

    /// The lock that is to be tried.
    pub(super) fn look_at(&mut self, unlocked: Unlocked) {
        self.hold = Hold::Unlocked(unlocked);
    }

    /// The lock that the daemon gives back, and where it wants to answer.
    pub(super) fn present(&mut self, lock: ServingLock, control_path: &Path) {
        self.hold = Hold::Lock(lock);
        self.control_path = control_path.to_owned();
    }

    /// Binds the control socket when nobody waits for it.
    pub(super) fn stage_ahead(&mut self, control_path: &Path) -> Result<()> {
        self.control = Control::Nothing;
        self.control = Control::Staged(StagedControl::bind(control_path)?);
        Ok(())
    }

    /// The lock, for the daemon.
    pub(super) fn take_lock(&mut self) -> Result<ServingLock> {
        match std::mem::replace(&mut self.hold, Hold::Nothing) {
            Hold::Lock(lock) => Ok(lock),
            other => {
                self.hold = other;
                Err(missing("lock"))
            }
        }
    }

    /// All that an incumbent needs; the lease is Active.
    pub(super) fn take_serving(&mut self) -> Result<Serving> {
        let Control::Published(control) = std::mem::replace(&mut self.control, Control::Nothing) else {
            return Err(missing("control socket"));
        };
        Ok(Serving { control, lock: self.take_lock()?, build_id: std::mem::take(&mut self.build_id) })
    }

    /// Why the last errand failed.
    pub(super) fn take_error(&mut self) -> Error {
        self.error.take().unwrap_or_else(|| missing("reason"))
    }

    pub(super) fn perform(&mut self, errand: Errand, begun_unix_ms: u64) -> Outcome {
        let done = match errand {
            Errand::TryLock => self.try_lock(begun_unix_ms),
            Errand::ClaimLease { handoff_id } => self.claim_lease(*handoff_id.as_bytes()),
            Errand::Unlock => self.unlock(),
            Errand::StageControl => self.stage_control(),
            Errand::PublishControl => self.publish_control(),
            Errand::ActivateLease { not_after_ns } => self.activate_lease(not_after_ns),
        };
        done.unwrap_or_else(|error| {
            events::error!(%error, "the successor can't take over");
            let reason = error.to_string();
            self.error = Some(error);
            Outcome::Failed { reason }
        })
    }

    fn try_lock(&mut self, begun_unix_ms: u64) -> Result<Outcome> {
        let Hold::Unlocked(unlocked) = std::mem::replace(&mut self.hold, Hold::Nothing) else {
            return Err(missing("lock to try"));
        };
        let unlocked = self.with_passed_directory(unlocked)?;
        match unlocked.try_lock() {
            Attempt::Locked(claim) => {
                let found = found(claim.found(), begun_unix_ms);
                self.hold = Hold::Claim(claim);
                Ok(Outcome::Locked(found))
            }
            Attempt::Held(unlocked) => {
                let found = found(unlocked.read_lease()?.as_ref(), begun_unix_ms);
                self.hold = Hold::Unlocked(unlocked);
                Ok(Outcome::Held(found))
            }
            Attempt::Failed(_, error) => Err(error.into()),
        }
    }

    /// Takes part in the directory's lock, if the incumbent has passed it: then only the lock file is to be had.
    fn with_passed_directory(&mut self, mut unlocked: Unlocked) -> Result<Unlocked> {
        let Some(channel) = self.transfer.take() else { return Ok(unlocked) };
        let failed =
            |error| Error::io("take part in the lock of the data directory, which the incumbent has passed", error);
        match transfer::collect(channel.as_fd()).map_err(failed)? {
            Collected::Directory(directory) => unlocked.adopt_directory(directory)?,
            Collected::Nothing(reason) => events::info!(reason, "the incumbent has not passed the directory's lock"),
        }
        Ok(unlocked)
    }

    fn claim_lease(&mut self, handoff_id: [u8; 16]) -> Result<Outcome> {
        let Hold::Claim(claim) = std::mem::replace(&mut self.hold, Hold::Nothing) else { return Err(missing("lock")) };
        let lock = claim.claim_quietly(Some(handoff_id)).map_err(|(_, error)| error)?;
        let epoch = lock.lease().epoch;
        self.hold = Hold::Lock(lock.for_serving());
        Ok(Outcome::Claimed { epoch })
    }

    fn unlock(&mut self) -> Result<Outcome> {
        match std::mem::replace(&mut self.hold, Hold::Nothing) {
            Hold::Nothing | Hold::Unlocked(_) => {}
            Hold::Claim(claim) => drop(claim.unlock()),
            Hold::Lock(lock) => lock.release()?,
        }
        Ok(Outcome::Done)
    }

    fn stage_control(&mut self) -> Result<Outcome> {
        match &self.control {
            Control::Staged(staged) if staged.path() == self.control_path => {}
            Control::Nothing | Control::Staged(_) | Control::Published(_) => {
                // The name that it was staged under is free before it is bound again.
                self.control = Control::Nothing;
                self.control = Control::Staged(StagedControl::bind(&self.control_path)?);
            }
        }
        Ok(Outcome::Done)
    }

    fn publish_control(&mut self) -> Result<Outcome> {
        match std::mem::replace(&mut self.control, Control::Nothing) {
            Control::Staged(staged) => self.control = Control::Published(staged.publish()?),
            Control::Nothing | Control::Published(_) => return Err(missing("staged control socket")),
        }
        Ok(Outcome::Done)
    }

    fn activate_lease(&mut self, not_after_ns: Option<u64>) -> Result<Outcome> {
        let Hold::Lock(lock) = &mut self.hold else { return Err(missing("lock")) };
        if not_after_ns.is_some_and(|not_after_ns| now_ns() > not_after_ns) {
            return Ok(Outcome::TooLate);
        }
        lock.activate(&self.build_id)?;
        Ok(Outcome::Done)
    }
}

/// The machine asked for errands in an order in which it never does.
fn missing(what: &str) -> Error {
    Error::Protocol(format!("an errand of the successor found no {what}"))
}

fn found(lease: Option<&Lease>, begun_unix_ms: u64) -> Found {
    let view = lease.and_then(|lease| Some((lease, ownership::view(lease)?)));
    view.map_or(Found::Nothing, |(lease, view)| {
        let age = if lease.since_unix_ms > begun_unix_ms { Age::AfterBegin } else { Age::BeforeBegin };
        Found::Lease { lease: view, age }
    })
}
