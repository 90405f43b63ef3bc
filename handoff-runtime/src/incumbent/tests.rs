//! What needs a process that only this crate's tests can play; all else is in `tests/incumbent.rs`.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use handoff_lock::DataDirLock;
use handoff_proto::frame::{read_message, write_message};
use handoff_proto::{HandoffId, Message, Timing};

use super::{Incumbent, Served};
use crate::drainable::{
    DrainContext, DrainReport, Drainable, HookError, Resume, SealContext, SealReport, StateSnapshot,
};
use crate::testing::start_late_taker;

/// The test waits for events; this only bounds it.
const BOUND: Duration = Duration::from_secs(30);

struct Daemon;

impl Drainable for Daemon {
    fn drain(&self, _: &DrainContext) -> Result<DrainReport, HookError> {
        Ok(DrainReport::default())
    }

    fn seal(&self, _: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    fn resume_after_abort(&self, _: &Resume) -> Result<(), HookError> {
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

/// Reads until this comes.
fn hear(stream: &mut UnixStream, is_it: impl Fn(&Message) -> bool) {
    while !is_it(&read_message(stream).unwrap().1) {}
}

/// It becomes the owner when SIGSTOP is under way to it, and before it has stopped.
#[test]
fn a_late_successor_is_looked_at_when_it_has_stopped_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (data_dir, control) = (dir.path().join("data"), dir.path().join("control.sock"));
    let lock = DataDirLock::acquire(&data_dir).unwrap();
    let timing = Timing { limbo_slack: Duration::from_millis(100), ..Timing::default() };
    let incumbent = Incumbent::bind_cold_start(&control, lock).unwrap().with_timing(timing);
    let (ended, served) = channel();
    std::thread::spawn(move || ended.send(incumbent.serve(Daemon)));

    let handoff_id = HandoffId::new();
    let mut taker = start_late_taker(&data_dir, *handoff_id.as_bytes());
    let mut supervisor = UnixStream::connect(&control).unwrap();
    supervisor.set_read_timeout(Some(BOUND)).unwrap();
    hear(&mut supervisor, |message| matches!(message, Message::Hello { .. }));
    // Far more than it needs for the lock; behind it, the incumbent ends it.
    let (successor_pid, deadline_ms, drain_grace_ms) = (taker.pid(), 3_000, 100);
    for message in [
        Message::HelloAck { proto_version_chosen: 2, handoff_id },
        Message::PrepareHandoff { handoff_id, successor_pid, deadline_ms, drain_grace_ms },
        Message::SealRequest { handoff_id },
    ] {
        write_message(&mut supervisor, 2, &message).unwrap();
    }
    hear(&mut supervisor, |message| matches!(message, Message::SealComplete { .. }));
    taker.wait_until_taken(&data_dir);
    drop(supervisor);

    assert_eq!(served.recv_timeout(BOUND).unwrap().unwrap(), Served::Superseded);
    taker.end();
}
