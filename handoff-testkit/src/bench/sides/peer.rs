//! `beyond-handoff` 0.1.4, with the reference daemon on it, as its own pages say that it is used. Where it leaves a choice, the
//! quicker one is taken: the daemon starts its threads before it greets, because this library has no step for warming up.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use handoff::metrics::events;
use tracing::span;

use super::{Answer, AnyError, EPOCH, Greeting, PATIENCE};
use crate::mock::connect_with_retry;
use crate::store::hooks::Daemon;

pub(in crate::bench) const SUPERVISOR: &str = "bench-peer-supervisor";
pub(in crate::bench) const DAEMON: &str = "bench-peer-daemon";
const LISTENER: &str = "http";

fn control_socket() -> Result<PathBuf, AnyError> {
    Ok(super::home()?.join("control.sock"))
}

/// The supervisor's `main`.
pub(in crate::bench) fn supervise() -> Result<(), AnyError> {
    let moments = Moments::default();
    tracing::subscriber::set_global_default(moments.clone())?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut current = cold_start(&listener)?;
    let supervisor = handoff::Supervisor::new(&control_socket()?)?
        .with_listener(LISTENER, listener.as_raw_fd())
        .with_journal(super::home()?.join("journal").join("state.bin"));
    let greeting = Greeting { address: listener.local_addr()?, pid: current.id() };
    let mut leaving: Option<Child> = None;
    let ended = super::obey(&greeting, || {
        // Gone since the order before this one.
        if let Some(mut old) = leaving.take() {
            old.wait()?;
        }
        let (new, answer) = hand_over(&supervisor, &moments)?;
        leaving = Some(std::mem::replace(&mut current, new));
        Ok(answer)
    });
    current.kill()?;
    current.wait()?;
    ended
}

fn cold_start(listener: &TcpListener) -> Result<Child, AnyError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(crate::ROLE_VARIABLE, DAEMON);
    handoff::pass_listener_fds_on_spawn(&mut command, &[(LISTENER.to_owned(), listener.as_raw_fd())], None);
    let child = command.spawn()?;
    connect_with_retry(&control_socket()?);
    Ok(child)
}

fn hand_over(supervisor: &handoff::Supervisor, moments: &Moments) -> Result<(Child, Answer), AnyError> {
    let mut spec = handoff::SpawnSpec::new(std::env::current_exe()?);
    spec.env = vec![(crate::ROLE_VARIABLE.to_owned(), DAEMON.to_owned())];
    let start = Instant::now();
    moments.clear();
    let outcome = supervisor.perform_handoff(spec)?;
    let end = Instant::now();
    let child = outcome.child.ok_or_else(|| format!("not committed: {:?}", outcome.abort_reason))?;
    let at = |event| moments.of(event).unwrap_or(start);
    let (prepare, drained) = (at(events::PREPARE), at(events::DRAINED));
    let (sealed, ready) = (at(events::SEAL_COMPLETE), at(events::READY));
    let between = |from: Instant, to: Instant| super::us(to.saturating_duration_since(from));
    let phases = [
        ("start", between(start, prepare)),
        ("drain", between(prepare, drained)),
        ("seal", between(drained, sealed)),
        ("begin", between(sealed, ready)),
        ("after", between(ready, end)),
    ];
    let answer = Answer { pid: child.id(), perform: between(start, end), phases: super::named(&phases) };
    Ok((child, answer))
}

/// When the library's events came: it tells its phases in no other way.
#[derive(Debug, Clone, Default)]
struct Moments {
    seen: Arc<Mutex<Vec<(&'static str, Instant)>>>,
}

impl Moments {
    fn clear(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn of(&self, event: &str) -> Option<Instant> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().find(|(name, _)| *name == event).map(|(_, at)| *at)
    }
}

impl tracing::Subscriber for Moments {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("handoff.")
    }
    fn event(&self, event: &tracing::Event<'_>) {
        let seen = (event.metadata().target(), Instant::now());
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The daemon's `main`.
pub(in crate::bench) fn serve() -> Result<(), AnyError> {
    let control_socket = control_socket()?;
    let data_dir = super::data_dir()?;
    let (daemon, listener, incumbent) = match handoff::detect_role()? {
        handoff::Role::ColdStart { mut inherited } => {
            let listener = inherited.take(LISTENER).ok_or("no listener was passed in")?;
            let daemon = super::warm_daemon()?;
            let lock = handoff::DataDirLock::acquire_or_break_stale(&data_dir)?;
            daemon.open(EPOCH)?;
            (daemon, listener, handoff::Incumbent::bind_cold_start(&control_socket, lock)?)
        }
        handoff::Role::Successor(successor) => {
            let daemon = super::warm_daemon()?;
            let mut begun = successor.handshake(b"bench".to_vec())?.wait_for_begin()?;
            let listener = begun.take_listener(LISTENER).ok_or("no listener was passed on")?;
            let lock = handoff::DataDirLock::acquire(&data_dir)?;
            let contents = daemon.open(EPOCH)?;
            let readiness = handoff::ReadinessSnapshot {
                listening_on: vec![listener.local_addr()?.to_string()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![contents.last_sequence],
            };
            (daemon, listener, begun.announce_and_bind(readiness, &control_socket, lock)?)
        }
    };
    daemon.listen(vec![listener])?;
    incumbent.serve(Hooks(daemon.clone()))?;
    daemon.leave(PATIENCE);
    Ok(())
}

struct Hooks(Daemon);

impl handoff::Drainable for Hooks {
    fn drain(&self, deadline: Instant) -> handoff::Result<handoff::DrainReport> {
        super::drain(&self.0, deadline).map_err(handoff::Error::Protocol)?;
        Ok(handoff::DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self) -> handoff::Result<handoff::SealReport> {
        let sealed = super::seal(&self.0).map_err(handoff::Error::Protocol)?;
        Ok(handoff::SealReport {
            last_revision_per_shard: sealed.last_revision_per_shard,
            data_dir_fingerprint: sealed.data_dir_fingerprint,
        })
    }

    fn resume_after_abort(&self) -> handoff::Result<()> {
        Err(handoff::Error::Protocol("the measurement aborts nothing".to_owned()))
    }

    fn snapshot_state(&self) -> handoff::StateSnapshot {
        handoff::StateSnapshot::default()
    }
}
