//! Each in a process of its own, because the subscriber belongs to a whole process.

use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use super::*;
use crate::sys::fork::in_a_child;
use crate::testing::{footprint, run_alone};

/// What a subscriber was given, as text, and what it does meanwhile.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    /// Nothing gets on while somebody has it.
    gate: Arc<Mutex<()>>,
}

impl Log {
    fn install() -> Self {
        let log = Self::default();
        tracing::subscriber::set_global_default(log.clone()).unwrap();
        log
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until `line` has been emitted, and wakes nobody.
    fn wait_for(&self, line: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.lines().iter().any(|it| it.contains(line)) {
            assert!(Instant::now() < until, "{line} is not in {:?}", self.lines());
            thread::yield_now();
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.0, " {field}=str:{value}");
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        let _ = write!(self.0, " {field}=u64:{value}");
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let _passed = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = event.metadata();
        let mut line = Line(format!("{} {} {:?}", metadata.level(), metadata.target(), metadata.file()));
        event.record(&mut line);
        assert!(!line.0.contains("told to panic"), "as the test wants");
        self.lines.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Both of a kind: `tracing` gets the very same event.
macro_rules! both {
    ($name:ident, $($event:tt)+) => {{
        crate::events::$name!($($event)+);
        settle();
        tracing::$name!($($event)+);
    }};
}

#[test]
#[ignore = "run by the next test in a process of its own"]
fn alone_the_macros_give_what_those_of_tracing_give() {
    let log = Log::install();
    let error = std::io::Error::other("disk");
    let (pid, name, how) = (7u32, String::from("http"), "at once");
    let none: Option<u32> = None;
    both!(warn, %error, "it failed");
    both!(info, pid, name, how, "three");
    both!(debug, ?pid, name = %name, error = ?error, "debug");
    both!(error, target: "handoff::x", pid = Some(pid), none, ms = 3u128, "the daemon left {how} as {}", pid);
    both!(warn, "alone");
    let lines = log.lines();
    assert_eq!(lines.len(), 10);
    for pair in lines.chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
}

#[test]
fn the_macros_give_what_those_of_tracing_give() {
    run_alone("events::tests::alone_the_macros_give_what_those_of_tracing_give");
}

#[test]
#[ignore = "run by the next test in a process of its own"]
fn alone_where_nobody_listens_there_is_no_thread() {
    let before = footprint();
    prepare();
    crate::events::error!("to nobody");
    settle();
    assert_eq!(footprint(), before);
    assert!(existing().is_none());
    Log::install();
    prepare();
    assert_eq!(footprint(), [before[0], before[1] + 1]);
}

#[test]
fn where_nobody_listens_there_is_no_thread() {
    run_alone("events::tests::alone_where_nobody_listens_there_is_no_thread");
}

#[test]
#[ignore = "run by the next test in a process of its own"]
fn alone_what_finds_no_room_is_counted_and_told_of() {
    let log = Log::install();
    let closed = log.gate.lock().unwrap();
    let count = EVENTS_MAX as u64 + 500;
    for number in 0..count {
        crate::events::info!(number, "one of many");
    }
    // It gives up on one that does not get on.
    settle();
    assert!(log.lines().is_empty());
    drop(closed);
    log.wait_for("events got lost");
    crate::events::info!("and then");
    log.wait_for("and then");
    let lines = log.lines();
    let told = lines.iter().filter(|line| line.contains("one of many")).count() as u64;
    assert!(told >= EVENTS_MAX as u64, "{told}");
    assert!(lines.iter().any(|line| line.contains(&format!("count=u64:{}", count - told))), "{told} {lines:?}");
}

#[test]
fn what_finds_no_room_is_counted_and_told_of() {
    run_alone("events::tests::alone_what_finds_no_room_is_counted_and_told_of");
}

#[test]
#[ignore = "run by the next test in a process of its own"]
fn alone_what_is_left_is_passed_on_and_a_panic_costs_one_event() {
    let log = Log::install();
    prepare();
    for number in 0..100 {
        leave(move || tracing::info!("told to panic"));
        leave(move || tracing::info!(number, "left"));
        pass_on();
        log.wait_for(&format!("number={number}"));
    }
    assert_eq!(log.lines().len(), 100);
}

#[test]
fn what_is_left_is_passed_on_and_a_panic_costs_one_event() {
    run_alone("events::tests::alone_what_is_left_is_passed_on_and_a_panic_costs_one_event");
}

#[test]
#[ignore = "run by the next test in a process of its own"]
fn alone_a_forked_child_has_a_queue_and_a_thread_of_its_own() {
    let log = Log::install();
    let closed = log.gate.lock().unwrap();
    crate::events::info!("the parent's first");
    crate::events::info!("the parent's second");
    let queue = own().unwrap().lock();
    let child = Log { gate: Arc::default(), ..log.clone() };
    let fine = in_a_child(|| {
        let dispatch = Dispatch::new(child.clone());
        dispatcher::with_default(&dispatch, || crate::events::info!("the child's"));
        child.wait_for("the child's");
        child.lines().len() == 1
    });
    assert!(fine, "the child has emitted its own event and no other");
    drop((queue, closed));
    settle();
    assert_eq!(log.lines().len(), 2);
}

#[test]
fn a_forked_child_has_a_queue_and_a_thread_of_its_own() {
    run_alone("events::tests::alone_a_forked_child_has_a_queue_and_a_thread_of_its_own");
}
