//! What goes into the successor's machine and what comes out of it.

use std::time::Duration;

use super::why::GaveUp;
use crate::lease::LeaseView;
use crate::message::{BeginMode, HandoffId, Message};
use crate::version::ProtoVersion;

/// What can happen to a successor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The channel to the supervisor.
    Wire(Wire),
    /// The daemon. Every call but [`Call::GiveUp`] and [`Call::Dropped`] blocks until its one [`Answer`].
    Daemon(Call),
    /// The daemon gets on with opening its data.
    Progressed,
    /// What came of the [`Errand`] under way.
    Did(Outcome),
    /// A timer has run out.
    Fired(Timer),
    /// The driver's own loop was late: who seemed silent may not have been.
    WokeLate,
}

/// What the channel brings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wire {
    /// A message.
    Message(Message),
    /// Bytes that are no message.
    Garbage,
    /// The channel has ended, or can't be written to.
    Closed,
}

/// What the daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Call {
    /// Greet the supervisor.
    Handshake,
    /// All that can be loaded without the data is loaded.
    Warmed,
    /// Wait for the turn.
    WaitForBegin,
    /// Take the lock.
    Lock,
    /// Become the incumbent.
    Announce {
        /// How the daemon stands.
        report: Report,
        /// The lock that it presents.
        lock: LockShown,
    },
    /// The daemon gives up, and says why.
    GiveUp(String),
    /// The daemon lets go of its handle without a word.
    Dropped,
}

impl Call {
    /// Why the daemon gives up, if that is what it does.
    pub(super) fn parting(&self) -> Option<GaveUp> {
        match self {
            Self::GiveUp(reason) => Some(GaveUp::Daemon { reason: reason.clone() }),
            Self::Dropped => Some(GaveUp::Dropped),
            Self::Handshake | Self::Warmed | Self::WaitForBegin | Self::Lock | Self::Announce { .. } => None,
        }
    }
}

/// How a daemon stands that has opened its data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Report {
    /// Addresses that it will serve.
    pub listening_on: Vec<String>,
    /// Whether it is fit to serve.
    pub healthz_ok: bool,
    /// The last revision of each shard that it opened.
    pub advertised_revision_per_shard: Vec<u64>,
    /// What identifies the data that it opened, if it can tell: compared with what the incumbent said of its seal.
    pub data_dir_fingerprint: Option<[u8; 32]>,
}

/// What tells one holding of the lock from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockShown {
    /// The epoch of its lease.
    pub epoch: u64,
    /// The handover that its lease names.
    pub handoff_id: Option<HandoffId>,
}

/// What came of an errand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// [`Errand::TryLock`]: somebody else has the lock; the lease as read without it.
    Held(Found),
    /// [`Errand::TryLock`]: locked; the lease as read under the lock.
    Locked(Found),
    /// [`Errand::ClaimLease`]: the lease is this successor's, Opening, under this epoch.
    Claimed {
        /// The new epoch.
        epoch: u64,
    },
    /// The errand succeeded and has no more to say.
    Done,
    /// [`Errand::ActivateLease`]: it was too late, nothing was written.
    TooLate,
    /// The errand failed. A failed claim has unlocked.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The lease as an errand found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// None, or one of an earlier boot: nobody owns the data.
    Nothing,
    /// One.
    Lease {
        /// The reading.
        lease: LeaseView,
        /// When it was written.
        age: Age,
    },
}

impl Found {
    /// Its epoch; 0, which no lease ever has, when there is none.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Lease { lease, .. } => lease.epoch,
        }
    }
}

/// When a lease was written. Only version 1 looks at it, whose `Begin` names no epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Age {
    /// Before this successor's `Begin` arrived.
    BeforeBegin,
    /// After it.
    AfterBegin,
}

/// The successor's timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The supervisor's answer to `Hello` is due.
    Hello,
    /// The supervisor has been silent for longer than any handover takes.
    Supervisor,
    /// A heartbeat is due.
    Heartbeat,
    /// The handover must be over.
    Deadline,
    /// The lock is worth another try.
    LockRetry,
    /// Another word of progress may go out.
    Progress,
}

/// How far it has come; for crash points, events and time stamps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Milestone {
    /// About to greet.
    Starting,
    /// Greeted.
    Greeted(HandoffId),
    /// All is loaded that needs no data.
    Warmed,
    /// Told to begin.
    Begun,
    /// The lock and the lease are its own.
    Locked {
        /// The new epoch.
        epoch: u64,
    },
    /// About to check the daemon's report.
    Announcing,
    /// The lease says Active.
    Active,
    /// The supervisor was told.
    Ready,
    /// It has given up.
    Left(GaveUp),
}

/// An act on the file system that may block; its [`Outcome`] comes back as an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errand {
    /// Try the lock once and read the lease: [`Outcome::Held`], [`Outcome::Locked`] or [`Outcome::Failed`].
    TryLock,
    /// Write the next epoch, Opening: [`Outcome::Claimed`] or [`Outcome::Failed`].
    ClaimLease {
        /// The handover to name in it.
        handoff_id: HandoffId,
    },
    /// Let go of the lock: [`Outcome::Done`].
    Unlock,
    /// Bind the control socket under a name of its own: [`Outcome::Done`] or [`Outcome::Failed`].
    StageControl,
    /// Rename it into place: [`Outcome::Done`] or [`Outcome::Failed`].
    PublishControl,
    /// Write Active, unless it is too late: [`Outcome::Done`], [`Outcome::TooLate`] or [`Outcome::Failed`].
    ActivateLease {
        /// CLOCK_MONOTONIC, nanoseconds; looked at right before the write.
        not_after_ns: Option<u64>,
    },
}

/// What the machine asks its driver to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send a message in a frame of this version.
    Send(ProtoVersion, Message),
    /// Send a heartbeat, stamped with the driver's clock.
    Heartbeat(ProtoVersion),
    /// Close the channel.
    HangUp,
    /// Set a timer, in place of an earlier setting.
    Arm(Timer, Duration),
    /// Set a timer to a time of CLOCK_MONOTONIC in nanoseconds.
    ArmAt(Timer, u64),
    /// Unset a timer.
    Disarm(Timer),
    /// Somewhere worth noting was reached.
    Reached(Milestone),
    /// Let the daemon's call return.
    Answer(Answer),
    /// Start an errand.
    Do(Errand),
}

/// What a call of the daemon returns with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    /// [`Call::Handshake`].
    Greeted {
        /// The handover.
        handoff_id: HandoffId,
        /// The version spoken.
        version: ProtoVersion,
    },
    /// [`Call::Warmed`].
    Done,
    /// [`Call::WaitForBegin`].
    Begun {
        /// How the data was left.
        mode: BeginMode,
        /// What was sealed, if that is known.
        sealed: Option<Sealed>,
    },
    /// [`Call::Lock`].
    Locked {
        /// How the data was left, as the lease shows it: a bare `Begin` does not say.
        mode: BeginMode,
    },
    /// [`Call::Announce`]: it is the incumbent.
    Announced,
    /// The handover is off.
    GaveUp(GaveUp),
    /// The call makes no sense at this point; nothing happened.
    Misuse,
}

/// What the incumbent said of the data that it sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Sealed {
    /// The last revision of each shard.
    pub last_revision_per_shard: Vec<u64>,
    /// What identifies the data.
    pub data_dir_fingerprint: [u8; 32],
}
