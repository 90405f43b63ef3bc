//! When the points of a handover were reached, and their names in the log.

use std::time::Duration;

use handoff_proto::supervisor::Milestone;

use crate::crash::points;
use crate::crash_here;
use crate::outcome::Timings;
use crate::timers::now_ns;

/// The target of the events of a handover; with the names below it is an interface (`docs/operating.md`).
pub(super) const EVENTS: &str = "handoff::supervisor";

/// The moments of one handover, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug)]
pub(super) struct Stopwatch {
    started_ns: u64,
    reached: Vec<(Milestone, u64)>,
}

impl Stopwatch {
    /// Starts now.
    pub(super) fn start() -> Self {
        Self { started_ns: now_ns(), reached: Vec::with_capacity(16) }
    }

    /// Notes that it is reached, and gives the moment.
    pub(super) fn note(&mut self, milestone: Milestone) -> u64 {
        let at_ns = now_ns();
        self.reached.push((milestone, at_ns));
        at_ns
    }

    /// From the start to that moment.
    pub(super) fn until(&self, at_ns: u64) -> Duration {
        Duration::from_nanos(at_ns.saturating_sub(self.started_ns))
    }

    /// How long the parts took until now.
    pub(super) fn timings(&self) -> Timings {
        Timings {
            spawn: self.between(Milestone::IncumbentGreeted, Milestone::SuccessorGreeted),
            warm: self.between(Milestone::SuccessorGreeted, Milestone::Warmed),
            drain: self.between(Milestone::PrepareSent, Milestone::DrainedReceived),
            seal: self.between(Milestone::SealRequestSent, Milestone::SealCompleteReceived),
            begin_to_ready: self.between(Milestone::BeginSent, Milestone::ReadyReceived),
            total: self.until(now_ns()),
            pause: self.between(Milestone::PrepareSent, Milestone::ReadyReceived),
        }
    }

    /// Zero when one of them was not reached.
    fn between(&self, from: Milestone, to: Milestone) -> Duration {
        let at = |wanted| self.reached.iter().find(|&&(milestone, _)| milestone == wanted).map(|&(_, at_ns)| at_ns);
        let nanos = at(from).zip(at(to)).map_or(0, |(from, to)| to.saturating_sub(from));
        Duration::from_nanos(nanos)
    }
}

/// The stable name of a point in the log.
pub(super) const fn name(milestone: Milestone) -> &'static str {
    match milestone {
        Milestone::IncumbentGreeted => "incumbent_greeted",
        Milestone::SuccessorSpawned => "successor_spawned",
        Milestone::SuccessorGreeted => "successor_greeted",
        Milestone::Warmed => "warmed",
        Milestone::PrepareSent => "prepare_sent",
        Milestone::DrainedReceived => "drained_received",
        Milestone::SealRequestSent => "seal_request_sent",
        Milestone::SealCompleteReceived => "seal_complete_received",
        Milestone::BeginSent => "begin_sent",
        Milestone::ReadyReceived => "ready_received",
        Milestone::CommitSent => "commit_sent",
        Milestone::JournalClosed => "journal_closed",
        Milestone::Promoted => "promoted",
        Milestone::WatchdogFired => "watchdog_fired",
        Milestone::UndoStarted => "undo_started",
        Milestone::FoundActive => "found_active",
        Milestone::ResumeSent => "resume_sent",
        Milestone::ResumedReceived => "resumed_received",
        Milestone::ResumeUnanswered => "resume_unanswered",
        Milestone::SuccessorLingers => "successor_lingers",
        Milestone::WithoutLease => "without_lease",
    }
}

/// The points at which a test lets the supervisor die.
pub(super) fn crash_at(milestone: Milestone) {
    match milestone {
        Milestone::IncumbentGreeted => crash_here!(points::S_AFTER_O_HELLO),
        Milestone::SuccessorSpawned => crash_here!(points::S_AFTER_SPAWN_SUCCESSOR),
        Milestone::SuccessorGreeted => crash_here!(points::S_AFTER_N_HELLO),
        Milestone::PrepareSent => crash_here!(points::S_AFTER_PREPARE_SENT),
        Milestone::DrainedReceived => crash_here!(points::S_AFTER_DRAINED_RECV),
        Milestone::SealRequestSent => crash_here!(points::S_AFTER_SEAL_REQUEST_SENT),
        Milestone::SealCompleteReceived => crash_here!(points::S_AFTER_SEAL_COMPLETE_RECV),
        Milestone::BeginSent => crash_here!(points::S_AFTER_BEGIN_SENT),
        Milestone::ReadyReceived => crash_here!(points::S_AFTER_READY_RECV),
        Milestone::CommitSent => crash_here!(points::S_AFTER_COMMIT_SENT),
        Milestone::JournalClosed => crash_here!(points::S_AFTER_JOURNAL_CLEAR),
        Milestone::Warmed
        | Milestone::Promoted
        | Milestone::WatchdogFired
        | Milestone::UndoStarted
        | Milestone::FoundActive
        | Milestone::ResumeSent
        | Milestone::ResumedReceived
        | Milestone::ResumeUnanswered
        | Milestone::SuccessorLingers
        | Milestone::WithoutLease => {}
    }
}
