//! One handover on its way to the commit. What happens when it can't get there stands in `undo`.

use std::time::Duration;

use crate::lease::ProcessId;
use crate::machine::Timing;
use crate::message::{BeginMode, Message, Phase, Side, short_name};
use crate::revisions::{Parts, split};
use crate::version::ProtoVersion;

use super::checks::{Seal, turn_after_death, turn_after_seal};
use super::peer::{Greeting, Link, Peer, agree};
use super::undo::Undoing;
use super::{Effect, Input, LeaseReading, Milestone, Outcome, Ownership, Plan, Timer, Transfer};

/// The supervisor's side of one handover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Handover {
    pub(super) plan: Plan,
    pub(super) timing: Timing,
    pub(super) incumbent: Option<Peer>,
    pub(super) successor: Option<Peer>,
    pub(super) step: Step,
    /// A bound has passed, and whether the incumbent lives is not known yet: why it is undone once that is heard.
    pub(super) overdue: Option<String>,
    pub(super) watchdog: Watched,
}

/// What the watchdog has made of the incumbent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Watched {
    Spared,
    /// It was sent SIGKILL.
    Ended,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Waiting for the result of the connect.
    Connecting,
    /// The incumbent's Hello is due.
    GreetingIncumbent,
    /// Waiting for the result of the spawn.
    Spawning,
    /// The successor's Hello is due.
    GreetingSuccessor,
    /// The intent becomes durable, the successor warms up; the incumbent, if it lives, serves undisturbed.
    Preparing { intent: Intent, warmth: Warmth },
    /// The incumbent drains.
    Draining,
    /// The incumbent seals.
    Sealing { report: Parts },
    /// Waiting for a look at the lease. No seal: the incumbent died before it could.
    Looking { seal: Option<Seal> },
    /// The successor's turn.
    AwaitingReady(Begun),
    /// A successor of version 1 is ready; the control path must be its own before the incumbent may leave.
    AwaitingPath(Begun),
    /// The successor is ended, the incumbent resumes.
    Undoing(Undoing),
    /// Nothing more.
    Over,
}

/// Whether a restarted supervisor would find this handover in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Intent {
    Written,
    Durable,
}

/// Whether the successor has loaded what it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Warmth {
    Warming,
    Warm,
}

/// What is known of a successor's turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Begun {
    /// What the incumbent sealed; none: it died before it could.
    pub(super) seal: Option<Seal>,
    /// The epoch that the successor finds; none: nobody looked.
    pub(super) epoch: Option<u64>,
    /// What came ahead of Ready.
    pub(super) report: Parts,
}

impl Handover {
    pub(super) fn start(plan: Plan, timing: Timing, effects: &mut Vec<Effect>) -> Self {
        effects.push(Effect::ConnectIncumbent);
        let plan = plan.within(timing.deadline_max);
        Self {
            plan,
            timing,
            incumbent: None,
            successor: None,
            step: Step::Connecting,
            overdue: None,
            watchdog: Watched::Spared,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.step == Step::Over
    }

    pub(super) fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Start(_) => {}
            Input::Cancel(why) => self.cancelled(why, effects),
            Input::Connected(process) => self.connected(process, effects),
            Input::ConnectFailed(error) => self.connect_failed(error, effects),
            Input::Spawned(process) => self.spawned(process, effects),
            Input::SpawnFailed(error) => self.spawn_failed(error, effects),
            Input::JournalSynced => self.journal_synced(effects),
            Input::JournalFailed(error) => self.journal_failed(&error, effects),
            Input::Lease(reading) => self.lease_read(reading, effects),
            Input::ControlPath(pid) => self.control_path_answered(pid, effects),
            Input::SuccessorStopped(stopped) => self.successor_stopped(stopped, effects),
            Input::FromIncumbent(message) => self.heard_incumbent(message, effects),
            Input::IncumbentClosed => self.incumbent_closed(effects),
            Input::IncumbentMalformed(error) => self.incumbent_misbehaved(&error, effects),
            Input::IncumbentGone => self.incumbent_gone(effects),
            Input::FromSuccessor(message) => self.heard_successor(message, effects),
            Input::SuccessorClosed => self.successor_closed(effects),
            Input::SuccessorMalformed(error) => self.successor_misbehaved(&error, effects),
            Input::SuccessorGone(how) => self.successor_gone(&how, effects),
            Input::Fired(timer) => self.fired(timer, effects),
            Input::WokeLate => self.woke_late(effects),
        }
    }

    // ---- until the incumbent is asked to drain

    fn connected(&mut self, process: ProcessId, effects: &mut Vec<Effect>) {
        if self.step == Step::Connecting {
            self.incumbent = Some(Peer::new(process));
            self.step = Step::GreetingIncumbent;
            effects.push(Effect::Record(Phase::Negotiating));
            effects.push(Effect::Arm(Timer::Hello, self.timing.hello));
        }
    }

    fn connect_failed(&mut self, error: String, effects: &mut Vec<Effect>) {
        if self.step == Step::Connecting {
            self.end(Outcome::Refused { reason: error }, effects);
        }
    }

    fn incumbent_greeted(&mut self, greeting: &Greeting, effects: &mut Vec<Effect>) {
        let Some(peer) = &mut self.incumbent else { return };
        match agree(greeting, Side::Incumbent, peer.process) {
            Ok(version) => {
                peer.version = Some(version);
                peer.capabilities = greeting.capabilities;
                let transfer = if peer.takes_transfer() { Transfer::Offered } else { Transfer::None };
                self.step = Step::Spawning;
                effects.push(Effect::Disarm(Timer::Hello));
                self.acknowledge_incumbent(version, effects);
                effects.push(Effect::Reached(Milestone::IncumbentGreeted));
                effects.push(Effect::SpawnSuccessor(transfer));
            }
            Err(reason) => self.refuse(format!("incumbent: {reason}"), effects),
        }
    }

    fn acknowledge_incumbent(&self, version: ProtoVersion, effects: &mut Vec<Effect>) {
        let ack = Message::HelloAck { proto_version_chosen: version, handoff_id: self.plan.handoff_id };
        self.tell_incumbent(ack, effects);
        if version >= 2 {
            effects.push(Effect::Arm(Timer::Heartbeat, self.timing.heartbeat));
        }
    }

    fn spawned(&mut self, process: ProcessId, effects: &mut Vec<Effect>) {
        if self.step == Step::Spawning {
            self.successor = Some(Peer::new(process));
            self.step = Step::GreetingSuccessor;
            effects.push(Effect::Record(Phase::Negotiating));
            effects.push(Effect::Reached(Milestone::SuccessorSpawned));
            effects.push(Effect::Arm(Timer::Hello, self.greeting_bound()));
            // It may have been lost while the successor was started, when nothing could be undone yet.
            if self.incumbent_link() == Link::Cut {
                self.undo("the incumbent's session ended while the successor was started".into(), effects);
            }
        }
    }

    fn spawn_failed(&mut self, error: String, effects: &mut Vec<Effect>) {
        if self.step == Step::Spawning {
            self.refuse(error, effects);
        }
    }

    pub(super) fn successor_greeted(&mut self, greeting: &Greeting, effects: &mut Vec<Effect>) {
        let Some(peer) = &mut self.successor else { return };
        match agree(greeting, Side::Successor, peer.process) {
            Ok(version) => {
                peer.version = Some(version);
                peer.capabilities = greeting.capabilities;
                effects.push(Effect::Disarm(Timer::Hello));
                let ack = Message::HelloAck { proto_version_chosen: version, handoff_id: self.plan.handoff_id };
                self.tell_successor(ack, effects);
                effects.push(Effect::Reached(Milestone::SuccessorGreeted));
                effects.push(Effect::SyncJournal);
                self.step = Step::Preparing { intent: Intent::Written, warmth: self.await_warmth(version, effects) };
            }
            Err(reason) => self.undo(format!("successor: {reason}"), effects),
        }
    }

    /// A successor of version 1 does not say when it is warm.
    fn await_warmth(&self, version: ProtoVersion, effects: &mut Vec<Effect>) -> Warmth {
        if version < 2 {
            return Warmth::Warm;
        }
        effects.push(Effect::Arm(Timer::Warm, self.warm_bound()));
        effects.push(Effect::Arm(Timer::SuccessorSilent, self.timing.liveness));
        Warmth::Warming
    }

    fn journal_synced(&mut self, effects: &mut Vec<Effect>) {
        match &mut self.step {
            Step::Preparing { warmth, .. } => {
                let warmth = *warmth;
                self.prepared(Intent::Durable, warmth, effects);
            }
            Step::Connecting
            | Step::GreetingIncumbent
            | Step::Spawning
            | Step::GreetingSuccessor
            | Step::Draining
            | Step::Sealing { .. }
            | Step::Looking { .. }
            | Step::AwaitingReady(_)
            | Step::AwaitingPath(_)
            | Step::Undoing(_)
            | Step::Over => {}
        }
    }

    /// The journal refuses a handover before the drain, and never stops one after it.
    fn journal_failed(&mut self, error: &str, effects: &mut Vec<Effect>) {
        match &self.step {
            Step::GreetingIncumbent => self.refuse(format!("journal: {error}"), effects),
            Step::GreetingSuccessor | Step::Preparing { .. } => self.undo(format!("journal: {error}"), effects),
            Step::Connecting
            | Step::Spawning
            | Step::Draining
            | Step::Sealing { .. }
            | Step::Looking { .. }
            | Step::AwaitingReady(_)
            | Step::AwaitingPath(_)
            | Step::Undoing(_)
            | Step::Over => {}
        }
    }

    pub(super) fn warmed(&mut self, intent: Intent, effects: &mut Vec<Effect>) {
        effects.push(Effect::Disarm(Timer::Warm));
        effects.push(Effect::Reached(Milestone::Warmed));
        self.prepared(intent, Warmth::Warm, effects);
    }

    /// Asks the incumbent to drain once both are done, if it can hear that: nobody is judged by his silence who was asked for nothing. If it
    /// has died meanwhile, its successor is promoted; while its session is closing, it is not known yet which of the two it is.
    fn prepared(&mut self, intent: Intent, warmth: Warmth, effects: &mut Vec<Effect>) {
        match (intent, warmth, self.incumbent_link()) {
            (Intent::Written, ..) | (_, Warmth::Warming, _) | (.., Link::Closing) => {
                self.step = Step::Preparing { intent, warmth };
            }
            (Intent::Durable, Warmth::Warm, Link::Gone) => self.promote(effects),
            (Intent::Durable, Warmth::Warm, Link::Cut) => self.undo("the incumbent is out of reach".into(), effects),
            (Intent::Durable, Warmth::Warm, Link::Open) => {
                self.step = Step::Draining;
                if self.both_take_transfer() {
                    let channel = Message::TransferChannel { handoff_id: self.plan.handoff_id };
                    effects.push(Effect::PassTransfer(self.incumbent_version(), channel));
                }
                self.tell_incumbent(self.prepare_message(), effects);
                if self.asks_early() {
                    self.tell_incumbent(self.seal_request(), effects);
                }
                effects.push(Effect::Reached(Milestone::PrepareSent));
                effects.push(Effect::Arm(Timer::Deadline, self.plan.deadline));
                effects.push(Effect::Arm(Timer::DrainGrace, self.drain_grace_and_slack()));
                effects.push(Effect::Arm(Timer::IncumbentSilent, self.timing.liveness));
            }
        }
    }

    /// The incumbent gives up by itself when its grace is over; this is for one that can't.
    pub(super) fn drain_grace_and_slack(&self) -> Duration {
        self.plan.drain_grace.saturating_add(self.timing.successor_slack)
    }

    fn prepare_message(&self) -> Message {
        Message::PrepareHandoff {
            handoff_id: self.plan.handoff_id,
            successor_pid: self.successor.as_ref().map_or(0, |peer| peer.process.pid),
            deadline_ms: millis(self.plan.deadline),
            drain_grace_ms: millis(self.plan.drain_grace),
        }
    }

    /// Whether the request to seal goes with the Prepare: an incumbent of version 2 keeps it until it has drained, which
    /// saves a round trip in the pause.
    fn asks_early(&self) -> bool {
        self.incumbent_version() >= 2
    }

    fn seal_request(&self) -> Message {
        Message::SealRequest { handoff_id: self.plan.handoff_id }
    }

    // ---- while the incumbent is busy

    fn heard_incumbent(&mut self, message: Message, effects: &mut Vec<Effect>) {
        let Some(peer) = &self.incumbent else { return };
        if peer.link == Link::Gone || peer.link == Link::Cut {
            return;
        }
        if message.since_version() > peer.version_or_min() {
            let error = format!("{} in version {}", short_name(&message), peer.version_or_min());
            return self.incumbent_misbehaved(&error, effects);
        }
        if self.incumbent_must_beat() {
            effects.push(Effect::Arm(Timer::IncumbentSilent, self.timing.liveness));
        }
        if let Some(reason) = self.overdue.take_if(|_| !is_failure(&message)) {
            return self.undo(reason, effects);
        }
        let id = self.plan.handoff_id;
        match (&mut self.step, message) {
            (_, Message::Heartbeat { .. }) => {}
            (Step::GreetingIncumbent, Message::Hello { role, pid, proto_min, proto_max, capabilities, .. }) => {
                let greeting = Greeting { role, pid, proto_min, proto_max, capabilities };
                self.incumbent_greeted(&greeting, effects);
            }
            (Step::Draining, Message::Drained { .. }) => self.drained(effects),
            (Step::Draining, Message::DrainFailed { handoff_id, error }) if handoff_id == id => {
                self.undo(format!("drain failed: {error}"), effects);
            }
            (Step::Sealing { .. }, Message::SealProgress { .. }) => {}
            (Step::Sealing { report }, Message::Revisions { first_shard, revisions }) => {
                if let Err(error) = report.push(first_shard, &revisions) {
                    self.incumbent_misbehaved(&error.to_string(), effects);
                }
            }
            (
                Step::Sealing { report },
                Message::SealComplete { handoff_id, last_revision_per_shard, data_dir_fingerprint },
            ) if handoff_id == id => {
                let revisions = report.complete(&last_revision_per_shard);
                self.sealed(Seal { revisions, fingerprint: data_dir_fingerprint }, effects);
            }
            (Step::Sealing { .. }, Message::SealFailed { handoff_id, error, partial_state }) if handoff_id == id => {
                self.seal_failed(&error, &partial_state, effects);
            }
            (Step::Undoing(undoing), message) => {
                if self.watchdog == Watched::Spared && undoing.take_answer(&message, id) {
                    self.resumed(effects);
                }
            }
            (Step::Over, _) => {}
            (
                Step::Connecting
                | Step::GreetingIncumbent
                | Step::Spawning
                | Step::GreetingSuccessor
                | Step::Preparing { .. }
                | Step::Draining
                | Step::Sealing { .. }
                | Step::Looking { .. }
                | Step::AwaitingReady(_)
                | Step::AwaitingPath(_),
                message,
            ) => {
                let error = format!("{} out of order or with a foreign id", short_name(&message));
                self.incumbent_misbehaved(&error, effects);
            }
        }
    }

    fn drained(&mut self, effects: &mut Vec<Effect>) {
        self.step = Step::Sealing { report: Parts::default() };
        effects.push(Effect::Disarm(Timer::DrainGrace));
        effects.push(Effect::Reached(Milestone::DrainedReceived));
        if !self.asks_early() {
            self.tell_incumbent(self.seal_request(), effects);
        }
        effects.push(Effect::Reached(Milestone::SealRequestSent));
        effects.push(Effect::Record(Phase::Draining));
    }

    /// An incumbent of version 1 has forgotten the handover by now and would take a `ResumeAfterAbort` for a violation.
    fn seal_failed(&mut self, error: &str, partial_state: &str, effects: &mut Vec<Effect>) {
        let reason = match partial_state {
            "" => format!("seal failed: {error}"),
            partial_state => format!("seal failed: {error} ({partial_state})"),
        };
        if self.incumbent_version() < 2 {
            self.undo_untold(reason, effects);
        } else {
            self.undo(reason, effects);
        }
    }

    fn sealed(&mut self, seal: Seal, effects: &mut Vec<Effect>) {
        effects.push(Effect::Disarm(Timer::IncumbentSilent));
        effects.push(Effect::Reached(Milestone::SealCompleteReceived));
        effects.push(Effect::Record(Phase::Sealing));
        self.look(Some(seal), effects);
    }

    /// The incumbent died before it could seal.
    pub(super) fn promote(&mut self, effects: &mut Vec<Effect>) {
        self.overdue = None;
        effects.push(Effect::Disarm(Timer::DrainGrace));
        effects.push(Effect::Disarm(Timer::IncumbentSilent));
        effects.push(Effect::Reached(Milestone::Promoted));
        self.look(None, effects);
    }

    fn look(&mut self, seal: Option<Seal>, effects: &mut Vec<Effect>) {
        match self.plan.ownership {
            Ownership::ByLease => {
                self.step = Step::Looking { seal };
                effects.push(Effect::ReadLease);
            }
            Ownership::ByControlPath => {
                effects.push(Effect::Reached(Milestone::WithoutLease));
                self.begin(seal, None, effects);
            }
        }
    }

    fn lease_read(&mut self, reading: LeaseReading, effects: &mut Vec<Effect>) {
        match &mut self.step {
            Step::Looking { seal } => {
                let seal = seal.take();
                match self.turn(&reading, seal.as_ref()) {
                    Ok(epoch) => self.begin(seal, Some(epoch), effects),
                    Err(reason) => self.undo(reason, effects),
                }
            }
            Step::Undoing(_) => self.looked_at_stopped(&reading, effects),
            Step::Connecting
            | Step::GreetingIncumbent
            | Step::Spawning
            | Step::GreetingSuccessor
            | Step::Preparing { .. }
            | Step::Draining
            | Step::Sealing { .. }
            | Step::AwaitingReady(_)
            | Step::AwaitingPath(_)
            | Step::Over => {}
        }
    }

    fn turn(&self, reading: &LeaseReading, seal: Option<&Seal>) -> Result<u64, String> {
        let Some(incumbent) = &self.incumbent else { return Err("no incumbent is known".into()) };
        let version = self.incumbent_version();
        match seal {
            Some(_) => turn_after_seal(reading, incumbent.process, version, self.plan.handoff_id),
            None => turn_after_death(reading, incumbent.process, version),
        }
    }

    /// The successor's turn. Without a lease there is no epoch to name, so it gets the `Begin` of version 1.
    fn begin(&mut self, seal: Option<Seal>, epoch: Option<u64>, effects: &mut Vec<Effect>) {
        if seal.is_none() {
            effects.push(Effect::Arm(Timer::Deadline, self.plan.deadline));
        }
        match epoch {
            Some(epoch) if self.successor_version() >= 2 => self.tell_begin_with(seal.as_ref(), epoch, effects),
            Some(_) | None => self.tell_successor(Message::Begin { handoff_id: self.plan.handoff_id }, effects),
        }
        effects.push(Effect::Reached(Milestone::BeginSent));
        effects.push(Effect::Record(Phase::AwaitingReady));
        effects.push(Effect::Arm(Timer::SuccessorSilent, self.timing.liveness));
        effects.push(Effect::Arm(Timer::Open, self.plan.open));
        self.step = Step::AwaitingReady(Begun { seal, epoch, report: Parts::default() });
    }

    fn tell_begin_with(&self, seal: Option<&Seal>, epoch: u64, effects: &mut Vec<Effect>) {
        let mode = if seal.is_some() { BeginMode::Sealed } else { BeginMode::Recover };
        let split = split(self.successor_version(), seal.map_or_else(Vec::new, |seal| seal.revisions.clone()));
        for part in split.ahead {
            self.tell_successor(part, effects);
        }
        let begin = Message::BeginWith {
            handoff_id: self.plan.handoff_id,
            mode,
            sealed_revision_per_shard: split.rest,
            data_dir_fingerprint: seal.map_or([0; 32], |seal| seal.fingerprint),
            epoch,
            deadline_ns: 0,
            open_ms: millis(self.plan.open),
        };
        self.tell_successor(begin, effects);
    }

    // ---- its end

    pub(super) fn commit(&mut self, epoch_before: Option<u64>, effects: &mut Vec<Effect>) {
        self.tell_incumbent(Message::Commit { handoff_id: self.plan.handoff_id }, effects);
        effects.push(Effect::Reached(Milestone::CommitSent));
        effects.push(Effect::Record(Phase::Committed));
        // A successor of version 1 takes the lock without writing the lease.
        let epoch = epoch_before.filter(|_| self.successor_version() >= 2).map(|epoch| epoch.saturating_add(1));
        self.finish(Outcome::Committed { epoch }, effects);
    }

    /// Its end is on record.
    pub(super) fn finish(&mut self, outcome: Outcome, effects: &mut Vec<Effect>) {
        effects.push(Effect::Reached(Milestone::JournalClosed));
        self.end(outcome, effects);
    }

    /// The only way out. No timer runs on, so none can run out in the next handover.
    fn end(&mut self, outcome: Outcome, effects: &mut Vec<Effect>) {
        self.step = Step::Over;
        effects.reserve(Timer::ALL.len() + 1);
        effects.extend(Timer::ALL.map(Effect::Disarm));
        effects.push(Effect::Finish(outcome));
    }

    /// Ends a handover that has started nothing.
    pub(super) fn refuse(&mut self, reason: String, effects: &mut Vec<Effect>) {
        match &self.incumbent {
            // Nothing was recorded, and what stands there of an earlier handover stays.
            None => {}
            // It may hold the lock without a word, from an earlier handover: the journal must know it for one of ours.
            Some(peer) if peer.version.is_none() && peer.link != Link::Gone => {
                effects.push(Effect::Record(Phase::ResumingAfterAbort));
            }
            Some(_) => effects.push(Effect::RecordUndone),
        }
        self.end(Outcome::Refused { reason }, effects);
    }
}

/// A word that undoes the handover by itself, and says why.
fn is_failure(message: &Message) -> bool {
    matches!(message, Message::DrainFailed { .. } | Message::SealFailed { .. })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
