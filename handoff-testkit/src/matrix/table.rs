//! The one table: which fault at which point must come to what, and within which time. Written by hand from the fault table
//! of `docs/protocol.md`; nothing here is computed by the machines that are put to the test. A test compares the two.
//!
//! The matches have no wildcard: a new point or fault does not compile before it has its expectations.

use std::time::Duration;

use super::besides::{Moved, Times};
use super::points::{Fault, OwnPoint, Place, Point};
use super::{HOLD, PAUSE, RESUME, SHORT_LIMIT, Strike, TIMING};

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

/// What the noticing of a silence costs besides the silence.
const NOTICED: Duration = Duration::from_millis(200);

impl Bound {
    /// As a time.
    pub fn time(self) -> Duration {
        match self {
            Self::Nothing => Duration::ZERO,
            Self::Noticed(within) => within,
            Self::Silence => TIMING.liveness + NOTICED,
            Self::Watched => TIMING.liveness * 2 + NOTICED,
            Self::Unanswered => TIMING.settle + TIMING.liveness * 2 + NOTICED,
            Self::Woken => HOLD + NOTICED,
            Self::Paused => PAUSE + NOTICED,
        }
    }
}

/// What becomes of the data directory's epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epoch {
    /// The old process held the lock throughout: it is as before.
    Stays,
    /// It may have been released and taken again.
    MayRise,
}

/// What must come of one fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Who may serve in the end; several where it depends on who is faster.
    pub serving: &'static [Serving],
    /// How long a client may be without an acknowledgement.
    pub bound: Bound,
    /// Whether the lock was ever let go.
    pub epoch: Epoch,
}

const OLD: &[Serving] = &[Serving::Old];
const NEW: &[Serving] = &[Serving::New];
const FRESH: &[Serving] = &[Serving::Fresh];
const OLD_OR_NEW: &[Serving] = &[Serving::Old, Serving::New];
const ANY: &[Serving] = &[Serving::Old, Serving::New, Serving::Fresh];
const OLD_OR_FRESH: &[Serving] = &[Serving::Old, Serving::Fresh];

/// An owner's lock is free at once, and it resumes.
const RESUMED: Bound = Bound::Noticed(Duration::from_millis(200));
/// An owner that holds the lock learns from its hook's end that it is to go on.
const GOES_ON: Duration = Duration::from_millis(100);
/// The kernel tears the owner down, and the next one recovers its data.
const PROMOTED: Bound = Bound::Noticed(Duration::from_millis(500));
/// The service starts the last good binary.
const RESTARTED: Bound = Bound::Noticed(Duration::from_millis(1000));
/// The daemon that is started first dies too, and another one is started after a short rest.
const RESTARTED_TWICE: Bound = Bound::Noticed(Duration::from_millis(2500));

const fn must(serving: &'static [Serving], bound: Bound) -> Option<Expected> {
    Some(Expected { serving, bound, epoch: Epoch::MayRise })
}

/// The old process never lets the lock go.
const fn holds(bound: Bound) -> Option<Expected> {
    Some(Expected { serving: OLD, bound, epoch: Epoch::Stays })
}

/// What must come of this fault at this point; `None` where the two don't fit: there is nothing that could return an error,
/// or it takes more than one fault to get there.
pub fn expected(point: Point, fault: Fault) -> Option<Expected> {
    use Bound::{Nothing, Paused, Silence, Unanswered, Watched, Woken};
    use Point as P;
    match point {
        // O has not been asked for anything: it never stops.
        P::SAfterOHello | P::SAfterSpawnSuccessor | P::SAfterNHello => match fault {
            Fault::Exit | Fault::Kill | Fault::Stop => holds(Nothing),
            // The successor waits for its supervisor no longer than for a dead one, if there is one already.
            Fault::StopCont => must(OLD_OR_NEW, Nothing),
            Fault::Delay => must(NEW, Nothing),
            Fault::Error => None,
            Fault::Pause => must(NEW, Paused),
        },
        // The request to seal goes with the one to drain: hooks that take no time have returned, and O has sealed. Nobody was told
        // to begin, so it takes the lock back.
        P::SAfterPrepareSent | P::SAfterDrainedRecv | P::SAfterSealRequestSent | P::SAfterSealCompleteRecv => {
            match fault {
                Fault::Exit | Fault::Kill => must(OLD, RESUMED),
                Fault::Stop | Fault::StopCont => must(OLD, Silence),
                Fault::Delay => must(NEW, Woken),
                Fault::Error => None,
                Fault::Pause => must(NEW, Paused),
            }
        }
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
        // No handover is under way.
        P::SInRecovery => match fault {
            Fault::Exit | Fault::Kill | Fault::StopCont | Fault::Delay => holds(Nothing),
            // One that starts is given a minute before another one ends it.
            Fault::Stop | Fault::Error => None,
            Fault::Pause => holds(Paused),
        },
        // Without a seal, N recovers what O left.
        P::OInDrain | P::OInSeal => match fault {
            Fault::Exit | Fault::Kill => must(NEW, PROMOTED),
            Fault::Stop => must(NEW, Silence),
            Fault::StopCont | Fault::Delay => must(NEW, Woken),
            Fault::Error => holds(RESUMED),
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
            Fault::Exit | Fault::Kill | Fault::Stop | Fault::Error => holds(Nothing),
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
        P::Own(OwnPoint { place, .. }) => expected_within(place, fault),
    }
}

/// The same for a point of the daemon's own, by where it is crossed.
fn expected_within(place: Place, fault: Fault) -> Option<Expected> {
    use Bound::{Paused, Silence, Watched, Woken};
    match place {
        // The daemon's half of the runtime's points around its hooks.
        Place::Drain => expected(Point::OInDrain, fault),
        Place::Seal => expected(Point::OInSeal, fault),
        // N does not become Active, and O takes the lock back.
        Place::SealReport => match fault {
            Fault::Error => must(OLD, RESUMED),
            _ => expected(Point::OInSeal, fault),
        },
        Place::Resume => expected(Point::OInResume, fault),
        // The daemon's half of the runtime's points.
        Place::Warming => expected(Point::NAfterHandshake, fault),
        Place::Turn => expected(Point::NAfterBegin, fault),
        Place::Opened => expected(Point::NBeforeAnnounceReady, fault),
        Place::Opening => match fault {
            Fault::Exit | Fault::Kill | Fault::Error => must(OLD, RESUMED),
            Fault::Stop => must(OLD, Silence),
            Fault::StopCont | Fault::Delay => must(NEW, Woken),
            Fault::Pause => must(NEW, Paused),
        },
        // No handover is under way: the service starts the daemon again.
        Place::Write => match fault {
            Fault::Exit | Fault::Kill => must(FRESH, RESTARTED),
            Fault::Stop => must(FRESH, Watched),
            Fault::StopCont | Fault::Delay => holds(Woken),
            Fault::Error => None,
            Fault::Pause => holds(Paused),
        },
        // It was killed before, and this is the one that is started for it.
        Place::ColdStart => match fault {
            Fault::Exit | Fault::Kill | Fault::Error => must(FRESH, RESTARTED_TWICE),
            Fault::Stop => None,
            Fault::StopCont | Fault::Delay => must(FRESH, RESTARTED),
            Fault::Pause => must(FRESH, Paused),
        },
    }
}

/// How long a slow hook takes.
pub(super) const SLOW_HOOK: Duration = Duration::from_millis(300);

/// What must come of a fault when drain and seal take [`SLOW_HOOK`] each, so that the supervisor fails while O is *in* them. O holds the
/// lock, and goes on when its hook has returned.
pub(super) fn expected_with_slow_hooks(point: Point, fault: Fault) -> Option<Expected> {
    let in_a_hook = match point {
        Point::SAfterPrepareSent | Point::SAfterDrainedRecv | Point::SAfterSealRequestSent => true,
        Point::OAfterDrainedSent => return expected(point, fault).filter(|_| fault.is_deadly()).map(with_both_hooks),
        _ => false,
    };
    if !in_a_hook {
        return None;
    }
    match fault {
        Fault::Exit | Fault::Kill => holds(Bound::Noticed(SLOW_HOOK.saturating_mul(2).saturating_add(GOES_ON))),
        // Nobody waits for the supervisor before the hooks have returned; from then on it is silent.
        Fault::Stop | Fault::StopCont => must(OLD, Bound::Silence).map(with_both_hooks),
        Fault::Pause | Fault::Delay | Fault::Error => None,
    }
}

fn with_both_hooks(expected: Expected) -> Expected {
    Expected { bound: Bound::Noticed(expected.bound.time() + 2 * SLOW_HOOK), ..expected }
}

/// How long a successor opens its data in the rows about that: the protocol's 3 s and 30 s, at a tenth.
pub(super) const OPENINGS: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(3000)];

/// What must come of a supervisor's death behind Begin when the successor takes so long to open. Who has the lock first keeps it: O, which
/// sees its supervisor gone, or N, which then serves when it is ready, unless a supervisor that is started again ends it before.
pub(super) fn expected_with_a_slow_opening(fault: Fault, opening: Duration) -> Option<Expected> {
    match fault {
        Fault::Exit | Fault::Kill => must(OLD_OR_NEW, Bound::Noticed(opening + NOTICED)),
        _ => None,
    }
}

/// Two faults in one handover: whoever serves in the end, somebody does. Everything that one fault may cost is added up.
pub(super) fn expected_of_two(first: Expected, second: Expected) -> Expected {
    let time = first.bound.time() + second.bound.time() + Bound::Unanswered.time();
    Expected { serving: ANY, bound: Bound::Noticed(time), epoch: Epoch::MayRise }
}

/// The pauses of a resume that is tried again: 100 ms, and twice as long each time.
const RETRIED_ONCE: Duration = Duration::from_millis(100);
const RETRIED_THRICE: Duration = Duration::from_millis(100 + 200 + 400);

/// What must come of an undone handover when the incumbent's resume fails. One that fails for too long is the death of the incumbent.
pub(super) fn expected_with_a_failing_resume(undone: Expected, times: Times) -> Expected {
    let after = |more| Bound::Noticed(undone.bound.time() + more);
    match times {
        Times::Once => Expected { bound: after(RETRIED_ONCE), ..undone },
        Times::Thrice => Expected { bound: after(RETRIED_THRICE), ..undone },
        Times::Always => {
            let bound = after(RESUME + RESTARTED.time());
            Expected { serving: FRESH, bound, epoch: Epoch::MayRise }
        }
    }
}

/// What must come of an incumbent that is silent when its time is over. Nobody is ended before it is known whether it lives: dead, its
/// successor is promoted; alive, it is undone at its next word.
pub(super) fn expected_beyond_a_limit(fault: Fault) -> Option<Expected> {
    match fault {
        Fault::Stop => must(NEW, Bound::Silence),
        Fault::StopCont => must(OLD, Bound::Noticed(SHORT_LIMIT + HOLD + RESUMED.time())),
        Fault::Exit | Fault::Kill | Fault::Pause | Fault::Delay | Fault::Error => None,
    }
}

/// What must come of an incumbent that dies before its successor is warm: the successor is promoted when it is; the last good build is
/// started when it is not soon.
pub(super) fn expected_of_a_dead_incumbent(Strike { point, fault }: Strike) -> Option<Expected> {
    use Point as P;
    let is_warming = match point {
        P::SAfterOHello | P::SAfterSpawnSuccessor | P::SAfterNHello => false,
        P::NBeforeHandshake | P::NAfterHandshake => true,
        P::SAfterPrepareSent
        | P::SAfterDrainedRecv
        | P::SAfterSealRequestSent
        | P::SAfterSealCompleteRecv
        | P::SAfterBeginSent
        | P::SAfterReadyRecv
        | P::SAfterCommitSent
        | P::SAfterJournalClear
        | P::SInRecovery
        | P::OInDrain
        | P::OAfterDrainedSent
        | P::OInSeal
        | P::OAfterSealFlockReleased
        | P::OAfterSealCompleteSent
        | P::OAfterCommitRecv
        | P::OInResume
        | P::NAfterBegin
        | P::NAfterLock
        | P::NBeforeAnnounceReady
        | P::NAfterReady
        | P::Own(_) => return None,
    };
    match fault {
        Fault::StopCont => must(NEW, PROMOTED),
        Fault::Stop if is_warming => must(FRESH, Bound::Noticed(TIMING.promotion + RESTARTED.time())),
        Fault::Stop | Fault::Exit | Fault::Kill | Fault::Pause | Fault::Delay | Fault::Error => None,
    }
}

/// An owner tries again, after pauses that grow, until its directory is in its place.
const RETRIED: Bound = Bound::Noticed(Duration::from_millis(1000));

/// What must come of a data directory whose name comes to mean another one at this point, until the handover has come to something. It
/// was resolved before: a link that is switched stops only who has not looked yet. Whoever opens it while it is away leaves.
pub(super) fn expected_of_a_moved_data_dir(point: Point, moved: Moved) -> Option<Expected> {
    use Point as P;
    let by_link = moved == Moved::LinkSwitched;
    match point {
        // Before the drain: O never stops.
        P::SAfterOHello | P::SAfterSpawnSuccessor | P::SAfterNHello | P::NBeforeHandshake | P::NAfterHandshake => {
            holds(Bound::Nothing)
        }
        P::SAfterPrepareSent
        | P::SAfterDrainedRecv
        | P::SAfterSealRequestSent
        | P::SAfterSealCompleteRecv
        | P::OInDrain
        | P::OAfterDrainedSent
        | P::OInSeal
        | P::OAfterSealFlockReleased
        | P::NAfterBegin
        | P::NAfterLock
        | P::NBeforeAnnounceReady => {
            if by_link {
                must(NEW, RESUMED)
            } else {
                must(OLD, RETRIED)
            }
        }
        // N is at it meanwhile, and may be Active before.
        P::SAfterBeginSent | P::OAfterSealCompleteSent => must(if by_link { NEW } else { OLD_OR_NEW }, RETRIED),
        // N serves.
        P::OAfterCommitRecv | P::NAfterReady | P::SAfterReadyRecv | P::SAfterCommitSent | P::SAfterJournalClear => {
            must(NEW, RESUMED)
        }
        // N is dead, and nobody but the clock says when it is put back.
        P::OInResume if moved == Moved::Copied => None,
        P::OInResume => must(OLD, RETRIED),
        P::SInRecovery | P::Own(_) => None,
    }
}
