//! The two threads of a successor, and which of them waits for the supervisor and for time.
//!
//! ```text
//!                                   the daemon's thread        the library's thread
//!   an answer or the turn is due    waits                      sleeps
//!   the daemon is at work           works                      is called in, if that takes longer than a moment (`relief`);
//!                                                              then waits
//!   an answer needs the wire        sleeps                     waits
//!   the daemon has taken over       serves                     ends its part
//! ```
//!
//! For the answer to the greeting and for its turn the daemon's thread waits in the library thread's place, so that they cost no
//! change of thread. Both work on the one core, behind a mutex that nobody holds while he waits, or runs an errand.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use handoff_proto::successor::{Answer, Errand};
use rustix::event::{PollFd, PollFlags};

use super::effects::{Core, Listener, Thread, Wait};
use crate::channel::Channel;
use crate::events;
use crate::relief::Relief;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::sys::fork::StaysHere;
use crate::sys::poll;
use crate::waker::Waker;

/// What both threads share.
#[derive(Debug)]
pub(super) struct Shared {
    core: Mutex<Core>,
    /// An answer or an errand is there for the daemon's thread.
    changed: Condvar,
    /// The library thread has something new to wait for.
    waker: Waker,
    /// Calls the library thread while the daemon's is at work.
    relief: Relief,
    /// The supervisor's socket, to wait for it without the mutex.
    polled: Arc<StaysHere>,
}

/// What the daemon's thread is to do.
pub(super) enum Next {
    /// To run this; when `Begin` has arrived is told with it.
    Errand { errand: Errand, begun_unix_ms: u64 },
    /// To go on with this.
    Answer(Answer),
    /// The library's thread is gone, and with it whatever could be waited for.
    Nothing,
}

impl Shared {
    /// The daemon's thread waits first, on `polled`, the supervisor's socket.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub(super) fn new(core: Core, polled: Arc<StaysHere>) -> io::Result<Self> {
        let (waker, relief) = (Waker::new()?, Relief::new()?);
        Ok(Self { core: Mutex::new(core), changed: Condvar::new(), waker, relief, polled })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's thread waits for the supervisor itself, in the library thread's place: its turn comes in the pause, and a
    /// change of threads would be the longest part of it.
    pub(super) fn listen_until_answered(&self) {
        let _given_back = TakenOver::by_the_daemon(self);
        loop {
            let mut core = self.lock();
            core.turn();
            if !core.errands.is_empty() || !core.answers.is_empty() || core.thread == Thread::Ended {
                return;
            }
            let Some(wait) = core.wait() else { return };
            drop(core);
            sleep(&mut wait.on(&self.polled), wait.timeout);
        }
    }

    /// What there is for the daemon's thread to do; it sleeps until there is something.
    pub(super) fn next(&self) -> Next {
        let mut core = self.lock();
        loop {
            if std::mem::take(&mut core.wake_due) {
                self.waker.wake();
            }
            if let Some(errand) = core.errands.pop_front() {
                return Next::Errand { errand, begun_unix_ms: core.begun_unix_ms };
            }
            if let Some(answer) = core.answers.pop_front() {
                return Next::Answer(answer);
            }
            if core.thread == Thread::Ended {
                return Next::Nothing;
            }
            // Only the library thread can bring it.
            if core.listener == Listener::OnCall {
                self.waker.wake();
            }
            core = self.changed.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For a thread that is neither of the two. Whoever waits may have something new to wait for then.
    pub(super) fn act_from_outside(&self, act: impl FnOnce(&mut Core)) {
        let mut core = self.lock();
        act(&mut core);
        let wakes = std::mem::take(&mut core.wake_due);
        drop(core);
        if wakes {
            self.waker.wake();
        }
    }

    /// The library thread waits for the supervisor and for time again, unless the daemon's is back in a moment.
    fn give_back(&self) {
        let mut core = self.lock();
        core.listener = Listener::OnCall;
        // It looks at everything when it comes.
        core.wake_due = false;
        drop(core);
        self.relief.in_a_moment();
    }

    /// The library thread's conversation ends, and its channel stays open: closed early, it would look like a death.
    pub(super) fn part(&self) -> Option<Channel> {
        let mut core = self.lock();
        core.listener = Listener::Nobody;
        let channel = core.channel.take();
        drop(core);
        self.relief.not_needed();
        self.waker.wake();
        channel
    }

    /// The library thread has nothing to do until it is called.
    fn stand_by(&self) {
        sleep(&mut [PollFd::new(&self.waker, PollFlags::IN), PollFd::new(&self.relief, PollFlags::IN)], None);
        self.waker.drain();
        self.relief.take();
    }

    /// The handover is given up: the library thread sees it at once, and ends.
    pub(super) fn end(&self) {
        let _channel = self.part();
    }

    /// What wakes the library thread, for what it does next.
    pub(super) fn wakers(&self) -> (Waker, Relief) {
        (self.waker.clone(), self.relief.clone())
    }
}

/// The library thread's part. Ends when neither the wire nor time can change anything any more.
pub(super) fn converse(shared: &Shared) {
    let _ended = TellsThatItEnded(shared);
    while let Some(wait) = next_wait(shared) {
        let mut fds = wait.on(&shared.polled);
        fds.push(PollFd::new(&shared.waker, PollFlags::IN));
        sleep(&mut fds, wait.timeout);
        shared.waker.drain();
    }
}

/// One turn of the library thread, once it is its turn; `None`: it was the last.
fn next_wait(shared: &Shared) -> Option<Wait> {
    let mut core = shared.lock();
    while core.listener == Listener::Daemon {
        drop(core);
        shared.stand_by();
        core = shared.lock();
    }
    if core.listener == Listener::Nobody {
        return None;
    }
    core.listener = Listener::Library;
    core.turn();
    core.wake_due = false;
    let wait = core.wait();
    let is_awaited = !core.errands.is_empty() || !core.answers.is_empty();
    // Free before the daemon's thread wakes up and wants it.
    drop(core);
    if is_awaited {
        shared.changed.notify_all();
    }
    wait
}

fn sleep(fds: &mut [PollFd<'_>], timeout: Option<Duration>) {
    events::pass_on();
    if let Err(error) = poll::wait(fds, timeout) {
        events::warn!(%error, "poll failed; looking at everything again");
    }
}

/// The daemon's thread waits for the supervisor as long as this lives.
struct TakenOver<'a>(&'a Shared);

impl<'a> TakenOver<'a> {
    fn by_the_daemon(shared: &'a Shared) -> Self {
        let before = std::mem::replace(&mut shared.lock().listener, Listener::Daemon);
        match before {
            Listener::OnCall => shared.relief.not_needed(),
            Listener::Library => shared.waker.wake(),
            Listener::Daemon | Listener::Nobody => {}
        }
        Self(shared)
    }
}

impl Drop for TakenOver<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// Lets no call of the daemon wait for a thread that has panicked.
struct TellsThatItEnded<'a>(&'a Shared);

impl Drop for TellsThatItEnded<'_> {
    fn drop(&mut self) {
        self.0.lock().thread = Thread::Ended;
        self.0.changed.notify_all();
    }
}
