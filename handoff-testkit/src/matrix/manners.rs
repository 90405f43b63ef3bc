//! Daemons of bad manners, which the matrix must refuse: the built-in one, with one thing wrong in it. `MATRIX_MANNER` names it.

use std::sync::OnceLock;

/// The variable that spoils the built-in daemon.
pub const VARIABLE: &str = "MATRIX_MANNER";

/// What is wrong with a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Nothing.
    Good,
    /// It acknowledges what is not on disk.
    NeverSyncs,
    /// It acknowledges some writes that it does not make.
    ForgetsWrites,
    /// It answers some writes with an error.
    SaysNo,
    /// It denies what it has acknowledged.
    ReadsOld,
    /// Its drain cuts the request in hand.
    CutsRequests,
    /// Its resume is late by 0.9 s.
    ResumesLate,
    /// Each of its resumes leaves sixteen descriptors open, which go with the process.
    LeaksDescriptors,
    /// Each of its resumes leaves a thread behind.
    LeaksThreads,
    /// Each of its resumes leaves a child that nobody waits for.
    LeaksChildren,
    /// It writes a file of its own into the data directory at each resume.
    LeavesFiles,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Good,
        Self::NeverSyncs,
        Self::ForgetsWrites,
        Self::SaysNo,
        Self::ReadsOld,
        Self::CutsRequests,
        Self::ResumesLate,
        Self::LeaksDescriptors,
        Self::LeaksThreads,
        Self::LeaksChildren,
        Self::LeavesFiles,
    ];

    /// As the variable names it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// That of this process.
pub(super) fn manner() -> Manner {
    static MANNER: OnceLock<Manner> = OnceLock::new();
    *MANNER.get_or_init(|| {
        let named = std::env::var(VARIABLE).unwrap_or_default();
        Manner::ALL.into_iter().find(|manner| manner.name() == named).unwrap_or(Manner::Good)
    })
}
