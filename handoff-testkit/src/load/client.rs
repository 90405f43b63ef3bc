//! One client of a load: writes or reads, waits for the reply, notes it, thinks, asks again.
//!
//! ```text
//! connection: none ──connect──▶ idle ──INC or GET──▶ waiting ──OK or VALUE──▶ idle
//!                                │              │ BYE: one reply is still to come, then none
//!                                │ BYE          │ RETRY, end, error
//!                                ▼              ▼
//!                              none           none
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::{LoadSpec, Shared};
use crate::store::wire::{BYE, RETRY};

/// Whether a client keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    Kept,
    OnePerRequest,
}

/// What a client asks for, and what it keeps of the replies.
#[derive(Debug)]
pub(crate) enum Work {
    /// Each acknowledged write goes to the log.
    Write { log: File },
    /// What each key showed last.
    Read { shown: HashMap<String, u64> },
}

impl Work {
    /// Writes, for this client.
    pub(crate) fn writing(spec: &LoadSpec, name: &str) -> io::Result<Self> {
        let log = File::options().append(true).create(true).open(spec.acks_dir.join(format!("acks-{name}.log")))?;
        Ok(Self::Write { log })
    }

    /// Reads.
    pub(crate) fn reading() -> Self {
        Self::Read { shown: HashMap::new() }
    }

    fn request(&self, key: &str, token: &str) -> String {
        match self {
            Self::Write { .. } => format!("INC {key} {token}\n"),
            Self::Read { .. } => format!("GET {key}\n"),
        }
    }

    /// The count in a reply that carries the request out; `None` in any other.
    fn count_in(&self, line: &str) -> Option<u64> {
        let word = match self {
            Self::Write { .. } => "OK",
            Self::Read { .. } => "VALUE",
        };
        let mut words = line.split(' ');
        words.next().filter(|first| *first == word)?;
        words.next()?.parse().ok()
    }

    /// Notes the reply, and then counts it.
    fn done(&mut self, key: &str, token: &str, count: u64, shared: &Shared) -> io::Result<()> {
        match self {
            Self::Write { log } => {
                log.write_all(format!("{token} {key}\n").as_bytes())?;
                shared.count(|seen| &mut seen.acked);
            }
            Self::Read { shown } => {
                let before = shown.insert(key.to_owned(), count).unwrap_or_default();
                shared.count(|seen| if count < before { &mut seen.stale } else { &mut seen.read });
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    spec: LoadSpec,
    /// Goes ahead of each token.
    name: String,
    work: Work,
    connections: Connections,
    shared: Arc<Shared>,
    connection: Option<Connection>,
    sequence: u64,
}

/// What came of sending a request once.
enum Outcome {
    /// With the count of its key.
    Done(u64),
    /// It was not carried out and may be sent again.
    Retry,
    /// It is given up: whether a write is in the log, nobody knows.
    GivenUp,
}

impl Client {
    pub(crate) fn new(spec: LoadSpec, name: String, work: Work, connections: Connections, shared: Arc<Shared>) -> Self {
        Self { spec, name, work, connections, shared, connection: None, sequence: 0 }
    }

    /// Asks until the load is stopped.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            self.ask()?;
            if !self.shared.think(self.spec.think) {
                return Ok(());
            }
        }
    }

    /// One request, sent again as often as the answer is RETRY.
    fn ask(&mut self) -> io::Result<()> {
        self.sequence += 1;
        let token = format!("{}.{}", self.name, self.sequence);
        let key = format!("key-{}", spread(&token) % self.spec.keys.max(1));
        loop {
            match self.send(&key, &token) {
                Outcome::Done(count) => {
                    self.shared.gaps.reply();
                    return self.work.done(&key, &token, count, &self.shared);
                }
                Outcome::GivenUp => return Ok(()),
                Outcome::Retry => self.shared.count(|seen| &mut seen.retried),
            }
            if self.shared.is_stopped() {
                return Ok(());
            }
        }
    }

    fn send(&mut self, key: &str, token: &str) -> Outcome {
        let Some(mut connection) = self.connect() else { return Outcome::GivenUp };
        if connection.stream.write_all(self.work.request(key, token).as_bytes()).is_err() {
            self.shared.count(|seen| &mut seen.refused);
            return Outcome::GivenUp;
        }
        self.receive(connection)
    }

    /// The reply, with a BYE perhaps ahead of it.
    fn receive(&mut self, mut connection: Connection) -> Outcome {
        let mut leaving = false;
        loop {
            match connection.read_line() {
                Ok(Some(line)) if line == BYE => leaving = true,
                Ok(Some(line)) if line == RETRY => return Outcome::Retry,
                Ok(Some(line)) => {
                    let Some(count) = self.work.count_in(&line) else {
                        self.shared.count(|seen| &mut seen.rejected);
                        return Outcome::GivenUp;
                    };
                    self.connection = (self.connections == Connections::Kept && !leaving).then_some(connection);
                    return Outcome::Done(count);
                }
                Ok(None) => {
                    self.shared.count(|seen| &mut seen.closed_unanswered);
                    return Outcome::GivenUp;
                }
                Err(error) => {
                    self.shared.count(|seen| &mut seen.closed_unanswered);
                    if !is_timeout(&error) {
                        self.shared.count(|seen| &mut seen.refused);
                    }
                    return Outcome::GivenUp;
                }
            }
        }
    }

    /// The kept connection, if it is still good, or a new one. `None`, and counted, when there is none to be had.
    fn connect(&mut self) -> Option<Connection> {
        if let Some(mut kept) = self.connection.take() {
            match kept.look() {
                Kept::Good => return Some(kept),
                Kept::Bye => {}
                Kept::Broken => self.shared.count(|seen| &mut seen.refused),
            }
        }
        match Connection::open(&self.spec) {
            Ok(connection) => Some(connection),
            Err(_) => {
                self.shared.count(|seen| &mut seen.refused);
                None
            }
        }
    }
}

/// Spreads tokens over keys without a random number (FNV-1a).
fn spread(token: &str) -> u64 {
    token.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// Read, not yet taken.
    unread: Vec<u8>,
}

/// How a connection stands on which nothing was asked.
enum Kept {
    Good,
    Bye,
    /// It was closed without a BYE, or says what nobody asked for.
    Broken,
}

impl Connection {
    fn open(spec: &LoadSpec) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&spec.address, spec.patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(spec.patience))?;
        stream.set_write_timeout(Some(spec.patience))?;
        Ok(Self { stream, unread: Vec::new() })
    }

    /// The next line; `None` at the end of the stream.
    fn read_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let mut bytes = [0; 512];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(read) => self.unread.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks without waiting at what the server has said meanwhile.
    fn look(&mut self) -> Kept {
        let mut bytes = [0; 512];
        match recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((0, _)) if self.unread.is_empty() => return Kept::Broken,
            Ok((read, _)) => self.unread.extend_from_slice(&bytes[..read]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Kept::Broken,
        }
        match self.unread.as_slice() {
            [] => Kept::Good,
            said if said.starts_with(BYE.as_bytes()) => Kept::Bye,
            _ => Kept::Broken,
        }
    }
}
