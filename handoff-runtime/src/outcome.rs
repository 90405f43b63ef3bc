//! What a handover is asked for and what comes of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use handoff_journal::StateJournal;
use handoff_proto::HandoffId;
use handoff_proto::supervisor::Standing;

use crate::process::Process;

/// The program that is to take over, and how long it may take.
#[derive(Debug, Clone)]
pub struct SpawnSpec {
    /// The program. A name without a slash is looked up in `PATH`.
    pub binary: PathBuf,
    /// Its arguments, without its own name.
    pub args: Vec<OsString>,
    /// Added to the environment that it inherits.
    pub env: Vec<(OsString, OsString)>,
    /// The bound on the handover, from the moment in which the incumbent is asked to drain.
    pub deadline: Duration,
    /// The bound on the drain.
    pub drain_grace: Duration,
    /// How long the successor may load what it can without the data. The incumbent serves meanwhile.
    pub warm: Duration,
    /// How long the successor may go on opening its data without a word of progress
    /// ([`OpenProgress`](crate::OpenProgress)). Nobody serves meanwhile.
    pub open: Duration,
    /// How long the incumbent may take to serve again after an abort. One that needs longer counts as dead and is ended, unless the
    /// watchdog spares it.
    pub resume: Duration,
}

impl SpawnSpec {
    /// A program without arguments: deadline 300 s, drain 60 s, warm-up 60 s, opening 10 s, resume 30 s.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            args: Vec::new(),
            env: Vec::new(),
            deadline: Duration::from_secs(300),
            drain_grace: Duration::from_secs(60),
            warm: Duration::from_secs(60),
            open: Duration::from_secs(10),
            resume: Duration::from_secs(30),
        }
    }
}

/// What came of a handover whose successor was started.
#[derive(Debug)]
#[non_exhaustive]
pub struct HandoffOutcome {
    /// The handover.
    pub handoff_id: HandoffId,
    /// Whether the successor serves now.
    pub committed: bool,
    /// What is known of the process that was the incumbent (promise 6).
    pub incumbent: OldProcess,
    /// Why it was not committed; the text of a failed hook is kept in it, and a successor's own words.
    pub abort_reason: Option<String>,
    /// The successor after a commit. After an abort it is gone and reaped, except when the kernel still held it.
    pub child: Option<Process>,
    /// How long it took.
    pub timings: Timings,
    /// The process that was the incumbent when it began.
    pub old_pid: u32,
    /// The epoch under which the successor writes, after a commit and where a lease says it.
    pub epoch: Option<u64>,
}

/// What is known of the old process at the end of a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "service", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum OldProcess {
    /// The successor has taken its place.
    Replaced,
    /// It serves: it said so, or was never asked to stop.
    Serves,
    /// It lives, takes its data back by itself, and was not heard to serve again. One of version 1 never says so.
    NotHeard,
    /// It is dead.
    Dead,
}

impl OldProcess {
    /// As in the JSON and in the history.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Serves => "serves",
            Self::NotHeard => "not_heard",
            Self::Dead => "dead",
        }
    }
}

impl From<Standing> for OldProcess {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Serves => Self::Serves,
            Standing::NotHeard => Self::NotHeard,
            Standing::Dead => Self::Dead,
        }
    }
}

/// How long the parts of a handover took; zero for those that it did not come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Starting the successor, until its greeting.
    pub spawn: Duration,
    /// From its greeting until it was warmed.
    pub warm: Duration,
    /// From asking the incumbent to drain until it had.
    pub drain: Duration,
    /// From asking it to seal until it had.
    pub seal: Duration,
    /// From the successor's turn until it was ready.
    pub begin_to_ready: Duration,
    /// The whole call.
    pub total: Duration,
    /// From asking the incumbent to drain until the successor was ready: how long nobody may have served.
    pub pause: Duration,
}

/// What a restarted supervisor found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recovery {
    /// Who serves, or will by itself. None: nobody lives, and a daemon may be started.
    pub serving: Option<Process>,
    /// The handover that was under way when the supervisor before this one ended.
    pub interrupted: Option<StateJournal>,
    /// The old process of the last handover whose successor serves, if it has not left yet.
    pub retiring: Option<Process>,
    /// Whether the supervisor has the listeners of who serves.
    pub listeners: GivenBack,
}

/// What came of asking a living incumbent for its listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenBack {
    /// All that it keeps; none from one of version 1.
    All,
    /// It did not answer.
    NotInTime,
    /// Nobody lives.
    NobodyAsked,
}
