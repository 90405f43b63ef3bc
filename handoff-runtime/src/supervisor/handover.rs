//! Performs the effects of the supervisor's machine for one handover: one loop, no thread, no decision.
//!
//! The loop sleeps in poll(2) on both channels, both pidfds, the cancel handle, and the earliest timer. What a peer had sent is
//! given to the machine before that peer's death, and everything that has arrived before any timer.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use handoff_journal::{Details, Journal, JournalError, StateJournal};
use handoff_lock::{Lease, LockError, WatchedLease};
use handoff_proto::supervisor::{
    Effect, Input, LeaseReading, Milestone, Outcome, Ownership, Plan, Stopped, Timer, Transfer,
};
use handoff_proto::{
    Checked, HandoffId, Message, Phase, ProcessId, ProtoVersion, WireError, short_name, supervisor as machine,
};
use rustix::event::{PollFd, PollFlags};

use crate::channel::{Channel, Received};
use crate::control;
use crate::environment::{HANDOFF_DATA_DIR_ID, HANDOFF_SOCK_FD, HANDOFF_TRANSFER_FD};
use crate::error::{Error, Result};
use crate::events;
use crate::outcome::{HandoffOutcome, OldProcess, SpawnSpec};
use crate::ownership;
use crate::process::Process;
use crate::progress::{Cancel, Onlooker, Progress, Sealed, Step};
use crate::spawn::spawn;
use crate::sys::fork::StaysHere;
use crate::sys::poll;
use crate::timers::{Timers, now_ns};
use crate::transfer;

use super::news::News;
use super::peer::{Life, Peer, channel_events, listener_at};
use super::stopwatch::{Stopwatch, crash_at};
use super::{AtHand, Supervisor};

/// One handover.
pub(super) struct Run<'a> {
    supervisor: &'a Supervisor,
    tools: Tools<'a>,
    spec: SpawnSpec,
    news: News<'a>,
    onlooker: &'a dyn Onlooker,
    cancel: &'a Cancel,
    handoff_id: HandoffId,
    machine: Checked<machine::Supervisor>,
    timers: Timers<Timer>,
    /// Results of effects, to be given in before anything else.
    results: VecDeque<Input>,
    incumbent: Option<Peer>,
    successor: Option<Peer>,
    /// The incumbent's end of the direct channel, until it is passed on. It holds nothing: what is passed is the successor's.
    transfer: Option<StaysHere>,
    record: StateJournal,
    stopwatch: Stopwatch,
    /// The typed form of what the machine was told as text.
    failure: Option<Error>,
    outcome: Option<Outcome>,
}

/// How it ended.
pub(super) struct Performed {
    pub(super) outcome: Result<HandoffOutcome>,
    /// What the onlooker has not seen.
    pub(super) unseen: Vec<Progress>,
    /// What is still open to the peers: each wakes up when its channel is closed, and whoever waits for the outcome wants the
    /// processor first.
    pub(super) channels: [Option<Channel>; 2],
}

/// What lies ready from the handover before.
pub(super) struct Tools<'a> {
    pub(super) handoff_id: HandoffId,
    pub(super) at_hand: AtHand,
    pub(super) journal: Option<&'a mut Journal>,
    /// Of the daemon's data directory, if that is known.
    pub(super) lease: Option<&'a mut WatchedLease>,
    /// The incumbent that was not heard to serve again: of the handover before, then of this one.
    pub(super) unheard: &'a mut Option<ProcessId>,
    /// Gets who serves after this one.
    pub(super) serving: &'a mut Option<Process>,
}

#[derive(Clone, Copy)]
enum Who {
    Incumbent,
    Successor,
}

/// When a message leaves.
#[derive(Clone, Copy)]
enum Going {
    AtOnce,
    /// Together with the one behind it.
    WithNext,
}

/// Which descriptors a wait has found ready.
#[derive(Default)]
struct Ready {
    cancel: bool,
    incumbent: ReadyPeer,
    successor: ReadyPeer,
}

#[derive(Clone, Copy, Default)]
struct ReadyPeer {
    channel: bool,
    dead: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        supervisor: &'a Supervisor,
        tools: Tools<'a>,
        spec: SpawnSpec,
        onlooker: &'a dyn Onlooker,
        cancel: &'a Cancel,
    ) -> Self {
        let handoff_id = tools.handoff_id;
        let binary = std::path::absolute(&spec.binary).unwrap_or_else(|_| spec.binary.clone());
        let record = StateJournal {
            handoff_id,
            phase: Phase::Negotiating,
            incumbent_pid: 0,
            successor_pid: None,
            started_at_unix_ms: unix_ms(),
            details: Details { binary: Some(binary), build_id: supervisor.build_id.clone(), ..Details::default() },
        };
        Self {
            supervisor,
            tools,
            spec,
            news: News::new(onlooker),
            onlooker,
            cancel,
            handoff_id,
            machine: Checked::new(machine::Supervisor::new(supervisor.timing)),
            timers: Timers::new(),
            results: VecDeque::new(),
            incumbent: None,
            successor: None,
            transfer: None,
            record,
            stopwatch: Stopwatch::start(),
            failure: None,
            outcome: None,
        }
    }

    /// Runs it from its start to its end.
    pub(super) fn perform(mut self) -> Performed {
        if let Err(error) = self.supervisor.usable_listeners() {
            return Performed { outcome: Err(error), unseen: Vec::new(), channels: [None, None] };
        }
        let start = Input::Start(self.plan());
        self.give(start);
        while self.outcome.is_none() {
            let ready = self.wait();
            let late = self.timers.woke_late();
            self.take_arrived(&ready);
            if late {
                self.give(Input::WokeLate);
            }
            while self.outcome.is_none()
                && let Some(timer) = self.timers.pop_expired()
            {
                self.give(Input::Fired(timer));
            }
            self.news.tell_if_due();
        }
        let unseen = std::mem::replace(&mut self.news, News::new(self.onlooker)).rest();
        let channels = [&mut self.incumbent, &mut self.successor].map(|peer| peer.as_mut()?.channel.take());
        Performed { outcome: self.conclude(), unseen, channels }
    }

    fn plan(&self) -> Plan {
        Plan {
            handoff_id: self.handoff_id,
            deadline: self.spec.deadline,
            drain_grace: self.spec.drain_grace,
            warm: self.spec.warm,
            open: self.spec.open,
            resume: self.spec.resume,
            ownership: match self.supervisor.data_dir {
                Some(_) => Ownership::ByLease,
                None => Ownership::ByControlPath,
            },
            watchdog: self.supervisor.watchdog,
            unheard: *self.tools.unheard,
        }
    }

    fn conclude(mut self) -> Result<HandoffOutcome> {
        let (incumbent, abort_reason, epoch) = match self.outcome.take() {
            Some(Outcome::Committed { epoch }) => (OldProcess::Replaced, None, epoch),
            Some(Outcome::Aborted { reason, incumbent }) => (incumbent.into(), Some(reason), None),
            Some(Outcome::Refused { reason }) => return Err(self.failure.unwrap_or(Error::NotTried { reason })),
            None => (OldProcess::NotHeard, None, None),
        };
        let committed = incumbent == OldProcess::Replaced;
        let in_doubt = self.incumbent.as_ref().filter(|_| incumbent == OldProcess::NotHeard);
        *self.tools.unheard = in_doubt.map(|peer| peer.process.id());
        let serving = if committed { &self.successor } else { &self.incumbent };
        *self.tools.serving = serving.as_ref().and_then(|peer| peer.process.if_alive());
        let alive_or_serving = |peer: &Peer| committed || peer.life == Life::Watched;
        Ok(HandoffOutcome {
            handoff_id: self.handoff_id,
            committed,
            incumbent,
            abort_reason,
            child: self.successor.take().filter(alive_or_serving).map(|peer| peer.process),
            timings: self.stopwatch.timings(),
            old_pid: self.record.incumbent_pid,
            epoch,
        })
    }

    // ---- inputs

    /// Gives one input to the machine, and the results of what it then asks for.
    fn give(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next {
            let mut effects = self.machine.step(input).into_iter().peekable();
            while let Some(effect) = effects.next() {
                match (effect, effects.peek()) {
                    (Effect::SendIncumbent(version, message), Some(Effect::SendIncumbent(..))) => {
                        self.send(Who::Incumbent, version, message, Going::WithNext);
                    }
                    (effect, _) => self.perform_effect(effect),
                }
            }
            next = self.results.pop_front().filter(|_| self.outcome.is_none());
        }
    }

    fn wait(&mut self) -> Ready {
        match self.poll() {
            Ok(ready) => ready,
            Err(error) => {
                // Neither peer may be left half way: the handover is undone, by what can be received without waiting.
                self.give(Input::Cancel(format!("wait for the peers: {error}")));
                let peer = ReadyPeer { channel: true, dead: false };
                Ready { cancel: false, incumbent: peer, successor: peer }
            }
        }
    }

    fn poll(&self) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(self.cancel, PollFlags::IN)];
        let peers = [&self.incumbent, &self.successor];
        for peer in peers.into_iter().flatten() {
            fds.extend(peer.channel.as_ref().map(|channel| PollFd::new(channel, channel_events(channel))));
            fds.extend((peer.life == Life::Watched).then(|| PollFd::new(&peer.process, PollFlags::IN)));
        }
        let timeouts = [self.timers.timeout(), self.news.timeout()];
        poll::wait(&mut fds, timeouts.into_iter().flatten().min())?;

        let mut found = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut ready = Ready { cancel: found.next().unwrap_or_default(), ..Ready::default() };
        for (peer, ready) in peers.into_iter().zip([&mut ready.incumbent, &mut ready.successor]) {
            if let Some(peer) = peer {
                ready.channel = peer.channel.is_some() && found.next().unwrap_or_default();
                ready.dead = peer.life == Life::Watched && found.next().unwrap_or_default();
            }
        }
        Ok(ready)
    }

    fn take_arrived(&mut self, ready: &Ready) {
        for (who, ready) in [(Who::Incumbent, ready.incumbent), (Who::Successor, ready.successor)] {
            // The dead have said all that they will ever say; it is taken before the death.
            if ready.channel || ready.dead {
                self.take_messages(who);
            }
            if ready.dead {
                self.take_death(who);
            }
        }
        if ready.cancel
            && let Some(reason) = self.cancel.take()
        {
            self.give(Input::Cancel(reason));
        }
    }

    fn take_messages(&mut self, who: Who) {
        while self.outcome.is_none() {
            let Some(channel) = self.peer(who).and_then(|peer| peer.channel.as_mut()) else { return };
            // A peer that is gone is noticed by what is received, or by its pidfd.
            let _ = channel.flush();
            let input = match (channel.receive(), who) {
                (Received::Nothing, _) => return,
                (Received::Message { message, .. }, who) => {
                    self.tell_of(who, &message);
                    self.look_before(who, &message);
                    match who {
                        Who::Incumbent => Input::FromIncumbent(message),
                        Who::Successor => Input::FromSuccessor(message),
                    }
                }
                (Received::Closed, Who::Incumbent) => Input::IncumbentClosed,
                (Received::Closed, Who::Successor) => Input::SuccessorClosed,
                (Received::Malformed(error), Who::Incumbent) => Input::IncumbentMalformed(error.to_string()),
                (Received::Malformed(error), Who::Successor) => Input::SuccessorMalformed(error.to_string()),
            };
            self.give(input);
        }
    }

    /// The incumbent may be asked to drain once its successor is warm, or has greeted in version 1: until then the data directory
    /// can have been switched.
    fn look_before(&mut self, who: Who, message: &Message) {
        if let (Who::Successor, Message::Hello { proto_max: 1, .. } | Message::Warmed { .. }) = (who, message)
            && let Err(error) = self.supervisor.check_data_dir()
        {
            self.give(Input::Cancel(error.to_string()));
        }
    }

    fn take_death(&mut self, who: Who) {
        let Some(peer) = self.peer(who) else { return };
        peer.life = Life::Told;
        let input = match who {
            Who::Incumbent => Input::IncumbentGone,
            Who::Successor => {
                let how = peer.how_it_ended();
                let pid = peer.process.pid();
                control::remove_staging(&self.supervisor.control_path, pid);
                Input::SuccessorGone(how)
            }
        };
        if self.outcome.is_none() {
            self.give(input);
        }
    }

    fn peer(&mut self, who: Who) -> Option<&mut Peer> {
        match who {
            Who::Incumbent => self.incumbent.as_mut(),
            Who::Successor => self.successor.as_mut(),
        }
    }

    // ---- effects

    fn perform_effect(&mut self, effect: Effect) {
        match effect {
            Effect::ConnectIncumbent => self.connect(),
            Effect::SpawnSuccessor(transfer) => self.spawn(transfer),
            Effect::SendIncumbent(version, message) => self.send(Who::Incumbent, version, message, Going::AtOnce),
            Effect::PassTransfer(version, message) => self.pass_transfer(version, &message),
            Effect::SendSuccessor(version, message) => {
                self.send(Who::Successor, version, message, Going::AtOnce);
            }
            Effect::CloseIncumbent => self.close(Who::Incumbent),
            Effect::CloseSuccessor => self.close(Who::Successor),
            Effect::Record(phase) => self.record(phase),
            Effect::RecordUndone => self.journal_step(Journal::clear),
            Effect::SyncJournal => self.sync_journal(),
            Effect::ReadLease => {
                let reading = self.tools.lease.as_mut().map_or(LeaseReading::Nobody, |lease| reading(lease.read()));
                self.results.push_back(Input::Lease(reading));
            }
            Effect::AskControlPath => {
                let pid = listener_at(&self.supervisor.control_path);
                self.results.push_back(Input::ControlPath(pid));
            }
            Effect::StopSuccessor => self.signal_successor(Process::stop).look_if_stopped(),
            Effect::LookIfStopped => self.look_if_stopped(),
            Effect::ContinueSuccessor => drop(self.signal_successor(Process::cont)),
            Effect::KillSuccessor => drop(self.signal_successor(Process::kill)),
            Effect::KillIncumbent => self.kill_incumbent(),
            Effect::Arm(timer, after) => self.timers.arm(timer, after),
            Effect::Disarm(timer) => self.timers.disarm(timer),
            Effect::Reached(milestone) => self.reached(milestone),
            Effect::Finish(outcome) => self.outcome = Some(outcome),
        }
    }

    fn connect(&mut self) {
        let at_hand = std::mem::take(&mut self.tools.at_hand);
        let input = match Peer::incumbent(&self.supervisor.control_path, at_hand) {
            Ok(peer) => {
                let id = peer.process.id();
                self.record.incumbent_pid = id.pid;
                self.record.details.incumbent_start_time = Some(id.start_time);
                self.incumbent = Some(peer);
                Input::Connected(id)
            }
            Err(error) => Input::ConnectFailed(self.keep(error)),
        };
        self.results.push_back(input);
    }

    fn spawn(&mut self, transfer: Transfer) {
        let input = match self.start_successor(transfer) {
            Ok((peer, incumbents_end)) => {
                self.transfer = incumbents_end;
                let id = peer.process.id();
                self.record.successor_pid = Some(id.pid);
                self.record.details.successor_start_time = Some(id.start_time);
                self.successor = Some(peer);
                self.onlooker.successor_started();
                Input::Spawned(id)
            }
            Err(error) => Input::SpawnFailed(self.keep(error)),
        };
        self.results.push_back(input);
    }

    /// The successor, and the other end of its direct channel.
    fn start_successor(&self, transfer: Transfer) -> Result<(Peer, Option<StaysHere>)> {
        let (channel, theirs) = Channel::pair().map_err(|error| Error::io("make a control channel", error))?;
        let mut channels = vec![(HANDOFF_SOCK_FD, theirs.as_fd())];
        let direct = match transfer {
            Transfer::Offered => Some(transfer::pair().map_err(|error| Error::io("make a direct channel", error))?),
            Transfer::None => None,
        };
        channels.extend(direct.iter().map(|(_, successors)| (HANDOFF_TRANSFER_FD, successors.as_fd())));
        let listeners = self.supervisor.usable_listeners()?;
        let named: Vec<_> = listeners.named.iter().map(|(name, fd)| (name.clone(), fd.as_fd())).collect();
        let SpawnSpec { binary, args, env, .. } = &self.spec;
        let identity = self.supervisor.data_dir.as_ref().and_then(|data_dir| data_dir.identity());
        let told = identity.map(|identity| (HANDOFF_DATA_DIR_ID.into(), identity.to_string().into()));
        let env: Vec<_> = env.iter().cloned().chain(told).collect();
        let process = spawn(binary, args, &env, &named, &channels)?;
        Ok((Peer::new(process, channel), direct.map(|(incumbents, _)| incumbents)))
    }

    /// Keeps an error in its typed form and gives its text.
    fn keep(&mut self, error: Error) -> String {
        let text = error.to_string();
        self.failure.get_or_insert(error);
        text
    }

    fn send(&mut self, who: Who, version: ProtoVersion, mut message: Message, going: Going) {
        match &mut message {
            Message::Heartbeat { ts_ms } => *ts_ms = unix_ms(),
            Message::BeginWith { deadline_ns, .. } => {
                *deadline_ns = self.timers.at_ns(Timer::Deadline).unwrap_or(u64::MAX);
            }
            Message::HelloAck { proto_version_chosen: 1, .. } => {
                events::info!(handoff_id = %self.handoff_id, "a peer speaks version 1 only: what version 2 adds is left out with it");
            }
            _ => {}
        }
        let Some(channel) = self.peer(who).and_then(|peer| peer.channel.as_mut()) else { return };
        let sent = match going {
            Going::AtOnce => channel.send(version, &message),
            Going::WithNext => channel.send_with_next(version, &message),
        };
        self.after_send(who, &message, sent);
    }

    fn after_send(&mut self, who: Who, message: &Message, sent: std::result::Result<(), WireError>) {
        match sent {
            Ok(()) => {}
            // That the peer is gone shows by itself, with what it had said before.
            Err(WireError::Io(error)) if is_gone(&error) => {}
            // It waits for what it was not told.
            Err(error) => self.results.push_back(match who {
                Who::Incumbent => Input::IncumbentMalformed(untold(message, &error)),
                Who::Successor => Input::SuccessorMalformed(untold(message, &error)),
            }),
        }
    }

    /// In a message of its own: the descriptor belongs to the last message that goes with it.
    fn pass_transfer(&mut self, version: ProtoVersion, message: &Message) {
        let (Some(end), Some(peer)) = (self.transfer.take(), &mut self.incumbent) else { return };
        let Some(channel) = &mut peer.channel else { return };
        let sent = channel.send_with_fds(version, message, &[end.as_fd()]);
        self.after_send(Who::Incumbent, message, sent);
    }

    fn close(&mut self, who: Who) {
        if let Some(peer) = self.peer(who) {
            peer.channel = None;
        }
    }

    fn record(&mut self, phase: Phase) {
        self.record.phase = phase;
        if let Some(journal) = &mut self.tools.journal
            && let Err(error) = journal.record(&self.record)
        {
            self.journal_failed(error);
        }
    }

    fn sync_journal(&mut self) {
        self.onlooker.before_sync();
        let before = self.results.len();
        self.journal_step(Journal::sync);
        if self.results.len() == before {
            self.results.push_back(Input::JournalSynced);
        }
    }

    fn journal_step(&mut self, step: impl FnOnce(&mut Journal) -> std::result::Result<(), JournalError>) {
        if let Some(journal) = &mut self.tools.journal
            && let Err(error) = step(journal)
        {
            self.journal_failed(error);
        }
    }

    fn journal_failed(&mut self, error: JournalError) {
        events::warn!(handoff_id = %self.handoff_id, %error, "the journal could not be written");
        let text = self.keep(error.into());
        self.results.push_back(Input::JournalFailed(text));
    }

    fn signal_successor(&mut self, signal: fn(&Process) -> Result<()>) -> &mut Self {
        if let Some(peer) = &self.successor
            && let Err(error) = signal(&peer.process)
        {
            events::warn!(handoff_id = %self.handoff_id, %error, "the successor could not be signalled");
        }
        self
    }

    fn look_if_stopped(&mut self) {
        let stopped = match self.successor.as_ref().map(|peer| peer.process.is_stopped()) {
            Some(Ok(true)) => Stopped::Yes,
            Some(Ok(false) | Err(_)) | None => Stopped::NotYet,
        };
        self.results.push_back(Input::SuccessorStopped(stopped));
    }

    fn kill_incumbent(&self) {
        if let Some(peer) = &self.incumbent
            && let Err(error) = peer.process.kill()
        {
            events::warn!(handoff_id = %self.handoff_id, %error, "the incumbent could not be killed");
        }
    }

    fn reached(&mut self, milestone: Milestone) {
        let at_ns = self.stopwatch.note(milestone);
        if milestone == Milestone::WithoutLease {
            self.supervisor.say_without_lease();
        }
        self.tell(at_ns, Step::Reached(milestone));
        crash_at(milestone);
    }

    /// What is of interest to people only, and to no machine.
    fn tell_of(&mut self, who: Who, message: &Message) {
        match (who, message) {
            (Who::Successor, Message::Hello { build_id, .. }) => {
                self.tell(now_ns(), Step::SuccessorBuild(build_id.clone()));
            }
            // Of a single shard there is nothing to see.
            (Who::Incumbent, &Message::SealProgress { shards_sealed, shards_total, last_revision })
                if shards_total > 1 =>
            {
                let sealed = Sealed { shards: shards_sealed, total: shards_total, last_revision };
                self.tell(now_ns(), Step::Sealed(sealed));
            }
            _ => {}
        }
    }

    fn tell(&mut self, at_ns: u64, step: Step) {
        let successor_pid = self.record.successor_pid;
        let after = self.stopwatch.until(at_ns);
        self.news.note(Progress { handoff_id: self.handoff_id, successor_pid, at_ns, after, step });
    }
}

impl Supervisor {
    /// What the lease says now; nobody without a data directory.
    pub(super) fn lease(&self) -> LeaseReading {
        let Some(data_dir) = &self.data_dir else { return LeaseReading::Nobody };
        reading(handoff_lock::read_lease(data_dir.path()))
    }
}

fn reading(lease: std::result::Result<Option<Lease>, LockError>) -> LeaseReading {
    match lease {
        Ok(lease) => lease.as_ref().and_then(ownership::view).map_or(LeaseReading::Nobody, LeaseReading::Found),
        Err(error) => LeaseReading::Unreadable(error.to_string()),
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected)
}

fn untold(message: &Message, error: &WireError) -> String {
    format!("{} can't be sent to it: {error}", short_name(message))
}
