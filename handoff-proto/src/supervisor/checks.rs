//! The supervisor's judgements, as plain functions: is it the successor's turn, and is it fit.

use crate::lease::{LeaseState, LeaseView, ProcessId};
use crate::message::HandoffId;
use crate::version::ProtoVersion;

use super::LeaseReading;

/// What the incumbent said of the data that it sealed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Seal {
    pub(super) revisions: Vec<u64>,
    pub(super) fingerprint: [u8; 32],
}

/// Whether the sealed data may be given to a successor; the epoch that it will find, zero where no lease is.
///
/// An incumbent of version 1 keeps no lease, so what an older one left behind neither helps nor hinders.
pub(super) fn turn_after_seal(
    reading: &LeaseReading,
    incumbent: ProcessId,
    version: ProtoVersion,
    handoff_id: HandoffId,
) -> Result<u64, String> {
    match reading {
        LeaseReading::Found(lease) if version < 2 => Ok(lease.epoch),
        LeaseReading::Nobody if version < 2 => Ok(0),
        LeaseReading::Found(lease)
            if lease.owner == incumbent
                && lease.state == LeaseState::Sealed
                && lease.handoff_id == Some(handoff_id) =>
        {
            Ok(lease.epoch)
        }
        LeaseReading::Found(lease) => {
            Err(format!("the lease is not the incumbent's seal of this handover, but {}", describe(lease)))
        }
        LeaseReading::Nobody => Err("the data directory has no lease, though the incumbent said that it sealed".into()),
        LeaseReading::Unreadable(error) => Err(format!("the lease can't be read: {error}")),
    }
}

/// Whether the data of a dead incumbent may be given to a successor; the epoch that it will find.
pub(super) fn turn_after_death(
    reading: &LeaseReading,
    incumbent: ProcessId,
    version: ProtoVersion,
) -> Result<u64, String> {
    match reading {
        LeaseReading::Found(lease) if version < 2 || lease.owner == incumbent => Ok(lease.epoch),
        LeaseReading::Nobody if version < 2 => Ok(0),
        LeaseReading::Found(lease) => {
            Err(format!("the incumbent died and the lease is not its own, but {}", describe(lease)))
        }
        LeaseReading::Nobody => Err("the incumbent died and the data directory has no lease".into()),
        LeaseReading::Unreadable(error) => Err(format!("the incumbent died and the lease can't be read: {error}")),
    }
}

/// What is wrong with a successor that says that it is ready (promise 3).
pub(super) fn unfit(healthz_ok: bool, advertised: &[u64], sealed: Option<&Seal>) -> Option<String> {
    if !healthz_ok {
        return Some("the successor reports itself unhealthy".into());
    }
    let sealed = &sealed?.revisions;
    if advertised.len() < sealed.len() {
        return Some(format!(
            "the successor opened {} shards, the incumbent sealed {}",
            advertised.len(),
            sealed.len()
        ));
    }
    sealed.iter().zip(advertised).enumerate().find(|(_, (sealed, opened))| opened < sealed).map(
        |(shard, (sealed, opened))| {
            format!("the successor opened shard {shard} at revision {opened}, the incumbent sealed it at {sealed}")
        },
    )
}

/// What a successor said that will not take over.
pub(super) fn not_ready(reason: &str) -> String {
    format!("the successor can't take over: {reason}")
}

fn describe(lease: &LeaseView) -> String {
    let state = match lease.state {
        LeaseState::Opening => "opening",
        LeaseState::Active => "active",
        LeaseState::Sealed => "sealed",
    };
    format!("{state}, epoch {}, of pid {}", lease.epoch, lease.owner.pid)
}
