//! The fault matrix on a daemon that is not the built-in one; here the reference store, in its own binary's place yours.
//!
//! `cargo run -p handoff-testkit --features store --example your_daemon [GLOB]`

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use handoff_testkit::fixture::Setup;
use handoff_testkit::matrix::{Matrix, Subject, Written};
use handoff_testkit::store::Store;

struct YourDaemon;

impl Subject for YourDaemon {
    /// The binary needs `handoff-runtime` with the feature `crash-points`.
    fn setup(&self) -> io::Result<Setup> {
        // Setup::new("/path/to/your-daemon").arg("--fast").listener("http", "127.0.0.1:0")
        Ok(Setup::role("store")?.listener("http", "127.0.0.1:0"))
    }

    /// One write: it has happened for good when the daemon says so.
    fn write(&self, address: SocketAddr, token: u64, patience: Duration) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        writeln!(stream, "INC {token}")?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        if reply.starts_with("OK ") { Ok(()) } else { Err(io::Error::other(reply)) }
    }

    /// All writes, from disk, when nobody runs any more.
    fn written(&self, data_dir: &Path) -> io::Result<Vec<Written>> {
        let state = Store::look(data_dir).map_err(io::Error::other)?;
        let writes = state.signals.iter().flat_map(|(token, signal)| (0..signal.count).map(move |_| token));
        let token = |text: &str| text.parse().map_err(io::Error::other);
        writes.map(|text| Ok(Written { token: token(text)?, epoch: None })).collect()
    }
}

fn main() -> ExitCode {
    handoff_testkit::init(); // first of all: the store and the supervisor are this program, run again
    let filter = std::env::args().nth(1).unwrap_or_else(|| "n-after-*/kill".to_owned());
    let report = Matrix::of(&YourDaemon).filter(&filter).side_by_side(2).run(1);
    println!("{report}");
    ExitCode::from(u8::from(!report.is_clean()))
}
