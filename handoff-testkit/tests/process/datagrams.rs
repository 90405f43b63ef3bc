//! UDP under load across handovers: no datagram that was in the socket's queue is lost, none is answered twice.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::AckLog;
use handoff_testkit::store::Store;

use crate::{Outcome, check, trials};

trials![twenty_handovers_lose_no_datagram];

const PATIENCE: Duration = Duration::from_secs(30);
const HANDOVERS: u32 = 20;
const CLIENTS: u32 = 8;
/// What nobody waits for is sent in the middle of each handover; with the clients' it fits the socket's queue.
const BURST: u32 = 100;

fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    Ok(socket)
}

fn ask(socket: &UdpSocket, request: &str) -> io::Result<String> {
    socket.send(request.as_bytes())?;
    let mut reply = [0; 1024];
    let bytes = socket.recv(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply[..bytes]).trim().to_owned())
}

/// Asks again and again, and never twice for the same: a datagram that is lost ends it with an error.
fn ask_on_and_on(address: SocketAddr, client: u32, acks: &Path, stop: &AtomicBool) -> io::Result<u64> {
    let socket = connect(address)?;
    let mut log = AckLog::create(acks, &format!("udp-{client}"))?;
    let mut acked = 0;
    while !stop.load(Ordering::Relaxed) {
        // No other client has the same.
        let token = acked * u64::from(CLIENTS) + u64::from(client);
        log.sent(token)?;
        let reply = ask(&socket, &format!("INC key-{client} {token}"))?;
        acked += 1;
        if reply != format!("OK {acked}") {
            return Err(io::Error::other(format!("{token}: {reply}")));
        }
        log.acked(token)?;
    }
    Ok(acked)
}

/// Hands over, with a burst in the middle that nobody waits for.
fn hand_over(fixture: &Fixture, address: SocketAddr) -> Outcome {
    let burst = connect(address)?;
    let upgrade = thread::scope(|scope| -> io::Result<_> {
        let upgrade = scope.spawn(|| fixture.upgrade(&[]));
        for _ in 0..BURST {
            burst.send(b"INC burst")?;
            thread::yield_now();
        }
        upgrade.join().map_err(|_| io::Error::other("upgrade panicked"))?
    })?;
    check(upgrade.committed(), format!("{upgrade:?}\n{}", fixture.log()))
}

/// Waits until so many of the burst's datagrams were carried out.
fn wait_for_burst(address: SocketAddr, expected: u32) -> Outcome {
    let socket = connect(address)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = ask(&socket, "GET burst")?;
        let count = reply.split(' ').nth(1).and_then(|count| count.parse::<u32>().ok());
        match count {
            Some(count) if count == expected => return Ok(()),
            Some(count) if count < expected && Instant::now() < until => thread::yield_now(),
            _ => return Err(format!("{expected} datagrams were sent: {reply}").into()),
        }
    }
}

fn twenty_handovers_lose_no_datagram() -> Outcome {
    let mut fixture = Setup::store()?.listener("feed", "udp:127.0.0.1:0").start()?;
    let address = fixture.address("feed")?;
    let acks = fixture.path().join("acks");
    fs::create_dir(&acks)?;
    let stop = AtomicBool::new(false);
    let acked = thread::scope(|scope| -> Result<u64, Box<dyn std::error::Error>> {
        let (acks, stop) = (&acks, &stop);
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| scope.spawn(move || ask_on_and_on(address, client, acks, stop))).collect();
        let handed_over = (1..=HANDOVERS).try_for_each(|number| {
            hand_over(&fixture, address)?;
            wait_for_burst(address, number * BURST)
        });
        stop.store(true, Ordering::Relaxed);
        let acked =
            clients.into_iter().map(|client| client.join().map_err(|_| io::Error::other("a client panicked"))?);
        let acked = acked.sum::<io::Result<u64>>()?;
        handed_over?;
        Ok(acked)
    })?;
    check(acked > u64::from(HANDOVERS), format!("the clients wrote: {acked}"))?;
    check(fixture.stop()?.success(), fixture.log())?;
    let found = fixture.verify_disk(&acks)?;
    check(found.problems().is_empty(), format!("{:?}", found.problems()))?;
    check((found.acked, found.writes) == (acked, acked), format!("{acked} datagrams, {found:?}"))?;
    let burst = Store::look(fixture.data_dir())?.get("burst");
    check(burst == u64::from(HANDOVERS * BURST), format!("{burst} datagrams of the bursts are on disk"))
}
