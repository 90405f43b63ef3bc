//! The service's one loop: signals, the admin socket, the daemon's pidfd, those on their way out, and the handover's worker.
//!
//! It owns all of the service's state; the worker has only the supervisor. It sleeps without a timer while the daemon
//! serves and nobody asks for anything.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use handoff_journal::{History, JournalError};
use rustix::event::{PollFd, PollFlags};

use super::admin::{AdminSocket, ClientId};
use super::builds::{Lineage, Shelf};
use super::config::ServiceConfig;
use super::daemon::{Backoff, Daemon};
use super::greeting::Greeting;
use super::handover::{Handover, News, Wire, Worker};
use super::ledger::{Ledger, Record};
use super::listen::Listeners;
use super::notify;
use super::report::{HandoverReport, Stopped};
use super::retire::{Gone, Retiring};
use super::state_dir::StateDir;
use super::watch::{Punctual, Watch};
use crate::data_dir::DataDir;
use crate::events::{debug, info, warn};
use crate::outcome::Recovery;
use crate::supervisor::Supervisor;
use crate::sys::poll;
use crate::sys::signals::Signals;
use crate::timers::{Timers, now_ns};
use crate::waker::Waker;
use crate::{Error, Result};

mod life;
mod orders;

/// A client that could not be accepted for want of descriptors is tried again after this long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// All that a running service is.
pub(super) struct Runner {
    pub(super) config: ServiceConfig,
    pub(super) _state_dir: StateDir,
    pub(super) listeners: Listeners,
    pub(super) admin: AdminSocket,
    pub(super) signals: Signals,
    pub(super) core: Core,
}

/// What the loop has learnt so far.
pub(super) struct Core {
    daemon: Daemon,
    /// What is started when the daemon dies.
    lineage: Lineage,
    shelf: Shelf,
    ledger: Ledger,
    history: History,
    /// What the service before this one knew.
    known: Record,
    data_dir: Option<Arc<DataDir>>,
    greeting: Option<Greeting>,
    watch: Watch,
    /// How often in a row a daemon has died without a word.
    unheard: u32,
    handover: Option<Handover>,
    worker: Worker,
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
    /// The daemon that was found on its way back should serve.
    Resume,
    /// Accept clients again.
    Accept,
    /// Look whether the daemon is alive.
    Watch,
    /// The daemon has stood its probation.
    Probation,
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
    pub(super) fn new(
        config: &ServiceConfig,
        supervisor: Supervisor,
        ledger: Ledger,
        known: Record,
        data_dir: Option<Arc<DataDir>>,
    ) -> Result<Self> {
        let (sender, news) = channel();
        let waker = Waker::new().map_err(|error| Error::io("make the service's waker", error))?;
        let wire = Wire { sender, waker };
        let worker = Worker::start(supervisor, wire.clone())?;
        let shelf = Shelf::new(&config.state_dir);
        let lineage = known.lineage.clone().unwrap_or_else(|| Lineage::new(config.binary.clone()));
        Ok(Self {
            daemon: Daemon::BackingOff,
            lineage,
            shelf,
            ledger,
            history: History::new(config.history()),
            known,
            data_dir,
            greeting: None,
            watch: Watch::apart(),
            unheard: 0,
            handover: None,
            worker,
            retiring: Vec::new(),
            stopping: None,
            last_handover: None,
            backoff: Backoff::default(),
            timers: Timers::new(),
            wire,
            news,
        })
    }
}

impl Runner {
    /// Runs until the service has ended. What was found alive is adopted.
    pub(super) fn run(mut self, found: Recovery) -> Result<Ended> {
        self.take_over(found);
        let ended = loop {
            if let Some(ended) = self.ended() {
                break ended;
            }
            let ready = self.wait()?;
            let punctual = if self.core.timers.woke_late() { Punctual::No } else { Punctual::Yes };
            for (source, ready) in ready {
                self.obey(source, ready);
            }
            while let Some(timer) = self.core.timers.pop_expired() {
                self.expired(timer, punctual);
            }
            self.admin.flush();
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

    fn expired(&mut self, timer: Timer, punctual: Punctual) {
        match timer {
            Timer::Start => self.start_daemon(),
            Timer::Slow => self.report_slow_start(),
            Timer::Greet => self.greet(Greeting::connect),
            Timer::Resume => self.resume_overdue(punctual),
            // The listening socket is polled again.
            Timer::Accept => {}
            Timer::Watch => self.look_after_daemon(punctual),
            Timer::Probation => self.probation_over(),
            Timer::Retire(pid) => {
                if let Some(retiring) = self.core.retiring.iter_mut().find(|retiring| retiring.pid() == pid) {
                    // The time in which nothing ran, this process neither, is not its own.
                    if punctual == Punctual::Yes {
                        retiring.press();
                    }
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

    fn retire(&mut self, retiring: Retiring) {
        self.core.timers.arm(Timer::Retire(retiring.pid()), self.config.retire);
        self.core.retiring.push(retiring);
    }

    fn reap_retired(&mut self) {
        let core = &mut self.core;
        let mut was_cut_off = false;
        core.retiring.retain_mut(|retiring| {
            let gone = retiring.gone();
            if gone.is_some() {
                core.timers.disarm(Timer::Retire(retiring.pid()));
                if let Some(replaced) = retiring.replaced() {
                    let after = Duration::from_nanos(now_ns().saturating_sub(replaced.committed_ns));
                    report_lost(core.history.append_left(replaced.handoff_id, after));
                }
            }
            was_cut_off |= gone == Some(Gone::CutOff);
            gone.is_none()
        });
        // In limbo it may have told its successor to stand still, and died before it looked at the lease.
        if was_cut_off
            && let Some(living) = core.daemon.living()
            && let Err(error) = living.process.cont()
        {
            warn!(pid = living.process.pid(), %error, "the daemon could not be told to go on");
        }
    }

    fn stop(&mut self) {
        if self.core.stopping.is_some() {
            return;
        }
        self.core.stopping = Some(Stopping::default());
        notify::notify(notify::State::Stopping);
        match &self.core.handover {
            Some(handover) => handover.cancel("the service is told to stop"),
            None => self.press_for_the_end(),
        }
    }

    /// Everybody is told to leave, and pressed when the time is over.
    fn press_for_the_end(&mut self) {
        self.forget_session();
        for timer in [Timer::Start, Timer::Slow, Timer::Probation] {
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
        self.core.worker.leave();
        super::listen::remove_stale(&self.config.control_socket)
            .unwrap_or_else(|error| debug!(%error, "the control path is left as it is"));
        self.core.ledger.clear();
        self.core.shelf.clear();
        drop(self.listeners);
        let answer = Stopped { stopped: true, supervisor_pid: std::process::id() };
        for client in self.core.stopping.take().unwrap_or_default().clients {
            // It is too late for another order.
            let _ = self.admin.answer(client, &answer);
        }
        self.admin.close();
    }
}

/// A history is for people: nothing fails for its sake.
fn report_lost(appended: std::result::Result<(), JournalError>) {
    if let Err(error) = appended {
        warn!(%error, "an entry of the history is lost");
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
