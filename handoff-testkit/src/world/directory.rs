//! The lock of the data directory, which belongs to an open file and not to a process: who has a copy of that file, and who else
//! is after the lock. flock(2) needs no more than a descriptor to read, so anybody may be.
//!
//! The lock file is not for strangers, and no second daemon touches it before it has the directory.

use super::process::Slot;
use super::{Broken, SLOTS, World};

/// Whose the lock is, and who has the open file that it belongs to while it is the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Directory {
    owner: Owner,
    copies: [Part; SLOTS],
    /// In whose channel from the incumbent a copy lies.
    in_flight: [bool; SLOTS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Nobody,
    Service,
    Stranger(Stay),
    /// One that is started beside the service, on the same data: it has the directory and is about to try the lock file.
    SecondDaemon,
}

/// What a process has of the open file with the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Nothing,
    /// Its own: to let go is to unlock.
    Own,
    /// One of several, or it once was: to let go is to leave it locked.
    Shared,
}

/// How long a stranger keeps the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stay {
    /// It got in when the owner was dead: nobody could keep it out.
    ForAWhile,
    /// It slipped in while the owner lived, which is what passing the lock is to prevent.
    ForEver,
}

/// Who is after the directory besides the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strangers {
    /// Nobody.
    Away,
    /// One who queues or tries in a loop, and a second daemon that is started again and again.
    Around,
}

impl Directory {
    /// The first daemon has it.
    pub(super) fn of_first() -> Self {
        let mut copies = [Part::Nothing; SLOTS];
        copies[0] = Part::Own;
        Self { owner: Owner::Service, copies, in_flight: [false; SLOTS] }
    }

    pub(super) fn is_free(&self) -> bool {
        self.owner == Owner::Nobody
    }

    pub(super) fn is_held_by(&self, slot: Slot) -> bool {
        self.owner == Owner::Service && self.copies[slot] != Part::Nothing
    }

    /// Whether a process would get it.
    pub(super) fn lets_in(&self, slot: Slot) -> bool {
        self.is_free() || self.is_held_by(slot) || (self.owner == Owner::Service && self.in_flight[slot])
    }

    /// Some process that has it, or gets it with its next look into its channel.
    pub(super) fn holder(&self) -> Option<Slot> {
        let has_it = |slot: &Slot| self.copies[*slot] != Part::Nothing || self.in_flight[*slot];
        (0..SLOTS).find(has_it).filter(|_| self.owner == Owner::Service)
    }

    /// flock(2) without waiting, on what the process was passed or else opened itself.
    fn try_lock(&mut self, slot: Slot) -> bool {
        if std::mem::take(&mut self.in_flight[slot]) {
            self.copies[slot] = Part::Shared;
        }
        if self.is_free() {
            self.copies = [Part::Nothing; SLOTS];
            (self.owner, self.copies[slot]) = (Owner::Service, Part::Own);
        }
        self.is_held_by(slot)
    }

    /// Lets go of what is not shared.
    fn let_go(&mut self, slot: Slot) {
        if self.is_held_by(slot) && self.copies[slot] == Part::Own {
            (self.owner, self.copies[slot]) = (Owner::Nobody, Part::Nothing);
        }
    }

    /// The kernel closes what a dead process had: the lock goes with the last copy.
    pub(super) fn closed_by(&mut self, slot: Slot) {
        (self.copies[slot], self.in_flight[slot]) = (Part::Nothing, false);
        if self.owner == Owner::Service && self.holder().is_none() {
            self.owner = Owner::Nobody;
        }
    }

    pub(super) fn pass(&mut self, from: Slot, to: Slot) {
        self.copies[from] = Part::Shared;
        self.in_flight[to] = true;
    }

    /// An explicit unlock, whoever else has a copy.
    pub(super) fn unlock_for_all(&mut self) {
        self.owner = Owner::Nobody;
    }
}

/// What somebody does who is not of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outsider {
    /// A stranger locks the directory.
    StrangerTakes,
    /// A stranger unlocks it.
    StrangerLeaves,
    /// A second daemon locks the directory.
    SecondDaemonTakes,
    /// It tries the lock file, and gives both up.
    SecondDaemonTries,
}

impl World {
    /// What can happen from outside.
    pub(super) fn outsider_moves(&self) -> impl Iterator<Item = Outsider> {
        let moves: &[Outsider] = match self.directory.owner {
            Owner::Nobody => &[Outsider::StrangerTakes, Outsider::SecondDaemonTakes],
            Owner::Stranger(Stay::ForAWhile) => &[Outsider::StrangerLeaves],
            Owner::SecondDaemon => &[Outsider::SecondDaemonTries],
            Owner::Stranger(Stay::ForEver) | Owner::Service => &[],
        };
        moves.iter().copied()
    }

    pub(super) fn outsider_acts(&mut self, outsider: Outsider) {
        let owner_lives = self.living(self.lease.owner).is_some();
        self.directory.owner = match outsider {
            Outsider::StrangerTakes if owner_lives => Owner::Stranger(Stay::ForEver),
            Outsider::StrangerTakes => Owner::Stranger(Stay::ForAWhile),
            Outsider::SecondDaemonTakes => Owner::SecondDaemon,
            Outsider::SecondDaemonTries => {
                // One that finds the owner dead is as good as the service's own.
                if self.lock.is_none() && owner_lives {
                    self.broken = Some(Broken::SlippedIn);
                }
                Owner::Nobody
            }
            Outsider::StrangerLeaves => Owner::Nobody,
        };
    }

    /// Whether this process has the lock: the file and the directory.
    pub(super) fn has_lock(&self, slot: Slot) -> bool {
        self.lock == Some(slot) && self.directory.is_held_by(slot)
    }

    /// Whether a try of this process would take the lock.
    pub(super) fn would_lock(&self, slot: Slot) -> bool {
        self.lock.is_none() && self.directory.lets_in(slot)
    }

    /// The directory first, then the file; both or none.
    pub(super) fn try_lock(&mut self, slot: Slot) -> bool {
        if !self.directory.try_lock(slot) {
            return false;
        }
        if self.lock.is_none() {
            self.lock = Some(slot);
        }
        if self.lock != Some(slot) {
            self.directory.let_go(slot);
        }
        self.lock == Some(slot)
    }

    /// Lets go of the file, and of a directory that nobody shares.
    pub(super) fn unlock(&mut self, slot: Slot) {
        if self.lock == Some(slot) {
            self.lock = None;
            self.directory.let_go(slot);
        }
    }
}
