//! What a handover must not leave behind (promise 6): descriptors, processes, files. Looks, and never cleans up.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How many descriptors the process has open.
///
/// # Errors
/// There is no such process, or it is another user's.
pub fn descriptor_count(pid: u32) -> io::Result<usize> {
    // Our own count includes the one that is open to count.
    let own = usize::from(pid == std::process::id());
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() - own)
}

/// What the process's descriptors are, by their links in /proc/PID/fd (proc_pid_fd(5)), sorted.
///
/// # Errors
/// There is no such process, or it is another user's.
pub fn descriptors(pid: u32) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let mut links: Vec<_> =
        entries.filter_map(|entry| fs::read_link(entry.path()).ok()).map(|link| link.display().to_string()).collect();
    links.sort_unstable();
    Ok(links)
}

/// What a process has in its hands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Lines of its /proc/PID/maps (proc_pid_maps(5)).
    pub maps: usize,
    /// Children, those included that have ended and were not waited for.
    pub children: usize,
}

impl Resources {
    /// Of a living process.
    ///
    /// # Errors
    /// There is no such process, or it is another user's.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            descriptors: descriptor_count(pid)?,
            threads: fs::read_dir(format!("/proc/{pid}/task"))?.count(),
            maps: fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count(),
            children: children(pid)?,
        })
    }

    /// The most of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
            maps: self.maps.max(other.maps),
            children: self.children.max(other.children),
        }
    }
}

/// How many processes have this one as their parent (proc_pid_stat(5), field 4).
fn children(parent: u32) -> io::Result<usize> {
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.filter(|pid| stat_field(*pid, 1).and_then(|ppid| ppid.parse().ok()) == Some(parent)).count())
}

/// The living processes that have `dir` in their command line or environment, but for `known` and this one. With a
/// temporary directory of the test's own, these are the processes that the test has left behind.
///
/// # Errors
/// /proc can't be listed.
pub fn orphans(dir: &Path, known: &[u32]) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid != std::process::id() && !known.contains(&pid) && mentions(pid, dir) && is_alive(pid) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The files below `dir` whose names `expected` does not know.
///
/// # Errors
/// A directory can't be listed.
pub fn stray_files(dir: &Path, expected: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut strays = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if !entry.file_name().to_str().is_some_and(&expected) {
                strays.push(entry.path());
            }
        }
    }
    Ok(strays)
}

/// A process that can't be read has ended, or is another user's: none of the test's.
fn mentions(pid: u32, dir: &Path) -> bool {
    let needle = dir.as_os_str().as_bytes();
    ["cmdline", "environ"].iter().any(|file| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(needle.len().max(1)).any(|window| window == needle)
    })
}

/// Neither gone nor a zombie.
fn is_alive(pid: u32) -> bool {
    process_state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The process's state (proc_pid_stat(5)): `T` is stopped, `Z` a zombie. `None`: it is gone. It stands behind the name, which
/// may hold anything.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    stat_field(pid, 0)?.chars().next()
}

/// A field behind the process's name; the state is the first. `None`: the process is gone.
fn stat_field(pid: u32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(number).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Starts a child and waits until it has said something: from then on its environment is its own.
    fn speaking(command: &mut Command) -> Child {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it speaks");
        child
    }

    #[test]
    fn a_descriptor_more_is_counted() {
        // In a child of its own: other tests open and close descriptors in this process. Its shell opens none after `echo`.
        let child = |redirect: &str| {
            let mut child = speaking(Command::new("sh").args(["-c", &format!("exec {redirect}; echo; read _")]));
            let count = descriptor_count(child.id()).expect("alive");
            child.kill().expect("ours");
            child.wait().expect("ours");
            count
        };
        assert_eq!(child("7</dev/null") - child(""), 1);
        assert!(descriptor_count(0).is_err());
    }

    #[test]
    fn threads_maps_and_children_are_counted() {
        let mut shell = speaking(Command::new("sh").args(["-c", "echo; read _; sleep 1000 & echo; read _; kill $!"]));
        let before = Resources::of(shell.id()).expect("alive");
        assert_eq!((before.threads, before.children), (1, 0));
        assert!(before.maps > 0);
        shell.stdin.as_mut().expect("piped").write_all(b"\n").expect("told");
        shell.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it speaks");
        assert_eq!(Resources::of(shell.id()).expect("alive").children, 1);
        shell.stdin.as_mut().expect("piped").write_all(b"\n").expect("told");
        shell.wait().expect("ours");
        let own = Resources::of(std::process::id()).expect("alive");
        std::thread::scope(|scope| {
            let (stay, leave) = std::sync::mpsc::channel::<()>();
            let (tell, told) = std::sync::mpsc::channel();
            scope.spawn(move || (tell.send(Resources::of(std::process::id())), leave.recv().ok()));
            let with_one_more = told.recv().expect("told").expect("alive");
            assert!(with_one_more.threads > 1 && own.threads >= 1);
            drop(stay);
        });
    }

    #[test]
    fn a_process_left_behind_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(orphans(dir.path(), &[]).expect("listed").is_empty());
        let mut child = speaking(Command::new("sh").args(["-c", "echo; read _"]).env("SOMEWHERE", dir.path()));
        assert_eq!(orphans(dir.path(), &[]).expect("listed"), [child.id()]);
        assert!(orphans(dir.path(), &[child.id()]).expect("listed").is_empty());
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert!(orphans(dir.path(), &[]).expect("listed").is_empty());
    }

    #[test]
    fn a_stray_file_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("deeper")).expect("made");
        fs::write(dir.path().join("known"), "").expect("written");
        fs::write(dir.path().join("deeper/.tmp123"), "").expect("written");
        let strays = stray_files(dir.path(), |name| name == "known").expect("listed");
        assert_eq!(strays, [dir.path().join("deeper/.tmp123")]);
    }
}
