//! A service under a light load, and what must be true of it at the end.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use handoff_lock::{Lease, LeaseState};
use handoff_testkit::audit::Verdict;
use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::{Cost, Load, LoadSpec, Seen};
use handoff_testkit::store::StoreClient;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Outcome, check};

/// The longest that anything here is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A free address, and the same one after every restart: a service of which nobody is left binds its listeners anew. Taken
/// from below the ports that the kernel gives to clients, so that none of them has it meanwhile.
pub(super) fn fixed_address() -> Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let port = 10_000 + (std::process::id().wrapping_mul(64) + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let address = format!("127.0.0.1:{port}");
        if std::net::TcpListener::bind(&address).is_ok() {
            return Ok(address);
        }
    }
    Err("no port is free".into())
}

const CLIENTS: usize = 4;

/// What the death of a process that served costs: its connections went with it.
pub(super) const OPEN_CONNECTIONS: Cost = Cost::connections(CLIENTS as u64);

/// The same of two, one after the other.
pub(super) const TWO_DEATHS: Cost = Cost::connections(2 * CLIENTS as u64);

/// What it costs when nobody is left, not even one who has the listening sockets: each client comes back as often as it likes meanwhile.
pub(super) const EVERYBODY_DIED: Cost = Cost { refused: u64::MAX, ..TWO_DEATHS };

pub(super) struct Scene {
    pub(super) fixture: Fixture,
    load: Load,
}

impl Scene {
    pub(super) fn start(setup: Setup) -> Result<Self> {
        let mut fixture = setup.prepare()?;
        fixture.start_supervisor()?;
        Self::on(fixture)
    }

    /// With a supervisor that dies at this point of its first handover, and whose successor does not.
    pub(super) fn with_a_supervisor_that_dies_at(setup: Setup, point: &str) -> Result<(Self, Child)> {
        let mut fixture = setup.prepare()?;
        let supervisor = run(&fixture, &[("HANDOFF_CRASH_AT", point)])?;
        fixture.wait_until("the daemon serves", |status| status["incumbent"]["pid"].is_u64())?;
        Ok((Self::on(fixture)?, supervisor))
    }

    pub(super) fn on(fixture: Fixture) -> Result<Self> {
        let acks = fixture.path().join("acks");
        let spec = LoadSpec { clients: CLIENTS, ..LoadSpec::new(fixture.endpoint("http")?, &acks) };
        let scene = Self { load: Load::start(&spec, StoreClient::new())?, fixture };
        scene.serves()?;
        Ok(scene)
    }

    /// Waits for an acknowledgement of a write that begins after this call.
    pub(super) fn serves(&self) -> Outcome {
        let heard = self.load.gaps().wait_for_reply_after(Instant::now(), PATIENCE);
        check(heard, format!("nobody serves:\n{}", self.fixture.log()))
    }

    /// Waits until so many more writes are acknowledged.
    pub(super) fn after_acks(&self, count: u64) -> Outcome {
        check(self.load.wait_for_acks(count, PATIENCE), format!("nobody serves:\n{}", self.fixture.log()))
    }

    pub(super) fn upgrade(&self) -> Outcome {
        let upgrade = self.fixture.upgrade(&[])?;
        check(upgrade.committed(), format!("a handover commits: {upgrade:?}\n{}", self.fixture.log()))
    }

    /// Waits until the supervisor says so of itself.
    pub(super) fn wait_until(&mut self, what: &str, accept: impl Fn(&Value) -> bool) -> Result<Value> {
        Ok(self.fixture.wait_until(what, accept)?)
    }

    /// Waits until the supervisor says that another process serves.
    pub(super) fn wait_for_another_than(&mut self, pid: u32) -> Outcome {
        let accept = |status: &Value| {
            status["state"] == "serving" && status["incumbent"]["pid"].as_u64().is_some_and(|now| now != u64::from(pid))
        };
        self.wait_until("another process serves", accept)?;
        self.serves()
    }

    /// Waits until the supervisor has said so in its log.
    pub(super) fn wait_for_line(&self, text: &str) -> Outcome {
        let until = Instant::now() + PATIENCE;
        while !self.fixture.log().contains(text) {
            check(Instant::now() < until, format!("no line says {text:?}:\n{}", self.fixture.log()))?;
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until one of the processes stands still.
    pub(super) fn wait_for_a_frozen_process(&self) -> Outcome {
        let until = Instant::now() + PATIENCE;
        while !self.fixture.processes().into_iter().any(is_frozen) {
            check(Instant::now() < until, format!("nobody freezes:\n{}", self.fixture.log()))?;
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Before that the incumbent could still take its data back.
    pub(super) fn wait_until_the_successor_has_the_lock(&self) -> Outcome {
        let until = Instant::now() + PATIENCE;
        let is_opening = |lease: &Lease| lease.state == LeaseState::Opening;
        while !handoff_lock::read_lease(self.fixture.data_dir())?.as_ref().is_some_and(is_opening) {
            check(Instant::now() < until, format!("nobody takes the lock:\n{}", self.fixture.log()))?;
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Stops the service under load.
    pub(super) fn stop(mut self) -> Result<(Fixture, Verdict)> {
        // What comes after it is refused, as it must be.
        let before = self.load.counts();
        check(self.fixture.stop()?.success(), self.fixture.log())?;
        let verdict = self.fixture.verify(&Seen { counts: before, ..self.load.stop()? }, Cost::NOTHING)?;
        Ok((self.fixture, verdict))
    }

    /// Waits for the processes of the fixture to be as many as this: retiring ones leave a moment after a commit.
    pub(super) fn only(&self, count: usize) -> Outcome {
        let until = Instant::now() + PATIENCE;
        while self.fixture.processes().len() != count {
            if Instant::now() > until {
                let living = self.fixture.processes();
                return check(false, format!("{count} processes live, not {living:?}:\n{}", self.fixture.log()));
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Replaces what the configuration says of this key, for the next supervisor.
    pub(super) fn configure(&self, key: &str, line: &str) -> Outcome {
        let path = self.fixture.path().join("handoff.toml");
        let config = std::fs::read_to_string(&path)?;
        let lines = config.lines().filter(|line| !line.starts_with(key)).chain([line]);
        Ok(std::fs::write(&path, lines.map(|line| format!("{line}\n")).collect::<String>())?)
    }

    /// Goes on with a supervisor whose watchdog is patient: in a handover it must be longer than a heartbeat takes.
    pub(super) fn with_a_patient_watchdog(mut self) -> Result<Self> {
        self.configure("watchdog", "watchdog = \"10s\"")?;
        self.fixture.kill_supervisor()?;
        self.fixture.start_supervisor()?;
        Ok(self)
    }

    /// The end of every test: the next handover commits, two processes live, and after a stop none; nothing is lost.
    pub(super) fn end(mut self, cost: Cost) -> Outcome {
        self.serves()?;
        self.upgrade()?;
        self.serves()?;
        self.only(2)?;
        let seen = self.load.stop()?;
        let log = self.fixture.log();
        check(self.fixture.stop()?.success(), format!("the service stops:\n{log}"))?;
        let living = self.fixture.processes();
        check(living.is_empty(), format!("no process is left: {living:?}\n{log}"))?;
        let verdict = self.fixture.verify(&seen, cost)?;
        check(verdict.is_clean(), format!("{:?}\n{log}", verdict.problems()))
    }
}

/// `handoff run` of a fixture, outside of the fixture's own care.
pub(super) fn run(fixture: &Fixture, env: &[(&str, &str)]) -> io::Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(fixture.path().join("log"))?;
    let mut command = fixture.command(&["run", "--config"])?;
    command.arg(fixture.path().join("handoff.toml")).stdout(log.try_clone()?).stderr(log);
    command.envs(env.iter().copied()).spawn()
}

/// Whether it stands still, by the kernel's word.
pub(crate) fn is_frozen(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

/// Waits for the end of a child.
pub(super) fn ended(child: &mut Child) -> Result<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        check(Instant::now() < until, format!("process {} does not end", child.id()))?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Outcome {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("a pid")?;
    Ok(kill_process(pid, signal)?)
}
