//! The built-in daemon: a log of acknowledged writes, the smallest thing that can lose one.
//!
//! Whoever connects to its listener `http` sends `TOKEN\n`; the line `EPOCH PID TOKEN` is appended to the file `writes` and
//! synced, then the client is told `OK PID\n`.
//!
//! Invariants: a line is on disk before anybody is told of it; the file is open only while the lock is ours; the accept loop
//! runs only while the file is open. The file is only ever appended to, so a writer that should not be one shows.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, thread};

use handoff_runtime::{
    DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
    SealContext, SealReport, StateSnapshot, detect_role,
};
use rustix::event::{PollFd, PollFlags, poll};

/// The name of its only listener.
pub(super) const LISTENER: &str = "http";
/// The log's file in the data directory.
pub(super) const LOG_NAME: &str = "writes";

/// How long a client may take to send its line: it is served alone.
const CLIENT_PATIENCE: Duration = Duration::from_millis(250);
/// A killed process frees its lock a moment after its death.
const LOCK_WAIT: Duration = Duration::from_secs(2);

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
            let listener = inherited.take(LISTENER).ok_or("no listener")?;
            let lock = DataDirLock::acquire_timeout(&data_dir, LOCK_WAIT)?;
            let log = Daemon::open(&data_dir, lock.epoch(), listener)?;
            (Incumbent::bind_cold_start(&control, lock)?, log)
        }
        Role::Successor(successor) => {
            let mut begun = successor.handshake(b"matrix".to_vec())?.wait_for_begin()?;
            let listener = begun.take_listener(LISTENER).ok_or("no listener")?;
            let lock = begun.lock(&data_dir)?;
            let log = Daemon::open(&data_dir, lock.epoch(), listener)?;
            let ready = ReadinessSnapshot {
                listening_on: vec![log.listener.local_addr()?.to_string()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![log.log().lines],
            };
            (begun.announce_and_bind(ready, &control, lock)?, log)
        }
    };
    log.accept()?;
    incumbent.serve(log)?;
    Ok(())
}

struct Daemon {
    path: PathBuf,
    listener: TcpListener,
    log: Arc<Mutex<Log>>,
    accepting: Mutex<Option<(UnixStream, thread::JoinHandle<()>)>>,
}

/// The open log; closed while another may own it.
#[derive(Default)]
struct Log {
    epoch: u64,
    lines: u64,
    file: Option<File>,
}

impl Daemon {
    fn open(data_dir: &Path, epoch: u64, listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let daemon = Self { path: data_dir.join(LOG_NAME), listener, log: Arc::default(), accepting: Mutex::default() };
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
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        *self.log() = Log { epoch, lines, file: Some(file) };
        Ok(())
    }

    fn accept(&self) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        let (listener, log) = (self.listener.try_clone()?, Arc::clone(&self.log));
        let thread = thread::Builder::new().spawn(move || accept_until(&stopped, &listener, &log))?;
        *lock(&self.accepting) = Some((stop, thread));
        Ok(())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

fn accept_until(stopped: &UnixStream, listener: &TcpListener, log: &Mutex<Log>) {
    loop {
        let mut fds = [PollFd::new(stopped, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return; // who connects from now on waits in the backlog for whoever serves next
        }
        if let Ok((client, _)) = listener.accept() {
            let _ = serve(client, log); // a client that went away is told nothing
        }
    }
}

fn serve(mut client: TcpStream, log: &Mutex<Log>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(CLIENT_PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&client).take(64)).read_line(&mut line)?;
    let token: u64 = line.trim().parse().map_err(io::Error::other)?;
    lock(log).append(token)?;
    writeln!(client, "OK {}", process::id())
}

impl Log {
    fn append(&mut self, token: u64) -> io::Result<()> {
        let mut file = self.file.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        file.write_all(format!("{} {} {token}\n", self.epoch, process::id()).as_bytes())?;
        file.sync_data()?;
        self.lines += 1;
        Ok(())
    }
}

impl Drainable for Daemon {
    fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
        if let Some((stop, thread)) = lock(&self.accepting).take() {
            drop(stop);
            thread.join().map_err(|_| "the accept loop panicked")?;
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
        let mut log = self.log();
        log.file = None; // it was synced with each line
        Ok(SealReport { last_revision_per_shard: vec![log.lines], ..SealReport::default() })
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<(), HookError> {
        self.read(resume.epoch)?;
        Ok(self.accept()?)
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot { shard_count: 1, open_conns: 0, last_revision_per_shard: vec![self.log().lines] }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log's lines, from disk: epoch and token, in the order in which they were written. A torn tail is no line.
pub(super) fn read_log(data_dir: &Path) -> io::Result<Vec<(u64, u64)>> {
    let text = fs::read_to_string(data_dir.join(LOG_NAME))?;
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let parsed = lines.map(|line| {
        let mut words = line.split(' ').map(str::parse);
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(epoch)), Some(Ok(_)), Some(Ok(token))) => Ok((epoch, token)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{LOG_NAME}: {line:?}"))),
        }
    });
    parsed.collect()
}
