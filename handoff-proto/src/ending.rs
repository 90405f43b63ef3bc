//! How a process is ended that may be taking over: it is told to stand still, then the lease is read, and only one that does not
//! own the data is killed. Looked at first and killed later, one that has begun to serve in between would die after its
//! incumbent has left.
//!
//! ```text
//!  Stopping ─it stands still─▶ Looking ─it owns the data─▶ let go on
//!                               ▲   │ └─it does not──────▶ Killed
//!                               └───┘ the lease can't be read: it is seen again whether it stands still, and then the lease
//! ```
//!
//! Three roles do this: a supervisor that undoes a handover, one that was started again, and an incumbent in limbo. What they
//! share is here: the order, and who is killed. Each says for itself what a lease means to it, how long it waits, and what an
//! [`Act`] is in its own effects.

use std::time::Duration;

use crate::lease::{LeaseState, LeaseView, ProcessId};
use crate::supervisor::{LeaseReading, Stopped};

/// How soon a process that was sent SIGSTOP is looked at again. Most have stopped at the first look.
pub(crate) const SEE_AGAIN: Duration = Duration::from_millis(2);

/// How far the end of a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// It was sent SIGSTOP: what is decided next must not be overtaken by it.
    Stopping,
    /// It stands still; the lease decides.
    Looking,
    /// It was sent SIGKILL.
    Killed,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Send SIGSTOP, and see whether it stands still.
    Stop,
    /// See whether it stands still by now.
    See,
    /// The same after [`SEE_AGAIN`].
    SeeLater,
    /// Read the lease.
    Read,
    /// See again a little later, and read then: somebody else may let it go on meanwhile.
    ReadLater,
    /// Send SIGCONT: it is not to be ended.
    LetGoOn,
    /// Send SIGKILL.
    Kill,
}

/// What the lease says of a process that stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It owns the data, or is no longer ours to end.
    Spares,
    /// It does not own them, and will not as long as it stands still.
    Ends,
    /// The lease can't be read.
    None,
}

/// What becomes of a process whose lease could not be read for all the time that there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Somebody else is there for the data: nobody's hang on this process.
    Kills,
    /// Nobody else is known.
    Spares,
}

impl Stage {
    /// The first step.
    pub(crate) fn begin() -> (Self, Act) {
        (Self::Stopping, Act::Stop)
    }

    /// Whether it stands still is known.
    pub(crate) fn seen(self, stopped: Stopped) -> Option<(Self, Act)> {
        match (self, stopped) {
            (Self::Stopping | Self::Looking, Stopped::Yes) => Some((Self::Looking, Act::Read)),
            (Self::Stopping | Self::Looking, Stopped::NotYet) => Some((self, Act::SeeLater)),
            (Self::Killed, _) => None,
        }
    }

    /// The time of a later look has come.
    pub(crate) fn again(self) -> Option<(Self, Act)> {
        (self != Self::Killed).then_some((self, Act::See))
    }

    /// The lease was read.
    pub(crate) fn judged(self, sign: Sign) -> Option<(Self, Act)> {
        match (self, sign) {
            (Self::Looking, Sign::Spares) => Some((Self::Looking, Act::LetGoOn)),
            (Self::Looking, Sign::Ends) => Some((Self::Killed, Act::Kill)),
            (Self::Looking, Sign::None) => Some((Self::Looking, Act::ReadLater)),
            (Self::Stopping | Self::Killed, _) => None,
        }
    }

    /// It has had all the time that there was. One that can't be stopped stands still in a call of the kernel and has served
    /// nobody: the lease decides. None: it was killed, and the kernel still holds it.
    pub(crate) fn overdue(self, unread: Unread) -> Option<(Self, Act)> {
        match (self, unread) {
            (Self::Stopping, _) => Some((Self::Looking, Act::Read)),
            (Self::Looking, Unread::Kills) => Some((Self::Killed, Act::Kill)),
            (Self::Looking, Unread::Spares) => Some((Self::Looking, Act::LetGoOn)),
            (Self::Killed, _) => None,
        }
    }
}

/// What the lease says of `process` to a supervisor.
pub(crate) fn sign(reading: &LeaseReading, process: ProcessId) -> Sign {
    match reading {
        LeaseReading::Found(lease) if is_active(lease, process) => Sign::Spares,
        LeaseReading::Found(_) | LeaseReading::Nobody => Sign::Ends,
        LeaseReading::Unreadable(_) => Sign::None,
    }
}

fn is_active(lease: &LeaseView, process: ProcessId) -> bool {
    lease.owner == process && lease.state == LeaseState::Active
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: ProcessId = ProcessId { pid: 200, start_time: 2 };

    #[test]
    fn nobody_is_killed_before_it_stands_still_and_was_looked_at() {
        let (stopping, act) = Stage::begin();
        assert_eq!(act, Act::Stop);
        for sign in [Sign::Spares, Sign::Ends, Sign::None] {
            assert_eq!(stopping.judged(sign), None, "it may still run");
        }
        for unread in [Unread::Kills, Unread::Spares] {
            assert_eq!(stopping.overdue(unread), Some((Stage::Looking, Act::Read)));
        }
        assert_eq!(stopping.seen(Stopped::NotYet), Some((Stage::Stopping, Act::SeeLater)));
        assert_eq!(stopping.seen(Stopped::Yes), Some((Stage::Looking, Act::Read)));
        assert_eq!(stopping.again(), Some((stopping, Act::See)));
    }

    /// An incumbent and a supervisor may both be at it.
    #[test]
    fn before_another_look_it_is_seen_again_whether_it_stands_still() {
        let (looking, _) = Stage::Stopping.seen(Stopped::Yes).unwrap();
        assert_eq!(looking.judged(Sign::None), Some((looking, Act::ReadLater)));
        assert_eq!(looking.again(), Some((looking, Act::See)));
        assert_eq!(looking.seen(Stopped::NotYet), Some((looking, Act::SeeLater)));
        assert_eq!(looking.seen(Stopped::Yes), Some((looking, Act::Read)));
    }

    #[test]
    fn the_lease_decides() {
        assert_eq!(Stage::Looking.judged(Sign::Spares), Some((Stage::Looking, Act::LetGoOn)));
        assert_eq!(Stage::Looking.judged(Sign::Ends), Some((Stage::Killed, Act::Kill)));
        assert_eq!(Stage::Looking.judged(Sign::None), Some((Stage::Looking, Act::ReadLater)));
        assert_eq!(Stage::Looking.overdue(Unread::Spares), Some((Stage::Looking, Act::LetGoOn)));
        assert_eq!(Stage::Looking.overdue(Unread::Kills), Some((Stage::Killed, Act::Kill)));
    }

    #[test]
    fn one_that_was_killed_is_only_waited_for() {
        let killed = Stage::Killed;
        assert_eq!((killed.again(), killed.overdue(Unread::Kills), killed.judged(Sign::Spares)), (None, None, None));
        assert_eq!(killed.seen(Stopped::Yes), None);
        assert_eq!(killed.seen(Stopped::NotYet), None);
    }

    #[test]
    fn only_the_active_owner_is_spared() {
        let lease = |owner, state| LeaseReading::Found(LeaseView { epoch: 3, owner, state, handoff_id: None });
        assert_eq!(sign(&lease(N, LeaseState::Active), N), Sign::Spares);
        let same_pid = ProcessId { start_time: 3, ..N };
        for other in [lease(N, LeaseState::Opening), lease(N, LeaseState::Sealed), lease(same_pid, LeaseState::Active)]
        {
            assert_eq!(sign(&other, N), Sign::Ends);
        }
        assert_eq!(sign(&LeaseReading::Nobody, N), Sign::Ends);
        assert_eq!(sign(&LeaseReading::Unreadable(String::new()), N), Sign::None);
    }
}
