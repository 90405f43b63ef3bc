//! The faults on the demo's way: a killed successor, a failed seal, a killed and a frozen supervisor, in a seeded order.
//!
//! All of them befall real processes. Which phase a supervisor dies in, and which step a successor dies at, is drawn too.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use fastrand::Rng;
use handoff_runtime::crash::points;
use handoff_testkit::fixture::{Fixture, Upgrade};
use rustix::process::{Pid, Signal, kill_process};

/// What happens on the way of one handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The successor is killed before it serves.
    KilledSuccessor,
    /// The incumbent's seal fails.
    FailedSeal,
    /// The supervisor is killed in the middle, and started again.
    KilledSupervisor,
    /// The supervisor freezes in the middle, and another one is started beside it.
    FrozenSupervisor,
}

impl Fault {
    /// What is struck, for the one who looks on.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::KilledSuccessor => "the new process is killed",
            Self::FailedSeal => "the old process's seal fails",
            Self::KilledSupervisor => "the supervisor is killed, and started again",
            Self::FrozenSupervisor => "the supervisor freezes, and another one takes its place",
        }
    }
}

/// Every this many handovers, one has a fault.
const EVERY: u32 = 2;

/// Where a successor may die.
const STEPS: [&str; 5] = [
    points::N_BEFORE_HANDSHAKE,
    points::N_AFTER_HANDSHAKE,
    points::N_AFTER_BEGIN,
    points::N_AFTER_LOCK,
    points::N_BEFORE_ANNOUNCE_READY,
];

/// Where a supervisor may be struck, as `handoff upgrade` names the phases.
const PHASES: [&str; 5] = ["spawning", "warming", "draining", "sealing", "awaiting_ready"];

/// Which handover has which fault: each kind in turn, shuffled, the slow one only once.
pub(crate) fn plan(handovers: u32, seed: u64) -> Vec<Option<Fault>> {
    let mut rng = Rng::with_seed(seed);
    let mut kinds = [Fault::KilledSuccessor, Fault::FailedSeal, Fault::KilledSupervisor];
    rng.shuffle(&mut kinds);
    let mut cycle = kinds.into_iter().cycle();
    // A frozen supervisor is given ten seconds to answer before another one takes its place.
    let frozen = (handovers / EVERY / 2 + 1) * EVERY;
    (1..=handovers)
        .map(|number| match number {
            _ if number == frozen => Some(Fault::FrozenSupervisor),
            _ if number % EVERY == 0 => cycle.next(),
            _ => None,
        })
        .collect()
}

/// Strikes handovers of one fixture.
pub(crate) struct Mischief {
    rng: Rng,
    scripts: u32,
}

/// Who serves after a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Committed,
    RolledBack,
}

impl Mischief {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), scripts: 0 }
    }

    /// One handover with this fault; comes back when a daemon serves and can be handed over again.
    ///
    /// # Errors
    /// Something else happened than the fault allows.
    pub(crate) fn hand_over(&mut self, fixture: &mut Fixture, fault: Fault) -> io::Result<Ended> {
        let before = fixture.incumbent_pid()?;
        match fault {
            Fault::KilledSuccessor => {
                let point = STEPS[self.rng.usize(..STEPS.len())];
                let dying = self.script(fixture, &format!("HANDOFF_CRASH_AT={point} HANDOFF_CRASH_HOW=kill"))?;
                return expect_rollback(&fixture.upgrade(&[&dying.to_string_lossy()])?);
            }
            Fault::FailedSeal => return self.fail_a_seal(fixture),
            Fault::KilledSupervisor => {
                self.strike_at_a_phase(fixture, Fixture::kill_supervisor)?;
                fixture.start_supervisor()?;
            }
            Fault::FrozenSupervisor => {
                let mut frozen = None;
                self.strike_at_a_phase(fixture, |fixture| {
                    frozen = fixture.release_supervisor();
                    frozen.as_ref().map_or(Ok(()), freeze)
                })?;
                fixture.start_supervisor()?;
                // The new one has ended it.
                frozen.map_or(Ok(()), |mut frozen| frozen.wait().map(drop))?;
            }
        }
        let after = fixture.incumbent_pid()?;
        Ok(if after == before { Ended::RolledBack } else { Ended::Committed })
    }

    /// A generation whose first seal fails takes over, and is then asked to hand over.
    fn fail_a_seal(&mut self, fixture: &Fixture) -> io::Result<Ended> {
        let markers = fixture.path().join(format!("markers-{}", self.scripts));
        fs::create_dir(&markers)?;
        let variables = format!(
            "HANDOFF_CRASH_AT={} HANDOFF_CRASH_HOW=error HANDOFF_CRASH_ONCE=1 HANDOFF_CRASH_MARKER_DIR='{}'",
            points::O_IN_SEAL,
            markers.display()
        );
        let sick = self.script(fixture, &variables)?;
        let taken_over = fixture.upgrade(&[&sick.to_string_lossy()])?;
        if !taken_over.committed() {
            return Err(io::Error::other(format!("the handover before the failed seal: {taken_over:?}")));
        }
        expect_rollback(&fixture.upgrade(&[])?)
    }

    /// Starts a handover, and strikes the supervisor when a drawn phase begins.
    fn strike_at_a_phase(
        &mut self,
        fixture: &mut Fixture,
        strike: impl FnOnce(&mut Fixture) -> io::Result<()>,
    ) -> io::Result<()> {
        let phase = PHASES[self.rng.usize(..PHASES.len())];
        let mut command = fixture.command(&["upgrade", "--state-dir"])?;
        let mut upgrade = command.arg(fixture.state_dir()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(upgrade.stdout.take().expect("it is piped")).lines();
        for line in lines {
            if line?.contains(phase) {
                break;
            }
        }
        strike(fixture)?;
        // Nobody answers it any more.
        upgrade.kill()?;
        upgrade.wait().map(drop)
    }

    /// The calling program with further variables in its environment, as a file that can be started.
    fn script(&mut self, fixture: &Fixture, variables: &str) -> io::Result<PathBuf> {
        self.scripts += 1;
        let path = fixture.path().join(format!("build-{}", self.scripts));
        let program = std::env::current_exe()?;
        fs::write(&path, format!("#!/bin/sh\nexec env {variables} '{}' \"$@\"\n", program.display()))?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(path)
    }
}

fn freeze(process: &Child) -> io::Result<()> {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
    pid.map_or(Ok(()), |pid| kill_process(pid, Signal::STOP).map_err(io::Error::from))
}

fn expect_rollback(upgrade: &Upgrade) -> io::Result<Ended> {
    match upgrade.code {
        Some(2) => Ok(Ended::RolledBack),
        _ => Err(io::Error::other(format!("the handover was to be undone: {upgrade:?}"))),
    }
}
