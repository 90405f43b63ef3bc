//! Crashes of a real process: tells a child where to leave without a goodbye, and reads afterwards whether it did.
//!
//! The points themselves are in the crates that carry them (`handoff_runtime::crash`, feature `crash-points`): at the point
//! named by `HANDOFF_CRASH_AT` the process writes a marker and leaves by `_exit(99)`. Nothing here crashes anybody.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// The exit status of a process that crashed on purpose.
pub const CRASH_EXIT_STATUS: i32 = 99;

/// One crash that a child is told to have.
#[derive(Debug, Clone)]
pub struct ProcessCrash {
    point: String,
    role: String,
    marker_dir: PathBuf,
}

impl ProcessCrash {
    /// A crash at `point` of the process that is called `role` in its marker, which it leaves in `marker_dir`.
    pub fn new(point: &str, role: &str, marker_dir: &Path) -> Self {
        Self { point: point.into(), role: role.into(), marker_dir: marker_dir.into() }
    }

    /// The variables to add to the child's environment.
    pub fn env(&self) -> [(OsString, OsString); 3] {
        [
            ("HANDOFF_CRASH_AT".into(), self.point.clone().into()),
            ("HANDOFF_CRASH_ROLE".into(), self.role.clone().into()),
            ("HANDOFF_CRASH_MARKER_DIR".into(), self.marker_dir.clone().into()),
        ]
    }

    /// Whether the point was reached: the marker is there and names it.
    ///
    /// # Errors
    /// The marker can't be read, or it names another point, which is a mistake of the test: two crashes share a role.
    pub fn has_fired(&self) -> io::Result<bool> {
        match fs::read_to_string(self.marker_path()) {
            Ok(found) if found.trim() == self.point => Ok(true),
            Ok(found) => {
                let text = format!("the marker of {} names {:?}, expected {:?}", self.role, found.trim(), self.point);
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where the marker appears.
    pub fn marker_path(&self) -> PathBuf {
        self.marker_dir.join(format!("crashed-{}.marker", self.role))
    }

    /// Whether a process that ended like this crashed on purpose.
    pub fn is_crash(status: ExitStatus) -> bool {
        status.code() == Some(CRASH_EXIT_STATUS)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_marker_tells() {
        let dir = tempfile::tempdir().expect("a directory");
        let crash = ProcessCrash::new("s-after-prepare-sent", "supervisor", dir.path());
        assert!(!crash.has_fired().expect("no marker is fine"));
        fs::write(dir.path().join("crashed-supervisor.marker"), "s-after-prepare-sent").expect("write");
        assert!(crash.has_fired().expect("readable"));
        let another = ProcessCrash::new("s-after-begin-sent", "supervisor", dir.path());
        assert!(another.has_fired().is_err(), "a marker of another point is no proof");
    }

    #[test]
    fn only_its_own_exit_status_is_a_crash() {
        assert!(ProcessCrash::is_crash(ExitStatus::from_raw(CRASH_EXIT_STATUS << 8)));
        assert!(!ProcessCrash::is_crash(ExitStatus::from_raw(0)));
        assert!(!ProcessCrash::is_crash(ExitStatus::from_raw(9)), "killed is not crashed on purpose");
    }
}
