//! Who answers on the control path, and with which build: connect and hear the Hello. Of a daemon that may be on its way back from
//! a handover, which greets long before it serves, its status is asked too, where it knows how to tell it. Nothing else is said, so
//! it can't disturb a handover; waits with a descriptor where it can and with growing pauses where there is nothing to wait on. A peer
//! that says nothing may be what a dead daemon has left behind: after [`SILENCE_MAX`] it is given up, and the path asked anew.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff_proto::{HandoffId, Message, PROTO_MAX, ProtoVersion, Side, StatusReport};

use crate::channel::{Channel, Received};
use crate::control;

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long whoever is connected to may say nothing. A daemon says Hello as soon as it runs its loop.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The first version that knows `Status`.
const STATUS_SINCE: ProtoVersion = 2;

/// What has to be heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Its Hello: it has opened its data before it says it.
    Hello,
    /// That it serves. One of version 1 can't say that: there the Hello is all that is to be had.
    Service,
}

/// What was said to the daemon in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    /// Its Hello was acknowledged.
    HelloAck,
}

/// One attempt after the other to be greeted.
#[derive(Debug)]
pub(super) struct Greeting {
    path: PathBuf,
    wanted: Wanted,
    channel: Option<Channel>,
    /// Who has said Hello and was asked for its status.
    asked: Option<Hello>,
    pause: Duration,
}

/// Who answers, by the kernel's word, and up to which version it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) pid: u32,
    pub(super) build_id: Vec<u8>,
    pub(super) version: ProtoVersion,
}

/// What came of it so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// This process answers, and says what was wanted.
    Hello(Hello),
    /// This process answers, and says that it does not serve: ask again after this long.
    NotServing { pid: u32, pause: Duration },
    /// Connected: wait for the descriptor, and at most [`SILENCE_MAX`] before the next [`connect`](Greeting::connect).
    Waiting,
    /// Nobody is there: [`connect`](Greeting::connect) again after this long.
    NobodyFor(Duration),
}

impl Greeting {
    pub(super) fn new(path: &Path, wanted: Wanted) -> Self {
        Self { path: path.to_owned(), wanted, channel: None, asked: None, pause: FIRST_PAUSE }
    }

    pub(super) fn connect(&mut self) -> Heard {
        self.asked = None;
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
        loop {
            let Some(channel) = &mut self.channel else { return self.nobody() };
            match (channel.receive(), self.asked.take()) {
                (Received::Nothing, asked) => {
                    self.asked = asked;
                    return Heard::Waiting;
                }
                (
                    Received::Message {
                        message: Message::Hello { role: Side::Incumbent, pid, build_id, proto_max, .. },
                        ..
                    },
                    None,
                ) => {
                    let pid = channel.peer().map_or(pid, |peer| peer.pid);
                    let hello = Hello { pid, build_id, version: proto_max };
                    if self.wanted == Wanted::Hello || proto_max < STATUS_SINCE {
                        return Heard::Hello(hello);
                    }
                    if !asks_for_status(channel) {
                        return self.nobody();
                    }
                    self.asked = Some(hello);
                }
                (Received::Message { message: Message::StatusReport(report), .. }, Some(hello)) => {
                    return self.status(hello, &report);
                }
                (Received::Message { .. } | Received::Closed | Received::Malformed(_), _) => return self.nobody(),
            }
        }
    }

    /// Between two handovers it reports no phase of one.
    fn status(&mut self, hello: Hello, report: &StatusReport) -> Heard {
        if report.phase.is_none() {
            self.asked = Some(hello.clone());
            return Heard::Hello(hello);
        }
        self.channel = None;
        Heard::NotServing { pid: hello.pid, pause: self.next_pause() }
    }

    /// For poll(2), while connected.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The connection on which it was heard.
    pub(super) fn into_session(self) -> Option<(Channel, Said)> {
        let said = if self.asked.is_some() { Said::HelloAck } else { Said::Nothing };
        self.channel.map(|channel| (channel, said))
    }

    fn nobody(&mut self) -> Heard {
        self.channel = None;
        Heard::NobodyFor(self.next_pause())
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// The answer to a Hello of at least this version.
pub(super) fn hello_ack(version: ProtoVersion) -> Message {
    Message::HelloAck { proto_version_chosen: PROTO_MAX.min(version), handoff_id: HandoffId::new() }
}

/// False: it can't be said to it.
fn asks_for_status(channel: &mut Channel) -> bool {
    [hello_ack(PROTO_MAX), Message::Status].iter().all(|message| channel.send(PROTO_MAX, message).is_ok())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use handoff_proto::{Capabilities, PROTO_MIN, Phase, frame};
    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::sys::poll;

    #[test]
    fn hears_who_answers_and_waits_longer_and_longer_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let mut greeting = Greeting::new(&path, Wanted::Hello);
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
        let heard = Heard::Hello(Hello { pid: own, build_id: b"b7".to_vec(), version: PROTO_MAX });
        assert_eq!(greeting.listen(), heard, "the kernel's word counts");
        assert!(greeting.into_session().is_some_and(|(_, said)| said == Said::Nothing));
    }

    /// A daemon that says Hello up to this version, and what it hears.
    fn greets(listener: &std::os::unix::net::UnixListener, proto_max: ProtoVersion) -> Channel {
        let mut daemon = Channel::new(listener.accept().unwrap().0);
        let (role, build_id, capabilities) = (Side::Incumbent, b"b7".to_vec(), Capabilities::default());
        let hello = Message::Hello { role, pid: 1, build_id, proto_min: PROTO_MIN, proto_max, capabilities };
        daemon.send(1, &hello).unwrap();
        daemon
    }

    fn reports(daemon: &mut Channel, phase: Option<Phase>) {
        daemon.send(PROTO_MAX, &Message::StatusReport(StatusReport { phase, ..StatusReport::default() })).unwrap();
    }

    #[test]
    fn a_daemon_on_its_way_back_is_heard_when_it_says_that_it_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut greeting = Greeting::new(&path, Wanted::Service);
        assert_eq!(greeting.connect(), Heard::Waiting);
        let mut daemon = greets(&listener, PROTO_MAX);
        assert_eq!(greeting.listen(), Heard::Waiting, "a Hello is not enough");
        let asked: Vec<_> = std::iter::from_fn(|| match daemon.receive() {
            Received::Message { message, .. } => Some(handoff_proto::short_name(&message).to_owned()),
            _ => None,
        })
        .collect();
        assert_eq!(asked, ["HelloAck", "Status"]);
        reports(&mut daemon, Some(Phase::ResumingAfterAbort));
        let own = std::process::id();
        assert_eq!(greeting.listen(), Heard::NotServing { pid: own, pause: FIRST_PAUSE });
        assert!(greeting.descriptor().is_none());

        assert_eq!(greeting.connect(), Heard::Waiting);
        let mut daemon = greets(&listener, PROTO_MAX);
        assert_eq!(greeting.listen(), Heard::Waiting);
        reports(&mut daemon, None);
        assert!(matches!(greeting.listen(), Heard::Hello(Hello { pid, .. }) if pid == own));
        assert!(greeting.into_session().is_some_and(|(_, said)| said == Said::HelloAck));
    }

    #[test]
    fn one_of_version_1_is_asked_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut greeting = Greeting::new(&path, Wanted::Service);
        assert_eq!(greeting.connect(), Heard::Waiting);
        let mut daemon = greets(&listener, 1);
        assert!(matches!(greeting.listen(), Heard::Hello(Hello { version: 1, .. })));
        assert!(matches!(daemon.receive(), Received::Nothing));
    }

    #[test]
    fn whoever_says_nothing_is_given_up_for_the_one_who_has_the_path_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let left_behind = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut greeting = Greeting::new(&path, Wanted::Hello);
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
        let mut greeting = Greeting::new(&path, Wanted::Hello);
        assert_eq!(greeting.connect(), Heard::Waiting);
        drop(listener.accept().unwrap());
        assert!(matches!(greeting.listen(), Heard::NobodyFor(_)));
    }
}
