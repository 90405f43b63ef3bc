//! The daemon under test, as the matrix sees it: how it is started, written to, read from, and read from disk.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::daemon;
use super::points::OwnPoint;
use crate::audit::Written;
use crate::fixture::Setup;
use crate::load::{Answer, Connection, Kept, Protocol, Suffered};

/// A daemon that is put to the test. Its binary may be any; [`Setup::role`] makes it the calling program, run again.
pub trait Subject: Send + Sync + 'static {
    /// How it is started: the binary, its arguments, its listeners. Data directory, deadlines and intervals are the matrix's.
    ///
    /// # Errors
    /// Whatever keeps it from being started at all.
    fn setup(&self) -> io::Result<Setup>;

    /// The name of the listener that clients write to, TCP or a Unix socket.
    fn listener(&self) -> &str {
        daemon::LISTENER
    }

    /// How long it may take to open its data, and so how much longer than a fault itself nobody may serve. 1 s if not said.
    fn opens_within(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Which clients keep their connection. A daemon that closes kept connections at a handover, without a word that both sides
    /// understand, drops them, and that is counted. Nobody if not said.
    fn kept(&self) -> Kept {
        Kept::None
    }

    /// One durable write of this token: [`Answer::Done`] when the daemon has acknowledged it, [`Answer::Again`] when it has said that it did
    /// not carry it out, so that it is sent again, under the same token, on a new connection.
    ///
    /// # Errors
    /// Those of the connection, as they are; a reply that says no, as [`io::Error::other`]; one that can't be true, as
    /// [`io::ErrorKind::InvalidData`]. Each of them is counted.
    fn write(&self, connection: &mut Connection, token: u64) -> io::Result<Answer>;

    /// Whether [`read`](Self::read) can be asked; then one more client reads.
    fn reads(&self) -> bool {
        false
    }

    /// Asks for the write of this token, which was acknowledged: [`Answer::Done`] if the daemon has it, and else
    /// [`Answer::Wrong`] of [`Suffered::WrongValue`].
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn read(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        let _ = (connection, token);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// All writes from disk, in the order in which they were made. The service has stopped.
    ///
    /// # Errors
    /// The data can't be read.
    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>>;

    /// Whether it syncs by a system call of its own before it acknowledges a write: fsync(2), fdatasync(2), msync(2) and their like. If
    /// it opens its files with `O_DSYNC`, say no: then nobody looks.
    fn syncs(&self) -> bool {
        true
    }

    /// Further checks of the data, each with its name in front: what they have found wrong. The service has stopped.
    fn check(&self, data_dir: &Path) -> Vec<String> {
        let _ = data_dir;
        Vec::new()
    }

    /// The daemon's own crash points, which become rows of the matrix; see [`handoff_runtime::crash_here!`].
    fn points(&self) -> &'static [OwnPoint] {
        &[]
    }
}

/// A subject as a load speaks to it.
pub(super) struct Spoken(pub(super) Arc<dyn Subject>);

impl Protocol for Spoken {
    fn write(&self, connection: &mut Connection, token: u64) -> Result<Answer, Suffered> {
        self.0.write(connection, token).map_err(|error| Suffered::from_request(&error))
    }

    /// Before anything was acknowledged, there is nothing to ask for.
    fn read(&self, connection: &mut Connection, token: u64) -> Result<Answer, Suffered> {
        match (token, self.0.read(connection, token)) {
            (0, Ok(Answer::Wrong(Suffered::WrongValue))) => Ok(Answer::Done),
            (_, answer) => answer.map_err(|error| Suffered::from_request(&error)),
        }
    }
}

/// The built-in daemon: a log of acknowledged writes, each with its epoch. [`crate::init`] plays it.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Subject for BuiltIn {
    fn setup(&self) -> io::Result<Setup> {
        Ok(Setup::role("matrix-daemon")?.listener(daemon::LISTENER, "127.0.0.1:0"))
    }

    fn opens_within(&self) -> Duration {
        Duration::ZERO
    }

    fn write(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        daemon::ask(connection, &token.to_string()).map(|_| Answer::Done)
    }

    fn reads(&self) -> bool {
        true
    }

    fn read(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        match daemon::ask(connection, &format!("?{token}"))?.as_str() {
            "0" => Ok(Answer::Wrong(Suffered::WrongValue)),
            _ => Ok(Answer::Done),
        }
    }

    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
        daemon::read_log(data_dir)
    }

    fn points(&self) -> &'static [OwnPoint] {
        daemon::POINTS
    }
}
