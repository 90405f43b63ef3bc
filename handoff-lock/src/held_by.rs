//! In whose way a lock is held, for people who wait for it.

use std::fmt;

use crate::error::LockError;
use crate::holder::Holder;

/// Who holds a lock that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldBy {
    /// One process, as far as the system tells which.
    Owner(Option<Holder>),
    /// Those that [read](crate::SharedLock) the data, up to eight of them.
    Readers(Vec<Holder>),
}

impl From<HeldBy> for LockError {
    fn from(held_by: HeldBy) -> Self {
        match held_by {
            HeldBy::Owner(holder) => Self::Held { holder },
            HeldBy::Readers(readers) => Self::BeingRead { readers },
        }
    }
}

/// "locked by pid 4711 (stored) since …; stop that process or use another data dir", or "being read by pid 4711 (backup) …".
impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(Some(holder)) if holder.alive => {
                write!(f, "locked by {holder}; stop that process or use another data dir")
            }
            Self::Owner(Some(holder)) => write!(f, "locked by {holder}; the kernel may still be freeing it, try again"),
            Self::Owner(None) => f.write_str(
                "locked by a process that can't be seen from here (another user's or another container's, or one that only \
                 reads); stop it or use another data dir",
            ),
            Self::Readers(readers) => {
                let readers: Vec<String> = readers.iter().map(Holder::to_string).collect();
                write!(f, "being read by {}; wait until it has finished, or stop it", readers.join(", by "))
            }
        }
    }
}
