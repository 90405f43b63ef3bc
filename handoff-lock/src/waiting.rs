//! Waiting for a lock: tries with growing pauses, as there is no flock that waits for a bounded time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::LockError;
use crate::held_by::HeldBy;
use crate::sys;

/// Who wants a lock, between two tries. It holds nothing.
pub(crate) trait Contender: Sized {
    type Lock;

    fn attempt(self) -> Outcome<Self>;

    /// In whose way the lock is held.
    fn held_by(&self) -> HeldBy;
}

/// What came of one try.
pub(crate) enum Outcome<C: Contender> {
    Taken(C::Lock),
    Held(C),
    Failed(LockError),
}

/// Is told for whom one waits, and may end the wait.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(&HeldBy) -> ControlFlow<()>;

const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How often it is looked up for whom one waits, which can mean a look at every process.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Tries until the lock is taken, the time is over or the wait is ended.
///
/// # Errors
/// Who holds it at the end, or why it can't be tried.
pub(crate) fn within<C: Contender>(
    mut contender: C,
    wait: Duration,
    tell: Option<Tell<'_>>,
) -> Result<C::Lock, LockError> {
    let start = Instant::now();
    let mut pause = PAUSE_MIN;
    let mut news = tell.map(News::to);
    loop {
        match contender.attempt() {
            Outcome::Taken(lock) => return Ok(lock),
            Outcome::Failed(error) => return Err(error),
            Outcome::Held(still) => contender = still,
        }
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(contender.held_by().into());
        }
        if let Some(ControlFlow::Break(held_by)) = news.as_mut().map(|news| news.tell(&contender)) {
            return Err(held_by.into());
        }
        sys::pause(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What was told last.
struct News<'a> {
    tell: Tell<'a>,
    looked_at: Option<Instant>,
    told: Option<HeldBy>,
}

impl<'a> News<'a> {
    fn to(tell: Tell<'a>) -> Self {
        Self { tell, looked_at: None, told: None }
    }

    fn tell<C: Contender>(&mut self, contender: &C) -> ControlFlow<HeldBy> {
        if self.looked_at.is_some_and(|looked_at| looked_at.elapsed() < LOOK_EVERY) {
            return ControlFlow::Continue(());
        }
        self.looked_at = Some(Instant::now());
        let held_by = contender.held_by();
        if self.told.as_ref() == Some(&held_by) {
            return ControlFlow::Continue(());
        }
        match (self.tell)(&held_by) {
            ControlFlow::Continue(()) => {
                self.told = Some(held_by);
                ControlFlow::Continue(())
            }
            ControlFlow::Break(()) => ControlFlow::Break(held_by),
        }
    }
}
