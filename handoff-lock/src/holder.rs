//! Who holds a lock, for people and for supervisors. It never tries the lock, and decides nothing.
//!
//! The kernel knows best: `holder_search` asks it. Where it does not tell, the lease and the pidfile do, as far as the process
//! that they name is alive.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, test_kill_process};

use crate::error::LockError;
use crate::held_by::HeldBy;
use crate::holder_search::{Found, find, find_readers};
use crate::lease::{Lease, LeaseState, Numbered, Owner};
use crate::opened_file::{LOCK_FILE, open_to_read, settled_lease};
use crate::pair::Pair;
use crate::pidfile;
use crate::sys::{self, LockTable};
use crate::watched_lease::WatchedLease;

/// Who holds the lock of a data dir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: u32,
    /// Whether that process was alive when it was looked for. If not, the kernel is still freeing the lock, or the holder
    /// can't be seen from here.
    pub alive: bool,
    /// Its command line, or its name where the command line is empty.
    pub command: Option<String>,
    /// Since when the lock is held, in milliseconds since 1970, if the holder or the one it inherited from wrote it down.
    pub since_unix_ms: Option<u64>,
    /// Whether it holds the lock through a descriptor inherited from a process that is gone.
    pub inherited: bool,
}

/// Who holds the lock of this data dir now; `None` if nobody does, or there is no such directory.
///
/// That is who has the directory locked, however it came by it. If two processes share it, in a handover, it is the one that has
/// the lock file as well, else the one that the lease names. Who has the lock file alone is the holder only if nobody has the
/// directory.
///
/// Others' processes can be examined only by root; without that, the answer may lack a command,
/// and a holder that inherited the lock may be missed.
///
/// A lease that can't be read hides nobody: the kernel knows who has the lock. The answer then lacks since when.
///
/// # Errors
/// [`LockError::Io`] if the directory can't be opened.
pub fn holder(dir: &Path) -> Result<Option<Holder>, LockError> {
    let Some(mut place) = Place::open(dir)? else { return Ok(None) };
    let newest = place.newest().ok().flatten();
    Ok(match place.lock_table() {
        Some(table) => find(&table, owner_of(newest.as_ref())).map(|found| found.describe(newest.as_ref())),
        None => recorded(newest.as_ref(), &place.dir).filter(|holder| holder.alive),
    })
}

/// The lease of a data dir at this moment, read without the lock; `None` if there is no directory, no lock file, or no lease
/// in it.
///
/// It takes no lock and changes nothing. By the time that the caller looks at it, the lease may be another: decide about
/// ownership only by what [`Claim::found`](crate::Claim::found) says.
///
/// # Errors
/// [`LockError::Io`] if the lock file can't be read, [`LockError::NotALockFile`] if it is none, [`LockError::NewerFormat`].
pub fn read_lease(dir: &Path) -> Result<Option<Lease>, LockError> {
    WatchedLease::new(dir).read()
}

/// What can be seen of a lock from outside.
#[derive(Debug)]
pub struct Look {
    /// The lease, or why it can't be read.
    pub lease: Result<Option<Lease>, LockError>,
    /// The pid of who [holds](holder) the lock, if anybody does, also if the lease can't be read. Where the system does not
    /// tell (it does on Linux), a living owner that the lease names and that has not sealed.
    pub locked_by: Option<u32>,
}

/// Looks at lock and lease from outside, cheaply enough to be repeated. It takes no lock, not even for a moment: a try would
/// make a successor's own try fail.
///
/// Lease and holder are read one after the other, so they may not belong together: decide about ownership only by what
/// [`Claim::found`](crate::Claim::found) says.
///
/// # Errors
/// As [`holder`].
pub fn look(dir: &Path) -> Result<Look, LockError> {
    let Some(mut place) = Place::open(dir)? else { return Ok(Look { lease: Ok(None), locked_by: None }) };
    let table = place.lock_table();
    let lease = place.newest();
    let newest = lease.as_ref().ok().and_then(Option::as_ref);
    let locked_by = match &table {
        Some(table) => find(table, owner_of(newest)).map(|found| found.pid),
        None => recorded(newest, &place.dir).filter(|holder| holder.alive).map(|holder| holder.pid),
    };
    Ok(Look { lease: lease.map(|newest| newest.map(|newest| newest.lease)), locked_by })
}

/// Who [reads](crate::SharedLock) a data dir now, at most eight of them; none if nobody does, or there is no such directory. They
/// are no [`holder`], and keep one from coming. Where the kernel does not tell (no `/proc`), nobody is named.
///
/// # Errors
/// As [`holder`].
pub fn readers(dir: &Path) -> Result<Vec<Holder>, LockError> {
    let Some(place) = Place::open(dir)? else { return Ok(Vec::new()) };
    Ok(place.lock_table().map_or_else(Vec::new, |table| readers_in(&table)))
}

fn readers_in(table: &LockTable) -> Vec<Holder> {
    const READERS_MAX: usize = 8;
    let found = find_readers(&table.of_shared());
    found.into_iter().take(READERS_MAX).map(|found| found.describe(None)).collect()
}

/// In whose way a lock is held that was just found to be: the best guess if the kernel does not tell.
pub(crate) fn in_the_way(pair: &Pair) -> HeldBy {
    let (Ok(dir), Ok(file)) = (pair.dir(), pair.file()) else { return HeldBy::Owner(None) };
    let newest = settled_lease(file, &pair.lock_path()).ok().flatten();
    in_the_way_of(LockTable::of(dir, Some(file)), newest.as_ref(), dir)
}

/// The same of a data dir by its path.
pub(crate) fn in_the_way_at(dir: &Path) -> HeldBy {
    let Ok(Some(mut place)) = Place::open(dir) else { return HeldBy::Owner(None) };
    let newest = place.newest().ok().flatten();
    in_the_way_of(place.lock_table(), newest.as_ref(), place.dir.as_fd())
}

fn in_the_way_of(table: Option<LockTable>, newest: Option<&Numbered>, dir: BorrowedFd<'_>) -> HeldBy {
    if let Some(found) = table.as_ref().and_then(|table| find(table, owner_of(newest))) {
        return HeldBy::Owner(Some(found.describe(newest)));
    }
    match table.as_ref().map(readers_in) {
        Some(readers) if !readers.is_empty() => HeldBy::Readers(readers),
        _ => HeldBy::Owner(recorded(newest, dir)),
    }
}

/// Who locked this file, which is not ours.
pub(crate) fn of_file(file: BorrowedFd<'_>) -> Option<Holder> {
    // One inode is searched for, as the directory is otherwise.
    LockTable::of(file, None).and_then(|table| find(&table, None)).map(|found| found.describe(None))
}

/// Whether there is such a process. One that we may not signal is alive: only ESRCH means that it is gone, kill(2). The number
/// may be a thread's by now, which kill(2) takes for its process.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    test_kill_process(raw) != Err(Errno::SRCH) && !sys::is_thread(raw) && !sys::is_zombie(pid)
}

/// The directory and the lock file, opened to be looked at.
struct Place {
    path: PathBuf,
    dir: OwnedFd,
    /// What kept it from being opened hides no lock of the directory, and who has that one is the holder.
    file: Result<Option<OwnedFd>, LockError>,
}

impl Place {
    fn open(data_dir: &Path) -> Result<Option<Self>, LockError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = match retry_on_intr(|| openat(CWD, data_dir, flags | OFlags::DIRECTORY, Mode::empty())) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(LockError::io(data_dir, error)),
        };
        let path = data_dir.join(LOCK_FILE);
        let file = open_to_read(dir.as_fd(), LOCK_FILE.as_ref(), &path).map(|opened| opened.map(|(file, _)| file));
        Ok(Some(Self { path, dir, file }))
    }

    fn lock_table(&self) -> Option<LockTable> {
        let file = self.file.as_ref().ok().and_then(Option::as_ref);
        LockTable::of(self.dir.as_fd(), file.map(AsFd::as_fd))
    }

    /// The newest lease.
    fn newest(&mut self) -> Result<Option<Numbered>, LockError> {
        let file = std::mem::replace(&mut self.file, Ok(None))?;
        let newest = file.as_ref().map_or(Ok(None), |file| settled_lease(file.as_fd(), &self.path));
        self.file = Ok(file);
        newest
    }
}

fn owner_of(newest: Option<&Numbered>) -> Option<u32> {
    newest.map(|newest| &newest.lease).filter(|lease| lease.of_this_boot()).map(|lease| lease.owner.pid)
}

/// The lease, unless its owner is of another boot or said that it let go of the lock.
fn not_let_go(newest: Option<&Numbered>) -> Option<&Lease> {
    let newest = newest.filter(|newest| !newest.released)?;
    Some(&newest.lease).filter(|lease| lease.of_this_boot() && lease.state != LeaseState::Sealed)
}

impl Found {
    fn describe(&self, newest: Option<&Numbered>) -> Holder {
        let lease = not_let_go(newest);
        let since =
            lease.filter(|lease| self.inherited || lease.owner.pid == self.pid).map(|lease| lease.since_unix_ms);
        Holder { inherited: self.inherited, since_unix_ms: since, ..Holder::named(self.pid, self.alive) }
    }
}

/// Who wrote down that it holds the lock: a living one first.
fn recorded(newest: Option<&Numbered>, dir: impl AsFd) -> Option<Holder> {
    let owner = not_let_go(newest).map(|lease| Holder {
        since_unix_ms: Some(lease.since_unix_ms),
        ..Holder::named(lease.owner.pid, is_owner_alive(&lease.owner))
    });
    let named = pidfile::read_pid(dir.as_fd()).map(|pid| Holder::named(pid, is_alive(pid)));
    let records: Vec<Holder> = owner.into_iter().chain(named).collect();
    records.iter().find(|holder| holder.alive).or(records.first()).cloned()
}

fn is_owner_alive(owner: &Owner) -> bool {
    let is_same = |start_time| owner.start_time == 0 || start_time == owner.start_time;
    is_alive(owner.pid) && sys::start_time(owner.pid).is_none_or(is_same)
}

impl Holder {
    fn named(pid: u32, alive: bool) -> Self {
        let command =
            if alive { sys::command(pid).map(|text| one_line(&text)).filter(|text| !text.is_empty()) } else { None };
        Self { pid, alive, command, since_unix_ms: None, inherited: false }
    }
}

/// A process chooses its command line: it must not break a log's line or flood it.
fn one_line(command: &str) -> String {
    const CHARS_MAX: usize = 200;
    let clean = command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let mut chars = clean.trim().chars();
    let mut line: String = chars.by_ref().take(CHARS_MAX).collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if let Some(command) = &self.command {
            write!(f, " ({command})")?;
        }
        if let Some(since_unix_ms) = self.since_unix_ms {
            write!(f, " since {}", Utc(since_unix_ms / 1000))?;
        }
        if self.inherited {
            f.write_str(", which inherited it from a process that is gone")?;
        }
        if !self.alive {
            f.write_str(", which is dead")?;
        }
        Ok(())
    }
}

/// Seconds since 1970 as a date.
struct Utc(u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // Years from March on, so that the leap day is a year's last; 719_468 days lie between the year 0's March and 1970.
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::{Attempt, DataDirLock, Unlocked};

    #[test]
    fn a_date_is_as_the_calendar_has_it() {
        for (second, date) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_735_689_600, "2025-01-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(Utc(second).to_string(), date);
        }
    }

    #[test]
    fn a_command_stays_one_short_line() {
        assert_eq!(one_line("stored --data\t/x\n\u{1b}[2J "), "stored --data /x  [2J");
        assert_eq!(one_line(&"x".repeat(5_000)).chars().count(), 201);
    }

    #[test]
    fn who_may_not_be_signalled_is_alive() {
        assert!(is_alive(1) && is_alive(std::process::id()));
        for pid in [0, i32::MAX as u32, u32::MAX] {
            assert!(!is_alive(pid), "{pid}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_is_no_process() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let _ = wait.recv();
        });
        let id = receiver.recv().unwrap().cast_unsigned();
        let alive = is_alive(id);
        drop(end);
        thread.join().unwrap();
        assert!(!alive, "{id} is a thread of {}", std::process::id());
    }

    #[test]
    fn nobody_holds_what_is_not_locked() {
        let dir = tempfile::tempdir().unwrap();
        for nowhere in [dir.path(), &dir.path().join("missing")] {
            assert_eq!(holder(nowhere).unwrap(), None);
            assert!(matches!(look(nowhere).unwrap(), Look { lease: Ok(None), locked_by: None }));
        }
        DataDirLock::acquire(dir.path()).unwrap().release().unwrap();
        assert_eq!((holder(dir.path()).unwrap(), look(dir.path()).unwrap().locked_by), (None, None));
        assert!(!dir.path().join("missing").exists());
    }

    #[test]
    fn the_holder_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(dir.path()).unwrap();
        let found = holder(dir.path()).unwrap().unwrap();
        assert_eq!((found.pid, found.alive, found.inherited), (std::process::id(), true, false));
        assert_eq!(found.since_unix_ms, Some(lock.lease().since_unix_ms));
        let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert!(found.command.is_some_and(|command| command.contains(&program)));
        let seen = look(dir.path()).unwrap();
        assert_eq!((seen.lease.unwrap().as_ref(), seen.locked_by), (Some(lock.lease()), Some(std::process::id())));
    }

    #[test]
    fn a_lease_that_can_not_be_read_hides_no_holder() {
        type Spoil = fn(&Path);
        let spoilers: [Spoil; 3] = [
            |path| {
                let newest = Numbered { sequence: 9, file: 7, released: false, lease: crate::lease::tests::lease(9) };
                std::fs::write(path, crate::lease::tests::of_the_future(&newest, 2, 2)).unwrap();
            },
            |path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
            |path| std::fs::create_dir(path).unwrap(),
        ];
        for spoil in spoilers {
            let dir = tempfile::tempdir().unwrap();
            let _lock = DataDirLock::acquire(dir.path()).unwrap();
            let path = dir.path().join(LOCK_FILE);
            std::fs::remove_file(&path).unwrap();
            spoil(&path);
            assert_eq!(holder(dir.path()).unwrap().map(|holder| holder.pid), Some(std::process::id()));
            let seen = look(dir.path()).unwrap();
            assert_eq!(seen.locked_by, Some(std::process::id()));
            let why = seen.lease.unwrap_err().to_string();
            assert!(why.contains(&path.display().to_string()), "{why}");
        }
    }

    #[test]
    fn a_lock_without_a_claim_has_a_holder_too() {
        let dir = tempfile::tempdir().unwrap();
        let Attempt::Locked(claim) = Unlocked::open(dir.path()).unwrap().try_lock() else { panic!("not locked") };
        let found = holder(dir.path()).unwrap().unwrap();
        assert_eq!((found.pid, found.since_unix_ms), (std::process::id(), None));
        claim.unlock();
        assert_eq!(holder(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_look_takes_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let mut unlocked = Unlocked::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| (0..200).for_each(|_| drop(look(dir.path()).unwrap())));
            while !looking.is_finished() {
                let Attempt::Locked(claim) = unlocked.try_lock() else { panic!("a look held the lock") };
                unlocked = claim.unlock();
            }
        });
    }

    /// Run as a process of its own by the test below: takes the lock, leaves it to a child, and exits without unlocking.
    #[test]
    fn role_that_leaves_its_lock_to_a_child() {
        let Ok(dir) = std::env::var("HANDOFF_LOCK_TEST_INHERIT") else { return };
        let Attempt::Locked(claim) = Unlocked::open(Path::new(&dir)).unwrap().try_lock() else { panic!("not locked") };
        let stdin = claim.pair.file().unwrap().try_clone_to_owned().unwrap();
        let stdout = claim.pair.dir().unwrap().try_clone_to_owned().unwrap();
        let child = Command::new("sleep").arg("60").stdin(stdin).stdout(stdout).stderr(Stdio::null()).spawn().unwrap();
        let lock = claim.claim(None).map_err(|(_, error)| error).unwrap();
        println!("\nleft to pid {}", child.id());
        lock.forget();
        std::process::exit(0);
    }

    #[test]
    fn a_holder_by_inheritance_is_found_and_refused_to_be_broken() {
        let dir = tempfile::tempdir().unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder::tests::role_that_leaves_its_lock_to_a_child", "--nocapture"])
            .env("HANDOFF_LOCK_TEST_INHERIT", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        let child: u32 =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("left to pid ")?.parse().ok()).unwrap();
        let parent_pid = parent.id();
        parent.wait().unwrap();

        let found = holder(dir.path()).unwrap().unwrap();
        assert_eq!((found.pid, found.alive, found.inherited), (child, true, true));
        assert_eq!(found.command.as_deref(), Some("sleep 60"));
        assert_eq!(found.since_unix_ms, crate::read_lease(dir.path()).unwrap().map(|lease| lease.since_unix_ms));
        assert_eq!(look(dir.path()).unwrap().lease.unwrap().unwrap().owner.pid, parent_pid);
        assert_eq!(look(dir.path()).unwrap().locked_by, Some(child));
        let error = DataDirLock::acquire_or_break_stale(dir.path()).unwrap_err();
        assert!(matches!(&error, LockError::StaleLockBreakRefused { holder: Some(holder) } if *holder == found));
        assert!(error.to_string().contains("inherited it from a process that is gone"), "{error}");

        rustix::process::kill_process(Pid::from_raw(child as i32).unwrap(), rustix::process::Signal::KILL).unwrap();
        let lock = DataDirLock::acquire_timeout(dir.path(), Duration::from_secs(60)).unwrap();
        assert_eq!(lock.epoch(), 2);
    }
}
