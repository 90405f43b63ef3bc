//! The library's events, emitted by a thread of their own.
//!
//! What listens to events (a `tracing` subscriber) is the daemon's, and may block, be it on a log that nobody reads, or panic. The
//! threads that owe heartbeats and answers, and hold locks meanwhile, call nothing of it, not even to ask whether it wants an
//! event: they look at the level that is set for all, which is a number, and put the event into a queue. At its other end is one
//! thread. It takes no signal, and is started when somebody listens.
//!
//! The queue is bounded; what finds no room is counted, and told of when there is some again. A forked child has no such thread,
//! and its copy of the queue may be locked for ever: it has a queue of its own, and starts a thread of its own with its first
//! event.
//!
//! Threads within the pause do not wake the other side, which is a futex(2) each time and a thread more that wants a processor
//! just then: they [leave](leave) what they have to say, and whoever of the role waits next [passes it on](pass_on). What it costs
//! them is one allocation.
//!
//! The macros take what those of `tracing` take, as far as the library uses it, and give the same target, level and fields. The
//! values are made into owned ones first, which is all that the calling thread does for an event.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Builder, Thread};
use std::time::Duration;

use tracing::dispatcher::{self, Dispatch};
use tracing::field::DisplayValue;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Value};

use crate::sys::{fork, signals};

/// Its name, for people who look at a daemon's threads.
const NAME: &str = "handoff-events";
/// How far a subscriber may be behind: more than a handover with all its troubles brings.
const EVENTS_MAX: usize = 1024;
/// How long the end of a role waits for its last events. Any log that works takes less; one that does not must not hold it up.
const SETTLED_WITHIN: Duration = Duration::from_millis(100);
/// How often a program may fork itself and go on with the library in the child; beyond that it is silent.
const GENERATIONS_MAX: usize = 16;

/// One for this process, behind those of the processes that it was forked from, which nobody touches.
static POSTS: [OnceLock<Post>; GENERATIONS_MAX] = [const { OnceLock::new() }; GENERATIONS_MAX];

/// The queue and the thread at its end.
#[derive(Default)]
struct Post {
    queue: Mutex<Queue>,
    /// All that was in the queue has been emitted.
    settled: Condvar,
    emitter: OnceLock<Thread>,
    /// Something lies in the queue for which the emitter was not woken.
    left: AtomicBool,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    /// How many found no room and were not told of yet.
    lost: u64,
    emitting: bool,
}

struct Event {
    /// That of the thread which it is about: a program may have one for each.
    subscriber: Dispatch,
    emit: Box<dyn FnOnce() + Send>,
}

/// Whether anybody may want an event of this level. Asks nobody.
pub(crate) fn is_wanted(level: Level) -> bool {
    level <= LevelFilter::current()
}

/// Starts the thread if anybody listens. A role says so before its work, so that none is started within the pause.
pub(crate) fn prepare() {
    if LevelFilter::current() != LevelFilter::OFF
        && let Some(post) = own()
    {
        post.wake();
    }
}

/// Has an event emitted.
pub(crate) fn post(emit: impl FnOnce() + Send + 'static) {
    if let Some(post) = own() {
        post.put(Box::new(emit));
        post.wake();
    }
}

/// The same for who is in a hurry: it lies there until somebody [passes it on](pass_on) or posts another one.
pub(crate) fn leave(emit: impl FnOnce() + Send + 'static) {
    if let Some(post) = own() {
        post.put(Box::new(emit));
        post.left.store(true, Ordering::Release);
    }
}

/// For who is about to wait: has emitted what was [left](leave).
pub(crate) fn pass_on() {
    if let Some(post) = existing()
        && post.left.load(Ordering::Acquire)
    {
        post.wake();
    }
}

/// Waits a moment for what was said so far: the process may end now.
pub(crate) fn settle() {
    let Some(post) = existing() else { return };
    post.wake();
    let is_behind = |queue: &mut Queue| queue.emitting || !queue.events.is_empty();
    // A subscriber that does not get on has had its time.
    let _ = post.settled.wait_timeout_while(post.lock(), SETTLED_WITHIN, is_behind);
}

fn place() -> Option<&'static OnceLock<Post>> {
    POSTS.get(fork::generation())
}

fn existing() -> Option<&'static Post> {
    place()?.get()
}

fn own() -> Option<&'static Post> {
    // Without the handler a forked child would take its parent's queue for its own.
    fork::watch_forks().ok()?;
    Some(place()?.get_or_init(Post::default))
}

impl Post {
    fn put(&self, emit: Box<dyn FnOnce() + Send>) {
        let subscriber = dispatcher::get_default(Dispatch::clone);
        let mut queue = self.lock();
        if queue.events.len() < EVENTS_MAX {
            queue.events.push_back(Event { subscriber, emit });
        } else {
            queue.lost += 1;
        }
    }

    /// Costs a system call if the emitter sleeps, and else none.
    fn wake(&'static self) {
        self.left.store(false, Ordering::Release);
        match self.emitter.get() {
            Some(emitter) => emitter.unpark(),
            None => self.start(),
        }
    }

    /// Tried again with the next event if no thread is to be had.
    fn start(&'static self) {
        let _one_at_a_time = self.lock();
        if self.emitter.get().is_some() {
            return;
        }
        let _signals = signals::leave_to_other_threads();
        if let Ok(emitter) = Builder::new().name(NAME.into()).spawn(|| self.emit_all()) {
            let _ = self.emitter.set(emitter.thread().clone());
        }
    }

    fn emit_all(&self) {
        loop {
            match self.next() {
                Some(event) => event.emit(),
                None => thread::park(),
            }
        }
    }

    fn next(&self) -> Option<Event> {
        let mut queue = self.lock();
        let next = if queue.lost > 0 && queue.events.len() <= EVENTS_MAX / 2 {
            Some(Event::of_lost(std::mem::take(&mut queue.lost)))
        } else {
            queue.events.pop_front()
        };
        queue.emitting = next.is_some();
        if next.is_none() {
            self.settled.notify_all();
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    fn of_lost(count: u64) -> Self {
        let emit = move || tracing::warn!(count, "events got lost: what listens to them did not keep up");
        Self { subscriber: dispatcher::get_default(Dispatch::clone), emit: Box::new(emit) }
    }

    /// A subscriber's panic has been reported by the panic itself; that of its drop, or of what it panicked with, too.
    fn emit(self) {
        let Self { subscriber, emit } = self;
        let emitted = catch_unwind(AssertUnwindSafe(move || dispatcher::with_default(&subscriber, emit)));
        if let Err(panic) = emitted {
            let _ = catch_unwind(AssertUnwindSafe(move || drop(panic)));
        }
    }
}

/// A value of an event that the other thread can have.
pub(crate) trait Told {
    /// It, or a copy.
    type Owned: Value + Send + 'static;

    fn told(&self) -> Self::Owned;
}

macro_rules! told_as_they_are {
    ($($number:ty),+) => {
        $(impl Told for $number {
            type Owned = Self;

            fn told(&self) -> Self {
                *self
            }
        })+
    };
}

told_as_they_are!(bool, u8, i32, u32, u64, u128, usize, f64);

impl Told for str {
    type Owned = String;

    fn told(&self) -> String {
        self.to_owned()
    }
}

impl Told for String {
    type Owned = Self;

    fn told(&self) -> Self {
        self.clone()
    }
}

impl<T: Told + ?Sized> Told for &T {
    type Owned = T::Owned;

    fn told(&self) -> T::Owned {
        (**self).told()
    }
}

impl<T: Told> Told for Option<T> {
    type Owned = Option<T::Owned>;

    fn told(&self) -> Self::Owned {
        self.as_ref().map(Told::told)
    }
}

impl<T: std::fmt::Display> Told for DisplayValue<T> {
    type Owned = DisplayValue<String>;

    fn told(&self) -> Self::Owned {
        tracing::field::display(format!("{self:?}"))
    }
}

/// `event!(warn, WARN, fields and message)`, as for the macros of `tracing`. Works through the fields one by one: a binding that
/// owns the value, and the field that shows it.
macro_rules! event {
    ($name:ident, $level:ident, target: $target:expr, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level [target: $target,] [] [] $($rest)+)
    };
    (@ $name:ident $level:ident $target:tt [$($own:tt)*] [$($field:tt)*] % $key:ident, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level $target
            [$($own)* let $key = $key.to_string();] [$($field)* $key = %$key,] $($rest)+)
    };
    (@ $name:ident $level:ident $target:tt [$($own:tt)*] [$($field:tt)*] ? $key:ident, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level $target
            [$($own)* let $key = format!("{:?}", $key);] [$($field)* $key = %$key,] $($rest)+)
    };
    (@ $name:ident $level:ident $target:tt [$($own:tt)*] [$($field:tt)*] $key:ident = % $value:expr, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level $target
            [$($own)* let $key = $value.to_string();] [$($field)* $key = %$key,] $($rest)+)
    };
    (@ $name:ident $level:ident $target:tt [$($own:tt)*] [$($field:tt)*] $key:ident = ? $value:expr, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level $target
            [$($own)* let $key = format!("{:?}", $value);] [$($field)* $key = %$key,] $($rest)+)
    };
    (@ $name:ident $level:ident $target:tt [$($own:tt)*] [$($field:tt)*] $key:ident = $value:expr, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level $target
            [$($own)* let $key = $crate::events::Told::told(&$value);] [$($field)* $key = $key,] $($rest)+)
    };
    (@ $name:ident $level:ident $target:tt [$($own:tt)*] [$($field:tt)*] $key:ident, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level $target
            [$($own)* let $key = $crate::events::Told::told(&$key);] [$($field)* $key = $key,] $($rest)+)
    };
    (@ $name:ident $level:ident [$($target:tt)*] [$($own:tt)*] [$($field:tt)*] $message:literal $(, $argument:expr)* $(,)?) => {
        if $crate::events::is_wanted(tracing::Level::$level) {
            let message = format!($message $(, $argument)*);
            $($own)*
            $crate::events::post(move || tracing::$name!($($target)* $($field)* "{message}"));
        }
    };
    ($name:ident, $level:ident, $($rest:tt)+) => {
        $crate::events::event!(@ $name $level [] [] [] $($rest)+)
    };
}

macro_rules! error {
    ($($event:tt)+) => { $crate::events::event!(error, ERROR, $($event)+) };
}

macro_rules! warning {
    ($($event:tt)+) => { $crate::events::event!(warn, WARN, $($event)+) };
}

macro_rules! info {
    ($($event:tt)+) => { $crate::events::event!(info, INFO, $($event)+) };
}

macro_rules! debug {
    ($($event:tt)+) => { $crate::events::event!(debug, DEBUG, $($event)+) };
}

// `warn` alone would be taken for the attribute of that name.
pub(crate) use {debug, error, event, info, warning as warn};

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
