//! A daemon that writes, on either library, and that stops or fails where it is told to.
//!
//! Whoever connects sends `TOKEN\n`; the line `TERM PID TOKEN` goes to the file `writes`, then the client is told `OK PID\n`. To `?\n` the
//! answer is `OK PID\n` alone. Version 1 knows no epoch, so each owner counts the term up when it opens the data: a writer that should not
//! be one shows by an older term behind a newer one. Nothing is synced: no fault here is the machine's.
//!
//! Beside the data directory stand `library` (`ours` or `theirs`, what the next process is built on) and `fault` (`POINT hold` or
//! `POINT fail`, for the first process that comes by). Who holds writes its pid to `held` and goes on when there is `go`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use handoff_testkit::matrix::Written;
use rustix::event::{PollFd, PollFlags, poll};

use crate::daemons::LISTENER;

/// The role in which the program plays it.
pub(crate) const ROLE: &str = "daemon-faults";
/// Where it can be told to hold or to fail.
pub(super) const WARM: &str = "warm";
pub(super) const OPENING: &str = "opening";
pub(super) const DRAIN: &str = "drain";
pub(super) const SEAL: &str = "seal";
/// What a hook says that was told to fail.
pub(super) const WHY: &str = "told to fail";

/// A killed process frees its lock a moment after its death.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

type AnyError = Box<dyn std::error::Error>;

/// Runs until a newer process serves.
pub(crate) fn main() -> Result<(), AnyError> {
    let path_in = |variable: &str| env::var_os(variable).map(PathBuf::from).ok_or(format!("{variable} is not set"));
    let (data_dir, control) = (path_in("HANDOFF_DATA_DIR")?, path_in("HANDOFF_CONTROL_SOCKET")?);
    match fs::read_to_string(data_dir.with_file_name("library"))?.as_str() {
        "theirs" => theirs(&data_dir, &control),
        _ => ours(&data_dir, &control),
    }
}

struct Writer {
    data_dir: PathBuf,
    listener: TcpListener,
    log: Arc<Mutex<Log>>,
    accepting: Mutex<Option<(UnixStream, thread::JoinHandle<()>)>>,
}

/// Closed while another may own it.
#[derive(Default)]
struct Log {
    term: u64,
    lines: u64,
    file: Option<File>,
}

impl Writer {
    fn open(data_dir: &Path, listener: TcpListener) -> io::Result<Self> {
        let (log, accepting) = (Arc::default(), Mutex::default());
        let writer = Self { data_dir: data_dir.into(), listener, log, accepting };
        writer.read()?;
        Ok(writer)
    }

    /// Reads everything from disk, under the lock, and begins a term.
    fn read(&self) -> io::Result<()> {
        let path = self.data_dir.join("term");
        let last: u64 = if path.exists() { number(&fs::read_to_string(&path)?)? } else { 0 };
        fs::write(path.with_extension("new"), format!("{}\n", last + 1))?;
        fs::rename(path.with_extension("new"), path)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(self.data_dir.join("writes"))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        *lock(&self.log) = Log { term: last + 1, lines: text.lines().count() as u64, file: Some(file) };
        Ok(())
    }

    fn accept(&self) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        let (listener, log) = (self.listener.try_clone()?, Arc::clone(&self.log));
        let thread = thread::spawn(move || accept_until(&stopped, &listener, &log));
        *lock(&self.accepting) = Some((stop, thread));
        Ok(())
    }

    /// Who connects from now on waits in the backlog for whoever serves next.
    fn drain(&self) -> io::Result<()> {
        if let Some((stop, thread)) = lock(&self.accepting).take() {
            drop(stop);
            thread.join().map_err(|_| io::Error::other("the accept loop panicked"))?;
        }
        pass(&self.data_dir, DRAIN)
    }

    fn seal(&self) -> io::Result<Vec<u64>> {
        let mut log = lock(&self.log);
        log.file = None;
        pass(&self.data_dir, SEAL)?;
        Ok(vec![log.lines])
    }

    fn resume(&self) -> io::Result<()> {
        self.read()?;
        self.accept()
    }
}

fn accept_until(stopped: &UnixStream, listener: &TcpListener, log: &Mutex<Log>) {
    loop {
        let mut fds = [PollFd::new(stopped, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return;
        }
        if let Ok((client, _)) = listener.accept() {
            let _ = serve(client, log); // a client that went away is told nothing
        }
    }
}

fn serve(mut client: TcpStream, log: &Mutex<Log>) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&client).take(64)).read_line(&mut line)?;
    if line.trim() != "?" {
        let (token, mut log) = (number::<u64>(&line)?, lock(log));
        let line = format!("{} {} {token}\n", log.term, process::id());
        log.file.as_ref().ok_or(io::ErrorKind::NotConnected)?.write_all(line.as_bytes())?;
        log.lines += 1;
    }
    writeln!(client, "OK {}", process::id())
}

/// Does as the file `fault` says, if this is its point.
fn pass(data_dir: &Path, point: &str) -> io::Result<()> {
    let beside = |name: &str| data_dir.with_file_name(name);
    let order = fs::read_to_string(beside("fault")).unwrap_or_default();
    let Some(how) = order.strip_prefix(point).map(str::trim) else { return Ok(()) };
    fs::remove_file(beside("fault"))?;
    if how == "fail" {
        return Err(io::Error::other(WHY));
    }
    fs::write(beside("held.new"), process::id().to_string())?;
    fs::rename(beside("held.new"), beside("held"))?;
    while !beside("go").exists() {
        thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

/// All writes from disk, in the order in which they were made.
pub(super) fn written(data_dir: &Path) -> io::Result<Vec<Written>> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [term, pid, token] = words[..] else { return Err(io::Error::other(format!("writes: {line:?}"))) };
        Ok(Written { token: number(token)?, epoch: Some(number(term)?), pid: Some(number(pid)?) })
    };
    fs::read_to_string(data_dir.join("writes"))?.lines().map(parse).collect()
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.trim().parse().map_err(|_| io::Error::other(format!("{text:?} is no number")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ours(data_dir: &Path, control: &Path) -> Result<(), AnyError> {
    use handoff_runtime::{
        DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
        SealContext, SealReport, StateSnapshot, detect_role,
    };

    struct Hooks(Writer);

    impl Drainable for Hooks {
        fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
            self.0.drain()?;
            Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
        }

        fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
            Ok(SealReport { last_revision_per_shard: self.0.seal()?, ..SealReport::default() })
        }

        fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
            Ok(self.0.resume()?)
        }

        fn snapshot_state(&self) -> StateSnapshot {
            StateSnapshot::default()
        }
    }

    let (incumbent, writer) = match detect_role()? {
        Role::ColdStart { mut inherited } => {
            let listener = inherited.take(LISTENER).ok_or("no listener")?;
            let lock = DataDirLock::acquire_timeout(data_dir, LOCK_WAIT)?;
            let writer = Writer::open(data_dir, listener)?;
            (Incumbent::bind_cold_start(control, lock)?, writer)
        }
        Role::Successor(successor) => {
            let shaken = successor.handshake(b"ours".to_vec())?;
            pass(data_dir, WARM)?;
            let mut begun = shaken.wait_for_begin()?;
            let listener = begun.take_listener(LISTENER).ok_or("no listener")?;
            let held = begun.lock(data_dir)?;
            pass(data_dir, OPENING)?;
            let writer = Writer::open(data_dir, listener)?;
            let ready = ReadinessSnapshot {
                listening_on: vec![writer.listener.local_addr()?.to_string()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![lock(&writer.log).lines],
                ..ReadinessSnapshot::default()
            };
            (begun.announce_and_bind(ready, control, held)?, writer)
        }
    };
    writer.accept()?;
    incumbent.serve(Hooks(writer))?;
    Ok(())
}

fn theirs(data_dir: &Path, control: &Path) -> Result<(), AnyError> {
    use handoff::error::Result as PeerResult;
    use handoff::{
        DataDirLock, DrainReport, Drainable, Incumbent, ReadinessSnapshot, Role, SealReport, StateSnapshot, detect_role,
    };

    struct Hooks(Writer);

    impl Drainable for Hooks {
        fn drain(&self, _: Instant) -> PeerResult<DrainReport> {
            if let Err(error) = self.0.drain() {
                // That library calls no resume after a drain that failed, so the daemon undoes it.
                self.0.accept()?;
                return Err(error.into());
            }
            Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
        }

        fn seal(&self) -> PeerResult<SealReport> {
            Ok(SealReport { last_revision_per_shard: self.0.seal()?, data_dir_fingerprint: [0; 32] })
        }

        fn resume_after_abort(&self) -> PeerResult<()> {
            Ok(self.0.resume()?)
        }

        fn snapshot_state(&self) -> StateSnapshot {
            StateSnapshot::default()
        }
    }

    /// That library tries once.
    fn acquire(data_dir: &Path) -> PeerResult<DataDirLock> {
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match DataDirLock::acquire(data_dir) {
                Err(handoff::Error::LockHeld { .. }) if Instant::now() < until => {
                    thread::park_timeout(Duration::from_millis(2));
                }
                other => return other,
            }
        }
    }

    let (incumbent, writer) = match detect_role()? {
        Role::ColdStart { mut inherited } => {
            let listener = inherited.take(LISTENER).ok_or("no listener")?;
            let lock = acquire(data_dir)?;
            let writer = Writer::open(data_dir, listener)?;
            (Incumbent::bind_cold_start(control, lock)?, writer)
        }
        Role::Successor(successor) => {
            let shaken = successor.handshake(b"theirs".to_vec())?;
            pass(data_dir, WARM)?;
            let mut begun = shaken.wait_for_begin()?;
            let listener = begun.take_listener(LISTENER).ok_or("no listener")?;
            let held = acquire(data_dir)?;
            pass(data_dir, OPENING)?;
            let writer = Writer::open(data_dir, listener)?;
            let ready = ReadinessSnapshot {
                listening_on: vec![writer.listener.local_addr()?.to_string()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![lock(&writer.log).lines],
            };
            (begun.announce_and_bind(ready, control, held)?, writer)
        }
    };
    writer.accept()?;
    incumbent.serve(Hooks(writer))?;
    Ok(())
}
