//! What listens to a process's events, and does it badly.

use std::thread;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The environment variable that says what a process's events come to.
pub(crate) const LISTENER: &str = "TEST_LISTENER";

/// What it does with each event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    /// It never comes back, as from a write to a log that nobody reads.
    Blocks,
    /// It panics, as from a write to a log that is closed.
    Panics,
}

/// Comes before everything else in the processes of a test.
pub(crate) fn install_if_told() {
    let told = std::env::var(LISTENER).unwrap_or_default();
    let listener = [Listener::Blocks, Listener::Panics].into_iter().find(|it| format!("{it:?}") == told);
    if let Some(listener) = listener {
        tracing::subscriber::set_global_default(listener).expect("it is the first one");
    }
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        match self {
            Self::Blocks => loop {
                thread::park();
            },
            Self::Panics => panic!("told to panic"),
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
