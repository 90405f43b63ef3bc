//! What the matrix must know of a daemon: how it is started, written to, read from, and read from disk. Here of the reference
//! store.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use handoff_testkit::fixture::Setup;
use handoff_testkit::load::{Answer, Connection, Suffered};
use handoff_testkit::matrix::{Subject, Written};
use handoff_testkit::oracle::Log;
use handoff_testkit::store::Store;

pub(crate) struct YourDaemon;

impl Subject for YourDaemon {
    /// The binary needs `handoff-runtime` with the feature `crash-points`.
    fn setup(&self) -> io::Result<Setup> {
        // Setup::new(env!("CARGO_BIN_EXE_yours")).arg("--fast").listener("http", "127.0.0.1:0")
        Ok(Setup::role("store")?.env("STORE_LOG", "whole").listener("http", "127.0.0.1:0"))
    }

    fn opens_within(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// One write: it has happened for good when the daemon says so.
    fn write(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        match ask(connection, &format!("INC {token} {token}"))?.as_str() {
            "OK 1" => Ok(Answer::Done),
            "RETRY" => Ok(Answer::Again),
            other => Err(io::Error::other(other.to_owned())),
        }
    }

    fn reads(&self) -> bool {
        true
    }

    fn read(&self, connection: &mut Connection, token: u64) -> io::Result<Answer> {
        match ask(connection, &format!("GET {token}"))?.as_str() {
            value if value.starts_with("VALUE 1 ") => Ok(Answer::Done),
            value if value.starts_with("VALUE ") => Ok(Answer::Wrong(Suffered::WrongValue)),
            "RETRY" => Ok(Answer::Again),
            other => Err(io::Error::other(other.to_owned())),
        }
    }

    /// All writes, from disk, when nobody runs any more.
    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
        Ok(Log::read(data_dir).map_err(io::Error::other)?.written)
    }

    /// A check of its own: the store opens, and is what its log says.
    fn check(&self, data_dir: &Path) -> Vec<String> {
        match (Store::look(data_dir), Store::replay(data_dir)) {
            (Ok(store), Ok(replayed)) if store == replayed => Vec::new(),
            (Ok(_), Ok(_)) => vec!["replay: the store is not its log".to_owned()],
            (Err(error), _) | (_, Err(error)) => vec![format!("reopen: {error}")],
        }
    }
}

/// Sends a line, and takes the reply; a store that leaves says `BYE` first.
fn ask(connection: &mut Connection, request: &str) -> io::Result<String> {
    writeln!(connection, "{request}")?;
    loop {
        let reply = connection.read_line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if reply != "BYE" {
            return Ok(reply);
        }
    }
}
