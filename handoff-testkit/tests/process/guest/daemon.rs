//! A daemon whose threads write while its `main` goes wrong. What it does wrong stands in the file `way` of its data directory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs, panic, process, thread};

use handoff_runtime::{
    BegunSuccessor, DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, LockError,
    ReadinessSnapshot, Resume, Role, SealContext, SealReport, StateSnapshot, detect_role, telling_why,
};

use crate::daemons::{CONTROL_SOCKET, DATA_DIR};

/// The name of the role.
pub(crate) const ROLE: &str = "guest";

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing.
    Well,
    /// `main` returns an error when it serves.
    ReturnsEarly,
    /// It drops its incumbent, and goes on.
    DropsTheIncumbent,
    /// As a successor it drops the lock and its handle.
    DropsTheLock,
    /// As a successor it panics in the closure that serves.
    PanicsServing,
    /// As a successor its `main` returns an error while it warms.
    FailsWarming,
    /// The same with the lock in its hand.
    FailsOpening,
    /// As a successor it panics with the lock in its hand.
    PanicsOpening,
}

const ALL: [Way; 8] = [
    Way::Well,
    Way::ReturnsEarly,
    Way::DropsTheIncumbent,
    Way::DropsTheLock,
    Way::PanicsServing,
    Way::FailsWarming,
    Way::FailsOpening,
    Way::PanicsOpening,
];

type AnyError = Box<dyn std::error::Error>;

/// Has the daemons of this data directory that are started from now on do so.
pub(super) fn tell(data_dir: &Path, way: Way) -> std::io::Result<()> {
    fs::write(data_dir.join("way"), format!("{way:?}"))
}

/// What a process that let go of something saw of the lock right after, and before it was told to exit.
pub(super) fn seen(data_dir: &Path) -> Option<String> {
    let seen = fs::read_to_string(data_dir.join("seen")).ok()?;
    seen.strip_suffix('\n').map(str::to_owned)
}

/// Lets a process that let go of something exit.
pub(super) fn let_exit(data_dir: &Path) -> std::io::Result<()> {
    fs::write(data_dir.join("exit"), "")
}

/// Who has written, one after the other: a pid for each time that another one than before wrote.
pub(super) fn turns(data_dir: &Path) -> std::io::Result<Vec<u32>> {
    let writes = fs::read_to_string(data_dir.join("writes"))?;
    let mut turns: Vec<u32> = writes.lines().filter_map(|line| line.parse().ok()).collect();
    turns.dedup();
    Ok(turns)
}

/// Its `main`. When `run` has let go of everything, threads still write for a while, as those of a runtime do that is being
/// shut down.
pub(crate) fn main() -> ExitCode {
    let var = |here: &str, under_supervisor: &str| env::var_os(here).or_else(|| env::var_os(under_supervisor));
    let data_dir = PathBuf::from(var(DATA_DIR, "HANDOFF_DATA_DIR").unwrap_or_default());
    let control = PathBuf::from(var(CONTROL_SOCKET, "HANDOFF_CONTROL_SOCKET").unwrap_or_default());
    let way = fs::read_to_string(data_dir.join("way")).unwrap_or_default();
    let way = ALL.into_iter().find(|known| format!("{known:?}") == way).unwrap_or(Way::Well);
    let writer = Writer::new(&data_dir);
    let ended = panic::catch_unwind(|| telling_why(|| run(way, &data_dir, &control, &writer)));
    if let Ok(Ok(())) = ended {
        return ExitCode::SUCCESS;
    }
    if matches!(way, Way::FailsWarming | Way::FailsOpening | Way::PanicsOpening) {
        return ExitCode::FAILURE;
    }
    let lock = match DataDirLock::acquire(&data_dir) {
        Err(LockError::Held { holder: Some(holder) }) => format!("held by {}", holder.pid),
        other => format!("{other:?}"),
    };
    let _ = fs::write(data_dir.join("seen"), format!("{} {lock}\n", process::id()));
    while !data_dir.join("exit").exists() {
        thread::park_timeout(Duration::from_millis(2));
    }
    ExitCode::FAILURE
}

fn run(way: Way, data_dir: &Path, control: &Path, writer: &Writer) -> Result<(), AnyError> {
    let incumbent = match detect_role()? {
        Role::ColdStart { .. } => {
            let lock = DataDirLock::acquire_timeout(data_dir, Duration::from_secs(60))?;
            writer.start();
            Incumbent::bind_cold_start(control, lock)?
        }
        Role::Successor(successor) => {
            let greeted = successor.handshake(b"guest".to_vec())?;
            if way == Way::FailsWarming {
                return Err("no certificate is there".into());
            }
            let mut begun = greeted.wait_for_begin()?;
            let lock = begun.lock(data_dir)?;
            match way {
                Way::DropsTheLock => {
                    writer.start();
                    drop((lock, begun));
                    return Err("told to drop the lock".into());
                }
                Way::FailsOpening => return Err("the store is torn at 4711".into()),
                Way::PanicsOpening => panic!("segment 12 is missing"),
                _ => announce(way, begun, lock, control, writer)?,
            }
        }
    };
    match way {
        Way::ReturnsEarly => Err::<(), _>("told to return early")?,
        Way::DropsTheIncumbent => {
            drop(incumbent);
            return Err("told to drop the incumbent".into());
        }
        _ => {}
    }
    incumbent.serve(writer.clone())?;
    Ok(())
}

fn announce(
    way: Way,
    begun: BegunSuccessor,
    lock: handoff_runtime::ServingLock,
    control: &Path,
    writer: &Writer,
) -> handoff_runtime::Result<Incumbent> {
    let ready = ReadinessSnapshot { healthz_ok: true, ..ReadinessSnapshot::default() };
    begun.announce_and_serve(ready, control, lock, || {
        writer.start();
        assert!(way != Way::PanicsServing, "told to panic");
    })
}

/// A thread that writes, one line after the other.
#[derive(Clone)]
struct Writer {
    file: PathBuf,
    writes: Arc<AtomicBool>,
}

impl Writer {
    fn new(data_dir: &Path) -> Self {
        Self { file: data_dir.join("writes"), writes: Arc::default() }
    }

    fn start(&self) {
        self.writes.store(true, Ordering::SeqCst);
        let (file, writes) = (self.file.clone(), Arc::clone(&self.writes));
        thread::spawn(move || {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(file).expect("the data dir is there");
            while writes.load(Ordering::SeqCst) {
                let _ = file.write_all(format!("{}\n", process::id()).as_bytes());
                thread::park_timeout(Duration::from_millis(1));
            }
        });
    }
}

impl Drainable for Writer {
    fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
        self.writes.store(false, Ordering::SeqCst);
        Ok(SealReport::default())
    }

    fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
        self.start();
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}
