//! The faults of one handover: ordered in a file that every process of the service reads at its crash points, told by the marker that
//! the process leaves, and confirmed from outside.
//!
//! Invariant: each fault has a marker directory of its own, and happens once.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rustix::process::Signal;

use super::points::{Fault, Place, Point, Role};
use super::settled::{PATIENCE, until};
use super::table::SLOW_HOOK;
use super::{HOLD, Hooks, Row, Strike, Times};
use crate::crash::ProcessCrash;
use crate::fixture::Fixture;
use crate::leaks::process_state;

/// Where the faults of one service are ordered.
#[derive(Debug)]
pub(super) struct Trap {
    dir: tempfile::TempDir,
    set: u32,
    /// The subject's own points that lie in its hooks and in its opening: where it can be made slow.
    slow: Vec<(Place, &'static str)>,
    /// What must have been left by the resumes that were to fail, one after the other.
    failing_resumes: Vec<ProcessCrash>,
}

/// A fault that is ordered.
#[derive(Debug, Clone)]
pub(super) struct Armed {
    pub(super) strike: Strike,
    crash: ProcessCrash,
}

impl Trap {
    pub(super) fn new(points: &[super::OwnPoint]) -> io::Result<Self> {
        let slow = points.iter().map(|point| (point.place, point.name)).collect();
        Ok(Self { dir: tempfile::tempdir()?, set: 0, slow, failing_resumes: Vec::new() })
    }

    /// The variable by which the service's processes find their orders.
    pub(super) fn variable(&self) -> (&'static str, String) {
        ("HANDOFF_CRASH_PLAN", self.plan().to_string_lossy().into_owned())
    }

    /// Orders the faults of this row; they take the place of those before.
    pub(super) fn set(&mut self, row: &Row) -> io::Result<Vec<Armed>> {
        let strikes = [Some(row.strike()), row.second];
        let armed = strikes.into_iter().flatten().map(|strike| self.arm(strike)).collect::<io::Result<Vec<_>>>()?;
        let resumes = self.fail_resumes(row.hooks)?;
        let faults: Vec<String> = armed.iter().map(Armed::order).chain(self.delays(row.hooks)).chain(resumes).collect();
        self.write(&faults.join("\n"))?;
        Ok(armed)
    }

    /// Nothing is to happen any more.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.write("")
    }

    fn arm(&mut self, strike: Strike) -> io::Result<Armed> {
        self.set += 1;
        let markers = self.dir.path().join(self.set.to_string());
        fs::create_dir(&markers)?;
        let crash = ProcessCrash::new(strike.point.name(), &strike.point.role().to_string(), &markers);
        Ok(Armed { strike, crash })
    }

    /// What makes hooks or an opening slow: each process sleeps there, each time.
    fn delays(&self, hooks: Hooks) -> Vec<String> {
        let (places, time): (&[Place], _) = match hooks {
            Hooks::AsTheyAre | Hooks::FailingResume(_) => return Vec::new(),
            Hooks::Slow => (&[Place::Drain, Place::Seal], SLOW_HOOK),
            Hooks::Opening(time) => (&[Place::Opening], time),
        };
        let delayed = self.slow.iter().filter(|(place, _)| places.contains(place));
        delayed
            .map(|(_, name)| format!("HANDOFF_CRASH_AT={name}\nHANDOFF_CRASH_HOW=delay:{}\n", time.as_millis()))
            .collect()
    }

    /// What makes the incumbent's resume fail, so often in a row.
    fn fail_resumes(&mut self, hooks: Hooks) -> io::Result<Vec<String>> {
        self.failing_resumes.clear();
        let (count, once) = match hooks {
            Hooks::FailingResume(Times::Once) => (1, "HANDOFF_CRASH_ONCE=1\n"),
            Hooks::FailingResume(Times::Thrice) => (3, "HANDOFF_CRASH_ONCE=1\n"),
            Hooks::FailingResume(Times::Always) => (1, ""),
            Hooks::AsTheyAre | Hooks::Slow | Hooks::Opening(_) => return Ok(Vec::new()),
        };
        for _ in 0..count {
            let strike = Strike { point: Point::OInResume, fault: Fault::Error };
            let armed = self.arm(strike)?;
            self.failing_resumes.push(armed.crash);
        }
        Ok(self
            .failing_resumes
            .iter()
            .map(|crash| format!("HANDOFF_CRASH_HOW=error\n{once}{}", lines(crash)))
            .collect())
    }

    /// How many of the resumes that were to fail have not. Each has a directory of its own, and one that fails again and again writes its
    /// marker anew: that there is one says enough.
    pub(super) fn resumes_that_did_not_fail(&self) -> usize {
        self.failing_resumes.iter().filter(|crash| !crash.marker_path().exists()).count()
    }

    /// Whoever reads it finds it whole.
    fn write(&self, plan: &str) -> io::Result<()> {
        let new = self.dir.path().join("plan.new");
        fs::write(&new, plan)?;
        fs::rename(new, self.plan())
    }

    fn plan(&self) -> PathBuf {
        self.dir.path().join("plan")
    }
}

/// A successor that dies, where a point is reached only through its death: the same binary with a fault of its own.
pub(super) fn doomed(fixture: &Fixture, binary: &Path, death: Point) -> io::Result<PathBuf> {
    let path = fixture.path().join("doomed");
    let quoted = binary.to_string_lossy().replace('\'', "'\\''");
    let script = format!(
        "#!/bin/sh\nunset HANDOFF_CRASH_PLAN\nexport HANDOFF_CRASH_AT={} HANDOFF_CRASH_HOW=exit\nexec '{quoted}' \"$@\"\n",
        death.name()
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

impl Armed {
    /// Its part of the plan.
    fn order(&self) -> String {
        let how = match self.strike.fault {
            Fault::Exit => "exit".to_owned(),
            Fault::Kill => "kill".to_owned(),
            Fault::Stop | Fault::StopCont | Fault::Pause => "stop".to_owned(),
            Fault::Delay => format!("delay:{}", HOLD.as_millis()),
            Fault::Error => "error".to_owned(),
        };
        format!("HANDOFF_CRASH_HOW={how}\nHANDOFF_CRASH_ONCE=1\n{}", lines(&self.crash))
    }

    /// The pid of the process that left the marker, once there is one.
    pub(super) fn hit(&self) -> io::Result<Option<u32>> {
        // It is there a moment before it is whole.
        if !self.crash.has_fired().unwrap_or(false) {
            return Ok(None);
        }
        let pid = fs::read_to_string(self.crash.marker_path().with_extension("pid"))?;
        pid.trim().parse().map(Some).map_err(io::Error::other)
    }

    /// What the marker announces is seen from outside: by the exit status where the process is our child, else by its state.
    pub(super) fn confirm(&self, fixture: &mut Fixture, hit: u32) -> io::Result<()> {
        match (self.strike.fault, self.strike.point.role()) {
            (Fault::Exit | Fault::Kill, Role::Supervisor) => {
                let status = fixture.wait_for_supervisor(PATIENCE)?;
                if self.explains(status) {
                    Ok(())
                } else {
                    Err(io::Error::other(format!("the supervisor ended with {status}")))
                }
            }
            (Fault::Exit | Fault::Kill, _) => until("it is dead", || {
                let state = process_state(hit);
                Ok(if matches!(state, None | Some('Z' | 'X')) { Ok(()) } else { Err(state) })
            }),
            (Fault::Stop | Fault::StopCont | Fault::Pause, _) => until("it is stopped", || {
                let state = process_state(hit);
                // Whoever watches it may have ended it, or told it to go on, already.
                let was_stopped = matches!(state, None | Some('T' | 't' | 'Z' | 'X'));
                Ok(if was_stopped || self.awake().exists() { Ok(()) } else { Err(state) })
            }),
            (Fault::Delay | Fault::Error, _) => Ok(()),
        }
    }

    fn explains(&self, status: ExitStatus) -> bool {
        match self.strike.fault {
            Fault::Exit => ProcessCrash::is_crash(status),
            _ => status.signal() == Some(Signal::KILL.as_raw()),
        }
    }

    /// There when a stopped process has gone on.
    fn awake(&self) -> PathBuf {
        self.crash.marker_path().with_extension("awake")
    }
}

/// Where it happens, and where it leaves its marker.
fn lines(crash: &ProcessCrash) -> String {
    let variables = crash.env();
    let line = |(name, value): &(std::ffi::OsString, std::ffi::OsString)| {
        format!("{}={}\n", name.to_string_lossy(), value.to_string_lossy())
    };
    variables.iter().map(line).collect()
}
