//! Whether the daemon that serves is alive, between handovers.
//!
//! One session is kept with it. At each tick its answers of the time since the last one are read, and one more heartbeat is
//! sent: the service and the daemon each wake up once in an interval, and a whole interval of silence is what counts. A
//! daemon with which there is no session yet is told frozen only when it stands still at two ticks in a row (SIGSTOP): it
//! may be at work on its start for as long as it likes.
//!
//! Never decides what becomes of it, and reads no clock.

use handoff_proto::{Message, PROTO_MAX, ProtoVersion};

use super::greeting::{Said, hello_ack};
use crate::Result;
use crate::channel::{Channel, Received};
use crate::events::debug;
use crate::process::Process;

/// The first version whose incumbents serve sessions side by side. An older one would keep a supervisor waiting.
const SESSIONS_SINCE: ProtoVersion = 2;

/// ```text
///   Apart ── attach ──► Attached
///     ▲                    │ the session ends
///     └────────────────────┘
/// ```
#[derive(Debug)]
pub(super) enum Watch {
    /// No session.
    Apart(Last),
    /// A heartbeat is on its way in this session.
    Attached(Channel),
}

/// How it was found at the last tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Running,
    Stopped,
}

/// What a tick has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It answers, or nothing speaks against it.
    Alive,
    /// The session has ended: greet it again.
    SessionOver,
    /// It said nothing for a whole interval, or stood still for one.
    Frozen,
}

/// Whether this process itself was late, so that nobody's silence counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Punctual {
    Yes,
    No,
}

impl Watch {
    /// Of a daemon that was not heard yet.
    pub(super) fn apart() -> Self {
        Self::Apart(Last::Running)
    }

    /// Keeps the connection on which it said Hello.
    pub(super) fn attach(&mut self, mut channel: Channel, version: ProtoVersion, said: Said) {
        // To the end: a channel that was left in the middle of what had arrived says `Nothing` once too often.
        if version < SESSIONS_SINCE || matches!(answers(&mut channel), Answers::Over) {
            return;
        }
        *self = Self::Attached(channel);
        if said == Said::Nothing {
            self.say(&hello_ack(version));
        }
        self.beat();
    }

    /// An interval is over.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub(super) fn tick(&mut self, process: &Process, punctual: Punctual) -> Result<Found> {
        let found = match self {
            Self::Apart(last) => match (*last, process.is_stopped()?, punctual) {
                (Last::Stopped, true, Punctual::Yes) => Found::Frozen,
                (_, is_stopped, _) => {
                    *last = if is_stopped { Last::Stopped } else { Last::Running };
                    Found::Alive
                }
            },
            Self::Attached(channel) => match (answers(channel), punctual) {
                (Answers::Some, _) => {
                    self.beat();
                    Found::Alive
                }
                (Answers::Over, _) => {
                    *self = Self::apart();
                    Found::SessionOver
                }
                (Answers::None, Punctual::Yes) => Found::Frozen,
                (Answers::None, Punctual::No) => Found::Alive,
            },
        };
        Ok(found)
    }

    fn beat(&mut self) {
        self.say(&Message::Heartbeat { ts_ms: super::daemon::unix_ms() });
    }

    fn say(&mut self, message: &Message) {
        if let Self::Attached(channel) = self
            && let Err(error) = channel.send(PROTO_MAX, message)
        {
            debug!(%error, "the daemon's session is over");
            *self = Self::apart();
        }
    }
}

enum Answers {
    Some,
    None,
    Over,
}

fn answers(channel: &mut Channel) -> Answers {
    let mut answers = Answers::None;
    loop {
        match channel.receive() {
            Received::Message { .. } => answers = Answers::Some,
            Received::Nothing => return answers,
            Received::Closed | Received::Malformed(_) => return Answers::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};

    use super::*;

    struct Daemon {
        child: Child,
        process: Process,
    }

    impl Daemon {
        fn new() -> Self {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let process = Process::open(child.id()).unwrap().unwrap();
            Self { child, process }
        }

        fn freeze(&self) {
            self.process.stop().unwrap();
            while !self.process.is_stopped().unwrap() {
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn before_it_is_heard_only_one_that_stands_still_for_an_interval_is_frozen() {
        let daemon = Daemon::new();
        let mut watch = Watch::apart();
        for _ in 0..3 {
            assert_eq!(watch.tick(&daemon.process, Punctual::Yes).unwrap(), Found::Alive);
        }
        daemon.freeze();
        assert_eq!(watch.tick(&daemon.process, Punctual::Yes).unwrap(), Found::Alive);
        assert_eq!(watch.tick(&daemon.process, Punctual::No).unwrap(), Found::Alive);
        assert_eq!(watch.tick(&daemon.process, Punctual::Yes).unwrap(), Found::Frozen);
    }

    #[test]
    fn in_a_session_silence_is_what_counts_and_one_heartbeat_an_interval_what_is_sent() {
        let daemon = Daemon::new();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut theirs = Channel::new(theirs);
        let mut ours = Channel::new(ours);
        theirs.send(1, &Message::Heartbeat { ts_ms: 0 }).unwrap();
        assert!(matches!(ours.receive(), Received::Message { .. }), "as a Hello was, before");
        let mut watch = Watch::apart();
        watch.attach(ours, PROTO_MAX, Said::Nothing);
        let heard = |channel: &mut Channel| match channel.receive() {
            Received::Message { message, .. } => handoff_proto::short_name(&message).to_owned(),
            _ => "nothing".to_owned(),
        };
        let names: Vec<_> = (0..3).map(|_| heard(&mut theirs)).collect();
        assert_eq!(names[2], "nothing", "{names:?}");
        for _ in 0..3 {
            theirs.send(PROTO_MAX, &Message::Heartbeat { ts_ms: 1 }).unwrap();
            assert_eq!(watch.tick(&daemon.process, Punctual::Yes).unwrap(), Found::Alive);
            assert_eq!([heard(&mut theirs) == "nothing", heard(&mut theirs) == "nothing"], [false, true]);
        }
        assert_eq!(watch.tick(&daemon.process, Punctual::No).unwrap(), Found::Alive);
        assert_eq!(watch.tick(&daemon.process, Punctual::Yes).unwrap(), Found::Frozen);
        drop(theirs);
        assert_eq!(watch.tick(&daemon.process, Punctual::Yes).unwrap(), Found::SessionOver);
        assert!(matches!(watch, Watch::Apart(_)));
    }

    #[test]
    fn a_daemon_of_version_1_is_left_its_only_session() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut watch = Watch::apart();
        watch.attach(Channel::new(ours), 1, Said::Nothing);
        assert!(matches!(watch, Watch::Apart(_)));
        assert!(matches!(Channel::new(theirs).receive(), Received::Closed));
    }
}
