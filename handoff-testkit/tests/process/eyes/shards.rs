//! A daemon with four shards and no data: its seal stops half way at a gate, or fails, as a test likes.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, io};

use handoff_runtime::{
    DataDirLock, DrainContext, DrainReport, Drainable, HookError, Incumbent, ReadinessSnapshot, Resume, Role,
    SealContext, SealReport, StateSnapshot, detect_role,
};
use handoff_testkit::fixture::Setup;

/// The name of the role.
pub(crate) const ROLE: &str = "shards-daemon";
/// How many shards it has, and how many it has sealed when it comes to the gate.
pub(super) const ALL: u32 = 4;
pub(super) const BEFORE_THE_GATE: u32 = 2;
/// Why a seal fails that is to fail.
pub(super) const WHY: &str = "no space left for shard 2";

const GATE: &str = "gate";
const FAIL: &str = "fail";
const DATA_DIR: &str = "HANDOFF_DATA_DIR";

pub(super) fn setup() -> io::Result<Setup> {
    Ok(Setup::role(ROLE)?.listener("http", "127.0.0.1:0"))
}

/// The same as a program of a few bytes.
pub(super) fn script(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join("shards");
    let (role, program) = (handoff_testkit::ROLE_VARIABLE, env::current_exe()?);
    fs::write(&path, format!("#!/bin/sh\n{role}={ROLE} exec '{}' \"$@\"\n", program.display()))?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

/// A seal that has come half way waits from now on.
pub(super) fn close_the_gate(data_dir: &Path) -> io::Result<PathBuf> {
    let gate = data_dir.join(GATE);
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, rustix::fs::Mode::RWXU)?;
    Ok(gate)
}

/// Lets the seal go on that waits at the gate, and those after it pass.
pub(super) fn open_the_gate(gate: PathBuf) -> io::Result<()> {
    let key = File::options().write(true).open(&gate)?;
    fs::remove_file(gate)?;
    drop(key);
    Ok(())
}

pub(super) fn let_the_next_seal_fail(data_dir: &Path) -> io::Result<()> {
    fs::write(data_dir.join(FAIL), "")
}

struct Hooks {
    data_dir: PathBuf,
}

impl Drainable for Hooks {
    fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self, cx: &SealContext) -> Result<SealReport, HookError> {
        let gate = self.data_dir.join(GATE);
        cx.progress(BEFORE_THE_GATE, ALL, 1);
        if gate.exists() {
            // fifo(7): it opens when somebody opens the other end.
            File::open(gate)?;
        }
        if fs::remove_file(self.data_dir.join(FAIL)).is_ok() {
            return Err(WHY.into());
        }
        Ok(SealReport { last_revision_per_shard: vec![1; ALL as usize], ..SealReport::default() })
    }

    fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

/// Runs until a newer process serves.
pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    log_as_json();
    let path = |name: &str| env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set"));
    let (data_dir, control_socket) = (path(DATA_DIR)?, path("HANDOFF_CONTROL_SOCKET")?);
    let build = b"shards".to_vec();
    let incumbent = match detect_role()? {
        Role::ColdStart { .. } => Incumbent::bind_cold_start(&control_socket, DataDirLock::acquire(&data_dir)?)?,
        Role::Successor(successor) => {
            let mut begun = successor.handshake(build.clone())?.wait_for_begin()?;
            let lock = begun.lock(&data_dir)?;
            let ready = ReadinessSnapshot {
                healthz_ok: true,
                advertised_revision_per_shard: vec![1; ALL as usize],
                ..ReadinessSnapshot::default()
            };
            begun.announce_and_bind(ready, &control_socket, lock)?
        }
    };
    incumbent.with_build_id(build).serve(Hooks { data_dir })?;
    Ok(())
}

/// The events of the two other roles, too, where a test reads the log.
fn log_as_json() {
    let _ = tracing_subscriber::fmt().json().flatten_event(true).with_writer(io::stderr).try_init();
}
