//! Why the store refuses, and who has to do what about it.

use std::io;
use std::path::PathBuf;

/// The result of the store's calls.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why a call of the store failed. A write that returned an error was not acknowledged; it may be in the log all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was sealed: this process writes no more. Ask the successor.
    #[error("the store is sealed")]
    Sealed,

    /// An earlier sync failed, or a writer crashed half way: what is in memory or in the page cache is not to be trusted.
    /// Open the store again.
    #[error("the store is poisoned: {reason}")]
    Poisoned {
        /// What happened.
        reason: String,
    },

    /// The caller's key, token or collection is not acceptable.
    #[error("{what} is {bytes} bytes long; 1 to {bytes_max} printable bytes without a space are allowed")]
    BadName {
        /// "key", "token" or "collection".
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The longest that is allowed.
        bytes_max: usize,
    },

    /// A system call failed; nothing was written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// An item is greater than a collection takes.
    #[error("item {item} is greater than {item_max}")]
    BadItem {
        /// The item.
        item: u32,
        /// The greatest that is allowed.
        item_max: u32,
    },

    /// A key can't be engaged with together with itself.
    #[error("a key has no edge to itself")]
    SamePair,

    /// The storage engine failed. Nothing is lost: the log has it.
    #[error("the engine failed {doing}: {reason}")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// What the engine said.
        reason: String,
    },

    /// The store is being sealed: no checkpoint is made any more.
    #[error("the store is being sealed")]
    Sealing,

    /// Acknowledged records are damaged. Nothing was changed; restore the file from a copy.
    #[error("{} is damaged at byte {offset}: {reason}", path.display())]
    Corrupt {
        /// The log.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },

    /// A newer build wrote this log. Start that build again.
    #[error("{} has format {found}, this build reads {known}", path.display())]
    NewerFormat {
        /// The log.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this build reads.
        known: u32,
    },

    /// Somebody wrote under a newer epoch than the caller's: the caller no longer owns the data. Leave.
    #[error("the log was written under epoch {found}, which is newer than ours, {ours}")]
    Fenced {
        /// The caller's epoch.
        ours: u64,
        /// The log's.
        found: u64,
    },
}

impl StoreError {
    /// An [`StoreError::Io`] that says what was being done.
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing: doing.into(), source: source.into() }
    }

    /// An [`StoreError::Engine`] out of whatever the engine returns.
    pub(crate) fn engine<E: Into<redb::Error>>(doing: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Engine { doing, reason: error.into().to_string() }
    }

    /// A [`StoreError::Poisoned`].
    pub(crate) fn poisoned(reason: impl Into<String>) -> Self {
        Self::Poisoned { reason: reason.into() }
    }
}
