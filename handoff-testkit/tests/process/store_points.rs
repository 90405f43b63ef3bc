//! The store's eight crash points by a real `_exit` in a supervised process, among writing clients: nothing acknowledged is
//! lost or doubled, the store equals a replay of its log, and the handover right after the recovery commits.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use handoff_testkit::fixture::Setup;
use handoff_testkit::load::AckLog;
use handoff_testkit::store::{NEIGHBOURS_MAX, State, Store};
use handoff_testkit::{CrashPoint, ProcessCrash};

use crate::{Outcome, check, skip};

const PATIENCE: Duration = Duration::from_secs(30);
const CLIENTS: u32 = 4;
/// More than any point needs to be crossed three times.
const ROUNDS: u32 = 400;

/// One trial for each point.
pub(crate) fn all() -> Vec<libtest_mimic::Trial> {
    let trial = |point: CrashPoint| {
        skip::trial(format!("store_points::{}", point.name()), move || {
            [0, 2].into_iter().try_for_each(|pass| crash_and_hand_over(point, pass))
        })
    };
    CrashPoint::ALL.into_iter().map(trial).collect()
}

/// A connection that asks and waits.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The number that the store answers; an error when the connection ends first.
    fn ask(&mut self, request: &str) -> io::Result<u64> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut reply = String::new();
        self.0.read_line(&mut reply)?;
        let number = reply.trim().strip_prefix("OK ").and_then(|number| number.parse().ok());
        number.ok_or_else(|| io::Error::other(format!("{request}: {reply:?}")))
    }
}

/// What one client was told was done.
#[derive(Default)]
struct Told {
    items: Vec<u32>,
    pairs: u64,
}

/// Writes all sorts of things until the connection breaks.
fn write_all_sorts(address: SocketAddr, client: u32, acks: &Path) -> io::Result<Told> {
    let mut told = Told::default();
    let mut log = AckLog::create(acks, &client.to_string())?;
    let mut connection = Client::connect(address)?;
    let mut write = |told: &mut Told, round: u32| -> io::Result<()> {
        let (key, item) = (format!("group-{}:{}", client % 2, round % 3), client * ROUNDS + round);
        let token = u64::from(item);
        log.sent(token)?;
        connection.ask(&format!("INC {key} {token}"))?;
        log.acked(token)?;
        connection.ask(&format!("ADD pins {item}"))?;
        told.items.push(item);
        connection.ask(&format!("PAIR hub-{client} near-{}", round as usize % (2 * NEIGHBOURS_MAX)))?;
        told.pairs += 1;
        if round % 5 == 2 {
            connection.ask("CHECKPOINT")?;
        }
        Ok(())
    };
    // The first error is the crash.
    let _ = (0..ROUNDS).try_for_each(|round| write(&mut told, round));
    Ok(told)
}

fn crash_and_hand_over(point: CrashPoint, pass: u64) -> Outcome {
    let markers = tempfile::tempdir()?;
    let acks = tempfile::tempdir()?;
    let at = format!("{}+{pass}", point.name());
    let crash = ProcessCrash::new(&at, "store", markers.path());
    let mut setup = Setup::store()?.env("HANDOFF_CRASH_ONCE", "1");
    for (name, value) in crash.env() {
        setup = setup.env(name.to_string_lossy(), value.to_string_lossy());
    }
    let mut fixture = setup.start()?;
    let address = fixture.address("http")?;
    let crashed = fixture.incumbent_pid()?;

    let told: BTreeMap<u32, Told> = thread::scope(|scope| {
        let write = |client| {
            (
                client,
                scope.spawn({
                    let acks = acks.path();
                    move || write_all_sorts(address, client, acks)
                }),
            )
        };
        let clients: Vec<_> = (0..CLIENTS).map(write).collect();
        let joined =
            clients.into_iter().map(|(client, thread)| Ok((client, thread.join().map_err(|_| "a client panicked")??)));
        joined.collect::<Result<_, Box<dyn std::error::Error>>>()
    })?;
    check(crash.has_fired()?, format!("{at} was crossed\n{}", fixture.log()))?;

    // Whoever connects now waits in the backlog until the store is recovered.
    Client::connect(address)?.ask("INC late")?;
    fixture.wait_until("another process serves", |status| {
        status["incumbent"]["pid"].as_u64().is_some_and(|pid| pid != u64::from(crashed))
    })?;
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.committed(), format!("{at}: {upgrade:?}\n{}", fixture.log()))?;
    Client::connect(address)?.ask("INC late")?;
    check(fixture.stop()?.success(), fixture.log())?;

    let found = fixture.verify_disk(acks.path())?;
    check(found.problems().is_empty(), format!("{at}: {:?}", found.problems()))?;
    let state = Store::look(fixture.data_dir())?;
    check(state == Store::replay(fixture.data_dir())?, format!("{at}: the store is not its log"))?;
    check(state.get("late") == 2, format!("{at}: late {}", state.get("late")))?;
    check_told(&state, &told)
}

/// What was acknowledged is there, and at most one write more of each client.
fn check_told(state: &State, told: &BTreeMap<u32, Told>) -> Outcome {
    let pins = state.collections.get("pins").cloned().unwrap_or_default();
    let items = told.values().map(|told| told.items.len() as u64).sum::<u64>();
    check(told.values().flat_map(|told| &told.items).all(|item| pins.contains(*item)), "an item is lost")?;
    check(pins.len() <= items + u64::from(CLIENTS), format!("{items} items acknowledged, {} found", pins.len()))?;
    for (client, told) in told {
        let edges = state.neighbours.get(&format!("hub-{client}")).cloned().unwrap_or_default();
        let weight: u64 = edges.iter().map(|edge| edge.weight).sum();
        let few = told.pairs < NEIGHBOURS_MAX as u64; // nothing was evicted yet
        check(
            !few || (told.pairs..=told.pairs + 1).contains(&weight),
            format!("{} pairs, {weight} found", told.pairs),
        )?;
        check(few || edges.iter().count() == NEIGHBOURS_MAX, "edges up to the bound")?;
    }
    let events: u64 = state.cohorts.values().map(|cohort| cohort.events).sum();
    let counts: u64 = state.signals.values().map(|signal| signal.count).sum();
    check(events == counts, format!("{counts} events, {events} in cohorts"))
}
