//! The same small daemon, written once on this library and once on `beyond-handoff`: it counts how often its data was sealed.
//!
//! It serves one listener, `http`: whoever connects is told `PID SEALS\n`. The seals stand in the file `seals` of the data
//! directory, so a daemon that opened what it should not, or not what it should, says a wrong number.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs, process, thread};

/// What a daemon's directory is called in its environment.
pub(crate) const DATA_DIR: &str = "TEST_DATA_DIR";
/// What a daemon's control socket is called in its environment.
pub(crate) const CONTROL_SOCKET: &str = "TEST_CONTROL_SOCKET";
/// How many shards the one on this library reports; one, where nothing is said.
pub(crate) const SHARDS: &str = "TEST_SHARDS";
/// The name of its only listener.
pub(crate) const LISTENER: &str = "http";

type AnyError = Box<dyn std::error::Error>;

/// What a daemon's `main` comes to as a process.
pub(crate) fn exit_code(ended: Result<(), AnyError>) -> process::ExitCode {
    match ended {
        Ok(()) => process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daemon {}: {error}", process::id());
            process::ExitCode::FAILURE
        }
    }
}

struct Seals {
    file: PathBuf,
    count: AtomicU64,
}

impl Seals {
    fn open(data_dir: &Path) -> Result<Arc<Self>, AnyError> {
        let seals = Self { file: data_dir.join("seals"), count: AtomicU64::new(0) };
        seals.reread()?;
        Ok(Arc::new(seals))
    }

    fn reread(&self) -> Result<(), AnyError> {
        let count = if self.file.exists() { fs::read_to_string(&self.file)?.trim().parse()? } else { 0 };
        self.count.store(count, Ordering::SeqCst);
        Ok(())
    }

    fn seal(&self) -> std::io::Result<u64> {
        let count = self.count.load(Ordering::SeqCst) + 1;
        fs::write(&self.file, format!("{count}\n"))?;
        Ok(count)
    }

    fn note_drain(&self) -> std::io::Result<()> {
        fs::OpenOptions::new().create(true).append(true).open(self.file.with_file_name("drains"))?.write_all(b"drain\n")
    }

    fn serve_on(self: &Arc<Self>, listener: TcpListener) {
        let seals = Arc::clone(self);
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let _ = writeln!(client, "{} {}", process::id(), seals.count.load(Ordering::SeqCst));
            }
        });
    }
}

/// Of one shard the seals; of more than one large numbers, each of several bytes on the wire.
fn revisions(seals: u64) -> Vec<u64> {
    let shards = env::var(SHARDS).ok().and_then(|shards| shards.parse().ok());
    shards.map_or_else(|| vec![seals], |shards| vec![1_000_000_000 + seals; shards])
}

/// How often the daemon on this library was asked to drain, in the life of its data directory.
pub(crate) fn drains_of(data_dir: &Path) -> std::io::Result<usize> {
    match fs::read_to_string(data_dir.join("drains")) {
        Ok(drains) => Ok(drains.lines().count()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn paths() -> Result<(PathBuf, PathBuf), AnyError> {
    let of = |here: &str, under_supervisor: &str| env::var_os(here).or_else(|| env::var_os(under_supervisor));
    let data_dir = of(DATA_DIR, "HANDOFF_DATA_DIR").ok_or("no data dir")?;
    let control = of(CONTROL_SOCKET, "HANDOFF_CONTROL_SOCKET").ok_or("no control socket")?;
    Ok((data_dir.into(), control.into()))
}

/// The daemon on this library.
pub(crate) mod ours {
    use super::*;
    use handoff_runtime::{
        DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
        SealContext, SealReport, StateSnapshot, detect_role,
    };

    struct Hooks(Arc<Seals>);

    impl Drainable for Hooks {
        fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
            self.0.note_drain()?;
            Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
        }

        fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
            Ok(SealReport { last_revision_per_shard: revisions(self.0.seal()?), ..SealReport::default() })
        }

        fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
            self.0.reread().map_err(|error| error.to_string().into())
        }

        fn snapshot_state(&self) -> StateSnapshot {
            StateSnapshot::default()
        }
    }

    /// Runs until a newer process serves.
    pub(crate) fn main() -> Result<(), AnyError> {
        let (data_dir, control) = paths()?;
        let (incumbent, seals, listener) = match detect_role()? {
            Role::ColdStart { mut inherited } => {
                let listener = inherited.take(LISTENER).ok_or("no listener")?;
                let lock = DataDirLock::acquire(&data_dir)?;
                let seals = Seals::open(&data_dir)?;
                (Incumbent::bind_cold_start(&control, lock)?, seals, listener)
            }
            Role::Successor(successor) => {
                let mut begun = successor.handshake(b"ours".to_vec())?.wait_for_begin()?;
                let listener = begun.take_listener(LISTENER).ok_or("no listener")?;
                let lock = begun.lock(&data_dir)?;
                let seals = Seals::open(&data_dir)?;
                let ready = ReadinessSnapshot {
                    listening_on: vec![listener.local_addr()?.to_string()],
                    healthz_ok: true,
                    advertised_revision_per_shard: revisions(seals.count.load(Ordering::SeqCst)),
                    ..ReadinessSnapshot::default()
                };
                (begun.announce_and_bind(ready, &control, lock)?, seals, listener)
            }
        };
        seals.serve_on(listener);
        incumbent.serve(Hooks(seals))?;
        Ok(())
    }
}

/// A daemon on this library whose hooks do as the file `script` of its data directory says. Each line is for one call to come:
/// `drain: fail`. What each call came to is added to the file `calls`.
pub(crate) mod scripted {
    use super::*;
    use handoff_runtime::{
        DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
        SealContext, SealReport, StateSnapshot, detect_role,
    };
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    struct Hooks(PathBuf);

    impl Hooks {
        fn note(&self, call: &str) -> std::io::Result<()> {
            let mut calls = fs::OpenOptions::new().create(true).append(true).open(self.0.join("calls"))?;
            calls.write_all(format!("{call}\n").as_bytes())
        }

        /// Takes the first line of the script if it is for this hook.
        fn order(&self, hook: &str) -> String {
            let script = fs::read_to_string(self.0.join("script")).unwrap_or_default();
            let (first, rest) = script.split_once('\n').unwrap_or((&script, ""));
            let Some(order) = first.strip_prefix(hook).and_then(|it| it.strip_prefix(": ")) else {
                return String::new();
            };
            let _ = fs::write(self.0.join("script"), rest);
            order.to_owned()
        }

        fn play(&self, hook: &str, cancelled: &dyn Fn() -> bool) -> Result<(), HookError> {
            match self.order(hook).as_str() {
                "fail" => {
                    self.note(&format!("{hook}: failed"))?;
                    return Err("told to fail".into());
                }
                "panic" => {
                    self.note(&format!("{hook}: panicked"))?;
                    panic!("told to panic");
                }
                "hang" => loop {
                    thread::park();
                },
                "freeze" => rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)?,
                "wait" => until(cancelled, Duration::MAX),
                "late" => until(&|| false, Duration::from_millis(400)),
                // Behind the deadline of the handover, heedless of being cancelled.
                "later" => until(&|| false, Duration::from_millis(3500)),
                "fork" => self.leave_a_child()?,
                "hold" => {
                    fs::write(self.0.join("held"), "")?;
                    until(&|| self.0.join("go").exists(), Duration::from_secs(60));
                }
                _ => {}
            }
            Ok(self.note(&format!("{hook}: done"))?)
        }

        fn leave_a_child(&self) -> std::io::Result<()> {
            let mut command = Command::new("sleep");
            command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            fs::write(self.0.join("child"), command.spawn()?.id().to_string())
        }
    }

    fn until(reached: &dyn Fn() -> bool, at_most: Duration) {
        let start = Instant::now();
        while !reached() && start.elapsed() < at_most {
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    impl Drainable for Hooks {
        fn drain(&self, cx: &DrainContext) -> Result<DrainReport, HookError> {
            self.play("drain", &|| cx.cancelled())?;
            Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
        }

        fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError> {
            self.play("seal", &|| cx.cancelled())?;
            Ok(SealReport { last_revision_per_shard: vec![1], ..SealReport::default() })
        }

        fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
            self.play("resume", &|| false)
        }

        fn snapshot_state(&self) -> StateSnapshot {
            StateSnapshot::default()
        }
    }

    /// Runs until a newer process serves.
    pub(crate) fn main() -> Result<(), AnyError> {
        let (data_dir, control) = paths()?;
        let hooks = Hooks(data_dir.clone());
        let incumbent = match detect_role()? {
            Role::ColdStart { .. } => Incumbent::bind_cold_start(&control, DataDirLock::acquire(&data_dir)?)?,
            Role::Successor(successor) => {
                let shaken = successor.handshake(b"scripted".to_vec())?;
                hooks.play("warm", &|| false).map_err(|error| error.to_string())?;
                let mut begun = shaken.wait_for_begin()?;
                let lock = begun.lock(&data_dir)?;
                let ready = ReadinessSnapshot {
                    listening_on: Vec::new(),
                    healthz_ok: true,
                    advertised_revision_per_shard: vec![1],
                    ..ReadinessSnapshot::default()
                };
                begun.announce_and_bind(ready, &control, lock)?
            }
        };
        incumbent.serve(hooks)?;
        Ok(())
    }
}

/// The daemon on `beyond-handoff`.
pub(crate) mod theirs {
    use super::*;
    use handoff::error::Result as PeerResult;
    use handoff::{
        DataDirLock, DrainReport, Drainable, Incumbent, ReadinessSnapshot, Role, SealReport, StateSnapshot, detect_role,
    };

    struct Hooks(Arc<Seals>);

    impl Drainable for Hooks {
        fn drain(&self, _: std::time::Instant) -> PeerResult<DrainReport> {
            Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
        }

        fn seal(&self) -> PeerResult<SealReport> {
            Ok(SealReport { last_revision_per_shard: vec![self.0.seal()?], data_dir_fingerprint: [0; 32] })
        }

        fn resume_after_abort(&self) -> PeerResult<()> {
            self.0.reread().map_err(|error| handoff::Error::Protocol(error.to_string()))
        }

        fn snapshot_state(&self) -> StateSnapshot {
            StateSnapshot::default()
        }
    }

    /// Runs until a newer process serves.
    pub(crate) fn main() -> Result<(), AnyError> {
        let (data_dir, control) = paths()?;
        let (incumbent, seals, listener) = match detect_role()? {
            Role::ColdStart { mut inherited } => {
                let listener = inherited.take(LISTENER).ok_or("no listener")?;
                let lock = DataDirLock::acquire(&data_dir)?;
                let seals = Seals::open(&data_dir)?;
                (Incumbent::bind_cold_start(&control, lock)?, seals, listener)
            }
            Role::Successor(successor) => {
                let mut begun = successor.handshake(b"theirs".to_vec())?.wait_for_begin()?;
                let listener = begun.take_listener(LISTENER).ok_or("no listener")?;
                let lock = DataDirLock::acquire(&data_dir)?;
                let seals = Seals::open(&data_dir)?;
                let ready = ReadinessSnapshot {
                    listening_on: vec![listener.local_addr()?.to_string()],
                    healthz_ok: true,
                    advertised_revision_per_shard: vec![seals.count.load(Ordering::SeqCst)],
                };
                (begun.announce_and_bind(ready, &control, lock)?, seals, listener)
            }
        };
        seals.serve_on(listener);
        incumbent.serve(Hooks(seals))?;
        Ok(())
    }
}
