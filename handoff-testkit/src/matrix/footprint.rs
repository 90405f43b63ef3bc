//! What a service has in its hands at rest: files, and each process's descriptors, threads, memory maps and children. More of it
//! than without a fault is a leak.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::fixture::Fixture;
use crate::leaks::Resources;

/// Libraries map memory for themselves as they go, such as an arena for a thread that allocates. A mapping leaked at each handover is
/// found in a series.
const MAPS_MORE: usize = 12;

/// Files and resources of a service at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Names below the state and the data directory, with every number in them written as `#`.
    files: BTreeSet<String>,
    supervisor: Resources,
    daemon: Resources,
}

impl Footprint {
    pub(super) fn of(fixture: &Fixture, daemon: u32) -> io::Result<Self> {
        let mut files = BTreeSet::new();
        list(&fixture.state_dir(), "state", &mut files)?;
        list(fixture.data_dir(), "data", &mut files)?;
        Ok(Self { files, supervisor: Resources::of(fixture.supervisor_pid())?, daemon: Resources::of(daemon)? })
    }

    /// The most of each.
    pub(super) fn max(&self, other: &Self) -> Self {
        Self {
            files: &self.files | &other.files,
            supervisor: self.supervisor.max(other.supervisor),
            daemon: self.daemon.max(other.daemon),
        }
    }

    /// What there is more of than there should be; a line each.
    pub(super) fn leaks(&self, found: &Self) -> Vec<String> {
        let files = found.files.difference(&self.files).map(|file| format!("stray file: {file}"));
        let supervisor = more("the supervisor", self.supervisor, found.supervisor, MAPS_MORE);
        let daemon = more("the daemon", self.daemon, found.daemon, MAPS_MORE);
        files.chain(supervisor).chain(daemon).collect()
    }

    /// The same for a service to which nothing should have been added at all since then.
    pub(super) fn growth(&self, found: &Self) -> Vec<String> {
        let supervisor = more("the supervisor", self.supervisor, found.supervisor, 0);
        let daemon = more("the daemon", self.daemon, found.daemon, 0);
        supervisor.into_iter().chain(daemon).collect()
    }
}

fn more(whose: &str, expected: Resources, found: Resources, maps_more: usize) -> Vec<String> {
    let kinds = [
        ("descriptors", expected.descriptors, found.descriptors),
        ("threads", expected.threads, found.threads),
        ("memory maps", expected.maps + maps_more, found.maps),
        ("children", expected.children, found.children),
    ];
    let more = kinds.into_iter().filter(|(_, expected, found)| found > expected);
    more.map(|(what, expected, found)| format!("{whose} has {found} {what}; at most {expected} without any fault"))
        .collect()
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

    const RESOURCES: Resources = Resources { descriptors: 9, threads: 3, maps: 50, children: 1 };

    fn footprint(files: &[&str], supervisor: Resources, daemon: Resources) -> Footprint {
        Footprint { files: files.iter().map(|file| (*file).to_owned()).collect(), supervisor, daemon }
    }

    #[test]
    fn what_is_more_than_without_a_fault_is_a_leak() {
        let control = footprint(&["state/journal"], RESOURCES, RESOURCES);
        assert!(control.leaks(&control).is_empty());
        let stray = footprint(&["state/journal", "data/.tmp"], RESOURCES, RESOURCES);
        assert_eq!(control.leaks(&stray), ["stray file: data/.tmp"]);
        let grown = [
            Resources { descriptors: 10, ..RESOURCES },
            Resources { threads: 4, ..RESOURCES },
            Resources { maps: 51 + MAPS_MORE, ..RESOURCES },
            Resources { children: 2, ..RESOURCES },
        ];
        for grown in grown {
            assert_eq!(control.leaks(&footprint(&[], grown, RESOURCES)).len(), 1, "{grown:?}");
            assert_eq!(control.leaks(&footprint(&[], RESOURCES, grown)).len(), 1, "{grown:?}");
        }
        let one_map = footprint(&[], RESOURCES, Resources { maps: 51, ..RESOURCES });
        assert!(control.leaks(&one_map).is_empty());
        assert_eq!(control.growth(&one_map).len(), 1);
    }

    #[test]
    fn a_pid_in_a_name_is_any_pid() {
        assert_eq!(without_numbers(".control.sock.1234"), ".control.sock.#");
        assert_eq!(without_numbers("journal"), "journal");
    }
}
