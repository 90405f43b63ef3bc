//! A small stateful daemon that can be handed over: whoever connects to its listener `http` is told the next number.
//!
//! ```text
//! handoff run --listen http=127.0.0.1:8080 --data-dir /tmp/counter -- target/debug/examples/daemon
//! handoff upgrade
//! ```
//!
//! Invariants: a number is on disk before anybody is told it; the file is open only while the lock is ours; the accept loop
//! runs only while the file is open.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{env, thread};

use handoff_runtime::{
    DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
    SealContext, SealReport, StateSnapshot, detect_role,
};
use rustix::event::{PollFd, PollFlags, poll};

const BUILD_ID: &[u8] = concat!("counter-", env!("CARGO_PKG_VERSION")).as_bytes();

fn main() -> Result<(), Box<dyn Error>> {
    let role = detect_role()?; // first of all: it takes over what this process was started with
    let path_in = |variable| env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("{variable} is not set"));
    let (data_dir, control) = (path_in("HANDOFF_DATA_DIR")?, path_in("HANDOFF_CONTROL_SOCKET")?);
    let (incumbent, counter) = match role {
        Role::ColdStart { mut inherited } => {
            let listener = inherited.take("http").ok_or("no listener is named http")?;
            let lock = DataDirLock::acquire(&data_dir)?.for_serving();
            let counter = Counter::open(&data_dir, listener)?;
            (Incumbent::bind_cold_start(&control, lock)?.with_build_id(BUILD_ID.to_vec()), counter)
        }
        Role::Successor(successor) => {
            let mut greeted = successor.handshake(BUILD_ID.to_vec())?;
            greeted.prepare(&data_dir, &control)?; // the incumbent serves on until we are warmed
            greeted.warmed()?;
            let mut begun = greeted.wait_for_begin()?;
            let listener = begun.take_listener("http").ok_or("no listener is named http")?;
            let lock = begun.lock(&data_dir)?; // before it, the data is the incumbent's
            let counter = Counter::open(&data_dir, listener)?;
            let ready = ReadinessSnapshot {
                listening_on: vec![counter.listener.local_addr()?.to_string()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![counter.numbers().last],
                ..ReadinessSnapshot::default()
            };
            (begun.announce_and_bind(ready, &control, lock)?, counter)
        }
    };
    counter.accept()?; // not before the lease says that we serve
    incumbent.serve(counter)?;
    Ok(())
}

struct Counter {
    path: PathBuf,
    listener: TcpListener,
    numbers: Arc<Mutex<Numbers>>,
    accepting: Mutex<Option<(UnixStream, thread::JoinHandle<()>)>>,
}

#[derive(Default)]
struct Numbers {
    last: u64,
    file: Option<File>,
}

impl Counter {
    fn open(data_dir: &Path, listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let path = data_dir.join("counter");
        let counter = Self { path, listener, numbers: Arc::default(), accepting: Mutex::default() };
        counter.read()?;
        Ok(counter)
    }

    fn read(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        *self.numbers() = Numbers { last: bytes.try_into().map_or(0, u64::from_le_bytes), file: Some(file) };
        Ok(())
    }

    fn accept(&self) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        let (listener, numbers) = (self.listener.try_clone()?, Arc::clone(&self.numbers));
        let thread = thread::Builder::new().spawn(move || accept_until(&stopped, &listener, &numbers))?;
        *self.accepting.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, thread));
        Ok(())
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept_until(stopped: &UnixStream, listener: &TcpListener, numbers: &Mutex<Numbers>) {
    loop {
        let mut fds = [PollFd::new(stopped, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return; // who connects from now on waits in the backlog for whoever serves next
        }
        if let Ok((mut client, _)) = listener.accept()
            && let Ok(number) = numbers.lock().unwrap_or_else(PoisonError::into_inner).next()
        {
            let _ = writeln!(client, "{number}");
        }
    }
}

impl Numbers {
    fn next(&mut self) -> io::Result<u64> {
        let number = self.last + 1;
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        file.write_all_at(&number.to_le_bytes(), 0)?;
        file.sync_data()?;
        self.last = number;
        Ok(number)
    }
}

impl Drainable for Counter {
    fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
        if let Some((stop, thread)) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(stop);
            thread.join().map_err(|_| "the accept loop panicked")?;
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
        let mut numbers = self.numbers();
        numbers.file = None; // it was synced with each number
        Ok(SealReport { last_revision_per_shard: vec![numbers.last], ..SealReport::default() })
    }

    fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
        self.read()?; // somebody else may have counted on
        Ok(self.accept()?)
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot { shard_count: 1, open_conns: 0, last_revision_per_shard: vec![self.numbers().last] }
    }
}
