//! The store over UDP: a datagram is one request line, its reply is one datagram. A few threads answer them side by side, so
//! that one sync serves several.
//!
//! ```text
//! gate   Closed ──open──▶ Open ──close──▶ Closed ──open (the handover is off)──▶ Open …
//! ```
//!
//! Invariants:
//!
//! - A datagram is received with the lock held and the gate open: after [`Datagrams::close`] has returned nobody receives, and
//!   what was received is answered. Everything else stays in the socket's queue, which is the kernel's and not the
//!   process's (udp(7)): the successor, who has the same socket, finds it there.
//! - The socket's flags are not touched: each call asks not to block by itself (recv(2), MSG_DONTWAIT).
//! - No thread is started after [`Datagrams::start`].
//! - A client that does not take its reply is not waited for: the reply is dropped, as any datagram may be.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use super::server::Service;
use super::wire::{LINE_BYTES_MAX, Reply, Request};

/// How soon a drain sees that it was cancelled; its own end it sees at once.
const CANCEL_CHECK: Duration = Duration::from_millis(20);
const THREAD_STACK_BYTES: usize = 256 << 10;

/// A running server of datagrams. Dropping it ends its threads.
#[derive(Debug)]
pub struct Datagrams {
    shared: Arc<Shared>,
}

struct Shared {
    service: Arc<dyn Service>,
    state: Mutex<State>,
    /// Wakes the threads: the gate opened.
    opened: Condvar,
    /// Wakes who drains: a datagram was answered.
    answered: Condvar,
    /// Readable from the end on: wakes the threads out of their polls.
    ended: OwnedFd,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    gate: Gate,
    sockets: Arc<[UdpSocket]>,
    in_hand: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Closed,
    Open,
    /// The server was dropped.
    Ended,
}

/// A datagram in hand.
struct Datagram<'a> {
    socket: usize,
    from: SocketAddr,
    line: &'a [u8],
}

impl Datagrams {
    /// Starts all threads that it will ever need; receives nothing before [`listen`](Self::listen).
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub fn start(service: Arc<dyn Service>, threads: usize) -> io::Result<Self> {
        let state = State { gate: Gate::Closed, sockets: Arc::new([]), in_hand: 0 };
        let shared = Shared {
            service,
            state: Mutex::new(state),
            opened: Condvar::new(),
            answered: Condvar::new(),
            ended: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        let datagrams = Self { shared: Arc::new(shared) };
        for _ in 0..threads {
            let shared = Arc::clone(&datagrams.shared);
            let thread = thread::Builder::new().name("store-datagram".into()).stack_size(THREAD_STACK_BYTES);
            thread.spawn(move || shared.work())?;
        }
        Ok(datagrams)
    }

    /// Receives from `sockets` from now on.
    pub fn listen(&self, sockets: Vec<UdpSocket>) {
        self.shared.state().sockets = sockets.into();
        self.open();
    }

    /// Receives again after a [`close`](Self::close).
    pub fn open(&self) {
        let mut state = self.shared.state();
        state.gate = Gate::Open;
        // Without a socket there is nothing to wake up for.
        if !state.sockets.is_empty() {
            self.shared.opened.notify_all();
        }
    }

    /// Receives no more, and waits until what is in hand is answered, at most until `deadline`, or until `cancelled` says so.
    pub fn close(&self, deadline: Instant, cancelled: impl Fn() -> bool) {
        let mut state = self.shared.state();
        state.gate = Gate::Closed;
        while state.in_hand > 0 && Instant::now() < deadline && !cancelled() {
            let wait = CANCEL_CHECK.min(deadline.saturating_duration_since(Instant::now()));
            state = self.shared.answered.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.shared.state().gate = Gate::Ended;
        self.shared.opened.notify_all();
        // Can't fail: the counter is at zero.
        let _ = rustix::io::write(&self.shared.ended, &1_u64.to_ne_bytes());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread.
    fn work(&self) {
        // One byte more than a line may have, so that a longer one shows.
        let mut buffer = [0; LINE_BYTES_MAX + 1];
        let mut state = self.state();
        loop {
            let idle = |state: &mut State| {
                state.gate == Gate::Closed || (state.gate == Gate::Open && state.sockets.is_empty())
            };
            state = self.opened.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            if state.gate == Gate::Ended {
                return;
            }
            let sockets = Arc::clone(&state.sockets);
            let Some(datagram) = receive(&sockets, &mut buffer) else {
                drop(state);
                self.wait_for_datagrams(&sockets);
                state = self.state();
                continue;
            };
            state.in_hand += 1;
            drop(state);
            // The service panicked: it costs this datagram.
            let _ = catch_unwind(AssertUnwindSafe(|| self.answer(&sockets, &datagram)));
            state = self.state();
            state.in_hand -= 1;
            self.answered.notify_all();
        }
    }

    fn wait_for_datagrams(&self, sockets: &[UdpSocket]) {
        let mut fds: Vec<_> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.ended, PollFlags::IN));
        // An error comes back at once, and the caller looks again: only memory can be short here.
        let _ = poll(&mut fds, None);
    }

    fn answer(&self, sockets: &[UdpSocket], datagram: &Datagram<'_>) {
        let reply = match datagram.line {
            line if line.len() > LINE_BYTES_MAX => {
                Reply::Error(format!("the line is longer than {LINE_BYTES_MAX} bytes"))
            }
            line => match Request::parse(line) {
                Ok(request) => self.service.answer(request, 0),
                Err(text) => Reply::Error(text.into()),
            },
        };
        let line = format!("{reply}\n");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = sendto(&sockets[datagram.socket], line.as_bytes(), flags, &datagram.from);
    }
}

/// The next datagram of any socket, if one waits. Its line's end may be left out.
fn receive<'a>(sockets: &[UdpSocket], buffer: &'a mut [u8]) -> Option<Datagram<'a>> {
    for (socket, udp) in sockets.iter().enumerate() {
        // An error is that of an earlier reply which nobody took (udp(7)); it is gone once it was told.
        let Ok((bytes, _, Some(from))) = recvfrom(udp, &mut *buffer, RecvFlags::DONTWAIT) else { continue };
        let Ok(from) = SocketAddr::try_from(from) else { continue };
        let line = &buffer[..bytes];
        return Some(Datagram { socket, from, line: line.strip_suffix(b"\n").unwrap_or(line) });
    }
    None
}

#[cfg(test)]
#[path = "datagrams_tests.rs"]
mod tests;
