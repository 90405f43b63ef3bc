//! The turn of one successor: what it was sent for, and the pure checks on the lease and on the daemon's report.

use std::time::Duration;

use super::inputs::{Age, Answer, Found, Report, Sealed};
use super::why::{GaveUp, Unfit};
use crate::bounded::{ADDRESSES_MAX, brief};
use crate::lease::{LeaseState, LeaseView};
use crate::message::{BeginMode, HandoffId, Message};
use crate::revisions::{self, SHARDS_MAX};
use crate::version::ProtoVersion;

/// A word of progress costs little, and a tight loop of them must not fill the channel.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(20);

/// What the greeting settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) version: ProtoVersion,
    pub(super) handoff_id: HandoffId,
}

/// A handover in which it is this successor's turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Turn {
    pub(super) session: Session,
    pub(super) order: Order,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Order {
    /// Version 1: nothing but the word.
    Begin,
    /// Version 2.
    BeginWith { mode: BeginMode, sealed: Sealed, epoch: u64, deadline_ns: u64, open_ms: u64 },
}

impl Turn {
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        match &self.order {
            Order::Begin => None,
            Order::BeginWith { deadline_ns, .. } => Some(*deadline_ns),
        }
    }

    pub(super) fn answer(&self) -> Answer {
        match &self.order {
            Order::Begin => Answer::Begun { mode: self.mode_untold(), sealed: None },
            Order::BeginWith { mode: mode @ BeginMode::Recover, .. } => Answer::Begun { mode: *mode, sealed: None },
            Order::BeginWith { mode, sealed, .. } => Answer::Begun { mode: *mode, sealed: Some(sealed.clone()) },
        }
    }

    /// What a bare `Begin` means. A supervisor of version 1 says it only after a seal. One of version 2 that sees no lease
    /// says it after a death too, and to recover is never wrong.
    fn mode_untold(&self) -> BeginMode {
        if self.session.version >= 2 { BeginMode::Recover } else { BeginMode::Sealed }
    }

    /// The same once the lease is known.
    pub(super) fn mode_under_the_lock(&self, found: &Found) -> BeginMode {
        match (&self.order, found) {
            (Order::BeginWith { mode, .. }, _) => *mode,
            (Order::Begin, Found::Lease { lease, .. }) if self.is_own_seal(lease) => BeginMode::Sealed,
            (Order::Begin, _) => self.mode_untold(),
        }
    }

    fn is_own_seal(&self, lease: &LeaseView) -> bool {
        lease.handoff_id == Some(self.session.handoff_id) && lease.state == LeaseState::Sealed
    }

    /// Under the lock: is the lease the one that this successor was sent for?
    pub(super) fn has_come(&self, found: &Found) -> bool {
        match (&self.order, found) {
            (Order::BeginWith { epoch, .. }, found) => found.epoch() == *epoch,
            (Order::Begin, Found::Nothing | Found::Lease { age: Age::BeforeBegin, .. }) => true,
            (Order::Begin, Found::Lease { lease, age: Age::AfterBegin }) => self.is_own_seal(lease),
        }
    }

    /// Without the lock: has somebody else gone on already? The lease may still change, so only a newer one counts.
    pub(super) fn is_overtaken(&self, found: &Found) -> bool {
        match &self.order {
            Order::BeginWith { epoch, .. } => found.epoch() > *epoch,
            Order::Begin => !self.has_come(found),
        }
    }

    pub(super) fn not_its_turn(&self, found: &Found) -> GaveUp {
        let expected = match &self.order {
            Order::Begin => None,
            Order::BeginWith { epoch, .. } => Some(*epoch),
        };
        GaveUp::NotItsTurn { expected, found: found.epoch() }
    }

    /// Why this report must not be committed (promise 3), if it must not.
    pub(super) fn unfit(&self, report: &Report) -> Option<Unfit> {
        if !report.healthz_ok {
            return Some(Unfit::Unhealthy);
        }
        let opened = &report.advertised_revision_per_shard;
        if let Order::BeginWith { mode: BeginMode::Sealed, sealed, .. } = &self.order {
            let sealed = &sealed.last_revision_per_shard;
            if opened.len() < sealed.len() {
                return Some(Unfit::FewerShards { opened: opened.len(), sealed: sealed.len() });
            }
            let lower = opened.iter().zip(sealed).enumerate().find(|(_, (opened, sealed))| opened < sealed);
            if let Some((shard, (&opened, &sealed))) = lower {
                return Some(Unfit::LowerRevision { shard, opened, sealed });
            }
        }
        if self.is_other_data(report) {
            return Some(Unfit::OtherData);
        }
        let (_, ready) = self.ready(report.clone());
        let is_too_long = opened.len() > SHARDS_MAX || report.listening_on.len() > ADDRESSES_MAX;
        if is_too_long || !revisions::fits_a_frame(self.session.version, &ready) {
            return Some(Unfit::ReportTooLarge);
        }
        None
    }

    /// Whether the daemon has opened something else than what was sealed, as far as both can tell.
    fn is_other_data(&self, report: &Report) -> bool {
        match (&self.order, report.data_dir_fingerprint) {
            (Order::BeginWith { mode: BeginMode::Sealed, sealed, .. }, Some(opened)) => {
                sealed.data_dir_fingerprint != opened
            }
            (Order::BeginWith { .. } | Order::Begin, _) => false,
        }
    }

    pub(super) fn ready(&self, report: Report) -> (Vec<Message>, Message) {
        let split = revisions::split(self.session.version, report.advertised_revision_per_shard);
        let ready = Message::Ready {
            handoff_id: self.session.handoff_id,
            listening_on: report.listening_on,
            healthz_ok: report.healthz_ok,
            advertised_revision_per_shard: split.rest,
        };
        (split.ahead, ready)
    }

    /// How often a supervisor hears that the opening gets on: several times within its bound. It has one in version 2 only.
    pub(super) fn progress_interval(&self) -> Option<Duration> {
        match &self.order {
            Order::Begin => None,
            Order::BeginWith { open_ms, .. } => Some(Duration::from_millis(*open_ms / 8).max(PROGRESS_INTERVAL_MIN)),
        }
    }
}

impl Session {
    /// Whether the supervisor is told. One of version 1 takes every `Ready` for a success and lets the incumbent leave;
    /// to it a closed channel is the only way to say no. One that aborted, or is not of this time any more, knows.
    pub(super) fn tells(self, why: &GaveUp) -> bool {
        self.version >= 2 && !matches!(why, GaveUp::Aborted { .. } | GaveUp::NotItsTurn { .. })
    }

    pub(super) fn not_ready(self, why: &GaveUp) -> Message {
        Message::NotReady { handoff_id: self.handoff_id, reason: brief(why.to_string()) }
    }
}
