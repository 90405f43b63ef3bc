//! Who answers on the control path, and with which build: connect and hear the Hello. Never says anything, so it can't
//! disturb a handover; waits with a descriptor where it can and with growing pauses where there is nothing to wait on. A peer
//! that says nothing may be what a dead daemon has left behind: after [`SILENCE_MAX`] it is given up, and the path asked anew.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff_proto::{Message, ProtoVersion, Side};

use crate::channel::{Channel, Received};
use crate::control;

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long whoever is connected to may say nothing. A daemon says Hello as soon as it runs its loop.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(5);

/// One attempt after the other to be greeted.
#[derive(Debug)]
pub(super) struct Greeting {
    path: PathBuf,
    channel: Option<Channel>,
    pause: Duration,
}

/// What came of it so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// This process answers, and speaks up to this version.
    Hello { pid: u32, build_id: Vec<u8>, version: ProtoVersion },
    /// Connected: wait for the descriptor, and at most [`SILENCE_MAX`] before the next [`connect`](Greeting::connect).
    Waiting,
    /// Nobody is there: [`connect`](Greeting::connect) again after this long.
    NobodyFor(Duration),
}

impl Greeting {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), channel: None, pause: FIRST_PAUSE }
    }

    pub(super) fn connect(&mut self) -> Heard {
        match control::connect(&self.path) {
            Ok(channel) => {
                self.channel = Some(channel);
                self.listen()
            }
            Err(_) => self.nobody(),
        }
    }

    /// Reads what has arrived.
    pub(super) fn listen(&mut self) -> Heard {
        let Some(channel) = &mut self.channel else { return self.nobody() };
        match channel.receive() {
            Received::Message {
                message: Message::Hello { role: Side::Incumbent, pid, build_id, proto_max, .. },
                ..
            } => {
                let seen = channel.peer().map_or(pid, |peer| peer.pid);
                Heard::Hello { pid: seen, build_id, version: proto_max }
            }
            Received::Nothing => Heard::Waiting,
            Received::Message { .. } | Received::Closed | Received::Malformed(_) => self.nobody(),
        }
    }

    /// For poll(2), while connected.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The connection on which the Hello was heard.
    pub(super) fn into_channel(self) -> Option<Channel> {
        self.channel
    }

    fn nobody(&mut self) -> Heard {
        self.channel = None;
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Heard::NobodyFor(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use handoff_proto::{Capabilities, PROTO_MAX, PROTO_MIN, frame};
    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::sys::poll;

    #[test]
    fn hears_who_answers_and_waits_longer_and_longer_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let mut greeting = Greeting::new(&path);
        assert_eq!(greeting.connect(), Heard::NobodyFor(FIRST_PAUSE));
        assert_eq!(greeting.connect(), Heard::NobodyFor(FIRST_PAUSE * 2));

        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(greeting.connect(), Heard::Waiting);
        let (mut daemon, _) = listener.accept().unwrap();
        let hello = Message::Hello {
            role: Side::Incumbent,
            pid: 1,
            build_id: b"b7".to_vec(),
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            capabilities: Capabilities::default(),
        };
        let mut bytes = Vec::new();
        frame::write_message(&mut bytes, 1, &hello).unwrap();
        daemon.write_all(&bytes).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(greeting.descriptor().unwrap(), PollFlags::IN)];
        poll::wait(&mut fds, None).unwrap();
        let own = std::process::id();
        let heard = Heard::Hello { pid: own, build_id: b"b7".to_vec(), version: PROTO_MAX };
        assert_eq!(greeting.listen(), heard, "the kernel's word counts");
        assert!(greeting.into_channel().is_some());
    }

    #[test]
    fn whoever_says_nothing_is_given_up_for_the_one_who_has_the_path_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let left_behind = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut greeting = Greeting::new(&path);
        assert_eq!(greeting.connect(), Heard::Waiting);
        std::fs::remove_file(&path).unwrap();
        let daemon = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(greeting.connect(), Heard::Waiting);
        let (mut given_up, _) = left_behind.accept().unwrap();
        assert_eq!(std::io::Read::read(&mut given_up, &mut [0]).unwrap(), 0);
        daemon.set_nonblocking(true).unwrap();
        assert!(daemon.accept().is_ok());
    }

    #[test]
    fn a_stranger_on_the_path_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut greeting = Greeting::new(&path);
        assert_eq!(greeting.connect(), Heard::Waiting);
        drop(listener.accept().unwrap());
        assert!(matches!(greeting.listen(), Heard::NobodyFor(_)));
    }
}
