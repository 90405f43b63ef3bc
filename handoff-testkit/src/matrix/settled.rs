//! When a service has settled, and what it looks like then: who serves, which files are there, how many descriptors are open.
//! Looks only; the fixture is somebody else's to move.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use handoff_lock::LeaseState;

use super::client::Writer;
use super::{Matrix, scene};
use crate::fixture::Fixture;
use crate::leaks::descriptor_count;

/// How long anything is waited for. No bound of the table: a row that takes longer has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Three writes in a row that take longer are looked for again.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

/// Files and descriptors of a service at rest, in which a handover was the last thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Names below the state and the data directory, with every number in them written as `#`.
    files: BTreeSet<String>,
    supervisor_fds: usize,
    daemon_fds: usize,
}

impl Footprint {
    pub(super) fn of(fixture: &Fixture, daemon: u32) -> io::Result<Self> {
        let mut files = BTreeSet::new();
        list(&fixture.state_dir(), "state", &mut files)?;
        list(fixture.data_dir(), "data", &mut files)?;
        let supervisor_fds = descriptor_count(fixture.supervisor_pid())?;
        Ok(Self { files, supervisor_fds, daemon_fds: descriptor_count(daemon)? })
    }
}

/// What a service looks like to which nothing happened but handovers.
#[derive(Debug)]
pub(super) struct Control {
    files: BTreeSet<String>,
    supervisor_fds_max: usize,
    daemon_fds_max: usize,
}

impl Control {
    /// Hands over twice, and looks after each.
    pub(super) fn observe(matrix: &Matrix<'_>) -> io::Result<Self> {
        let mut fixture = scene::setup(matrix.subject)?.start()?;
        let address = fixture.address(matrix.subject.listener())?;
        let writer = Writer::default();
        std::thread::scope(|scope| {
            scope.spawn(|| writer.run(matrix.subject, address, 1..));
            let footprints = [(); 2].map(|()| {
                let upgrade = fixture.upgrade(&[])?;
                if !upgrade.committed() {
                    return Err(io::Error::other(format!("{upgrade:?}\n{}", fixture.log())));
                }
                let daemon = wait_until_settled(&mut fixture, &writer)?;
                Footprint::of(&fixture, daemon)
            });
            writer.stop();
            let [first, second] = footprints;
            let (first, second) = (first?, second?);
            Ok(Self {
                files: &first.files | &second.files,
                supervisor_fds_max: first.supervisor_fds.max(second.supervisor_fds),
                daemon_fds_max: first.daemon_fds.max(second.daemon_fds),
            })
        })
    }

    /// What there is more of than there should be.
    pub(super) fn leaks(&self, found: &Footprint) -> Vec<String> {
        let files = found.files.difference(&self.files).map(|file| format!("stray file: {file}"));
        let more = |whose, found: usize, max: usize| {
            (found > max).then(|| format!("{whose} has {found} descriptors open; {max} without any fault"))
        };
        let descriptors = [
            more("the supervisor", found.supervisor_fds, self.supervisor_fds_max),
            more("the daemon", found.daemon_fds, self.daemon_fds_max),
        ];
        files.chain(descriptors.into_iter().flatten()).collect()
    }
}

/// Waits until the supervisor says that a daemon serves and nothing is under way, the lease says the same, nobody else is
/// left, and it has acknowledged writes. Gives the daemon's pid.
pub(super) fn wait_until_settled(fixture: &mut Fixture, writer: &Writer) -> io::Result<u32> {
    let supervisor = fixture.supervisor_pid();
    until("all has settled", || {
        let Ok(status) = fixture.status() else { return Ok(Err("nobody answers on the admin socket".to_owned())) };
        let serving = status["incumbent"]["pid"].as_u64().filter(|_| status["handover"].is_null());
        let settled = serving_alone(fixture, &[supervisor], writer);
        Ok(settled.and_then(|pid| if serving == Some(u64::from(pid)) { Ok(pid) } else { Err(status.to_string()) }))
    })
}

/// The same without a supervisor that could say anything: but for `bystanders`, the process that the lease names is alone.
pub(super) fn wait_until_settled_alone(fixture: &Fixture, bystanders: &[u32], writer: &Writer) -> io::Result<u32> {
    until("the others have settled it between themselves", || Ok(serving_alone(fixture, bystanders, writer)))
}

/// Waits until the process that the lease names has acknowledged writes, whoever else is there.
pub(super) fn wait_until_served(fixture: &Fixture, writer: &Writer) -> io::Result<u32> {
    until("somebody serves", || Ok(serving(fixture, writer)))
}

fn serving_alone(fixture: &Fixture, bystanders: &[u32], writer: &Writer) -> Result<u32, String> {
    let pid = serving(fixture, writer)?;
    let others: Vec<_> =
        fixture.processes().into_iter().filter(|other| *other != pid && !bystanders.contains(other)).collect();
    if others.is_empty() { Ok(pid) } else { Err(format!("{pid} serves, and {others:?} are there too")) }
}

/// A frozen process has a lease too: what counts is that writes are acknowledged while it stands in the same name.
fn serving(fixture: &Fixture, writer: &Writer) -> Result<u32, String> {
    let before = owner(fixture).ok_or("nobody's lease is Active")?;
    if !writer.wait_for(3, ACKNOWLEDGED_WITHIN) {
        return Err(format!("the lease names {before}, which acknowledges nothing"));
    }
    if owner(fixture) == Some(before) { Ok(before) } else { Err("the lease changes hands".to_owned()) }
}

/// The process that may write, by the lease.
fn owner(fixture: &Fixture) -> Option<u32> {
    let lease = handoff_lock::read_lease(fixture.data_dir()).ok()??;
    (lease.state == LeaseState::Active).then_some(lease.owner.pid)
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

fn list(dir: &Path, prefix: &str, names: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}/{}", without_numbers(&entry.file_name().to_string_lossy()));
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &name, names)?;
        } else {
            names.insert(name);
        }
    }
    Ok(())
}

/// Names with a pid in them are the same file of different processes.
fn without_numbers(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for char in name.chars() {
        if !char.is_ascii_digit() {
            text.push(char);
        } else if !text.ends_with('#') {
            text.push('#');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_without_a_fault_is_a_leak() {
        let control =
            Control { files: BTreeSet::from(["state/journal".into()]), supervisor_fds_max: 9, daemon_fds_max: 7 };
        let found = |files: &[&str], supervisor_fds, daemon_fds| {
            let files = files.iter().map(|file| (*file).to_owned()).collect();
            control.leaks(&Footprint { files, supervisor_fds, daemon_fds })
        };
        assert!(found(&["state/journal"], 9, 7).is_empty());
        assert_eq!(found(&["state/journal", "data/.tmp"], 9, 7), ["stray file: data/.tmp"]);
        assert_eq!(found(&[], 10, 8).len(), 2);
    }

    #[test]
    fn a_pid_in_a_name_is_any_pid() {
        assert_eq!(without_numbers(".control.sock.1234"), ".control.sock.#");
        assert_eq!(without_numbers("journal"), "journal");
    }
}
