//! One machine as its driver sees it: what it has asked for and nobody has done yet, what waits to be told to it, and which
//! timers run.
//!
//! It keeps the contract of [`handoff_proto::machine`]: all effects of a step, in their order, before the next input.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use handoff_proto::Machine;

use super::print::fingerprint;

/// A value that is shared by the states that did not change it, hashed once.
#[derive(Debug, Clone)]
pub(super) struct Kept<T>(Arc<(u64, T)>);

impl<T: Hash> Kept<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new((fingerprint(&value), value)))
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl<T: PartialEq> PartialEq for Kept<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.0 == other.0.0 && self.0.1 == other.0.1)
    }
}

impl<T: Eq> Eq for Kept<T> {}

impl<T> Hash for Kept<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.0);
    }
}

/// A machine `M` with its inputs `I`, effects `E` and timers `T`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Drive<M, I, E, T> {
    pub(super) machine: Kept<M>,
    /// Asked for and not done.
    pub(super) todo: VecDeque<E>,
    /// Results of effects, to be told before anything else.
    pub(super) results: VecDeque<I>,
    /// The timers that run, in the order of the list of those that matter.
    armed: Vec<T>,
}

impl<M, I, E, T> Drive<M, I, E, T>
where
    M: Machine<Input = I, Effect = E>,
    T: Copy + PartialEq,
{
    pub(super) fn new(machine: M) -> Self {
        Self { machine: Kept::new(machine), todo: VecDeque::new(), results: VecDeque::new(), armed: Vec::new() }
    }

    pub(super) fn feed(&mut self, input: I) {
        let mut machine = M::clone(&self.machine);
        self.todo.extend(machine.step(input));
        self.machine = Kept::new(machine);
    }

    /// A timer that is not on the list of those that matter never runs out in this world.
    pub(super) fn arm(&mut self, timer: T, that_matter: &[T]) {
        if let Some(place) = that_matter.iter().position(|known| *known == timer)
            && !self.is_armed(timer)
        {
            let earlier = |known: &T| that_matter[..place].contains(known);
            let at = self.armed.iter().take_while(|known| earlier(known)).count();
            self.armed.insert(at, timer);
        }
    }

    pub(super) fn disarm(&mut self, timer: T) {
        self.armed.retain(|known| *known != timer);
    }

    pub(super) fn is_armed(&self, timer: T) -> bool {
        self.armed.contains(&timer)
    }

    pub(super) fn armed(&self) -> &[T] {
        &self.armed
    }

    pub(super) fn fire(&mut self, timer: T, input: I) {
        debug_assert!(self.is_armed(timer), "the contract: no timer runs out that does not run");
        self.disarm(timer);
        self.feed(input);
    }

    /// Nothing is to be done or told: the driver waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.todo.is_empty() && self.results.is_empty()
    }
}
