//! The reference store under a light load, to be disturbed: what must hold after any fault, asked in one place.

use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use handoff_testkit::fixture::{Fixture, Setup, Upgrade};
use handoff_testkit::leaks::{descriptor_count, stray_files};
use handoff_testkit::load::{Cost, Counts, Load, LoadSpec};
use handoff_testkit::store::StoreClient;
use rustix::process::Pid;

use crate::{Outcome, check};

/// How long anything may take that must happen. No test asserts a time; this only ends one that waits for nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// One that keeps its connection, and one that opens a new one for each request.
pub(crate) const CLIENTS: usize = 2;

/// The environment variable that names the program `handoff` to test, such as the one that ships.
const PROGRAM: &str = "HANDOFF_PROGRAM";

/// Every file that a service leaves lying: `.epoch` and its like are the lock's own.
const FILES: [&str; 13] = [
    "control.sock",
    "admin.sock",
    "supervisor.lock",
    "journal",
    "history",
    "service",
    ".handoff.lock",
    ".handoff.epoch",
    ".handoff.pidfile",
    "store.wal",
    "store.checkpoint",
    "handoff.toml",
    "log",
];

/// A store that serves, and a client that writes to it without a pause.
pub(crate) struct Stage {
    pub(crate) fixture: Fixture,
    load: Load,
    /// What the faults so far may have cost its clients.
    cost: Cost,
    /// How many descriptors the supervisor has when nothing is under way.
    descriptors: Option<usize>,
}

impl Stage {
    /// A few connections are enough, and keep the processes small.
    pub(crate) fn setup() -> io::Result<Setup> {
        let setup = Setup::store()?.arg("--connections").arg("4").config("retire = \"5s\"");
        Ok(match std::env::var_os(PROGRAM) {
            Some(program) => setup.program(program),
            None => setup,
        })
    }

    /// Starts it, and hands over once, so that what is made only once is there.
    pub(crate) fn start(setup: Setup) -> Result<Self, Box<dyn std::error::Error>> {
        let mut stage = Self::start_fresh(setup)?;
        stage.hands_over()?;
        Ok(stage)
    }

    /// Starts it: its first handover is the test's.
    pub(crate) fn start_fresh(setup: Setup) -> Result<Self, Box<dyn std::error::Error>> {
        Self::on(setup.prepare()?)
    }

    /// The same in a directory that was changed before.
    pub(crate) fn on(mut fixture: Fixture) -> Result<Self, Box<dyn std::error::Error>> {
        fixture.start_supervisor()?;
        let spec =
            LoadSpec { clients: CLIENTS, ..LoadSpec::new(fixture.endpoint("http")?, &fixture.path().join("acks")) };
        let load = Load::start(&spec, StoreClient::new())?;
        Ok(Self { fixture, load, cost: Cost::NOTHING, descriptors: None })
    }

    /// `handoff upgrade --json`, and an error instead of a wait without an end.
    pub(crate) fn upgrade(&self, args: &[&str]) -> io::Result<Upgrade> {
        let mut command = self.fixture.command(&["upgrade", "--json", "--state-dir"])?;
        command.arg(self.fixture.state_dir()).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let ended = within_patience(|| child.try_wait().map(|status| status.is_some()).unwrap_or(true));
        if !ended {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        if !ended {
            return Err(io::Error::other("`handoff upgrade` does not end"));
        }
        Ok(Upgrade::of(output))
    }

    /// Somebody serves: a write that was sent after this was called, or about then, is acknowledged.
    pub(crate) fn serves(&self) -> Outcome {
        check(self.load.gaps().wait_for_reply_after(Instant::now(), PATIENCE), "somebody serves")
    }

    /// A daemon serves and nothing is under way.
    pub(crate) fn wait_until_at_rest(&mut self) -> Outcome {
        let at_rest = |status: &serde_json::Value| status["incumbent"]["pid"].is_u64() && status["handover"].is_null();
        Ok(self.fixture.wait_until("a daemon serves and nothing is under way", at_rest).map(drop)?)
    }

    /// Nothing is left of a handover, whatever it came to: one supervisor and one daemon, no stray file.
    pub(crate) fn is_tidy(&mut self) -> Outcome {
        self.wait_until_at_rest()?;
        let daemon = self.fixture.incumbent_pid()?;
        let mut family = [self.fixture.supervisor_pid(), daemon];
        family.sort_unstable();
        let mut left = Vec::new();
        let alone = within_patience(|| {
            left = self.family();
            left == family
        });
        check(alone, format!("supervisor and daemon are {family:?}, and there live {left:?}"))?;
        for dir in [self.fixture.state_dir(), self.fixture.data_dir().to_owned()] {
            let mut strays = Vec::new();
            // A build that can't be linked is copied behind everybody's back.
            let tidy = within_patience(|| {
                strays = stray_files(&dir, |name| FILES.contains(&name) || is_kept_build(name)).unwrap_or_default();
                strays.is_empty()
            });
            check(tidy, format!("files were left behind: {strays:?}"))?;
        }
        Ok(())
    }

    /// The processes of the service, without those that look on.
    pub(crate) fn family(&self) -> Vec<u32> {
        let mut family: Vec<u32> = self.fixture.processes().into_iter().filter(|pid| !is_strace(*pid)).collect();
        family.sort_unstable();
        family
    }

    /// Those that look on.
    pub(crate) fn straces(&self) -> Vec<Pid> {
        let straces = self.fixture.processes().into_iter().filter(|pid| is_strace(*pid));
        straces.filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw)).collect()
    }

    /// The next handover commits, and costs the supervisor no descriptor.
    pub(crate) fn hands_over(&mut self) -> Outcome {
        // The program itself, whatever was handed over to last.
        let program = std::env::current_exe()?;
        let upgrade = self.upgrade(&[&program.to_string_lossy()])?;
        check(upgrade.committed(), format!("the next handover commits: {upgrade:?}"))?;
        self.serves()?;
        self.is_tidy()?;
        let supervisor = self.fixture.supervisor_pid();
        let expected = match self.descriptors {
            Some(expected) => expected,
            None => descriptor_count(supervisor)?,
        };
        // A client of the admin socket may still be on its way out.
        let mut open = 0;
        let steady = within_patience(|| {
            open = descriptor_count(supervisor).unwrap_or_default();
            open <= expected
        });
        check(steady, format!("the supervisor had {expected} descriptors and has {open}"))?;
        self.descriptors = Some(open);
        Ok(())
    }

    /// What the clients have seen so far.
    pub(crate) fn counts(&self) -> Counts {
        self.load.counts()
    }

    /// A fault has cost the clients no more than this since then.
    pub(crate) fn charge(&mut self, before: &Counts, cost: Cost) -> Outcome {
        self.cost += cost;
        let problems = self.load.counts().since(before).problems(cost);
        check(problems.is_empty(), problems.join("; "))
    }

    /// Starts the supervisor again after it has died.
    pub(crate) fn restart_supervisor(&mut self) -> Outcome {
        self.fixture.kill_supervisor()?;
        self.descriptors = None;
        Ok(self.fixture.start_supervisor()?)
    }

    /// Stops everything and compares what was acknowledged with what is on disk.
    pub(crate) fn finish(mut self) -> Outcome {
        let seen = self.load.stop()?;
        let stopped = self.fixture.stop()?;
        check(stopped.success(), format!("{stopped}\n{}", self.fixture.log()))?;
        let verdict = self.fixture.verify(&seen, self.cost)?;
        check(verdict.is_clean(), format!("{:?}\n{}", verdict.problems(), self.fixture.log()))
    }
}

fn is_strace(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "strace\n")
}

/// The builds that a supervisor keeps are numbered.
fn is_kept_build(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `reached` says yes in time.
pub(crate) fn within_patience(mut reached: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        if reached() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        thread::park_timeout(Duration::from_millis(2));
    }
}
