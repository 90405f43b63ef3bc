//! The fault matrix on the reference store, as any daemon has it: its `main` is `matrix_main!`'s. A few rows; all of them are run by
//! `cargo run -p handoff-testkit --features store --example your_daemon '*'`.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use handoff_testkit::fixture::Setup;
use handoff_testkit::load::{Answer, Connection, Suffered};
use handoff_testkit::matrix::{Subject, Written};
use handoff_testkit::oracle::Log;
use handoff_testkit::store::Store;

struct ReferenceStore;

impl Subject for ReferenceStore {
    fn setup(&self) -> io::Result<Setup> {
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

handoff_testkit::matrix_main!(ReferenceStore, |matrix| matrix.filter("n-after-lock/*"));
