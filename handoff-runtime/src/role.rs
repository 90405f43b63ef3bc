//! What a process was started as, and a successor's way to become the incumbent, one type for each stage.
//!
//! [`detect_role`] → [`Successor`] → [`HandshookSuccessor`] → [`BegunSuccessor`] → [`Incumbent`]. Each step consumes the
//! stage before it, so a call out of order does not compile. Dropping any stage gives the handover up: the supervisor
//! hears it, the incumbent serves on or again. A lock that was taken is not let go of by that, only by its own
//! [`release`](ServingLock::release) or the end of the process. Nothing here ends the process; after an error, exit.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;

use handoff_lock::{DataDirLock, ServingLock, Unlocked};
use handoff_proto::{BeginMode, HandoffId, Timing};

use crate::crash::{self, fail_here, points};
use crate::data_dir::Told;
use crate::drainable::{ReadinessSnapshot, SealReport};
use crate::environment::{self, StartedAs};
use crate::error::{Error, Result};
use crate::incumbent::Incumbent;
use crate::listeners::InheritedListeners;
use crate::successor::{Driver, OpenProgress};
use crate::sys::fork::StaysHere;

/// The longest build id that a successor may greet with, in bytes. A lease keeps its first 64.
const BUILD_ID_BYTES_MAX: usize = 64 * 1024;

/// What this process was started as.
#[derive(Debug)]
pub enum Role {
    /// To serve at once: acquire the lock, then [`Incumbent::bind_cold_start`].
    ColdStart {
        /// The listeners that came with the process; none when nobody passed any.
        inherited: InheritedListeners,
    },
    /// To take over from a running process.
    Successor(Successor),
}

/// Finds out what this process was started as. Call it at the start of `main`; other threads may run. It takes the inherited
/// descriptors once: a second call says cold start, without listeners.
///
/// It reads the variables `LISTEN_*` and `HANDOFF_*` and leaves them where they are, because no variable can be removed while
/// another thread may read one. Programs that the daemon starts find them too. They tell by `LISTEN_PID` that they are another
/// process's; [`forget_role`](crate::forget_role) keeps them from one that does not look.
///
/// An unknown `HANDOFF_ROLE` is a cold start. A descriptor that is no listener is skipped, stays open, and is logged. The
/// listeners keep the flags that they have until they are taken.
///
/// ```no_run
/// # use std::net::TcpListener;
/// # use std::path::Path;
/// use handoff_runtime::{DataDirLock, Incumbent, ReadinessSnapshot, Role, detect_role};
/// # struct Store { revision: u64 }
/// # fn load_what_needs_no_data() {}
/// # fn open_store(_: &Path, _epoch: u64) -> std::io::Result<Store> { Ok(Store { revision: 0 }) }
///
/// # fn start(data_dir: &Path, control: &Path) -> Result<(Incumbent, Store, TcpListener), Box<dyn std::error::Error>> {
/// let (incumbent, store, listener) = match detect_role()? {
///     Role::ColdStart { mut inherited } => {
///         let lock = DataDirLock::acquire(data_dir)?.for_serving();
///         let store = open_store(data_dir, lock.epoch())?;
///         let listener = inherited.take("http").ok_or("no listener named http")?;
///         (Incumbent::bind_cold_start(control, lock)?, store, listener)
///     }
///     Role::Successor(successor) => {
///         let mut greeted = successor.handshake(b"build 42".to_vec())?;
///         greeted.prepare(data_dir, control)?;
///         load_what_needs_no_data();
///         greeted.warmed()?;
///         let mut begun = greeted.wait_for_begin()?;
///         let lock = begun.lock(data_dir)?;
///         let store = open_store(data_dir, lock.epoch())?;
///         let listener = begun.take_listener("http").ok_or("no listener named http")?;
///         let readiness = ReadinessSnapshot {
///             listening_on: vec![listener.local_addr()?.to_string()],
///             healthz_ok: true,
///             advertised_revision_per_shard: vec![store.revision],
///             ..ReadinessSnapshot::default()
///         };
///         (begun.announce_and_bind(readiness, control, lock)?, store, listener)
///     }
/// };
/// // Only now: serve clients on `listener`, and let `incumbent.serve(drainable)` wait for the next handover.
/// # Ok((incumbent, store, listener)) }
/// ```
///
/// # Errors
/// [`Error::Environment`]: a successor without a usable channel to its supervisor, variables that make no sense, or a shell in
/// between that was told the role and did not `exec` this program. The fault of whoever started this process.
pub fn detect_role() -> Result<Role> {
    Ok(match environment::claim()? {
        StartedAs::ColdStart { inherited } => Role::ColdStart { inherited },
        StartedAs::Successor { inherited, control, transfer, data_dir } => {
            Role::Successor(Successor::new(control, transfer, inherited, data_dir))
        }
    })
}

/// A successor that has not greeted its supervisor yet. It owns nothing, and must touch nothing.
#[derive(Debug)]
pub struct Successor {
    control: StaysHere,
    transfer: Option<StaysHere>,
    inherited: InheritedListeners,
    /// Boxed for the sake of `Role`, most of which are cold starts.
    timing: Box<Timing>,
    place: Place,
}

impl Successor {
    pub(crate) fn new(
        control: StaysHere,
        transfer: Option<StaysHere>,
        inherited: InheritedListeners,
        data_dir: Option<Told>,
    ) -> Self {
        Self { control, transfer, inherited, timing: Box::new(crash::initial_timing()), place: Place::new(data_dir) }
    }

    /// Other intervals than those of the protocol, for tests.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        *self.timing = timing;
        self
    }

    /// The names of the listeners that were passed.
    pub fn listener_names(&self) -> Vec<String> {
        self.inherited.names()
    }

    /// Greets the supervisor. From here on a thread of the library keeps the session and sends the heartbeats, so the
    /// daemon may block wherever it likes. `build_id` names this build for people, in any form.
    ///
    /// # Errors
    /// [`Error::Aborted`] or [`Error::Protocol`] when the supervisor does not answer, or not as it should;
    /// [`Error::Usage`] for a build id of more than 64 KiB; [`Error::Io`] when the system gives no thread or descriptor.
    pub fn handshake(self, build_id: Vec<u8>) -> Result<HandshookSuccessor> {
        if build_id.len() > BUILD_ID_BYTES_MAX {
            let bytes = build_id.len();
            return Err(Error::Usage(format!("a build id of {bytes} bytes; at most {BUILD_ID_BYTES_MAX} are sent")));
        }
        injected(fail_here!(points::N_BEFORE_HANDSHAKE))?;
        let mut driver = Driver::greet(self.control, self.transfer, build_id, *self.timing)?;
        let handoff_id = driver.greeted()?;
        injected(fail_here!(points::N_AFTER_HANDSHAKE))?;
        Ok(HandshookSuccessor { driver, inherited: self.inherited, handoff_id, place: self.place, prepared: None })
    }
}

/// A greeted successor. It loads all that it can without the data; the old process serves on meanwhile.
#[derive(Debug)]
pub struct HandshookSuccessor {
    driver: Driver,
    inherited: InheritedListeners,
    handoff_id: HandoffId,
    place: Place,
    prepared: Option<Unlocked>,
}

impl HandshookSuccessor {
    /// The handover that this successor was started for.
    pub fn handoff_id(&self) -> HandoffId {
        self.handoff_id
    }

    /// The names of the listeners that were passed.
    pub fn listener_names(&self) -> Vec<String> {
        self.inherited.names()
    }

    /// Opens the lock's files, and binds the control socket beside its path, while the old process serves: the pause is
    /// shorter by that. Give it what [`lock`](BegunSuccessor::lock) and
    /// [`announce_and_bind`](BegunSuccessor::announce_and_bind) will be given; without it they do the same in their turn.
    /// Nothing is locked, written, or to be found by anybody yet.
    ///
    /// # Errors
    /// As `lock` and `announce_and_bind`, for what can't be opened or bound. [`Error::DataDirElsewhere`]: `data_dir` is not the
    /// directory that is handed over. Exit: the old process has not stopped.
    pub fn prepare(&mut self, data_dir: &Path, control_socket: &Path) -> Result<()> {
        self.place.check(data_dir)?;
        self.prepared = Some(Unlocked::open(data_dir)?);
        self.driver.stage_control(control_socket)
    }

    /// Says that all is loaded that can be loaded without the data. Only then does the supervisor let the old process
    /// drain, so slow start-up costs no pause. A second call does nothing.
    ///
    /// # Errors
    /// [`Error::Aborted`] or [`Error::Protocol`]: the handover is off. [`Error::DataDirElsewhere`]: `HANDOFF_DATA_DIR` is not
    /// the directory that is handed over. Exit.
    pub fn warmed(&mut self) -> Result<()> {
        self.place.check_told_name()?;
        self.driver.warmed()
    }

    /// Waits for this successor's turn; says [`warmed`](Self::warmed) first if that was not said.
    ///
    /// # Errors
    /// [`Error::Aborted`] when the supervisor calls the handover off, is gone or falls silent; [`Error::Protocol`] when it
    /// misbehaves; and as [`warmed`](Self::warmed). Nothing was touched. Exit.
    pub fn wait_for_begin(mut self) -> Result<BegunSuccessor> {
        self.place.check_told_name()?;
        let (mode, sealed) = self.driver.wait_for_begin()?;
        injected(fail_here!(points::N_AFTER_BEGIN))?;
        let sealed = sealed.map(|sealed| SealReport {
            last_revision_per_shard: sealed.last_revision_per_shard,
            data_dir_fingerprint: sealed.data_dir_fingerprint,
        });
        let Self { driver, inherited, handoff_id, place, prepared } = self;
        Ok(BegunSuccessor { driver, inherited, handoff_id, place, prepared, mode, sealed })
    }

    /// Gives the handover up before its turn. The reason reaches whoever ordered it; then exit: the old process was not asked to stop,
    /// or resumes.
    pub fn give_up(self, reason: impl std::fmt::Display) {
        self.driver.give_up(reason.to_string());
    }
}

/// A successor whose turn has come: take the listeners, [`lock`](Self::lock), open the data, check it against
/// [`sealed`](Self::sealed), and [`announce_and_bind`](Self::announce_and_bind) before the deadline.
///
/// Dropping it gives the handover up, and keeps a lock that was taken until the process exits.
#[derive(Debug)]
pub struct BegunSuccessor {
    driver: Driver,
    inherited: InheritedListeners,
    handoff_id: HandoffId,
    place: Place,
    prepared: Option<Unlocked>,
    mode: BeginMode,
    sealed: Option<SealReport>,
}

impl BegunSuccessor {
    /// The handover that this successor was started for.
    pub fn handoff_id(&self) -> HandoffId {
        self.handoff_id
    }

    /// The names of the listeners that are left.
    pub fn listener_names(&self) -> Vec<String> {
        self.inherited.names()
    }

    /// The first TCP listener of this name, blocking. `None`: there is none left. Do not accept on it before
    /// [`announce_and_bind`](Self::announce_and_bind) has returned (promise 5).
    pub fn take_listener(&mut self, name: &str) -> Option<TcpListener> {
        self.inherited.take(name)
    }

    /// The first Unix listener of this name; else as [`take_listener`](Self::take_listener).
    pub fn take_unix_listener(&mut self, name: &str) -> Option<UnixListener> {
        self.inherited.take_unix(name)
    }

    /// The first UDP socket of this name; else as [`take_listener`](Self::take_listener).
    pub fn take_udp_socket(&mut self, name: &str) -> Option<UdpSocket> {
        self.inherited.take_udp_socket(name)
    }

    /// What the old process sealed. `None` when it died before it could, or when the supervisor speaks version 1, which
    /// does not tell. The revisions, and the fingerprint if the daemon reports one, are checked in
    /// [`announce_and_bind`](Self::announce_and_bind).
    pub fn sealed(&self) -> Option<&SealReport> {
        self.sealed.as_ref()
    }

    /// Whether the data was sealed, or is to be recovered as after a crash. A supervisor that does not say it leaves it to
    /// the lease, which [`lock`](Self::lock) reads: ask after it.
    pub fn mode(&self) -> BeginMode {
        self.mode
    }

    /// Takes the data-dir lock: a successor's only way to it. Waits until the deadline while another holds it, and goes on
    /// only if the lease, read under the lock, is the one that this handover is about (promise 1).
    ///
    /// Dropping the lock keeps it until the process exits, since what was opened under it may still write. A process that
    /// gives up and lives on [releases](ServingLock::release) it when nothing does.
    ///
    /// # Errors
    /// [`Error::Aborted`]: the handover is off, the deadline has passed, or somebody else's turn has come; nothing was
    /// touched. [`Error::DataDirElsewhere`]: `data_dir` is not the directory that is handed over. [`Error::Lock`]: the lock
    /// failed. [`Error::Usage`]: it was called before. After the first three, exit.
    pub fn lock(&mut self, data_dir: &Path) -> Result<ServingLock> {
        match self.prepared.take().filter(|prepared| prepared.data_dir() == data_dir) {
            Some(prepared) => self.take(prepared),
            None => {
                self.place.check(data_dir)?;
                self.take(Unlocked::open(data_dir)?)
            }
        }
    }

    /// The same on any file system. The caller vouches that no other host uses the directory, or that flock excludes it.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn lock_on_any_filesystem(&mut self, data_dir: &Path) -> Result<ServingLock> {
        self.place.check(data_dir)?;
        self.take(DataDirLock::options().allow_any_filesystem(true).open(data_dir)?)
    }

    fn take(&mut self, unlocked: Unlocked) -> Result<ServingLock> {
        let (lock, mode) = self.driver.lock(unlocked)?;
        injected(fail_here!(points::N_AFTER_LOCK))?;
        self.mode = mode;
        Ok(lock)
    }

    /// What to tell the supervisor while the opening takes long, from any thread. A successor that opens for longer than `open` of
    /// the configuration (10 s) without such a word is ended, and the old process serves again.
    pub fn open_progress(&self) -> OpenProgress {
        self.driver.open_progress()
    }

    /// Gives the handover up. The reason reaches whoever ordered it; then exit: the old process resumes. The lock, if it was taken, is
    /// for the caller to keep until then.
    pub fn give_up(self, reason: impl std::fmt::Display) {
        self.driver.give_up(reason.to_string());
    }

    /// Becomes the incumbent: binds the control socket beside `control_socket`, renames it into place, turns the lease
    /// Active, and tells the supervisor. Serve nobody and acknowledge nothing before it has returned (promise 5).
    /// A supervisor that is gone does not stop it. Call [`Incumbent::serve`] next: it sends what the supervisor's socket has not
    /// taken yet of a very long report.
    ///
    /// # Errors
    /// **The lock is kept until the process exits**: close the store and exit, and the old process resumes.
    /// [`Error::Unfit`]: unhealthy, or fewer shards or lower revisions than were sealed (promise 3); the supervisor was
    /// told. [`Error::Aborted`]: called off, or too late. [`Error::Usage`]: `lock` did not come from [`lock`](Self::lock).
    /// [`Error::Lock`], [`Error::Io`], [`Error::SocketPathTooLong`]: the lease or the socket failed.
    pub fn announce_and_bind(
        self,
        readiness: ReadinessSnapshot,
        control_socket: &Path,
        lock: ServingLock,
    ) -> Result<Incumbent> {
        self.announce_and_serve(readiness, control_socket, lock, || {})
    }

    /// The same, and `serve` is called as soon as clients may be served (promise 5), once and on this thread: when the lease
    /// says Active, and before the supervisor is told. What it tells the old process then, and the old process's exit,
    /// want the processors too: a daemon that accepts by then has the shorter pause. Let `serve` return at once. If it panics, the
    /// lock is kept until the process exits.
    ///
    /// # Errors
    /// As [`announce_and_bind`](Self::announce_and_bind); `serve` was not called then.
    pub fn announce_and_serve(
        mut self,
        readiness: ReadinessSnapshot,
        control_socket: &Path,
        lock: ServingLock,
        serve: impl FnOnce(),
    ) -> Result<Incumbent> {
        injected(fail_here!(points::N_BEFORE_ANNOUNCE_READY))?;
        Ok(Incumbent::taken_over(self.driver.announce(readiness, control_socket, lock, serve)?))
    }
}

/// Where the data is, as the supervisor has told.
#[derive(Debug)]
struct Place {
    told: Option<Box<Told>>,
    /// Whether anybody has looked yet what a name means.
    checked: bool,
}

impl Place {
    fn new(told: Option<Told>) -> Self {
        Self { told: told.map(Box::new), checked: false }
    }

    /// Whether the daemon's own name for it means the directory that is handed over.
    fn check(&mut self, name: &Path) -> Result<()> {
        self.checked = true;
        self.told.as_ref().map_or(Ok(()), |told| told.check(name))
    }

    /// Once, for a daemon that has not named it yet: it goes by the name that it was told.
    fn check_told_name(&mut self) -> Result<()> {
        let name = self.told.as_ref().and_then(|told| told.name.clone()).filter(|_| !self.checked);
        name.map_or(Ok(()), |name| self.check(Path::new(&name)))
    }
}

/// An error that a test asked for, as one of ours.
fn injected(outcome: std::io::Result<()>) -> Result<()> {
    outcome.map_err(|error| Error::io("go on", error))
}
