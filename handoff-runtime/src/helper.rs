//! The library's one thread in a daemon, beside that for its `events`: a successor's conversation with its supervisor, then an incumbent's loop and hooks.
//!
//! It performs what it is given, one task after the other, and exists before its process owns the data: a successor that can't
//! have a thread must fail while somebody else serves, and between Prepare and Commit nothing is spawned. A task that panics
//! costs no other one its thread; what it owed to others is for guards of its own to say. It takes no signal, from its first
//! moment on: those of the process are the daemon's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result};
use crate::sys::signals;

/// Its name, for people who look at a daemon's threads.
pub(crate) const NAME: &str = "handoff";

type Task = Box<dyn FnOnce() + Send>;

/// The thread. Dropping it lets it end behind its last task.
#[derive(Debug)]
pub(crate) struct Helper {
    tasks: Sender<Task>,
    thread: JoinHandle<()>,
}

impl Helper {
    /// Starts it; it waits for a task.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start() -> Result<Self> {
        let (tasks, given) = channel::<Task>();
        let perform = move || {
            for task in given {
                // The panic itself has been reported.
                let _ = catch_unwind(AssertUnwindSafe(task));
            }
        };
        // A thread begins with the mask of the one that starts it.
        let _signals = signals::leave_to_other_threads();
        let thread = Builder::new()
            .name(NAME.into())
            .spawn(perform)
            .map_err(|error| Error::io("start the library's thread", error))?;
        Ok(Self { tasks, thread })
    }

    /// Has it perform this behind what it was given before.
    pub(crate) fn give(&self, task: impl FnOnce() + Send + 'static) {
        // It takes tasks for as long as this lives.
        let _ = self.tasks.send(Box::new(task));
    }

    /// Waits until it has performed everything.
    pub(crate) fn join(self) {
        drop(self.tasks);
        // No task can make it panic.
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn performs_one_task_after_the_other_on_one_thread_whatever_becomes_of_them() {
        let helper = Helper::start().unwrap();
        let (sender, seen) = channel();
        for number in 0..3 {
            let sender = sender.clone();
            helper.give(move || sender.send((number, thread::current().id())).unwrap());
            helper.give(|| panic!("as the test wants"));
        }
        helper.join();
        let seen: Vec<_> = seen.try_iter().collect();
        assert_eq!(seen.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(seen.iter().all(|(_, id)| *id == seen[0].1 && *id != thread::current().id()));
    }
}
