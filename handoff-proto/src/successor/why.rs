//! Why a successor gives up, for people and for the driver's error types.

use crate::version::{PROTO_MAX, PROTO_MIN, ProtoVersion};

/// Why a successor gave up. The incumbent serves, or will.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum GaveUp {
    /// The supervisor called it off.
    #[error("the supervisor called it off: {reason}")]
    Aborted {
        /// In its own words.
        reason: String,
    },
    /// The channel closed before `Begin`.
    #[error("the supervisor closed the channel before it was this process's turn")]
    SupervisorGone,
    /// The supervisor stopped talking before `Begin`.
    #[error("the supervisor has been silent for too long")]
    SupervisorSilent,
    /// The deadline has passed.
    #[error("the handover's deadline has passed")]
    Late,
    /// The lease is not the one that `Begin` was about: that handover is over.
    #[error("the lease shows epoch {found}{}: that handover is over", expected_epoch(*.expected))]
    NotItsTurn {
        /// The epoch that `BeginWith` named.
        expected: Option<u64>,
        /// The epoch in the lease; 0 without one.
        found: u64,
    },
    /// The supervisor chose a version that this build does not speak.
    #[error("the supervisor chose protocol version {chosen}, this build speaks {PROTO_MIN}..={PROTO_MAX}")]
    Version {
        /// What it chose.
        chosen: ProtoVersion,
    },
    /// The supervisor sent a message that has no place there, or with a wrong id.
    #[error("the supervisor sent {message} out of place")]
    Unexpected {
        /// The message's name.
        message: &'static str,
    },
    /// The supervisor sent bytes that are no message.
    #[error("the supervisor sent bytes that are no message")]
    Garbage,
    /// The daemon must not take over.
    #[error(transparent)]
    Unfit(Unfit),
    /// The daemon announced itself with a lock that did not come through this handover.
    #[error("the lock did not come from this handover's lock(): a successor has no other way to it")]
    WrongLock,
    /// The lock, the lease or the control socket failed.
    #[error("{reason}")]
    StepFailed {
        /// How.
        reason: String,
    },
    /// Another process had the lock until the deadline.
    #[error("another process held the data directory's lock until the deadline; `handoff lock` names it")]
    LockHeld,
    /// The daemon gave up, and said why.
    #[error("{reason}")]
    Daemon {
        /// In its own words.
        reason: String,
    },
    /// The daemon let go of its handle.
    #[error("the daemon let go of the handover before it announced itself, and did not say why; its log may")]
    Dropped,
}

/// Why a daemon must not take over (promise 3).
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unfit {
    /// It said so.
    #[error("it reports itself unhealthy")]
    Unhealthy,
    /// Shards are missing.
    #[error("it opened {opened} shards, {sealed} were sealed")]
    FewerShards {
        /// How many it opened.
        opened: usize,
        /// How many were sealed.
        sealed: usize,
    },
    /// Acknowledged writes are missing.
    #[error("it opened shard {shard} at revision {opened}, sealed was {sealed}")]
    LowerRevision {
        /// The shard.
        shard: usize,
        /// What it opened.
        opened: u64,
        /// What was sealed.
        sealed: u64,
    },
    /// It opened other data.
    #[error("the fingerprint of what it opened is not that of what was sealed")]
    OtherData,
    /// The report can't be sent.
    #[error("its report does not fit the protocol's frames; name fewer addresses or shards")]
    ReportTooLarge,
}

fn expected_epoch(expected: Option<u64>) -> String {
    expected.map_or_else(|| " of another handover".into(), |epoch| format!(", {epoch} was expected"))
}
