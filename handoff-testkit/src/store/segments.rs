//! The log's files. The log is cut into segments, so that what a checkpoint has made superfluous can be deleted: `store.wal`,
//! `store.wal.1`, `store.wal.2` and so on.
//!
//! Invariants:
//!
//! - A segment's name is durable before its first record is acknowledged.
//! - Only the newest segment is written to; all before it were durable to their end when it began.
//! - A segment that was made and never begun, because the process died in between, is a *spare*: it holds no write.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::{Result, StoreError};
use super::wal::LogFile;
use super::{LOG_NAME, record};

/// One file of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
}

impl Segment {
    /// The segment of this number in `dir`.
    pub(crate) fn new(dir: &Path, number: u64) -> Self {
        let name = if number == 0 { LOG_NAME.to_owned() } else { format!("{LOG_NAME}.{number}") };
        Self { number, path: dir.join(name) }
    }

    fn from_name(dir: &Path, name: &str) -> Option<Self> {
        let number = match name.strip_prefix(LOG_NAME)? {
            "" => 0,
            rest => rest.strip_prefix('.')?.parse().ok().filter(|number| *number > 0)?,
        };
        Some(Self::new(dir, number)).filter(|segment| segment.path.ends_with(name))
    }
}

/// The segments in `dir`, oldest first. A directory that is not there has none.
///
/// # Errors
/// It can't be listed.
pub(crate) fn list(dir: &Path) -> Result<Vec<Segment>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io(format!("listing {}", dir.display()), error)),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| StoreError::io(format!("listing {}", dir.display()), error))?.file_name();
        segments.extend(name.to_str().and_then(|name| Segment::from_name(dir, name)));
    }
    segments.sort_unstable_by_key(|segment| segment.number);
    Ok(segments)
}

/// Deletes all segments older than `current`, oldest first, so that what is left has no gap.
///
/// # Errors
/// One of them can't be deleted; the next checkpoint tries again.
pub(crate) fn truncate(dir: &Path, current: u64) -> Result<()> {
    for segment in list(dir)?.into_iter().filter(|segment| segment.number < current) {
        fs::remove_file(&segment.path)
            .map_err(|error| StoreError::io(format!("deleting {}", segment.path.display()), error))?;
    }
    Ok(())
}

/// Writes the header of a segment that holds nothing, and makes its name durable; its contents are with the first write's sync.
/// Returns its size.
pub(crate) fn begin(segment: &Segment, file: &dyn LogFile) -> io::Result<u64> {
    if fs::metadata(&segment.path)?.len() > 0 {
        file.truncate(0)?; // half a header, or a spare
    }
    file.append(&record::header())?;
    if let Some(dir) = segment.path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(record::HEADER_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_found_in_order_and_deleted_up_to_one() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["store.wal.10", "store.wal", "store.wal.9", "store.wal.x", "store.wal.07", "store.wal.0", "other"]
        {
            fs::write(dir.path().join(name), "").expect("written");
        }
        let numbers = || list(dir.path()).expect("listed").iter().map(|segment| segment.number).collect::<Vec<_>>();
        assert_eq!(numbers(), [0, 9, 10]);
        truncate(dir.path(), 10).expect("deleted");
        assert_eq!(numbers(), [10]);
        assert_eq!(list(&dir.path().join("nowhere")).expect("nothing"), []);
    }
}
