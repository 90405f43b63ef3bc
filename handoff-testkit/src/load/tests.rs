//! Each count provoked by a server that does what the count is for.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs clients that write against a scripted server until `done` says that they have seen enough.
fn run(
    clients: usize,
    serve: impl Fn(usize, TcpStream) + Send + Sync + 'static,
    done: impl Fn(&LoadReport) -> bool,
) -> (LoadReport, Vec<String>) {
    run_all(clients, 0, serve, done)
}

fn run_all(
    clients: usize,
    readers: usize,
    serve: impl Fn(usize, TcpStream) + Send + Sync + 'static,
    done: impl Fn(&LoadReport) -> bool,
) -> (LoadReport, Vec<String>) {
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
    let load = Load::start(&spec).expect("starts");
    assert!(load.wait_until(PATIENCE, done), "{:?}", load.counts());
    let report = load.stop().expect("logged");
    let mut acks = Vec::new();
    for entry in std::fs::read_dir(dir.path()).expect("readable") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("readable");
        acks.extend(text.lines().map(str::to_owned));
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

fn ok(_: usize, _: &str) -> Option<String> {
    Some("OK 1\n".into())
}

#[test]
fn acknowledged_writes_are_logged_and_counted() {
    let (report, acks) = run(2, |_, stream| answer(&stream, ok), |seen| seen.acked >= 20);
    assert_eq!(report, LoadReport { acked: report.acked, ..LoadReport::default() });
    assert_eq!(acks.len() as u64, report.acked);
    let tokens: std::collections::HashSet<_> = acks.iter().map(|line| line.split(' ').next()).collect();
    assert_eq!(tokens.len(), acks.len(), "no token twice");
}

#[test]
fn a_close_without_a_reply_is_unanswered() {
    let (report, acks) = run(1, |_, stream| answer(&stream, |_, _| None), |seen| seen.closed_unanswered >= 3);
    assert!(report.closed_unanswered >= 3);
    assert_eq!((report.acked, acks.len()), (0, 0));
}

#[test]
fn a_refused_connect_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has one");
    drop(listener);
    let dir = tempfile::tempdir().expect("a directory");
    let load = Load::start(&LoadSpec { clients: 2, ..LoadSpec::new(address, dir.path()) }).expect("starts");
    assert!(load.wait_until(PATIENCE, |seen| seen.refused >= 4));
    let report = load.stop().expect("logged");
    assert_eq!(report, LoadReport { refused: report.refused, ..LoadReport::default() });
}

#[test]
fn a_kept_connection_that_closes_without_bye_is_refused() {
    let serve = |number: usize, stream: TcpStream| {
        answer(&stream, |request, _| (number > 0 || request == 0).then(|| "OK 1\n".into()));
    };
    // The first connection ends after its first reply: with a request on its way, or without.
    let first_ends = move |number: usize, stream: TcpStream| match number {
        0 => {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a request");
            (&stream).write_all(b"OK 1\n").expect("answered");
            stream.shutdown(Shutdown::Both).expect("closed");
        }
        _ => serve(number, stream),
    };
    let (report, _) = run(1, first_ends, |seen| seen.acked >= 5);
    assert_eq!(report.refused + report.closed_unanswered, 1);
}

#[test]
fn bye_on_an_idle_connection_costs_nothing() {
    let serve = |_: usize, stream: TcpStream| answer(&stream, |_, _| Some("OK 1\nBYE\n".into()));
    let (report, _) = run(2, serve, |seen| seen.acked >= 10);
    assert_eq!(report, LoadReport { acked: report.acked, ..LoadReport::default() });
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
    assert_eq!((report.retried, report.refused, report.closed_unanswered), (1, 0, 0));
    let (first, second) = (tokens.recv().expect("sent"), tokens.recv().expect("sent again"));
    assert_eq!((first.0, second.0), (0, 1), "on a new connection");
    assert_eq!(first.1, second.1, "the same write");
    assert!(first.1.contains(acks[0].split(' ').next().expect("a token")));
}

#[test]
fn reads_are_counted_and_not_logged() {
    let serve = |_: usize, stream: TcpStream| answer(&stream, |_, _| Some("VALUE 3 1.0 1.0 1.0\n".into()));
    let (report, acks) = run_all(0, 2, serve, |seen| seen.read >= 20);
    assert_eq!(report, LoadReport { read: report.read, ..LoadReport::default() });
    assert_eq!(acks.len(), 0);
}

#[test]
fn a_count_that_goes_back_is_stale() {
    let serve = |_: usize, stream: TcpStream| {
        let line = |count| Some(format!("VALUE {count} 0.0 0.0 0.0\n"));
        answer(&stream, |number, _| line(if number < 500 { 9 } else { 8 }));
    };
    let (report, _) = run_all(0, 1, serve, |seen| seen.stale >= 1);
    assert_eq!(report, LoadReport { read: report.read, stale: report.stale, ..LoadReport::default() });
    assert!(report.read >= 500);
}

#[test]
fn an_error_is_rejected() {
    let (report, _) = run(1, |_, stream| answer(&stream, |_, _| Some("ERR no\n".into())), |seen| seen.rejected >= 2);
    assert_eq!((report.acked, report.refused, report.closed_unanswered), (0, 0, 0));
}
