//! Who answers on the control path, and with which build: connect and hear the Hello. Says nothing to a daemon that was just started; one that
//! may be on its way back from a handover is asked whether it serves, which disturbs nobody.
//! It waits with a descriptor where it can and with growing pauses where there is nothing to wait on. A peer
//! that says nothing may be what a dead daemon has left behind: after [`SILENCE_MAX`] it is given up, and the path asked anew.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff_proto::{HandoffId, Message, PROTO_MAX, ProtoVersion, Side};

use crate::channel::{Channel, Received};
use crate::control;

const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// How soon one is asked again that is not back yet.
const NOT_BACK_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long whoever is connected to may say nothing. A daemon says Hello as soon as it runs its loop.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(5);

/// One attempt after the other to be greeted.
#[derive(Debug)]
pub(super) struct Greeting {
    path: PathBuf,
    channel: Option<Channel>,
    pause: Duration,
    doubt: Doubt,
    /// What was heard in this session, and is told when its status is known.
    hello: Option<Heard>,
}

/// Whether the daemon may answer on the control path and not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// It binds the path when it serves.
    None,
    /// It has served before, and may not have taken its data back yet, after a handover that came to nothing.
    MayBeResuming,
}

/// Whether the session has been acknowledged, for who goes on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    Fresh,
    Acknowledged,
}

/// What came of it so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// This process answers, and speaks up to this version.
    Hello { pid: u32, build_id: Vec<u8>, version: ProtoVersion },
    /// Connected: wait for the descriptor, and at most [`SILENCE_MAX`] before the next [`connect`](Greeting::connect).
    Waiting,
    /// Nobody is there: [`connect`](Greeting::connect) again after this long.
    NobodyFor(Duration),
    /// It is not back yet: [`connect`](Greeting::connect) again after this long.
    NotBackFor(Duration),
}

/// The first version in which an incumbent can be asked.
const STATUS_SINCE: ProtoVersion = 2;

impl Greeting {
    pub(super) fn new(path: &Path, doubt: Doubt) -> Self {
        Self { path: path.to_owned(), channel: None, pause: FIRST_PAUSE, doubt, hello: None }
    }

    pub(super) fn connect(&mut self) -> Heard {
        match control::connect(&self.path) {
            Ok(channel) => {
                self.channel = Some(channel);
                self.hello = None;
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
                let hello = Heard::Hello { pid: seen, build_id, version: proto_max };
                if self.doubt == Doubt::None || proto_max < STATUS_SINCE || self.hello.is_some() {
                    return hello;
                }
                if !is_asked(channel, PROTO_MAX.min(proto_max)) {
                    return self.nobody();
                }
                self.hello = Some(hello);
                self.listen()
            }
            Received::Message { message: Message::StatusReport(status), .. } => match (self.hello.take(), status.phase)
            {
                (Some(hello), None) => {
                    self.hello = Some(hello.clone());
                    hello
                }
                (Some(_), Some(_)) => {
                    self.nobody();
                    Heard::NotBackFor(NOT_BACK_PAUSE)
                }
                (None, _) => self.nobody(),
            },
            Received::Nothing => Heard::Waiting,
            Received::Message { .. } | Received::Closed | Received::Malformed(_) => self.nobody(),
        }
    }

    /// For poll(2), while connected.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The connection on which the Hello was heard.
    pub(super) fn into_channel(self) -> Option<(Channel, Session)> {
        let session = if self.hello.is_some() { Session::Acknowledged } else { Session::Fresh };
        self.channel.map(|channel| (channel, session))
    }

    fn nobody(&mut self) -> Heard {
        self.channel = None;
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Heard::NobodyFor(pause)
    }
}

/// Whether the question could be sent.
fn is_asked(channel: &mut Channel, version: ProtoVersion) -> bool {
    let chosen = Message::HelloAck { proto_version_chosen: version, handoff_id: HandoffId::new() };
    [chosen, Message::Status].iter().all(|message| channel.send(version, message).is_ok())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use handoff_proto::{Capabilities, PROTO_MIN, Phase, StatusReport, frame};
    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::sys::poll;

    #[test]
    fn hears_who_answers_and_waits_longer_and_longer_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let mut greeting = Greeting::new(&path, Doubt::None);
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
        let mut greeting = Greeting::new(&path, Doubt::None);
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
        let mut greeting = Greeting::new(&path, Doubt::None);
        assert_eq!(greeting.connect(), Heard::Waiting);
        drop(listener.accept().unwrap());
        assert!(matches!(greeting.listen(), Heard::NobodyFor(_)));
    }

    #[test]
    fn one_that_may_be_on_its_way_back_is_asked_whether_it_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut greeting = Greeting::new(&path, Doubt::MayBeResuming);
        let hello = |version| Message::Hello {
            role: Side::Incumbent,
            pid: 1,
            build_id: Vec::new(),
            proto_min: PROTO_MIN,
            proto_max: version,
            capabilities: Capabilities::default(),
        };
        let mut answered = |phase: Option<Phase>| {
            assert_eq!(greeting.connect(), Heard::Waiting);
            let mut daemon = Channel::new(listener.accept().unwrap().0);
            daemon.send(1, &hello(PROTO_MAX)).unwrap();
            assert_eq!(greeting.listen(), Heard::Waiting);
            let asked: Vec<_> = (0..2).map(|_| daemon.receive()).collect();
            assert!(matches!(&asked[1], Received::Message { message: Message::Status, .. }), "{asked:?}");
            daemon.send(PROTO_MAX, &Message::StatusReport(StatusReport { phase, ..StatusReport::default() })).unwrap();
            greeting.listen()
        };
        assert_eq!(answered(Some(Phase::ResumingAfterAbort)), Heard::NotBackFor(NOT_BACK_PAUSE));
        assert!(matches!(answered(None), Heard::Hello { .. }));
        assert_eq!(greeting.into_channel().map(|(_, session)| session), Some(Session::Acknowledged));

        let mut older = Greeting::new(&path, Doubt::MayBeResuming);
        assert_eq!(older.connect(), Heard::Waiting);
        let mut daemon = Channel::new(listener.accept().unwrap().0);
        daemon.send(1, &hello(1)).unwrap();
        assert!(matches!(older.listen(), Heard::Hello { version: 1, .. }), "one of version 1 can't be asked");
    }
}
