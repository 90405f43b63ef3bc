//! What the floor and the restart share: a child with a socket to its supervisor on its standard input, and the listening
//! socket on its standard output. One byte says what is to be done or was done.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rustix::fs::{FlockOperation, flock};

use super::AnyError;

/// A daemon, as its supervisor holds it. Its end is not waited for unless it is asked for.
pub(super) struct PlainChild {
    pub(super) process: Child,
    control: UnixStream,
}

impl PlainChild {
    /// Starts a daemon of this role on `listener`.
    pub(super) fn spawn(role: &str, listener: &TcpListener) -> Result<Self, AnyError> {
        let (control, theirs) = UnixStream::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env(crate::ROLE_VARIABLE, role);
        command.stdin(OwnedFd::from(theirs)).stdout(OwnedFd::from(listener.try_clone()?)).stderr(Stdio::inherit());
        Ok(Self { process: command.spawn()?, control })
    }

    pub(super) fn tell(&self, byte: u8) -> io::Result<()> {
        (&self.control).write_all(&[byte])
    }

    pub(super) fn hear(&self, byte: u8) -> io::Result<()> {
        hear(&self.control, byte)
    }
}

/// What a daemon was started with.
pub(super) struct Inherited {
    control: UnixStream,
    pub(super) listener: TcpListener,
}

impl Inherited {
    pub(super) fn take() -> io::Result<Self> {
        let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let listener = TcpListener::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self { control, listener })
    }

    pub(super) fn tell(&self, byte: u8) -> io::Result<()> {
        (&self.control).write_all(&[byte])
    }

    pub(super) fn hear(&self, byte: u8) -> io::Result<()> {
        hear(&self.control, byte)
    }
}

fn hear(mut control: &UnixStream, expected: u8) -> io::Result<()> {
    let mut byte = [0];
    control.read_exact(&mut byte)?;
    match byte[0] == expected {
        true => Ok(()),
        false => Err(io::Error::other(format!("{} in place of {}", char::from(byte[0]), char::from(expected)))),
    }
}

/// A lock on the data directory and the holder's pid, and nothing else.
pub(super) struct PlainLock(File);

impl PlainLock {
    pub(super) fn take() -> Result<Self, AnyError> {
        let dir = super::data_dir()?;
        std::fs::create_dir_all(&dir)?;
        let mut file = File::options().create(true).write(true).truncate(false).open(dir.join("plain.lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        Ok(Self(file))
    }

    pub(super) fn release(self) -> io::Result<()> {
        Ok(flock(&self.0, FlockOperation::Unlock)?)
    }
}
