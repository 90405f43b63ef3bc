//! What can happen next, and what then comes of it.
//!
//! After every move the world settles: what nobody could see is done, what has arrived is taken. A message is taken in the
//! moment it comes, unless its reader is busy or stands still; to read it later is to freeze for a while.
//!
//! What the service may do between handovers is written here by hand: see the [world](super).

use super::process::{Daemon, Hook, Life, Process, Role, Slot};
use super::supervisor::{self, Job};
use super::{Class, Clock, Init, Limits, Outsider, Performed, SLOTS, Strangers, World, incumbent};

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Actor {
    /// The supervisor.
    Supervisor,
    /// A daemon's process.
    Process(Slot),
}

/// One thing that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// The next effect of this actor's machine is performed.
    Act(Actor),
    /// The hook that runs ends well.
    HookEnds(Slot),
    /// What waits for a process's next message leaves before it.
    Flushes(Slot),
    /// The successor's daemon has opened its store.
    StoreOpened(Slot),
    /// A timer of the supervisor runs out.
    FiresInHandover(handoff_proto::supervisor::Timer),
    /// A timer of the recovery runs out.
    FiresInRecovery(handoff_proto::recovery::Timer),
    /// A timer of an incumbent runs out.
    FiresInIncumbent(Slot, handoff_proto::incumbent::Timer),
    /// A timer of a successor runs out.
    FiresInSuccessor(Slot, handoff_proto::successor::Timer),
    /// A deadline passes, or its slack.
    Tick(u8),
    /// The idle supervisor begins a handover.
    StartHandover,
    /// The idle supervisor starts a daemon, because none lives.
    StartCold(Slot),
    /// The idle supervisor ends a process that was told to leave and did not.
    Retire(Slot),
    /// The idle supervisor ends its frozen daemon.
    EndFrozenDaemon(Slot),
    /// The frozen supervisor is ended.
    InitEnds,
    /// The dead supervisor is started again.
    InitRestarts,
    /// Somebody who is not of the service does something.
    Outsider(Outsider),
    /// A frozen actor wakes up.
    Thaw(Actor),
    /// A fault: the actor is dead at once.
    Crash(Actor),
    /// A fault: the actor stands still.
    Freeze(Actor),
    /// A fault: the next effect of this actor's machine fails.
    Fail(Actor),
    /// A fault: the hook that runs returns an error.
    HookFails(Slot),
    /// A fault: the successor's daemon opens its store and is not fit to serve.
    OpensUnfit(Slot),
    /// A fault: what the daemon of a process is at never ends, while its library's thread lives: a warm-up, an opening, a resume.
    Hangs(Slot),
}

impl Move {
    /// Whether it happens by itself sooner or later: no fault, and no help from outside.
    pub fn is_progress(self) -> bool {
        !self.is_fault() && !matches!(self, Self::Thaw(_))
    }

    /// Whether it is counted as a fault.
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Crash(_)
                | Self::Freeze(_)
                | Self::Fail(_)
                | Self::HookFails(_)
                | Self::OpensUnfit(_)
                | Self::Hangs(_)
        )
    }
}

impl World {
    /// Everything that can happen next.
    pub fn moves(&self, limits: &Limits) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.broken().is_some() {
            return moves;
        }
        let actors = || [Actor::Supervisor].into_iter().chain((0..SLOTS).map(Actor::Process));
        let may_fault = self.faults < limits.faults;
        // What only its own crash could tell apart comes before everything else.
        if let Some(actor) = actors().find(|actor| self.runs(*actor) && self.class(*actor) == Some(Class::Own)) {
            moves.push(Move::Act(actor));
            if may_fault {
                self.faults_of(actor, &mut moves);
            }
            return moves;
        }
        self.supervisor_moves(limits, &mut moves);
        for slot in 0..SLOTS {
            self.process_moves(slot, &mut moves);
        }
        let ticking = (1..=self.handovers).filter(|handover| self.is_timed(*handover));
        moves.extend(ticking.filter(|handover| self.clock(*handover) != Clock::VeryLate).map(Move::Tick));
        if limits.strangers == Strangers::Around {
            moves.extend(self.outsider_moves().map(Move::Outsider));
        }
        if may_fault {
            actors().for_each(|actor| self.faults_of(actor, &mut moves));
        }
        moves
    }

    /// The world after this move; moves that can't happen here change nothing.
    pub fn after(&self, next: Move) -> Self {
        let mut world = self.clone();
        if next.is_fault() {
            world.faults += 1;
        }
        world.apply(next);
        world.settle();
        world
    }

    fn life(&self, actor: Actor) -> Life {
        match actor {
            Actor::Supervisor => self.supervisor.life,
            Actor::Process(slot) => self.processes[slot].life,
        }
    }

    fn runs(&self, actor: Actor) -> bool {
        self.life(actor) == Life::Running
    }

    /// Who could see what this actor does next; none: it waits.
    fn class(&self, actor: Actor) -> Option<Class> {
        let Actor::Process(slot) = actor else { return self.class_of_supervisor() };
        let process = &self.processes[slot];
        match &process.role {
            Role::Nobody => None,
            Role::Starting(_) => Some(Class::Seen),
            Role::Incumbent(role) => {
                role.drive.todo.front().map(|effect| self.class_of_incumbent(process, role, effect))
            }
            Role::Successor(role) => match role.drive.todo.front() {
                Some(effect) => Some(self.class_of_successor(process, effect)),
                None => (role.daemon == Daemon::Exits).then_some(Class::Seen),
            },
        }
    }

    fn act(&mut self, actor: Actor, performed: Performed) {
        let Actor::Process(slot) = actor else { return self.supervisor_acts(performed) };
        match &self.processes[slot].role {
            Role::Nobody => {}
            Role::Starting(stage) => self.starting_acts(slot, *stage),
            Role::Incumbent(_) => self.incumbent_acts(slot, performed),
            Role::Successor(_) => self.successor_acts(slot, performed),
        }
    }

    fn hear(&mut self, actor: Actor) -> bool {
        let Actor::Process(slot) = actor else { return self.supervisor_hears() };
        match &self.processes[slot].role {
            Role::Nobody | Role::Starting(_) => false,
            Role::Incumbent(_) => self.incumbent_hears(slot),
            Role::Successor(_) => self.successor_hears(slot),
        }
    }

    // ---- what the supervisor can do

    fn supervisor_moves(&self, limits: &Limits, moves: &mut Vec<Move>) {
        match (self.supervisor.life, limits.init) {
            (Life::Running, _) => self.running_supervisor_moves(limits, moves),
            (Life::Frozen, init) => {
                moves.push(Move::Thaw(Actor::Supervisor));
                if init == Init::Replaces {
                    moves.push(Move::InitEnds);
                }
            }
            (Life::Dead | Life::Stopped, Init::Replaces) => moves.push(Move::InitRestarts),
            (Life::Dead | Life::Stopped, Init::LeavesAlone) => {}
        }
    }

    fn running_supervisor_moves(&self, limits: &Limits, moves: &mut Vec<Move>) {
        if self.class_of_supervisor().is_some() {
            return moves.push(Move::Act(Actor::Supervisor));
        }
        match &self.supervisor.job {
            Job::Nothing | Job::Settling => {}
            Job::Idle => self.idle_moves(limits, moves),
            Job::HandingOver(job) => {
                self.retire_moves(moves);
                let fires = |timer: &&_| self.may_fire_in_handover(job, **timer);
                moves.extend(job.drive.armed().iter().filter(fires).map(|timer| Move::FiresInHandover(*timer)));
            }
            Job::Recovering(job) => {
                let fires = |timer: &&_| match timer {
                    // Whoever takes that long for its next step is frozen, and that costs a fault.
                    handoff_proto::recovery::Timer::Patience => {
                        let holder = self.lock.or(self.directory.holder());
                        holder.is_some_and(|slot| !self.processes[slot].runs()) && self.nobody_is_at_work()
                    }
                    _ => true,
                };
                moves.extend(job.drive.armed().iter().filter(fires).map(|timer| Move::FiresInRecovery(*timer)));
            }
        }
    }

    fn nobody_is_at_work(&self) -> bool {
        (0..SLOTS).map(Actor::Process).all(|actor| !self.runs(actor) || self.class(actor).is_none())
    }

    fn idle_moves(&self, limits: &Limits, moves: &mut Vec<Move>) {
        self.retire_moves(moves);
        let daemon = self.supervisor.daemon.filter(|slot| self.processes[*slot].is_alive());
        match daemon.map(|slot| (slot, &self.processes[slot])) {
            // It was adopted on its way back, and does not come to its end.
            Some((slot, process)) if process.runs() && process.hangs() => moves.push(Move::EndFrozenDaemon(slot)),
            Some((_, process)) if process.runs() => {
                let serves = matches!(process.role, Role::Incumbent(_));
                if serves && self.handovers < limits.handovers {
                    moves.push(Move::StartHandover);
                }
            }
            Some((slot, process)) if process.life == Life::Frozen || self.nobody_is_at_work() => {
                moves.push(Move::EndFrozenDaemon(slot));
            }
            // Whoever told it to stand still is about to decide.
            Some(_) => {}
            // While the lock is held it would leave at once and be started again.
            None if self.lock.is_none() && self.directory.is_free() => {
                moves.extend(self.free_place().map(Move::StartCold))
            }
            None => {}
        }
    }

    fn retire_moves(&self, moves: &mut Vec<Move>) {
        moves.extend((0..SLOTS).filter(|slot| self.supervisor.retiring[*slot]).map(Move::Retire));
    }

    /// A place for a daemon that is started cold.
    fn free_place(&self) -> Option<Slot> {
        let places = [SLOTS - 1].into_iter().chain(0..=usize::from(self.handovers));
        let is_free =
            |process: &Process| !process.is_alive() && process.channel.is_none() && process.sessions.is_empty();
        places.into_iter().find(|slot| is_free(&self.processes[*slot]))
    }

    fn may_fire_in_handover(&self, job: &supervisor::HandingOver, timer: handoff_proto::supervisor::Timer) -> bool {
        use handoff_proto::supervisor::Timer;
        let stands_still = |slot: Option<Slot>| slot.is_some_and(|slot| !self.processes[slot].runs());
        let hangs = |slot: Option<Slot>| slot.is_some_and(|slot| self.processes[slot].hangs());
        // It has less time than the handover has left.
        let open_comes_first = || hangs(job.successor) && job.drive.is_armed(Timer::Open);
        let clock = self.clock(self.handovers);
        match timer {
            Timer::Hello => stands_still(job.successor.or(job.incumbent)),
            Timer::Warm => stands_still(job.successor) || hangs(job.successor),
            Timer::SuccessorSilent => stands_still(job.successor),
            Timer::IncumbentSilent => stands_still(job.incumbent),
            Timer::Deadline => clock != Clock::InTime && !open_comes_first(),
            Timer::Late => clock == Clock::VeryLate && !open_comes_first(),
            // Whom the supervisor itself has told to stand still it looks at again.
            Timer::Ended => (stands_still(job.successor) || hangs(job.successor)) && !job.drive.is_armed(Timer::Look),
            Timer::Resumed => stands_still(job.incumbent) || hangs(job.incumbent) || clock == Clock::VeryLate,
            _ => true,
        }
    }

    // ---- what a daemon's process can do

    fn process_moves(&self, slot: Slot, moves: &mut Vec<Move>) {
        let process = &self.processes[slot];
        match process.life {
            Life::Dead | Life::Stopped => return,
            Life::Frozen => return moves.push(Move::Thaw(Actor::Process(slot))),
            Life::Running => {}
        }
        if self.class(Actor::Process(slot)).is_some() {
            return moves.push(Move::Act(Actor::Process(slot)));
        }
        match &process.role {
            Role::Nobody | Role::Starting(_) => {}
            Role::Incumbent(role) => {
                if role.hook.is_some() && !process.hangs() {
                    moves.push(Move::HookEnds(slot));
                }
                if process.sessions.iter().any(|session| !session.pipe.unsent.is_empty()) {
                    moves.push(Move::Flushes(slot));
                }
                let fires = |timer: &&_| self.may_fire_in_incumbent(process, role, **timer);
                moves.extend(role.drive.armed().iter().filter(fires).map(|timer| Move::FiresInIncumbent(slot, *timer)));
            }
            Role::Successor(role) => {
                if let Daemon::OpensStore { .. } = role.daemon {
                    moves.push(Move::StoreOpened(slot));
                }
                let fires = |timer: &&_| self.may_fire_in_successor(slot, role, **timer);
                moves.extend(role.drive.armed().iter().filter(fires).map(|timer| Move::FiresInSuccessor(slot, *timer)));
            }
        }
    }

    fn may_fire_in_incumbent(
        &self,
        process: &Process,
        role: &super::process::IncumbentRole,
        timer: handoff_proto::incumbent::Timer,
    ) -> bool {
        use handoff_proto::incumbent::Timer;
        let clock = role.handover.map_or(Clock::InTime, |id| self.clock(id.as_bytes()[0]));
        match timer {
            Timer::Session(_) | Timer::Silence => self.supervisor.life == Life::Frozen,
            Timer::Deadline => clock != Clock::InTime,
            Timer::Late => clock == Clock::VeryLate,
            // A look that would find everything as it was is left out.
            Timer::Poll => {
                let slot = self.living(process.id);
                let own_path = self.path.is_some_and(|slot| self.processes[slot].id == process.id);
                let is_undecided = self.lease.owner == process.id
                    || (self.lease.handoff_id == role.handover
                        && self.lease.state == handoff_proto::LeaseState::Opening);
                let would_lock = slot.is_some_and(|slot| self.would_lock(slot));
                would_lock || !role.drive.is_armed(Timer::Late) || !is_undecided || !own_path
            }
            _ => true,
        }
    }

    fn may_fire_in_successor(
        &self,
        slot: Slot,
        role: &super::process::SuccessorRole,
        timer: handoff_proto::successor::Timer,
    ) -> bool {
        use handoff_proto::successor::Timer;
        match timer {
            Timer::Hello | Timer::Supervisor => self.supervisor.life == Life::Frozen,
            Timer::Deadline => self.clock(role.handover) != Clock::InTime,
            // A try that would find everything as it was is left out.
            Timer::LockRetry => self.would_lock(slot) || self.lease.epoch != role.begun_epoch,
            Timer::Heartbeat | Timer::Progress => false,
        }
    }

    // ---- what can go wrong

    fn faults_of(&self, actor: Actor, moves: &mut Vec<Move>) {
        let life = self.life(actor);
        if life != Life::Dead {
            moves.push(Move::Crash(actor));
        }
        if life != Life::Running {
            return;
        }
        moves.push(Move::Freeze(actor));
        let Actor::Process(slot) = actor else {
            if self.supervisor_may_fail() {
                moves.push(Move::Fail(actor));
            }
            return;
        };
        match &self.processes[slot].role {
            Role::Incumbent(role) => match (role.drive.todo.front(), role.hook) {
                (Some(effect), _) if incumbent::failure(effect).is_some() => moves.push(Move::Fail(actor)),
                (Some(_), _) | (None, None | Some(Hook::EndlessResume)) => {}
                (None, Some(Hook::Drain | Hook::Seal)) => moves.push(Move::HookFails(slot)),
                (None, Some(Hook::Resume)) => moves.extend([Move::HookFails(slot), Move::Hangs(slot)]),
            },
            Role::Successor(role) => match role.drive.todo.front() {
                Some(handoff_proto::successor::Effect::Do(_)) => moves.push(Move::Fail(actor)),
                None if matches!(role.daemon, Daemon::OpensStore { .. }) => {
                    moves.extend([Move::OpensUnfit(slot), Move::Hangs(slot)]);
                }
                None if role.daemon == Daemon::Warms => moves.push(Move::Hangs(slot)),
                Some(_) | None => {}
            },
            Role::Nobody | Role::Starting(_) => {}
        }
    }

    // ---- what comes of it

    fn apply(&mut self, next: Move) {
        match next {
            Move::Act(actor) => self.act(actor, Performed::Well),
            Move::Fail(actor) => self.act(actor, Performed::Failing),
            Move::HookEnds(slot) => self.hook_ends(slot, Performed::Well),
            Move::Flushes(slot) => self.flush(slot),
            Move::HookFails(slot) => self.hook_ends(slot, Performed::Failing),
            Move::StoreOpened(slot) => self.store_opened(slot, Performed::Well),
            Move::Hangs(slot) => self.hangs(slot),
            Move::OpensUnfit(slot) => self.store_opened(slot, Performed::Failing),
            Move::FiresInHandover(timer) => {
                if let Job::HandingOver(job) = &mut self.supervisor_mut().job {
                    job.drive.fire(timer, handoff_proto::supervisor::Input::Fired(timer));
                }
                match timer {
                    handoff_proto::supervisor::Timer::Deadline => self.deadline_fired(),
                    handoff_proto::supervisor::Timer::Late => self.slack_fired(),
                    _ => {}
                }
            }
            Move::FiresInRecovery(timer) => {
                if let Job::Recovering(job) = &mut self.supervisor_mut().job {
                    job.drive.fire(timer, handoff_proto::recovery::Input::Fired(timer));
                }
            }
            Move::FiresInIncumbent(slot, timer) => {
                if let Role::Incumbent(role) = &mut self.process_mut(slot).role {
                    role.drive.fire(timer, handoff_proto::incumbent::Input::Fired(timer));
                }
            }
            Move::FiresInSuccessor(slot, timer) => {
                if let Role::Successor(role) = &mut self.process_mut(slot).role {
                    role.drive.fire(timer, handoff_proto::successor::Input::Fired(timer));
                }
            }
            Move::Tick(handover) => {
                let clock = &mut self.clocks[usize::from(handover) - 1];
                *clock = if *clock == Clock::InTime { Clock::Late } else { Clock::VeryLate };
            }
            Move::Outsider(outsider) => self.outsider_acts(outsider),
            Move::StartHandover => self.start_handover(),
            Move::StartCold(slot) => self.start_cold(slot),
            Move::Retire(slot) | Move::EndFrozenDaemon(slot) => self.kill(slot),
            Move::InitRestarts => self.supervisor_restarts(),
            Move::InitEnds | Move::Crash(Actor::Supervisor) => self.supervisor_dies(),
            Move::Crash(Actor::Process(slot)) => self.kill(slot),
            Move::Freeze(actor) => self.set_life(actor, Life::Frozen),
            Move::Thaw(actor) => self.set_life(actor, Life::Running),
        }
    }

    fn set_life(&mut self, actor: Actor, life: Life) {
        match actor {
            Actor::Supervisor => self.supervisor_mut().life = life,
            Actor::Process(slot) => self.process_mut(slot).life = life,
        }
    }

    /// Does what nobody can see and takes what has arrived, until everybody waits or is about to do what others see.
    fn settle(&mut self) {
        let actors = || [Actor::Supervisor].into_iter().chain((0..SLOTS).map(Actor::Process));
        while actors().any(|actor| self.settle_one(actor)) {}
        self.tidy();
    }

    fn settle_one(&mut self, actor: Actor) -> bool {
        let mut moved = false;
        while self.runs(actor) && self.broken.is_none() {
            let step = match self.class(actor) {
                Some(Class::Unseen) => {
                    self.act(actor, Performed::Well);
                    true
                }
                Some(Class::Own | Class::Seen) => false,
                None => self.hear(actor),
            };
            if !step {
                break;
            }
            moved = true;
        }
        moved
    }
}

impl Job {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Settling => "settles",
            Self::Idle => "idle",
            Self::HandingOver(_) => "hands over",
            Self::Recovering(_) => "recovers",
        }
    }
}

impl Role {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::Starting(_) => "starts cold",
            Self::Successor(_) => "successor",
            Self::Incumbent(_) => "incumbent",
        }
    }
}

impl World {
    /// What this move is, in the machine's own words.
    pub fn about_to(&self, next: Move) -> String {
        let (Move::Act(actor) | Move::Fail(actor)) = next else { return String::new() };
        match actor {
            Actor::Supervisor => match &self.supervisor.job {
                Job::HandingOver(job) => format!("{:?}", job.drive.todo.front()),
                Job::Recovering(job) => format!("{:?}", job.drive.todo.front()),
                Job::Nothing | Job::Settling | Job::Idle => String::new(),
            },
            Actor::Process(slot) => match &self.processes[slot].role {
                Role::Incumbent(role) => format!("{:?}", role.drive.todo.front()),
                Role::Successor(role) => format!("{:?}", role.drive.todo.front()),
                Role::Starting(stage) => format!("{stage:?}"),
                Role::Nobody => String::new(),
            },
        }
    }
}
