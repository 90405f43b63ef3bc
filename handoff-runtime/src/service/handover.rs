//! One handover under way: performed on the worker thread, told to the loop step by step, so that a status is answered in the
//! middle of it. What the protocol decides is not decided here.

use std::cell::Cell;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handoff_journal::{HistoryEntry, HistoryTimings};
use handoff_proto::supervisor::Milestone;
use handoff_proto::{HandoffId, ProcessId};

use super::admin::ClientId;
use super::builds::Aborted;
use super::daemon::unix_ms;
use super::report::{Event, HandoverReport, HandoverStatus, SealStatus, TimingsMs, build_id_text, milliseconds};
use super::spans::Moments;
use crate::channel::Channel;
use crate::outcome::{HandoffOutcome, SpawnSpec, Timings};
use crate::process::Process;
use crate::progress::{Cancel, Onlooker, Progress, Sealed, Step};
use crate::supervisor::{AtHand, Supervisor};
use crate::timers::now_ns;
use crate::waker::Waker;
use crate::{Error, Result};

/// The exit codes of `upgrade`, which the admin socket tells too.
pub(super) const COMMITTED: u8 = 0;
pub(super) const ABORTED: u8 = 2;
pub(super) const NOT_TRIED: u8 = 3;
pub(super) const BUSY: u8 = 4;

/// How long a connection lies by, in nanoseconds: an incumbent that is not answered closes it after 5 s (`Timing::hello`).
const CONNECTED_NS_MAX: u64 = 1_000_000_000;

/// How long the disk is left to a new daemon, whose clients' first writes wait for it.
const FIRST_WRITES: Duration = Duration::from_millis(100);

/// What the worker tells the loop.
#[derive(Debug)]
pub(super) enum News {
    /// The successor was started: time to write the order down.
    Started,
    Progress(Vec<Progress>),
    /// Its outcome, and what had not been told.
    Over(Box<Result<HandoffOutcome>>, Vec<Progress>),
}

/// The way from the worker to the loop.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) sender: Sender<News>,
    pub(super) waker: Waker,
}

impl Wire {
    fn tell(&self, news: News) {
        // The loop outlives every handover; if it is gone, so is whoever cares.
        let _ = self.sender.send(news);
        self.waker.wake();
    }
}

/// The loop's view of the handover under way.
#[derive(Debug)]
pub(super) struct Handover {
    /// Who gave the order; may be gone by now.
    pub(super) client: ClientId,
    pub(super) spec: SpawnSpec,
    pub(super) old: ProcessId,
    /// Asked for when the handover is under way already.
    pub(super) old_build: Option<String>,
    new_build: Option<String>,
    ordered_unix_ms: u64,
    moments: Moments,
    cancel: Cancel,
    /// Dropped when the order is on record; the worker waits for it.
    unrecorded: Option<Sender<Infallible>>,
    handoff_id: Option<HandoffId>,
    phase: &'static str,
    /// The phase in which it was given up, while it is undone.
    given_up_in: Option<&'static str>,
    sealed: Option<Sealed>,
    successor_pid: Option<u32>,
    aborted: Aborted,
}

/// The process that is to be replaced.
#[derive(Debug)]
pub(super) struct Old {
    pub(super) process: Process,
    /// A connection to it, made when the order came: it greets while the order is looked at.
    pub(super) connected: Option<Channel>,
}

impl Handover {
    /// Gives the worker its order. It says when the successor was started, and does not touch the old process before
    /// [`recorded`](Self::recorded): what the service writes down of an order costs no time, because the successor starts meanwhile.
    ///
    /// `announce` is called before the worker has the order: what the client is told there it knows whatever becomes of us.
    ///
    /// # Errors
    /// The system's: no descriptor is left; or the worker is gone. Nothing was started.
    pub(super) fn start(
        worker: &Worker,
        client: ClientId,
        spec: SpawnSpec,
        old: Old,
        announce: impl FnOnce(&Self, HandoffId),
    ) -> Result<Self> {
        let ordered_ns = now_ns();
        let cancel = Cancel::new().map_err(|error| Error::io("prepare a handover", error))?;
        let (unrecorded, recorded) = channel();
        let id = HandoffId::new();
        let handover = Self {
            client,
            spec: spec.clone(),
            old: old.process.id(),
            old_build: None,
            new_build: None,
            ordered_unix_ms: unix_ms(),
            moments: Moments::new(ordered_ns),
            cancel: cancel.clone(),
            unrecorded: Some(unrecorded),
            handoff_id: None,
            phase: FIRST_PHASE,
            given_up_in: None,
            sealed: None,
            successor_pid: None,
            aborted: Aborted::Settled,
        };
        announce(&handover, id);
        worker.order(Order { handoff_id: id, spec, old, ordered_ns, cancel, recorded })?;
        Ok(handover)
    }

    /// All that a client needs to find out by itself what came of it.
    pub(super) fn ordered_event(&self, handoff_id: HandoffId, data_dir: Option<&Path>) -> Event {
        Event::Ordered {
            handoff_id,
            old_pid: self.old.pid,
            old_start_time: self.old.start_time,
            // The admin protocol is JSON, so a path must be text.
            data_dir: data_dir.and_then(Path::to_str).map(PathBuf::from),
            deadline_ms: u64::try_from(self.spec.deadline.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// What the service must know after a crash is written down.
    pub(super) fn recorded(&mut self) {
        self.unrecorded = None;
    }

    /// Calls it off; its end comes as [`News::Over`] all the same.
    pub(super) fn cancel(&self, reason: &str) {
        self.cancel.cancel(reason);
    }

    /// Notes how far it has come; an event when a new phase begins, or a seal has come farther.
    pub(super) fn note(&mut self, progress: &Progress) -> Option<Event> {
        self.handoff_id = Some(progress.handoff_id);
        self.successor_pid = progress.successor_pid.or(self.successor_pid);
        match &progress.step {
            Step::Reached(milestone) => self.note_milestone(*milestone, progress.at_ns),
            Step::SuccessorBuild(build) => {
                self.new_build = Some(build_id_text(build));
                None
            }
            &Step::Sealed(sealed) => {
                self.sealed = Some(sealed);
                Some(Event::SealProgress {
                    shards_sealed: sealed.shards,
                    shards_total: sealed.total,
                    last_revision: sealed.last_revision,
                })
            }
        }
    }

    fn note_milestone(&mut self, milestone: Milestone, at_ns: u64) -> Option<Event> {
        self.moments.note(milestone, at_ns);
        match milestone {
            Milestone::BeginSent => self.aborted = Aborted::Unsettled,
            Milestone::ResumedReceived => self.aborted = Aborted::Settled,
            Milestone::UndoStarted => self.given_up_in = Some(self.phase),
            _ => {}
        }
        self.phase = phase_after(milestone).filter(|phase| *phase != self.phase)?;
        Some(self.event(self.moments.after_ms(at_ns)))
    }

    /// That it has begun, for the client.
    pub(super) fn first_event(&self) -> Event {
        self.event(0)
    }

    fn event(&self, after_ms: u64) -> Event {
        Event::Phase {
            phase: self.phase.to_owned(),
            handoff_id: self.handoff_id.map(|id| id.to_string()),
            successor_pid: self.successor_pid,
            after_ms,
        }
    }

    /// What its end means for the data, if it is not committed.
    pub(super) fn aborted(&self) -> Aborted {
        self.aborted
    }

    /// For people.
    pub(super) fn status(&self) -> HandoverStatus {
        HandoverStatus {
            handoff_id: self.handoff_id.map(|id| id.to_string()),
            phase: self.phase.to_owned(),
            successor_pid: self.successor_pid,
            seal: self.sealed.filter(|_| self.phase == SEALING).map(|sealed| SealStatus {
                shards_sealed: sealed.shards,
                shards_total: sealed.total,
                last_revision: sealed.last_revision,
            }),
        }
    }

    /// When the old process was told to leave, on CLOCK_MONOTONIC.
    pub(super) fn committed_ns(&self) -> Option<u64> {
        self.moments.at_ns(Milestone::CommitSent)
    }

    /// What the history keeps of it.
    pub(super) fn entry(&self, report: &HandoverReport, ended_ns: u64) -> HistoryEntry {
        let TimingsMs { spawn, warm, drain, seal, begin_to_ready, total, pause } = report.timings_ms;
        let aborted_in = self.given_up_in.unwrap_or(self.phase);
        HistoryEntry {
            handoff_id: self.handoff_id,
            committed: report.committed,
            abort_reason: report.abort_reason.clone(),
            incumbent: report.incumbent.map(|incumbent| incumbent.name().to_owned()),
            aborted_in: (!report.committed).then(|| aborted_in.to_owned()),
            old_pid: report.old_pid,
            new_pid: report.new_pid,
            epoch: report.epoch,
            old_build: self.old_build.clone(),
            new_build: self.new_build.clone(),
            binary: Some(self.spec.binary.display().to_string()),
            started_at_unix_ms: self.ordered_unix_ms,
            timings_ms: HistoryTimings { spawn, warm, drain, seal, begin_to_ready, total, pause, retire: None },
            phases: self.moments.spans(ended_ns),
        }
    }

    /// Its report and its exit code. `epoch` looks what the lease says, where the outcome does not tell.
    pub(super) fn report(
        &self,
        result: &Result<HandoffOutcome>,
        epoch: impl FnOnce() -> Option<u64>,
    ) -> (HandoverReport, u8) {
        let told = result.as_ref().ok().and_then(|outcome| outcome.epoch);
        let unknown = HandoverReport {
            handoff_id: self.handoff_id.map(|id| id.to_string()),
            old_pid: Some(self.old.pid),
            new_pid: self.successor_pid,
            epoch: told.or_else(epoch),
            ..HandoverReport::default()
        };
        match result {
            Ok(outcome) => {
                let report = HandoverReport {
                    handoff_id: Some(outcome.handoff_id.to_string()),
                    committed: outcome.committed,
                    abort_reason: outcome.abort_reason.clone(),
                    incumbent: Some(outcome.incumbent),
                    new_pid: outcome.child.as_ref().map(|child| child.pid()).or(self.successor_pid),
                    timings_ms: timings(&outcome.timings),
                    ..unknown
                };
                let exit_code = exit_code(&report);
                (report, exit_code)
            }
            Err(error) => {
                let exit_code = match (error, self.successor_pid) {
                    (Error::HandoffInProgress, _) => BUSY,
                    (_, Some(_)) => ABORTED,
                    (_, None) => NOT_TRIED,
                };
                (HandoverReport { abort_reason: Some(error.to_string()), ..unknown }, exit_code)
            }
        }
    }
}

/// The thread that performs the handovers, one after the other: an order finds it waiting.
#[derive(Debug)]
pub(super) struct Worker {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

/// One handover, for the worker.
struct Order {
    handoff_id: HandoffId,
    spec: SpawnSpec,
    old: Old,
    /// On CLOCK_MONOTONIC.
    ordered_ns: u64,
    cancel: Cancel,
    /// Closed when the order is on record.
    recorded: Receiver<Infallible>,
}

impl Worker {
    /// Starts it; whatever happens to a handover goes over `wire`.
    ///
    /// # Errors
    /// The system's: no thread is left.
    pub(super) fn start(supervisor: Supervisor, wire: Wire) -> Result<Self> {
        let (orders, ordered) = channel::<Order>();
        let work = move || {
            while let Ok(order) = ordered.recv() {
                order.perform(&supervisor, &wire);
                while let Ok(order) = ordered.recv_timeout(FIRST_WRITES) {
                    order.perform(&supervisor, &wire);
                }
                supervisor.make_end_durable();
            }
        };
        let thread = thread::Builder::new()
            .name("handover".to_owned())
            .spawn(work)
            .map_err(|error| Error::io("start the handovers' thread", error))?;
        Ok(Self { orders, thread })
    }

    /// A panic ends no more than the one order, so it should be there; an order that nobody takes would never be over.
    fn order(&self, order: Order) -> Result<()> {
        let gone =
            |_| Error::Usage("the thread that performs the handovers has ended: start the service again".to_owned());
        self.orders.send(order).map_err(gone)
    }

    /// Waits until the disk has what it was told last.
    pub(super) fn leave(self) {
        drop(self.orders);
        // A panic of it was reported.
        let _ = self.thread.join();
    }
}

/// How the worker watches what it does.
struct Watcher<'a> {
    wire: &'a Wire,
    recorded: Receiver<Infallible>,
}

impl Onlooker for Watcher<'_> {
    fn see(&self, news: Vec<Progress>) {
        self.wire.tell(News::Progress(news));
    }

    fn successor_started(&self) {
        self.wire.tell(News::Started);
    }

    fn before_sync(&self) {
        // Nothing ever comes but the end.
        let _ = self.recorded.recv();
    }
}

impl Order {
    fn perform(self, supervisor: &Supervisor, wire: &Wire) {
        let Self { handoff_id, spec, old, ordered_ns, cancel, recorded } = self;
        let connected = not_too_old(old.connected, now_ns().saturating_sub(ordered_ns));
        let at_hand = AtHand { process: Some(old.process), connected };
        let told = Cell::new(false);
        let over = |result, rest| {
            // By now the loop may wait for the end of the next one.
            if !told.replace(true) {
                wire.tell(News::Over(Box::new(result), rest));
            }
        };
        let watcher = Watcher { wire, recorded };
        let perform = || supervisor.perform_watched(handoff_id, spec, at_hand, &watcher, &cancel, over);
        match catch_unwind(AssertUnwindSafe(perform)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => over(Err(error), Vec::new()),
            // A loop that waits for ever for a worker that panicked could neither hand over nor stop.
            Err(_) => over(Err(Error::Usage("the handover's thread panicked".to_owned())), Vec::new()),
        }
    }
}

/// The disk may have held up the end of the handover before this one.
fn not_too_old(connected: Option<Channel>, age_ns: u64) -> Option<Channel> {
    connected.filter(|_| age_ns < CONNECTED_NS_MAX)
}

const FIRST_PHASE: &str = "negotiating";
const SEALING: &str = "sealing";

/// The phase that begins at a milestone; none where the one before it goes on. The words are those of `Phase`, and
/// finer before the drain.
fn phase_after(milestone: Milestone) -> Option<&'static str> {
    match milestone {
        Milestone::IncumbentGreeted => Some("spawning"),
        Milestone::SuccessorGreeted => Some("warming"),
        Milestone::PrepareSent => Some("draining"),
        Milestone::SealRequestSent => Some(SEALING),
        Milestone::BeginSent => Some("awaiting_ready"),
        Milestone::CommitSent => Some("committed"),
        Milestone::UndoStarted => Some("resuming_after_abort"),
        Milestone::SuccessorSpawned
        | Milestone::Warmed
        | Milestone::DrainedReceived
        | Milestone::SealCompleteReceived
        | Milestone::ReadyReceived
        | Milestone::JournalClosed
        | Milestone::Promoted
        | Milestone::WatchdogFired
        | Milestone::FoundActive
        | Milestone::ResumeSent
        | Milestone::ResumedReceived
        | Milestone::ResumeUnanswered
        | Milestone::SuccessorLingers
        | Milestone::WithoutLease => None,
    }
}

fn exit_code(report: &HandoverReport) -> u8 {
    match (report.committed, report.new_pid) {
        (true, _) => COMMITTED,
        (false, Some(_)) => ABORTED,
        (false, None) => NOT_TRIED,
    }
}

fn timings(timings: &Timings) -> TimingsMs {
    TimingsMs {
        spawn: milliseconds(timings.spawn),
        warm: milliseconds(timings.warm),
        drain: milliseconds(timings.drain),
        seal: milliseconds(timings.seal),
        begin_to_ready: milliseconds(timings.begin_to_ready),
        total: milliseconds(timings.total),
        pause: milliseconds(timings.pause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_whether_a_successor_was_started() {
        let report = |committed, new_pid| HandoverReport { committed, new_pid, ..HandoverReport::default() };
        assert_eq!(exit_code(&report(true, Some(1))), COMMITTED);
        assert_eq!(exit_code(&report(false, Some(1))), ABORTED);
        assert_eq!(exit_code(&report(false, None)), NOT_TRIED);
    }

    #[test]
    fn an_order_that_nobody_takes_is_refused() {
        let (orders, _) = channel();
        let worker = Worker { orders, thread: thread::spawn(|| {}) };
        let (_unrecorded, recorded) = channel();
        let order = Order {
            handoff_id: HandoffId::new(),
            spec: SpawnSpec::new("/bin/true"),
            old: Old { process: Process::open(std::process::id()).unwrap().unwrap(), connected: None },
            ordered_ns: now_ns(),
            cancel: Cancel::new().unwrap(),
            recorded,
        };
        assert!(matches!(worker.order(order), Err(Error::Usage(_))));
        worker.leave();
    }

    #[test]
    fn the_client_is_told_before_anything_is_done() {
        let (orders, ordered) = channel();
        let worker = Worker { orders, thread: thread::spawn(|| {}) };
        let old = Old { process: Process::open(std::process::id()).unwrap().unwrap(), connected: None };
        let client = ClientId::first();
        let mut told = None;
        let announce = |handover: &Handover, id: HandoffId| {
            assert!(ordered.try_recv().is_err(), "the worker has the order already");
            told = Some((id, handover.ordered_event(id, Some(Path::new("/d")))));
        };
        Handover::start(&worker, client, SpawnSpec::new("/bin/true"), old, announce).unwrap();
        let (id, event) = told.unwrap();
        assert_eq!(ordered.try_recv().unwrap().handoff_id, id, "it is the handover that the client was told of");
        let Event::Ordered { handoff_id, old_pid, data_dir, .. } = event else { panic!("{event:?}") };
        assert_eq!((handoff_id, old_pid, data_dir), (id, std::process::id(), Some("/d".into())));
        worker.leave();
    }

    #[test]
    fn a_connection_that_has_lain_by_for_long_is_not_used() {
        let connected = || Channel::pair().ok().map(|(channel, _)| channel);
        assert!(not_too_old(connected(), CONNECTED_NS_MAX - 1).is_some());
        assert!(not_too_old(connected(), CONNECTED_NS_MAX).is_none());
        assert!(u128::from(CONNECTED_NS_MAX) < handoff_proto::Timing::default().hello.as_nanos());
    }

    #[test]
    fn every_phase_of_the_journal_has_its_word() {
        let words: Vec<_> = [
            Milestone::PrepareSent,
            Milestone::SealRequestSent,
            Milestone::BeginSent,
            Milestone::CommitSent,
            Milestone::UndoStarted,
        ]
        .into_iter()
        .filter_map(phase_after)
        .collect();
        assert_eq!(words, ["draining", "sealing", "awaiting_ready", "committed", "resuming_after_abort"]);
    }
}
