//! Performs the effects of the recovery's machine: what a supervisor that is started again finds and does.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Instant;

use handoff_journal::{Journal, StateJournal};
use handoff_proto::recovery::{self as machine, Effect, Findings, Input, Journaled, Timer, Verdict};
use handoff_proto::supervisor::{LeaseReading, Stopped};
use handoff_proto::{Checked, LeaseState, LeaseView, Phase, ProcessId};
use rustix::event::{PollFd, PollFlags};

use crate::control;
use crate::crash_here;
use crate::error::{Error, Result};
use crate::events;
use crate::outcome::{GivenBack, Recovery};
use crate::ownership;
use crate::process::Process;
use crate::sys::poll;
use crate::timers::{Timers, instant_after};

use super::{Supervisor, give_back};

/// What is remembered besides the journal, which knows only the last handover.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Remembered<'a> {
    /// The daemon that was started or adopted last.
    pub(crate) daemon: Option<ProcessId>,
    /// Those that were told to leave.
    pub(crate) leaving: &'a [ProcessId],
}

/// Finds out who serves and puts an end to what nobody will finish.
pub(super) fn recover(
    supervisor: &Supervisor,
    journal: Option<&mut Journal>,
    remembered: Remembered<'_>,
) -> Result<Recovery> {
    let record = journal.as_ref().and_then(|journal| journal.current()).cloned();
    if let Some(record) = &record {
        events::info!(handoff_id = %record.handoff_id, phase = ?record.phase, "the journal knows of a handover");
    }
    let mut run = Run {
        supervisor,
        record: record.as_ref(),
        remembered,
        machine: Checked::new(machine::Recovery::new(supervisor.timing)),
        timers: Timers::new(),
        results: VecDeque::new(),
        ending: None,
        verdict: None,
    };
    let serving = match run.settle()? {
        Verdict::Serving(id) => Process::find(id)?,
        Verdict::Nobody => None,
        Verdict::HeldBy(pid) => return Err(Error::DataDirHeld { pid }),
    };
    crash_here!(crate::crash::points::S_IN_RECOVERY);
    let serving_id = serving.as_ref().map(Process::id);
    let retiring = match record.as_ref().and_then(|record| left_behind(record, serving_id)) {
        Some(old) => Process::find(old)?,
        None => None,
    };
    let interrupted = record.filter(|record| record.phase != Phase::Committed);
    if let (Some(journal), Some(record)) = (journal, &interrupted) {
        note_settled(journal, record, retiring.as_ref());
    }
    let listeners = match &serving {
        Some(serving) => supervisor.get_listeners_back(serving)?,
        None => GivenBack::NobodyAsked,
    };
    // It has answered on the control path: it is the one that is meant, also where `/proc` hides it.
    let serving = match listeners {
        GivenBack::All => serving.map(Process::vouched_for),
        _ => serving,
    };
    Ok(Recovery { serving, interrupted, retiring, listeners })
}

/// The old process of a handover whose successor serves, whether the supervisor could still commit it or not.
fn left_behind(record: &StateJournal, serving: Option<ProcessId>) -> Option<ProcessId> {
    let over = record.phase == Phase::Committed || (serving.is_some() && successor_of(record) == serving);
    incumbent_of(record).filter(|old| over && Some(*old) != serving)
}

/// What was interrupted is settled now; a later restart must not take it up again, but must know who is still to leave.
/// Nothing else depends on it: it would only be found settled.
fn note_settled(journal: &mut Journal, record: &StateJournal, to_leave: Option<&Process>) {
    let noted = match to_leave {
        Some(_) => journal.record(&StateJournal { phase: Phase::Committed, ..record.clone() }),
        None => journal.clear(),
    };
    if let Err(error) = noted.and_then(|()| journal.sync()) {
        events::warn!(%error, "the journal could not be written");
    }
}

impl Supervisor {
    /// Those that a caller has given already stay as they are. An incumbent that can't give any serves all the same.
    ///
    /// One that takes its data back after a handover was undone publishes its control path late: it gets time.
    fn get_listeners_back(&self, incumbent: &Process) -> Result<GivenBack> {
        let until = instant_after(self.timing.liveness);
        loop {
            match self.ask_for_listeners(incumbent.pid()) {
                Ok(given_back) => {
                    let mut listeners = self.lock_listeners();
                    let known: Vec<_> = listeners.named.iter().map(|(name, _)| name.clone()).collect();
                    listeners.named.extend(given_back.into_iter().filter(|(name, _)| !known.contains(name)));
                    return Ok(GivenBack::All);
                }
                Err(error) if Instant::now() >= until => {
                    events::warn!(%error, "the incumbent did not give its listeners back");
                    return Ok(GivenBack::NotInTime);
                }
                Err(error) => events::debug!(%error, "the incumbent does not give its listeners back yet"),
            }
            let mut fds = [PollFd::new(incumbent, PollFlags::IN)];
            poll::wait(&mut fds, Some(self.timing.limbo_poll))
                .map_err(|error| Error::io("wait for the incumbent", error))?;
            if !fds[0].revents().is_empty() {
                events::warn!(pid = incumbent.pid(), "the incumbent died before it gave its listeners back");
                return Ok(GivenBack::NotInTime);
            }
        }
    }

    fn ask_for_listeners(&self, pid: u32) -> Result<Vec<(String, OwnedFd)>> {
        let channel = control::connect(&self.control_path)?;
        let peer = channel.peer().map_err(|error| Error::io("ask who listens on the control path", error))?;
        if peer.pid != pid {
            let reason = format!("process {} listens at {}, not {pid}", peer.pid, self.control_path.display());
            return Err(Error::NotTried { reason });
        }
        give_back::ask(channel, self.timing.hello)
    }
}

struct Run<'a> {
    supervisor: &'a Supervisor,
    record: Option<&'a StateJournal>,
    remembered: Remembered<'a>,
    machine: Checked<machine::Recovery>,
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
            Effect::Continue(id) => {
                self.ending = None;
                continue_process(id)?;
            }
            Effect::Kill(id) => {
                events::warn!(pid = id.pid, "a process that is left of an earlier handover is ended");
                self.ending.as_ref().map_or(Ok(()), Process::kill)?;
            }
            Effect::Arm(timer, after) => self.timers.arm(timer, after),
            Effect::Disarm(timer) => self.timers.disarm(timer),
            Effect::Finish(verdict) => self.verdict = Some(verdict),
        }
        Ok(())
    }

    fn stop(&mut self, id: ProcessId) -> Result<()> {
        match Process::find(id)? {
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
        let mut leaving = Vec::new();
        for told in self.remembered.leaving {
            leaving.extend(alive(Some(*told))?);
        }
        let daemon = alive(self.remembered.daemon)?;
        let lease = match self.supervisor.lease() {
            LeaseReading::Found(lease) => alive(Some(lease.owner))?.map(|_| lease),
            LeaseReading::Nobody => None,
            // What else is remembered decides, and whoever is started must take the lock.
            LeaseReading::Unreadable(reason) => {
                events::warn!(reason, "the lease can't be read, so it does not say who serves");
                None
            }
        };
        let answers = match lease {
            // Nobody needs to ask; a frozen one would only be waited for.
            Some(LeaseView { state: LeaseState::Active, .. }) => None,
            Some(_) | None => self.who_answers()?,
        };
        let lock_holder = self.lock_holder();
        Ok(Findings { journal, lease, daemon, leaving, answers, lock_holder })
    }

    fn who_answers(&self) -> Result<Option<ProcessId>> {
        match control::who_answers(&self.supervisor.control_path, self.supervisor.timing.hello) {
            Some(pid) => Ok(Process::open(pid)?.map(|process| process.id())),
            None => Ok(None),
        }
    }

    /// Without an answer nobody is known to hold it: then it is the lock itself that stops whoever is started beside its owner.
    fn lock_holder(&self) -> Option<u32> {
        ownership::in_the_way(self.supervisor.data_dir.as_ref()?.path()).unwrap_or_else(|error| {
            events::warn!(%error, "who holds the data dir can't be seen");
            None
        })
    }
}

/// One that runs already, or may not be signalled, is as well off without.
fn continue_process(id: ProcessId) -> Result<()> {
    if let Some(process) = Process::find(id)?
        && let Err(error) = process.cont()
    {
        events::warn!(pid = id.pid, %error, "the process could not be told to go on");
    }
    Ok(())
}

fn incumbent_of(record: &StateJournal) -> Option<ProcessId> {
    let start_time = record.details.incumbent_start_time?;
    Some(ProcessId { pid: record.incumbent_pid, start_time })
}

fn successor_of(record: &StateJournal) -> Option<ProcessId> {
    Some(ProcessId { pid: record.successor_pid?, start_time: record.details.successor_start_time? })
}

fn alive(id: Option<ProcessId>) -> Result<Option<ProcessId>> {
    id.map_or(Ok(None), |id| Ok(Process::find(id)?.map(|process| process.id())))
}
