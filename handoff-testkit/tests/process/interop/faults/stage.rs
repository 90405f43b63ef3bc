//! A service under load on one of the two supervisors, whose processes are held somewhere and then struck.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use handoff_runtime::Timing;
use handoff_testkit::audit::{OnDisk, Verdict};
use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::{Answer, Connection, Cost, Kept, Load, LoadSpec, Protocol, Suffered};
use handoff_testkit::{Metronome, ROLE_VARIABLE};
use rustix::process::{Pid, Signal, kill_process};

use super::super::Library::{self, Ours, Theirs};
use super::{daemon, supervisor};
use crate::check;
use crate::daemons::LISTENER;

pub(super) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The intervals, shortened. A peer of version 1 beats every two seconds whatever it is told, so silence is longer than that.
pub(super) const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(300),
    liveness: Duration::from_millis(2500),
    hello: Duration::from_millis(2500),
    successor_slack: Duration::from_millis(300),
    limbo_slack: Duration::from_millis(900),
    closed_grace: Duration::from_millis(200),
    limbo_poll: Duration::from_millis(20),
    deadline_max: Duration::from_secs(3600),
    settle: Duration::from_secs(3),
    promotion: Duration::from_millis(600),
    parting: Duration::from_millis(300),
};
/// How long a handover may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(4);
/// Between a deadline and the end of the other library's patience.
pub(super) const THEIR_SLACK: Duration = Duration::from_secs(1);
/// The drain's part of it, longer than silence is borne.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(3);

/// Where the data directory's name leads to, and where it must not.
pub(super) const DATA: &str = "real";
pub(super) const OTHER: &str = "other";

/// For what only a defect makes wait.
const PATIENCE: Duration = Duration::from_secs(30);
/// As in the matrix: an outage is a single sample, and may be longer than its bound by so many of the control's, and so many late beats.
const CONTROLS: u32 = 8;
const LATE_BEATS: u32 = 4;

/// A role that wakes so late gives its silent peer a fresh interval, so a time on such a machine shows nothing.
const LATE: Duration = Duration::from_millis(100);

/// A time was too long on a machine that was late itself: the trial is to be repeated.
#[derive(Debug)]
pub(super) struct Noisy(String);

impl std::fmt::Display for Noisy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the machine is too noisy for this trial: {}", self.0)
    }
}

impl std::error::Error for Noisy {}

struct Tokens;

fn ask(connection: &mut Connection, request: &str) -> std::result::Result<u32, Suffered> {
    use io::Write;
    let asked = writeln!(connection, "{request}").and_then(|()| connection.read_line());
    match asked {
        Ok(Some(line)) => line.strip_prefix("OK ").and_then(|pid| pid.parse().ok()).ok_or(Suffered::WrongValue),
        Ok(None) => Err(Suffered::Ended),
        Err(error) => Err(Suffered::from_request(&error)),
    }
}

impl Protocol for Tokens {
    fn write(&self, connection: &mut Connection, token: u64) -> std::result::Result<Answer, Suffered> {
        ask(connection, &token.to_string()).map(|_| Answer::Done)
    }

    fn read(&self, connection: &mut Connection, _: u64) -> std::result::Result<Answer, Suffered> {
        ask(connection, "?").map(|_| Answer::Done)
    }
}

/// What runs.
pub(super) struct Stage {
    pub(super) fixture: Fixture,
    supervisor: Library,
    /// Passed to each supervisor, as systemd would: an incumbent of version 1 can't give it back to one that is started again.
    listener: TcpListener,
    load: Option<Load>,
    metronome: Metronome,
    /// Of this process: our supervisor, or the daemons that nobody else has started.
    children: Vec<Child>,
    /// How long a handover without a fault stops the clients.
    control: Duration,
}

/// A handover under way, one of whose processes is held.
pub(super) struct Held {
    pub(super) call: Child,
    /// Who stands at the point.
    pub(super) pid: u32,
}

/// A process that was struck, or let go.
pub(super) struct Struck(pub(super) Instant);

impl Stage {
    /// A daemon on this library serves, and one handover, to another of the same, has shown what it costs without a fault.
    pub(super) fn start(supervisor: Library, incumbent: Library) -> Result<Self> {
        let (name, timing) = handoff_runtime::crash::timing_variable(&TIMING);
        let ms = |key: &str, time: Duration| format!("{key} = \"{}ms\"", time.as_millis());
        let fixture = Setup::role(daemon::ROLE)?
            .listener(LISTENER, "127.0.0.1:0")
            .supervisor_env(name, timing)
            .config(&ms("watchdog", TIMING.liveness))
            .config(&ms("deadline", DEADLINE))
            .config(&ms("drain_grace", DRAIN_GRACE))
            .config(&ms("retire", Duration::from_millis(700)))
            .prepare()?;
        for dir in [DATA, OTHER] {
            fs::DirBuilder::new().mode(0o700).create(fixture.path().join(dir))?;
        }
        symlink(DATA, fixture.data_dir())?;
        fs::write(fixture.path().join("library"), incumbent.name())?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let spec = LoadSpec {
            clients: 4,
            kept: Kept::None,
            patience: PATIENCE,
            ..LoadSpec::new(listener.local_addr()?, &fixture.path().join("acks"))
        };
        let load = Some(Load::start(&spec, Arc::new(Tokens))?);
        let metronome = Metronome::start(fixture.path())?;
        let control = Duration::ZERO;
        let mut stage = Self { fixture, supervisor, listener, load, metronome, children: Vec::new(), control };
        match supervisor {
            Ours => stage.start_our_supervisor()?,
            Theirs => stage.start_a_daemon()?,
        }
        check(stage.load().wait_for_acks(20, PATIENCE), "the first daemon serves")?;
        if supervisor == Theirs {
            handoff_testkit::mock::connect_with_retry(&stage.fixture.path().join("control.sock"));
        }
        let started = Instant::now();
        stage.hand_over(incumbent)?;
        let longest = stage.load().gaps().longest_around(started, Instant::now(), PATIENCE);
        stage.control = longest.ok_or("nobody serves")?;
        Ok(stage)
    }

    fn load(&self) -> &Load {
        self.load.as_ref().expect("it runs until the end")
    }

    /// A daemon in place of one that is dead, where no supervisor does that.
    pub(super) fn start_a_daemon(&mut self) -> Result<()> {
        let mut command = self.fixture.command(&[])?;
        daemon_environment(&mut command, &self.fixture);
        self.start_a_child(command)
    }

    /// Our supervisor, also when an earlier one is dead; waits until it knows who serves.
    pub(super) fn start_our_supervisor(&mut self) -> Result<()> {
        let (name, timing) = handoff_runtime::crash::timing_variable(&TIMING);
        let mut command = self.fixture.command(&["run", "--config"])?;
        command.arg(self.fixture.path().join("handoff.toml")).env(name, timing);
        self.start_a_child(command)?;
        self.fixture.wait_until("the daemon serves", |status| status["incumbent"]["pid"].is_u64())?;
        Ok(())
    }

    fn start_a_child(&mut self, mut command: Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.fixture.path().join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        self.pass_the_listener(&mut command)?;
        self.children.push(command.spawn()?);
        Ok(())
    }

    fn pass_the_listener(&self, command: &mut Command) -> Result<()> {
        let names = [(LISTENER.to_owned(), self.listener.as_fd())];
        Ok(handoff_runtime::pass_listener_fds_on_spawn(command, &names)?)
    }

    /// Kills the supervisor, which for theirs is the call.
    pub(super) fn kill_supervisor(&mut self, call: &Child) -> Result<()> {
        match self.supervisor {
            Ours => {
                let mut supervisor = self.children.pop().ok_or("a supervisor")?;
                supervisor.kill()?;
                supervisor.wait()?;
            }
            Theirs => _ = self.strike(call.id(), Signal::KILL)?,
        }
        Ok(())
    }

    /// Ends the last daemon, through its supervisor where there is one.
    fn stop(&mut self, daemon: u32) -> Result<()> {
        let Ours = self.supervisor else { return self.strike(daemon, Signal::KILL).map(drop) };
        let mut supervisor = self.children.pop().ok_or("a supervisor")?;
        self.strike(supervisor.id(), Signal::TERM)?;
        let status = supervisor.wait()?;
        check(status.success(), format!("it stops well, not {status}:\n{}", self.fixture.log()))
    }

    /// The data directory's name, a link, leads there from now on.
    pub(super) fn lead_to(&self, dir: &str) -> io::Result<()> {
        let next = self.fixture.path().join("next");
        symlink(dir, &next)?;
        fs::rename(next, self.fixture.data_dir())
    }

    /// What was written to the directory that the link leads to only now and then.
    pub(super) fn strays(&self) -> io::Result<Vec<std::ffi::OsString>> {
        let entries = self.fixture.path().join(OTHER).read_dir()?;
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect()
    }

    /// Who answers clients.
    pub(super) fn serving(&self) -> Result<u32> {
        use io::{BufRead, BufReader, Write};
        let mut stream = std::net::TcpStream::connect(self.listener.local_addr()?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"?\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.trim().strip_prefix("OK ").ok_or_else(|| format!("answer {line:?}"))?.parse()?)
    }

    /// Begins a handover to a daemon on this library.
    pub(super) fn call(&self, successor: Library) -> Result<Child> {
        fs::write(self.fixture.path().join("library"), successor.name())?;
        let mut command = match self.supervisor {
            Ours => {
                let mut command = self.fixture.command(&["upgrade", "--json", "--state-dir"])?;
                command.arg(self.fixture.state_dir());
                command
            }
            Theirs => {
                let mut command = self.fixture.command(&[])?;
                daemon_environment(&mut command, &self.fixture).env(ROLE_VARIABLE, supervisor::ROLE);
                self.pass_the_listener(&mut command)?;
                command
            }
        };
        // A file, since the successor inherits it under their supervisor: a pipe would not end with the call.
        let output = File::create(self.fixture.path().join("call"))?;
        Ok(command.stdout(output.try_clone()?).stderr(output).spawn()?)
    }

    /// Waits for the end of a call, and gives its exit code and all that it said.
    pub(super) fn end_of(&self, mut call: Child) -> Result<(Option<i32>, String)> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = call.try_wait()? {
                return Ok((status.code(), fs::read_to_string(self.fixture.path().join("call"))?));
            }
            thread::park_timeout(Duration::from_millis(2));
        }
        let _ = call.kill();
        Err(format!("the call does not end:\n{}", self.fixture.log()).into())
    }

    /// A handover that commits, and after which another process serves.
    pub(super) fn hand_over(&self, successor: Library) -> Result<u32> {
        let before = self.serving()?;
        let (code, said) = self.end_of(self.call(successor)?)?;
        check(code == Some(0), format!("the handover commits, not {code:?}: {said}\n{}", self.fixture.log()))?;
        self.gone(before)?;
        let after = self.serving()?;
        check(after != before, "the successor serves")?;
        Ok(after)
    }

    /// Begins a handover, and waits until one of its processes stands at this point.
    pub(super) fn held_at(&self, point: &str, successor: Library) -> Result<Held> {
        fs::write(self.fixture.path().join("fault"), format!("{point} hold"))?;
        let call = self.call(successor)?;
        let held = self.fixture.path().join("held");
        self.until("a process is held", || held.exists())?;
        Ok(Held { call, pid: fs::read_to_string(held)?.parse()? })
    }

    /// Begins a handover in which the process that comes by this point fails.
    pub(super) fn failing_at(&self, point: &str, successor: Library) -> Result<Child> {
        fs::write(self.fixture.path().join("fault"), format!("{point} fail"))?;
        self.call(successor)
    }

    /// Lets go who is held.
    pub(super) fn let_go(&self) -> Result<Struck> {
        let at = Instant::now();
        fs::write(self.fixture.path().join("go"), "")?;
        Ok(Struck(at))
    }

    /// Sends the signal; a SIGSTOP is waited for.
    pub(super) fn strike(&self, pid: u32, signal: Signal) -> Result<Struck> {
        let at = Instant::now();
        kill_process(i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("a pid")?, signal)?;
        if signal == Signal::STOP {
            self.until("it stands still", || state_of(pid) == Some('T'))?;
        }
        Ok(Struck(at))
    }

    /// Somebody serves again after the strike, within the bound and what the machine adds.
    pub(super) fn serves_within(&self, struck: &Struck, bound: Duration) -> Result<u32> {
        let served = self.load().gaps().wait_for_reply_after(struck.0, PATIENCE);
        check(served, format!("nobody serves:\n{}", self.fixture.log()))?;
        self.within(struck, bound)?;
        self.serving()
    }

    /// Nobody served for no longer than this since the strike, of whose handover the call has ended. For a strike that may come while the
    /// incumbent still serves.
    pub(super) fn paused_within(&self, struck: &Struck, bound: Duration) -> Result<u32> {
        let paused = self.load().gaps().longest_around(struck.0, Instant::now(), PATIENCE);
        self.judge(paused.ok_or("nobody serves")?, struck, bound)?;
        self.serving()
    }

    /// No more time than this has passed, besides what the machine adds.
    pub(super) fn within(&self, since: &Struck, bound: Duration) -> Result<()> {
        self.judge(since.0.elapsed(), since, bound)
    }

    fn judge(&self, passed: Duration, since: &Struck, bound: Duration) -> Result<()> {
        // What holds up the machine now is told when the beat is over that it holds up too.
        let now = Instant::now();
        self.until("the metronome beats", || !self.metronome.worst_since(now).is_zero())?;
        let late = self.metronome.worst_since(since.0);
        let most = bound + self.control * CONTROLS + late * LATE_BEATS;
        let said = format!("it took {passed:?}; at most {bound:?}, here {most:?}");
        // A role that was late itself, which nobody sees from here, has given its silent peer fresh intervals.
        let may_be_fresh = bound >= TIMING.liveness;
        if passed > most && (late > LATE || may_be_fresh) {
            return Err(Box::new(Noisy(said)));
        }
        check(passed <= most, format!("{said}\n{}", self.fixture.log()))
    }

    /// Waits until this process is no more.
    pub(super) fn gone(&self, pid: u32) -> Result<()> {
        self.until(&format!("{pid} is gone"), || !self.fixture.processes().contains(&pid))
    }

    fn until(&self, what: &str, reached: impl Fn() -> bool) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !reached() {
            if Instant::now() > until {
                return Err(format!("{what}: not in time\n{}", self.fixture.log()).into());
            }
            thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Nobody is left over, the next handover commits, and the clients' and the disk's verdict is clean.
    pub(super) fn end(mut self, next: Library) -> Result<()> {
        let own = if self.supervisor == Ours { 2 } else { 1 };
        self.until("no process is left over", || self.fixture.processes().len() == own)?;
        let _ = fs::remove_file(self.fixture.path().join("held"));
        let last = self.hand_over(next)?;
        check(self.load().wait_for_acks(20, PATIENCE), "the last one serves")?;
        let seen = self.load.take().ok_or("a load")?.stop()?;
        self.stop(last)?;
        self.until("all are gone", || self.fixture.processes().is_empty())?;
        let disk = OnDisk::compare(&seen.acks_dir, &daemon::written(self.fixture.data_dir())?, Vec::new())?;
        check(disk.not_checked().is_empty(), "every line has its term and its pid")?;
        let verdict = Verdict::new(&seen, disk, Cost::NOTHING);
        let problems = verdict.problems();
        check(problems.is_empty(), format!("{problems:?}\n{}", self.fixture.log()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Library {
    fn name(self) -> &'static str {
        match self {
            Ours => "ours",
            Theirs => "theirs",
        }
    }
}

/// The letter of its state, as /proc tells it behind the command in brackets.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A daemon's directories, intervals and log.
fn daemon_environment<'a>(command: &'a mut Command, fixture: &Fixture) -> &'a mut Command {
    let (name, timing) = handoff_runtime::crash::timing_variable(&TIMING);
    command
        .env(name, timing)
        .env("HANDOFF_DATA_DIR", fixture.data_dir())
        .env("HANDOFF_CONTROL_SOCKET", fixture.path().join("control.sock"))
        .env(ROLE_VARIABLE, daemon::ROLE)
}
