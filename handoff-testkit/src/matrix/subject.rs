//! The daemon under test, as the matrix sees it: how it is started, written to, and read from disk.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::daemon;
use crate::fixture::Setup;

/// A daemon that is put to the test. Its binary may be any; [`Setup::role`] makes it the calling program, run again.
pub trait Subject: Sync {
    /// How it is started: the binary, its arguments, its listeners. Data directory and timing are the matrix's.
    ///
    /// # Errors
    /// Whatever keeps it from being started at all.
    fn setup(&self) -> io::Result<Setup>;

    /// The name of the TCP listener that clients write to.
    fn listener(&self) -> &str {
        daemon::LISTENER
    }

    /// One durable write of this token. It returns only when the daemon has acknowledged it, or when `patience` is over.
    ///
    /// # Errors
    /// Whatever kept the client from being told; the write may or may not have been done. A refused connection must stay
    /// [`io::ErrorKind::ConnectionRefused`]: the matrix counts it.
    fn write(&self, address: SocketAddr, token: u64, patience: Duration) -> io::Result<()>;

    /// All writes from disk, in the order in which they were made. The service has stopped.
    ///
    /// # Errors
    /// The data can't be read.
    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>>;
}

/// One write, as it stands on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// What the client sent.
    pub token: u64,
    /// The lock's epoch under which it was made, if the daemon notes that: writes of two owners that mix are found by it.
    pub epoch: Option<u64>,
}

/// The built-in daemon: a log of acknowledged writes, each with its epoch. [`crate::init`] plays it.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Subject for BuiltIn {
    fn setup(&self) -> io::Result<Setup> {
        Ok(Setup::role("matrix-daemon")?.listener(daemon::LISTENER, "127.0.0.1:0"))
    }

    fn write(&self, address: SocketAddr, token: u64, patience: Duration) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        writeln!(stream, "{token}")?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        if reply.starts_with("OK ") { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
        let lines = daemon::read_log(data_dir)?;
        Ok(lines.into_iter().map(|(epoch, token)| Written { token, epoch: Some(epoch) }).collect())
    }
}
