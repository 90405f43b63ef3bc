//! The service's one loop: signals, the admin socket, the daemon's pidfd, those on their way out, and the handover's worker.
//!
//! It owns all of the service's state; the worker has only the supervisor. It sleeps without a timer while the daemon
//! serves and nobody asks for anything.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use tracing::{debug, error, info, warn};

use super::admin::{AdminSocket, ClientId};
use super::config::ServiceConfig;
use super::daemon::{Backoff, Daemon, Living, is_to_be_started_again};
use super::greeting::{Greeting, Heard};
use super::handover::{Handover, News, Wire};
use super::listen::Listeners;
use super::report::{HandoverReport, Stopped, build_id_text};
use super::retire::Retiring;
use super::state_dir::StateDir;
use crate::outcome::Recovery;
use crate::process::Process;
use crate::spawn;
use crate::supervisor::Supervisor;
use crate::sys::poll;
use crate::sys::signals::Signals;
use crate::timers::Timers;
use crate::waker::Waker;
use crate::{Error, Result};

mod orders;

/// A client that could not be accepted for want of descriptors is tried again after this long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// All that a running service is.
pub(super) struct Runner {
    pub(super) config: ServiceConfig,
    pub(super) _state_dir: StateDir,
    pub(super) listeners: Listeners,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) admin: AdminSocket,
    pub(super) signals: Signals,
    pub(super) core: Core,
}

/// What the loop has learnt so far.
pub(super) struct Core {
    daemon: Daemon,
    /// The binary that is started when the daemon dies: the configured one, later the last that was committed.
    binary: PathBuf,
    greeting: Option<Greeting>,
    handover: Option<Handover>,
    retiring: Vec<Retiring>,
    stopping: Option<Stopping>,
    last_handover: Option<HandoverReport>,
    backoff: Backoff,
    timers: Timers<Timer>,
    wire: Wire,
    news: Receiver<News>,
}

/// The service is on its way out; these clients want to know when.
#[derive(Debug, Default)]
struct Stopping {
    clients: Vec<ClientId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Start the daemon again.
    Start,
    /// Say that the daemon is slow to answer.
    Slow,
    /// Try the control path again.
    Greet,
    /// Accept clients again.
    Accept,
    /// This process has had its time to leave.
    Retire(u32),
}

/// What poll(2) has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    News,
    Accept,
    Daemon,
    Greeting,
    Retiring,
    Client(ClientId),
}

/// How the service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, and the daemon is gone.
    Stopped,
    /// The daemon left and is not to be started again. The status is unknown where it was not our child.
    DaemonLeft(Option<ExitStatus>),
}

impl Core {
    pub(super) fn new(binary: PathBuf) -> Result<Self> {
        let (sender, news) = channel();
        let waker = Waker::new().map_err(|error| Error::io("make the service's waker", error))?;
        Ok(Self {
            daemon: Daemon::BackingOff,
            binary,
            greeting: None,
            handover: None,
            retiring: Vec::new(),
            stopping: None,
            last_handover: None,
            backoff: Backoff::default(),
            timers: Timers::new(),
            wire: Wire { sender, waker },
            news,
        })
    }
}

impl Runner {
    /// Runs until the service has ended. What was found alive is adopted.
    pub(super) fn run(mut self, found: Recovery) -> Result<Ended> {
        if let Some(old) = found.retiring {
            self.retire(Retiring::asked(old));
        }
        match found.serving {
            Some(process) => {
                info!(pid = process.pid(), "the daemon lives already and is adopted");
                self.watch(process);
            }
            None => self.start_daemon(),
        }
        let ended = loop {
            if let Some(ended) = self.ended() {
                break ended;
            }
            for (source, ready) in self.wait()? {
                self.obey(source, ready);
            }
            while let Some(timer) = self.core.timers.pop_expired() {
                self.expired(timer);
            }
        };
        self.leave();
        Ok(ended)
    }

    fn wait(&self) -> Result<Vec<(Source, PollFlags)>> {
        let core = &self.core;
        let mut sources = vec![Source::Signals, Source::News];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&core.wire.waker, PollFlags::IN)];
        let mut add = |source, fd, interest| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, interest));
        };
        if core.timers.at_ns(Timer::Accept).is_none() {
            add(Source::Accept, self.admin.listener(), PollFlags::IN);
        }
        // In a handover, the daemon's death is the handover's business first.
        if let (Some(living), None) = (core.daemon.living(), &core.handover) {
            add(Source::Daemon, living.process.as_fd(), PollFlags::IN);
        }
        if let Some(fd) = core.greeting.as_ref().and_then(Greeting::descriptor) {
            add(Source::Greeting, fd, PollFlags::IN);
        }
        for retiring in &core.retiring {
            add(Source::Retiring, retiring.descriptor(), PollFlags::IN);
        }
        for (id, fd, interest) in self.admin.interests() {
            add(Source::Client(id), fd, interest);
        }
        poll::wait(&mut fds, core.timers.timeout()).map_err(|error| Error::io("wait for events", error))?;
        let ready = fds.iter().map(PollFd::revents);
        Ok(sources.into_iter().zip(ready).filter(|(_, ready)| !ready.is_empty()).collect())
    }

    fn obey(&mut self, source: Source, ready: PollFlags) {
        match source {
            Source::Signals => self.take_signals(),
            Source::News => self.take_news(),
            Source::Accept => {
                if let Err(error) = self.admin.accept() {
                    warn!(%error, "a client can't be accepted on the admin socket");
                    self.core.timers.arm(Timer::Accept, ACCEPT_PAUSE);
                }
            }
            Source::Daemon => self.daemon_left(),
            Source::Greeting => self.greet(Greeting::listen),
            Source::Retiring => self.reap_retired(),
            Source::Client(id) => {
                let mut request = self.admin.turn(id, ready);
                while let Some(order) = request {
                    request = self.order(id, order);
                }
            }
        }
    }

    fn expired(&mut self, timer: Timer) {
        match timer {
            Timer::Start => self.start_daemon(),
            Timer::Slow => self.report_slow_start(),
            Timer::Greet => self.greet(Greeting::connect),
            // The listening socket is polled again.
            Timer::Accept => {}
            Timer::Retire(pid) => {
                if let Some(retiring) = self.core.retiring.iter_mut().find(|retiring| retiring.pid() == pid) {
                    retiring.press();
                    self.core.timers.arm(timer, self.config.retire);
                }
            }
        }
    }

    fn take_signals(&mut self) {
        loop {
            match self.signals.next() {
                Ok(None) => return,
                Ok(Some(libc::SIGHUP)) => info!("SIGHUP is ignored; `handoff upgrade` replaces the daemon"),
                Ok(Some(signal)) => {
                    info!(signal, "told to stop by a signal");
                    self.stop();
                }
                Err(error) => return warn!(%error, "signals can't be read"),
            }
        }
    }

    fn start_daemon(&mut self) {
        if self.core.stopping.is_some() {
            return;
        }
        let sockets = self.listeners.for_a_child();
        match spawn::spawn(&self.core.binary, &self.config.args, &child_env(&self.config), &sockets, None) {
            Ok(process) => {
                info!(pid = process.pid(), binary = %self.core.binary.display(), "daemon started");
                self.watch(process);
            }
            Err(error) => {
                error!(%error, binary = %self.core.binary.display(), "the daemon can't be started");
                self.back_off(Duration::ZERO);
            }
        }
    }

    fn watch(&mut self, process: Process) {
        self.core.daemon = Daemon::Starting(Living::new(process));
        self.core.timers.arm(Timer::Slow, self.config.warm);
        self.expect_greeting();
    }

    fn expect_greeting(&mut self) {
        self.core.greeting = Some(Greeting::new(&self.config.control_socket));
        self.greet(Greeting::connect);
    }

    fn greet(&mut self, step: impl FnOnce(&mut Greeting) -> Heard) {
        let Some(greeting) = &mut self.core.greeting else { return };
        match step(greeting) {
            Heard::Waiting => {}
            Heard::NobodyFor(pause) => self.core.timers.arm(Timer::Greet, pause),
            Heard::Hello { pid, build_id } => {
                let build = build_id_text(&build_id);
                if self.core.daemon.heard(pid, build_id) {
                    info!(pid, build, "the daemon serves");
                    self.core.greeting = None;
                    self.core.timers.disarm(Timer::Slow);
                } else {
                    let path = self.config.control_socket.display();
                    warn!(pid, %path, "another process than the daemon answers on the control path");
                    self.core.timers.arm(Timer::Greet, self.config.warm.min(ACCEPT_PAUSE));
                }
            }
        }
    }

    fn report_slow_start(&mut self) {
        if let Some(living) = self.core.daemon.living() {
            let (pid, seconds) = (living.process.pid(), living.started.elapsed().as_secs());
            warn!(pid, seconds, "the daemon does not answer on its control path yet; it is left alone");
        }
    }

    fn daemon_left(&mut self) {
        // It may have been told to leave in this very round; then it is among those on their way out.
        let Some(mut living) = self.core.daemon.take() else { return };
        self.core.greeting = None;
        for timer in [Timer::Slow, Timer::Greet] {
            self.core.timers.disarm(timer);
        }
        let status = living.process.try_wait().unwrap_or_else(|error| {
            warn!(%error, "the daemon's exit status is lost");
            None
        });
        let how = status.map_or_else(|| "with an unknown status".to_owned(), |status| format!("with {status}"));
        let (pid, ran) = (living.process.pid(), living.started.elapsed());
        if self.core.stopping.is_some() || !is_to_be_started_again(self.config.restart, status) {
            info!(pid, "the daemon has left {how}");
            self.core.daemon = Daemon::Gone(status);
        } else {
            error!(pid, ran_seconds = ran.as_secs_f64(), "the daemon has left {how}");
            self.back_off(ran);
        }
    }

    fn back_off(&mut self, ran: Duration) {
        let pause = self.core.backoff.after(ran);
        let failures = self.core.backoff.failures();
        info!(failures, pause_ms = pause.as_millis(), "the daemon is started again after a pause");
        self.core.daemon = Daemon::BackingOff;
        self.core.timers.arm(Timer::Start, pause);
    }

    /// The successor serves: it is the daemon now, and the old one gets its time to leave.
    fn replace_daemon(&mut self, child: Option<Process>) {
        let Some(process) = child else {
            return error!("a handover was committed to a process that nobody knows");
        };
        self.core.timers.disarm(Timer::Slow);
        if let Some(old) = self.core.daemon.take() {
            self.retire(Retiring::asked(old.process));
        }
        self.core.daemon = Daemon::Serving(Living::new(process));
        self.expect_greeting();
    }

    fn retire(&mut self, retiring: Retiring) {
        self.core.timers.arm(Timer::Retire(retiring.pid()), self.config.retire);
        self.core.retiring.push(retiring);
    }

    fn reap_retired(&mut self) {
        let core = &mut self.core;
        core.retiring.retain_mut(|retiring| {
            let is_gone = retiring.is_gone();
            if is_gone {
                core.timers.disarm(Timer::Retire(retiring.pid()));
            }
            !is_gone
        });
    }

    fn stop(&mut self) {
        if self.core.stopping.is_some() {
            return;
        }
        self.core.stopping = Some(Stopping::default());
        match &self.core.handover {
            Some(handover) => handover.cancel("the service is told to stop"),
            None => self.press_for_the_end(),
        }
    }

    /// Everybody is told to leave, and pressed when the time is over.
    fn press_for_the_end(&mut self) {
        self.core.greeting = None;
        for timer in [Timer::Start, Timer::Slow, Timer::Greet] {
            self.core.timers.disarm(timer);
        }
        if let Some(living) = self.core.daemon.take() {
            self.retire(Retiring::asked(living.process));
        }
        self.core.daemon = Daemon::Gone(None);
        for retiring in &mut self.core.retiring {
            retiring.terminate();
            self.core.timers.arm(Timer::Retire(retiring.pid()), self.config.retire);
        }
    }

    fn ended(&self) -> Option<Ended> {
        let core = &self.core;
        if core.handover.is_some() || !core.retiring.is_empty() {
            return None;
        }
        match (&core.daemon, &core.stopping) {
            (Daemon::Gone(_), Some(_)) => Some(Ended::Stopped),
            (Daemon::Gone(status), None) => Some(Ended::DaemonLeft(*status)),
            _ => None,
        }
    }

    /// Nobody lives any more: the clients who wait are told so, and the paths are removed.
    fn leave(mut self) {
        super::listen::remove_stale(&self.config.control_socket)
            .unwrap_or_else(|error| debug!(%error, "the control path is left as it is"));
        drop(self.listeners);
        let answer = Stopped { stopped: true, supervisor_pid: std::process::id() };
        for client in self.core.stopping.take().unwrap_or_default().clients {
            // It is too late for another order.
            let _ = self.admin.answer(client, &answer);
        }
        self.admin.close();
    }
}

/// What every child finds in its environment besides what was inherited.
fn child_env(config: &ServiceConfig) -> Vec<(OsString, OsString)> {
    let mut env = config.env.clone();
    env.push(("HANDOFF_CONTROL_SOCKET".into(), config.control_socket.clone().into()));
    if let Some(data_dir) = &config.data_dir {
        env.push(("HANDOFF_DATA_DIR".into(), data_dir.clone().into()));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_told_where_its_paths_are() {
        let mut config = ServiceConfig::new("/s", "/bin/sh");
        config.env = vec![("A".into(), "1".into())];
        config.data_dir = Some("/d".into());
        let env = child_env(&config);
        let expected = [("A", "1"), ("HANDOFF_CONTROL_SOCKET", "/s/control.sock"), ("HANDOFF_DATA_DIR", "/d")];
        assert_eq!(env, expected.map(|(name, value)| (name.into(), value.into())));
    }
}
