//! The fault of one handover: ordered in a file that every process of the service reads at its crash points, told by the
//! marker that the process leaves, and confirmed from outside.
//!
//! Invariant: one fault at a time, in a marker directory of its own, and it happens once.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rustix::process::Signal;

use super::points::{Fault, Role};
use super::settled::{PATIENCE, until};
use super::table::led_to_by;
use super::{HOLD, Row};
use crate::crash::ProcessCrash;
use crate::fixture::Fixture;
use crate::leaks::process_state;

/// Where the faults of one service are ordered.
#[derive(Debug)]
pub(super) struct Trap {
    dir: tempfile::TempDir,
    set: u32,
}

/// A fault that is ordered.
#[derive(Debug)]
pub(super) struct Armed {
    row: Row,
    crash: ProcessCrash,
}

impl Trap {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, set: 0 })
    }

    /// The variable by which the service's processes find their orders.
    pub(super) fn variable(&self) -> (&'static str, String) {
        ("HANDOFF_CRASH_PLAN", self.plan().to_string_lossy().into_owned())
    }

    /// Orders the fault of this row; it takes the place of the one before.
    pub(super) fn set(&mut self, row: &Row) -> io::Result<Armed> {
        self.set += 1;
        let markers = self.dir.path().join(self.set.to_string());
        fs::create_dir(&markers)?;
        let crash = ProcessCrash::new(row.point.name(), &row.point.role().to_string(), &markers);
        let how = match row.fault {
            Fault::Exit => "exit".to_owned(),
            Fault::Kill => "kill".to_owned(),
            Fault::Stop | Fault::StopCont | Fault::Pause => "stop".to_owned(),
            Fault::Delay => format!("delay:{}", HOLD.as_millis()),
            Fault::Error => "error".to_owned(),
        };
        let mut plan = format!("HANDOFF_CRASH_HOW={how}\nHANDOFF_CRASH_ONCE=1\n");
        for (name, value) in crash.env() {
            plan.push_str(&format!("{}={}\n", name.to_string_lossy(), value.to_string_lossy()));
        }
        // Whoever reads it finds it whole.
        let new = self.dir.path().join("plan.new");
        fs::write(&new, plan)?;
        fs::rename(new, self.plan())?;
        Ok(Armed { row: *row, crash })
    }

    fn plan(&self) -> PathBuf {
        self.dir.path().join("plan")
    }
}

impl Armed {
    /// A successor that dies, where the point is reached only through its death: the same binary with a fault of its own.
    pub(super) fn doomed(&self, fixture: &Fixture, binary: &Path) -> io::Result<Option<PathBuf>> {
        let Some(death) = led_to_by(self.row.point) else { return Ok(None) };
        let path = fixture.path().join("doomed");
        let quoted = binary.to_string_lossy().replace('\'', "'\\''");
        let script = format!(
            "#!/bin/sh\nunset HANDOFF_CRASH_PLAN\nexport HANDOFF_CRASH_AT={} HANDOFF_CRASH_HOW=exit\nexec '{quoted}' \"$@\"\n",
            death.name()
        );
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Some(path))
    }

    /// Waits for the marker, and gives the pid of the process that left it.
    pub(super) fn wait_until_fired(&self) -> io::Result<u32> {
        // It is there a moment before it is whole.
        let fired = || Ok(if self.crash.has_fired().unwrap_or(false) { Ok(()) } else { Err("no marker") });
        until("the point is reached", fired)?;
        let pid = fs::read_to_string(self.crash.marker_path().with_extension("pid"))?;
        pid.trim().parse().map_err(io::Error::other)
    }

    /// What the marker announces is seen from outside: by the exit status where the process is our child, else by its state.
    pub(super) fn confirm(&self, fixture: &mut Fixture, hit: u32) -> io::Result<()> {
        match (self.row.fault, self.row.point.role()) {
            (Fault::Exit | Fault::Kill, Role::Supervisor) => {
                let status = fixture.wait_for_supervisor(PATIENCE)?;
                let as_told = |status: ExitStatus| match self.row.fault {
                    Fault::Exit => ProcessCrash::is_crash(status),
                    _ => status.signal() == Some(Signal::KILL.as_raw()),
                };
                if as_told(status) {
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

    /// There when a stopped process has gone on.
    fn awake(&self) -> PathBuf {
        self.crash.marker_path().with_extension("awake")
    }
}
