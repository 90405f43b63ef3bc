//! Where a fault happens, and which: every crash point of the runtime, those of the daemon under test, and every way in which a
//! process can fail there.
//!
//! The runtime's points are those of `handoff_runtime::crash::points`; a test compares the two lists, and the table of expectations is
//! an exhaustive match over both enums here, so none can be forgotten.

use std::fmt;

use handoff_runtime::crash::points;

/// Who is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// S: owns the listeners, orders the handover.
    Supervisor,
    /// O: serves at first.
    Incumbent,
    /// N: is to serve.
    Successor,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Supervisor => "supervisor",
            Self::Incumbent => "incumbent",
            Self::Successor => "successor",
        })
    }
}

/// A crash point of the daemon's own: `crash_here!(NAME)` in its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnPoint {
    /// What `crash_here!` is given.
    pub name: &'static str,
    /// Which part of the daemon crosses it.
    pub place: Place,
    /// What may happen there: [`Fault::PROCESS`], or [`Fault::ALL`] where the daemon asks `crash::maybe_fail` too.
    pub faults: &'static [Fault],
}

/// Which part of a daemon crosses a point of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The drain hook, before it returns.
    Drain,
    /// The seal hook, before it returns.
    Seal,
    /// The resume hook, before it returns.
    Resume,
    /// What the seal hook reports: an error makes it report what is not so, and the successor must see that.
    SealReport,
    /// A successor's start-up, before it says that it is warm.
    Warming,
    /// A successor's turn, before it takes the lock.
    Turn,
    /// A successor's opening of its data, under the lock.
    Opening,
    /// The same when it has opened them, before it announces itself.
    Opened,
    /// The write path of the process that serves.
    Write,
    /// The opening of a daemon that is started when none serves.
    ColdStart,
}

impl Place {
    fn role(self) -> Role {
        match self {
            Self::Warming | Self::Turn | Self::Opening | Self::Opened => Role::Successor,
            Self::Drain | Self::Seal | Self::SealReport | Self::Resume | Self::Write | Self::ColdStart => {
                Role::Incumbent
            }
        }
    }
}

/// What brings a process to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provocation {
    Upgrade,
    /// The clients' own writes do.
    Nothing,
    DeathOfTheDaemon,
    DeathOfTheSupervisor,
}

macro_rules! points {
    ($($point:ident = $name:ident, $role:ident;)+) => {
        /// A named place in a handover; see [`handoff_runtime::crash::points`] for what each means.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Point {
            $($point,)+
            /// One of the daemon's own.
            Own(OwnPoint),
        }

        impl Point {
            /// All points of the runtime, in the order of a handover, role by role.
            pub const ALL: &[Self] = &[$(Self::$point),+];

            /// What `HANDOFF_CRASH_AT` calls it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => points::$name,)+
                    Self::Own(own) => own.name,
                }
            }

            /// Who comes by.
            pub fn role(self) -> Role {
                match self {
                    $(Self::$point => Role::$role,)+
                    Self::Own(own) => own.place.role(),
                }
            }
        }
    };
}

points! {
    SAfterOHello = S_AFTER_O_HELLO, Supervisor;
    SAfterSpawnSuccessor = S_AFTER_SPAWN_SUCCESSOR, Supervisor;
    SAfterNHello = S_AFTER_N_HELLO, Supervisor;
    SAfterPrepareSent = S_AFTER_PREPARE_SENT, Supervisor;
    SAfterDrainedRecv = S_AFTER_DRAINED_RECV, Supervisor;
    SAfterSealRequestSent = S_AFTER_SEAL_REQUEST_SENT, Supervisor;
    SAfterSealCompleteRecv = S_AFTER_SEAL_COMPLETE_RECV, Supervisor;
    SAfterBeginSent = S_AFTER_BEGIN_SENT, Supervisor;
    SAfterReadyRecv = S_AFTER_READY_RECV, Supervisor;
    SAfterCommitSent = S_AFTER_COMMIT_SENT, Supervisor;
    SAfterJournalClear = S_AFTER_JOURNAL_CLEAR, Supervisor;
    SInRecovery = S_IN_RECOVERY, Supervisor;
    OInDrain = O_IN_DRAIN, Incumbent;
    OAfterDrainedSent = O_AFTER_DRAINED_SENT, Incumbent;
    OInSeal = O_IN_SEAL, Incumbent;
    OAfterSealFlockReleased = O_AFTER_SEAL_FLOCK_RELEASED, Incumbent;
    OAfterSealCompleteSent = O_AFTER_SEAL_COMPLETE_SENT, Incumbent;
    OAfterCommitRecv = O_AFTER_COMMIT_RECV, Incumbent;
    OInResume = O_IN_RESUME, Incumbent;
    NBeforeHandshake = N_BEFORE_HANDSHAKE, Successor;
    NAfterHandshake = N_AFTER_HANDSHAKE, Successor;
    NAfterBegin = N_AFTER_BEGIN, Successor;
    NAfterLock = N_AFTER_LOCK, Successor;
    NBeforeAnnounceReady = N_BEFORE_ANNOUNCE_READY, Successor;
    NAfterReady = N_AFTER_READY, Successor;
}

impl Point {
    /// What has to happen for it to be reached.
    pub(super) fn provoked_by(self) -> Provocation {
        match self {
            Self::SInRecovery => Provocation::DeathOfTheSupervisor,
            Self::Own(OwnPoint { place: Place::Write, .. }) => Provocation::Nothing,
            Self::Own(OwnPoint { place: Place::ColdStart, .. }) => Provocation::DeathOfTheDaemon,
            _ => Provocation::Upgrade,
        }
    }

    /// Whether an error there is the daemon's own, which it gives to the library: whoever ordered the handover must be told of it.
    pub(super) fn is_told_of(self) -> bool {
        match self {
            Self::Own(own) => match own.place {
                Place::Drain | Place::Seal | Place::Warming | Place::Turn | Place::Opening | Place::Opened => true,
                Place::Resume | Place::SealReport | Place::Write | Place::ColdStart => false,
            },
            _ => false,
        }
    }

    /// The point at which the successor has to die so that this one is reached at all.
    pub(super) fn led_to_by(self) -> Option<Self> {
        match self {
            Self::OInResume | Self::Own(OwnPoint { place: Place::Resume, .. }) => Some(Self::NAfterLock),
            _ => None,
        }
    }
}

/// How a process fails at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// `_exit(99)`. A supervisor is started again at once.
    Exit,
    /// SIGKILL. A supervisor is started again only when the two others have settled it between themselves.
    Kill,
    /// SIGSTOP, and nobody wakes it. Beside a frozen supervisor a second one is started when the others have settled it.
    Stop,
    /// SIGSTOP, and SIGCONT: a daemon wakes while its peers still wait for it, a supervisor when they have given it up.
    StopCont,
    /// All processes stand still, as those of a virtual machine do that is paused, for longer than their peers wait; then all
    /// go on.
    Pause,
    /// It sleeps at the point, for less than its peers wait for it.
    Delay,
    /// The hook, or the library's call, that is under way at the point returns an error.
    Error,
}

impl Fault {
    /// All faults.
    pub const ALL: &[Self] =
        &[Self::Exit, Self::Kill, Self::Stop, Self::StopCont, Self::Pause, Self::Delay, Self::Error];

    /// Those that befall a process from outside.
    pub const PROCESS: &[Self] = &[Self::Exit, Self::Kill, Self::Stop, Self::StopCont, Self::Pause, Self::Delay];

    /// Its name in reports and filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::StopCont => "stop-cont",
            Self::Pause => "pause",
            Self::Delay => "delay",
            Self::Error => "error",
        }
    }

    /// Whether the process that is hit ends by it, at once or when others have given it up.
    pub(super) fn is_deadly(self) -> bool {
        matches!(self, Self::Exit | Self::Kill | Self::Stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_of_the_runtime_is_here() {
        let here: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(here, points::ALL, "a new point needs a line here, and then one in the table");
        for point in Point::ALL {
            let expected = match point.role() {
                Role::Supervisor => "s-",
                Role::Incumbent => "o-",
                Role::Successor => "n-",
            };
            assert!(point.name().starts_with(expected), "{point:?} is another role's");
        }
    }
}
