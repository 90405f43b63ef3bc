//! Performs the effects of the recovery's machine: what a supervisor that is started again finds and does.

use std::collections::VecDeque;

use handoff_journal::{Journal, StateJournal};
use handoff_proto::recovery::{self as machine, Effect, Findings, Input, Journaled, Timer, Verdict};
use handoff_proto::supervisor::{LeaseReading, Stopped};
use handoff_proto::{LeaseState, LeaseView, Machine, Phase, ProcessId};
use rustix::event::{PollFd, PollFlags};

use crate::control;
use crate::error::{Error, Result};
use crate::outcome::Recovery;
use crate::process::Process;
use crate::sys::poll;
use crate::timers::Timers;

use super::{Supervisor, give_back};

/// Finds out who serves and puts an end to what nobody will finish.
pub(super) fn recover(supervisor: &Supervisor, journal: Option<&mut Journal>) -> Result<Recovery> {
    let record = journal.as_ref().and_then(|journal| journal.current()).cloned();
    if let Some(record) = &record {
        tracing::info!(handoff_id = %record.handoff_id, phase = ?record.phase, "the journal knows of a handover");
    }
    let mut run = Run {
        supervisor,
        record: record.as_ref(),
        machine: machine::Recovery::new(supervisor.timing),
        timers: Timers::new(),
        results: VecDeque::new(),
        ending: None,
        verdict: None,
    };
    let serving = match run.settle()? {
        Verdict::Serving(id) => open(id)?,
        Verdict::Nobody => None,
        Verdict::HeldBy(pid) => return Err(Error::DataDirHeld { pid }),
    };
    let committed = record.as_ref().filter(|record| record.phase == Phase::Committed);
    let retiring = match committed.and_then(incumbent_of) {
        Some(old) if serving.as_ref().map(Process::id) != Some(old) => open(old)?,
        Some(_) | None => None,
    };
    let interrupted = record.filter(|record| record.phase != Phase::Committed);
    if let (Some(journal), Some(_)) = (journal, &interrupted) {
        note_settled(journal);
    }
    if serving.is_some() {
        supervisor.get_listeners_back();
    }
    Ok(Recovery { serving, interrupted, retiring })
}

/// What was interrupted is settled now; a later restart must not take it up again. Nothing depends on it: it would only
/// be found settled.
fn note_settled(journal: &mut Journal) {
    if let Err(error) = journal.clear().and_then(|()| journal.sync()) {
        tracing::warn!(%error, "the journal could not be written");
    }
}

impl Supervisor {
    /// Those that a caller has given already stay as they are. An incumbent that can't give any serves all the same.
    fn get_listeners_back(&self) {
        let channel = match control::connect(&self.control_path) {
            Ok(channel) => channel,
            // Who serves the data listens elsewhere: it is not of our service, which the caller finds out.
            Err(error) => return tracing::debug!(%error, "nobody is there to give listeners back"),
        };
        match give_back::ask(channel, self.timing.hello) {
            Ok(given_back) => {
                let mut listeners = self.lock_listeners();
                let known: Vec<_> = listeners.named.iter().map(|(name, _)| name.clone()).collect();
                listeners.named.extend(given_back.into_iter().filter(|(name, _)| !known.contains(name)));
            }
            Err(error) => tracing::warn!(%error, "the incumbent did not give its listeners back"),
        }
    }
}

struct Run<'a> {
    supervisor: &'a Supervisor,
    record: Option<&'a StateJournal>,
    machine: machine::Recovery,
    timers: Timers<Timer>,
    results: VecDeque<Input>,
    /// The process that is being ended.
    ending: Option<Process>,
    verdict: Option<Verdict>,
}

impl Run<'_> {
    fn settle(&mut self) -> Result<Verdict> {
        self.give(Input::Start)?;
        loop {
            if let Some(verdict) = self.verdict {
                return Ok(verdict);
            }
            self.wait()?;
        }
    }

    fn wait(&mut self) -> Result<()> {
        let mut fds: Vec<_> = self.ending.iter().map(|process| PollFd::new(process, PollFlags::IN)).collect();
        poll::wait(&mut fds, self.timers.timeout()).map_err(|error| Error::io("wait for a process to end", error))?;
        let gone = fds.iter().any(|fd| !fd.revents().is_empty());
        let late = self.timers.woke_late();
        if gone && let Some(mut process) = self.ending.take() {
            // It may be a child that was started before this process changed its program.
            process.try_wait()?;
            control::remove_staging(&self.supervisor.control_path, process.pid());
            self.give(Input::Gone)?;
        }
        if late {
            self.give(Input::WokeLate)?;
        }
        while let Some(timer) = self.timers.pop_expired() {
            self.give(Input::Fired(timer))?;
        }
        Ok(())
    }

    fn give(&mut self, input: Input) -> Result<()> {
        let mut next = Some(input);
        while let Some(input) = next {
            for effect in self.machine.step(input) {
                self.perform(effect)?;
            }
            next = self.results.pop_front();
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::Look => {
                let findings = self.look()?;
                self.results.push_back(Input::Found(findings));
            }
            Effect::Stop(id) => self.stop(id)?,
            Effect::LookIfStopped(_) => self.look_if_stopped()?,
            Effect::ReadLease => self.results.push_back(Input::Lease(self.supervisor.lease())),
            Effect::Continue(_) => {
                if let Some(process) = self.ending.take() {
                    process.cont()?;
                }
            }
            Effect::Kill(id) => {
                tracing::warn!(pid = id.pid, "a process of an unfinished handover is ended");
                self.ending.as_ref().map_or(Ok(()), Process::kill)?;
            }
            Effect::Arm(timer, after) => self.timers.arm(timer, after),
            Effect::Disarm(timer) => self.timers.disarm(timer),
            Effect::Finish(verdict) => self.verdict = Some(verdict),
        }
        Ok(())
    }

    fn stop(&mut self, id: ProcessId) -> Result<()> {
        match open(id)? {
            Some(process) => {
                process.stop()?;
                self.ending = Some(process);
                self.look_if_stopped()
            }
            None => {
                self.results.push_back(Input::Gone);
                Ok(())
            }
        }
    }

    fn look_if_stopped(&mut self) -> Result<()> {
        let stopped = match &self.ending {
            Some(process) if process.is_stopped()? => Stopped::Yes,
            Some(_) | None => Stopped::NotYet,
        };
        self.results.push_back(Input::Stopped(stopped));
        Ok(())
    }

    fn look(&self) -> Result<Findings> {
        let journal = match self.record {
            Some(record) => Some(Journaled {
                phase: record.phase,
                incumbent: alive(incumbent_of(record))?,
                successor: alive(successor_of(record))?,
            }),
            None => None,
        };
        let lease = match self.supervisor.lease() {
            LeaseReading::Found(lease) => alive(Some(lease.owner))?.map(|_| lease),
            LeaseReading::Nobody => None,
            LeaseReading::Unreadable(reason) => return Err(Error::NotTried { reason }),
        };
        let answers = match lease {
            // Nobody needs to ask; a frozen one would only be waited for.
            Some(LeaseView { state: LeaseState::Active, .. }) => None,
            Some(_) | None => self.who_answers()?,
        };
        let lock_holder = match &self.supervisor.data_dir {
            Some(data_dir) => handoff_lock::look(data_dir)?.locked_by,
            None => None,
        };
        Ok(Findings { journal, lease, answers, lock_holder })
    }

    fn who_answers(&self) -> Result<Option<ProcessId>> {
        match control::who_answers(&self.supervisor.control_path, self.supervisor.timing.hello) {
            Some(pid) => Ok(Process::open(pid)?.map(|process| process.id())),
            None => Ok(None),
        }
    }
}

fn incumbent_of(record: &StateJournal) -> Option<ProcessId> {
    let start_time = record.details.incumbent_start_time?;
    Some(ProcessId { pid: record.incumbent_pid, start_time })
}

fn successor_of(record: &StateJournal) -> Option<ProcessId> {
    Some(ProcessId { pid: record.successor_pid?, start_time: record.details.successor_start_time? })
}

fn alive(id: Option<ProcessId>) -> Result<Option<ProcessId>> {
    id.map_or(Ok(None), |id| Ok(open(id)?.map(|process| process.id())))
}

/// The process itself; none if it is dead, or its pid another's.
fn open(id: ProcessId) -> Result<Option<Process>> {
    Ok(Process::open(id.pid)?.filter(|process| process.id() == id))
}
