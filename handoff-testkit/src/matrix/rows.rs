//! The rows: one for each fault that the table has an expectation for, and those in which something else goes on besides.

use std::time::Duration;

use super::points::{Fault, OwnPoint, Place, Point};
use super::table::{
    Bound, Expected, OPENINGS, Serving, expected, expected_of_two, expected_with_a_slow_opening,
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

/// How long the daemon's hooks and its opening take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// As long as they take.
    AsTheyAre,
    /// Drain and seal take so long that a fault strikes while the incumbent is in them.
    Slow,
    /// The successor's opening takes this long.
    Opening(Duration),
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

/// Faults in which the service lives throughout, so that its lock on the directory does: whoever waits for it never gets it.
const AMONG_STRANGERS: &[Strike] = &[
    strike(Point::SAfterPrepareSent, Fault::Kill),
    strike(Point::SAfterSealCompleteRecv, Fault::Kill),
    strike(Point::SAfterBeginSent, Fault::Kill),
    strike(Point::OInDrain, Fault::Kill),
    strike(Point::OInSeal, Fault::Kill),
    strike(Point::OInSeal, Fault::Stop),
    strike(Point::OAfterSealFlockReleased, Fault::Kill),
    strike(Point::OAfterSealCompleteSent, Fault::Kill),
    strike(Point::NAfterHandshake, Fault::Kill),
    strike(Point::NAfterBegin, Fault::Kill),
    strike(Point::NAfterLock, Fault::Kill),
    strike(Point::NBeforeAnnounceReady, Fault::Kill),
];

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
        let strangers = AMONG_STRANGERS.iter().filter_map(|strike| Self::among_strangers(*strike));
        single.chain(slow).chain(opening).chain(pairs).chain(strangers).collect()
    }

    fn single(point: Point, fault: Fault) -> Option<Self> {
        if let Point::Own(own) = point
            && !own.faults.contains(&fault)
        {
            return None;
        }
        let expected = expected(point, fault)?;
        Some(Self { point, fault, hooks: Hooks::AsTheyAre, second: None, beside: Beside::Nobody, expected })
    }

    fn among_strangers(Strike { point, fault }: Strike) -> Option<Self> {
        Some(Self { beside: Beside::Strangers, ..Self::single(point, fault)? })
    }

    fn with_slow_hooks(point: Point, fault: Fault) -> Option<Self> {
        let expected = expected_with_slow_hooks(point, fault)?;
        Some(Self { point, fault, hooks: Hooks::Slow, second: None, beside: Beside::Nobody, expected })
    }

    fn with_a_slow_opening(fault: Fault, time: Duration) -> Option<Self> {
        let expected = expected_with_a_slow_opening(fault, time)?;
        Some(Self {
            point: Point::SAfterBeginSent,
            fault,
            hooks: Hooks::Opening(time),
            second: None,
            beside: Beside::Nobody,
            expected,
        })
    }

    pub(super) fn pair(first: Strike, second: Strike) -> Option<Self> {
        let of_two = expected_of_two(expected(first.point, first.fault)?, expected(second.point, second.fault)?);
        Some(Self {
            point: first.point,
            fault: first.fault,
            hooks: Hooks::AsTheyAre,
            second: Some(second),
            beside: Beside::Nobody,
            expected: of_two,
        })
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
        };
        let second = self.second.map_or(String::new(), |it| format!("+{}/{}", it.point.name(), it.fault.name()));
        let beside = match self.beside {
            Beside::Nobody => "",
            Beside::Strangers => "+strangers",
        };
        format!("{}/{}/{}{hooks}{second}{beside}", self.point.role(), self.point.name(), self.fault.name())
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
