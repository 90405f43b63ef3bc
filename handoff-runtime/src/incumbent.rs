//! The incumbent: answers on the control socket, runs the daemon's hooks, and performs what its machine decides.
//!
//! All decisions of the protocol are the machine's (`handoff_proto::incumbent`); here is no branch on its state. One poll
//! loop, and two threads, the caller's and the library's; which of the two runs the loop or a hook stands in `crew`. While
//! nothing happens it sleeps without any timer.

mod crew;
mod driver;
mod effects;
#[cfg(test)]
mod listener_tests;
mod lock_slot;
mod path_watch;
#[cfg(test)]
mod tests;
mod watch;

use std::path::Path;
use std::sync::Arc;

use handoff_lock::ServingLock;
use handoff_proto::Timing;

use crate::channel::Channel;
use crate::control::{ControlSocket, StagedControl, check_socket_path};
use crate::crash;
use crate::drainable::Drainable;
use crate::error::{Error, Result};
use crate::events;
use crate::listeners;
use crate::successor::{Announced, Serving};
use crew::IdleWorker;

/// A daemon that owns its data and can be handed over.
///
/// It holds the data-dir lock and its lease says Active: the daemon may serve. Dropping it, as an early return of `main` and a
/// panic do, keeps the lock until the process exits, because the daemon's threads may still write (promise 1), and closes the
/// control socket. [`serve`](Self::serve) lets go of the lock in a handover; a daemon that ends otherwise lets go of it by exiting.
#[derive(Debug)]
pub struct Incumbent {
    control: ControlSocket,
    lock: ServingLock,
    build_id: Vec<u8>,
    timing: Timing,
    worker: IdleWorker,
    /// To the supervisor of the handover that it came by, until that one hangs up.
    parting: Option<Channel>,
}

/// How [`Incumbent::serve`] ended. Either way another process owns the data: finish what is still being read, and exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Served {
    /// The handover was committed.
    Committed,
    /// The supervisor was lost after the seal, and a newer owner was found.
    Superseded,
}

impl Incumbent {
    /// Makes a daemon that was started cold reachable: the control socket is published at its path in the place of whatever
    /// is there, then the lease turns Active. Serve nobody before this returns.
    ///
    /// A store that starts threads when it is opened wants a lock that is [for serving](crate::DataDirLock::for_serving) by
    /// then; from here on it is one in any case.
    ///
    /// # Errors
    /// The path is too long or its directory is not ours to write; the lease can't be written; there is no thread for the
    /// hooks. The lock is then kept until the process exits, because the store may be open: exit.
    pub fn bind_cold_start(control_socket: &Path, lock: impl Into<ServingLock>) -> Result<Self> {
        let mut lock = lock.into();
        let worker = IdleWorker::start()?;
        let control = publish_and_activate(control_socket, &mut lock)?;
        let (build_id, timing) = (Vec::new(), crash::initial_timing());
        Ok(Self { control, lock, build_id, timing, worker, parting: None })
    }

    /// A successor that has taken over: its control socket is published, its lease says Active under this build id.
    pub(crate) fn taken_over(by: Announced) -> Self {
        let Announced { serving: Serving { control, lock, build_id }, helper, waker, relief, parting } = by;
        let worker = IdleWorker::taken_over(helper, waker, relief);
        Self { control, lock, build_id, timing: crash::initial_timing(), worker, parting }
    }

    /// Says what names this build; supervisors and `handoff status` show it, the lease keeps its first 64 bytes.
    pub fn with_build_id(mut self, build_id: Vec<u8>) -> Self {
        if let Err(error) = self.lock.activate(&build_id) {
            events::warn!(%error, "the build id could not be written into the lease");
        }
        self.build_id = build_id;
        self
    }

    /// Replaces the protocol's intervals, for tests.
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Answers on the control socket until the daemon has been handed over; blocks the calling thread.
    ///
    /// The hooks run on one other thread. They succeed in resuming exactly once for each drain that did not end in a commit
    /// (promise 9). The control path is never unlinked: it may be the successor's by now.
    ///
    /// # Errors
    /// [`Error::StateNotReadable`]: `resume_after_abort` said so, and the lock is released; exit, and the supervisor starts
    /// the build that can read it. Anything else: the loop can't go on; the lock is kept until the process exits, because the
    /// store may be open.
    pub fn serve<D: Drainable + 'static>(self, drainable: D) -> Result<Served> {
        events::prepare();
        let (driver, bench, worker) = driver::Driver::new(self, Arc::new(drainable));
        let served = worker.serve(driver, bench);
        listeners::forget();
        events::settle();
        served
    }
}

fn publish_and_activate(path: &Path, lock: &mut ServingLock) -> Result<ControlSocket> {
    check_socket_path(path)?;
    let control = StagedControl::bind(path)?.publish()?;
    lock.activate(&[]).map_err(Error::from)?;
    Ok(control)
}
