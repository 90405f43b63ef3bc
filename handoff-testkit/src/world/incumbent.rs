//! An incumbent's process: it performs the effects of its machine, and runs the daemon's hooks beside them.

use handoff_proto::incumbent::{Directory, Drain, Effect, Input, LockTried, ResumeEnd, Seal, SessionId, Timer};
use handoff_proto::{LeaseState, LeaseView, Message, ProcessId};

use super::process::{
    Accepted, Daemon, End, Hook, IncumbentRole, Memory, Parent, Process, Resume, Role, Service, Session, Slot, Store,
};
use super::sabotage::Sabotage;
use super::{Broken, Class, Performed, SUPERVISOR_PID, World};

/// The timers that run out in this world.
pub(super) const TIMERS: [Timer; 10] = [
    Timer::Session(SessionId(0)),
    Timer::Session(SessionId(1)),
    Timer::Session(SessionId(2)),
    Timer::Silence,
    Timer::Deadline,
    Timer::Late,
    Timer::Poll,
    Timer::Stopping,
    Timer::Ask,
    Timer::Retry,
];

/// The shards' revisions say nothing here: the world knows by itself who has outdated memory.
const REVISIONS: [u64; 1] = [1];

impl World {
    /// Tells the machine the next thing that has happened; false when there is nothing.
    pub(super) fn incumbent_hears(&mut self, slot: Slot) -> bool {
        let Some(input) = self.next_incumbent_input(slot) else { return false };
        if let Role::Incumbent(role) = &mut self.process_mut(slot).role {
            role.drive.feed(input);
        }
        true
    }

    fn next_incumbent_input(&mut self, slot: Slot) -> Option<Input> {
        let process = &self.processes[slot];
        let Role::Incumbent(role) = &process.role else { return None };
        if !role.drive.results.is_empty() {
            let Role::Incumbent(role) = &mut self.process_mut(slot).role else { return None };
            return role.drive.results.pop_front();
        }
        if let Some(id) = process.sessions.iter().find(|session| has_news(session)).map(|session| session.id) {
            return self.process_mut(slot).session_mut(id).and_then(session_news);
        }
        if role.watched.is_some_and(|id| self.living(id).is_none()) {
            let Role::Incumbent(role) = &mut self.process_mut(slot).role else { return None };
            role.watched = None;
            return Some(Input::SuccessorExited);
        }
        None
    }

    pub(super) fn class_of_incumbent(&self, process: &Process, role: &IncumbentRole, effect: &Effect) -> Class {
        let seen_if = |is_seen: bool| if is_seen { Class::Seen } else { Class::Unseen };
        let is_heard = |id| process.session(id).is_some_and(|session| session.pipe.supervisor_end == End::Open);
        match effect {
            Effect::Send(id, ..) | Effect::SendHeartbeat(id, _) | Effect::Close(id, _) => seen_if(is_heard(*id)),
            Effect::PassDirectory(_)
            | Effect::StampLease(_)
            | Effect::ReleaseLock(_)
            | Effect::ReadLease
            | Effect::FindHolder
            | Effect::TryLock
            | Effect::ClaimLease
            | Effect::ActivateLease
            | Effect::Unlock
            | Effect::AskControlPath => Class::Seen,
            Effect::PublishControl => seen_if(self.path.is_none_or(|owner| self.processes[owner].id != process.id)),
            Effect::StopSuccessor | Effect::ContinueSuccessor | Effect::KillSuccessor => {
                seen_if(role.watched.is_some_and(|id| self.living(id).is_some()))
            }
            Effect::SendWithNext(..)
            | Effect::SendStatus { .. }
            | Effect::SendListeners(_)
            | Effect::RunDrain { .. }
            | Effect::RunSeal
            | Effect::CancelHook
            | Effect::RunResume { .. }
            | Effect::WatchSuccessor { .. }
            | Effect::ForgetSuccessor
            | Effect::SeeSuccessor
            | Effect::RememberListenerFlags
            | Effect::RestoreListenerFlags
            | Effect::StopAsking
            | Effect::Arm(..)
            | Effect::Disarm(_)
            | Effect::Reached(..)
            | Effect::Leave(_) => Class::Unseen,
        }
    }

    pub(super) fn incumbent_acts(&mut self, slot: Slot, performed: Performed) {
        let Role::Incumbent(role) = &mut self.process_mut(slot).role else { return };
        let Some(effect) = role.drive.todo.pop_front() else { return };
        match performed {
            Performed::Failing => {
                role.drive.results.extend(failure(&effect));
                if effect == Effect::ClaimLease {
                    self.unlock(slot);
                }
            }
            Performed::Well => {
                if let Some(result) = self.perform_incumbent(slot, effect)
                    && let Role::Incumbent(role) = &mut self.process_mut(slot).role
                {
                    role.drive.results.push_back(result);
                }
            }
        }
    }

    fn perform_incumbent(&mut self, slot: Slot, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Send(_, _, Message::DrainFailed { .. } | Message::SealFailed { .. })
                if self.sabotage == Some(Sabotage::KeepFailureBack) => {}
            Effect::Send(id, _, message) => {
                if let Some(session) = self.process_mut(slot).session_mut(id) {
                    session.pipe.send_to_supervisor(message);
                }
            }
            Effect::SendWithNext(id, _, message) => {
                if let Some(session) = self.process_mut(slot).session_mut(id) {
                    session.pipe.send_to_supervisor_with_next(message);
                }
            }
            Effect::Close(id, _) => {
                if let Some(session) = self.process_mut(slot).session_mut(id) {
                    session.pipe.process_closes();
                }
            }
            Effect::RunDrain { .. } => self.run_drain(slot),
            Effect::RunSeal => {
                self.run_hook(slot, Hook::Seal);
                if self.sabotage == Some(Sabotage::ReleaseBeforeSeal) {
                    self.unlock(slot);
                }
            }
            Effect::RunResume { state_may_have_changed, .. } => self.run_resume(slot, state_may_have_changed),
            Effect::StampLease(id) => {
                self.lease.handoff_id = Some(id);
                self.incumbent_role(slot)?.handover = Some(id);
                return Some(Input::Stamped(Ok(())));
            }
            Effect::PassDirectory(session) => return Some(Input::DirectoryPassed(self.pass_directory(slot, session))),
            Effect::ReleaseLock(directory) => {
                self.lease.state = LeaseState::Sealed;
                self.unlock(slot);
                if directory == Directory::Passed && self.sabotage == Some(Sabotage::UnlockWhatWasPassed) {
                    self.directory.unlock_for_all();
                }
                return Some(Input::Released(Ok(())));
            }
            Effect::ReadLease => {
                let lease = self.lease;
                if self.sabotage == Some(Sabotage::DecideWithoutLookingAgain) {
                    self.incumbent_role(slot)?.read = Some(lease);
                }
                return Some(Input::LeaseRead(Ok(Some(lease))));
            }
            Effect::FindHolder => {
                return Some(Input::HolderFound(self.lock_holder()));
            }
            Effect::TryLock => return Some(Input::LockTried(self.incumbent_tries_lock(slot))),
            Effect::ClaimLease => return Some(Input::Claimed(Ok(self.incumbent_claims(slot)))),
            Effect::ActivateLease => {
                self.lease.state = LeaseState::Active;
                return Some(Input::Activated(Ok(())));
            }
            Effect::Unlock => self.unlock(slot),
            Effect::WatchSuccessor { pid, parent } => return self.watch(slot, pid, parent),
            Effect::ForgetSuccessor => self.incumbent_role(slot)?.watched = None,
            Effect::StopSuccessor => {
                if let Some(successor) = self.watched(slot) {
                    self.stop(successor);
                }
            }
            Effect::SeeSuccessor => {
                let stopped = self.watched(slot).is_some_and(|successor| !self.processes[successor].runs());
                return Some(if stopped { Input::SuccessorStopped } else { Input::SuccessorRunning });
            }
            Effect::ContinueSuccessor => {
                if let Some(successor) = self.watched(slot) {
                    self.continue_process(successor);
                }
            }
            Effect::KillSuccessor => {
                if let Some(successor) = self.watched(slot)
                    && !self.sabotage.is_some_and(Sabotage::spares_leftovers)
                {
                    self.end_successor(successor);
                }
            }
            Effect::AskControlPath => return self.ask_control_path(),
            Effect::PublishControl => {
                self.path = Some(slot);
                return Some(Input::ControlPublished(Ok(())));
            }
            Effect::Arm(timer, _) => self.incumbent_role(slot)?.drive.arm(timer, &TIMERS),
            Effect::Disarm(timer) => self.incumbent_role(slot)?.drive.disarm(timer),
            Effect::Leave(_) => {
                // Who leaves by itself is not missed: nobody needs to look after what it was about to do.
                self.supervisor_mut().retiring[slot] = false;
                self.kill(slot);
            }
            // It is asked for one only when it is late: what it beats by itself is that it does not stand still.
            Effect::SendHeartbeat(id, _) => {
                if let Some(session) = self.process_mut(slot).session_mut(id) {
                    session.pipe.send_to_supervisor(Message::Heartbeat { ts_ms: 0 });
                }
            }
            Effect::SendStatus { .. }
            | Effect::SendListeners(_)
            | Effect::CancelHook
            | Effect::RememberListenerFlags
            | Effect::RestoreListenerFlags
            | Effect::StopAsking
            | Effect::Reached(..) => {}
        }
        None
    }

    fn incumbent_role(&mut self, slot: Slot) -> Option<&mut IncumbentRole> {
        match &mut self.process_mut(slot).role {
            Role::Incumbent(role) => Some(role),
            _ => None,
        }
    }

    fn watched(&self, slot: Slot) -> Option<Slot> {
        match &self.processes[slot].role {
            Role::Incumbent(role) => role.watched.and_then(|id| self.living(id)),
            _ => None,
        }
    }

    /// The next message takes its time, and what was to go with it leaves without it.
    pub(super) fn flush(&mut self, slot: Slot) {
        self.process_mut(slot).sessions.iter_mut().for_each(|session| session.pipe.flush());
    }

    // ---- the lock

    /// The channel that the session has brought serves once. Its other end is closed when its process is dead.
    fn pass_directory(&mut self, slot: Slot, session: SessionId) -> Result<(), String> {
        let brought = self.process_mut(slot).session_mut(session).and_then(|session| session.channel_for.take());
        let successor = brought.map(|id| usize::from(id.as_bytes()[0]));
        match successor.filter(|successor| self.processes[*successor].is_alive()) {
            Some(successor) => {
                self.directory.pass(slot, successor);
                Ok(())
            }
            None => Err(String::new()),
        }
    }

    fn incumbent_tries_lock(&mut self, slot: Slot) -> LockTried {
        if !self.try_lock(slot) {
            return LockTried::Held;
        }
        let read_before = self.incumbent_role(slot).and_then(|role| role.read);
        match self.sabotage {
            Some(Sabotage::DecideWithoutLookingAgain) => LockTried::Locked(read_before),
            _ => LockTried::Locked(Some(self.lease)),
        }
    }

    fn incumbent_claims(&mut self, slot: Slot) -> u64 {
        let me = self.processes[slot].id;
        let handover = self.incumbent_role(slot).and_then(|role| role.handover);
        if !may_take_back(&self.lease, me, handover) {
            self.broken = Some(Broken::TookBackFromNewer);
        }
        self.claim(slot, None)
    }

    // ---- its successor

    /// Only a child of the supervisor that asks is watched.
    fn watch(&mut self, slot: Slot, pid: u32, parent: u32) -> Option<Input> {
        let is_child = |process: &Process| process.is_alive() && process.parent == Parent::Lives;
        let successor = self.processes.iter().find(|process| process.id.pid == pid && is_child(process))?.id;
        if parent != SUPERVISOR_PID {
            return None;
        }
        self.incumbent_role(slot)?.watched = Some(successor);
        Some(Input::SuccessorWatched)
    }

    /// One that accepts connections and does not speak is waited for until the timer.
    fn ask_control_path(&self) -> Option<Input> {
        match self.path.filter(|owner| self.processes[*owner].is_alive()) {
            None => Some(Input::PathAnswered(None)),
            Some(_) => self.who_answers().map(|owner| Input::PathAnswered(Some(self.processes[owner].id.pid))),
        }
    }

    // ---- the hooks

    fn run_hook(&mut self, slot: Slot, hook: Hook) {
        if let Some(role) = self.incumbent_role(slot)
            && role.hook.replace(hook).is_some()
        {
            self.broken = Some(Broken::HooksOverlap);
        }
    }

    fn run_drain(&mut self, slot: Slot) {
        self.run_hook(slot, Hook::Drain);
        self.process_mut(slot).service = Service::Silent;
        if let Some(role) = self.incumbent_role(slot) {
            role.resume = Resume::Owed;
        }
    }

    /// The daemon has its store open again as soon as the hook runs.
    fn run_resume(&mut self, slot: Slot, state_may_have_changed: bool) {
        self.run_hook(slot, Hook::Resume);
        if self.incumbent_role(slot).is_some_and(|role| role.resume == Resume::NotOwed) {
            self.broken = Some(Broken::ResumedTwice);
        }
        if state_may_have_changed && self.sabotage != Some(Sabotage::ResumeFromMemory) {
            self.process_mut(slot).memory = Memory::AsOnDisk;
        }
        if self.processes[slot].memory == Memory::Outdated {
            self.broken = Some(Broken::WritesLost);
        }
        self.opens_store(slot);
    }

    /// What the daemon is at never ends.
    pub(super) fn hangs(&mut self, slot: Slot) {
        match &mut self.process_mut(slot).role {
            Role::Nobody | Role::Starting(_) => {}
            Role::Successor(role) => role.daemon = Daemon::Hangs,
            Role::Incumbent(role) => role.hook = Some(Hook::EndlessResume),
        }
    }

    pub(super) fn hook_ends(&mut self, slot: Slot, performed: Performed) {
        let Some(hook) = self.incumbent_role(slot).and_then(|role| role.hook.take()) else { return };
        let input = match (hook, performed) {
            (Hook::Drain, Performed::Well) => {
                Input::DrainEnded(Ok(Drain { open_conns_remaining: 0, accept_closed: true }))
            }
            (Hook::Drain, Performed::Failing) => Input::DrainEnded(Err(String::new())),
            (Hook::Seal, Performed::Well) => {
                self.process_mut(slot).store = Store::Closed;
                let last_revision_per_shard = REVISIONS.to_vec();
                Input::SealEnded(Ok(Seal { last_revision_per_shard, data_dir_fingerprint: [0; 32] }))
            }
            (Hook::Seal, Performed::Failing) => Input::SealEnded(Err(String::new())),
            (Hook::Resume, Performed::Well) => {
                self.process_mut(slot).service = Service::Serves;
                if let Some(role) = self.incumbent_role(slot) {
                    role.resume = Resume::NotOwed;
                }
                Input::ResumeEnded(ResumeEnd::Serving)
            }
            (Hook::Resume, Performed::Failing) => Input::ResumeEnded(ResumeEnd::Failed(String::new())),
            (Hook::EndlessResume, _) => return,
        };
        if let Some(role) = self.incumbent_role(slot) {
            role.drive.feed(input);
        }
    }
}

/// The rule of limbo: our own seal, or what our own successor has left.
fn may_take_back(lease: &LeaseView, me: ProcessId, handover: Option<handoff_proto::HandoffId>) -> bool {
    let own_seal = lease.owner == me && lease.state == LeaseState::Sealed;
    let own_successors = lease.owner != me && lease.state != LeaseState::Sealed && lease.handoff_id == handover;
    own_seal || (own_successors && handover.is_some())
}

fn has_news(session: &Session) -> bool {
    let pipe = &session.pipe;
    pipe.process_end == End::Open
        && (session.greeting == Accepted::NotYet || !pipe.to_process.is_empty() || pipe.supervisor_end == End::Closed)
}

fn session_news(session: &mut Session) -> Option<Input> {
    if session.greeting == Accepted::NotYet {
        session.greeting = Accepted::Yes;
        return Some(Input::Connected { session: session.id, peer_pid: Some(SUPERVISOR_PID) });
    }
    if let Some(message) = session.pipe.to_process.pop_front() {
        if let Message::TransferChannel { handoff_id } = message {
            session.channel_for = Some(handoff_id);
        }
        return Some(Input::Received(session.id, 2, message));
    }
    session.pipe.supervisor_end = End::Noticed;
    session.pipe.process_closes();
    Some(Input::Closed(session.id))
}

/// What the machine is told when the call fails.
pub(super) fn failure(effect: &Effect) -> Option<Input> {
    let failed = || "failed".to_owned();
    match effect {
        Effect::PassDirectory(_) => Some(Input::DirectoryPassed(Err(failed()))),
        Effect::StampLease(_) => Some(Input::Stamped(Err(failed()))),
        Effect::ReleaseLock(_) => Some(Input::Released(Err(failed()))),
        Effect::ReadLease => Some(Input::LeaseRead(Err(failed()))),
        Effect::TryLock => Some(Input::LockTried(LockTried::Failed)),
        Effect::ClaimLease => Some(Input::Claimed(Err(failed()))),
        Effect::ActivateLease => Some(Input::Activated(Err(failed()))),
        _ => None,
    }
}
