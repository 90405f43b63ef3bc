//! The one table: which fault at which point must come to what, and within which time. Written by hand from the fault table
//! of `docs/protocol.md`; nothing here is computed by the machines that are put to the test.
//!
//! The matches have no wildcard: a new point or fault does not compile before it has its expectations.

use std::time::Duration;

use super::points::{Fault, Point};

/// Who serves when all has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// The process that served before.
    Old,
    /// The successor of the handover that was hit.
    New,
    /// One that was started afterwards.
    Fresh,
}

impl std::fmt::Display for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Old => "old",
            Self::New => "new",
            Self::Fresh => "restarted",
        })
    }
}

/// What the time without service is made of, besides the machine's own slowness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Nobody has to notice anything.
    Nothing,
    /// A death is noticed, and somebody resumes or takes over.
    Noticed(Duration),
    /// A frozen peer is given up.
    Silence,
    /// A frozen daemon is found by the service that looks at it once in an interval, and is started again.
    Watched,
    /// A resume is waited for in vain, and then the frozen daemon is found in the same way.
    Unanswered,
    /// A frozen peer is woken, or a slow one goes on.
    Woken,
    /// The machine is paused, and goes on.
    Paused,
}

/// What must come of one fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Who may serve in the end; several where it depends on who is faster.
    pub serving: &'static [Serving],
    /// How long a client may be without an acknowledgement.
    pub bound: Bound,
}

const OLD: &[Serving] = &[Serving::Old];
const NEW: &[Serving] = &[Serving::New];
const FRESH: &[Serving] = &[Serving::Fresh];
const OLD_OR_NEW: &[Serving] = &[Serving::Old, Serving::New];
const ANY: &[Serving] = &[Serving::Old, Serving::New, Serving::Fresh];
const OLD_OR_FRESH: &[Serving] = &[Serving::Old, Serving::Fresh];

/// An owner's lock is free at once, and it resumes.
const RESUMED: Bound = Bound::Noticed(Duration::from_millis(200));
/// The kernel tears the owner down, and the next one recovers its data.
const PROMOTED: Bound = Bound::Noticed(Duration::from_millis(500));
/// The service starts the last good binary.
const RESTARTED: Bound = Bound::Noticed(Duration::from_millis(1000));

const fn must(serving: &'static [Serving], bound: Bound) -> Option<Expected> {
    Some(Expected { serving, bound })
}

/// What must come of this fault at this point; `None` where the two don't fit: there is nothing that could return an error,
/// or it takes more than one fault to get there.
pub fn expected(point: Point, fault: Fault) -> Option<Expected> {
    use Bound::{Nothing, Paused, Silence, Unanswered, Watched, Woken};
    use Point as P;
    match point {
        // O has not been asked for anything: it never stops.
        P::SAfterOHello | P::SAfterSpawnSuccessor | P::SAfterNHello => match fault {
            Fault::Exit | Fault::Kill | Fault::Stop => must(OLD, Nothing),
            // The successor waits for its supervisor no longer than for a dead one, if there is one already.
            Fault::StopCont => must(OLD_OR_NEW, Nothing),
            Fault::Delay => must(NEW, Nothing),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // O holds the lock.
        P::SAfterPrepareSent | P::SAfterDrainedRecv | P::SAfterSealRequestSent => match fault {
            Fault::Exit | Fault::Kill => must(OLD, RESUMED),
            Fault::Stop | Fault::StopCont => must(OLD, Silence),
            Fault::Delay => must(NEW, Woken),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // O has sealed; nobody was told to begin, so it takes the lock back.
        P::SAfterSealCompleteRecv => match fault {
            Fault::Exit | Fault::Kill => must(OLD, RESUMED),
            Fault::Stop | Fault::StopCont => must(OLD, Silence),
            Fault::Delay => must(NEW, Woken),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // N is at it, and who has the lock first keeps it: N, or O, which sees its supervisor gone. A supervisor that comes
        // back adopts N when it is Active, and ends it when it is not yet.
        P::SAfterBeginSent => match fault {
            Fault::Exit | Fault::Kill => must(OLD_OR_NEW, RESUMED),
            Fault::Stop | Fault::StopCont => must(NEW, Nothing),
            Fault::Delay => must(NEW, Nothing),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // N serves, whatever becomes of the supervisor.
        P::SAfterReadyRecv | P::SAfterCommitSent | P::SAfterJournalClear => match fault {
            Fault::Exit | Fault::Kill | Fault::Stop | Fault::StopCont | Fault::Delay => must(NEW, Nothing),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // Without a seal, N recovers what O left.
        P::OInDrain | P::OInSeal => match fault {
            Fault::Exit | Fault::Kill => must(NEW, PROMOTED),
            Fault::Stop => must(NEW, Silence),
            Fault::StopCont | Fault::Delay => must(NEW, Woken),
            Fault::Error => must(OLD, RESUMED),
            Fault::Pause => must(NEW, Paused),
        },
        P::OAfterDrainedSent | P::OAfterSealFlockReleased => match fault {
            Fault::Exit | Fault::Kill => must(NEW, PROMOTED),
            Fault::Stop => must(NEW, Silence),
            Fault::StopCont | Fault::Delay => must(NEW, Woken),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // O is not needed any more.
        P::OAfterSealCompleteSent | P::OAfterCommitRecv => match fault {
            Fault::Exit | Fault::Kill | Fault::Stop | Fault::StopCont | Fault::Delay => must(NEW, Nothing),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // The successor has failed before; O is all that there is.
        P::OInResume => match fault {
            Fault::Exit | Fault::Kill => must(FRESH, RESTARTED),
            Fault::Stop => must(FRESH, Unanswered),
            Fault::StopCont | Fault::Delay => must(OLD, Woken),
            Fault::Error => must(OLD, RESTARTED),
            Fault::Pause => must(OLD, Paused),
        },
        // O serves until N has warmed up.
        P::NBeforeHandshake | P::NAfterHandshake => match fault {
            Fault::Exit | Fault::Kill | Fault::Stop | Fault::Error => must(OLD, Nothing),
            Fault::StopCont | Fault::Delay => must(NEW, Nothing),
            Fault::Pause => must(NEW, Paused),
        },
        // O has sealed, and takes the lock back from a dead N.
        P::NAfterBegin | P::NAfterLock | P::NBeforeAnnounceReady => match fault {
            Fault::Exit | Fault::Kill | Fault::Error => must(OLD, RESUMED),
            Fault::Stop => must(OLD, Silence),
            Fault::StopCont | Fault::Delay => must(NEW, Woken),
            Fault::Pause => must(NEW, Paused),
        },
        // N is Active: either its death is seen before the commit, or it is on probation.
        P::NAfterReady => match fault {
            Fault::Exit | Fault::Kill => must(OLD_OR_FRESH, RESTARTED),
            // The service tells the one that serves to go on when the old one has left: it may have been stopped by that.
            Fault::Stop => must(ANY, Watched),
            Fault::StopCont | Fault::Delay => must(NEW, Woken),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
    }
}

/// The point at which the successor has to die so that this one is reached at all.
pub(super) fn led_to_by(point: Point) -> Option<Point> {
    (point == Point::OInResume).then_some(Point::NAfterLock)
}
