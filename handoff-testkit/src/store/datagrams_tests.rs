//! Datagrams across a handover, without processes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Counts increments.
#[derive(Default)]
struct Counted(AtomicU64);

impl Service for Counted {
    fn answer(&self, request: Request<'_>, _open_connections: usize) -> Reply {
        match request {
            Request::Increment { .. } => Reply::Ok(self.0.fetch_add(1, Ordering::SeqCst) + 1),
            Request::Stats => panic!("as the test wants it"),
            _ => Reply::Pong,
        }
    }
}

struct Client(UdpSocket);

impl Client {
    fn of(server: &UdpSocket) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket.connect(server.local_addr().expect("has one")).expect("connects");
        Self(socket)
    }

    fn ask(&self, line: &[u8]) -> String {
        self.0.send(line).expect("sent");
        self.hear()
    }

    fn hear(&self) -> String {
        let mut reply = [0; 2048];
        let bytes = self.0.recv(&mut reply).expect("a reply");
        String::from_utf8_lossy(&reply[..bytes]).into_owned()
    }
}

fn start(socket: &UdpSocket) -> Datagrams {
    let datagrams = Datagrams::start(Arc::new(Counted::default()), 3).expect("starts");
    datagrams.listen(vec![socket.try_clone().expect("cloned")]);
    datagrams
}

fn close(datagrams: &Datagrams) {
    datagrams.close(Instant::now() + PATIENCE, || false);
}

#[test]
fn what_is_in_the_queue_is_left_for_the_successor() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let client = Client::of(&socket);
    let first = start(&socket);
    assert_eq!(client.ask(b"INC a"), "OK 1\n");
    close(&first);
    for _ in 0..50 {
        client.0.send(b"INC a\n").expect("sent");
    }
    let second = start(&socket);
    let mut replies: Vec<_> = (0..50).map(|_| client.hear()).collect();
    replies.sort_unstable();
    let mut expected: Vec<_> = (1..=50).map(|count| format!("OK {count}\n")).collect();
    expected.sort_unstable();
    assert_eq!(replies, expected, "each of them once, by the successor");
    close(&second);
    first.open();
    assert_eq!(client.ask(b"INC a"), "OK 2\n", "the handover is off");
}

#[test]
fn bad_datagrams_get_one_error_and_harm_nobody() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let client = Client::of(&socket);
    let _server = start(&socket);
    let long = [b'x'; 8192];
    for bad in [&b"DROP a"[..], b"", b"\xff\xfe\0", &long, b"INC"] {
        assert!(client.ask(bad).starts_with("ERR "), "{bad:?}");
    }
    client.0.send(b"STATS").expect("sent"); // panics; there is no reply
    assert_eq!(client.ask(b"PING"), "PONG\n");
    // One who asks and is gone: the reply comes back as an error on the socket.
    Client::of(&socket).0.send(b"PING").expect("sent");
    for _ in 0..10 {
        assert_eq!(client.ask(b"PING"), "PONG\n");
    }
}
