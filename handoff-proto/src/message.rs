//! The wire messages, byte for byte.
//!
//! postcard writes a variant's index and then its fields in order, so **the order of variants and of fields is the format**:
//! never reorder, never insert, only append. Messages 0 to 13 are version 1, as `beyond-handoff` 0.1 speaks it; those from 14 on are
//! version 2 and travel only when both sides announced it. `tests/golden.rs` holds the bytes of version 1.
//!
//! O is the incumbent, N the successor, S the supervisor.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bounded;
use crate::version::ProtoVersion;

/// Which of the two roles speaks in a [`Message::Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    /// The process that owns the data.
    Incumbent,
    /// The process that is to take over.
    Successor,
}

/// The name of one handover, drawn by the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HandoffId(Uuid);

impl HandoffId {
    /// A fresh random id (UUID version 4, RFC 9562).
    #[expect(clippy::new_without_default, reason = "two defaults would differ")]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id with these 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for HandoffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        f.pad(self.0.as_hyphenated().encode_lower(&mut text))
    }
}

/// Room for features that are agreed upon at the greeting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capabilities {
    /// Bit 0: [`TRANSFER`](Self::TRANSFER). No other bit is in use.
    pub reserved: u64,
}

impl Capabilities {
    /// The peer takes part in the direct channel between incumbent and successor: [`Message::TransferChannel`].
    pub const TRANSFER: u64 = 1;

    /// What this build offers.
    pub const OURS: Self = Self { reserved: Self::TRANSFER };

    /// Whether the peer takes part in the direct channel.
    pub const fn has_transfer(self) -> bool {
        self.reserved & Self::TRANSFER != 0
    }
}

/// How the data was left for a successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BeginMode {
    /// The incumbent sealed it.
    Sealed,
    /// The incumbent died before it could: recover as after a crash.
    Recover,
}

/// The coarse phase of a handover, as the journal and the status name it. Both store its number: only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Greeted both peers.
    Negotiating,
    /// `Drained` received.
    Draining,
    /// `SealComplete` received.
    Sealing,
    /// `Begin` sent.
    AwaitingReady,
    /// `Commit` sent.
    Committed,
    /// `ResumeAfterAbort` sent.
    ResumingAfterAbort,
}

/// What an incumbent says of itself to people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct StatusReport {
    /// The phase of the handover under way, if one is.
    pub phase: Option<Phase>,
    /// How many shards it has.
    pub shard_count: u32,
    /// How many client connections are open.
    pub open_conns: u32,
    /// The last revision of each shard.
    #[serde(deserialize_with = "bounded::revisions")]
    pub last_revision_per_shard: Vec<u64>,
    /// The epoch under which it writes.
    pub epoch: u64,
}

/// One message on a control channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// O→S, N→S: who I am and what I speak. Travels in a frame of version 1.
    Hello {
        /// The role of the speaker.
        role: Side,
        /// Its pid.
        pid: u32,
        /// What names its build, free in form.
        build_id: Vec<u8>,
        /// The oldest version it speaks.
        proto_min: ProtoVersion,
        /// The newest version it speaks.
        proto_max: ProtoVersion,
        /// Features it offers.
        capabilities: Capabilities,
    },
    /// S→O, S→N: the version to speak, and the handover's name.
    HelloAck {
        /// The version from here on.
        proto_version_chosen: ProtoVersion,
        /// The handover.
        handoff_id: HandoffId,
    },
    /// S→O: stop taking new work and finish what is in hand.
    PrepareHandoff {
        /// The handover.
        handoff_id: HandoffId,
        /// The process that is to take over.
        successor_pid: u32,
        /// How long the whole handover may take, in milliseconds from now.
        deadline_ms: u64,
        /// How long the drain may take, in milliseconds from now.
        drain_grace_ms: u64,
    },
    /// O→S: drained.
    Drained {
        /// Connections that stay open.
        open_conns_remaining: u32,
        /// Whether no new ones are taken.
        accept_closed: bool,
    },
    /// S→O: flush, close the writer, release the lock.
    SealRequest {
        /// The handover.
        handoff_id: HandoffId,
    },
    /// O→S: how far the seal has come.
    SealProgress {
        /// Shards that are sealed.
        shards_sealed: u32,
        /// Shards in all.
        shards_total: u32,
        /// The last revision sealed.
        last_revision: u64,
    },
    /// O→S: sealed, and the lock is released (promise 2).
    SealComplete {
        /// The handover.
        handoff_id: HandoffId,
        /// The last revision of each shard.
        #[serde(deserialize_with = "bounded::revisions")]
        last_revision_per_shard: Vec<u64>,
        /// What identifies the data as sealed.
        data_dir_fingerprint: [u8; 32],
    },
    /// O→S: the seal failed; the lock is still held.
    SealFailed {
        /// The handover.
        handoff_id: HandoffId,
        /// Why.
        error: String,
        /// How far it came.
        partial_state: String,
    },
    /// S→N: it is your turn to take the lock.
    Begin {
        /// The handover.
        handoff_id: HandoffId,
    },
    /// N→S: this is how I stand; if healthy, I serve.
    Ready {
        /// The handover.
        handoff_id: HandoffId,
        /// Addresses that it serves.
        #[serde(deserialize_with = "bounded::addresses")]
        listening_on: Vec<String>,
        /// Whether it is fit to serve.
        healthz_ok: bool,
        /// The last revision of each shard that it opened.
        #[serde(deserialize_with = "bounded::revisions")]
        advertised_revision_per_shard: Vec<u64>,
    },
    /// S→O: somebody else serves; leave.
    Commit {
        /// The handover.
        handoff_id: HandoffId,
    },
    /// S→O, S→N: the handover is off.
    Abort {
        /// The handover.
        handoff_id: HandoffId,
        /// Why.
        reason: String,
    },
    /// S→O: serve again.
    ResumeAfterAbort {
        /// The handover.
        handoff_id: HandoffId,
    },
    /// Any: I am alive. O answers one with one; nobody else does.
    Heartbeat {
        /// The sender's clock, milliseconds since the Unix epoch; for people.
        ts_ms: u64,
    },

    /// N→S (version 2): all that can be loaded without the data is loaded.
    Warmed {
        /// The handover.
        handoff_id: HandoffId,
    },
    /// S→N (version 2): it is your turn, and this is what you will find.
    BeginWith {
        /// The handover.
        handoff_id: HandoffId,
        /// Whether O sealed or died.
        mode: BeginMode,
        /// The revisions that O sealed; empty in [`BeginMode::Recover`].
        #[serde(deserialize_with = "bounded::revisions")]
        sealed_revision_per_shard: Vec<u64>,
        /// What O said of the sealed data; zeros in [`BeginMode::Recover`].
        data_dir_fingerprint: [u8; 32],
        /// The only epoch that the lease may show when N has the lock.
        epoch: u64,
        /// When N must be Active, in nanoseconds of CLOCK_MONOTONIC (clock_gettime(2)).
        deadline_ns: u64,
        /// How long N may go on opening without a word of progress, in milliseconds.
        open_ms: u64,
    },
    /// O→S (version 2): the rollback is complete (promise 6).
    Resumed {
        /// The handover.
        handoff_id: HandoffId,
    },
    /// O→S (version 2): the drain failed; O serves on.
    DrainFailed {
        /// The handover.
        handoff_id: HandoffId,
        /// Why.
        error: String,
    },
    /// S→O (version 2): give me the listening sockets back.
    ListenersRequest,
    /// O→S (version 2): here they are, as SCM_RIGHTS beside this message, in this order (unix(7)).
    Listeners {
        /// Their names.
        #[serde(deserialize_with = "bounded::names")]
        names: Vec<String>,
    },
    /// S→O (version 2): how do you do?
    Status,
    /// O→S (version 2): the answer to it.
    StatusReport(StatusReport),
    /// Any (version 2): a part of the revisions of the message that follows, which would not fit one frame.
    Revisions {
        /// The shard that the first of them belongs to.
        first_shard: u32,
        /// The revisions of that shard and the next ones.
        #[serde(deserialize_with = "bounded::revisions")]
        revisions: Vec<u64>,
    },
    /// N→S (version 2): nothing will come of me, and I leave.
    NotReady {
        /// The handover.
        handoff_id: HandoffId,
        /// Why, in its own words.
        reason: String,
    },
    /// S→O (version 2), before its `PrepareHandoff` and with one descriptor as SCM_RIGHTS (unix(7)): the incumbent's end of
    /// a channel to the successor, which has inherited the other end. Only between peers that both announced
    /// [`Capabilities::TRANSFER`].
    TransferChannel {
        /// The handover.
        handoff_id: HandoffId,
    },
    /// N→S (version 2): I am still opening, and get on: the bound on the opening begins anew.
    OpenProgress {
        /// The handover.
        handoff_id: HandoffId,
    },
}

impl Message {
    /// The oldest protocol version that knows this message.
    pub const fn since_version(&self) -> ProtoVersion {
        match self {
            Self::Hello { .. }
            | Self::HelloAck { .. }
            | Self::PrepareHandoff { .. }
            | Self::Drained { .. }
            | Self::SealRequest { .. }
            | Self::SealProgress { .. }
            | Self::SealComplete { .. }
            | Self::SealFailed { .. }
            | Self::Begin { .. }
            | Self::Ready { .. }
            | Self::Commit { .. }
            | Self::Abort { .. }
            | Self::ResumeAfterAbort { .. }
            | Self::Heartbeat { .. } => 1,
            Self::Warmed { .. }
            | Self::BeginWith { .. }
            | Self::Resumed { .. }
            | Self::DrainFailed { .. }
            | Self::ListenersRequest
            | Self::Listeners { .. }
            | Self::Status
            | Self::StatusReport(_)
            | Self::Revisions { .. }
            | Self::TransferChannel { .. }
            | Self::NotReady { .. }
            | Self::OpenProgress { .. } => 2,
        }
    }
}

/// The variant's name, for errors and logs in which the fields are noise.
pub const fn short_name(message: &Message) -> &'static str {
    match message {
        Message::Hello { .. } => "Hello",
        Message::HelloAck { .. } => "HelloAck",
        Message::PrepareHandoff { .. } => "PrepareHandoff",
        Message::Drained { .. } => "Drained",
        Message::SealRequest { .. } => "SealRequest",
        Message::SealProgress { .. } => "SealProgress",
        Message::SealComplete { .. } => "SealComplete",
        Message::SealFailed { .. } => "SealFailed",
        Message::Begin { .. } => "Begin",
        Message::Ready { .. } => "Ready",
        Message::Commit { .. } => "Commit",
        Message::Abort { .. } => "Abort",
        Message::ResumeAfterAbort { .. } => "ResumeAfterAbort",
        Message::Heartbeat { .. } => "Heartbeat",
        Message::Warmed { .. } => "Warmed",
        Message::BeginWith { .. } => "BeginWith",
        Message::Resumed { .. } => "Resumed",
        Message::DrainFailed { .. } => "DrainFailed",
        Message::ListenersRequest => "ListenersRequest",
        Message::Listeners { .. } => "Listeners",
        Message::Status => "Status",
        Message::StatusReport(_) => "StatusReport",
        Message::Revisions { .. } => "Revisions",
        Message::NotReady { .. } => "NotReady",
        Message::TransferChannel { .. } => "TransferChannel",
        Message::OpenProgress { .. } => "OpenProgress",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: HandoffId = HandoffId::from_bytes([
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x4d, 0xef, 0x80, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
    ]);

    #[test]
    fn an_id_is_printed_as_a_hyphenated_uuid() {
        assert_eq!(ID.to_string(), "01234567-89ab-4def-8011-223344556677");
        assert_eq!(format!("{ID:>40}"), "    01234567-89ab-4def-8011-223344556677");
    }

    #[test]
    fn an_id_is_its_bytes() {
        assert_eq!(HandoffId::from_bytes(*ID.as_bytes()), ID);
        assert!(HandoffId::from_bytes([0; 16]) < ID);
    }

    #[test]
    fn fresh_ids_differ_and_are_random_uuids() {
        let (one, other) = (HandoffId::new(), HandoffId::new());
        assert_ne!(one, other);
        assert_eq!(one.as_bytes()[6] >> 4, 4, "version 4");
    }

    /// The name is the variant's own, whatever its fields hold.
    #[test]
    fn a_short_name_is_the_variants_name() {
        for message in [
            Message::Commit { handoff_id: ID },
            Message::Abort { handoff_id: ID, reason: "Commit".into() },
            Message::StatusReport(StatusReport::default()),
            Message::ListenersRequest,
        ] {
            let debug = format!("{message:?}");
            assert_eq!(debug.split([' ', '(']).next(), Some(short_name(&message)));
        }
    }
}
