//! The server against clients that keep to the protocol and clients that don't.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers `PING`, panics on `STATS`, and holds an `INC` until the test lets it go.
struct Held {
    entered: Mutex<Sender<()>>,
    let_go: Mutex<Receiver<()>>,
}

impl Service for Held {
    fn answer(&self, request: Request<'_>, open_connections: usize) -> Reply {
        match request {
            Request::Ping => Reply::Pong,
            Request::Get { .. } => Reply::Ok(open_connections as u64),
            Request::Stats => panic!("as the test wants it"),
            _ => {
                self.entered.lock().expect("whole").send(()).expect("the test listens");
                self.let_go.lock().expect("whole").recv().expect("the test lets go");
                Reply::Ok(1)
            }
        }
    }
}

struct Bench {
    server: Server,
    address: SocketAddr,
    entered: Receiver<()>,
    let_go: Sender<()>,
}

fn bench(connections_max: usize) -> Bench {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has one");
    let (entered_in, entered) = channel();
    let (let_go, let_go_out) = channel();
    let service = Held { entered: Mutex::new(entered_in), let_go: Mutex::new(let_go_out) };
    let server = Server::start(Arc::new(service), connections_max).expect("starts");
    server.listen(vec![listener]).expect("listens");
    Bench { server, address, entered, let_go }
}

impl Bench {
    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    fn close(&self) -> usize {
        self.server.close(Instant::now() + PATIENCE, || false)
    }
}

struct Client {
    stream: TcpStream,
    replies: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let replies = BufReader::new(stream.try_clone().expect("cloned"));
        Self { stream, replies }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("sent");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.replies.read_line(&mut line).expect("a line in time");
        line.trim_end().into()
    }

    fn ask(&mut self, request: &str) -> String {
        self.send(format!("{request}\n"));
        self.line()
    }
}

#[test]
fn requests_are_answered_in_order() {
    let bench = bench(2);
    let mut client = bench.client();
    client.send("PING\nGET a\r\nPING\n");
    assert_eq!([client.line(), client.line(), client.line()], ["PONG", "OK 1", "PONG"]);
}

#[test]
fn bad_input_gets_one_error_line_and_harms_nobody_else() {
    let bench = bench(2);
    let (mut bad, mut good) = (bench.client(), bench.client());
    bad.send(format!("GET {}\n", "k".repeat(1 << 20)));
    assert_eq!(bad.line(), format!("ERR the line is longer than {LINE_BYTES_MAX} bytes"));
    bad.send([b'x'; LINE_BYTES_MAX + 1]);
    bad.send("\n");
    assert!(bad.line().starts_with("ERR the line is longer"));
    bad.send(b"\x00\xff\xfe\x80\n");
    assert_eq!(bad.line(), "ERR not UTF-8");
    assert!(bad.ask("NONSENSE").starts_with("ERR unknown command"));
    assert_eq!(bad.ask("PING"), "PONG");
    assert_eq!(good.ask("PING"), "PONG");
}

#[test]
fn the_longest_line_is_served() {
    let bench = bench(1);
    let mut client = bench.client();
    assert_eq!(client.ask(&format!("PING{}", " ".repeat(LINE_BYTES_MAX - 4))), "PONG");
}

#[test]
fn closing_says_bye_and_answers_what_crosses_it_with_retry() {
    let bench = bench(2);
    let (mut silent, mut crossing) = (bench.client(), bench.client());
    assert_eq!([silent.ask("PING"), crossing.ask("PING")], ["PONG", "PONG"]);
    assert_eq!(bench.close(), 2);
    crossing.send("PING\nPING\n");
    assert_eq!([crossing.line(), crossing.line(), crossing.line()], ["BYE", "RETRY", "RETRY"]);
    assert_eq!(silent.line(), "BYE");

    bench.server.open().expect("opens");
    assert_eq!(crossing.ask("PING"), "RETRY", "a connection that was told BYE stays so");
    drop((silent, crossing));
    assert_eq!(bench.client().ask("PING"), "PONG");
}

#[test]
fn the_request_in_hand_is_finished_before_closing_returns() {
    let bench = bench(2);
    let (mut client, mut idle) = (bench.client(), bench.client());
    client.send("INC a\n");
    bench.entered.recv().expect("in hand");
    let server = &bench.server;
    thread::scope(|scope| {
        let closing = scope.spawn(|| server.close(Instant::now() + PATIENCE, || false));
        // Only a closed gate turns the idle one away, so from then on closing waits for the one in hand.
        let patience = Instant::now() + PATIENCE;
        while idle.ask("PING") == "PONG" {
            assert!(Instant::now() < patience, "the gate does not close");
        }
        assert!(!closing.is_finished(), "a request is in hand");
        bench.let_go.send(()).expect("held");
        closing.join().expect("closed");
    });
    assert_eq!([client.line(), client.line()], ["OK 1", "BYE"]);
}

#[test]
fn closing_ends_when_it_is_cancelled() {
    let bench = bench(1);
    let mut client = bench.client();
    client.send("INC a\n");
    bench.entered.recv().expect("in hand");
    assert_eq!(bench.server.close(Instant::now() + PATIENCE, || true), 1);
    bench.server.open().expect("opens");
    bench.let_go.send(()).expect("held");
    assert_eq!(client.line(), "OK 1");
    assert_eq!(client.ask("PING"), "PONG", "it was never told BYE");
}

#[test]
fn the_backlog_is_left_for_the_successor() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has one");
    let (first, second) = (bench(1), bench(1));
    first.server.listen(vec![listener.try_clone().expect("cloned")]).expect("listens");
    first.close();
    let mut waiting = Client::connect(address);
    waiting.send("PING\n");
    second.server.listen(vec![listener]).expect("listens");
    assert_eq!(waiting.line(), "PONG");
    assert_eq!(first.server.open_connections(), 0);
}

#[test]
fn a_connection_too_many_waits_its_turn() {
    let bench = bench(1);
    let mut first = bench.client();
    assert_eq!(first.ask("PING"), "PONG");
    let mut second = bench.client();
    second.send("GET a\n");
    assert_eq!(first.ask("GET a"), "OK 1", "the second one is not accepted yet");
    drop(first);
    assert_eq!(second.line(), "OK 1");
}

#[test]
fn several_listeners_are_served() {
    let bench = bench(2);
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("binds")).collect();
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().expect("has one")).collect();
    let server = Server::start(Arc::clone(&bench.server.shared.service), 4).expect("starts");
    server.listen(listeners).expect("listens");
    for address in addresses {
        assert_eq!(Client::connect(address).ask("PING"), "PONG");
    }
}

#[test]
fn leaving_waits_for_the_clients() {
    let bench = bench(2);
    let (mut first, mut second) = (bench.client(), bench.client());
    assert_eq!([first.ask("PING"), second.ask("PING")], ["PONG", "PONG"]);
    bench.close();
    assert_eq!(bench.server.leave(Duration::ZERO), 2);
    let server = &bench.server;
    thread::scope(|scope| {
        let leaving = scope.spawn(|| server.leave(PATIENCE));
        assert_eq!([first.line(), second.line()], ["BYE", "BYE"]);
        drop((first, second));
        assert_eq!(leaving.join().expect("left"), 0);
    });
}

#[test]
fn half_a_line_is_no_request() {
    let bench = bench(1);
    let mut client = bench.client();
    client.send("INC a");
    drop(client);
    assert_eq!(bench.client().ask("PING"), "PONG");
    assert!(bench.entered.try_recv().is_err(), "nothing was carried out");
}

#[test]
fn a_panic_costs_its_connection_only() {
    let bench = bench(1);
    let mut client = bench.client();
    assert_eq!(client.ask("STATS"), "", "closed");
    assert_eq!(bench.client().ask("PING"), "PONG", "its thread and its place are free again");
    bench.close();
    assert_eq!(bench.server.shared.state().busy, 0, "nobody waits for it");
}
