//! A daemon's process: how it lives, which role its machine plays, and what the kernel keeps for it.

use std::collections::VecDeque;

use handoff_proto::incumbent::{self, SessionId};
use handoff_proto::{HandoffId, LeaseView, Message, ProcessId, Timing, successor};

use super::drive::Drive;

/// Where a process stands in the world's table.
pub type Slot = usize;

pub(super) type IncumbentDrive = Drive<incumbent::Incumbent, incumbent::Input, incumbent::Effect, incumbent::Timer>;
pub(super) type SuccessorDrive = Drive<successor::Successor, successor::Input, successor::Effect, successor::Timer>;

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Running,
    /// By a fault; it may wake up at any time.
    Frozen,
    /// By a SIGSTOP of one of the roles.
    Stopped,
    Dead,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    pub(super) life: Life,
    pub(super) parent: Parent,
    pub(super) role: Role,
    /// Who has it open can write.
    pub(super) store: Store,
    pub(super) memory: Memory,
    pub(super) service: Service,
    /// The socketpair to the supervisor that started it as a successor.
    pub(super) channel: Option<Pipe>,
    /// The connections to its control socket.
    pub(super) sessions: Vec<Session>,
}

/// Whether the supervisor that started it lives: only then is it seen as its child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    Lives,
    Died,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Store {
    Closed,
    Open,
}

/// Whether what it has in memory is what is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Memory {
    AsOnDisk,
    Outdated,
}

/// Whether it acknowledges clients' writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Service {
    Serves,
    Silent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Nobody,
    Starting(Starting),
    Successor(SuccessorRole),
    Incumbent(IncumbentRole),
}

/// How far a daemon is that was started cold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Starting {
    Locking,
    Claiming,
    Publishing,
    Activating,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SuccessorRole {
    pub(super) drive: SuccessorDrive,
    /// The number of its handover.
    pub(super) handover: u8,
    pub(super) daemon: Daemon,
    pub(super) activation: Activation,
    /// The epoch that `BeginWith` named.
    pub(super) begun_epoch: u64,
}

/// What the successor's daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Daemon {
    /// It loads what it can without the data.
    Warms,
    /// It waits in a call.
    Calls,
    OpensStore {
        epoch: u64,
    },
    /// What it is at never ends; its library's thread lives, and beats.
    Hangs,
    Exits,
}

/// The look at the clock and the write of Active are two acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Activation {
    NotLooked,
    InTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct IncumbentRole {
    pub(super) drive: IncumbentDrive,
    pub(super) hook: Option<Hook>,
    /// The successor that it watches by a pidfd.
    pub(super) watched: Option<ProcessId>,
    pub(super) resume: Resume,
    /// The handover that it last agreed to.
    pub(super) handover: Option<HandoffId>,
    /// The lease as it last read it without the lock.
    pub(super) read: Option<LeaseView>,
}

/// The hook that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Hook {
    Drain,
    Seal,
    Resume,
    /// One that never ends; its library's thread lives, and beats.
    EndlessResume,
}

/// Whether a drain was begun that no resume has answered yet (promise 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Resume {
    Owed,
    NotOwed,
}

/// One connection between the supervisor and a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Pipe {
    pub(super) to_process: VecDeque<Message>,
    pub(super) to_supervisor: VecDeque<Message>,
    /// What its process has still to send: with the next message, or a moment later.
    pub(super) unsent: VecDeque<Message>,
    pub(super) supervisor_end: End,
    pub(super) process_end: End,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) enum End {
    #[default]
    Open,
    Closed,
    /// Closed, and the other side knows.
    Noticed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) greeting: Accepted,
    /// The handover to whose successor it has brought a channel.
    pub(super) channel_for: Option<HandoffId>,
    pub(super) pipe: Pipe,
}

/// Whether the process has taken the connection from its backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Accepted {
    NotYet,
    Yes,
}

impl Process {
    /// A process that was just started.
    pub(super) fn new(id: ProcessId, role: Role) -> Self {
        Self {
            id,
            life: Life::Running,
            parent: Parent::Lives,
            role,
            store: Store::Closed,
            memory: Memory::Outdated,
            service: Service::Silent,
            channel: None,
            sessions: Vec::new(),
        }
    }

    /// A place where no process is.
    pub(super) fn nobody(id: ProcessId) -> Self {
        Self { life: Life::Dead, parent: Parent::Died, ..Self::new(id, Role::Nobody) }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.life != Life::Dead
    }

    pub(super) fn runs(&self) -> bool {
        self.life == Life::Running
    }

    /// Whether a drain was begun in it that no resume has answered yet.
    pub(super) fn owes_its_resume(&self) -> bool {
        matches!(&self.role, Role::Incumbent(role) if role.resume == Resume::Owed)
    }

    /// Whether its daemon never comes to an end of what it is at, while its library's thread lives.
    pub(super) fn hangs(&self) -> bool {
        match &self.role {
            Role::Nobody | Role::Starting(_) => false,
            Role::Successor(role) => role.daemon == Daemon::Hangs,
            Role::Incumbent(role) => role.hook == Some(Hook::EndlessResume),
        }
    }

    /// Whether this is the handover that it last agreed to.
    pub(super) fn agreed_to(&self, id: HandoffId) -> bool {
        matches!(&self.role, Role::Incumbent(role) if role.handover == Some(id))
    }

    pub(super) fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    pub(super) fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.iter().find(|session| session.id == id)
    }

    /// The smallest number that no open session has: a machine forgets a session that was closed.
    pub(super) fn free_session(&self) -> SessionId {
        let mut id = SessionId(0);
        while self.session(id).is_some() {
            id = SessionId(id.0 + 1);
        }
        id
    }

    /// A process that serves under this epoch.
    pub(super) fn becomes_incumbent(&mut self, epoch: u64) {
        self.role = Role::Incumbent(IncumbentRole {
            drive: Drive::new(self.new_incumbent(epoch)),
            hook: None,
            watched: None,
            resume: Resume::NotOwed,
            handover: None,
            read: None,
        });
        self.service = Service::Serves;
    }

    /// The machine of an incumbent that has just begun to serve.
    pub(super) fn new_incumbent(&self, epoch: u64) -> incumbent::Incumbent {
        let timing = Timing::default();
        incumbent::Incumbent::new(incumbent::Config { me: self.id, epoch, build_id: Vec::new(), timing })
    }

    /// What the kernel does at its end, but for the lock.
    pub(super) fn dies(&mut self) {
        self.life = Life::Dead;
        self.role = Role::Nobody;
        self.store = Store::Closed;
        self.memory = Memory::Outdated;
        self.service = Service::Silent;
        self.parent = Parent::Died;
        let pipes = self.channel.iter_mut().chain(self.sessions.iter_mut().map(|session| &mut session.pipe));
        pipes.for_each(Pipe::process_closes);
    }

    /// The supervisor's process ends, and with it its end of every connection.
    pub(super) fn supervisor_dies(&mut self) {
        self.parent = Parent::Died;
        let pipes = self.channel.iter_mut().chain(self.sessions.iter_mut().map(|session| &mut session.pipe));
        pipes.for_each(Pipe::supervisor_closes);
    }

    /// Drops what nobody can see any more.
    pub(super) fn tidy(&mut self) {
        let is_over = |pipe: &Pipe| pipe.supervisor_end != End::Open && pipe.process_end != End::Open;
        if self.channel.as_ref().is_some_and(is_over) {
            self.channel = None;
        }
        self.sessions.retain(|session| !is_over(&session.pipe));
    }
}

impl Pipe {
    pub(super) fn process_closes(&mut self) {
        if self.process_end == End::Open {
            self.process_end = End::Closed;
        }
        self.to_process.clear();
        self.unsent.clear();
    }

    pub(super) fn supervisor_closes(&mut self) {
        if self.supervisor_end == End::Open {
            self.supervisor_end = End::Closed;
        }
        self.to_supervisor.clear();
        self.unsent.clear();
    }

    pub(super) fn send_to_process(&mut self, message: Message) {
        if self.process_end == End::Open {
            self.to_process.push_back(without_text(message));
        }
    }

    pub(super) fn send_to_supervisor(&mut self, message: Message) {
        if self.supervisor_end == End::Open {
            self.flush();
            self.to_supervisor.push_back(without_text(message));
        }
    }

    pub(super) fn send_to_supervisor_with_next(&mut self, message: Message) {
        if self.supervisor_end == End::Open {
            self.unsent.push_back(without_text(message));
        }
    }

    pub(super) fn flush(&mut self) {
        self.to_supervisor.append(&mut self.unsent);
    }
}

/// Nobody decides by a text: one state instead of many.
fn without_text(mut message: Message) -> Message {
    match &mut message {
        Message::Abort { reason: text, .. }
        | Message::DrainFailed { error: text, .. }
        | Message::SealFailed { error: text, .. }
        | Message::NotReady { reason: text, .. } => text.clear(),
        _ => {}
    }
    message
}
