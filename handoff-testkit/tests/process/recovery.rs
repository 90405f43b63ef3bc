//! No single fault stops the service: a supervisor that is killed or frozen and started again, a build that fails on
//! probation, old processes that do not leave, an incumbent that freezes.
//!
//! Each test writes all the time and ends in the same way: the next handover commits, nothing that was acknowledged is
//! lost, no client was refused, and no process is left. Where the fault is the death of the only process that serves,
//! requests may stay unanswered; nothing else may happen.

mod bounds;
pub(crate) mod daemon;
mod frozen;
pub(crate) mod leftovers;
mod probation;
mod restart;
pub(crate) mod scene;

use libtest_mimic::Trial;

use crate::{Outcome, skip};

pub(crate) fn all() -> Vec<Trial> {
    [restart::all(), probation::all(), frozen::all(), bounds::all(), leftovers::all()].into_iter().flatten().collect()
}

fn trial(name: &str, test: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    skip::trial(format!("recovery::{name}"), test)
}
