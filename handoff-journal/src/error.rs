//! What can be wrong with a journal: each error names the file and says what to do.

use std::io;
use std::path::PathBuf;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, JournalError>;

/// A journal that could not be read or written. Nothing is lost by any of these: the last good record stays in the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The operating system refused a step: look at the permissions, the space and the health of the disk.
    #[error("journal {}: can't {attempt}: {source}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// What was attempted, to be read after "can't".
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },

    /// The path names a directory, a pipe, a device or a symbolic link, which is not followed: give another path.
    #[error("journal {}: is not a regular file (a link is none either); give the path of a file of its own", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },

    /// The file holds no whole record: it is torn, truncated, damaged, or another program's. It was left as it is;
    /// [`Journal::open`](crate::Journal::open) moves such a file aside and keeps it.
    #[error(
        "journal {}: holds no whole record (torn, damaged, or another program's file); \
         keep it for inspection under another name, and start again",
        path.display()
    )]
    Unreadable {
        /// The journal.
        path: PathBuf,
    },

    /// A newer build wrote the file. It was left as it is; [`Journal::open`](crate::Journal::open) moves it aside and keeps it.
    #[error(
        "journal {}: has format version {version}, and this build reads up to version {newest_known}; \
         use the newer build, or move the file away",
        path.display()
    )]
    NewerVersion {
        /// The journal.
        path: PathBuf,
        /// The version of its newest record.
        version: u32,
        /// The newest version that this build reads.
        newest_known: u32,
    },

    /// The newest record is whole, and this build does not know what it says: a newer build wrote a phase or a field that was
    /// appended later. It was left as it is; [`Journal::open`](crate::Journal::open) moves it aside and keeps it.
    #[error(
        "journal {}: its newest record is whole and unreadable to this build, so a newer build wrote it; \
         use the newer build, or move the file away",
        path.display()
    )]
    UnknownRecord {
        /// The journal.
        path: PathBuf,
    },

    /// A field of the record is longer than a slot has room for. The caller's fault; nothing was written.
    #[error("journal {}: {field} is {bytes} bytes long, at most {bytes_max} fit", path.display())]
    TooLong {
        /// The journal.
        path: PathBuf,
        /// The field's name.
        field: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },

    /// So many unreadable files are kept beside the journal that one more is not moved there: look why, and remove them.
    #[error(
        "journal {}: can't be read, and {kept} unreadable ones are kept beside it already; \
         find out what damages it, then remove {}.unreadable-*",
        path.display(),
        path.display()
    )]
    TooManySetAside {
        /// The journal.
        path: PathBuf,
        /// How many are kept.
        kept: u32,
    },
}

impl JournalError {
    /// Whether the bytes of the file are at fault, which another file would mend.
    pub(crate) const fn is_of_the_content(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::NewerVersion { .. } | Self::UnknownRecord { .. })
    }
}
