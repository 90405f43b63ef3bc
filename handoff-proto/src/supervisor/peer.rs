//! The two other roles as the supervisor knows them: who they are, how to reach them, what to speak with them.

use crate::lease::ProcessId;
use crate::message::{Capabilities, Message, Side};
use crate::version::{PROTO_MAX, PROTO_MIN, ProtoVersion, negotiate_version};

use super::Effect;
use super::handover::Handover;

/// One of the two other roles.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub(super) process: ProcessId,
    /// None before its Hello.
    pub(super) version: Option<ProtoVersion>,
    /// What its Hello offered.
    pub(super) capabilities: Capabilities,
    pub(super) link: Link,
}

/// How a peer can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Link {
    Open,
    /// Its channel ended a moment ago; its process has not been seen dead yet.
    Closing,
    /// It lives without a channel to us.
    Cut,
    /// Its process is dead.
    Gone,
}

impl Peer {
    pub(super) fn new(process: ProcessId) -> Self {
        Self { process, version: None, capabilities: Capabilities::default(), link: Link::Open }
    }

    /// The version to speak with it; what a greeting is written in before one is agreed.
    pub(super) fn version_or_min(&self) -> ProtoVersion {
        self.version.unwrap_or(PROTO_MIN)
    }

    /// Whether it takes an end of the direct channel, and knows the message that brings it.
    pub(super) fn takes_transfer(&self) -> bool {
        self.version_or_min() >= 2 && self.capabilities.has_transfer()
    }
}

/// What a Hello said that matters.
pub(super) struct Greeting {
    pub(super) role: Side,
    pub(super) pid: u32,
    pub(super) proto_min: ProtoVersion,
    pub(super) proto_max: ProtoVersion,
    pub(super) capabilities: Capabilities,
}

impl Handover {
    pub(super) fn tell_incumbent(&self, message: Message, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.incumbent.as_ref().filter(|peer| peer.link == Link::Open) {
            effects.push(Effect::SendIncumbent(peer.version_or_min(), message));
        }
    }

    pub(super) fn tell_successor(&self, message: Message, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.successor.as_ref().filter(|peer| peer.link == Link::Open) {
            effects.push(Effect::SendSuccessor(peer.version_or_min(), message));
        }
    }

    pub(super) fn incumbent_link(&self) -> Link {
        self.incumbent.as_ref().map_or(Link::Gone, |peer| peer.link)
    }

    pub(super) fn successor_link(&self) -> Link {
        self.successor.as_ref().map_or(Link::Gone, |peer| peer.link)
    }

    pub(super) fn incumbent_version(&self) -> ProtoVersion {
        self.incumbent.as_ref().map_or(PROTO_MIN, Peer::version_or_min)
    }

    /// Whether both of them take an end of the direct channel.
    pub(super) fn both_take_transfer(&self) -> bool {
        [&self.incumbent, &self.successor].into_iter().all(|peer| peer.as_ref().is_some_and(Peer::takes_transfer))
    }

    pub(super) fn successor_version(&self) -> ProtoVersion {
        self.successor.as_ref().map_or(PROTO_MIN, Peer::version_or_min)
    }
}

/// Who speaks, by its own word and by the kernel's, and in which version to go on.
pub(super) fn agree(greeting: &Greeting, role: Side, process: ProcessId) -> Result<ProtoVersion, String> {
    if greeting.role != role {
        return Err(format!("it says that it is the {:?}, expected the {role:?}", greeting.role));
    }
    if greeting.pid != process.pid {
        return Err(format!("it says that its pid is {}, the kernel says {}", greeting.pid, process.pid));
    }
    negotiate_version(PROTO_MIN, PROTO_MAX, greeting.proto_min, greeting.proto_max).map_err(|error| error.to_string())
}
