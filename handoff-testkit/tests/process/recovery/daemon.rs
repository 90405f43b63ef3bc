//! The reference store with a mood: a build that does one thing wrong. The mood stands in its environment, so that a build is
//! a script that sets it.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, thread};

use handoff_lock::{Attempt, Unlocked};
use handoff_runtime::{
    DataDirLock, DrainContext, DrainReport, Drainable, Error, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
    STATE_NOT_READABLE_EXIT_STATUS, SealContext, SealReport, StateNotReadable, StateSnapshot, detect_role,
};
use handoff_testkit::store::daemon::Options;
use handoff_testkit::store::hooks::Daemon;
use rustix::process::{Signal, getpid, kill_process};

/// The name of the role.
pub(crate) const ROLE: &str = "moody-store";
const MOOD: &str = "MOOD";

/// Why a build gives up.
pub(super) const WHY: &str = "the index is of another store";

/// What a build does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Nothing.
    Good,
    /// When it is started for the first time, it takes the bare lock and freezes before it has a lease.
    FreezesInStart,
    /// As a successor, it opens only when there is a file `open` beside its data.
    OpensSlowly,
    /// The same, and it says all the while that it gets on.
    OpensSlowlyAndSaysSo,
    /// As a successor, it is warm only when there is a file `warm` beside its data.
    WarmsSlowly,
    /// As a successor, it gives up while it warms, and says why.
    GivesUpInWarming,
    /// As a successor, it gives up under the lock, and says why.
    GivesUpUnderTheLock,
    /// As a successor, it freezes under the lock.
    FreezesUnderTheLock,
    /// As a successor, it freezes as soon as its lease is Active.
    FreezesActive,
    /// As a successor, it dies when it serves and has not said so: it has acknowledged some writes by then.
    DiesServing,
    /// It freezes when it is asked to drain.
    FreezesInDrain,
    /// It freezes when it is asked to seal.
    FreezesInSeal,
    /// It stays when it has been committed away.
    Stays,
    /// The same, and when there is a file `come-back` beside its data it takes their lock and freezes.
    ComesBack,
    /// It leaves data that `Old` can't read.
    New,
    /// It can't read what `New` has left.
    Old,
}

const ALL: [Mood; 16] = [
    Mood::Good,
    Mood::FreezesInStart,
    Mood::OpensSlowly,
    Mood::OpensSlowlyAndSaysSo,
    Mood::WarmsSlowly,
    Mood::GivesUpInWarming,
    Mood::GivesUpUnderTheLock,
    Mood::FreezesUnderTheLock,
    Mood::FreezesActive,
    Mood::DiesServing,
    Mood::FreezesInDrain,
    Mood::FreezesInSeal,
    Mood::Stays,
    Mood::ComesBack,
    Mood::New,
    Mood::Old,
];

type Result<T> = std::result::Result<T, HookError>;

/// Makes a build: a script that starts this program in this mood, with these further lines before.
pub(super) fn build(dir: &Path, name: &str, mood: Mood, lines: &str) -> std::io::Result<PathBuf> {
    let program = env::current_exe()?;
    let path = dir.join(name);
    let script = format!(
        "#!/bin/sh\n{lines}\nHANDOFF_TESTKIT_ROLE={ROLE} {MOOD}={mood:?} STORE_BUILD_ID={name} exec '{}' \"$@\"\n",
        program.display()
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

/// Its `main`.
pub(crate) fn main(args: Vec<std::ffi::OsString>) -> std::process::ExitCode {
    match run(args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store {}: {error}", std::process::id());
            let not_readable =
                error.downcast_ref::<Error>().is_some_and(|it| matches!(it, Error::StateNotReadable { .. }))
                    || error.downcast_ref::<StateNotReadable>().is_some();
            std::process::ExitCode::from(if not_readable { STATE_NOT_READABLE_EXIT_STATUS } else { 1 })
        }
    }
}

fn run(args: Vec<std::ffi::OsString>) -> Result<()> {
    let mood = env::var(MOOD).ok().and_then(|name| ALL.into_iter().find(|mood| format!("{mood:?}") == name));
    let options = Options::parse(args, |name| env::var_os(name))?;
    let daemon = Daemon::start(&options.data_dir, &options.build_id, options.connections_max, options.retention)?;
    let hooks = Hooks { daemon: daemon.clone(), mood: mood.unwrap_or(Mood::Good), data_dir: options.data_dir.clone() };
    let incumbent = match detect_role()? {
        Role::ColdStart { mut inherited } => {
            hooks.before_the_lock()?;
            let lock = DataDirLock::acquire_timeout(&options.data_dir, Duration::from_secs(2))?;
            hooks.check_format()?;
            daemon.open(lock.epoch())?;
            let listeners: Vec<_> = inherited.names().iter().filter_map(|name| inherited.take(name)).collect();
            let incumbent = Incumbent::bind_cold_start(&options.control_socket, lock)?;
            daemon.listen(listeners)?;
            incumbent
        }
        Role::Successor(successor) => {
            let shaken = successor.handshake(options.build_id.clone().into_bytes())?;
            if hooks.mood == Mood::GivesUpInWarming {
                shaken.give_up(WHY);
                return Err(WHY.into());
            }
            hooks.warm_up();
            let mut begun = shaken.wait_for_begin()?;
            let lock = begun.lock(&options.data_dir)?;
            if hooks.mood == Mood::GivesUpUnderTheLock {
                begun.give_up(WHY);
                return Err(WHY.into());
            }
            let progress = begun.open_progress();
            hooks.under_the_lock(|| progress.report())?;
            let opened = daemon.open(lock.epoch())?;
            let listeners: Vec<_> =
                begun.listener_names().iter().filter_map(|name| begun.take_listener(name)).collect();
            let ready = ReadinessSnapshot {
                listening_on: Vec::new(),
                healthz_ok: true,
                advertised_revision_per_shard: vec![opened.last_sequence],
                ..ReadinessSnapshot::default()
            };
            let mut served = Ok(());
            let incumbent = begun.announce_and_serve(ready, &options.control_socket, lock, || {
                served = daemon.listen(listeners);
                hooks.die_if_serving(opened.last_sequence);
            })?;
            served?;
            hooks.freeze_if(Mood::FreezesActive);
            incumbent
        }
    };
    incumbent.with_build_id(options.build_id.into_bytes()).serve(hooks.clone())?;
    match hooks.mood {
        Mood::Stays => loop {
            thread::park();
        },
        Mood::ComesBack => hooks.come_back()?,
        _ => {}
    }
    daemon.leave(Duration::from_secs(10));
    Ok(())
}

#[derive(Clone)]
struct Hooks {
    daemon: Daemon,
    mood: Mood,
    data_dir: PathBuf,
}

impl Hooks {
    fn freeze_if(&self, mood: Mood) {
        if self.mood == mood {
            let _ = kill_process(getpid(), Signal::STOP);
        }
    }

    fn die_if_serving(&self, opened_at: u64) {
        let has_written =
            || self.daemon.snapshot_state().last_revision_per_shard.iter().any(|at| *at >= opened_at + 10);
        if self.mood == Mood::DiesServing {
            while !has_written() {
                thread::park_timeout(Duration::from_millis(1));
            }
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    fn warm_up(&self) {
        while self.mood == Mood::WarmsSlowly && !self.data_dir.with_file_name("warm").exists() {
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn under_the_lock(&self, gets_on: impl Fn()) -> Result<()> {
        self.freeze_if(Mood::FreezesUnderTheLock);
        let is_slow = matches!(self.mood, Mood::OpensSlowly | Mood::OpensSlowlyAndSaysSo);
        while is_slow && !self.data_dir.with_file_name("open").exists() {
            if self.mood == Mood::OpensSlowlyAndSaysSo {
                gets_on();
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        self.check_format()
    }

    /// As one that had decided to try the lock stood still meanwhile, found it free, and stands still again before it looks at
    /// the lease.
    fn come_back(&self) -> Result<()> {
        while !self.data_dir.with_file_name("come-back").exists() {
            thread::park_timeout(Duration::from_millis(5));
        }
        self.freeze_with_the_bare_lock()
    }

    fn before_the_lock(&self) -> Result<()> {
        let mark = self.data_dir.with_file_name("was-started");
        if self.mood != Mood::FreezesInStart || mark.exists() {
            return Ok(());
        }
        fs::write(mark, "")?;
        self.freeze_with_the_bare_lock()
    }

    fn freeze_with_the_bare_lock(&self) -> Result<()> {
        let mut unlocked = Unlocked::open(&self.data_dir)?;
        // One that was killed is gone a moment before its lock is free.
        let locked = loop {
            match unlocked.try_lock() {
                Attempt::Locked(claim) => break claim,
                Attempt::Held(still) => unlocked = still,
                Attempt::Failed(_, error) => return Err(error.into()),
            }
            thread::park_timeout(Duration::from_millis(5));
        };
        self.freeze_if(self.mood);
        drop(locked);
        Ok(())
    }

    fn check_format(&self) -> Result<()> {
        let newer = self.data_dir.join("newer-format");
        match self.mood {
            Mood::New => Ok(fs::write(newer, "")?),
            Mood::Old if newer.exists() => Err(Box::new(StateNotReadable { reason: "it is of a newer format".into() })),
            _ => Ok(()),
        }
    }
}

impl Drainable for Hooks {
    fn drain(&self, cx: &DrainContext) -> Result<DrainReport> {
        self.freeze_if(Mood::FreezesInDrain);
        self.daemon.drain(cx)
    }

    fn seal(&self, cx: &SealContext) -> Result<SealReport> {
        self.freeze_if(Mood::FreezesInSeal);
        self.daemon.seal(cx)
    }

    fn resume_after_abort(&self, resume: &Resume) -> Result<()> {
        self.check_format()?;
        self.daemon.resume_after_abort(resume)
    }

    fn snapshot_state(&self) -> StateSnapshot {
        self.daemon.snapshot_state()
    }
}
