//! Linux's answers, from `/proc` and statfs(2). No `unsafe`.
//!
//! A lock is looked up by the kernel's own key for its inode (the file system's device and the inode number), which on btrfs
//! and overlayfs is not what stat(2) says; so it is read from `/proc/self/fdinfo` and `/proc/self/mountinfo`.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{OFlags, fstat, fstatfs, major, minor};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Carried, Takers};
use crate::filesystem::refused_by_magic;
use crate::flock::Access;

/// How a directory is opened only to look up names in it: no permission to read it is needed, open(2).
pub(crate) const TO_LOOK_UP: OFlags = OFlags::PATH;

/// The id of this boot of the machine.
///
/// # Errors
/// There is one, and it can't be read now.
pub(crate) fn boot_id() -> io::Result<Option<[u8; 16]>> {
    Ok(if_there("/proc/sys/kernel/random/boot_id")?.and_then(|text| parse_boot_id(&text)))
}

/// When a process started, in clock ticks after boot; `None` if there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    parse_stat(&read_lossy(&format!("/proc/{pid}/stat"))?).map(|stat| stat.start_time)
}

/// The same of the calling process, also where `/proc` is that of another pid namespace.
///
/// # Errors
/// It can't be read now.
pub(crate) fn start_time_of_self() -> io::Result<Option<u64>> {
    Ok(if_there("/proc/self/stat")?.and_then(|text| parse_stat(&text)).map(|stat| stat.start_time))
}

/// Whether this is the number of a thread, and of no process.
pub(crate) fn is_thread(id: Pid) -> bool {
    match pidfd_open(id, PidfdFlags::empty()) {
        Ok(_) => false,
        // Of a thread: INVAL up to Linux 6.15, NOENT since.
        Err(Errno::INVAL | Errno::NOENT) => true,
        // Before Linux 5.3 and in some sandboxes there is no such call, and sometimes no descriptor left.
        Err(_) => read_lossy(&format!("/proc/{id}/status")).is_some_and(|status| is_of_a_thread(&status, id)),
    }
}

/// From the text of `/proc/PID/status`, proc_pid_status(5), which is there for a thread's number too.
fn is_of_a_thread(status: &str, id: Pid) -> bool {
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process
        .and_then(|process| process.trim().parse().ok())
        .is_some_and(|process: i32| process != id.as_raw_nonzero().get())
}

/// Whether a process has ended and only waits for its parent: it holds no lock any more.
pub(crate) fn is_zombie(pid: u32) -> bool {
    let stat = read_lossy(&format!("/proc/{pid}/stat")).and_then(|stat| parse_stat(&stat));
    // The first thread of a process may have ended before the others; these still hold its descriptors.
    stat.is_some_and(|stat| matches!(stat.state, 'Z' | 'X') && stat.threads <= 1)
}

/// The command line of a process, or its short name (kernel threads, other users' where hidden).
pub(crate) fn command(pid: u32) -> Option<String> {
    let words = |text: String| text.replace('\0', " ");
    let cmdline = read_lossy(&format!("/proc/{pid}/cmdline")).map(words);
    let comm = || read_lossy(&format!("/proc/{pid}/comm"));
    cmdline.filter(|line| !line.trim().is_empty()).or_else(comm)
}

/// The name of the file system, if flock does not exclude other hosts there.
pub(crate) fn refused_filesystem(fd: impl AsFd) -> io::Result<Option<&'static str>> {
    // The field's type differs between architectures; the number has 32 bits on all.
    Ok(refused_by_magic(fstatfs(fd)?.f_type as u32))
}

/// Where an open directory is now.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

/// Whether this descriptor of the calling process has such a flock; `None` if the system does not tell. What it means that
/// its `/proc/PID/fdinfo` has no such line stands in proc_pid_fdinfo(5).
pub(crate) fn is_locked(fd: BorrowedFd<'_>, access: Access) -> Option<bool> {
    let info = read_lossy(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    Some(flocks_of(&info).any(|flock| flock.access == access))
}

/// Makes a file's bytes durable, fdatasync(2).
pub(crate) fn sync_bytes(fd: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::fdatasync(fd)
}

/// The two inodes of a lock, as the kernel's table of locks names them, and of which locks of them it tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LockTable {
    dir: Key,
    file: Option<Key>,
    access: Access,
}

impl LockTable {
    /// The table for the exclusive locks of these inodes; `None` where the system has none (no `/proc`).
    pub(crate) fn of(dir: BorrowedFd<'_>, file: Option<BorrowedFd<'_>>) -> Option<Self> {
        Some(Self { dir: key_of(dir)?, file: file.and_then(key_of), access: Access::Exclusive })
    }

    /// The table for the shared ones.
    pub(crate) fn of_shared(self) -> Self {
        Self { access: Access::Shared, ..self }
    }

    /// The pids that took a flock on one of the inodes. Such a process may be gone and its lock live on in a descriptor that
    /// a child inherited, or a peer was passed.
    pub(crate) fn takers(&self) -> Takers {
        // The kernel shows the table in pieces, and a lock freed between two of them can hide another one.
        let reads = (0..READS_MAX).map(|_| self.read_takers());
        reads.into_iter().find(|takers| !takers.dir.is_empty() || !takers.file.is_empty()).unwrap_or_default()
    }

    fn read_takers(&self) -> Takers {
        let table = read_in_large_pieces("/proc/locks").unwrap_or_default();
        let of = |wanted| {
            let flocks = table.lines().filter_map(parse_flock).filter(|flock| flock.access == self.access);
            flocks.filter(|flock| flock.pid != 0 && Some(flock.key) == wanted).map(|flock| flock.pid).collect()
        };
        Takers { dir: of(Some(self.dir)), file: of(self.file) }
    }

    /// Whether a lock whose taker is gone is missing in the table: it is in every pid namespace but the first.
    pub(crate) fn hides_dead_takers(&self) -> bool {
        const FIRST_NAMESPACE: &str = "pid:[4026531836]";
        fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() != FIRST_NAMESPACE)
    }

    /// Which of the locks the process's descriptors carry; `None` if its descriptors can't be seen.
    pub(crate) fn carried_by(&self, pid: u32) -> Option<Carried> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?;
        let mut carried = None;
        for descriptor in descriptors.flatten() {
            let Ok(info) = fs::read(descriptor.path()) else { continue };
            let carried = carried.get_or_insert_default();
            self.add_locks_in(&String::from_utf8_lossy(&info), carried);
            if carried.dir && carried.file {
                break;
            }
        }
        carried
    }

    fn add_locks_in(&self, info: &str, carried: &mut Carried) {
        for flock in flocks_of(info).filter(|flock| flock.access == self.access) {
            carried.dir |= flock.key == self.dir;
            carried.file |= Some(flock.key) == self.file;
        }
    }

    /// All processes with a descriptor that carries one of the locks. Looks at every process.
    pub(crate) fn carriers(&self) -> Vec<(u32, Carried)> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let carriers = pids.filter_map(|pid| Some((pid, self.carried_by(pid)?)));
        carriers.filter(|(_, carried)| carried.dir || carried.file).collect()
    }
}

const READS_MAX: u32 = 3;

/// Device (major, minor) and number of an inode.
type Key = (u32, u32, u64);

fn key_of(fd: BorrowedFd<'_>) -> Option<Key> {
    let stat = fstat(fd).ok()?;
    let info = read_lossy(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let field = |name| info.lines().find_map(|line: &str| line.strip_prefix(name))?.trim().parse::<u64>().ok();
    let device = field("mnt_id:").and_then(|id| device_of_mount(&read_lossy("/proc/self/mountinfo")?, id));
    let (major, minor) = device.unwrap_or((major(stat.st_dev), minor(stat.st_dev)));
    Some((major, minor, field("ino:").unwrap_or(stat.st_ino)))
}

/// The device of the mount with this id, in the text of `/proc/self/mountinfo`, proc_pid_mountinfo(5).
fn device_of_mount(mounts: &str, id: u64) -> Option<(u32, u32)> {
    let mut mounts = mounts.lines().map(|line| line.split_whitespace());
    let mut fields = mounts.find_map(|mut fields| (fields.next()?.parse() == Ok(id)).then_some(fields))?;
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A flock that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flock {
    access: Access,
    pid: u32,
    key: Key,
}

/// Those of a descriptor, from the text of its `/proc/PID/fdinfo`.
fn flocks_of(info: &str) -> impl Iterator<Item = Flock> {
    info.lines().filter_map(|line| line.strip_prefix("lock:")).filter_map(parse_flock)
}

/// From a line like `1: FLOCK  ADVISORY  WRITE 359 fe:00:11691 0 EOF`, proc_locks(5). A line of one who waits (`1: -> FLOCK …`) is
/// not of a holder.
fn parse_flock(line: &str) -> Option<Flock> {
    let mut fields = line.split_whitespace().skip(1);
    if fields.next()? != "FLOCK" {
        return None;
    }
    let access = match fields.nth(1)? {
        "READ" => Access::Shared,
        _ => Access::Exclusive,
    };
    // A pid of another pid namespace is shown as 0 or not at all.
    let pid = fields.next()?.parse::<i64>().ok()?.try_into().unwrap_or(0);
    let mut key = fields.next()?.split(':');
    let (major, minor) = (u32::from_str_radix(key.next()?, 16).ok()?, u32::from_str_radix(key.next()?, 16).ok()?);
    Some(Flock { access, pid, key: (major, minor, key.next()?.parse().ok()?) })
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    threads: u32,
    start_time: u64,
}

/// Fields 3, 20 and 22 of `/proc/PID/stat`, proc_pid_stat(5). The second field, a name in parentheses, may hold anything.
fn parse_stat(stat: &str) -> Option<Stat> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let state = fields.first()?.chars().next()?;
    Some(Stat { state, threads: fields.get(17)?.parse().ok()?, start_time: fields.get(19)?.parse().ok()? })
}

fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().split('-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

fn read_lossy(path: &str) -> Option<String> {
    if_there(path).ok().flatten()
}

/// `None` where `/proc` is not mounted, or hides it.
fn if_there(path: &str) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_in_large_pieces(path: &str) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut piece = vec![0; 64 * 1024];
    let mut bytes = Vec::new();
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            len => bytes.extend_from_slice(&piece[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_from_what_can_not_be_read() {
        assert!(if_there("/proc/self/nothing").unwrap().is_none());
        assert!(if_there("/proc/self").is_err());
        assert!(start_time_of_self().unwrap().is_some_and(|time| Some(time) == start_time(std::process::id())));
    }

    #[test]
    fn a_status_tells_a_thread_from_its_process() {
        let status = |tgid| format!("Name:\tstored\nTgid:\t{tgid}\nPid:\t8\n");
        let id = Pid::from_raw(8).unwrap();
        assert!(is_of_a_thread(&status(7), id) && !is_of_a_thread(&status(8), id) && !is_of_a_thread("", id));
    }

    #[test]
    fn a_line_of_the_lock_table_names_pid_and_inode() {
        let flock = |access, pid, key| Some(Flock { access, pid, key });
        let line = "1: FLOCK  ADVISORY  WRITE 10110 fe:0a:10018891 0 EOF";
        assert_eq!(parse_flock(line), flock(Access::Exclusive, 10110, (0xfe, 0x0a, 10018891)));
        let line = "1: FLOCK  ADVISORY  READ  -1 00:2f:7 0 EOF";
        assert_eq!(parse_flock(line), flock(Access::Shared, 0, (0, 0x2f, 7)));
        assert_eq!(parse_flock("1: -> FLOCK  ADVISORY  WRITE 10110 fe:00:1 0 EOF"), None);
        assert_eq!(parse_flock("2: POSIX  ADVISORY  WRITE 10110 fe:00:1 0 EOF"), None);
        assert_eq!(parse_flock("3: LEASE"), None);
    }

    #[test]
    fn a_process_name_with_parentheses_hides_nothing() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 4242 0 0";
        assert_eq!(parse_stat(stat), Some(Stat { state: 'S', threads: 3, start_time: 4242 }));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn a_mount_is_found_by_its_id() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n220 22 0:45 / /data rw - btrfs /dev/vdb rw\n";
        assert_eq!(device_of_mount(mounts, 220), Some((0, 45)));
        assert_eq!(device_of_mount(mounts, 2), None);
    }

    #[test]
    fn a_boot_id_is_a_uuid() {
        let id = parse_boot_id("7f17d1f4-e268-4b2b-8a4b-6448dabe5c1a\n");
        assert_eq!(id.map(|id| (id[0], id[15])), Some((0x7f, 0x1a)));
        assert_eq!(parse_boot_id("7f17d1f4"), None);
    }
}
