//! The rows: one for each fault that the table has an expectation for, and those in which something else goes on besides.

use std::time::Duration;

use super::besides::{Limits, Meanwhile, Moved, Times};
use super::points::{Fault, OwnPoint, Place, Point};
use super::table::{
    self, Bound, Expected, OPENINGS, Serving, expected, expected_of_two, expected_with_a_slow_opening,
    expected_with_slow_hooks,
};
use super::{Matrix, matches};

/// One fault at one point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// Where it happens, and to whom.
    pub point: Point,
    /// What happens.
    pub fault: Fault,
}

/// How the daemon's hooks and its opening go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// As long as they take.
    AsTheyAre,
    /// Drain and seal take so long that a fault strikes while the incumbent is in them.
    Slow,
    /// The successor's opening takes this long.
    Opening(Duration),
    /// The incumbent's resume fails.
    FailingResume(Times),
}

/// Who is there besides the service and its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nobody.
    Nobody,
    /// One that waits for the data directory's lock, and second daemons that are started in a loop. Neither gets in.
    Strangers,
}

/// A fault, and what must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Where it happens, and to whom.
    pub point: Point,
    /// What happens.
    pub fault: Fault,
    /// What the daemon does meanwhile.
    pub hooks: Hooks,
    /// A second fault, which may strike while the first one is being settled.
    pub second: Option<Strike>,
    /// Who is there meanwhile.
    pub beside: Beside,
    /// What the order allows.
    pub limits: Limits,
    /// What the world does.
    pub meanwhile: Meanwhile,
    /// What must come of it.
    pub expected: Expected,
}

/// Second faults that meet the ones who settle the first: the likely pairs. Others are drawn, see [`Matrix::pairs`].
pub(super) const LIKELY_PAIRS: &[(Strike, Strike)] = &[
    (strike(Point::SAfterBeginSent, Fault::Kill), strike(Point::NAfterLock, Fault::Kill)),
    (strike(Point::SAfterSealCompleteRecv, Fault::Exit), strike(Point::SInRecovery, Fault::Exit)),
    (strike(Point::SAfterReadyRecv, Fault::Exit), strike(Point::SInRecovery, Fault::Kill)),
    (strike(Point::SAfterPrepareSent, Fault::Exit), strike(Point::OInResume, Fault::Error)),
    (strike(Point::OInDrain, Fault::Kill), strike(Point::NAfterLock, Fault::Kill)),
    (strike(Point::OInSeal, Fault::Error), strike(Point::OInResume, Fault::Kill)),
    (strike(Point::OAfterSealCompleteSent, Fault::Kill), strike(Point::NBeforeAnnounceReady, Fault::Kill)),
    (strike(Point::NAfterLock, Fault::Kill), strike(Point::OInResume, Fault::Error)),
    (strike(Point::NBeforeAnnounceReady, Fault::Error), strike(Point::OInResume, Fault::Kill)),
    (strike(Point::NAfterReady, Fault::Kill), strike(Point::OInResume, Fault::Delay)),
];

/// Whether the service lives throughout, so that its lock on the directory does: whoever waits for it never gets it.
const fn lives_throughout(point: Point) -> bool {
    // The only one that is left dies, or may be.
    !matches!(point, Point::OInResume | Point::NAfterReady)
}

/// Faults after which the incumbent resumes: with the lock held throughout, and with the lock let go and taken back.
const ABORTS: &[Strike] = &[
    strike(Point::OInDrain, Fault::Error),
    strike(Point::OInSeal, Fault::Error),
    strike(Point::NAfterBegin, Fault::Kill),
    strike(Point::NAfterLock, Fault::Kill),
    strike(Point::NBeforeAnnounceReady, Fault::Kill),
    strike(Point::SAfterPrepareSent, Fault::Exit),
    strike(Point::SAfterDrainedRecv, Fault::Exit),
    strike(Point::SAfterSealRequestSent, Fault::Exit),
    strike(Point::SAfterSealCompleteRecv, Fault::Exit),
];

/// Where the incumbent is silent in the time that it has for its drain, or for its seal.
const SILENT: &[(Point, Limits)] = &[
    (Point::OInDrain, Limits::ShortGrace),
    (Point::OInDrain, Limits::ShortDeadline),
    (Point::OAfterDrainedSent, Limits::ShortDeadline),
    (Point::OInSeal, Limits::ShortDeadline),
    (Point::OAfterSealFlockReleased, Limits::ShortDeadline),
];

/// Undone and committed handovers, behind which the data directory's name comes to mean another one.
const BETWEEN_HANDOVERS: &[Strike] =
    &[strike(Point::NAfterLock, Fault::Kill), strike(Point::OAfterCommitRecv, Fault::Kill)];

const fn strike(point: Point, fault: Fault) -> Strike {
    Strike { point, fault }
}

impl Row {
    /// All rows of the table for a daemon that has these points of its own.
    pub fn all(own: &[OwnPoint]) -> Vec<Self> {
        let points: Vec<_> = Point::ALL.iter().copied().chain(own.iter().copied().map(Point::Own)).collect();
        let single = points.iter().flat_map(|point| Fault::ALL.iter().filter_map(|fault| Self::single(*point, *fault)));
        let has = |place: Place| own.iter().any(|point| point.place == place);
        let slow = Point::ALL.iter().filter(|_| has(Place::Drain) && has(Place::Seal));
        let slow = slow.flat_map(|point| Fault::ALL.iter().filter_map(|fault| Self::with_slow_hooks(*point, *fault)));
        let opening = OPENINGS.iter().filter(|_| has(Place::Opening));
        let opening =
            opening.flat_map(|time| Fault::ALL.iter().filter_map(|fault| Self::with_a_slow_opening(*fault, *time)));
        let pairs = LIKELY_PAIRS.iter().filter_map(|(first, second)| Self::pair(*first, *second));
        let strangers = Point::ALL.iter().flat_map(|point| Self::among_strangers(*point));
        let besides = Times::ALL.into_iter().flat_map(Self::with_a_failing_resume);
        let besides = besides.chain(Self::with_short_limits()).chain(Self::whose_incumbent_dies());
        let besides = besides.chain(Moved::ALL.into_iter().flat_map(Self::whose_data_dir_moves));
        single.chain(slow).chain(opening).chain(pairs).chain(strangers).chain(besides).collect()
    }

    /// Of one fault, and nothing else.
    fn of(Strike { point, fault }: Strike, expected: Expected) -> Self {
        Self {
            point,
            fault,
            hooks: Hooks::AsTheyAre,
            second: None,
            beside: Beside::Nobody,
            limits: Limits::AsConfigured,
            meanwhile: Meanwhile::Nothing,
            expected,
        }
    }

    fn single(point: Point, fault: Fault) -> Option<Self> {
        if let Point::Own(own) = point
            && !own.faults.contains(&fault)
        {
            return None;
        }
        Some(Self::of(strike(point, fault), expected(point, fault)?))
    }

    /// A death at each point at which the service lives on, and one that is frozen there under the lock.
    fn among_strangers(point: Point) -> impl Iterator<Item = Self> {
        let faults: &[Fault] = match point {
            Point::OInSeal => &[Fault::Kill, Fault::Stop],
            _ if lives_throughout(point) => &[Fault::Kill],
            _ => &[],
        };
        let row = move |fault: &Fault| Some(Self { beside: Beside::Strangers, ..Self::single(point, *fault)? });
        faults.iter().filter_map(row)
    }

    fn with_slow_hooks(point: Point, fault: Fault) -> Option<Self> {
        let expected = expected_with_slow_hooks(point, fault)?;
        Some(Self { hooks: Hooks::Slow, ..Self::of(strike(point, fault), expected) })
    }

    fn with_a_slow_opening(fault: Fault, time: Duration) -> Option<Self> {
        let expected = expected_with_a_slow_opening(fault, time)?;
        Some(Self { hooks: Hooks::Opening(time), ..Self::of(strike(Point::SAfterBeginSent, fault), expected) })
    }

    pub(super) fn pair(first: Strike, second: Strike) -> Option<Self> {
        let of_two = expected_of_two(expected(first.point, first.fault)?, expected(second.point, second.fault)?);
        Some(Self { second: Some(second), ..Self::of(first, of_two) })
    }

    fn with_a_failing_resume(times: Times) -> impl Iterator<Item = Self> {
        ABORTS.iter().filter_map(move |abort| {
            let expected = table::expected_with_a_failing_resume(expected(abort.point, abort.fault)?, times);
            Some(Self { hooks: Hooks::FailingResume(times), ..Self::of(*abort, expected) })
        })
    }

    fn with_short_limits() -> impl Iterator<Item = Self> {
        let faults = [Fault::Stop, Fault::StopCont];
        SILENT.iter().flat_map(move |(point, limits)| {
            let row = move |fault| {
                let expected = table::expected_beyond_a_limit(fault)?;
                Some(Self { limits: *limits, ..Self::of(strike(*point, fault), expected) })
            };
            faults.into_iter().filter_map(row)
        })
    }

    fn whose_incumbent_dies() -> impl Iterator<Item = Self> {
        let row = |strike: Strike| {
            let expected = table::expected_of_a_dead_incumbent(strike)?;
            Some(Self { meanwhile: Meanwhile::IncumbentDies, ..Self::of(strike, expected) })
        };
        let faults = [Fault::Stop, Fault::StopCont];
        Point::ALL.iter().flat_map(move |point| faults.into_iter().filter_map(move |fault| row(strike(*point, fault))))
    }

    fn whose_data_dir_moves(moved: Moved) -> impl Iterator<Item = Self> {
        let at_a_point = move |point: &Point| {
            let expected = table::expected_of_a_moved_data_dir(*point, moved)?;
            let row = Self::of(strike(*point, Fault::StopCont), expected);
            Some(Self { meanwhile: Meanwhile::Moves(moved), ..row })
        };
        let afterwards = move |strike: &Strike| {
            let row = Self::single(strike.point, strike.fault)?;
            Some(Self { meanwhile: Meanwhile::MovesAfterwards(moved), ..row })
        };
        Point::ALL.iter().filter_map(at_a_point).chain(BETWEEN_HANDOVERS.iter().filter_map(afterwards))
    }

    /// Whether it is nothing but one fault.
    pub(super) fn is_plain(&self) -> bool {
        *self == Self::of(self.strike(), self.expected)
    }

    /// The fault by which the row is known.
    pub fn strike(&self) -> Strike {
        Strike { point: self.point, fault: self.fault }
    }

    /// `ROLE/POINT/FAULT`, such as `successor/n-after-lock/kill`, with what is particular behind a `+`.
    pub fn name(&self) -> String {
        let hooks = match self.hooks {
            Hooks::AsTheyAre => String::new(),
            Hooks::Slow => "+slow-hooks".to_owned(),
            Hooks::Opening(time) => format!("+opens-in-{}ms", time.as_millis()),
            Hooks::FailingResume(times) => format!("+resume-fails-{}", times.name()),
        };
        let second = self.second.map_or(String::new(), |it| format!("+{}/{}", it.point.name(), it.fault.name()));
        let beside = match self.beside {
            Beside::Nobody => "",
            Beside::Strangers => "+strangers",
        };
        let limits = match self.limits {
            Limits::AsConfigured => "",
            Limits::ShortGrace => "+short-grace",
            Limits::ShortDeadline => "+short-deadline",
        };
        let (point, fault, meanwhile) = (self.point.name(), self.fault.name(), self.meanwhile.name());
        format!("{}/{point}/{fault}{hooks}{second}{beside}{limits}{meanwhile}", self.point.role())
    }

    /// Whether a pattern with `*` and `?` means this row: by its role, its point, its fault, `POINT/FAULT` or its whole name.
    pub fn is_meant_by(&self, pattern: &str) -> bool {
        let name = self.name();
        let without_role = name.split_once('/').map_or("", |(_, rest)| rest);
        let (role, point, fault) = (self.point.role().to_string(), self.point.name(), self.fault.name());
        let names = [role.as_str(), point, fault, without_role, &name];
        names.iter().any(|name| matches(pattern.as_bytes(), name.as_bytes()))
    }

    /// What the daemon itself may need besides: whoever takes over, or takes back, opens the data.
    pub(super) fn opens(&self, matrix: &Matrix) -> Duration {
        match self.expected.bound {
            Bound::Nothing if self.expected.serving == [Serving::Old] => Duration::ZERO,
            _ => matrix.subject.opens_within(),
        }
    }
}
