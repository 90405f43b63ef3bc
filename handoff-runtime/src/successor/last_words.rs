//! What an error of `main` has to say reaches who ordered the handover.
//!
//! An error that `main` returns drops the successor's handle on its way, and is told to nobody but `main`'s caller. So the handle
//! leaves the conversation here, and it is ended when the error is known.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use handoff_proto::successor::Call;

use super::Conversation;
use crate::worker::panic_text;

thread_local! {
    /// Somebody on this thread waits for what `main` has to say.
    static AWAITED: Cell<bool> = const { Cell::new(false) };
    static LEFT: RefCell<Option<Conversation>> = const { RefCell::new(None) };
}

/// Runs what makes up a daemon's `main`, and returns what it does. If it returns an error, or panics, while it is a successor that
/// has not announced itself, the supervisor hears the error's text, and whoever ordered the handover reads it as the reason.
///
/// Whatever of a successor is dropped meanwhile on this thread gives the handover up when `main` has returned, and not before;
/// [`give_up`](crate::BegunSuccessor::give_up) does it at once. Without this function the supervisor only hears that nothing comes
/// of it, and the error is in the daemon's own log.
///
/// ```no_run
/// # fn run() -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     handoff_runtime::telling_why(|| {
///         // detect_role and everything else, with as many `?` as you like
///         run()
///     })
/// }
/// ```
///
/// # Errors
/// Those of `main`. A panic goes on.
pub fn telling_why<T, E: Display>(main: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let outer = AWAITED.replace(true);
    let ended = catch_unwind(AssertUnwindSafe(main));
    AWAITED.set(outer);
    if let Some(conversation) = LEFT.take() {
        conversation.end(match &ended {
            Ok(Ok(_)) => Call::Dropped,
            Ok(Err(error)) => Call::GiveUp(error.to_string()),
            Err(panic) => Call::GiveUp(panicked(&**panic)),
        });
    }
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    format!("the daemon panicked: {}", panic_text(panic))
}

/// Keeps the conversation for who waits for the last words of this thread's `main`; `None`: it is kept.
pub(super) fn leave(conversation: Conversation) -> Option<Conversation> {
    // A thread on its way out has no such values any more.
    if !AWAITED.try_with(Cell::get).unwrap_or(false) {
        return Some(conversation);
    }
    LEFT.replace(Some(conversation))
}
