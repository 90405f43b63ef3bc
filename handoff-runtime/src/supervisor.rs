//! The supervisor: it hands a daemon over to a new build, and finds its way again after a restart.
//!
//! It decides nothing about the protocol: [`handoff_proto::supervisor`] and [`handoff_proto::recovery`] do, and the modules
//! below perform their effects. It never blocks on a peer, never ends a process that it did not start, or that neither
//! its journal nor its service's record names, and never reaps a foreign child.

mod give_back;
mod handover;
mod news;
mod peer;
mod recovery;
mod stopwatch;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use handoff_journal::Journal;
use handoff_lock::WatchedLease;
use handoff_proto::supervisor::Watchdog;
use handoff_proto::{HandoffId, ProcessId, Timing};

use crate::channel::Channel;
use crate::control::check_socket_path;
use crate::crash;
use crate::data_dir::DataDir;
use crate::error::{Error, Result};
use crate::events;
use crate::listeners::check_name;
use crate::outcome::{HandoffOutcome, Recovery, SpawnSpec};
use crate::process::Process;
use crate::progress::{Cancel, Onlooker, Progress};
pub(crate) use news::log_news;
pub(crate) use recovery::Remembered;

/// Hands one daemon over, again and again.
///
/// It holds the listening sockets, so that they never close (promise 4). One of them for a daemon at a time: see to it
/// with a lock of your own.
#[derive(Debug)]
pub struct Supervisor {
    control_path: PathBuf,
    data_dir: Option<Arc<DataDir>>,
    journal_path: Option<PathBuf>,
    build_id: Vec<u8>,
    timing: Timing,
    watchdog: Watchdog,
    listeners: Mutex<Listeners>,
    /// Held while a handover or a recovery is under way.
    at_work: Mutex<Desk>,
    said_without_lease: AtomicBool,
}

/// What one handover after the other uses.
#[derive(Debug, Default)]
struct Desk {
    journal: Option<Journal>,
    /// Kept, so that a look in the pause opens no file.
    lease: Option<WatchedLease>,
    /// The incumbent that the handover before has not heard to serve again.
    unheard: Option<ProcessId>,
    /// Who served after the handover before, so that its place in `/proc` need not be looked at again.
    serving: Option<Process>,
}

/// What is known of the incumbent before a handover begins. What is missing is found out, and nothing of it is believed.
#[derive(Debug, Default)]
pub(crate) struct AtHand {
    /// Who should listen on the control path, so that its place in `/proc` need not be looked at.
    pub(crate) process: Option<Process>,
    /// A connection to it: it greets while the order is still looked at.
    pub(crate) connected: Option<Channel>,
}

#[derive(Debug, Default)]
struct Listeners {
    named: Vec<(String, OwnedFd)>,
    /// The first one that could not be kept.
    failed: Option<(String, io::Error)>,
}

impl Supervisor {
    /// A supervisor of the daemon that answers at `control_socket`.
    ///
    /// # Errors
    /// [`Error::SocketPathTooLong`]: here, and not in the middle of a handover.
    pub fn new(control_socket: &Path) -> Result<Self> {
        check_socket_path(control_socket)?;
        Ok(Self {
            control_path: control_socket.to_owned(),
            data_dir: None,
            journal_path: None,
            build_id: Vec::new(),
            timing: crash::initial_timing(),
            watchdog: Watchdog::Ends,
            listeners: Mutex::default(),
            at_work: Mutex::default(),
            said_without_lease: AtomicBool::new(false),
        })
    }

    /// Passes a duplicate of this socket to every successor, under this name. A name may stand for several sockets. That it
    /// could not be duplicated shows in [`perform_handoff`](Self::perform_handoff).
    pub fn with_listener(self, name: impl Into<String>, listener: impl AsFd) -> Self {
        let name = name.into();
        let mut listeners = self.lock_listeners();
        match listener.as_fd().try_clone_to_owned() {
            Ok(fd) => listeners.named.push((name, fd)),
            Err(error) => listeners.failed = listeners.failed.take().or(Some((name, error))),
        }
        drop(listeners);
        self
    }

    /// Keeps a journal here, so that a supervisor that is started again knows what was under way (promise 7).
    pub fn with_journal(self, path: PathBuf) -> Self {
        Self { journal_path: Some(path), ..self }
    }

    /// What the journal says of the successor's build.
    pub fn with_build_id(self, build_id: Vec<u8>) -> Self {
        Self { build_id, ..self }
    }

    /// The daemon's data directory, whose lease says who owns the data. Without it only what needs no lease is done: a
    /// successor is checked, and the control path is asked who answers.
    ///
    /// It is the directory that the name means now: links are followed once, here. While the name means another one, because a
    /// link was switched or the directory was renamed, replaced or mounted over, every handover is refused before the drain.
    pub fn with_data_dir(self, data_dir: PathBuf) -> Self {
        self.with_held_data_dir(Arc::new(DataDir::resolve(&data_dir)))
    }

    /// The same, of one that is known already.
    pub(crate) fn with_held_data_dir(self, data_dir: Arc<DataDir>) -> Self {
        Self { data_dir: Some(data_dir), ..self }
    }

    /// Other intervals than those of the protocol.
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// What becomes of an incumbent that freezes in the middle of a handover; by default it is ended and its successor
    /// promoted.
    pub fn with_watchdog(self, watchdog: Watchdog) -> Self {
        Self { watchdog, ..self }
    }

    /// Duplicates of all listeners, those that an incumbent gave back included.
    ///
    /// # Errors
    /// A listener could not be duplicated, here or in [`with_listener`](Self::with_listener).
    pub fn listeners(&self) -> Result<Vec<(String, OwnedFd)>> {
        let listeners = self.usable_listeners()?;
        let duplicates = listeners.named.iter().map(|(name, fd)| Ok((name.clone(), fd.try_clone()?)));
        duplicates.collect::<io::Result<_>>().map_err(|error| Error::io("duplicate a listener", error))
    }

    /// Starts the successor, lets the incumbent drain and seal, lets the successor take over, checks it, and tells the
    /// incumbent to leave; or puts everything back as it was (promise 6). Returns after the commit or the rollback.
    ///
    /// # Errors
    /// Nothing was started, and the incumbent was not touched: [`Error::HandoffInProgress`] at once while another call runs;
    /// [`Error::CannotStart`] for a binary that can't be run; [`Error::Journal`]; [`Error::Io`] when nobody answers on the
    /// control socket; [`Error::NotTried`] for an incumbent that can't be talked to; [`Error::DataDirElsewhere`]. What fails later is an outcome that is
    /// not committed.
    pub fn perform_handoff(&self, spec: SpawnSpec) -> Result<HandoffOutcome> {
        events::prepare();
        self.check_data_dir()?;
        let cancel = Cancel::new().map_err(|error| Error::io("prepare a handover", error))?;
        let outcome = self.perform_watched(
            HandoffId::new(),
            spec,
            AtHand::default(),
            &|news: Vec<Progress>| log_news(&news),
            &cancel,
            |outcome, rest| {
                log_news(&rest);
                outcome
            },
        )?;
        self.make_end_durable();
        events::settle();
        outcome
    }

    /// The same, named by the caller, watched, and to be called off, with what is `at_hand` of the incumbent. `conclude` gets the outcome and what the
    /// onlooker has not seen. Another call is refused until this one returns.
    ///
    /// Its end is in the journal and need not be on the disk: see [`make_end_durable`](Self::make_end_durable).
    ///
    /// # Errors
    /// Another call runs, or the journal can't be opened.
    pub(crate) fn perform_watched<T>(
        &self,
        handoff_id: HandoffId,
        spec: SpawnSpec,
        at_hand: AtHand,
        onlooker: &dyn Onlooker,
        cancel: &Cancel,
        conclude: impl FnOnce(Result<HandoffOutcome>, Vec<Progress>) -> T,
    ) -> Result<T> {
        let mut desk = self.desk()?;
        let Desk { journal, lease, unheard, serving } = &mut *desk;
        let journal = self.open_journal(journal)?;
        let lease = self.data_dir.as_ref().map(|dir| lease.get_or_insert_with(|| WatchedLease::new(dir.path())));
        let at_hand = AtHand { process: at_hand.process.or_else(|| serving.take()), ..at_hand };
        let tools = handover::Tools { handoff_id, at_hand, journal, lease, unheard, serving };
        let performed = handover::Run::new(self, tools, spec, onlooker, cancel).perform();
        let handover::Performed { outcome, unseen, channels } = performed;
        let concluded = conclude(outcome, unseen);
        drop(channels);
        Ok(concluded)
    }

    /// Brings the end of the last handover to the disk. Nothing waits for it: a power loss leaves nobody who could serve, whatever
    /// the journal says.
    pub(crate) fn make_end_durable(&self) {
        // Another handover under way syncs its intent, and with it all before.
        let Ok(mut desk) = self.desk() else { return };
        if let Some(journal) = &mut desk.journal
            && let Err(error) = journal.sync()
        {
            events::warn!(%error, "the end of a handover may not survive a power loss");
        }
    }

    /// Finds out who serves, ends what is left of a handover that nobody will finish, and gets the listeners back from the
    /// incumbent (promise 7). Call it before the first handover; it may be called again. A journal that can't be read is no
    /// error: what it would have said is found out otherwise, and the file is kept beside it.
    ///
    /// # Errors
    /// [`Error::HandoffInProgress`]; [`Error::DataDirHeld`] when a process that is not ours to end holds the data: start
    /// nothing then; else the system's.
    pub fn resume_from_journal(&self) -> Result<Recovery> {
        let recovery = self.resume_with(Remembered::default());
        events::settle();
        recovery
    }

    /// The same, with what a service remembers besides: these processes are ours too.
    pub(crate) fn resume_with(&self, remembered: Remembered<'_>) -> Result<Recovery> {
        let mut desk = self.desk()?;
        let journal = self.open_journal(&mut desk.journal)?;
        recovery::recover(self, journal, remembered)
    }

    /// Whether the data directory's name still means the one that is held; what is not known is in its place.
    fn check_data_dir(&self) -> Result<()> {
        self.data_dir.as_ref().map_or(Ok(()), |data_dir| data_dir.check())
    }

    fn desk(&self) -> Result<MutexGuard<'_, Desk>> {
        match self.at_work.try_lock() {
            Ok(desk) => Ok(desk),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Error::HandoffInProgress),
        }
    }

    fn open_journal<'a>(&self, kept: &'a mut Option<Journal>) -> Result<Option<&'a mut Journal>> {
        let Some(path) = &self.journal_path else { return Ok(None) };
        if kept.is_none() {
            let journal = Journal::open(path)?;
            if let Some(set_aside) = journal.set_aside() {
                let kept_at = set_aside.kept_at.display();
                events::warn!(reason = %set_aside.reason, %kept_at, "the journal could not be read; a new one is begun");
            }
            *kept = Some(journal);
        }
        Ok(kept.as_mut())
    }

    fn lock_listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable_listeners(&self) -> Result<MutexGuard<'_, Listeners>> {
        let listeners = self.lock_listeners();
        if let Some((name, error)) = &listeners.failed {
            let source = io::Error::new(error.kind(), error.to_string());
            return Err(Error::io(format!("duplicate listener {name:?}"), source));
        }
        listeners.named.iter().try_for_each(|(name, _)| check_name(name))?;
        Ok(listeners)
    }

    /// Says once that a supervisor without a data directory can't look at the lease.
    fn say_without_lease(&self) {
        if !self.said_without_lease.swap(true, Ordering::Relaxed) {
            events::warn!(
                "no data directory is known: what the lease would tell is left out (Supervisor::with_data_dir)"
            );
        }
    }
}
