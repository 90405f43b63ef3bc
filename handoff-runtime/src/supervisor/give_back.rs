//! Gets the listening sockets back from an incumbent, after a restart of the supervisor (promises 4 and 7).

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use handoff_proto::{HandoffId, Message, PROTO_MAX, PROTO_MIN, ProtoVersion, Side, negotiate_version, short_name};
use rustix::event::{PollFd, PollFlags};

use crate::channel::{Channel, FDS_PER_MESSAGE_MAX, Received};
use crate::error::{Error, Result};
use crate::events;
use crate::sys::poll;
use crate::timers::instant_after;

/// More listeners than any daemon has.
const LISTENERS_MAX: usize = 1 << 16;

/// All listeners that the incumbent on this channel keeps; none from one of version 1.
///
/// # Errors
/// It does not answer in time, or breaks the protocol.
pub(super) fn ask(channel: Channel, within: Duration) -> Result<Vec<(String, OwnedFd)>> {
    let mut asking = Asking { channel, until: instant_after(within) };
    let version = asking.greet()?;
    if version < 2 {
        events::info!("the incumbent speaks version 1 only and can't give its listeners back");
        return Ok(Vec::new());
    }
    asking.channel.send(version, &Message::ListenersRequest)?;
    let mut listeners = Vec::new();
    loop {
        let (names, fds) = asking.chunk()?;
        let is_last = names.len() < FDS_PER_MESSAGE_MAX;
        listeners.extend(names.into_iter().zip(fds));
        if is_last {
            return Ok(listeners);
        }
        if listeners.len() > LISTENERS_MAX {
            return Err(Error::Protocol(format!("the incumbent gives back more than {LISTENERS_MAX} listeners")));
        }
    }
}

struct Asking {
    channel: Channel,
    until: Instant,
}

impl Asking {
    fn greet(&mut self) -> Result<ProtoVersion> {
        let (message, _) = self.next()?;
        let Message::Hello { role: Side::Incumbent, proto_min, proto_max, .. } = message else {
            return Err(unexpected(&message));
        };
        let version = negotiate_version(PROTO_MIN, PROTO_MAX, proto_min, proto_max)?;
        let ack = Message::HelloAck { proto_version_chosen: version, handoff_id: HandoffId::new() };
        self.channel.send(version, &ack)?;
        Ok(version)
    }

    fn chunk(&mut self) -> Result<(Vec<String>, Vec<OwnedFd>)> {
        loop {
            match self.next()? {
                (Message::Listeners { names }, fds) if names.len() == fds.len() => return Ok((names, fds)),
                (Message::Listeners { names }, fds) => {
                    let reason = format!("{} names came with {} listeners", names.len(), fds.len());
                    return Err(Error::Protocol(reason));
                }
                (Message::Heartbeat { .. }, _) => {}
                (message, _) => return Err(unexpected(&message)),
            }
        }
    }

    fn next(&mut self) -> Result<(Message, Vec<OwnedFd>)> {
        loop {
            match self.channel.receive() {
                Received::Message { message, fds, .. } => return Ok((message, fds)),
                Received::Closed => return Err(Error::Protocol("the incumbent closed its session".into())),
                Received::Malformed(error) => return Err(error.into()),
                Received::Nothing => {}
            }
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::NotTried { reason: "the incumbent does not answer".into() });
            }
            poll::wait(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(left))
                .map_err(|error| Error::io("wait for the incumbent", error))?;
        }
    }
}

fn unexpected(message: &Message) -> Error {
    Error::Protocol(format!("the incumbent sent {}", short_name(message)))
}
