//! What goes into the incumbent's machine and what comes out of it.

use std::time::Duration;

use crate::lease::{LeaseView, ProcessId};
use crate::machine::Timing;
use crate::message::{HandoffId, Message, Phase};
use crate::version::ProtoVersion;

/// A connection to the control socket, numbered by the driver; a number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What an incumbent knows from the start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// This process.
    pub me: ProcessId,
    /// The epoch under which it holds the lock, lease Active.
    pub epoch: u64,
    /// What it says of its build.
    pub build_id: Vec<u8>,
    /// The intervals.
    pub timing: Timing,
}

/// What a drain achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Drain {
    /// Client connections that stay open.
    pub open_conns_remaining: u32,
    /// Whether no new ones are taken.
    pub accept_closed: bool,
}

/// What a seal left behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Seal {
    /// The last revision of each shard.
    pub last_revision_per_shard: Vec<u64>,
    /// What identifies the sealed data.
    pub data_dir_fingerprint: [u8; 32],
}

/// How far a seal has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Shards that are sealed.
    pub shards_sealed: u32,
    /// Shards in all.
    pub shards_total: u32,
    /// The last revision sealed.
    pub last_revision: u64,
}

/// How a `resume_after_abort` ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ResumeEnd {
    /// The daemon serves.
    Serving,
    /// It failed; it is tried again.
    Failed(String),
    /// A newer build wrote what this one can't read.
    NotReadable(String),
}

/// What came of [`Effect::TryLock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockTried {
    /// The lock is ours; this lease was found under it.
    Locked(Option<LeaseView>),
    /// Somebody holds it.
    Held,
    /// The call failed.
    Failed,
}

/// What can happen to an incumbent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// A peer of a permitted user connected.
    Connected {
        /// Its number.
        session: SessionId,
        /// The peer's pid, if the kernel told it.
        peer_pid: Option<u32>,
    },
    /// A whole message arrived, in a frame of that version.
    Received(SessionId, ProtoVersion, Message),
    /// What arrived is no message.
    Malformed(SessionId),
    /// The peer is gone, or can't be written to.
    Closed(SessionId),

    /// The drain hook returned or panicked.
    DrainEnded(Result<Drain, String>),
    /// The seal hook reports how far it is; only the newest report counts.
    SealProgress(Progress),
    /// The seal hook returned or panicked.
    SealEnded(Result<Seal, String>),
    /// `resume_after_abort` returned or panicked.
    ResumeEnded(ResumeEnd),

    /// Result of [`Effect::PassDirectory`]; after an error the successor has no part in the directory's lock, and the handover
    /// is refused.
    DirectoryPassed(Result<(), String>),
    /// Result of [`Effect::StampLease`].
    Stamped(Result<(), String>),
    /// Result of [`Effect::ReleaseLock`]; after an error the lock is still held.
    Released(Result<(), String>),
    /// Result of [`Effect::ReadLease`]; `Err` when it could not be read.
    LeaseRead(Result<Option<LeaseView>, String>),
    /// Result of [`Effect::FindHolder`]: the pid that holds the lock, if the system shows it.
    HolderFound(Option<u32>),
    /// Result of [`Effect::TryLock`].
    LockTried(LockTried),
    /// Result of [`Effect::ClaimLease`]: the new epoch; after an error the lock is free again.
    Claimed(Result<u64, String>),
    /// Result of [`Effect::ActivateLease`].
    Activated(Result<(), String>),

    /// [`Effect::WatchSuccessor`] found the successor, and will see it end.
    SuccessorWatched,
    /// The watched successor has ended.
    SuccessorExited,
    /// Result of [`Effect::SeeSuccessor`]: it stands still.
    SuccessorStopped,
    /// Result of [`Effect::SeeSuccessor`]: it still runs.
    SuccessorRunning,

    /// Who answers on the control path, if anybody does.
    PathAnswered(Option<u32>),
    /// The control path no longer leads to our socket.
    ControlPathLost,
    /// Result of [`Effect::PublishControl`].
    ControlPublished(Result<(), String>),

    /// A timer ran out.
    Fired(Timer),
    /// The driver's own loop was late: whoever was to be judged by a timer gets a fresh interval.
    WokeLate,
}

/// What an incumbent asks its driver to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send a message, in a frame of that version. If it can't be sent, the session is [`Input::Closed`].
    Send(SessionId, ProtoVersion, Message),
    /// Send a message together with the next one, or before it once that takes longer than a moment. It wakes its reader, who is
    /// in nobody's way when there is more to be read.
    SendWithNext(SessionId, ProtoVersion, Message),
    /// Send a heartbeat with the time of day.
    SendHeartbeat(SessionId, ProtoVersion),
    /// Send a `StatusReport` with the daemon's snapshot.
    SendStatus {
        /// To whom.
        session: SessionId,
        /// The phase to report.
        phase: Option<Phase>,
        /// The epoch to report.
        epoch: u64,
    },
    /// Send the listening sockets, in as many messages as they need.
    SendListeners(SessionId),
    /// Close a session; it has no [`Input::Closed`] of its own.
    Close(SessionId, Why),

    /// Start the drain hook. Ends in [`Input::DrainEnded`].
    RunDrain {
        /// When the drain should have returned, from now.
        grace: Duration,
    },
    /// Start the seal hook. Ends in [`Input::SealEnded`].
    RunSeal,
    /// Tell the hook that is running that the handover is off.
    CancelHook,
    /// Start `resume_after_abort`. Ends in [`Input::ResumeEnded`].
    RunResume {
        /// The daemon must re-read its state from disk.
        state_may_have_changed: bool,
        /// The epoch to write under.
        epoch: u64,
    },

    /// Give the successor a part in the directory's lock, over the channel that came with this session's last
    /// `TransferChannel`. Result: [`Input::DirectoryPassed`].
    PassDirectory(SessionId),
    /// Write the handover's id into the lease. Result: [`Input::Stamped`].
    StampLease(HandoffId),
    /// Write the lease as Sealed and release the lock. Result: [`Input::Released`].
    ReleaseLock(Directory),
    /// Read the lease without the lock. Result: [`Input::LeaseRead`].
    ReadLease,
    /// Find out who holds the lock, without trying it. Result: [`Input::HolderFound`].
    FindHolder,
    /// Try to take the lock, and read the lease under it. Result: [`Input::LockTried`].
    TryLock,
    /// Write our lease, one epoch on, as Opening, under the lock just taken. Result: [`Input::Claimed`].
    ClaimLease,
    /// Write our lease as Active. Result: [`Input::Activated`].
    ActivateLease,
    /// Let go of the lock without writing.
    Unlock,

    /// Watch the successor, if it is what the supervisor says. Answered by [`Input::SuccessorWatched`], or not at all.
    WatchSuccessor {
        /// Its pid.
        pid: u32,
        /// The supervisor: only its own child is a successor that we may ever end.
        parent: u32,
    },
    /// Stop watching it.
    ForgetSuccessor,
    /// Make it stand still.
    StopSuccessor,
    /// See whether it does. Result: [`Input::SuccessorStopped`] or [`Input::SuccessorRunning`].
    SeeSuccessor,
    /// Let it go on.
    ContinueSuccessor,
    /// End it, and remove what it staged beside the control path.
    KillSuccessor,

    /// Keep the status flags of the shared listeners.
    RememberListenerFlags,
    /// Put them back.
    RestoreListenerFlags,
    /// Find out who answers on the control path; [`Input::PathAnswered`] comes later.
    AskControlPath,
    /// The answer is no longer wanted.
    StopAsking,
    /// Make the control path lead to our socket, if it does not. Result: [`Input::ControlPublished`].
    PublishControl,

    /// Start a timer, or start it anew.
    Arm(Timer, Duration),
    /// Stop a timer, if it runs.
    Disarm(Timer),
    /// A handover has come so far; for crash points and logs.
    Reached(HandoffId, Milestone),
    /// `serve` is over; nothing follows.
    Leave(Leaving),
}

/// What becomes of the directory's lock when the data are sealed. The lock file's is released in any case: it decides between
/// incumbent and successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Directory {
    /// No channel came for it, so the successor has no part in it: it is released too.
    Released,
    /// The successor has a part in it: it is never let go, so nobody slips in between the two.
    Passed,
}

/// Why a session is closed; for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The peer sent what is no message, or what is not allowed here.
    Violation,
    /// The peer said nothing for too long.
    Silent,
    /// There are too many sessions, and this one was quiet for longest.
    Crowded,
    /// Another handover is under way.
    Busy,
    /// Its handover ran past its deadline.
    Late,
    /// Its handover failed, and its version has no message to say so.
    Failed,
}

/// The incumbent's timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// A session outside a handover was silent for too long.
    Session(SessionId),
    /// Say that we are alive.
    Heartbeat,
    /// The supervisor was silent for too long while it made us wait.
    Silence,
    /// The handover's deadline.
    Deadline,
    /// The deadline and the slack after it.
    Late,
    /// The next report of a seal's progress may go out.
    Progress,
    /// Look at the lease again.
    Poll,
    /// See whether the successor stands still by now.
    Stopping,
    /// Nobody answered on the control path.
    Ask,
    /// Try the failed lease write or resume again.
    Retry,
    /// Try to publish the control path again.
    Publish,
}

/// How far a handover has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Milestone {
    /// Prepare was accepted.
    Prepared,
    /// `Drained` was sent, or goes with what the seal brings.
    DrainedSent,
    /// The seal hook was started.
    SealStarted,
    /// The lock was released.
    LockReleased,
    /// `SealComplete` was sent.
    SealCompleteSent,
    /// `Commit` was received.
    CommitReceived,
    /// The handover is off; the data are being taken back.
    Aborted,
    /// The supervisor is lost after the seal: the lease decides.
    InLimbo,
    /// The lock was taken back.
    LockRetaken,
    /// `resume_after_abort` failed.
    ResumeFailed,
    /// The daemon serves again.
    Resumed,
    /// Somebody else owns the data.
    Superseded,
}

/// How `serve` ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// The handover was committed.
    Committed,
    /// A newer owner was found.
    Superseded,
    /// A newer build wrote what this one can't read; the lock is free.
    NotReadable(String),
}
