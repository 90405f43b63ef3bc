//! The store over TCP: one thread accepts, a fixed pool of threads serves a connection each.
//!
//! ```text
//! gate        Closed ──open──▶ Open ──close──▶ Closed ──open (the handover is off)──▶ Open …
//!
//! connection  Idle ──a line──▶ Busy ──its reply──▶ Idle
//!               │                │
//!               │ close: BYE     │ its reply, then BYE, when the gate has closed meanwhile
//!               ▼                ▼
//!             Leaving ──a line──▶ RETRY ──▶ Leaving … until the client closes
//! ```
//!
//! Invariants:
//!
//! - One lock guards gate and connections, so with the gate closed every connection is Busy or Leaving, and nobody accepts.
//! - Every request gets a reply: what was taken in hand is finished, what arrives after `BYE` gets `RETRY`.
//! - Connections that nobody has accepted stay in the listener's backlog for the successor.
//! - No thread is started after [`Server::start`], so a handover never needs one. Connections, lines and the time that a
//!   client may take to read its reply are bounded.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::retry_on_intr;
use rustix::net::{SendFlags, send};

use super::wire::{BYE, LINE_BYTES_MAX, Reply, Request};

/// How long a client may leave a reply unread while the connection's buffers are full.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long accepting rests after an error.
const ACCEPT_REST: Duration = Duration::from_millis(20);
/// How soon a drain sees that it was cancelled; its own end it sees at once.
const CANCEL_CHECK: Duration = Duration::from_millis(20);
const THREAD_STACK_BYTES: usize = 256 << 10;

/// Who answers the requests.
pub trait Service: Send + Sync {
    /// Answers one request; runs on the connection's thread.
    fn answer(&self, request: Request<'_>, open_connections: usize) -> Reply;
}

/// A running server. Dropping it ends its threads as soon as their connections are closed.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    service: Arc<dyn Service>,
    connections_max: usize,
    state: Mutex<State>,
    /// Wakes the accepting thread: the gate opened, a connection ended.
    acceptor: Condvar,
    /// Wakes a serving thread: a connection was accepted.
    workers: Condvar,
    /// Wakes who drains or leaves: a request or a connection ended.
    ended: Condvar,
    /// Wakes the accepting thread out of its poll.
    waker: OwnedFd,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    gate: Gate,
    listeners: Arc<[TcpListener]>,
    connections: HashMap<u64, Connection>,
    /// Accepted, waiting for a thread; each of them finds one free.
    queue: VecDeque<u64>,
    next_id: u64,
    busy: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Closed,
    Open,
    /// The server was dropped.
    Ended,
}

#[derive(Debug)]
struct Connection {
    stream: Arc<TcpStream>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Busy,
    Leaving,
}

impl Server {
    /// Starts all threads that it will ever need; accepts nobody before [`open`](Self::open).
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub fn start(service: Arc<dyn Service>, connections_max: usize) -> io::Result<Self> {
        let state = State {
            gate: Gate::Closed,
            listeners: Arc::new([]),
            connections: HashMap::with_capacity(connections_max),
            queue: VecDeque::with_capacity(connections_max),
            next_id: 0,
            busy: 0,
        };
        let server = Self {
            shared: Arc::new(Shared {
                service,
                connections_max,
                state: Mutex::new(state),
                acceptor: Condvar::new(),
                workers: Condvar::new(),
                ended: Condvar::new(),
                waker: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            }),
        };
        server.spawn("store-accept", Shared::accept)?;
        for _ in 0..connections_max {
            server.spawn("store-serve", Shared::work)?;
        }
        Ok(server)
    }

    /// Accepts on `listeners` from now on.
    ///
    /// # Errors
    /// A listener can't be made non-blocking.
    pub fn listen(&self, listeners: Vec<TcpListener>) -> io::Result<()> {
        // Before the accepting thread can see them: it accepts with the lock held.
        set_nonblocking(&listeners)?;
        self.shared.state().listeners = listeners.into();
        self.shared.wake_acceptor();
        self.open()
    }

    /// Accepts again after a [`close`](Self::close). The listeners are made non-blocking once more: the flag belongs to the
    /// open file (fcntl(2)), which a successor that failed has shared.
    ///
    /// # Errors
    /// A listener can't be made non-blocking.
    pub fn open(&self) -> io::Result<()> {
        let mut state = self.shared.state();
        set_nonblocking(&state.listeners)?;
        state.gate = Gate::Open;
        self.shared.acceptor.notify_one();
        Ok(())
    }

    /// Stops accepting, says `BYE` on idle connections, and waits until the requests in hand are answered, at most until
    /// `deadline`, or until `cancelled` says so. Returns how many connections are still open.
    pub fn close(&self, deadline: Instant, cancelled: impl Fn() -> bool) -> usize {
        let mut state = self.shared.state();
        state.gate = Gate::Closed;
        state.say_bye();
        while state.busy > 0 && Instant::now() < deadline && !cancelled() {
            let wait = CANCEL_CHECK.min(deadline.saturating_duration_since(Instant::now()));
            state = self.shared.ended.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.connections.len()
    }

    /// After a [`close`](Self::close) for good: answers what still arrives until every client has closed its connection, or
    /// `patience` is over. Returns how many are still open.
    pub fn leave(&self, patience: Duration) -> usize {
        let open = |state: &mut State| !state.connections.is_empty();
        let waited = self.shared.ended.wait_timeout_while(self.shared.state(), patience, open);
        waited.unwrap_or_else(PoisonError::into_inner).0.connections.len()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    fn spawn(&self, name: &str, body: fn(&Shared)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name(name.into()).stack_size(THREAD_STACK_BYTES).spawn(move || body(&shared))?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.state().gate = Gate::Ended;
        self.shared.acceptor.notify_all();
        self.shared.workers.notify_all();
        self.shared.wake_acceptor();
    }
}

impl State {
    /// Every idle connection is told, and leaves. A client whose buffers are full does not hold this up: it is cut off.
    fn say_bye(&mut self) {
        for connection in self.connections.values_mut().filter(|connection| connection.phase == Phase::Idle) {
            connection.phase = Phase::Leaving;
            let line = format!("{BYE}\n");
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = retry_on_intr(|| send(&connection.stream, line.as_bytes(), flags));
            if sent != Ok(line.len()) {
                // Its thread sees the end and clears it away.
                let _ = connection.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// What accepting came to.
enum Accepted {
    One,
    NobodyWaits,
    /// No descriptors, no memory, or worse: it is tried again, and not at once.
    Trouble,
}

/// What a connection's thread may do with a line.
enum Turn {
    Serve { open_connections: usize },
    Refuse,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The accepting thread.
    fn accept(&self) {
        let mut state = self.state();
        loop {
            let blocked = |state: &mut State| {
                state.gate == Gate::Closed
                    || (state.gate == Gate::Open && state.connections.len() >= self.connections_max)
            };
            state = self.acceptor.wait_while(state, blocked).unwrap_or_else(PoisonError::into_inner);
            if state.gate == Gate::Ended {
                return;
            }
            match self.accept_one(&mut state) {
                Accepted::One => {}
                Accepted::NobodyWaits => {
                    let listeners = Arc::clone(&state.listeners);
                    drop(state);
                    self.wait_for_clients(&listeners);
                    state = self.state();
                }
                Accepted::Trouble => {
                    let waited = self.acceptor.wait_timeout(state, ACCEPT_REST);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Accepts with the lock held: after `close` has returned nobody accepts.
    fn accept_one(&self, state: &mut State) -> Accepted {
        let listeners = Arc::clone(&state.listeners);
        for listener in listeners.iter() {
            match listener.accept() {
                Ok((stream, _)) => {
                    state.take(stream);
                    self.workers.notify_one();
                    return Accepted::One;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The client is gone already; the next one may wait (accept(2)).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Accepted::One,
                Err(_) => return Accepted::Trouble,
            }
        }
        Accepted::NobodyWaits
    }

    fn wait_for_clients(&self, listeners: &[TcpListener]) {
        let mut fds: Vec<_> = listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.waker, PollFlags::IN));
        // An error comes back at once, and the caller looks again: only memory can be short here.
        let _ = retry_on_intr(|| poll(&mut fds, None));
        let _ = rustix::io::read(&self.waker, &mut [0_u8; 8]);
    }

    /// Lets the accepting thread look again at gate and listeners.
    fn wake_acceptor(&self) {
        // Can't fail: the counter is far from its end.
        let _ = rustix::io::write(&self.waker, &1_u64.to_ne_bytes());
    }

    /// A serving thread.
    fn work(&self) {
        let mut state = self.state();
        loop {
            let idle = |state: &mut State| state.queue.is_empty() && state.gate != Gate::Ended;
            state = self.workers.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            let Some(id) = state.queue.pop_front() else { return };
            let stream = state.connections.get(&id).map(|connection| Arc::clone(&connection.stream));
            drop(state);
            if let Some(stream) = stream {
                // The client's end broke, and there is nobody to tell; or the service panicked, which costs this connection.
                let _ = catch_unwind(AssertUnwindSafe(|| self.serve(id, &stream)));
            }
            state = self.state();
            state.remove(id);
            self.acceptor.notify_one();
            self.ended.notify_all();
        }
    }

    /// Serves a connection until the client closes it.
    fn serve(&self, id: u64, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let mut lines = LineReader::new(stream);
        while let Some(line) = lines.next_line()? {
            let reply = match self.begin(id) {
                Turn::Refuse => Reply::Retry,
                Turn::Serve { open_connections } => self.answer(line, open_connections),
            };
            let written = write_line(stream, &reply.to_string());
            let leaving = self.finish(id);
            written?;
            if leaving {
                write_line(stream, BYE)?;
            }
        }
        Ok(())
    }

    fn answer(&self, line: Line<'_>, open_connections: usize) -> Reply {
        match line {
            Line::Whole(line) => match Request::parse(line) {
                Ok(request) => self.service.answer(request, open_connections),
                Err(text) => Reply::Error(text.into()),
            },
            Line::TooLong => Reply::Error(format!("the line is longer than {LINE_BYTES_MAX} bytes")),
        }
    }

    fn begin(&self, id: u64) -> Turn {
        let mut state = self.state();
        let open_connections = state.connections.len();
        match state.connections.get_mut(&id) {
            Some(connection) if connection.phase == Phase::Idle => {
                connection.phase = Phase::Busy;
                state.busy += 1;
                Turn::Serve { open_connections }
            }
            _ => Turn::Refuse,
        }
    }

    /// Says whether the client must be told `BYE` now.
    fn finish(&self, id: u64) -> bool {
        let mut state = self.state();
        let leaving = state.gate != Gate::Open;
        match state.connections.get_mut(&id) {
            Some(connection) if connection.phase == Phase::Busy => {
                connection.phase = if leaving { Phase::Leaving } else { Phase::Idle };
                state.busy -= 1;
                self.ended.notify_all();
                leaving
            }
            _ => false,
        }
    }
}

impl State {
    fn take(&mut self, stream: TcpStream) {
        let id = self.next_id;
        self.next_id += 1;
        self.connections.insert(id, Connection { stream: Arc::new(stream), phase: Phase::Idle });
        self.queue.push_back(id);
    }

    fn remove(&mut self, id: u64) {
        let removed = self.connections.remove(&id);
        self.busy -= usize::from(removed.is_some_and(|connection| connection.phase == Phase::Busy));
    }
}

fn set_nonblocking(listeners: &[TcpListener]) -> io::Result<()> {
    listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))
}

fn write_line(mut stream: &TcpStream, line: &str) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    stream.write_all(&bytes)
}

enum Line<'a> {
    Whole(&'a [u8]),
    /// The rest of it is skipped.
    TooLong,
}

/// Cuts a stream into lines, in bounded memory.
struct LineReader<R> {
    input: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// In the middle of a line that was too long.
    skipping: bool,
}

impl<R: Read> LineReader<R> {
    fn new(input: R) -> Self {
        Self { input, buffer: vec![0; 2 * LINE_BYTES_MAX].into(), start: 0, end: 0, skipping: false }
    }

    /// The next line; `None` at the end of the stream, where half a line counts for nothing.
    fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(length) = unread.iter().position(|byte| *byte == b'\n') {
                let line = self.start..self.start + length;
                self.start = line.end + 1;
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                let fits = length <= LINE_BYTES_MAX;
                return Ok(Some(if fits { Line::Whole(&self.buffer[line]) } else { Line::TooLong }));
            }
            if unread.len() > LINE_BYTES_MAX {
                self.start = self.end;
                if !std::mem::replace(&mut self.skipping, true) {
                    return Ok(Some(Line::TooLong));
                }
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads more behind what is there; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(bytes) => {
                    self.end += bytes;
                    return Ok(bytes > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
