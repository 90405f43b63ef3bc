//! Crash points: named places of a handover at which a test lets the process die, freeze, dawdle or fail (feature
//! `crash-points`).
//!
//! With the feature, a process leaves by `_exit(99)` at the point that `HANDOFF_CRASH_AT` names, after it wrote that name to
//! `$HANDOFF_CRASH_MARKER_DIR/crashed-$HANDOFF_CRASH_ROLE.marker` (no directory: no marker; no role: `unknown`). Without
//! it, [`crash_here!`](crate::crash_here) and [`maybe_crash`] are nothing, and no name is left in the program.
//!
//! | further variable | meaning |
//! |---|---|
//! | `HANDOFF_CRASH_HOW` | `exit` (default), `kill` (SIGKILL to itself), `stop` (SIGSTOP to itself), `delay:MS` (sleeps that long and goes on), `error` (the library's call or the hook at this point returns an error, where there is one) |
//! | `HANDOFF_CRASH_ONCE` | set: only the first process that comes by. The variables are inherited by every generation; whoever finds the marker does nothing. The pid goes to `crashed-ROLE.pid` beside it, and one that was stopped and goes on leaves `crashed-ROLE.awake` |
//! | `HANDOFF_CRASH_PLAN` | a file of lines `NAME=VALUE` that stand for the variables above; an empty line ends one fault and begins another. It is read at every crossing, so that each handover of a running service can have faults of its own |
//! | `HANDOFF_TIMING` | the protocol's intervals in milliseconds, such as `liveness=1500,heartbeat=300`, so that a test need not wait for the real ones |

mod timing;

pub(crate) use timing::initial as initial_timing;
#[cfg(feature = "crash-points")]
pub use timing::variable as timing_variable;

/// The points' names. Prefix: the role that dies. `s`: supervisor, `o`: incumbent, `n`: successor.
pub mod points {
    /// Makes the constants, and the list of all of them: a new point can't be forgotten in it.
    macro_rules! points {
        ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
            $($(#[$doc])* pub const $name: &str = $text;)+
            /// All of them, in the order of a handover, role by role.
            pub const ALL: &[&str] = &[$($name),+];
        };
    }

    points! {
        /// The supervisor has read the incumbent's Hello.
        S_AFTER_O_HELLO = "s-after-o-hello",
        /// The successor is started.
        S_AFTER_SPAWN_SUCCESSOR = "s-after-spawn-successor",
        /// The supervisor has read the successor's Hello.
        S_AFTER_N_HELLO = "s-after-n-hello",
        /// PrepareHandoff is sent.
        S_AFTER_PREPARE_SENT = "s-after-prepare-sent",
        /// Drained has arrived.
        S_AFTER_DRAINED_RECV = "s-after-drained-recv",
        /// SealRequest is sent.
        S_AFTER_SEAL_REQUEST_SENT = "s-after-seal-request-sent",
        /// SealComplete has arrived.
        S_AFTER_SEAL_COMPLETE_RECV = "s-after-seal-complete-recv",
        /// Begin is sent.
        S_AFTER_BEGIN_SENT = "s-after-begin-sent",
        /// Ready has arrived.
        S_AFTER_READY_RECV = "s-after-ready-recv",
        /// Commit is sent.
        S_AFTER_COMMIT_SENT = "s-after-commit-sent",
        /// The journal says that nothing is under way.
        S_AFTER_JOURNAL_CLEAR = "s-after-journal-clear",
        /// A supervisor that was started again knows who serves, and has noted nothing of it.
        S_IN_RECOVERY = "s-in-recovery",
        /// The drain hook has returned, and nobody was told.
        O_IN_DRAIN = "o-in-drain",
        /// The incumbent has sent Drained.
        O_AFTER_DRAINED_SENT = "o-after-drained-sent",
        /// The seal hook has returned, the lock is still held.
        O_IN_SEAL = "o-in-seal",
        /// The incumbent has sealed and released the lock, and told nobody.
        O_AFTER_SEAL_FLOCK_RELEASED = "o-after-seal-flock-released",
        /// SealComplete is sent.
        O_AFTER_SEAL_COMPLETE_SENT = "o-after-seal-complete-sent",
        /// Commit has arrived.
        O_AFTER_COMMIT_RECV = "o-after-commit-recv",
        /// The handover is undone, `resume_after_abort` is not called yet.
        O_IN_RESUME = "o-in-resume",
        /// The successor has found its role and said nothing.
        N_BEFORE_HANDSHAKE = "n-before-handshake",
        /// The successor's Hello is answered.
        N_AFTER_HANDSHAKE = "n-after-handshake",
        /// Begin has arrived.
        N_AFTER_BEGIN = "n-after-begin",
        /// The successor holds the lock, its lease says Opening.
        N_AFTER_LOCK = "n-after-lock",
        /// The successor has opened its state and is not Active yet.
        N_BEFORE_ANNOUNCE_READY = "n-before-announce-ready",
        /// Ready is sent.
        N_AFTER_READY = "n-after-ready",
    }
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

/// The error that `HANDOFF_CRASH_HOW=error` asks for, if `point` is the one that `HANDOFF_CRASH_AT` names. For a daemon's own hooks,
/// beside [`crash_here!`](crate::crash_here).
///
/// # Errors
/// On purpose, and only with the feature `crash-points`.
#[cfg(feature = "crash-points")]
pub fn maybe_fail(point: &str) -> std::io::Result<()> {
    armed::fail_if_named(point)
}

/// Nothing: the feature `crash-points` is off.
///
/// # Errors
/// None.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub const fn maybe_fail(_point: &str) -> std::io::Result<()> {
    Ok(())
}

/// Returns the error that `HANDOFF_CRASH_HOW=error` asks for at this point.
#[cfg(feature = "crash-points")]
macro_rules! fail_here {
    ($point:expr) => {
        $crate::crash::maybe_fail($point)
    };
}

/// Never an error: the feature `crash-points` is off.
#[cfg(not(feature = "crash-points"))]
macro_rules! fail_here {
    ($point:expr) => {{
        if false {
            let _: &str = $point;
        }
        std::io::Result::Ok(())
    }};
}

pub(crate) use fail_here;

#[cfg(feature = "crash-points")]
mod armed {
    use std::borrow::Cow;
    use std::env::var_os;
    use std::ffi::{OsStr, OsString};
    use std::fs::{File, read_to_string, write};
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use crate::sys::process::{exit_now, signal_self};

    const EXIT_STATUS: i32 = 99;

    /// What is to happen, and where.
    #[derive(Clone)]
    struct Plan {
        at: Option<OsString>,
        how: How,
        often: Often,
        marker_dir: Option<PathBuf>,
        role: OsString,
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum How {
        Exit,
        Kill,
        Stop,
        Delay(Duration),
        Fail,
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Often {
        Always,
        Once,
    }

    /// Where the plan stands.
    enum Source {
        /// In the environment, as it was at the first crossing: a handover reads no variable at its later ones.
        Environment([Plan; 1]),
        File(PathBuf),
    }

    static SOURCE: OnceLock<Source> = OnceLock::new();

    pub(super) fn crash_if_named(point: &str) {
        for plan in plans().iter().filter(|plan| plan.names(point) && plan.how != How::Fail) {
            if plan.leave_marker(point) {
                plan.strike();
            }
        }
    }

    pub(super) fn fail_if_named(point: &str) -> io::Result<()> {
        let fails = |plan: &&Plan| plan.names(point) && plan.how == How::Fail && plan.leave_marker(point);
        match plans().iter().find(fails) {
            Some(_) => Err(io::Error::other(format!("an error on purpose at {point}"))),
            None => Ok(()),
        }
    }

    fn plans() -> Cow<'static, [Plan]> {
        let source = SOURCE.get_or_init(|| match var_os("HANDOFF_CRASH_PLAN") {
            Some(path) => Source::File(path.into()),
            None => Source::Environment([Plan::of(|name| var_os(name))]),
        });
        match source {
            Source::Environment(plan) => Cow::Borrowed(plan),
            Source::File(path) => Cow::Owned(Plan::read_all(path)),
        }
    }

    fn how(text: &str) -> How {
        let delay = || text.strip_prefix("delay:")?.parse().ok().map(Duration::from_millis).map(How::Delay);
        match text {
            "exit" => How::Exit,
            "kill" => How::Kill,
            "stop" => How::Stop,
            "error" => How::Fail,
            _ => delay().unwrap_or_else(|| {
                eprintln!("HANDOFF_CRASH_HOW={text}: write exit, kill, stop, delay:MS or error; exit is taken");
                How::Exit
            }),
        }
    }

    impl Plan {
        fn of(value: impl Fn(&str) -> Option<OsString>) -> Self {
            Self {
                at: value("HANDOFF_CRASH_AT"),
                how: value("HANDOFF_CRASH_HOW").map_or(How::Exit, |text| how(&text.to_string_lossy())),
                often: value("HANDOFF_CRASH_ONCE").map_or(Often::Always, |_| Often::Once),
                marker_dir: value("HANDOFF_CRASH_MARKER_DIR").map(PathBuf::from),
                role: value("HANDOFF_CRASH_ROLE").unwrap_or_else(|| "unknown".into()),
            }
        }

        /// Where there is no such file, nothing is to happen.
        fn read_all(path: &Path) -> Vec<Self> {
            let text = read_to_string(path).unwrap_or_default();
            let read = |fault: &str| {
                Self::of(|name| {
                    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.into());
                    fault.lines().find_map(value)
                })
            };
            text.split("\n\n").map(read).collect()
        }

        /// What is to happen, when the marker is left.
        fn strike(&self) {
            match self.how {
                How::Exit => exit_now(EXIT_STATUS),
                How::Kill => signal_self(libc::SIGKILL),
                How::Stop => {
                    signal_self(libc::SIGSTOP);
                    self.note_awake();
                }
                // The delay is the fault itself; nothing is waited for.
                How::Delay(time) => std::thread::sleep(time),
                How::Fail => {}
            }
        }

        fn names(&self, point: &str) -> bool {
            self.at.as_deref() == Some(OsStr::new(point))
        }

        /// False when another process has been here before, and it is to happen once.
        fn leave_marker(&self, point: &str) -> bool {
            let Some(dir) = &self.marker_dir else { return true };
            let left = match self.often {
                Often::Always => write(self.path(dir, "marker"), point),
                Often::Once => self.leave_only_marker(dir, point),
            };
            match left {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return false,
                Err(error) => eprintln!("crash marker of {point} in {}: {error}", dir.display()),
                Ok(()) => {}
            }
            true
        }

        /// The pid stands there before the marker is whole: who finds the point's name finds the pid too.
        fn leave_only_marker(&self, dir: &Path, point: &str) -> io::Result<()> {
            let mut marker = File::create_new(self.path(dir, "marker"))?;
            write(self.path(dir, "pid"), std::process::id().to_string())?;
            marker.write_all(point.as_bytes())
        }

        /// Somebody has sent SIGCONT, perhaps too soon for the stop to be seen from outside.
        fn note_awake(&self) {
            if let (Some(dir), Often::Once) = (&self.marker_dir, self.often)
                && let Err(error) = File::create(self.path(dir, "awake"))
            {
                eprintln!("crash marker in {}: {error}", dir.display());
            }
        }

        fn path(&self, dir: &Path, extension: &str) -> PathBuf {
            let mut name = OsString::from("crashed-");
            name.push(&self.role);
            name.push(".");
            name.push(extension);
            dir.join(name)
        }
    }
}

#[cfg(all(test, feature = "crash-points"))]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs `crosses_two_points` in a process of its own, in a directory of markers.
    fn crossing_in(dir: &std::path::Path, variables: &[(&str, &str)]) -> std::process::ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "crash::tests::crosses_two_points"]);
        command.env("HANDOFF_CRASH_MARKER_DIR", dir).env_remove("HANDOFF_CRASH_ROLE");
        command.envs(variables.iter().copied()).output().unwrap().status
    }

    /// The same in a new directory; gives the exit status and the marker.
    fn crossing(at: &str, role: Option<&str>) -> (Option<i32>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let mut variables = vec![("HANDOFF_CRASH_AT", at)];
        variables.extend(role.map(|role| ("HANDOFF_CRASH_ROLE", role)));
        let status = crossing_in(dir.path(), &variables);
        let marker = dir.path().join(format!("crashed-{}.marker", role.unwrap_or("unknown")));
        (status.code(), std::fs::read_to_string(marker).ok())
    }

    #[test]
    #[ignore = "run by the other tests in a process of its own"]
    fn crosses_two_points() {
        crash_here!(points::N_AFTER_BEGIN);
        crash_here!(points::N_AFTER_LOCK);
        if let Err(error) = fail_here!(points::N_AFTER_LOCK) {
            panic!("{error}");
        }
    }

    #[test]
    fn every_point_is_listed_under_its_role() {
        assert_eq!(points::ALL.len(), 25);
        assert!(points::ALL.iter().all(|point| ["s-", "o-", "n-"].iter().any(|role| point.starts_with(role))));
    }

    #[test]
    fn the_manner_of_the_crash_is_as_told() {
        use std::os::unix::process::ExitStatusExt;
        let dir = tempfile::tempdir().unwrap();
        let run =
            |how| crossing_in(dir.path(), &[("HANDOFF_CRASH_AT", points::N_AFTER_LOCK), ("HANDOFF_CRASH_HOW", how)]);
        assert_eq!(run("exit").code(), Some(99));
        assert_eq!(run("kill").signal(), Some(9));
        assert_eq!(run("delay:1").code(), Some(0));
        assert_eq!(run("error").code(), Some(101), "the call fails, and the test with it");
        assert_eq!(run("gently").code(), Some(99), "what is not understood is the default");
    }

    #[test]
    fn once_means_the_first_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let run =
            || crossing_in(dir.path(), &[("HANDOFF_CRASH_AT", points::N_AFTER_LOCK), ("HANDOFF_CRASH_ONCE", "1")]);
        assert_eq!([run().code(), run().code()], [Some(99), Some(0)]);
        let pid = std::fs::read_to_string(dir.path().join("crashed-unknown.pid")).unwrap();
        assert!(pid.parse::<u32>().is_ok(), "{pid}");
    }

    #[test]
    fn a_file_says_anew_what_is_to_happen() {
        let dir = tempfile::tempdir().unwrap();
        let plan = dir.path().join("plan");
        let run = || crossing_in(dir.path(), &[("HANDOFF_CRASH_PLAN", plan.to_str().unwrap())]).code();
        assert_eq!(run(), Some(0), "no plan");
        std::fs::write(&plan, "HANDOFF_CRASH_AT=n-after-lock\n").unwrap();
        assert_eq!(run(), Some(99));
        std::fs::write(&plan, "HANDOFF_CRASH_AT=n-after-lock\nHANDOFF_CRASH_HOW=error\n").unwrap();
        assert_eq!(run(), Some(101));
        std::fs::write(&plan, "HANDOFF_CRASH_AT=n-after-ready\n").unwrap();
        assert_eq!(run(), Some(0));
        let two = "HANDOFF_CRASH_AT=n-after-begin\nHANDOFF_CRASH_HOW=delay:1\n\nHANDOFF_CRASH_AT=n-after-lock\n";
        std::fs::write(&plan, two).unwrap();
        assert_eq!(run(), Some(99), "the first fault is over, and the second one strikes");
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
