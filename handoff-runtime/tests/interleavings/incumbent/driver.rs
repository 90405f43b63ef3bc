//! In the place of the driver, its machine and the hooks: what a client tells is done as it is told, and each thing done is one
//! thing heard.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic;
use std::sync::Arc;

use handoff_proto::incumbent::SessionId;
use rustix::event::PollFlags;

use super::Served;
use super::crew::Hooks;
use super::watch::{Found, Until, Watch, What};
use crate::board::Board;
use crate::error::{Error, Result};
use crate::kernel::counter;
use crate::waker::Waker;

const SESSION: SessionId = SessionId(7);

/// How a hook goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Short,
    /// Ends when the handover is called off, and not before.
    UntilCancelled,
    /// Tells of its progress, and ends when it is let go.
    Reports,
    /// When it has ended, somebody is asked something.
    Asks,
    /// Something of the library's own is wrong: hooks can't do that.
    Panics,
}

/// What a client says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told {
    Run(Hook),
    Cancel,
    Leave,
}

/// What the client, the driver and the hooks know of each other.
pub(crate) struct World {
    board: Board<State>,
    session: Arc<OwnedFd>,
    asked: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    told: VecDeque<Told>,
    heard: usize,
    is_cancelled: bool,
    is_let_go: bool,
    has_progress: bool,
}

/// The client's part.
impl World {
    pub(crate) fn new() -> Self {
        let event = || Arc::new(counter::event().unwrap());
        Self { board: Board::new(State::default()), session: event(), asked: event() }
    }

    pub(crate) fn tell(&self, told: Told) {
        self.board.change(|state| state.told.push_back(told));
        counter::count_up(&self.session).unwrap();
    }

    pub(crate) fn answer(&self) {
        counter::count_up(&self.asked).unwrap();
    }

    pub(crate) fn let_go(&self) {
        self.board.change(|state| state.is_let_go = true);
    }

    /// Waits until so much was done in all.
    pub(crate) fn hear(&self, count: usize) {
        self.board.wait_until(|state| state.heard >= count);
    }
}

/// What the crew works on.
pub(crate) struct Driver {
    pub(super) hooks: Hooks,
    pub(super) watched: Option<Watch>,
    pub(super) jobs: Jobs,
    pub(super) left: Option<()>,
    world: Arc<World>,
    waker: Waker,
    asked: Option<Arc<OwnedFd>>,
}

pub(super) struct Jobs(VecDeque<Hook>);

impl Jobs {
    pub(super) fn next(&mut self) -> Option<Hook> {
        self.0.pop_front()
    }
}

impl Driver {
    pub(crate) fn new(world: &Arc<World>, waker: Waker) -> Self {
        let (world, jobs) = (Arc::clone(world), Jobs(VecDeque::new()));
        Self { hooks: Hooks::Idle, watched: None, jobs, left: None, world, waker, asked: None }
    }

    pub(super) fn is_over(&self) -> bool {
        self.left.is_some() || self.hooks == Hooks::Gone
    }

    pub(super) fn take_end(&mut self) -> Option<Result<Served>> {
        match (self.left, self.hooks) {
            (Some(()), _) => Some(Ok(Served::Committed)),
            (None, Hooks::Gone) => Some(Err(Error)),
            (None, Hooks::Idle | Hooks::Running) => None,
        }
    }

    pub(super) fn hooks_are_gone(&mut self) {
        self.hooks = Hooks::Gone;
    }

    pub(super) fn watch(&self) -> Watch {
        let mut watch = Watch::new(Until::Never);
        watch.add(What::Waker, self.waker.polled(), PollFlags::IN);
        watch.add(What::Session(SESSION), Arc::clone(&self.world.session), PollFlags::IN);
        if let Some(asked) = &self.asked {
            watch.add(What::Asked, Arc::clone(asked), PollFlags::IN);
        }
        watch
    }

    pub(super) fn turn(&mut self, found: io::Result<Found>) {
        let found = found.unwrap();
        if found.has(What::Waker) {
            self.waker.drain();
            self.world.board.change(|state| state.heard += usize::from(std::mem::take(&mut state.has_progress)));
        }
        if found.has(What::Asked) && self.asked.take().is_some() {
            self.say();
        }
        if found.has(What::Session(SESSION)) {
            counter::take(&self.world.session).unwrap();
            let told = self.world.board.change(|state| std::mem::take(&mut state.told));
            told.into_iter().for_each(|told| self.obey(told));
        }
    }

    fn obey(&mut self, told: Told) {
        match told {
            Told::Run(hook) => self.jobs.0.push_back(hook),
            Told::Cancel => self.world.board.change(|state| state.is_cancelled = true),
            Told::Leave => self.left = Some(()),
        }
    }

    pub(super) fn feed(&mut self, ended: Hook) {
        if ended == Hook::Asks {
            self.asked = Some(Arc::clone(&self.world.asked));
        }
        self.say();
    }

    fn say(&self) {
        self.world.board.change(|state| state.heard += 1);
    }
}

/// What hooks are run with.
pub(crate) struct Bench {
    world: Arc<World>,
    waker: Waker,
}

impl Bench {
    pub(crate) fn new(world: &Arc<World>, waker: Waker) -> Self {
        Self { world: Arc::clone(world), waker }
    }

    pub(crate) fn perform(&self, hook: Hook) -> Option<Hook> {
        match hook {
            Hook::Short | Hook::Asks => {}
            Hook::Panics => panic::resume_unwind(Box::new("as the play wants")),
            Hook::UntilCancelled => self.world.board.wait_until(|state| state.is_cancelled),
            Hook::Reports => {
                self.world.board.change(|state| state.has_progress = true);
                self.waker.wake();
                self.world.board.wait_until(|state| state.is_let_go);
            }
        }
        Some(hook)
    }
}
