//! The two threads of an incumbent, and which of them waits for clients and time.
//!
//! ```text
//!                            the library's thread      the caller's thread
//!   nothing happens          waits                     sleeps
//!   a hook is to be run      runs it                   is called in, if that takes longer than a moment (`relief`);
//!                                                      then waits: an abort is seen at once
//!   the hook has ended       says so to the machine,   sleeps on, or waits on
//!                            runs what comes next
//!   woken by something else  as it was                 leaves the waiting to the other, if no hook runs
//! ```
//!
//! So the order to drain, the drain, the seal and the word that it is done are one thread's: changing threads between them
//! would cost more than all that is done there. Both threads work on the one driver, behind a mutex that nobody holds while
//! he waits, or runs a hook.

use std::sync::{Arc, PoisonError};

use super::Served;
use super::driver::Driver;
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::helper::Helper;
use crate::relief::Relief;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::waker::Waker;
use crate::worker::Bench;

/// What both threads share.
struct Crew {
    driver: Mutex<Driver>,
    /// Calls the caller's thread.
    relief: Relief,
    /// Wakes whoever waits for the loop.
    waker: Waker,
    /// The caller's thread waits no more.
    changed: Condvar,
}

/// What the library's thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hooks {
    Idle,
    Running,
    /// It is gone, although hooks can't end it.
    Gone,
}

/// The library's thread when it waits for a daemon to serve, and what wakes its loop. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct IdleWorker {
    helper: Helper,
    waker: Waker,
    relief: Relief,
}

impl IdleWorker {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or no descriptor can be had.
    pub(crate) fn start() -> Result<Self> {
        let failed = |error| Error::io("prepare the control loop's descriptors", error);
        Ok(Self {
            waker: Waker::new().map_err(failed)?,
            relief: Relief::new().map_err(failed)?,
            helper: Helper::start()?,
        })
    }

    /// That of a successor that has taken over.
    pub(super) fn taken_over(helper: Helper, waker: Waker, relief: Relief) -> Self {
        Self { helper, waker, relief }
    }

    /// Wakes whoever waits for the loop.
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Serves until the machine leaves.
    pub(super) fn serve(self, driver: Driver, bench: Bench) -> Result<Served> {
        let crew = Arc::new(Crew {
            driver: Mutex::new(driver),
            relief: self.relief,
            waker: self.waker,
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&crew);
        self.helper.give(move || theirs.run_hooks(&bench));
        let served = crew.stand_by();
        // No hook runs when the machine has left; after a failure one may, and for how long it knows alone.
        let has_left = crew.lock().left.is_some();
        if has_left {
            self.helper.join();
        }
        served
    }
}

impl Crew {
    /// The caller's thread: waits while a hook runs for long.
    fn stand_by(&self) -> Result<Served> {
        let mut driver = self.lock();
        loop {
            if let Some(end) = driver.take_end() {
                return end;
            }
            driver = match driver.hooks {
                Hooks::Running => self.watch(driver),
                Hooks::Idle | Hooks::Gone => {
                    drop(driver);
                    self.relief.wait();
                    self.lock()
                }
            };
            if driver.hooks == Hooks::Idle {
                self.changed.notify_all();
            }
        }
    }

    /// The library's thread: runs the hooks, and waits in between.
    fn run_hooks(&self, bench: &Bench) {
        let _gone = SaysThatItIsGone(self);
        let mut driver = self.lock();
        while !driver.is_over() {
            driver = if let Some(order) = driver.jobs.next() {
                driver.hooks = Hooks::Running;
                if driver.watched.is_none() {
                    self.relief.in_a_moment();
                }
                drop(driver);
                let ended = bench.perform(order);
                let mut driver = self.lock();
                driver.hooks = Hooks::Idle;
                if let Some(ended) = ended {
                    driver.feed(ended);
                }
                self.wake_watcher(&driver);
                driver
            } else if driver.watched.is_some() {
                self.changed.wait(driver).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.relief.not_needed();
                self.watch(driver)
            };
        }
    }

    /// Waits once, and deals with what has come.
    fn watch<'a>(&'a self, mut driver: MutexGuard<'a, Driver>) -> MutexGuard<'a, Driver> {
        let watch = driver.watch();
        driver.watched = Some(watch.clone());
        drop(driver);
        let found = watch.wait();
        let mut driver = self.lock();
        driver.watched = None;
        // With this, what the other thread has closed meanwhile is closed.
        drop(watch);
        driver.turn(found);
        driver
    }

    /// Wakes who waits, if he waits for something else than he should by now.
    fn wake_watcher(&self, driver: &Driver) {
        let is_late = |watched: &Watch| driver.is_over() || !watched.covers(&driver.watch());
        if driver.watched.as_ref().is_some_and(is_late) {
            self.waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the caller not sleep for ever for a thread that has panicked.
struct SaysThatItIsGone<'a>(&'a Crew);

impl Drop for SaysThatItIsGone<'_> {
    fn drop(&mut self) {
        let mut driver = self.0.lock();
        driver.hooks_are_gone();
        self.0.wake_watcher(&driver);
        self.0.relief.at_once();
    }
}
