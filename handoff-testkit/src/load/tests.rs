//! Each count provoked by a server that does what the count is for.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::AtomicU64;

use super::*;
use crate::store::StoreClient;

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs clients that write against a scripted server until `done` says that they have seen enough.
fn run(
    clients: usize,
    serve: impl Fn(usize, TcpStream) + Send + Sync + 'static,
    done: impl Fn(&Counts) -> bool,
) -> (Counts, Vec<String>) {
    run_all(clients, 0, serve, done)
}

fn run_all(
    clients: usize,
    readers: usize,
    serve: impl Fn(usize, TcpStream) + Send + Sync + 'static,
    done: impl Fn(&Counts) -> bool,
) -> (Counts, Vec<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has one");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(number, stream.expect("accepted")));
        }
    });
    let spec = LoadSpec { clients, readers, patience: PATIENCE, ..LoadSpec::new(address, dir.path()) };
    let load = Load::start(&spec, StoreClient::with_keys(1)).expect("starts");
    assert!(load.wait_until(PATIENCE, done), "{}", load.counts());
    let report = load.stop().expect("logged").counts;
    let mut acks = Vec::new();
    for entry in std::fs::read_dir(dir.path()).expect("readable") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("readable");
        acks.extend(text.lines().filter_map(|line| line.strip_prefix('=')).map(str::to_owned));
    }
    (report, acks)
}

/// Answers every request with what `reply` makes of its number on this connection; ends when it makes nothing.
fn answer(stream: &TcpStream, reply: impl Fn(usize, &str) -> Option<String>) {
    for (number, line) in BufReader::new(stream).lines().map_while(Result::ok).enumerate() {
        match reply(number, &line) {
            Some(reply) => (&*stream).write_all(reply.as_bytes()).unwrap_or_default(),
            None => return,
        }
    }
}

/// Answers the requests of all connections as a store would whose key is counted from 1.
fn counting() -> impl Fn(usize, TcpStream) + Send + Sync {
    let count = AtomicU64::new(0);
    move |_, stream| {
        answer(&stream, |_, line| match line.starts_with("INC") {
            true => Some(format!("OK {}\n", count.fetch_add(1, Ordering::SeqCst) + 1)),
            false => Some(format!("VALUE {} 1.0 1.0 1.0\n", count.load(Ordering::SeqCst))),
        });
    }
}

/// Whether the clients suffered these, each at least once, and nothing else.
fn only(seen: &Counts, kinds: &[Suffered]) -> bool {
    Suffered::ALL.iter().all(|kind| (seen.of(*kind) > 0) == kinds.contains(kind))
}

#[test]
fn acknowledged_writes_are_logged_and_counted() {
    let (report, acks) = run(2, counting(), |seen| seen.acked >= 20);
    assert!(only(&report, &[]), "{report}");
    assert_eq!((acks.len() as u64, report.read, report.retried), (report.acked, 0, 0));
    let tokens: std::collections::HashSet<_> = acks.iter().collect();
    assert_eq!(tokens.len(), acks.len(), "no token twice");
}

#[test]
fn a_close_without_a_reply_is_an_end_of_stream() {
    let (report, acks) = run(
        1,
        |_, stream| answer(&stream, |_, _| None),
        |seen| seen.of(Suffered::Ended) + seen.of(Suffered::Reset) >= 3,
    );
    assert!(report.closed_unanswered() >= 3, "{report}");
    assert_eq!((report.acked, acks.len()), (0, 0));
}

#[test]
fn a_refused_connect_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has one");
    drop(listener);
    let dir = tempfile::tempdir().expect("a directory");
    let spec = LoadSpec { clients: 2, ..LoadSpec::new(address, dir.path()) };
    let load = Load::start(&spec, StoreClient::new()).expect("starts");
    assert!(load.wait_until(PATIENCE, |seen| seen.of(Suffered::Refused) >= 4));
    let report = load.stop().expect("logged").counts;
    assert!(only(&report, &[Suffered::Refused]), "{report}");
}

#[test]
fn a_request_that_nobody_answers_is_timed_out() {
    let dir = tempfile::tempdir().expect("a directory");
    // The backlog takes the clients; nobody accepts them.
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has one");
    let spec = LoadSpec { clients: 1, patience: Duration::from_millis(5), ..LoadSpec::new(address, dir.path()) };
    let load = Load::start(&spec, StoreClient::new()).expect("starts");
    assert!(load.wait_until(PATIENCE, |seen| seen.of(Suffered::TimedOut) >= 2));
    let report = load.stop().expect("logged").counts;
    assert!(only(&report, &[Suffered::TimedOut]), "{report}");
}

#[test]
fn a_kept_connection_that_ends_without_bye_is_dropped() {
    let count = counting();
    // The first connection ends after its first reply: with a request on its way, or without.
    let first_ends = move |number: usize, stream: TcpStream| match number {
        0 => {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a request");
            (&stream).write_all(b"OK 1\n").expect("answered");
            stream.shutdown(Shutdown::Both).expect("closed");
        }
        1 => {
            let _ = BufReader::new(&stream).read_line(&mut String::new());
            (&stream).write_all(b"OK 2\n").unwrap_or_default();
        }
        _ => count(number, stream),
    };
    let lost = |seen: &Counts| seen.of(Suffered::Dropped) + seen.of(Suffered::Ended) + seen.of(Suffered::Reset);
    let (report, _) = run(1, first_ends, move |seen| lost(seen) >= 1);
    assert!(report.of(Suffered::Refused) == 0 && report.of(Suffered::TimedOut) == 0, "{report}");
}

#[test]
fn bye_on_an_idle_connection_costs_nothing() {
    let count = AtomicU64::new(0);
    let serve = move |_: usize, stream: TcpStream| {
        answer(&stream, |_, _| Some(format!("OK {}\nBYE\n", count.fetch_add(1, Ordering::SeqCst) + 1)));
    };
    let (report, _) = run(2, serve, |seen| seen.acked >= 10);
    assert!(only(&report, &[]), "{report}");
}

#[test]
fn a_request_that_crossed_a_bye_is_sent_again_under_its_token() {
    let (sender, tokens) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let serve = move |number: usize, stream: TcpStream| {
        answer(&stream, |_, line| {
            let _ = sender.lock().expect("whole").send((number, line.to_owned()));
            Some(if number == 0 { "BYE\nRETRY\n".into() } else { "OK 1\n".into() })
        });
    };
    let (report, acks) = run(1, serve, |seen| seen.acked >= 1);
    assert_eq!(report.retried, 1);
    let (first, second) = (tokens.recv().expect("sent"), tokens.recv().expect("sent again"));
    assert_eq!((first.0, second.0), (0, 1), "on a new connection");
    assert_eq!(first.1, second.1, "the same write");
    assert!(first.1.ends_with(&acks[0]));
}

#[test]
fn reads_are_counted_and_not_logged() {
    let (report, acks) = run_all(1, 2, counting(), |seen| seen.read >= 20 && seen.acked >= 5);
    assert!(only(&report, &[]), "{report}");
    assert_eq!(acks.len() as u64, report.acked);
}

#[test]
fn a_count_that_goes_back_is_out_of_order() {
    let count = AtomicU64::new(0);
    let serve = move |_: usize, stream: TcpStream| {
        answer(&stream, |_, _| match count.fetch_add(1, Ordering::SeqCst) + 1 {
            9 => Some("OK 3\n".into()),
            count => Some(format!("OK {count}\n")),
        });
    };
    let (report, acks) = run(1, serve, |seen| seen.acked >= 10);
    assert!(only(&report, &[Suffered::OutOfOrder]), "{report}");
    assert_eq!(acks.len() as u64, report.acked, "it was acknowledged all the same");
}

#[test]
fn a_count_that_nobody_can_have_reached_is_a_wrong_value() {
    let (report, _) = run(
        1,
        |_, stream| answer(&stream, |_, _| Some("OK 1000000\n".into())),
        |seen| seen.of(Suffered::WrongValue) >= 2,
    );
    assert!(only(&report, &[Suffered::WrongValue]), "{report}");
}

#[test]
fn an_error_is_rejected() {
    let (report, _) =
        run(1, |_, stream| answer(&stream, |_, _| Some("ERR no\n".into())), |seen| seen.of(Suffered::Rejected) >= 2);
    assert!(only(&report, &[Suffered::Rejected]), "{report}");
    assert_eq!(report.acked, 0);
}
