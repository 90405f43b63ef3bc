//! What clients order and are told: upgrade, rollback, stop, status.

use std::path::{Path, PathBuf};

use super::{Runner, child_env, report_lost};
use crate::Result;
use crate::control;
use crate::events::{debug, info, warn};
use crate::outcome::{HandoffOutcome, OldProcess, SpawnSpec};
use crate::progress::Progress;
use crate::service::admin::ClientId;
use crate::service::builds::Aborted;
use crate::service::config::ServiceConfig;
use crate::service::daemon::Daemon;
use crate::service::handover::{BUSY, Handover, NOT_TRIED, News, Old};
use crate::service::preflight;
use crate::service::report::{
    Event, HandoverReport, IncumbentStatus, Request, ServiceState, ServiceStatus, build_id_text,
};
use crate::service::retire::{Replaced, Retiring};
use crate::supervisor::log_news;
use crate::timers::now_ns;

const NO_PREVIOUS: &str =
    "there is no build to go back to: this service has not handed over yet, or has gone back already after a failure";

impl Runner {
    /// Obeys an order; returns the client's next one, if it is here already.
    pub(super) fn order(&mut self, client: ClientId, request: Request) -> Option<Request> {
        match request {
            Request::Status {} => self.admin.answer(client, &self.status()),
            Request::Stop {} => {
                info!("told to stop by a client");
                self.stop();
                self.core.stopping.get_or_insert_default().clients.push(client);
                self.admin.tell(client, &Event::Stopping {});
                None
            }
            Request::Upgrade { binary, deadline, drain_grace } => {
                let mut spec = self.spec();
                spec.deadline = deadline.map_or(spec.deadline, |text| text.0);
                spec.drain_grace = drain_grace.map_or(spec.drain_grace, |text| text.0);
                let ordered = self.upgrade(client, spec, binary);
                self.refuse(client, ordered)
            }
            Request::Rollback {} => {
                let ordered = self.roll_back(client);
                self.refuse(client, ordered)
            }
        }
    }

    /// How a successor is started, whatever its binary.
    fn spec(&self) -> SpawnSpec {
        let mut spec = SpawnSpec::new(&self.config.binary);
        spec.args.clone_from(&self.config.args);
        spec.env = child_env(&self.config);
        spec.deadline = self.config.deadline;
        spec.drain_grace = self.config.drain_grace;
        spec.warm = self.config.warm;
        spec.open = self.config.open;
        spec.resume = self.config.resume;
        spec
    }

    /// Tells the client, if its order was refused.
    fn refuse(&mut self, client: ClientId, ordered: std::result::Result<(), (u8, String)>) -> Option<Request> {
        let (exit_code, reason) = ordered.err()?;
        warn!(reason, "an order is refused");
        let old_pid = self.incumbent().map(|incumbent| incumbent.pid);
        let report = HandoverReport { abort_reason: Some(reason), old_pid, ..HandoverReport::default() };
        self.finish(client, &report, exit_code)
    }

    fn upgrade(
        &mut self,
        client: ClientId,
        mut spec: SpawnSpec,
        binary: Option<PathBuf>,
    ) -> std::result::Result<(), (u8, String)> {
        let old = self.to_replace()?;
        if let Some(binary) = binary {
            spec.binary = allowed(&binary, &self.config).map_err(|reason| (NOT_TRIED, reason))?;
        }
        preflight::check_binary(&spec.binary).map_err(|error| (NOT_TRIED, error.to_string()))?;
        self.core.lineage.ordered(&spec.binary, &self.core.shelf);
        self.hand_over(client, spec, old)
    }

    fn roll_back(&mut self, client: ClientId) -> std::result::Result<(), (u8, String)> {
        let old = self.to_replace()?;
        let Some(previous) = self.core.lineage.previous() else {
            return Err((NOT_TRIED, NO_PREVIOUS.to_owned()));
        };
        let mut spec = self.spec();
        spec.binary = self.core.shelf.to_start(previous);
        preflight::check_binary(&spec.binary).map_err(|error| (NOT_TRIED, error.to_string()))?;
        self.core.lineage.ordered_back();
        self.hand_over(client, spec, old)
    }

    /// The process that is to hand over, if there is one that may.
    fn to_replace(&self) -> std::result::Result<Old, (u8, String)> {
        let refused = |reason: &str| Err((NOT_TRIED, reason.to_owned()));
        if self.core.stopping.is_some() {
            return refused("the service is stopping");
        }
        if self.core.handover.is_some() {
            return Err((BUSY, "another handover is under way".to_owned()));
        }
        let Daemon::Serving(living) = &self.core.daemon else {
            return refused("no daemon serves yet: it is being started; `handoff status` says more");
        };
        if let Some(Err(error)) = self.core.data_dir.as_ref().map(|data_dir| data_dir.check()) {
            let pid = living.process.pid();
            let what_to_do = "put that one back there, or stop the service and start it again on what is there now";
            return Err((NOT_TRIED, format!("{error}; pid {pid} holds it and serves on: {what_to_do}")));
        }
        // Why it can't be connected to is for the handover to say.
        let connected = control::connect(&self.config.control_socket).ok();
        Ok(Old { process: living.process.duplicate(), connected })
    }

    /// Begins a handover to the candidate; it waits for [`record_order`](Self::record_order).
    fn hand_over(&mut self, client: ClientId, spec: SpawnSpec, old: Old) -> std::result::Result<(), (u8, String)> {
        let data_dir = self.config.data_dir.as_deref();
        let announce = |handover: &Handover, handoff_id| {
            self.admin.tell(client, &handover.ordered_event(handoff_id, data_dir));
            self.admin.tell(client, &handover.first_event());
            self.admin.flush();
        };
        let mut handover = Handover::start(&self.core.worker, client, spec, old, announce).map_err(|error| {
            self.core.lineage.aborted(Aborted::Settled);
            (NOT_TRIED, error.to_string())
        })?;
        self.forget_session();
        handover.old_build = self.build_id();
        info!(binary = %handover.spec.binary.display(), old_pid = handover.old.pid, "handover ordered");
        self.core.handover = Some(handover);
        Ok(())
    }

    /// Keeps the new build, writes down what a service after this one must know, and lets the handover go on.
    fn record_order(&mut self) {
        if let Some(candidate) = self.core.lineage.candidate() {
            self.core.shelf.keep(candidate);
        }
        self.write_down();
        if let Some(handover) = &mut self.core.handover {
            handover.recorded();
        }
    }

    fn finish(&mut self, client: ClientId, report: &HandoverReport, exit_code: u8) -> Option<Request> {
        self.admin.tell(client, &Event::Finished { exit_code });
        self.admin.answer(client, report)
    }

    pub(super) fn take_news(&mut self) {
        self.core.wire.waker.drain();
        while let Ok(news) = self.core.news.try_recv() {
            match news {
                News::Progress(news) => {
                    self.note(&news);
                    log_news(&news);
                }
                News::Started => self.record_order(),
                News::Over(result, rest) => {
                    self.note(&rest);
                    self.handover_over(*result, &rest);
                }
            }
        }
    }

    fn note(&mut self, news: &[Progress]) {
        let Some(handover) = &mut self.core.handover else { return };
        for progress in news {
            if let Some(event) = handover.note(progress) {
                self.admin.tell(handover.client, &event);
            }
        }
    }

    /// The client comes first; then what happened goes into the log, and what a service after this one must know is written
    /// down.
    fn handover_over(&mut self, result: Result<HandoffOutcome>, unlogged: &[Progress]) {
        let Some(handover) = self.core.handover.take() else { return };
        let ended_ns = now_ns();
        let (report, exit_code) = handover.report(&result, || self.epoch());
        let mut next = self.finish(handover.client, &report, exit_code);
        self.admin.flush();
        log_news(unlogged);
        match &report.abort_reason {
            None => info!(
                old_pid = report.old_pid,
                new_pid = report.new_pid,
                pause_ms = report.timings_ms.pause,
                "committed"
            ),
            Some(reason) => warn!(reason, exit_code, "not committed"),
        }
        self.core.last_handover = Some(report.clone());
        // Nobody waits for it any more; the journal knows how it ended.
        self.settle(&handover, result);
        if self.core.stopping.is_some() {
            self.press_for_the_end();
        }
        report_lost(self.core.history.append(&handover.entry(&report, ended_ns)));
        let client = handover.client;
        while let Some(order) = next {
            next = self.order(client, order);
        }
    }

    fn settle(&mut self, handover: &Handover, result: Result<HandoffOutcome>) {
        if let Ok(HandoffOutcome { committed: true, child, handoff_id, .. }) = result {
            let replaced = handover.committed_ns().map(|committed_ns| Replaced { handoff_id, committed_ns });
            return self.replace_daemon(child, replaced);
        }
        self.core.lineage.aborted(handover.aborted());
        let incumbent = result.as_ref().ok().map(|outcome| outcome.incumbent);
        // It was ended, and the kernel still holds it.
        if let Ok(HandoffOutcome { child: Some(child), .. }) = result {
            self.retire(Retiring::killed(child));
        }
        if incumbent == Some(OldProcess::NotHeard) {
            self.core.daemon.has_to_be_heard();
        }
        self.write_down();
        if incumbent == Some(OldProcess::Dead) {
            // Nobody may be told in between that it serves.
            self.daemon_left();
        } else if self.core.daemon.living().is_some() {
            self.expect_greeting();
        }
    }

    fn status(&self) -> ServiceStatus {
        let core = &self.core;
        let state = match (&core.daemon, &core.stopping, &core.handover) {
            (_, Some(_), _) => ServiceState::Stopping,
            (_, None, Some(_)) => ServiceState::HandingOver,
            (Daemon::Serving(_), ..) => ServiceState::Serving,
            (Daemon::Starting(_), ..) => ServiceState::Starting,
            (Daemon::BackingOff | Daemon::Gone(_), ..) => ServiceState::BackingOff,
        };
        ServiceStatus {
            state,
            supervisor_pid: std::process::id(),
            incumbent: self.incumbent(),
            handover: core.handover.as_ref().map(Handover::status),
            listeners: self.listeners.status(),
            last_handover: core.last_handover.clone(),
        }
    }

    fn incumbent(&self) -> Option<IncumbentStatus> {
        let Daemon::Serving(living) = &self.core.daemon else { return None };
        let pid = living.process.pid();
        let lease = self.lease();
        let own = lease.as_ref().filter(|lease| lease.owner.pid == pid && lease.of_this_boot());
        Some(IncumbentStatus {
            pid,
            build_id: self.build_id(),
            since_unix_ms: own.map_or(living.serving_since_unix_ms, |lease| lease.since_unix_ms),
            epoch: lease.map(|lease| lease.epoch),
        })
    }

    /// Of the daemon that serves: as it said, else as its lease says.
    fn build_id(&self) -> Option<String> {
        let Daemon::Serving(living) = &self.core.daemon else { return None };
        if let Some(build_id) = &living.build_id {
            return Some(build_id_text(build_id));
        }
        let own = self.lease().filter(|lease| lease.owner.pid == living.process.pid() && lease.of_this_boot());
        own.map(|lease| build_id_text(&lease.build_id))
    }

    pub(super) fn epoch(&self) -> Option<u64> {
        self.lease().map(|lease| lease.epoch)
    }

    fn lease(&self) -> Option<handoff_lock::Lease> {
        let read = handoff_lock::read_lease(self.config.data_dir.as_deref()?);
        read.inspect_err(|error| debug!(%error, "the lease can't be read")).ok().flatten()
    }
}

/// The binary that a client named, if it may.
fn allowed(binary: &Path, config: &ServiceConfig) -> std::result::Result<PathBuf, String> {
    if !binary.is_absolute() {
        return Err(format!("binary {}: the path must be absolute", binary.display()));
    }
    if config.allowed_binaries.is_empty() {
        return Ok(binary.to_owned());
    }
    // What is compared is what is executed: a link can't be pointed elsewhere in between.
    let real = binary.canonicalize().map_err(|error| format!("binary {}: {error}", binary.display()))?;
    let mut known = config.allowed_binaries.iter().chain([&config.binary]).filter_map(|path| path.canonicalize().ok());
    if known.any(|known| known == real) {
        return Ok(real);
    }
    Err(format!("binary {}: it is not among the allowed_binaries of the configuration", binary.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_name_only_what_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let link = dir.path().join("link");
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut config = ServiceConfig::new("/s", "/bin/sh");
        assert!(allowed(Path::new("sh"), &config).unwrap_err().contains("absolute"));
        assert_eq!(allowed(&real, &config).unwrap(), real, "an empty list allows everything");
        config.allowed_binaries = vec![link.clone()];
        let real = real.canonicalize().unwrap();
        assert_eq!(allowed(&link, &config).unwrap(), real, "the checked file itself is executed");
        assert!(allowed(Path::new("/bin/sh"), &config).is_ok(), "the configured binary is always allowed");
        assert!(allowed(Path::new("/bin/ls"), &config).unwrap_err().contains("allowed_binaries"));
    }
}
