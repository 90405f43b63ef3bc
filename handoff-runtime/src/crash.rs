//! Crash points: named places of a handover at which a test lets the process die (feature `crash-points`).
//!
//! With the feature, a process leaves by `_exit(99)` at the point that `HANDOFF_CRASH_AT` names, after it wrote that name to
//! `$HANDOFF_CRASH_MARKER_DIR/crashed-$HANDOFF_CRASH_ROLE.marker` (no directory: no marker; no role: `unknown`). Without
//! it, [`crash_here!`](crate::crash_here) and [`maybe_crash`] are nothing, and no name is left in the program.

/// The points' names. Prefix: the role that dies. `s`: supervisor, `o`: incumbent, `n`: successor.
pub mod points {
    /// The supervisor has read the incumbent's Hello.
    pub const S_AFTER_O_HELLO: &str = "s-after-o-hello";
    /// The successor is started.
    pub const S_AFTER_SPAWN_SUCCESSOR: &str = "s-after-spawn-successor";
    /// The supervisor has read the successor's Hello.
    pub const S_AFTER_N_HELLO: &str = "s-after-n-hello";
    /// PrepareHandoff is sent.
    pub const S_AFTER_PREPARE_SENT: &str = "s-after-prepare-sent";
    /// Drained has arrived.
    pub const S_AFTER_DRAINED_RECV: &str = "s-after-drained-recv";
    /// SealRequest is sent.
    pub const S_AFTER_SEAL_REQUEST_SENT: &str = "s-after-seal-request-sent";
    /// SealComplete has arrived.
    pub const S_AFTER_SEAL_COMPLETE_RECV: &str = "s-after-seal-complete-recv";
    /// Begin is sent.
    pub const S_AFTER_BEGIN_SENT: &str = "s-after-begin-sent";
    /// Ready has arrived.
    pub const S_AFTER_READY_RECV: &str = "s-after-ready-recv";
    /// Commit is sent.
    pub const S_AFTER_COMMIT_SENT: &str = "s-after-commit-sent";
    /// The journal says that nothing is under way.
    pub const S_AFTER_JOURNAL_CLEAR: &str = "s-after-journal-clear";
    /// The incumbent has sent Drained.
    pub const O_AFTER_DRAINED_SENT: &str = "o-after-drained-sent";
    /// The incumbent has sealed and released the lock, and told nobody.
    pub const O_AFTER_SEAL_FLOCK_RELEASED: &str = "o-after-seal-flock-released";
    /// SealComplete is sent.
    pub const O_AFTER_SEAL_COMPLETE_SENT: &str = "o-after-seal-complete-sent";
    /// Commit has arrived.
    pub const O_AFTER_COMMIT_RECV: &str = "o-after-commit-recv";
    /// The successor has found its role and said nothing.
    pub const N_BEFORE_HANDSHAKE: &str = "n-before-handshake";
    /// The successor's Hello is answered.
    pub const N_AFTER_HANDSHAKE: &str = "n-after-handshake";
    /// Begin has arrived.
    pub const N_AFTER_BEGIN: &str = "n-after-begin";
    /// The successor holds the lock, its lease says Opening.
    pub const N_AFTER_LOCK: &str = "n-after-lock";
    /// The successor has opened its state and is not Active yet.
    pub const N_BEFORE_ANNOUNCE_READY: &str = "n-before-announce-ready";
    /// Ready is sent.
    pub const N_AFTER_READY: &str = "n-after-ready";
}

/// Dies here if this point is the one that `HANDOFF_CRASH_AT` names; see [`crash`](crate::crash).
///
/// Takes one of [`points`](crate::crash::points) or any other name.
#[cfg(feature = "crash-points")]
#[macro_export]
macro_rules! crash_here {
    ($point:expr $(,)?) => {
        $crate::crash::maybe_crash($point)
    };
}

/// Nothing: the feature `crash-points` is off.
#[cfg(not(feature = "crash-points"))]
#[macro_export]
macro_rules! crash_here {
    ($point:expr $(,)?) => {
        // Never built, but the name counts as used, so that callers need no `cfg` of their own.
        if false {
            let _: &str = $point;
        }
    };
}

/// Dies here if `point` is the one that `HANDOFF_CRASH_AT` names.
#[cfg(feature = "crash-points")]
pub fn maybe_crash(point: &str) {
    armed::crash_if_named(point);
}

/// Nothing: the feature `crash-points` is off. A name given directly may stay in the program; `crash_here!` leaves none.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub const fn maybe_crash(_point: &str) {}

#[cfg(feature = "crash-points")]
mod armed {
    use std::ffi::{OsStr, OsString};
    use std::path::Path;
    use std::sync::OnceLock;

    use crate::sys::process::exit_now;

    const EXIT_STATUS: i32 = 99;

    /// The environment at the first crossing: a handover reads no variable at its later ones.
    struct Plan {
        at: Option<OsString>,
        marker_dir: Option<OsString>,
        role: OsString,
    }

    static PLAN: OnceLock<Plan> = OnceLock::new();

    pub(super) fn crash_if_named(point: &str) {
        let plan = PLAN.get_or_init(|| Plan {
            at: std::env::var_os("HANDOFF_CRASH_AT"),
            marker_dir: std::env::var_os("HANDOFF_CRASH_MARKER_DIR"),
            role: std::env::var_os("HANDOFF_CRASH_ROLE").unwrap_or_else(|| "unknown".into()),
        });
        if plan.at.as_deref() != Some(OsStr::new(point)) {
            return;
        }
        if let Some(dir) = &plan.marker_dir {
            write_marker(Path::new(dir), &plan.role, point);
        }
        exit_now(EXIT_STATUS)
    }

    fn write_marker(dir: &Path, role: &OsStr, point: &str) {
        let mut name = OsString::from("crashed-");
        name.push(role);
        name.push(".marker");
        if let Err(error) = std::fs::write(dir.join(name), point) {
            eprintln!("crash marker of {point} in {}: {error}", dir.display());
        }
    }
}

#[cfg(all(test, feature = "crash-points"))]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs `crosses_two_points` in a process of its own and gives its exit status and marker.
    fn crossing(at: &str, role: Option<&str>) -> (Option<i32>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "crash::tests::crosses_two_points"]);
        command.env("HANDOFF_CRASH_AT", at).env("HANDOFF_CRASH_MARKER_DIR", dir.path());
        command.env_remove("HANDOFF_CRASH_ROLE");
        command.envs(role.map(|role| ("HANDOFF_CRASH_ROLE", role)));
        let status = command.output().unwrap().status;
        let marker = dir.path().join(format!("crashed-{}.marker", role.unwrap_or("unknown")));
        (status.code(), std::fs::read_to_string(marker).ok())
    }

    #[test]
    #[ignore = "run by the other tests in a process of its own"]
    fn crosses_two_points() {
        crash_here!(points::N_AFTER_BEGIN);
        crash_here!(points::N_AFTER_LOCK);
    }

    #[test]
    fn dies_at_the_named_point_with_a_marker() {
        assert_eq!(crossing(points::N_AFTER_LOCK, Some("n")), (Some(99), Some("n-after-lock".into())));
        assert_eq!(crossing(points::N_AFTER_BEGIN, None), (Some(99), Some("n-after-begin".into())));
    }

    #[test]
    fn passes_every_other_point() {
        assert_eq!(crossing(points::N_AFTER_READY, Some("n")), (Some(0), None));
        assert_eq!(crossing("", Some("n")), (Some(0), None));
    }
}
