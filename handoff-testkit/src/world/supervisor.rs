//! The supervisor's process between handovers, and in one: it performs the effects of the handover's machine. What it does when it
//! was started again is in [`recovery`](super::recovery).
//!
//! When it starts a daemon, and whom it makes leave, are rules of the service, written here by hand: see the
//! [world](super).
//!
//! A journal record is an act of its own, so that it can be missing after a crash. Nothing is ever lost from it otherwise:
//! the machine that it runs on does not fail in this world.

use std::time::Duration;

use handoff_proto::incumbent::SessionId;
use handoff_proto::recovery;
use handoff_proto::supervisor::{self, LeaseReading, Outcome, Ownership, Plan, Standing, Stopped, Watchdog};
use handoff_proto::{LeaseState, Message, Phase, ProcessId, Timing};

use super::bounds::Warmth;
use super::drive::Drive;
use super::process::{Accepted, Activation, Daemon, End, Life, Pipe, Process, Role, Session, Slot, SuccessorRole};
use super::recovery::Recovering;
use super::sabotage::Sabotage;
use super::{Broken, Class, Performed, SLOTS, World, handoff_id};

pub(super) type HandoverDrive = Drive<supervisor::Supervisor, supervisor::Input, supervisor::Effect, supervisor::Timer>;

/// The timers that run out in this world. The others only repeat a heartbeat or a look, or bound what takes no time here.
pub(super) const TIMERS: [supervisor::Timer; 12] = [
    supervisor::Timer::Hello,
    supervisor::Timer::Warm,
    supervisor::Timer::Deadline,
    supervisor::Timer::Late,
    supervisor::Timer::Open,
    supervisor::Timer::IncumbentSilent,
    supervisor::Timer::SuccessorSilent,
    supervisor::Timer::IncumbentClosed,
    supervisor::Timer::SuccessorClosed,
    supervisor::Timer::Look,
    supervisor::Timer::Ended,
    supervisor::Timer::Resumed,
];

/// The supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Supervisor {
    pub(super) life: Life,
    pub(super) job: Job,
    /// The process that it takes for the daemon.
    pub(super) daemon: Option<Slot>,
    /// The incumbent that the handover before has not heard to serve again.
    pub(super) unheard: Option<ProcessId>,
    /// Those on their way out.
    pub(super) retiring: [bool; SLOTS],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Job {
    Nothing,
    /// Who serves and who is to leave has changed, and is about to be written down.
    Settling,
    Idle,
    HandingOver(Box<HandingOver>),
    Recovering(Box<Recovering>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HandingOver {
    pub(super) drive: HandoverDrive,
    pub(super) session: Option<(Slot, SessionId)>,
    /// Their pidfds; none before they are known and after their death was told.
    pub(super) incumbent: Option<Slot>,
    pub(super) successor: Option<Slot>,
    /// How long the successor may still warm up.
    pub(super) warmth: Warmth,
    pub(super) record: Record,
}

/// What the journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) phase: Phase,
    pub(super) incumbent: Option<ProcessId>,
    pub(super) successor: Option<ProcessId>,
}

impl World {
    // ---- what the service does between handovers

    pub(super) fn start_handover(&mut self) {
        self.handovers += 1;
        let plan = Plan {
            handoff_id: handoff_id(self.handovers),
            deadline: Duration::from_secs(300),
            drain_grace: Duration::from_secs(60),
            warm: Duration::from_secs(60),
            open: Duration::from_secs(10),
            resume: Duration::from_secs(30),
            ownership: Ownership::ByLease,
            watchdog: Watchdog::Ends,
            unheard: self.supervisor.unheard,
        };
        let mut drive = Drive::new(supervisor::Supervisor::new(Timing::default()));
        drive.feed(supervisor::Input::Start(plan));
        let record = Record { phase: Phase::Negotiating, incumbent: None, successor: None };
        let warmth = Warmth::AsPlanned;
        let handing_over = HandingOver { drive, session: None, incumbent: None, successor: None, warmth, record };
        self.supervisor_mut().job = Job::HandingOver(Box::new(handing_over));
    }

    /// A daemon is started although none is known to live. Its place is that of a dead one.
    pub(super) fn start_cold(&mut self, slot: Slot) {
        let id = self.fresh_id(slot);
        *self.process_mut(slot) = Process::new(id, Role::Starting(super::process::Starting::Locking));
        self.supervisor_mut().daemon = Some(slot);
        self.write_down();
    }

    pub(super) fn supervisor_dies(&mut self) {
        *self.supervisor_mut() =
            Supervisor { life: Life::Dead, job: Job::Nothing, daemon: None, unheard: None, retiring: [false; SLOTS] };
        for slot in 0..SLOTS {
            self.process_mut(slot).supervisor_dies();
        }
    }

    // ---- what it is told

    /// Tells the machine the next thing that has happened; false when there is nothing.
    pub(super) fn supervisor_hears(&mut self) -> bool {
        match &self.supervisor.job {
            Job::Nothing | Job::Settling | Job::Idle => false,
            Job::Recovering(recovering) => {
                let recovering = recovering.as_ref().clone();
                self.recovery_hears(recovering)
            }
            Job::HandingOver(handing_over) => match self.next_news(handing_over) {
                Some(news) => {
                    self.take_news(news);
                    true
                }
                None => false,
            },
        }
    }

    /// Results first, then the incumbent's words and its death, then the successor's.
    pub(super) fn next_news(&self, handing_over: &HandingOver) -> Option<News> {
        if !handing_over.drive.results.is_empty() {
            return Some(News::Result);
        }
        if let Some((slot, id)) = handing_over.session
            && let Some(session) = self.processes[slot].session(id)
            && session.pipe.supervisor_end == End::Open
        {
            if !session.pipe.to_supervisor.is_empty() {
                return Some(News::FromIncumbent(slot, id));
            }
            if session.pipe.process_end == End::Closed {
                return Some(News::IncumbentClosed(slot, id));
            }
        }
        if handing_over.incumbent.is_some_and(|slot| !self.processes[slot].is_alive()) {
            return Some(News::IncumbentGone);
        }
        let slot = handing_over.successor?;
        if let Some(pipe) = &self.processes[slot].channel
            && pipe.supervisor_end == End::Open
        {
            if !pipe.to_supervisor.is_empty() {
                return Some(News::FromSuccessor(slot));
            }
            if pipe.process_end == End::Closed {
                return Some(News::SuccessorClosed(slot));
            }
        }
        (!self.processes[slot].is_alive()).then_some(News::SuccessorGone)
    }

    fn take_news(&mut self, news: News) {
        use supervisor::Input;
        let input = match news {
            News::Result => None,
            News::FromIncumbent(slot, id) => {
                let session = self.process_mut(slot).session_mut(id);
                session.and_then(|session| session.pipe.to_supervisor.pop_front()).map(Input::FromIncumbent)
            }
            News::IncumbentClosed(slot, id) => {
                if let Some(session) = self.process_mut(slot).session_mut(id) {
                    session.pipe.process_end = End::Noticed;
                }
                Some(Input::IncumbentClosed)
            }
            News::IncumbentGone => Some(Input::IncumbentGone),
            News::FromSuccessor(slot) => {
                let pipe = self.process_mut(slot).channel.as_mut();
                pipe.and_then(|pipe| pipe.to_supervisor.pop_front()).map(Input::FromSuccessor)
            }
            News::SuccessorClosed(slot) => {
                if let Some(pipe) = &mut self.process_mut(slot).channel {
                    pipe.process_end = End::Noticed;
                }
                Some(Input::SuccessorClosed)
            }
            News::SuccessorGone => Some(Input::SuccessorGone("died".into())),
        };
        let Job::HandingOver(handing_over) = &mut self.supervisor_mut().job else { return };
        match news {
            News::IncumbentGone => handing_over.incumbent = None,
            News::SuccessorGone => handing_over.successor = None,
            _ => {}
        }
        let input = input.or_else(|| handing_over.drive.results.pop_front());
        if let Some(input) = input {
            handing_over.drive.feed(input);
        }
    }

    // ---- what it does

    pub(super) fn class_of_supervisor(&self) -> Option<Class> {
        match &self.supervisor.job {
            Job::Nothing | Job::Idle => None,
            Job::Settling => Some(Class::Own),
            Job::HandingOver(handing_over) => {
                handing_over.drive.todo.front().map(|effect| self.class_in_handover(handing_over, effect))
            }
            Job::Recovering(recovering) => recovering.drive.todo.front().map(|effect| match effect {
                recovery::Effect::Look
                | recovery::Effect::Stop(_)
                | recovery::Effect::ReadLease
                | recovery::Effect::Continue(_)
                | recovery::Effect::Kill(_) => Class::Seen,
                recovery::Effect::LookIfStopped(_)
                | recovery::Effect::Arm(..)
                | recovery::Effect::Disarm(_)
                | recovery::Effect::Finish(_) => Class::Unseen,
            }),
        }
    }

    fn class_in_handover(&self, job: &HandingOver, effect: &supervisor::Effect) -> Class {
        use supervisor::Effect;
        let seen_if = |is_seen: bool| if is_seen { Class::Seen } else { Class::Unseen };
        let is_alive = |slot: Option<Slot>| slot.is_some_and(|slot| self.processes[slot].is_alive());
        match effect {
            Effect::ConnectIncumbent | Effect::ReadLease | Effect::AskControlPath => Class::Seen,
            Effect::SpawnSuccessor(_) | Effect::Record(_) | Effect::RecordUndone => Class::Own,
            Effect::SendIncumbent(..) | Effect::PassTransfer(..) | Effect::CloseIncumbent => {
                seen_if(self.incumbent_would_hear(job))
            }
            Effect::SendSuccessor(..) | Effect::CloseSuccessor => seen_if(self.successor_would_hear(job)),
            Effect::Finish(_) => seen_if(self.incumbent_would_hear(job) || self.successor_would_hear(job)),
            Effect::StopSuccessor | Effect::ContinueSuccessor | Effect::KillSuccessor => {
                seen_if(is_alive(job.successor))
            }
            Effect::KillIncumbent => seen_if(is_alive(job.incumbent)),
            Effect::SyncJournal | Effect::LookIfStopped | Effect::Arm(..) | Effect::Disarm(_) | Effect::Reached(_) => {
                Class::Unseen
            }
        }
    }

    pub(super) fn incumbent_would_hear(&self, job: &HandingOver) -> bool {
        let session = job.session.and_then(|(slot, id)| self.processes[slot].session(id));
        session.is_some_and(|session| is_open(&session.pipe))
    }

    fn successor_would_hear(&self, job: &HandingOver) -> bool {
        let channel = job.successor.and_then(|slot| self.processes[slot].channel.as_ref());
        let is_successor = job.successor.is_some_and(|slot| matches!(self.processes[slot].role, Role::Successor(_)));
        is_successor && channel.is_some_and(is_open)
    }

    /// Does the next thing; as asked, or so that the call fails.
    pub(super) fn supervisor_acts(&mut self, performed: Performed) {
        let mut job = std::mem::replace(&mut self.supervisor_mut().job, Job::Nothing);
        let next = match &mut job {
            Job::Nothing | Job::Idle => None,
            Job::Settling => {
                self.write_down();
                Some(Job::Idle)
            }
            Job::HandingOver(handing_over) => handing_over.drive.todo.pop_front().and_then(|effect| match performed {
                Performed::Well => self.perform_in_handover(handing_over, effect),
                Performed::Failing => {
                    handing_over.drive.results.extend(failure(&effect));
                    None
                }
            }),
            Job::Recovering(recovering) => {
                recovering.drive.todo.pop_front().and_then(|effect| self.perform_in_recovery(recovering, effect))
            }
        };
        self.supervisor_mut().job = next.unwrap_or(job);
    }

    /// Whether the next thing can fail, other than by what the roles do.
    pub(super) fn supervisor_may_fail(&self) -> bool {
        match &self.supervisor.job {
            Job::Nothing | Job::Settling | Job::Idle | Job::Recovering(_) => false,
            Job::HandingOver(job) => job.drive.todo.front().is_some_and(|effect| failure(effect).is_some()),
        }
    }

    fn perform_in_handover(&mut self, job: &mut HandingOver, effect: supervisor::Effect) -> Option<Job> {
        use supervisor::{Effect, Input};
        match effect {
            Effect::ConnectIncumbent => {
                let result = self.connect(job);
                job.drive.results.push_back(result);
            }
            Effect::SpawnSuccessor(_) => {
                let slot = self.spawn_successor();
                job.successor = Some(slot);
                job.record.successor = Some(self.processes[slot].id);
                job.drive.results.push_back(Input::Spawned(self.processes[slot].id));
            }
            Effect::PassTransfer(..) if self.sabotage == Some(Sabotage::PassNothing) => {}
            Effect::SendIncumbent(_, message) | Effect::PassTransfer(_, message) => {
                if let (Message::ResumeAfterAbort { handoff_id }, Some(Sabotage::TakeResumeForGranted)) =
                    (&message, self.sabotage)
                {
                    job.drive.results.push_back(Input::FromIncumbent(Message::Resumed { handoff_id: *handoff_id }));
                }
                if let Some(pipe) = self.incumbent_pipe(job) {
                    pipe.send_to_process(message);
                }
            }
            Effect::SendSuccessor(_, mut message) => {
                if let Message::BeginWith { deadline_ns, .. } = &mut message {
                    *deadline_ns = 1;
                }
                if let Some(pipe) = self.successor_pipe(job) {
                    pipe.send_to_process(message);
                }
            }
            Effect::CloseIncumbent => self.close_incumbent(job),
            Effect::CloseSuccessor => self.close_successor(job),
            Effect::Record(phase) => {
                job.record.phase = phase;
                self.journal = Some(job.record);
            }
            Effect::RecordUndone => self.journal = None,
            Effect::SyncJournal => job.drive.results.push_back(Input::JournalSynced),
            Effect::ReadLease => job.drive.results.push_back(Input::Lease(LeaseReading::Found(self.lease))),
            Effect::AskControlPath => {
                let pid =
                    self.path.filter(|slot| self.processes[*slot].is_alive()).map(|slot| self.processes[slot].id.pid);
                job.drive.results.push_back(Input::ControlPath(pid));
            }
            Effect::StopSuccessor => {
                let stopped = job.successor.is_some_and(|slot| self.stop(slot));
                let stopped = if stopped { Stopped::Yes } else { Stopped::NotYet };
                job.drive.results.push_back(Input::SuccessorStopped(stopped));
            }
            Effect::LookIfStopped => {
                let stopped = job.successor.is_some_and(|slot| !self.processes[slot].runs());
                let stopped = if stopped { Stopped::Yes } else { Stopped::NotYet };
                job.drive.results.push_back(Input::SuccessorStopped(stopped));
            }
            Effect::ContinueSuccessor => match (job.successor, self.sabotage) {
                (Some(slot), Some(Sabotage::KillActive)) => self.end_successor(slot),
                (Some(slot), _) => self.continue_process(slot),
                (None, _) => {}
            },
            Effect::KillSuccessor => {
                if let Some(slot) = job.successor {
                    self.end_successor(slot);
                }
            }
            Effect::KillIncumbent => {
                if let Some(slot) = job.incumbent
                    && self.sabotage != Some(Sabotage::SpareSilentIncumbent)
                {
                    self.kill(slot);
                }
            }
            Effect::Arm(timer, after) => self.arm(job, timer, after),
            Effect::Disarm(timer) => job.drive.disarm(timer),
            Effect::Reached(_) => {}
            Effect::Finish(outcome) => return Some(self.finish(job, &outcome)),
        }
        None
    }

    fn connect(&mut self, job: &mut HandingOver) -> supervisor::Input {
        let listening = self.path.filter(|slot| self.processes[*slot].is_alive());
        let Some(slot) = listening else { return supervisor::Input::ConnectFailed("nobody listens".into()) };
        let process = self.process_mut(slot);
        let id = process.free_session();
        process.sessions.push(Session { id, greeting: Accepted::NotYet, channel_for: None, pipe: Pipe::default() });
        let process = process.id;
        job.session = Some((slot, id));
        job.incumbent = Some(slot);
        job.record.incumbent = Some(process);
        supervisor::Input::Connected(process)
    }

    fn spawn_successor(&mut self) -> Slot {
        let handover = self.handovers;
        let slot = usize::from(handover);
        let id = self.fresh_id(slot);
        let mut drive = Drive::new(handoff_proto::successor::Successor::new(id.pid, Vec::new(), Timing::default()));
        drive.feed(handoff_proto::successor::Input::Daemon(handoff_proto::successor::Call::Handshake));
        let (daemon, activation) = (Daemon::Warms, Activation::NotLooked);
        let role = Role::Successor(SuccessorRole { drive, handover, daemon, activation, begun_epoch: 0 });
        *self.process_mut(slot) = Process { channel: Some(Pipe::default()), ..Process::new(id, role) };
        slot
    }

    fn incumbent_pipe(&mut self, job: &HandingOver) -> Option<&mut Pipe> {
        let (slot, id) = job.session?;
        self.process_mut(slot).session_mut(id).map(|session| &mut session.pipe)
    }

    fn successor_pipe(&mut self, job: &HandingOver) -> Option<&mut Pipe> {
        self.process_mut(job.successor?).channel.as_mut()
    }

    fn close_incumbent(&mut self, job: &mut HandingOver) {
        if let Some(pipe) = self.incumbent_pipe(job) {
            pipe.supervisor_closes();
        }
        job.session = None;
    }

    fn close_successor(&mut self, job: &HandingOver) {
        if let Some(pipe) = self.successor_pipe(job) {
            pipe.supervisor_closes();
        }
    }

    /// The handover is over: its connections end, and the service goes on with whoever serves.
    fn finish(&mut self, job: &mut HandingOver, outcome: &Outcome) -> Job {
        self.hold_to_its_word(job, outcome);
        let in_doubt = matches!(outcome, Outcome::Aborted { incumbent: Standing::NotHeard, .. });
        if !matches!(outcome, Outcome::Refused { .. }) {
            self.supervisor_mut().unheard = job.record.incumbent.filter(|_| in_doubt);
        }
        let committed = job.record.successor.and_then(|id| self.living(id));
        self.close_incumbent(job);
        // It is also closed for a successor whose death was told.
        let slot = usize::from(self.handovers);
        if let Some(pipe) = &mut self.process_mut(slot).channel {
            pipe.supervisor_closes();
        }
        if let Outcome::Committed { .. } = outcome {
            let supervisor = self.supervisor_mut();
            if let Some(old) = supervisor.daemon {
                supervisor.retiring[old] = true;
            }
            supervisor.daemon = committed;
            return Job::Settling;
        }
        Job::Idle
    }

    /// What is said of the incumbent is so, and what could be known is waited for.
    fn hold_to_its_word(&mut self, job: &HandingOver, outcome: &Outcome) {
        let Outcome::Aborted { incumbent, .. } = outcome else { return };
        let asked = job.incumbent.is_some_and(|slot| self.processes[slot].agreed_to(handoff_id(self.handovers)));
        let owes = |id| self.living(id).is_some_and(|slot| self.processes[slot].owes_its_resume());
        let owes = job.record.incumbent.is_some_and(owes);
        // One that was started again knows nothing of a resume that it did not ask for.
        let is_known = asked || self.supervisor.unheard == job.record.incumbent;
        let is_broken = match incumbent {
            Standing::Serves => (owes && is_known).then_some(Broken::SaidToServe),
            Standing::NotHeard => (owes && asked && self.incumbent_would_hear(job)).then_some(Broken::NotWaitedFor),
            Standing::Dead => None,
        };
        self.broken = self.broken.or(is_broken);
    }

    // ---- what the kernel does for it

    /// SIGSTOP; false if it is dead.
    pub(super) fn stop(&mut self, slot: Slot) -> bool {
        let process = self.process_mut(slot);
        if process.is_alive() {
            process.life = Life::Stopped;
        }
        process.is_alive()
    }

    /// SIGCONT.
    pub(super) fn continue_process(&mut self, slot: Slot) {
        let process = self.process_mut(slot);
        if process.is_alive() {
            process.life = Life::Running;
        }
    }

    /// The same to one that was stopped by SIGSTOP, and to no other: a fault is not undone by it.
    pub(super) fn wake_stopped(&mut self, slot: Slot) {
        if self.processes[slot].life == Life::Stopped {
            self.continue_process(slot);
        }
    }

    /// SIGKILL to one that may be taking over. Whoever serves is never ended so.
    pub(super) fn end_successor(&mut self, slot: Slot) {
        let id = self.processes[slot].id;
        if self.has_lock(slot) && self.lease.owner == id && self.lease.state == LeaseState::Active {
            self.broken = Some(Broken::ActiveEnded);
        }
        self.kill(slot);
    }
}

#[derive(Clone, Copy)]
pub(super) enum News {
    Result,
    FromIncumbent(Slot, SessionId),
    IncumbentClosed(Slot, SessionId),
    IncumbentGone,
    FromSuccessor(Slot),
    SuccessorClosed(Slot),
    SuccessorGone,
}

fn is_open(pipe: &Pipe) -> bool {
    pipe.supervisor_end == End::Open && pipe.process_end == End::Open
}

/// What a supervisor is told when the call fails.
fn failure(effect: &supervisor::Effect) -> Option<supervisor::Input> {
    use supervisor::{Effect, Input};
    match effect {
        Effect::ConnectIncumbent => Some(Input::ConnectFailed("failed".into())),
        Effect::SpawnSuccessor(_) => Some(Input::SpawnFailed("failed".into())),
        Effect::Record(_) | Effect::RecordUndone => Some(Input::JournalFailed("failed".into())),
        Effect::ReadLease => Some(Input::Lease(LeaseReading::Unreadable("failed".into()))),
        _ => None,
    }
}
