//! The two threads of a daemon in every order in which they can run: no wake-up is lost, and nobody sleeps for ever while
//! there is something to do.
//!
//! The files of the library that do the waking (`relief`, `waker`, the incumbent's `crew` and `watch`, the successor's `shifts`)
//! are built here once more, word for word, on loom's threads, locks and atomics, with a kernel that loom can see into
//! (`kernel`) and with simple things in the place of what the threads work on. A thread that sleeps for ever is a deadlock to
//! loom. Loom and not a random scheduler, because the order of memory is a part of what is tested: a `Release` that should
//! have been an `AcqRel` is found too.
//!
//! Not a test of libtest's, in which the unit tests of these files would be run as well, without loom.
#![allow(dead_code, unused_imports)] // The files are used in parts.

mod alone;
mod board;
mod incumbent;
mod kernel;
mod successor;

#[path = "../../src/relief.rs"]
mod relief;
#[path = "../../src/waker.rs"]
mod waker;

use std::cell::Cell;
use std::panic;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use libtest_mimic::{Arguments, Trial};

/// In the place of the standard library's.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
}

/// In the place of the library's, which waits with nothing of its own.
mod helper {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use loom::sync::Mutex;
    use loom::thread::{JoinHandle, spawn};

    use crate::error::Result;

    #[derive(Debug)]
    pub(crate) struct Helper(Mutex<Option<JoinHandle<()>>>);

    impl Helper {
        pub(crate) fn start() -> Result<Self> {
            Ok(Self(Mutex::new(None)))
        }

        /// It is given one task here.
        pub(crate) fn give(&self, task: impl FnOnce() + 'static) {
            let task = move || drop(catch_unwind(AssertUnwindSafe(task)));
            assert!(self.0.lock().unwrap().replace(spawn(task)).is_none());
        }

        pub(crate) fn join(self) {
            let thread = self.0.lock().unwrap().take().unwrap();
            thread.join().unwrap();
        }
    }
}

mod channel {
    #[derive(Debug)]
    pub(crate) struct Channel;
}

mod error {
    pub(crate) type Result<T> = std::result::Result<T, Error>;

    #[derive(Debug)]
    pub(crate) struct Error;

    impl Error {
        pub(crate) fn io(_: &str, _: std::io::Error) -> Self {
            Self
        }
    }
}

/// In the place of the library's: loom's threads would have to wait for its thread.
mod events {
    pub(crate) use tracing::warn;

    pub(crate) fn pass_on() {}
}

mod timers {
    pub(crate) fn now_ns() -> u64 {
        unreachable!("nothing has a time here")
    }
}

mod worker {
    pub(crate) use crate::incumbent::Bench;
}

mod sys {
    pub(crate) use crate::kernel::{counter, poll};

    /// No child is forked here.
    pub(crate) mod fork {
        pub(crate) type StaysHere = std::os::unix::net::UnixStream;
    }
}

/// Far more steps than a play has: one that never ends is found.
const STEPS_MAX: usize = 10_000;
/// Far fewer orders than any play has: less was no play.
const ORDERS_MIN: u64 = 100;

thread_local! {
    static PLAY: Cell<&'static str> = const { Cell::new("none") };
}

fn main() -> ExitCode {
    // Threads that loom finds asleep can't always be unwound, and the program aborts: whose play it was is said before.
    let say_more = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        eprintln!("in the play {}:", PLAY.get());
        say_more(info);
    }));
    let arguments = Arguments::from_args();
    let trials = [alone::all(), incumbent::all(), successor::all()];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// A play in every order, as far as orders differ in at most so many forced changes of threads.
fn trial(name: &'static str, preemptions_max: usize, play: fn()) -> Trial {
    Trial::test(name, move || {
        PLAY.set(name);
        let mut model = loom::model::Builder::new();
        (model.preemption_bound, model.max_branches) = (Some(preemptions_max), STEPS_MAX);
        (model.max_duration, model.max_permutations) = (None, None);
        let orders = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&orders);
        model.check(move || {
            counted.fetch_add(1, Relaxed);
            play();
        });
        let orders = orders.load(Relaxed);
        if orders < ORDERS_MIN { Err(format!("only {orders} orders").into()) } else { Ok(()) }
    })
}
