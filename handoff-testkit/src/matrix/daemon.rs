//! The built-in daemon: a log of acknowledged writes, the smallest thing that can lose one.
//!
//! Whoever connects to its listener `http`, TCP or a Unix socket, sends `TOKEN\n`; the line `EPOCH PID TOKEN` is appended to the file `writes` and
//! synced, then the client is told `OK PID\n`. To `?TOKEN\n` the answer is `OK 1\n` if the token was written, and else `OK 0\n`.
//!
//! Invariants: a line is on disk before anybody is told of it; the file is open only while the lock is ours; the accept loop
//! runs only while the file is open. The file is only ever appended to, so a writer that should not be one shows.

use std::collections::HashSet;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, thread};

use handoff_runtime::crash::maybe_fail;
use handoff_runtime::crash_here;
use handoff_runtime::{
    BegunSuccessor, DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume,
    Role, SealContext, SealReport, ServingLock, StateSnapshot, detect_role,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, shutdown};

use super::manners::{Manner, manner};
use super::{Fault, OwnPoint, Place, Written};
use crate::load::Connection;

/// The name of its only listener.
pub(super) const LISTENER: &str = "http";
/// The log's file in the data directory.
pub(super) const LOG_NAME: &str = "writes";

/// How long a client may take to send its line: it is served alone.
const CLIENT_PATIENCE: Duration = Duration::from_millis(250);
/// A killed process frees its lock a moment after its death.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// What a client may ask for: `TOKEN\n` or `?TOKEN\n`. The word behind the reply's `OK`.
pub(super) fn ask(connection: &mut Connection, request: &str) -> io::Result<String> {
    writeln!(connection, "{request}")?;
    let reply = connection.read_line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
    reply.strip_prefix("OK ").map(str::to_owned).ok_or_else(|| io::Error::other(reply.clone()))
}

const IN_DRAIN: OwnPoint = OwnPoint { name: "matrix-in-drain", place: Place::Drain, faults: Fault::ALL };
const IN_SEAL: OwnPoint = OwnPoint { name: "matrix-in-seal", place: Place::Seal, faults: Fault::ALL };
/// An error here makes the seal report the fingerprint of other data, which the successor must see.
const IN_FINGERPRINT: OwnPoint =
    OwnPoint { name: "matrix-in-fingerprint", place: Place::SealReport, faults: &[Fault::Error] };
const IN_RESUME: OwnPoint = OwnPoint { name: "matrix-in-resume", place: Place::Resume, faults: Fault::ALL };
/// An error at these four is one that `main` returns: while it warms up, before it takes the lock, under the lock, and when it has opened.
const IN_WARMING: OwnPoint = OwnPoint { name: "matrix-in-warming", place: Place::Warming, faults: &[Fault::Error] };
const IN_TURN: OwnPoint = OwnPoint { name: "matrix-before-lock", place: Place::Turn, faults: &[Fault::Error] };
const OPENED: OwnPoint = OwnPoint { name: "matrix-opened", place: Place::Opened, faults: &[Fault::Error] };
const IN_OPENING: OwnPoint = OwnPoint { name: "matrix-in-opening", place: Place::Opening, faults: Fault::ALL };
const IN_WRITE: OwnPoint = OwnPoint { name: "matrix-in-write", place: Place::Write, faults: Fault::PROCESS };
const IN_COLD_START: OwnPoint = OwnPoint { name: "matrix-in-cold-start", place: Place::ColdStart, faults: Fault::ALL };

/// Where it can be made to fail by itself, or to take its time.
pub(super) const POINTS: &[OwnPoint] =
    &[IN_DRAIN, IN_SEAL, IN_FINGERPRINT, IN_RESUME, IN_WARMING, IN_TURN, IN_OPENING, OPENED, IN_WRITE, IN_COLD_START];

/// Crosses a point of its own: fails there if it is told to.
fn cross(point: OwnPoint) -> io::Result<()> {
    crash_here!(point.name);
    maybe_fail(point.name)
}

/// The daemon's `main`.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daemon {}: {error}", process::id());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let role = detect_role()?;
    let path_in = |variable| env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("{variable} is not set"));
    let (data_dir, control) = (path_in("HANDOFF_DATA_DIR")?, path_in("HANDOFF_CONTROL_SOCKET")?);
    let (incumbent, log) = match role {
        Role::ColdStart { mut inherited } => {
            let tcp = inherited.take(LISTENER).map(Listener::Tcp);
            let unix = || inherited.take_unix(LISTENER).map(Listener::Unix);
            let listener = tcp.or_else(unix).ok_or("no listener")?;
            let lock = DataDirLock::acquire_timeout(&data_dir, LOCK_WAIT)?;
            cross(IN_COLD_START)?;
            let log = Daemon::open(&data_dir, lock.epoch(), listener)?;
            (Incumbent::bind_cold_start(&control, lock)?, log)
        }
        Role::Successor(successor) => {
            let shaken = successor.handshake(b"matrix".to_vec())?;
            if let Err(error) = cross(IN_WARMING) {
                shaken.give_up(&error);
                return Err(error.into());
            }
            let mut begun = shaken.wait_for_begin()?;
            let (lock, log, ready) = match take_over(&mut begun, &data_dir) {
                Ok(taken) => taken,
                Err(error) => {
                    begun.give_up(&error);
                    return Err(error);
                }
            };
            (begun.announce_and_bind(ready, &control, lock)?, log)
        }
    };
    log.accept()?;
    incumbent.serve(log)?;
    Ok(())
}

/// A successor's turn, up to its report.
fn take_over(
    begun: &mut BegunSuccessor,
    data_dir: &Path,
) -> Result<(ServingLock, Daemon, ReadinessSnapshot), Box<dyn Error>> {
    let tcp = begun.take_listener(LISTENER).map(Listener::Tcp);
    let unix = || begun.take_unix_listener(LISTENER).map(Listener::Unix);
    let listener = tcp.or_else(unix).ok_or("no listener")?;
    cross(IN_TURN)?;
    let lock = begun.lock(data_dir)?;
    cross(IN_OPENING)?;
    let daemon = Daemon::open(data_dir, lock.epoch(), listener)?;
    let (lines, fingerprint) = {
        let log = daemon.log();
        (log.lines, log.fingerprint())
    };
    cross(OPENED)?;
    let ready = ReadinessSnapshot {
        listening_on: vec![daemon.listener.address()?],
        healthz_ok: true,
        advertised_revision_per_shard: vec![lines],
        data_dir_fingerprint: Some(fingerprint),
    };
    Ok((lock, daemon, ready))
}

/// Where clients connect.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<File> {
        let client = match self {
            Self::Tcp(listener) => OwnedFd::from(listener.accept()?.0),
            Self::Unix(listener) => OwnedFd::from(listener.accept()?.0),
        };
        ioctl_fionbio(&client, false)?;
        set_socket_timeout(&client, Timeout::Recv, Some(CLIENT_PATIENCE))?;
        Ok(File::from(client))
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }

    /// For people.
    fn address(&self) -> io::Result<String> {
        Ok(match self {
            Self::Tcp(listener) => listener.local_addr()?.to_string(),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                format!("unix:{}", address.as_pathname().unwrap_or(Path::new("")).display())
            }
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

struct Daemon {
    path: PathBuf,
    listener: Listener,
    log: Arc<Mutex<Log>>,
    accepting: Mutex<Option<(UnixStream, thread::JoinHandle<()>)>>,
    /// Whoever is served right now.
    in_hand: Arc<Mutex<Option<File>>>,
}

/// The open log; closed while another may own it.
#[derive(Default)]
struct Log {
    epoch: u64,
    lines: u64,
    /// All that stand in it.
    tokens: HashSet<u64>,
    file: Option<File>,
}

impl Daemon {
    fn open(data_dir: &Path, epoch: u64, listener: Listener) -> io::Result<Self> {
        ioctl_fionbio(&listener, true)?;
        let path = data_dir.join(LOG_NAME);
        let daemon = Self { path, listener, log: Arc::default(), accepting: Mutex::default(), in_hand: Arc::default() };
        daemon.read(epoch)?;
        Ok(daemon)
    }

    /// Reads it again from disk: somebody else may have written since.
    fn read(&self, epoch: u64) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?; // a line that nobody was told of
        }
        let tokens: HashSet<u64> =
            parse(&String::from_utf8_lossy(&bytes[..whole]))?.iter().map(|it| it.token).collect();
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        *self.log() = Log { epoch, lines, tokens, file: Some(file) };
        Ok(())
    }

    fn accept(&self) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        let (listener, log, in_hand) = (self.listener.try_clone()?, Arc::clone(&self.log), Arc::clone(&self.in_hand));
        let thread = thread::Builder::new().spawn(move || accept_until(&stopped, &listener, &log, &in_hand))?;
        *lock(&self.accepting) = Some((stop, thread));
        Ok(())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

fn accept_until(stopped: &UnixStream, listener: &Listener, log: &Mutex<Log>, in_hand: &Mutex<Option<File>>) {
    loop {
        let mut fds = [PollFd::new(stopped, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return; // who connects from now on waits in the backlog for whoever serves next
        }
        if let Ok(client) = listener.accept() {
            *lock(in_hand) = client.try_clone().ok();
            let _ = serve(client, log); // a client that went away is told nothing
            *lock(in_hand) = None;
        }
    }
}

fn serve(mut client: File, log: &Mutex<Log>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new((&client).take(64)).read_line(&mut line)?;
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    match line.trim().strip_prefix('?') {
        Some(token) => {
            let known = manner() != Manner::ReadsOld && lock(log).tokens.contains(&number(token)?);
            writeln!(client, "OK {}", u8::from(known))
        }
        None => {
            let token = number(line.trim())?;
            match manner() {
                Manner::SaysNo if token % 5 == 0 => return writeln!(client, "ERR not now"),
                Manner::ForgetsWrites if token % 5 == 0 => {}
                _ => lock(log).append(token)?,
            }
            writeln!(client, "OK {}", process::id())
        }
    }
}

impl Log {
    fn append(&mut self, token: u64) -> io::Result<()> {
        let mut file = self.file.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        file.write_all(format!("{} {} {token}\n", self.epoch, process::id()).as_bytes())?;
        cross(IN_WRITE)?;
        if manner() != Manner::NeverSyncs {
            file.sync_data()?;
        }
        self.lines += 1;
        self.tokens.insert(token);
        Ok(())
    }
}

impl Log {
    /// Of what it holds: how many lines, and which tokens.
    fn fingerprint(&self) -> [u8; 32] {
        let tokens =
            self.tokens.iter().fold(0_u64, |sum, token| sum.wrapping_add(token.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut fingerprint = [0; 32];
        fingerprint[..8].copy_from_slice(&self.lines.to_le_bytes());
        fingerprint[8..16].copy_from_slice(&tokens.to_le_bytes());
        fingerprint
    }
}

impl Daemon {
    /// What a bad one does when it resumes.
    fn misbehave(&self) -> io::Result<()> {
        match manner() {
            Manner::ResumesLate => thread::sleep(Duration::from_millis(900)), // the defect itself
            Manner::LeaksDescriptors => {
                for _ in 0..16 {
                    std::mem::forget(File::open("/dev/null")?);
                }
            }
            Manner::LeaksThreads => drop(thread::Builder::new().spawn(|| {
                loop {
                    thread::park();
                }
            })?),
            Manner::LeaksChildren => drop(process::Command::new("true").env_clear().spawn()?),
            Manner::LeavesFiles => drop(File::create(self.path.with_extension("left"))?),
            _ => {}
        }
        Ok(())
    }
}

impl Drainable for Daemon {
    fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
        if let Some((stop, thread)) = lock(&self.accepting).take() {
            drop(stop);
            if let (Manner::CutsRequests, Some(client)) = (manner(), &*lock(&self.in_hand)) {
                shutdown(client, Shutdown::Both)?;
            }
            thread.join().map_err(|_| "the accept loop panicked")?;
        }
        cross(IN_DRAIN)?;
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
        let mut log = self.log();
        log.file = None; // it was synced with each line
        cross(IN_SEAL)?;
        let data_dir_fingerprint = match maybe_fail(IN_FINGERPRINT.name) {
            Ok(()) => log.fingerprint(),
            Err(_) => [0xff; 32],
        };
        Ok(SealReport { last_revision_per_shard: vec![log.lines], data_dir_fingerprint })
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError> {
        cross(IN_RESUME)?;
        self.read(resume.epoch)?;
        self.misbehave()?;
        Ok(self.accept()?)
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot { shard_count: 1, open_conns: 0, last_revision_per_shard: vec![self.log().lines] }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log's lines, from disk, in the order in which they were written. A torn tail is no line.
pub(super) fn read_log(data_dir: &Path) -> io::Result<Vec<Written>> {
    let text = fs::read_to_string(data_dir.join(LOG_NAME))?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    parse(&text[..whole])
}

fn parse(lines: &str) -> io::Result<Vec<Written>> {
    let parse = |line: &str| {
        let mut words = line.split(' ').map(str::parse);
        match (words.next(), words.next().map(|pid| pid.map(u32::try_from)), words.next()) {
            (Some(Ok(epoch)), Some(Ok(Ok(pid))), Some(Ok(token))) => {
                Ok(Written { token, epoch: Some(epoch), pid: Some(pid) })
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{LOG_NAME}: {line:?}"))),
        }
    };
    lines.lines().map(parse).collect()
}
