//! What a handover costs as things grow: listeners, shards, connections, the log, the number of handovers. Of this library
//! alone, by a daemon that does nothing itself, so that what grows is the handover and not the daemon.
//!
//! The pause here is the supervisor's: from the order to drain to the successor that serves.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use handoff_runtime::{
    DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
    SealContext, SealReport, StateSnapshot, detect_role,
};
use serde_json::{Value, json};

use super::AnyError;
use super::args::Args;
use super::service::{Ordered, wait_until_gone};
use super::sides;
use super::stats::Summary;
use crate::fixture::Setup;
use crate::store::Store;

pub(super) const ROLE: &str = "bench-empty";
const SHARDS: &str = "HANDOFF_BENCH_SHARDS";
const HELD: &str = "held";

const LISTENERS: [usize; 4] = [1, 10, 100, 1_000];
const SHARD_COUNTS: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
const CONNECTIONS: [usize; 5] = [0, 10, 100, 1_000, 9_000];
const WRITES: [usize; 4] = [0, 10_000, 100_000, 1_000_000];
const HANDOVERS: [usize; 4] = [1, 10, 100, 1_000];
/// Written behind a checkpoint.
const WRITES_SINCE: usize = 1_000;
const KEYS: usize = 1_000;
/// How often a store of each size is opened.
const OPENS: usize = 9;

/// One curve: what grows, and for each size the figures.
#[derive(Debug)]
struct Curve {
    title: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<(usize, Vec<f64>)>,
}

/// All curves, measured in `dir`.
///
/// # Errors
/// A service can't be started or handed over, or the disk refuses.
pub(super) fn measure(dir: &Path, args: &Args) -> io::Result<Growth> {
    fs::create_dir_all(dir)?;
    let room = tempfile::Builder::new().prefix("growth-").tempdir_in(dir.canonicalize()?)?;
    let (room, handovers) = (room.path(), args.handovers);
    let few = |sizes: &[usize]| sizes.iter().copied().filter(|size| *size <= args.sizes_up_to).collect::<Vec<_>>();
    let curves = vec![
        handovers_by("listeners", &few(&LISTENERS), |count| over_listeners(room, count, handovers))?,
        handovers_by("shards", &few(&SHARD_COUNTS), |count| over_shards(room, count, handovers))?,
        handovers_by("open connections", &few(&CONNECTIONS), |count| over_connections(room, count, handovers))?,
        over_writes(room, &few(&WRITES))?,
        over_handovers(room, &few(&HANDOVERS))?,
    ];
    Ok(Growth { curves })
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Growth {
    curves: Vec<Curve>,
}

impl Growth {
    pub(super) fn to_json(&self) -> Value {
        let curves = self.curves.iter().map(|curve| {
            let rows: Vec<Value> = curve.rows.iter().map(|(size, figures)| json!([size, figures])).collect();
            (curve.title.to_owned(), json!({ "columns": curve.columns, "rows": rows }))
        });
        Value::Object(curves.collect())
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        for curve in &self.curves {
            let _ = write!(out, "\n{:<18}", curve.title);
            out.extend(curve.columns.iter().map(|column| format!("{column:>24}")));
            out.push('\n');
            for (size, figures) in &curve.rows {
                let _ = write!(out, "{size:<18}");
                out.extend(figures.iter().map(|figure| format!("{figure:>24.0}")));
                out.push('\n');
            }
        }
        out
    }
}

/// A service of the daemon that does nothing, kept until it is dropped.
struct Empty {
    handoff: Ordered,
}

/// What the handovers at one point came to, in microseconds: the medians of the whole call, the pause and the start.
struct Point {
    call: f64,
    pause: f64,
    start: f64,
}

impl Empty {
    fn start(setup: Setup) -> io::Result<Self> {
        Ok(Self { handoff: Ordered::connect(setup.start()?)? })
    }

    fn setup(room: &Path) -> io::Result<Setup> {
        Ok(Setup::role(ROLE)?.within(room))
    }

    /// `between` comes ahead of each handover, and is not measured.
    fn hand_over(&mut self, times: u32, mut between: impl FnMut() -> io::Result<()>) -> io::Result<Point> {
        let (mut call, mut pause, mut start) = (Vec::new(), Vec::new(), Vec::new());
        let mut old = self.handoff.fixture.incumbent_pid()?;
        // The first one warms up.
        for number in 0..=times {
            between()?;
            let handover = self.handoff.hand_over()?;
            wait_until_gone(std::mem::replace(&mut old, handover.answer.pid))?;
            if number > 0 {
                let part = |name| handover.answer.phases.get(name).copied().unwrap_or_default();
                call.push(sides::us(handover.answered - handover.ordered));
                pause.push(part("drain") + part("seal") + part("begin"));
                start.push(part("start"));
            }
        }
        let median = |samples: &[f64]| Summary::of(samples).p50;
        Ok(Point { call: median(&call), pause: median(&pause), start: median(&start) })
    }
}

fn handovers_by(
    title: &'static str,
    sizes: &[usize],
    mut point: impl FnMut(usize) -> io::Result<Point>,
) -> io::Result<Curve> {
    let mut rows = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let Point { call, pause, start } = point(size)?;
        rows.push((size, vec![call, pause, start]));
    }
    Ok(Curve { title, columns: vec!["call, us", "pause, us", "of the call: start, us"], rows })
}

fn over_listeners(room: &Path, count: usize, handovers: u32) -> io::Result<Point> {
    let names = (0..count).map(|number| format!("listener-{number}"));
    let setup = names.fold(Empty::setup(room)?, |setup, name| setup.listener(name, "127.0.0.1:0"));
    Empty::start(setup)?.hand_over(handovers, || Ok(()))
}

fn over_shards(room: &Path, count: usize, handovers: u32) -> io::Result<Point> {
    Empty::start(Empty::setup(room)?.env(SHARDS, count.to_string()))?.hand_over(handovers, || Ok(()))
}

/// The connections are made anew before each handover: they are the old process's, and end with it.
fn over_connections(room: &Path, count: usize, handovers: u32) -> io::Result<Point> {
    let path = room.join(format!("{HELD}-{count}"));
    let mut empty = Empty::start(Empty::setup(room)?.listener(HELD, format!("unix:{}", path.display())))?;
    let mut connections = Vec::with_capacity(count);
    empty.hand_over(handovers, || {
        connections.clear();
        for _ in 0..count {
            connections.push(UnixStream::connect(&path)?);
        }
        // Accepted in order: when the last one is answered, all of them are held.
        connections.last_mut().map_or(Ok(()), |last| last.read_exact(&mut [0]))
    })
}

/// How long the store takes to open: after a crash, after a crash behind a checkpoint, and after a seal.
fn over_writes(room: &Path, sizes: &[usize]) -> io::Result<Curve> {
    let mut rows = Vec::with_capacity(sizes.len());
    for &writes in sizes {
        let point = opened(&room.join(format!("writes-{writes}")), writes)
            .map_err(|error| io::Error::other(error.to_string()))?;
        rows.push((writes, point));
    }
    let columns = vec!["log, bytes", "open after a crash, us", "with a checkpoint, us", "after a seal, us"];
    Ok(Curve { title: "writes in the log", columns, rows })
}

fn opened(dir: &Path, writes: usize) -> Result<Vec<f64>, AnyError> {
    let store = Store::open(dir, 1)?;
    fill(&store, writes)?;
    drop(store); // as a crash does
    let bytes = fs::metadata(dir.join(crate::store::LOG_NAME))?.len() as f64;
    let replayed = median_open(dir, End::Crash)?;
    let store = Store::open(dir, 1)?;
    store.checkpoint()?;
    fill(&store, WRITES_SINCE)?;
    drop(store);
    let since_checkpoint = median_open(dir, End::Crash)?;
    Store::open(dir, 1)?.seal()?;
    Ok(vec![bytes, replayed, since_checkpoint, median_open(dir, End::Seal)?])
}

fn fill(store: &Store, writes: usize) -> Result<(), AnyError> {
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key-{key}")).collect();
    for some in (0..writes).collect::<Vec<_>>().chunks(10_000) {
        store.increment_all(some.iter().map(|number| keys[number % KEYS].as_str()))?;
    }
    Ok(())
}

/// How a store is left.
#[derive(Clone, Copy)]
enum End {
    Crash,
    Seal,
}

fn median_open(dir: &Path, end: End) -> Result<f64, AnyError> {
    let mut samples = Vec::with_capacity(OPENS);
    for _ in 0..OPENS {
        let start = Instant::now();
        let store = Store::open(dir, 1)?;
        samples.push(sides::us(start.elapsed()));
        match end {
            End::Crash => drop(store),
            End::Seal => drop(store.seal()?),
        }
    }
    Ok(Summary::of(&samples).p50)
}

/// The supervisor's resident memory after so many handovers.
fn over_handovers(room: &Path, sizes: &[usize]) -> io::Result<Curve> {
    let mut empty = Empty::start(Empty::setup(room)?)?;
    let mut rows = Vec::with_capacity(sizes.len());
    let mut done = 0;
    for &total in sizes {
        let missing = total - done;
        if missing > 0 {
            // `hand_over` warms up with one more.
            empty.hand_over(missing as u32 - 1, || Ok(()))?;
            done = total;
        }
        rows.push((total, vec![resident_kib(empty.handoff.fixture.supervisor_pid())?]));
    }
    Ok(Curve { title: "handovers", columns: vec!["supervisor, KiB"], rows })
}

fn resident_kib(pid: u32) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.ok_or_else(|| io::Error::other("the supervisor shows no memory"))
}

/// The daemon that does nothing: it holds the connections of one listener, and reports so many shards.
pub(super) fn serve() -> Result<(), AnyError> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set"));
    let (data_dir, control_socket) = (path("HANDOFF_DATA_DIR")?, path("HANDOFF_CONTROL_SOCKET")?);
    let shards = std::env::var(SHARDS).ok().and_then(|shards| shards.parse().ok()).unwrap_or(1);
    let revisions: Vec<u64> = (0..shards).map(|shard| 1_000_000_000 + shard).collect();
    let (held, incumbent) = match detect_role()? {
        Role::ColdStart { mut inherited } => {
            let lock = DataDirLock::acquire(&data_dir)?;
            (inherited.take_unix(HELD), Incumbent::bind_cold_start(&control_socket, lock)?)
        }
        Role::Successor(successor) => {
            let mut successor = successor.handshake(Vec::new())?;
            successor.prepare(&data_dir, &control_socket)?;
            let mut begun = successor.wait_for_begin()?;
            let held = begun.take_unix_listener(HELD);
            let lock = begun.lock(&data_dir)?;
            let ready = ReadinessSnapshot {
                healthz_ok: true,
                advertised_revision_per_shard: revisions.clone(),
                ..ReadinessSnapshot::default()
            };
            (held, begun.announce_and_bind(ready, &control_socket, lock)?)
        }
    };
    if let Some(listener) = held {
        thread::spawn(move || hold(&listener));
    }
    incumbent.serve(Empties { revisions })?;
    Ok(())
}

/// Until the process ends.
fn hold(listener: &UnixListener) {
    let mut held = Vec::new();
    for connection in listener.incoming() {
        match connection {
            Ok(connection) if (&connection).write_all(b".").is_ok() => held.push(connection),
            _ => return,
        }
    }
}

struct Empties {
    revisions: Vec<u64>,
}

impl Drainable for Empties {
    fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport { last_revision_per_shard: self.revisions.clone(), ..SealReport::default() })
    }

    fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}
