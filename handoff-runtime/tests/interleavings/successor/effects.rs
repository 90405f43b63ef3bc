//! In the place of the successor's core and its machine: each word of the supervisor has one result.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use handoff_proto::successor::{Answer, Errand};
use rustix::event::{PollFd, PollFlags};

use crate::board::Board;
use crate::channel::Channel;
use crate::kernel::wire;

/// What the supervisor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Said {
    Answer,
    Errand,
    /// Brings nothing, but must be heard.
    Heartbeat,
    /// Nothing can come any more.
    Goodbye,
}

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct World {
    heard: Board<usize>,
    ours: UnixStream,
    theirs: Arc<UnixStream>,
}

impl World {
    /// With the successor's socket.
    pub(crate) fn new() -> (Arc<Self>, Arc<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = Arc::new(theirs);
        (Arc::new(Self { heard: Board::new(0), ours, theirs: Arc::clone(&theirs) }), theirs)
    }

    pub(crate) fn say(&self, said: Said) {
        wire::write(&self.ours, &self.theirs, said as u8);
    }

    pub(crate) fn wait_until_heard(&self, count: usize) {
        self.heard.wait_until(|heard| *heard >= count);
    }
}

/// What the two threads work on.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) channel: Option<Channel>,
    pub(super) errands: VecDeque<Errand>,
    pub(super) answers: VecDeque<Answer>,
    pub(super) begun_unix_ms: u64,
    pub(super) wake_due: bool,
    pub(super) thread: Thread,
    pub(super) listener: Listener,
    /// It has no interest in the socket for a while.
    pub(super) is_deaf: bool,
    pub(super) is_over: bool,
    world: Arc<World>,
    socket: Arc<UnixStream>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    Daemon,
    OnCall,
    Library,
    Nobody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    Running,
    Ended,
}

impl Core {
    pub(super) fn new(world: &Arc<World>, socket: &Arc<UnixStream>) -> Self {
        Self {
            channel: Some(Channel),
            errands: VecDeque::new(),
            answers: VecDeque::new(),
            begun_unix_ms: 0,
            wake_due: false,
            thread: Thread::Running,
            listener: Listener::Daemon,
            is_deaf: false,
            is_over: false,
            world: Arc::clone(world),
            socket: Arc::clone(socket),
        }
    }

    pub(super) fn wait(&self) -> Option<Wait> {
        (!self.is_over).then_some(Wait { is_deaf: self.is_deaf, timeout: None })
    }

    pub(super) fn turn(&mut self) {
        if self.is_deaf || self.is_over {
            return;
        }
        let said = wire::read(&self.socket);
        for said in &said {
            match *said {
                it if it == Said::Answer as u8 => self.answers.push_back(Answer::Done),
                it if it == Said::Errand as u8 => self.errands.push_back(Errand::TryLock),
                it if it == Said::Goodbye as u8 => self.is_over = true,
                _ => {}
            }
        }
        if !said.is_empty() {
            self.world.heard.change(|heard| *heard += said.len());
        }
    }
}

pub(super) struct Wait {
    is_deaf: bool,
    pub(super) timeout: Option<Duration>,
}

impl Wait {
    pub(super) fn on<'fd>(&self, socket: &'fd UnixStream) -> Vec<PollFd<'fd>> {
        if self.is_deaf { Vec::new() } else { vec![PollFd::new(socket, PollFlags::IN)] }
    }
}
