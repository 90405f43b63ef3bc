//! Rules that are broken on purpose, by an effect that is performed otherwise than asked: the machines stay as they ship.

/// One broken rule. A check that does not notice it is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sabotage {
    /// A successor that was found Active is killed and not continued.
    KillActive,
    /// The lock is released when the seal begins, not when it is done.
    ReleaseBeforeSeal,
    /// The incumbent in limbo decides on the lease that it read before it had the lock.
    DecideWithoutLookingAgain,
    /// Nobody ends a successor whose handover is undone: neither a restarted supervisor nor an incumbent that came back.
    SpareLeftovers,
    /// The same, and a successor takes whatever epoch it finds for the one that it was told.
    SpareLeftoversAndIgnoreEpoch,
    /// No channel from the incumbent to the successor: the directory is let go with the lock file, as before there was one.
    PassNothing,
    /// The directory is let go with the lock file although the successor has a part in its lock.
    UnlockWhatWasPassed,
    /// A resume after the lock was released says that nothing has changed.
    ResumeFromMemory,
    /// The supervisor takes it for done what it has only asked for: that the incumbent serves again.
    TakeResumeForGranted,
    /// An incumbent that counts as dead is not ended.
    SpareSilentIncumbent,
    /// A deadline that passes is taken for a sign of life of the incumbent.
    TakeDeadlineForLife,
    /// A successor may go on opening until the deadline.
    LeaveOpeningUnbounded,
    /// The successor of a dead incumbent may warm up for as long as that of a living one.
    WarmAsPlannedForTheDead,
    /// An incumbent that is on its way back is waited for without end.
    LeaveResumeUnbounded,
    /// An incumbent does not say that its hook has failed.
    KeepFailureBack,
}

impl Sabotage {
    pub(super) fn spares_leftovers(self) -> bool {
        matches!(self, Self::SpareLeftovers | Self::SpareLeftoversAndIgnoreEpoch)
    }
}
