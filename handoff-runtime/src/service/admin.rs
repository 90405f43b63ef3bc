//! The admin socket: one JSON object a line in, JSON lines out.
//!
//! Never blocks and never trusts a client: who may speak is decided by the peer's uid (unix(7), `SO_PEERCRED`), a line, an
//! answer and the number of clients are bounded, and a client that says nothing makes room when another one comes.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SocketFlags, accept_with};
use serde::Serialize;

use super::report::{Event, Refusal, Request};
use crate::events::{debug, warn};
use crate::sys::fork::StaysHere;
use crate::sys::socket::{self, peer};

/// The longest line that a client may send, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;
/// The most that is kept for a client that does not read, in bytes.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// The most clients at a time.
pub(crate) const CLIENTS_MAX: usize = 32;

/// One client, as long as it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(u64);

#[cfg(test)]
impl ClientId {
    pub(crate) const fn first() -> Self {
        Self(0)
    }
}

/// The listening socket and its clients.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    listener: StaysHere,
    path: PathBuf,
    allowed_uids: Vec<u32>,
    clients: Vec<Client>,
    next_id: u64,
}

/// ```text
///            a whole line           answer()
///   Listening ─────────► Answering ─────────► Listening
///       │ end of input, or a line too long
///       ▼
///    Leaving ── all written ──► dropped
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Listening,
    Answering,
    Leaving,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: StaysHere,
    turn: Turn,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl AdminSocket {
    /// Binds `path`, in place of whatever stands there: whoever holds the state directory's lock owns the path.
    ///
    /// With `allowed_uids` the socket file lets every user connect, and the uid alone decides.
    pub(crate) fn bind(path: &Path, allowed_uids: &[u32]) -> io::Result<Self> {
        let staging = path.with_extension("new");
        match std::fs::remove_file(&staging) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StaysHere::open(|| {
            let listener = UnixListener::bind(&staging)?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener.into())
        })?;
        let mode = if allowed_uids.is_empty() { 0o600 } else { 0o666 };
        std::fs::set_permissions(&staging, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&staging, path)?;
        let (path, allowed_uids) = (path.to_owned(), allowed_uids.to_vec());
        Ok(Self { listener, path, allowed_uids, clients: Vec::new(), next_id: 0 })
    }

    /// Takes every client that waits. An error is the system's (out of descriptors): try again later.
    pub(crate) fn accept(&mut self) -> io::Result<()> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match StaysHere::open(|| Ok::<_, io::Error>(accept_with(&self.listener, flags)?)) {
                Ok(stream) => self.greet(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The listening socket, for poll(2).
    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// What each client waits for, for poll(2).
    pub(crate) fn interests(&self) -> impl Iterator<Item = (ClientId, BorrowedFd<'_>, PollFlags)> {
        self.clients.iter().map(|client| (client.id, client.stream.as_fd(), client.interest()))
    }

    /// Moves bytes after poll(2) has named this client; returns an order that has come in whole.
    pub(crate) fn turn(&mut self, id: ClientId, ready: PollFlags) -> Option<Request> {
        let at = self.clients.iter().position(|client| client.id == id)?;
        let client = &mut self.clients[at];
        if ready.intersects(PollFlags::ERR | PollFlags::NVAL) || !client.flush() {
            self.clients.swap_remove(at);
            return None;
        }
        if client.turn == Turn::Listening {
            client.fill();
        }
        let request = client.next_request();
        // A hang-up while an answer is due means that nobody will read it.
        if client.is_done() || (ready.contains(PollFlags::HUP) && client.turn == Turn::Answering) {
            self.clients.swap_remove(at);
        }
        request
    }

    /// Writes to every client what it can take of what is meant for it. A round of the loop ends with it, so that several
    /// lines go in one write.
    pub(crate) fn flush(&mut self) {
        self.clients.retain_mut(|client| client.flush() && !client.is_done());
    }

    /// A line ahead of the answer. It is sent by [`flush`](Self::flush).
    pub(crate) fn tell(&mut self, id: ClientId, event: &Event) {
        self.push(id, event);
    }

    /// The answer; the client may then give its next order.
    ///
    /// Returns an order that was already waiting behind the answered one.
    #[must_use = "the client's next order may be here already"]
    pub(crate) fn answer(&mut self, id: ClientId, answer: &impl Serialize) -> Option<Request> {
        self.push(id, answer);
        let client = self.clients.iter_mut().find(|client| client.id == id)?;
        client.turn = Turn::Listening;
        client.next_request()
    }

    /// Writes what is left, waiting for nobody, and removes the path.
    pub(crate) fn close(mut self) {
        for client in &mut self.clients {
            client.flush();
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "admin socket could not be removed");
        }
    }

    fn greet(&mut self, stream: StaysHere) {
        let uid = match peer(stream.as_fd()) {
            Ok(peer) => peer.uid,
            Err(error) => return debug!(%error, "a client of unknown user is dropped"),
        };
        let mut client =
            Client { id: ClientId(self.next_id), stream, turn: Turn::Listening, input: Vec::new(), output: Vec::new() };
        self.next_id += 1;
        if !may_speak(uid, rustix::process::geteuid().as_raw(), &self.allowed_uids) {
            warn!(uid, "a client of this user is refused on the admin socket");
            return client.dismiss(format!("uid {uid} is not allowed here; add it to allowed_uids"));
        }
        if self.clients.len() >= CLIENTS_MAX && !self.drop_the_longest_silent() {
            return client.dismiss(format!("{CLIENTS_MAX} clients are waiting for answers; try again later"));
        }
        self.clients.push(client);
    }

    fn drop_the_longest_silent(&mut self) -> bool {
        let idle = self.clients.iter().enumerate().filter(|(_, client)| client.turn != Turn::Answering);
        let Some((at, _)) = idle.min_by_key(|(_, client)| client.id) else { return false };
        self.clients.swap_remove(at);
        true
    }

    fn push(&mut self, id: ClientId, line: &impl Serialize) {
        let Some(at) = self.clients.iter().position(|client| client.id == id) else { return };
        if !self.clients[at].push(line) {
            self.clients.swap_remove(at);
        }
    }
}

impl Client {
    fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.turn == Turn::Listening);
        interest.set(PollFlags::OUT, !self.output.is_empty());
        interest
    }

    /// Reads what has arrived, up to a whole line or the limit.
    fn fill(&mut self) {
        let mut chunk = [0; 4096];
        while self.input.len() <= LINE_BYTES_MAX && !self.input.contains(&b'\n') {
            match retry_on_intr(|| rustix::io::read(&self.stream, &mut chunk)) {
                Ok(0) => return self.turn = Turn::Leaving,
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(Errno::AGAIN) => return,
                Err(_) => return self.turn = Turn::Leaving,
            }
        }
    }

    /// The next whole line as an order. What is no order is answered here.
    fn next_request(&mut self) -> Option<Request> {
        while self.turn != Turn::Answering {
            let Some(end) = self.input.iter().position(|&byte| byte == b'\n') else {
                if self.input.len() > LINE_BYTES_MAX {
                    self.input.clear();
                    self.push(&Refusal { error: format!("a line is longer than {LINE_BYTES_MAX} bytes") });
                    self.turn = Turn::Leaving;
                }
                return None;
            };
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(request) => {
                    self.turn = Turn::Answering;
                    return Some(request);
                }
                Err(error) => self.push(&Refusal { error: format!("not an order: {error}") }),
            };
        }
        None
    }

    /// Queues a line; false when the client does not read.
    fn push(&mut self, line: &impl Serialize) -> bool {
        match serde_json::to_writer(&mut self.output, line) {
            Ok(()) => self.output.push(b'\n'),
            Err(error) => warn!(%error, "an answer could not be encoded"),
        }
        self.output.len() <= OUTPUT_BYTES_MAX
    }

    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match socket::send(self.stream.as_fd(), &self.output, &[]) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn is_done(&self) -> bool {
        self.turn == Turn::Leaving && self.output.is_empty()
    }

    /// Its only line.
    fn dismiss(&mut self, error: String) {
        self.push(&Refusal { error });
        self.flush();
    }
}

fn may_speak(uid: u32, own: u32, allowed: &[u32]) -> bool {
    uid == 0 || uid == own || allowed.contains(&uid)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::service::report::Stopped;
    use crate::sys::fork::beside_a_child;
    use crate::testing::hears_the_end;

    struct Room {
        socket: AdminSocket,
        _dir: tempfile::TempDir,
    }

    impl Room {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = AdminSocket::bind(&dir.path().join("admin.sock"), &[]).unwrap();
            Self { socket, _dir: dir }
        }

        fn client(&mut self) -> UnixStream {
            let stream = UnixStream::connect(&self.socket.path).unwrap();
            self.socket.accept().unwrap();
            stream
        }

        /// One round of the service's loop; the orders that came in.
        fn round(&mut self) -> Vec<(ClientId, Request)> {
            let ids: Vec<_> = self.socket.clients.iter().map(|client| client.id).collect();
            let turn = |id| self.socket.turn(id, PollFlags::IN).map(|request| (id, request));
            let orders = ids.into_iter().filter_map(turn).collect();
            self.socket.flush();
            orders
        }
    }

    fn line(stream: &UnixStream) -> String {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn the_socket_is_its_owners_alone() {
        let room = Room::new();
        let mode = std::fs::metadata(&room.socket.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!room.socket.path.with_extension("new").exists());
    }

    #[test]
    fn own_user_root_and_the_allowed_may_speak_and_nobody_else() {
        assert!(may_speak(0, 1000, &[]) && may_speak(1000, 1000, &[]) && may_speak(7, 1000, &[7]));
        assert!(!may_speak(1001, 1000, &[7]));
    }

    const PATH: &str = "HANDOFF_TEST_ADMIN_SOCKET";

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn hears_a_client_that_has_no_pid_here() {
        let path = std::env::var_os(PATH).unwrap();
        let mut socket = AdminSocket::bind(Path::new(&path), &[]).unwrap();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(socket.listener(), PollFlags::IN)];
        crate::sys::poll::wait(&mut fds, None).unwrap();
        socket.accept().unwrap();
        assert_eq!(peer(socket.clients[0].stream.as_fd()).unwrap().pid, 0);
        socket.push(ClientId::first(), &"heard");
        socket.flush();
    }

    /// As a supervisor in a container, and its client outside.
    #[test]
    fn a_client_of_another_pid_namespace_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let mut command = crate::testing::in_new_namespaces("pf");
        command.arg(std::env::current_exe().unwrap());
        command.args(crate::testing::arguments_for("service::admin::tests::hears_a_client_that_has_no_pid_here"));
        let mut supervisor = command.env(PATH, &path).stdout(std::process::Stdio::null()).spawn().unwrap();
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) => assert!(supervisor.try_wait().unwrap().is_none(), "{error}"),
            }
            std::thread::yield_now();
        };
        assert_eq!(line(&stream), "\"heard\"\n");
        assert!(supervisor.wait().unwrap().success());
    }

    #[test]
    fn an_order_in_two_parts_is_one_order() {
        let mut room = Room::new();
        let mut client = room.client();
        client.write_all(br#"{"cmd":"#).unwrap();
        assert!(room.round().is_empty());
        client.write_all(b"\"status\"}\n").unwrap();
        assert_eq!(room.round()[0].1, Request::Status {});
    }

    #[test]
    fn orders_are_taken_one_after_the_other() {
        let mut room = Room::new();
        let mut client = room.client();
        client.write_all(b"{\"cmd\":\"status\"}\n\n{\"cmd\":\"stop\"}\n").unwrap();
        let orders = room.round();
        assert_eq!(orders.len(), 1);
        assert!(room.round().is_empty());
        room.socket.tell(orders[0].0, &Event::Stopping {});
        let next = room.socket.answer(orders[0].0, &Stopped { stopped: true, supervisor_pid: 1 });
        room.socket.flush();
        assert_eq!(next, Some(Request::Stop {}));
        assert_eq!(line(&client), "{\"event\":\"stopping\"}\n");
    }

    #[test]
    fn an_order_is_obeyed_though_its_sender_says_no_more() {
        let mut room = Room::new();
        let mut client = room.client();
        client.write_all(b"{\"cmd\":\"status\"}\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (id, _) = room.round()[0].clone();
        assert_eq!(room.socket.answer(id, &Refusal { error: "x".into() }), None);
        room.socket.flush();
        assert_eq!(line(&client), "{\"error\":\"x\"}\n");
        room.round();
        assert!(room.socket.clients.is_empty());
    }

    #[test]
    fn garbage_is_answered_and_the_client_may_try_again() {
        let mut room = Room::new();
        let mut client = room.client();
        client.write_all(b"\xff\x00nonsense\n").unwrap();
        assert!(room.round().is_empty());
        assert!(line(&client).starts_with("{\"error\":\"not an order: "));
        client.write_all(b"{\"cmd\":\"status\"}\n").unwrap();
        assert_eq!(room.round().len(), 1);
    }

    #[test]
    fn a_line_that_never_ends_is_cut_off() {
        let mut room = Room::new();
        let mut client = room.client();
        client.set_nonblocking(true).unwrap();
        let chunk = [b'x'; 8192];
        while !room.socket.clients.is_empty() {
            let _ = client.write(&chunk);
            assert!(room.round().is_empty());
            assert!(room.socket.clients.iter().all(|client| client.input.len() <= LINE_BYTES_MAX + 4096));
        }
        client.set_nonblocking(false).unwrap();
        assert!(line(&client).contains("longer than 65536 bytes"));
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped() {
        let mut room = Room::new();
        let mut client = room.client();
        client.write_all(b"{\"cmd\":\"status\"}\n").unwrap();
        let (id, _) = room.round()[0].clone();
        let event = Event::Phase { phase: "x".repeat(4096), handoff_id: None, successor_pid: None, after_ms: 0 };
        for _ in 0..1024 {
            room.socket.tell(id, &event);
        }
        assert!(room.socket.clients.is_empty());
    }

    #[test]
    fn the_longest_silent_makes_room_and_those_who_wait_for_answers_stay() {
        let mut room = Room::new();
        let mut waiting = room.client();
        waiting.write_all(b"{\"cmd\":\"stop\"}\n").unwrap();
        let (waiting_id, _) = room.round()[0].clone();
        let silent: Vec<_> = (1..CLIENTS_MAX).map(|_| room.client()).collect();
        let _newest = room.client();
        assert_eq!(room.socket.clients.len(), CLIENTS_MAX);
        assert_eq!(line(&silent[0]), "", "the oldest silent client is closed");
        assert!(room.socket.clients.iter().any(|client| client.id == waiting_id));
    }

    #[test]
    fn when_all_wait_for_answers_one_more_is_told_so() {
        let mut room = Room::new();
        let mut waiting: Vec<_> = (0..CLIENTS_MAX).map(|_| room.client()).collect();
        for client in &mut waiting {
            client.write_all(b"{\"cmd\":\"stop\"}\n").unwrap();
        }
        assert_eq!(room.round().len(), CLIENTS_MAX);
        let late = room.client();
        assert!(line(&late).contains("try again later"));
    }

    #[test]
    fn a_forked_child_keeps_neither_the_socket_nor_a_client() {
        let mut room = Room::new();
        let client = room.client();
        let waiting = UnixStream::connect(&room.socket.path).unwrap();
        beside_a_child(|| {
            drop(room);
            hears_the_end(client);
            // Nobody has accepted it: it ends with the socket.
            let end = (&waiting).read(&mut [0]);
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        });
    }
}
