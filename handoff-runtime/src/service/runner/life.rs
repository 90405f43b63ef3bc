//! The life of the daemon between handovers: started or adopted, greeted, watched, on probation, and started again.

use std::process::ExitStatus;
use std::time::Duration;

use handoff_journal::{HistoryEntry, Phase, StateJournal};

use super::{ACCEPT_PAUSE, Runner, Timer, child_env, report_lost};
use crate::events::{error, info, warn};
use crate::outcome::Recovery;
use crate::process::Process;
use crate::service::builds::Aborted;
use crate::service::config::Watchdog;
use crate::service::daemon::{Daemon, Living, Origin, is_to_be_started_again};
use crate::service::greeting::{Greeting, Heard, Hello, SILENCE_MAX, Wanted};
use crate::service::ledger::{Place, Record};
use crate::service::notify;
use crate::service::report::build_id_text;
use crate::service::retire::{Replaced, Retiring};
use crate::service::watch::{Found, Punctual, Watch};
use crate::timers::now_ns;
use crate::{STATE_NOT_READABLE_EXIT_STATUS, spawn};

/// A daemon that dies this often in a row without a word may be unable to read the data and not know how to say it.
const UNHEARD_MAX: u32 = 3;

impl Runner {
    /// Goes on where the service before this one has ended, or begins.
    pub(super) fn take_over(&mut self, found: Recovery) {
        let Recovery { serving, retiring, interrupted, .. } = found;
        if let Some(interrupted) = interrupted {
            let entry = cut_short(&interrupted, serving.as_ref().map(Process::pid));
            report_lost(self.core.history.append(&HistoryEntry { epoch: self.epoch(), ..entry }));
        }
        let known = std::mem::take(&mut self.core.known);
        if known.lineage.is_none() {
            // Whatever is there is of another boot, or of another binary.
            self.core.shelf.clear();
        }
        let daemon = known.daemon;
        let mut old = known.still_to_leave(serving.as_ref().map(Process::id));
        old.extend(retiring.filter(|one| old.iter().all(|other| other.id() != one.id())));
        old.into_iter().for_each(|process| self.retire(Retiring::asked(process)));

        self.core.shelf.keep(self.core.lineage.serving());
        match serving {
            Some(process) => {
                let pid = process.pid();
                if self.core.lineage.is_handing_over() && daemon != Some(process.id()) {
                    info!(pid, "the successor of the handover that was interrupted serves");
                    self.begin_probation();
                }
                self.core.lineage.aborted(Aborted::Unsettled);
                info!(pid, "the daemon lives already and is adopted");
                self.resume_probation();
                self.watch(process, Origin::Adopted);
            }
            None if self.core.lineage.is_handing_over() => {
                self.core.lineage.aborted(Aborted::Unsettled);
                self.start_daemon();
            }
            None => {
                if daemon.is_some() {
                    self.fall_back_if_on_probation();
                }
                self.start_daemon();
            }
        }
    }

    pub(super) fn start_daemon(&mut self) {
        if self.core.stopping.is_some() {
            return;
        }
        if let Some(Err(error)) = self.core.data_dir.as_ref().map(|data_dir| data_dir.check_path()) {
            error!(%error, "no daemon is started: what was acknowledged is not there; put it back, or stop and start the service");
            return self.back_off(Duration::ZERO);
        }
        let sockets = self.listeners.for_a_child();
        let binary = self.core.shelf.to_start(self.core.lineage.serving());
        match spawn::spawn(&binary, &self.config.args, &child_env(&self.config), &sockets, &[]) {
            Ok(process) => {
                info!(pid = process.pid(), binary = %binary.display(), "daemon started");
                self.watch(process, Origin::Ours);
            }
            Err(error) => {
                error!(%error, binary = %binary.display(), "the daemon can't be started");
                self.back_off(Duration::ZERO);
            }
        }
    }

    fn watch(&mut self, process: Process, origin: Origin) {
        self.core.daemon = Daemon::Starting(Living::new(process, origin));
        self.core.timers.arm(Timer::Slow, self.config.warm);
        self.write_down();
        self.expect_greeting();
    }

    /// Has the daemon say who it is, and watches it from now on.
    pub(super) fn expect_greeting(&mut self) {
        self.forget_session();
        if let Watchdog::After(silence) = self.config.watchdog {
            self.core.timers.arm(Timer::Watch, silence);
        }
        let wanted = if self.core.daemon.may_be_on_its_way_back() { Wanted::Service } else { Wanted::Hello };
        self.core.greeting = Some(Greeting::new(&self.config.control_socket, wanted));
        self.greet(Greeting::connect);
    }

    /// A handover has the daemon's session to itself, and looks after the daemon.
    pub(super) fn forget_session(&mut self) {
        self.core.greeting = None;
        self.core.watch = Watch::apart();
        for timer in [Timer::Greet, Timer::Watch, Timer::Resume] {
            self.core.timers.disarm(timer);
        }
    }

    pub(super) fn greet(&mut self, step: impl FnOnce(&mut Greeting) -> Heard) {
        let Some(greeting) = &mut self.core.greeting else { return };
        match step(greeting) {
            Heard::Waiting => {
                if self.core.timers.at_ns(Timer::Greet).is_none() {
                    self.core.timers.arm(Timer::Greet, SILENCE_MAX);
                }
            }
            Heard::NobodyFor(pause) => self.core.timers.arm(Timer::Greet, pause),
            Heard::NotServing { pid, pause } => {
                self.core.timers.arm(Timer::Greet, pause);
                let is_ours = self.core.daemon.living().is_some_and(|living| living.process.pid() == pid);
                if is_ours && self.core.timers.at_ns(Timer::Resume).is_none() {
                    info!(pid, "the daemon is on its way back from a handover and does not serve yet");
                    self.core.timers.arm(Timer::Resume, self.config.resume);
                }
            }
            Heard::Hello(hello) => self.greeted(hello),
        }
    }

    fn greeted(&mut self, hello: Hello) {
        let Hello { pid, build_id, version } = hello;
        let build = build_id_text(&build_id);
        let is_new = matches!(self.core.daemon, Daemon::Starting(_));
        let origin = self.core.daemon.living().map(|living| living.origin);
        if !self.core.daemon.heard(pid, build_id) {
            let path = self.config.control_socket.display();
            warn!(pid, %path, "another process than the daemon answers on the control path");
            self.core.timers.arm(Timer::Greet, self.config.warm.min(ACCEPT_PAUSE));
            return;
        }
        if let Some((channel, said)) = self.core.greeting.take().and_then(Greeting::into_session)
            && self.config.watchdog != Watchdog::Off
        {
            self.core.watch.attach(channel, version, said);
        }
        self.core.unheard = 0;
        for timer in [Timer::Slow, Timer::Greet, Timer::Resume] {
            self.core.timers.disarm(timer);
        }
        if is_new {
            info!(pid, build, "the daemon serves");
            if origin == Some(Origin::Ours) {
                self.core.lineage.heard();
                self.write_down();
            }
            notify::notify(notify::State::Ready);
        }
    }

    /// The daemon was found on its way back from a handover that an earlier supervisor has left, and does not come to its end.
    /// As in a handover it counts as dead then, unless nobody is to be ended for silence.
    pub(super) fn resume_overdue(&mut self, punctual: Punctual) {
        let within = self.config.resume;
        let Some(living) = self.core.daemon.living() else { return };
        let pid = living.process.pid();
        match (self.config.watchdog, punctual) {
            (Watchdog::Off, _) => warn!(pid, ?within, "the daemon does not serve again; it is left alone"),
            (Watchdog::After(_), Punctual::No) => self.core.timers.arm(Timer::Resume, within),
            (Watchdog::After(_), Punctual::Yes) => {
                error!(pid, ?within, "the daemon does not serve again: it is ended");
                if let Err(error) = living.process.kill() {
                    error!(pid, %error, "the daemon can't be ended");
                }
            }
        }
    }

    pub(super) fn report_slow_start(&mut self) {
        if let Some(living) = self.core.daemon.living() {
            let (pid, seconds) = (living.process.pid(), living.started.elapsed().as_secs());
            warn!(pid, seconds, "the daemon does not answer on its control path yet; it is left alone");
        }
    }

    /// An interval of the watchdog is over.
    pub(super) fn look_after_daemon(&mut self, punctual: Punctual) {
        let (Watchdog::After(silence), Some(living)) = (self.config.watchdog, self.core.daemon.living()) else {
            return;
        };
        let pid = living.process.pid();
        self.core.timers.arm(Timer::Watch, silence);
        match self.core.watch.tick(&living.process, punctual) {
            Ok(Found::Alive) => {}
            Ok(Found::SessionOver) => self.expect_greeting(),
            Ok(Found::Frozen) => {
                error!(pid, silent_seconds = silence.as_secs_f64(), "the daemon is frozen: it is ended");
                if let Err(error) = living.process.kill() {
                    error!(pid, %error, "the daemon can't be ended");
                }
            }
            Err(error) => warn!(pid, %error, "the daemon can't be looked at"),
        }
    }

    pub(super) fn daemon_left(&mut self) {
        // It may have been told to leave in this very round; then it is among those on their way out.
        let was_heard = matches!(self.core.daemon, Daemon::Serving(_));
        let Some(mut living) = self.core.daemon.take() else { return };
        self.forget_session();
        self.core.timers.disarm(Timer::Slow);
        let status = living.process.try_wait().unwrap_or_else(|error| {
            warn!(%error, "the daemon's exit status is lost");
            None
        });
        let how = status.map_or_else(|| "with an unknown status".to_owned(), |status| format!("with {status}"));
        let (pid, ran) = (living.process.pid(), living.started.elapsed());
        self.core.unheard = if was_heard { 0 } else { self.core.unheard.saturating_add(1) };
        let leaves_for_good = self.core.stopping.is_some()
            || (!self.start_another_build(status) && !is_to_be_started_again(self.config.restart, status));
        if leaves_for_good {
            info!(pid, "the daemon has left {how}");
            self.core.daemon = Daemon::Gone(status);
        } else {
            error!(pid, ran_seconds = ran.as_secs_f64(), "the daemon has left {how}");
            self.back_off(ran);
        }
    }

    /// Whether another build is to be started in the place of the one that has died: the one before it, if it was on
    /// probation; the one that had the data last, if it could not read them.
    fn start_another_build(&mut self, status: Option<ExitStatus>) -> bool {
        if self.fall_back_if_on_probation() {
            return true;
        }
        let says_so = status.and_then(|status| status.code()) == Some(STATE_NOT_READABLE_EXIT_STATUS.into());
        if (says_so || self.core.unheard >= UNHEARD_MAX) && self.core.lineage.not_readable() {
            let binary = self.core.lineage.serving().path.display();
            warn!(%binary, says_so, "this build can't take the data back: the one that had them last is started");
            self.core.unheard = 0;
            return true;
        }
        false
    }

    fn fall_back_if_on_probation(&mut self) -> bool {
        self.core.timers.disarm(Timer::Probation);
        let falls_back = self.core.lineage.failed_at(now_ns());
        if falls_back {
            let binary = self.core.lineage.serving().path.display();
            error!(%binary, "the new build has died on probation: the one before it is started");
        }
        falls_back
    }

    fn back_off(&mut self, ran: Duration) {
        let pause = self.core.backoff.after(ran);
        let failures = self.core.backoff.failures();
        info!(failures, pause_ms = pause.as_millis(), "the daemon is started again after a pause");
        self.core.daemon = Daemon::BackingOff;
        self.core.timers.arm(Timer::Start, pause);
    }

    /// The successor serves: it is the daemon now, and the old one gets its time to leave.
    pub(super) fn replace_daemon(&mut self, child: Option<Process>, replaced: Option<Replaced>) {
        let Some(process) = child else {
            return error!("a handover was committed to a process that nobody knows");
        };
        self.core.timers.disarm(Timer::Slow);
        if let Some(old) = self.core.daemon.take() {
            self.retire(Retiring::committed(old.process, replaced));
        }
        self.core.daemon = Daemon::Serving(Living::new(process, Origin::Ours));
        self.core.unheard = 0;
        self.begin_probation();
        self.write_down();
        self.expect_greeting();
    }

    fn begin_probation(&mut self) {
        let probation_ns = u64::try_from(self.config.probation.as_nanos()).unwrap_or(u64::MAX);
        self.core.lineage.committed(now_ns().saturating_add(probation_ns));
        self.resume_probation();
    }

    fn resume_probation(&mut self) {
        if let Some(until_ns) = self.core.lineage.probation_until_ns() {
            self.core.timers.arm_at(Timer::Probation, until_ns);
        }
    }

    pub(super) fn probation_over(&mut self) {
        self.core.lineage.proved();
        self.write_down();
    }

    /// What a service after this one must know.
    pub(super) fn write_down(&mut self) {
        let core = &mut self.core;
        core.shelf.tidy(&core.lineage);
        core.ledger.write(&Record {
            lineage: Some(core.lineage.clone()),
            daemon: core.daemon.living().map(|living| living.process.id()),
            retiring: core.retiring.iter().map(Retiring::id).collect(),
            data_dir: core
                .data_dir
                .as_ref()
                .and_then(|data_dir| Some(Place { path: data_dir.path().to_owned(), identity: data_dir.identity()? })),
        });
    }
}

/// What the history keeps of a handover whose supervisor has died: of its times nothing is known.
fn cut_short(state: &StateJournal, serving: Option<u32>) -> HistoryEntry {
    let committed = serving.is_some() && serving == state.successor_pid;
    let phase = match state.phase {
        Phase::Negotiating => "negotiating",
        Phase::Draining => "draining",
        Phase::Sealing => "sealing",
        Phase::AwaitingReady => "awaiting_ready",
        Phase::Committed => "committed",
        Phase::ResumingAfterAbort => "resuming_after_abort",
    };
    let why = "the supervisor ended in the middle of it";
    HistoryEntry {
        handoff_id: Some(state.handoff_id),
        committed,
        abort_reason: (!committed).then(|| why.to_owned()),
        aborted_in: (!committed).then(|| phase.to_owned()),
        old_pid: Some(state.incumbent_pid),
        new_pid: state.successor_pid,
        binary: state.details.binary.as_ref().map(|path| path.display().to_string()),
        started_at_unix_ms: state.started_at_unix_ms,
        ..HistoryEntry::default()
    }
}
