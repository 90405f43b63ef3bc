//! What the actors of a play tell each other beside the library. As a call of the kernel, each use is one step that loom sees.

use std::sync::{Mutex, MutexGuard, PoisonError};

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::Thread;

#[derive(Debug)]
pub(crate) struct Board<T> {
    uses: AtomicUsize,
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    state: T,
    waiting: Vec<Thread>,
}

impl<T> Board<T> {
    pub(crate) fn new(state: T) -> Self {
        Self { uses: AtomicUsize::new(0), inner: Mutex::new(Inner { state, waiting: Vec::new() }) }
    }

    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.enter();
        let result = change(&mut inner.state);
        let woken = std::mem::take(&mut inner.waiting);
        drop(inner);
        woken.iter().for_each(Thread::unpark);
        result
    }

    pub(crate) fn wait_until(&self, is_so: impl Fn(&T) -> bool) {
        loop {
            let mut inner = self.enter();
            if is_so(&inner.state) {
                return;
            }
            inner.waiting.push(loom::thread::current());
            drop(inner);
            loom::thread::park();
        }
    }

    fn enter(&self) -> MutexGuard<'_, Inner<T>> {
        // Relaxed: a play is not to order memory in the place of what is tested.
        self.uses.fetch_add(1, Ordering::Relaxed);
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
