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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
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
