//! Clients that misbehave, hooks that misbehave, files that change and limits that are reached under a running service: none of
//! it stops a handover for longer than its own turn, and none of it costs a write.

mod clients;
mod files;
pub(crate) mod hidden;
mod hooks;
mod limits;
mod placement;

pub(crate) use clients::{STRANGER, stranger};
use libtest_mimic::Trial;

pub(crate) fn all() -> Vec<Trial> {
    [clients::all(), files::all(), hidden::all(), hooks::all(), limits::all(), placement::all()]
        .into_iter()
        .flatten()
        .collect()
}
