//! What became of a handover whose supervisor went away in the middle of it.
//!
//! The supervisor's death ends nothing: incumbent and successor settle between themselves who serves, and the next supervisor
//! finishes what is left. So the client asks what outlives them all ([`look`]), as long as the roles are given to settle it, and
//! decides here what that means. It takes no lock and changes nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff_proto::{HandoffId, ProcessId, Timing};

use crate::process::Process;
use crate::service::Event;
use crate::timers::instant_after;
use look::Place;

mod look;

/// What the service said before it began.
#[derive(Debug, Clone)]
pub(super) struct Order {
    handoff_id: HandoffId,
    old: ProcessId,
    data_dir: Option<PathBuf>,
    deadline: Duration,
}

impl Order {
    /// None: the event is another one.
    pub(super) fn from_event(event: &Event) -> Option<Self> {
        let Event::Ordered { handoff_id, old_pid, old_start_time, data_dir, deadline_ms } = event else { return None };
        Some(Self {
            handoff_id: *handoff_id,
            old: ProcessId { pid: *old_pid, start_time: *old_start_time },
            data_dir: data_dir.clone(),
            deadline: Duration::from_millis(*deadline_ms),
        })
    }

    pub(super) fn handoff_id(&self) -> HandoffId {
        self.handoff_id
    }

    pub(super) fn old_pid(&self) -> u32 {
        self.old.pid
    }

    /// How long incumbent and successor may take to settle it, from any moment of the handover: the deadline, what a late successor
    /// is given beyond it, and what an ended process takes to be gone.
    fn settled_within(&self) -> Duration {
        let timing = Timing::default();
        self.deadline.min(timing.deadline_max).saturating_add(timing.limbo_slack + timing.settle)
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// The new process serves.
    Committed,
    /// The old process serves.
    Undone,
    /// The old process serves, and a new one was never started.
    NotTried,
    /// Nothing that is left says who serves.
    NotKnown,
}

/// What became of it, and who is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) came: Came,
    pub(super) new_pid: Option<u32>,
    pub(super) epoch: Option<u64>,
}

/// Looks until it is settled, or until nobody is left who could settle it, or nobody may settle it any more.
///
/// `supervisor` is the one that took the order, if it could be opened.
pub(super) fn find_out(order: &Order, supervisor: Option<&Process>, state_dir: &Path) -> Found {
    let until = instant_after(order.settled_within());
    let mut place = Place::new(order, supervisor, state_dir);
    loop {
        let seen = place.look();
        let came = conclude(&seen).or_else(|| (Instant::now() >= until).then_some(Came::NotKnown));
        if let Some(came) = came {
            return place.found(came);
        }
        place.wait(until);
    }
}

/// What can be seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// The supervisor that took the order. Looked at first: what is seen after its death it can't change any more.
    supervisor_lives: bool,
    /// What a supervisor has written into the history.
    recorded: Option<Recorded>,
    /// A living process that may write.
    serving: Option<Side>,
    old_lives: bool,
    successor: Successor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recorded {
    Committed,
    Undone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Old,
    New,
    /// Of a later handover, or of a later start.
    Another,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Successor {
    NeverStarted,
    /// The journal speaks of it no more, or can't be read.
    Unknown,
    Lives,
    Gone,
}

/// What it means; none while it is not settled.
///
/// A dead supervisor has sent all that it will ever send. So an incumbent that still has the lock can only resume, and a
/// successor whose lease is Active serves: whoever comes later finds it so and keeps it.
fn conclude(seen: &Seen) -> Option<Came> {
    let back = if seen.successor == Successor::NeverStarted { Came::NotTried } else { Came::Undone };
    match (seen.recorded, seen.serving, seen.supervisor_lives) {
        (Some(Recorded::Committed), ..) => Some(Came::Committed),
        (Some(Recorded::Undone), Some(Side::Old), _) => Some(back),
        // It may still decide otherwise, and will write it down.
        (_, _, true) => None,
        (None, Some(Side::New), false) => Some(Came::Committed),
        (None, Some(Side::Old), false) => Some(back),
        _ => {
            let successor_is_gone = matches!(seen.successor, Successor::NeverStarted | Successor::Gone);
            (!seen.old_lives && successor_is_gone).then_some(Came::NotKnown)
        }
    }
}

/// Who serves where no lease can be read: who is left alone, since of two that live only one goes on.
fn left_alone(old_lives: bool, successor: Successor) -> Option<Side> {
    match (old_lives, successor) {
        (true, Successor::NeverStarted | Successor::Gone) => Some(Side::Old),
        (false, Successor::Lives) => Some(Side::New),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORPHANED: Seen =
        Seen { supervisor_lives: false, recorded: None, serving: None, old_lives: true, successor: Successor::Lives };

    #[test]
    fn who_serves_after_the_supervisors_death_is_the_answer() {
        let serves = |serving| conclude(&Seen { serving: Some(serving), ..ORPHANED });
        assert_eq!(serves(Side::New), Some(Came::Committed));
        assert_eq!(serves(Side::Old), Some(Came::Undone));
        assert_eq!(serves(Side::Another), None, "how ours ended is for the history to say");
        assert_eq!(conclude(&ORPHANED), None, "sealed, or opening: not settled yet");
    }

    #[test]
    fn what_was_never_started_was_not_tried() {
        let seen = |successor| Seen { serving: Some(Side::Old), successor, ..ORPHANED };
        assert_eq!(conclude(&seen(Successor::NeverStarted)), Some(Came::NotTried));
        for successor in [Successor::Unknown, Successor::Lives, Successor::Gone] {
            assert_eq!(conclude(&seen(successor)), Some(Came::Undone), "{successor:?}");
        }
    }

    #[test]
    fn a_supervisor_that_lives_may_still_decide_otherwise() {
        for serving in [None, Some(Side::Old), Some(Side::New), Some(Side::Another)] {
            let seen = Seen { supervisor_lives: true, serving, ..ORPHANED };
            assert_eq!(conclude(&seen), None, "{serving:?}");
            let dead = Seen { old_lives: false, successor: Successor::Gone, ..seen };
            assert_eq!(conclude(&dead), None, "{serving:?}: it will start somebody");
        }
    }

    #[test]
    fn the_history_is_believed_as_far_as_it_says_who_serves() {
        let seen = |recorded, serving| Seen { recorded: Some(recorded), serving, supervisor_lives: true, ..ORPHANED };
        for serving in [None, Some(Side::New), Some(Side::Another)] {
            assert_eq!(conclude(&seen(Recorded::Committed, serving)), Some(Came::Committed), "{serving:?}");
            assert_eq!(conclude(&seen(Recorded::Undone, serving)), None, "{serving:?}: the old one does not serve");
        }
        assert_eq!(conclude(&seen(Recorded::Undone, Some(Side::Old))), Some(Came::Undone));
    }

    #[test]
    fn when_all_are_dead_nobody_is_waited_for() {
        let dead = |successor| Seen { old_lives: false, successor, ..ORPHANED };
        for serving in [None, Some(Side::Another)] {
            assert_eq!(conclude(&Seen { serving, ..dead(Successor::Gone) }), Some(Came::NotKnown));
            assert_eq!(conclude(&Seen { serving, ..dead(Successor::NeverStarted) }), Some(Came::NotKnown));
            assert_eq!(conclude(&Seen { serving, ..dead(Successor::Unknown) }), None);
            assert_eq!(conclude(&Seen { serving, ..dead(Successor::Lives) }), None);
        }
    }

    #[test]
    fn without_a_lease_who_is_left_alone_serves() {
        assert_eq!(left_alone(true, Successor::Gone), Some(Side::Old));
        assert_eq!(left_alone(true, Successor::NeverStarted), Some(Side::Old));
        assert_eq!(left_alone(false, Successor::Lives), Some(Side::New));
        for (old_lives, successor) in [
            (true, Successor::Lives),
            (true, Successor::Unknown),
            (false, Successor::Gone),
            (false, Successor::Unknown),
        ] {
            assert_eq!(left_alone(old_lives, successor), None, "{old_lives} {successor:?}");
        }
    }

    #[test]
    fn it_is_waited_for_as_long_as_the_roles_may_take() {
        let old = ProcessId { pid: 1, start_time: 0 };
        let order = |deadline| Order { handoff_id: HandoffId::new(), old, data_dir: None, deadline };
        assert_eq!(order(Duration::from_secs(300)).settled_within(), Duration::from_secs(313));
        assert!(order(Duration::MAX).settled_within() < Duration::from_secs(2 * 3600));
    }
}
