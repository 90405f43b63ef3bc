//! What clients count: what they were given, and everything that they can suffer. One list, one judgement.

use std::fmt;
use std::io;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize, Serializer};

/// What can befall a client. In a handover that keeps its promises, nothing of it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suffered {
    /// A connect that failed, in whatever way (promise 4).
    Refused,
    /// A connect that came about a second late or later: it found no room in the backlog.
    SlowConnect,
    /// A kept connection on which nothing was asked ended, or broke, without a word.
    Dropped,
    /// The connection broke before a request was answered.
    Reset,
    /// The connection ended before a request was answered.
    Ended,
    /// A request was not answered within the client's patience.
    TimedOut,
    /// A request was answered with an error.
    Rejected,
    /// A request was answered with a value that can't be true.
    WrongValue,
    /// A request was answered as if something had not happened yet that was answered before.
    OutOfOrder,
}

impl Suffered {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Refused,
        Self::SlowConnect,
        Self::Dropped,
        Self::Reset,
        Self::Ended,
        Self::TimedOut,
        Self::Rejected,
        Self::WrongValue,
        Self::OutOfOrder,
    ];

    /// What an error means that a request came back with: those of a stream are what they are, [`io::ErrorKind::InvalidData`] is a
    /// wrong value, and whatever else is an answer that says no.
    pub fn from_request(error: &io::Error) -> Self {
        use io::ErrorKind as E;
        match error.kind() {
            E::WouldBlock | E::TimedOut => Self::TimedOut,
            E::UnexpectedEof => Self::Ended,
            E::ConnectionReset | E::ConnectionAborted | E::BrokenPipe | E::NotConnected => Self::Reset,
            E::ConnectionRefused => Self::Refused,
            E::InvalidData => Self::WrongValue,
            _ => Self::Rejected,
        }
    }

    /// As it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::SlowConnect => "slow_connect",
            Self::Dropped => "dropped",
            Self::Reset => "reset",
            Self::Ended => "ended",
            Self::TimedOut => "timed_out",
            Self::Rejected => "rejected",
            Self::WrongValue => "wrong_value",
            Self::OutOfOrder => "out_of_order",
        }
    }
}

/// What a fault may cost the clients besides time. A handover costs them nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// So many connections may end or break: those of a process that was killed while it served.
    pub connections: u64,
    /// So many requests may outlast the clients' patience: nobody served for longer than that.
    pub patience: u64,
    /// So many connects may be refused: nobody was left who had the listening sockets.
    pub refused: u64,
    /// So many requests may be answered with an error: the daemon itself was made to fail.
    pub rejected: u64,
}

impl Cost {
    /// Nothing at all.
    pub const NOTHING: Self = Self { connections: 0, patience: 0, refused: 0, rejected: 0 };

    /// So many connections.
    pub const fn connections(connections: u64) -> Self {
        Self { connections, ..Self::NOTHING }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, more: Self) {
        self.connections = self.connections.saturating_add(more.connections);
        self.patience = self.patience.saturating_add(more.patience);
        self.refused = self.refused.saturating_add(more.refused);
        self.rejected = self.rejected.saturating_add(more.rejected);
    }
}

/// What the clients of a load have seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that were acknowledged, each of them logged before it was counted.
    pub acked: u64,
    /// Reads that were answered.
    pub read: u64,
    /// Requests that the daemon said it had not carried out, and that were sent again under the same token.
    pub retried: u64,
    suffered: [u64; Suffered::ALL.len()],
}

impl Counts {
    /// One more of these.
    pub fn suffer(&mut self, what: Suffered) {
        self.suffered[what as usize] += 1;
    }

    /// How many of these.
    pub fn of(&self, what: Suffered) -> u64 {
        self.suffered[what as usize]
    }

    /// What came since these were counted.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        since.acked -= before.acked;
        since.read -= before.read;
        since.retried -= before.retried;
        since.suffered.iter_mut().zip(before.suffered).for_each(|(all, before)| *all -= before);
        since
    }

    /// Connects that failed, and connections that broke or ended without a word.
    pub fn refused(&self) -> u64 {
        self.of(Suffered::Refused) + self.of(Suffered::Dropped) + self.of(Suffered::Reset)
    }

    /// Requests that were sent and got no reply.
    pub fn closed_unanswered(&self) -> u64 {
        self.of(Suffered::Reset) + self.of(Suffered::Ended) + self.of(Suffered::TimedOut)
    }

    /// What befell them beyond what it may cost; a line each.
    pub fn problems(&self, cost: Cost) -> Vec<String> {
        let excess = |kinds: &[Suffered], allowed: u64| {
            let sum: u64 = kinds.iter().map(|kind| self.of(*kind)).sum();
            let told = kinds.iter().filter(|kind| self.of(**kind) > 0);
            let told: Vec<String> = told.map(|kind| format!("{} {}", self.of(*kind), kind.name())).collect();
            (sum > allowed).then(|| match allowed {
                0 => format!("clients suffered: {}", told.join(", ")),
                _ => format!("clients suffered: {}; this may happen {allowed} times", told.join(", ")),
            })
        };
        use Suffered as S;
        let parts = [
            excess(&[S::Dropped, S::Reset, S::Ended], cost.connections),
            excess(&[S::TimedOut], cost.patience),
            excess(&[S::Refused], cost.refused),
            excess(&[S::Rejected], cost.rejected),
            excess(&[S::SlowConnect, S::WrongValue, S::OutOfOrder], 0),
        ];
        parts.into_iter().flatten().collect()
    }
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, more: &Self) {
        self.acked += more.acked;
        self.read += more.read;
        self.retried += more.retried;
        self.suffered.iter_mut().zip(more.suffered).for_each(|(sum, more)| *sum += more);
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plain = [("acked", self.acked), ("read", self.read), ("retried", self.retried)];
        serializer.collect_map(plain.into_iter().chain(Suffered::ALL.map(|what| (what.name(), self.of(what)))))
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} acknowledged, {} read, {} sent again", self.acked, self.read, self.retried)?;
        Suffered::ALL
            .into_iter()
            .filter(|what| self.of(*what) > 0)
            .try_for_each(|what| write!(f, ", {} {}", self.of(what), what.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_suffering_is_a_problem_by_itself_and_has_its_own_place() {
        for what in Suffered::ALL {
            let mut counts = Counts::default();
            counts.suffer(what);
            assert_eq!(counts.problems(Cost::NOTHING), [format!("clients suffered: 1 {}", what.name())]);
            assert_eq!(Suffered::ALL.map(|other| counts.of(other)).iter().sum::<u64>(), 1);
            assert_eq!(serde_json::json!(counts)[what.name()], 1);
            assert!(counts.to_string().contains(&format!("1 {}", what.name())), "{counts}");
        }
        assert!(Counts::default().problems(Cost::NOTHING).is_empty());
    }

    #[test]
    fn a_cost_excuses_so_many_and_only_of_its_kind() {
        let mut counts = Counts::default();
        [Suffered::Reset, Suffered::Ended, Suffered::Dropped].into_iter().for_each(|what| counts.suffer(what));
        assert!(counts.problems(Cost::connections(3)).is_empty());
        assert_eq!(counts.problems(Cost::connections(2)).len(), 1);
        assert_eq!(counts.problems(Cost { patience: 9, ..Cost::NOTHING }).len(), 1);
        counts.suffer(Suffered::Rejected);
        assert_eq!(
            counts.problems(Cost { connections: 9, patience: 9, refused: 9, rejected: 0 }),
            ["clients suffered: 1 rejected"]
        );
    }

    #[test]
    fn errors_are_what_the_stream_says_or_a_no() {
        use io::ErrorKind as E;
        let of = |kind: E| Suffered::from_request(&kind.into());
        assert_eq!(of(E::WouldBlock), Suffered::TimedOut);
        assert_eq!(of(E::UnexpectedEof), Suffered::Ended);
        assert_eq!(of(E::BrokenPipe), Suffered::Reset);
        assert_eq!(of(E::InvalidData), Suffered::WrongValue);
        assert_eq!(Suffered::from_request(&io::Error::other("ERR disk full")), Suffered::Rejected);
    }

    #[test]
    fn sums_hold_every_count() {
        let mut one = Counts { acked: 1, read: 2, retried: 3, ..Counts::default() };
        Suffered::ALL.into_iter().for_each(|what| one.suffer(what));
        let mut two = one.clone();
        two += &one;
        assert_eq!((two.acked, two.read, two.retried), (2, 4, 6));
        assert!(Suffered::ALL.into_iter().all(|what| two.of(what) == 2));
        assert_eq!(two.since(&one), one);
    }
}
