//! What `/proc` shows of a process: its line in `stat`, and whether its threads are stopped (proc_pid_stat(5)).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use rustix::io::Errno;

use super::answers::{Call, Meaning, meaning};
use crate::sys::spawn::STAT_BYTES_MAX;

/// Where a process comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descent {
    pub(super) parent: u32,
    /// Clock ticks after boot.
    pub(super) start_time: u64,
}

impl Descent {
    /// That of the process that has this pid now, as far as it is to be seen. `None`: it is dead, or hidden from us.
    ///
    /// # Errors
    /// The system's own trouble, such as no descriptor left.
    pub(super) fn of(pid: u32) -> io::Result<Option<Self>> {
        match read_stat(Path::new(&format!("/proc/{pid}/stat"))) {
            Ok(stat) => Self::parse(stat.as_bytes()).map(Some),
            Err(error) if is_unseen(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fields 4 and 22 of such a line.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn parse(stat: &[u8]) -> io::Result<Self> {
        let parsed = fields_behind_name(stat).and_then(|mut fields| {
            let parent = u32::try_from(number(fields.nth(1)?)?).ok()?;
            Some(Self { parent, start_time: number(fields.nth(17)?)? })
        });
        parsed.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "/proc/PID/stat has no start time"))
    }
}

/// Whether every thread of a process is stopped or dead. `None`: it is dead, or hidden from us.
///
/// # Errors
/// As [`Descent::of`].
pub(super) fn every_thread_is_stopped(pid: u32) -> io::Result<Option<bool>> {
    let threads = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads,
        Err(error) if is_unseen(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut is_unseen_in_part = false;
    for thread in threads {
        let stat = match thread.and_then(|thread| read_stat(&thread.path().join("stat"))) {
            Ok(stat) => stat,
            Err(error) if is_unseen(&error) => {
                is_unseen_in_part = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        let state = fields_behind_name(stat.as_bytes()).and_then(|mut fields| fields.next());
        if !matches!(state, Some(b"T" | b"t" | b"Z" | b"X" | b"x")) {
            return Ok(Some(false));
        }
    }
    // That thread has ended; or the process has hidden itself meanwhile, and then nothing is known of it.
    Ok((!is_unseen_in_part || Descent::of(pid)?.is_some()).then_some(true))
}

/// Whether this says that a process is dead or hidden, and not that `/proc` could not be read.
fn is_unseen(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| meaning(Call::ReadProc, errno) == Meaning::Unseen)
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// One read: the kernel makes the line at the first one, and it is never as long as this.
fn read_stat(path: &Path) -> io::Result<Stat> {
    let mut stat = Stat { line: [0; STAT_BYTES_MAX], bytes: 0 };
    let mut file = File::open(path)?;
    stat.bytes = loop {
        match file.read(&mut stat.line) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    Ok(stat)
}

struct Stat {
    line: [u8; STAT_BYTES_MAX],
    bytes: usize,
}

impl Stat {
    fn as_bytes(&self) -> &[u8] {
        &self.line[..self.bytes]
    }
}

/// The fields from the third on. The second, the name, may hold anything, parentheses and spaces too.
fn fields_behind_name(stat: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    Some(stat[end + 1..].split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let stat = b"17 (a) T 4 (b)) S 1 2 3\n";
        let fields: Vec<_> = fields_behind_name(stat).unwrap().collect();
        assert_eq!(fields, [b"S", b"1", b"2", b"3"]);
        assert!(fields_behind_name(b"garbage").is_none());
        assert!(Descent::parse(stat).is_err());
    }

    #[test]
    fn the_own_line_is_understood() {
        let own = Descent::of(std::process::id()).unwrap().unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(own.start_time > 0);
        assert_eq!(Descent::of(1 << 22).unwrap(), None);
    }
}
