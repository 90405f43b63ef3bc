//! The store as a process: what it was started as, its way in and its way out. With `hooks.rs` this is the file to copy from
//! when a daemon of one's own is to be handed over.
//!
//! Invariants:
//!
//! - It serves nobody before its lease is Active, which is when `bind_cold_start` has returned, or `announce_and_serve` calls
//!   what it was given.
//! - All threads are started while the predecessor still serves: nothing is spawned in the pause.
//! - It opens the data only under the lock, and checks what it opened against what was sealed.
//! - After a commit it stays until its clients have left, so that a request that crossed the `BYE` gets its `RETRY`.
//!
//! A signal ends it at once; what it has acknowledged is on disk.

use std::error::Error;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use handoff_runtime::{
    BegunSuccessor, DataDirLock, Incumbent, InheritedListeners, ReadinessSnapshot, Role, Successor, detect_role,
};

use super::hooks::Daemon;
use super::{Contents, LogRetention};

/// How long a cold start waits for the lock: a killed process frees its lock a moment after its death.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How long a process that was committed away waits for clients that do not close.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 256;

const USAGE: &str = "\
usage: [--data-dir DIR] [--control-socket PATH] [--listen ADDR]... [--build-id TEXT] [--connections N]
  --data-dir        else HANDOFF_DATA_DIR
  --control-socket  else HANDOFF_CONTROL_SOCKET
  --listen          where to listen when no listener was passed in; udp:ADDR for datagrams
  --build-id        else STORE_BUILD_ID
  --connections     how many clients are served at once; 256
  --log             truncated (default): a checkpoint deletes what it makes superfluous; whole: it stays; else STORE_LOG";

/// Everything that the daemon is told from outside, listeners and role apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where the data is.
    pub data_dir: PathBuf,
    /// Where a supervisor finds the daemon.
    pub control_socket: PathBuf,
    /// Where to listen when no listener was passed in.
    pub listen: Vec<SocketAddr>,
    /// Where to receive datagrams when no listener was passed in.
    pub listen_udp: Vec<SocketAddr>,
    /// What names this build.
    pub build_id: String,
    /// How many clients are served at once.
    pub connections_max: usize,
    /// What becomes of the log behind a checkpoint.
    pub retention: LogRetention,
}

impl Options {
    /// Reads the arguments, the first of which is the program's name; what they leave out comes from the environment, which
    /// `variable` reads.
    ///
    /// # Errors
    /// The caller's fault, in one line.
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, String> {
        let mut data_dir = variable("HANDOFF_DATA_DIR").map(PathBuf::from);
        let mut control_socket = variable("HANDOFF_CONTROL_SOCKET").map(PathBuf::from);
        let mut build_id = variable("STORE_BUILD_ID").map(|id| id.to_string_lossy().into_owned());
        let mut log = variable("STORE_LOG").map(|log| log.to_string_lossy().into_owned());
        let (mut listen, mut listen_udp) = (Vec::new(), Vec::new());
        let mut connections_max = CONNECTIONS_MAX;
        let mut args = args.into_iter().skip(1);
        while let Some(name) = args.next() {
            let name = name.to_string_lossy().into_owned();
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            let text = value.to_string_lossy().into_owned();
            let bad = |what| format!("{name} {text}: not {what}");
            match name.as_str() {
                "--data-dir" => data_dir = Some(value.into()),
                "--control-socket" => control_socket = Some(value.into()),
                "--listen" => {
                    let (list, address) = match text.strip_prefix("udp:") {
                        Some(address) => (&mut listen_udp, address),
                        None => (&mut listen, text.as_str()),
                    };
                    list.push(address.parse().map_err(|_| bad("an address"))?);
                }
                "--log" => log = Some(text),
                "--build-id" => build_id = Some(text),
                "--connections" => connections_max = text.parse().map_err(|_| bad("a number"))?,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(Self {
            data_dir: data_dir.ok_or("no data directory is given")?,
            control_socket: control_socket.ok_or("no control socket is given")?,
            listen,
            listen_udp,
            build_id: build_id.unwrap_or_else(|| env!("CARGO_PKG_VERSION").into()),
            connections_max,
            retention: match log.as_deref() {
                None | Some("truncated") => LogRetention::Truncated,
                Some("whole") => LogRetention::Whole,
                Some(other) => return Err(format!("--log {other}: not truncated or whole")),
            },
        })
    }
}

/// The program. `args` begin with its name. Call it at the start of `main`, before any thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match Options::parse(args, |name| std::env::var_os(name)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("store: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store {}: {error}", options.build_id);
            ExitCode::FAILURE
        }
    }
}

/// Serves until the process was handed over.
///
/// # Errors
/// Whatever kept it from serving.
pub fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    match detect_role()? {
        Role::ColdStart { inherited } => cold_start(options, inherited),
        Role::Successor(successor) => take_over(options, successor),
    }
}

fn cold_start(options: &Options, mut inherited: InheritedListeners) -> Result<(), Box<dyn Error>> {
    let lock = DataDirLock::acquire_timeout(&options.data_dir, LOCK_WAIT)?;
    let daemon = start(options)?;
    daemon.open(lock.epoch())?;
    let names = inherited.names();
    let mut sockets = Sockets {
        tcp: names.iter().filter_map(|name| inherited.take(name)).collect(),
        udp: names.iter().filter_map(|name| inherited.take_udp_socket(name)).collect(),
    };
    if sockets.is_empty() {
        sockets.tcp = options.listen.iter().map(TcpListener::bind).collect::<Result<_, _>>()?;
        sockets.udp = options.listen_udp.iter().map(UdpSocket::bind).collect::<Result<_, _>>()?;
    }
    if sockets.is_empty() {
        return Err("no listener was passed in and no --listen is given".into());
    }
    let incumbent = Incumbent::bind_cold_start(&options.control_socket, lock)?;
    sockets.serve(&daemon)?;
    stay(&daemon, incumbent.with_build_id(options.build_id.clone().into()))
}

fn take_over(options: &Options, successor: Successor) -> Result<(), Box<dyn Error>> {
    let mut successor = successor.handshake(options.build_id.clone().into())?;
    successor.prepare(&options.data_dir, &options.control_socket)?;
    let daemon = start(options)?;
    successor.warmed()?;
    let mut begun = successor.wait_for_begin()?;
    let lock = begun.lock(&options.data_dir)?;
    // The store opens its files by the directory's name, and writes while it does.
    if let Err(error) = lock.check_in_place() {
        begun.give_up(&error);
        return Err(error.into());
    }
    let opened = daemon.open(lock.epoch()).map_err(Into::into).and_then(|contents| check(&begun, contents));
    let names = begun.listener_names();
    let sockets = Sockets {
        tcp: names.iter().filter_map(|name| begun.take_listener(name)).collect(),
        udp: names.iter().filter_map(|name| begun.take_udp_socket(name)).collect(),
    };
    let readiness = ReadinessSnapshot {
        listening_on: sockets.addresses(),
        healthz_ok: opened.is_ok(),
        advertised_revision_per_shard: opened.iter().map(|contents| contents.last_sequence).collect(),
        data_dir_fingerprint: opened.as_ref().ok().map(|contents| contents.fingerprint),
    };
    let mut served = Ok(());
    let announced =
        begun.announce_and_serve(readiness, &options.control_socket, lock, || served = sockets.serve(&daemon));
    // An unfit one says so, and gives up: then the reason is the error to show.
    opened?;
    let incumbent = announced?;
    served?;
    stay(&daemon, incumbent)
}

/// Whether this is what the predecessor sealed. One that died, or a supervisor of version 1, leaves nothing to compare.
fn check(begun: &BegunSuccessor, opened: Contents) -> Result<Contents, Box<dyn Error>> {
    match begun.sealed() {
        Some(sealed) if sealed.data_dir_fingerprint != opened.fingerprint => {
            Err(format!("what was opened, up to {}, is not what was sealed", opened.last_sequence).into())
        }
        _ => Ok(opened),
    }
}

/// Where the daemon serves.
struct Sockets {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Sockets {
    fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    fn addresses(&self) -> Vec<String> {
        let tcp = self.tcp.iter().filter_map(|listener| Some(listener.local_addr().ok()?.to_string()));
        let udp = self.udp.iter().filter_map(|socket| Some(format!("udp:{}", socket.local_addr().ok()?)));
        tcp.chain(udp).collect()
    }

    fn serve(self, daemon: &Daemon) -> std::io::Result<()> {
        daemon.listen(self.tcp)?;
        daemon.receive(self.udp);
        Ok(())
    }
}

fn start(options: &Options) -> std::io::Result<Daemon> {
    Daemon::start(&options.data_dir, &options.build_id, options.connections_max, options.retention)
}

/// Serves supervisors until the process was handed over, and then those clients that have not left.
fn stay(daemon: &Daemon, incumbent: Incumbent) -> Result<(), Box<dyn Error>> {
    let served = incumbent.serve(daemon.clone())?;
    let open_connections = daemon.leave(LEAVE_PATIENCE);
    tracing::info!(?served, open_connections, "leaving");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_from_arguments_and_else_from_the_environment() {
        let parse = |args: &[&str], variables: &[(&str, &str)]| {
            Options::parse(["store"].iter().chain(args).map(OsString::from), |name| {
                variables.iter().find(|(found, _)| *found == name).map(|(_, value)| value.into())
            })
        };
        let environment =
            [("HANDOFF_DATA_DIR", "/d"), ("HANDOFF_CONTROL_SOCKET", "/c"), ("STORE_BUILD_ID", "b"), ("OTHER", "x")];
        let udp = parse(&["--listen", "udp:127.0.0.1:1", "--log", "whole"], &environment).expect("parses");
        assert_eq!((udp.listen.len(), udp.listen_udp.len(), udp.retention), (0, 1, LogRetention::Whole));
        let options = parse(&["--listen", "127.0.0.1:1", "--data-dir", "/e"], &environment).expect("parses");
        assert_eq!(options.retention, LogRetention::Truncated);
        assert_eq!((options.data_dir, options.control_socket), ("/e".into(), "/c".into()));
        assert_eq!((options.build_id.as_str(), options.listen.len(), options.connections_max), ("b", 1, 256));
        for bad in [
            &["--listen", "nowhere"][..],
            &["--listen", "udp:x"],
            &["--log", "some"],
            &["--listen"],
            &["--nonsense", "x"],
            &["--connections", "many"],
        ] {
            assert!(parse(bad, &environment).is_err(), "{bad:?}");
        }
        assert!(parse(&[], &[]).expect_err("nothing given").contains("data directory"));
    }
}
