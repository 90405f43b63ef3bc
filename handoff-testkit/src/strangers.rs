//! Others at a data directory: whoever may read it can lock it, flock(2), and somebody may start a second daemon on the same data.
//! Neither gets in while the service lives.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use handoff_lock::DataDirLock;
use rustix::fs::{FlockOperation, flock};

use crate::ROLE_VARIABLE;

/// What an outsider does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Waits for the directory's lock, as `flock DIR` does.
    Queues,
    /// Tries it in a loop.
    Tries,
    /// Takes the lock as a daemon does at its start, in a loop.
    SecondDaemon,
}

impl Manner {
    pub(crate) const QUEUES: &str = "outsider-queues";
    pub(crate) const TRIES: &str = "outsider-tries";
    pub(crate) const SECOND_DAEMON: &str = "outsider-second-daemon";

    const fn role(self) -> &'static str {
        match self {
            Self::Queues => Self::QUEUES,
            Self::Tries => Self::TRIES,
            Self::SecondDaemon => Self::SECOND_DAEMON,
        }
    }
}

/// A process that is after a data directory, and does not outlive this value. Needs [`init`](crate::init) in `main`.
#[derive(Debug)]
pub struct Outsider {
    child: Child,
    manner: Manner,
    marker: PathBuf,
}

impl Outsider {
    /// Starts one; `scratch` is where it leaves a mark if it gets in. One that queues does so when this returns.
    ///
    /// # Errors
    /// It could not be started, or does not come to wait within a minute: the directory was free.
    pub fn start(manner: Manner, data_dir: &Path, scratch: &Path) -> io::Result<Self> {
        let marker = scratch.join(format!("{}-got-in", manner.role()));
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE_VARIABLE, manner.role()).arg(data_dir).arg(&marker).stdin(Stdio::null());
        let mut outsider = Self { child: command.spawn()?, manner, marker };
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while manner == Manner::Queues && !outsider.is_queued() {
            outsider.is_out()?;
            if std::time::Instant::now() > until {
                return Err(io::Error::other("the stranger does not come to wait for the directory"));
            }
            // Nothing tells: the kernel's table is looked at.
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
        Ok(outsider)
    }

    /// Whether it stands in the kernel's queue, proc_locks(5).
    pub fn is_queued(&self) -> bool {
        let pid = self.child.id().to_string();
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        locks.lines().any(|line| line.contains("-> FLOCK") && line.split_whitespace().any(|word| word == pid))
    }

    /// It is still after the directory and has never had it.
    ///
    /// # Errors
    /// It got in, or has ended.
    pub fn is_out(&mut self) -> io::Result<()> {
        if self.marker.exists() {
            return Err(io::Error::other(format!("{:?}: it got the data directory", self.manner)));
        }
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!("{:?}: it ended with {status}", self.manner))),
        }
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Plays one: the arguments are the directory, and a file to make when it is locked.
pub(crate) fn play(manner: Manner, args: &[OsString]) -> ExitCode {
    let [_, dir, marker] = args else { return ExitCode::from(2) };
    let Ok(directory) = File::open(dir) else { return ExitCode::FAILURE };
    loop {
        let taken = match manner {
            Manner::Queues => flock(&directory, FlockOperation::LockExclusive).is_ok(),
            Manner::Tries => flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok(),
            Manner::SecondDaemon => DataDirLock::acquire(Path::new(dir)).map(DataDirLock::forget).is_ok(),
        };
        if taken {
            break;
        }
    }
    if fs::write(marker, "").is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        std::thread::park();
    }
}
