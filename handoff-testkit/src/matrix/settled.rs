//! When a service has settled: who serves, alone, and acknowledges writes. Looks only; the fixture is somebody else's to move.

use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

use handoff_lock::{Lease, LeaseState};

use crate::fixture::Fixture;
use crate::load::Load;

/// How long anything is waited for. No bound of the table: a row that takes longer has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Three writes in a row that take longer are looked for again.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

/// Who serves, if all has settled: the supervisor says that a daemon serves and nothing is under way, the lease says the same, nobody
/// else is left, and it has acknowledged writes. The error says what is not so yet.
pub(super) fn settled(fixture: &Fixture, load: &Load) -> Result<u32, String> {
    let Ok(status) = fixture.status() else { return Err("nobody answers on the admin socket".to_owned()) };
    let serving = status["incumbent"]["pid"].as_u64().filter(|_| status["handover"].is_null());
    let pid = serving_alone(fixture, &[fixture.supervisor_pid()], load)?;
    if serving == Some(u64::from(pid)) { Ok(pid) } else { Err(status.to_string()) }
}

/// Waits for it.
pub(super) fn wait_until_settled(fixture: &Fixture, load: &Load) -> io::Result<u32> {
    until("all has settled", || Ok(settled(fixture, load)))
}

/// The same without a supervisor that could say anything: but for `bystanders`, the process that the lease names is alone.
pub(super) fn wait_until_settled_alone(fixture: &Fixture, bystanders: &[u32], load: &Load) -> io::Result<u32> {
    until("the others have settled it between themselves", || Ok(serving_alone(fixture, bystanders, load)))
}

/// Waits until the process that the lease names has acknowledged writes, whoever else is there.
pub(super) fn wait_until_served(fixture: &Fixture, load: &Load) -> io::Result<u32> {
    until("somebody serves", || Ok(serving(fixture, load)))
}

fn serving_alone(fixture: &Fixture, bystanders: &[u32], load: &Load) -> Result<u32, String> {
    let pid = serving(fixture, load)?;
    let others: Vec<_> =
        fixture.processes().into_iter().filter(|other| *other != pid && !bystanders.contains(other)).collect();
    if others.is_empty() { Ok(pid) } else { Err(format!("{pid} serves, and {others:?} are there too")) }
}

/// A frozen process has a lease too: what counts is that writes are acknowledged while it stands in the same name.
fn serving(fixture: &Fixture, load: &Load) -> Result<u32, String> {
    let before = owner(fixture).ok_or("nobody's lease is Active")?;
    if !load.wait_for_acks(3, ACKNOWLEDGED_WITHIN) {
        return Err(format!("the lease names {before}, which acknowledges nothing"));
    }
    if owner(fixture) == Some(before) { Ok(before) } else { Err("the lease changes hands".to_owned()) }
}

/// The process that may write, by the lease.
fn owner(fixture: &Fixture) -> Option<u32> {
    lease(fixture).filter(|lease| lease.state == LeaseState::Active).map(|lease| lease.owner.pid)
}

/// The lease of the service's data directory.
pub(super) fn lease(fixture: &Fixture) -> Option<Lease> {
    handoff_lock::read_lease(fixture.data_dir()).ok()?
}

/// Tries until it is so, with a bound.
pub(super) fn until<T, E: Debug>(what: &str, look: impl FnMut() -> io::Result<Result<T, E>>) -> io::Result<T> {
    until_within(PATIENCE, what, look)
}

/// The same with a bound of the caller's.
pub(super) fn until_within<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> io::Result<Result<T, E>>,
) -> io::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() > deadline => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what}: not in time: {seen:?}")));
            }
            // Nothing tells: processes, leases and markers are looked at from outside.
            Err(_) => std::thread::park_timeout(Duration::from_millis(10)),
        }
    }
}
