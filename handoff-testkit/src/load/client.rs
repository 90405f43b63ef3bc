//! One client of a load: writes or reads, waits for the reply, notes it, thinks, asks again.
//!
//! ```text
//! connection: none ──connect──▶ idle ──a request──▶ waiting ──done──▶ idle
//!                                │                    │ again, no answer, done and leaving
//!                                │ leaving, broken    ▼
//!                                ▼                   none
//!                              none
//! ```

use std::io;
use std::sync::Arc;

use super::connection::{Connection, Opened};
use super::{AckLog, Answer, LoadSpec, Shared, Standing, Suffered, next_token};

/// Whether a client keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connections {
    Kept,
    OnePerRequest,
}

/// What a client asks for, and what it keeps of the replies.
#[derive(Debug)]
pub(super) enum Work {
    /// What is sent and what is acknowledged goes to the log.
    Write { log: AckLog },
    /// Asks for what was written not long ago, another one each time.
    Read { turn: u64 },
}

impl Work {
    /// The token of the next request.
    fn next(&mut self, shared: &Shared) -> io::Result<u64> {
        match self {
            Self::Write { log } => {
                let token = next_token();
                log.sent(token)?;
                Ok(token)
            }
            Self::Read { turn } => {
                *turn = turn.wrapping_add(7);
                Ok(shared.recent(*turn).unwrap_or(0))
            }
        }
    }

    fn ask(&self, shared: &Shared, connection: &mut Connection, token: u64) -> Result<Answer, Suffered> {
        match self {
            Self::Write { .. } => shared.protocol.write(connection, token),
            Self::Read { .. } => shared.protocol.read(connection, token),
        }
    }

    /// Notes the reply, and then counts it.
    fn done(&mut self, token: u64, shared: &Shared) -> io::Result<()> {
        match self {
            Self::Write { log } => {
                log.acked(token)?;
                shared.acknowledge(token);
            }
            Self::Read { .. } => shared.count(|seen| seen.read += 1),
        }
        Ok(())
    }
}

pub(super) struct Client {
    spec: LoadSpec,
    work: Work,
    connections: Connections,
    shared: Arc<Shared>,
    connection: Option<Connection>,
}

/// Whether a request is to be sent once more.
#[derive(PartialEq, Eq)]
enum Sent {
    Over,
    Again,
}

impl Client {
    pub(super) fn new(spec: LoadSpec, work: Work, connections: Connections, shared: Arc<Shared>) -> Self {
        Self { spec, work, connections, shared, connection: None }
    }

    /// Asks until the load is stopped.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            let token = self.work.next(&self.shared)?;
            while self.send(token)? == Sent::Again && !self.shared.is_stopped() {}
            if !self.shared.think(self.spec.think) {
                return Ok(());
            }
        }
    }

    fn send(&mut self, token: u64) -> io::Result<Sent> {
        let Some(mut connection) = self.connect() else { return Ok(Sent::Over) };
        let answer = self.work.ask(&self.shared, &mut connection, token);
        if matches!(answer, Ok(Answer::Done)) && self.connections == Connections::Kept {
            self.connection = Some(connection);
        }
        match answer {
            Ok(Answer::Again) => {
                self.shared.count(|seen| seen.retried += 1);
                return Ok(Sent::Again);
            }
            Ok(Answer::Done | Answer::DoneAndLeaving) => self.done(token)?,
            Ok(Answer::Wrong(what)) => {
                self.suffer(what);
                self.done(token)?;
            }
            Err(what) => self.suffer(what),
        }
        Ok(Sent::Over)
    }

    fn done(&mut self, token: u64) -> io::Result<()> {
        self.shared.gaps.reply();
        self.work.done(token, &self.shared)
    }

    fn suffer(&self, what: Suffered) {
        self.shared.count(|seen| seen.suffer(what));
    }

    /// The kept connection, if it is still good, or a new one. `None`, and counted, when there is none to be had.
    fn connect(&mut self) -> Option<Connection> {
        if let Some(mut kept) = self.connection.take() {
            match self.shared.protocol.look(&mut kept) {
                Standing::Good => return Some(kept),
                Standing::Leaving => {}
                Standing::Broken => self.suffer(Suffered::Dropped),
            }
        }
        match Connection::open(&self.spec.endpoint, self.spec.patience) {
            Ok((connection, opened)) => {
                if opened == Opened::Slowly {
                    self.suffer(Suffered::SlowConnect);
                }
                Some(connection)
            }
            Err(_) => {
                self.suffer(Suffered::Refused);
                None
            }
        }
    }
}
