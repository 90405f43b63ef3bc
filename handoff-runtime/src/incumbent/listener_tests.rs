//! What becomes of the listeners that an incumbent shares with its successor when the handover is undone.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use handoff_lock::DataDirLock;
use handoff_proto::frame::{read_message, write_message};
use handoff_proto::{HandoffId, Message};
use rustix::fs::{OFlags, fcntl_getfl};

use super::*;
use crate::drainable::{DrainContext, DrainReport, HookError, Resume, SealContext, SealReport, StateSnapshot};
use crate::listeners::InheritedListeners;
use crate::spawn::spawn;
use crate::testing::arguments_for;

const ID: HandoffId = HandoffId::from_bytes([9; 16]);

/// A daemon that looks at its listener when it is told to resume.
struct Hooks {
    listener: Arc<TcpListener>,
    resumed_with: Arc<Mutex<Vec<bool>>>,
}

impl Drainable for Hooks {
    fn drain(&self, _: &DrainContext) -> std::result::Result<DrainReport, HookError> {
        Ok(DrainReport::default())
    }

    fn seal(&self, _: &SealContext) -> std::result::Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    fn resume_after_abort(&self, _: &Resume) -> std::result::Result<(), HookError> {
        self.resumed_with.lock().unwrap().push(is_nonblocking(&self.listener));
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

fn is_nonblocking(fd: impl AsFd) -> bool {
    fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

/// Hears the next message that is no heartbeat.
fn hear(stream: &mut UnixStream) -> Message {
    loop {
        match read_message(stream).unwrap().1 {
            Message::Heartbeat { .. } => {}
            message => return message,
        }
    }
}

#[test]
#[ignore = "run by the next test in a process of its own"]
fn is_handed_over_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control.sock");
    let mut inherited = InheritedListeners::claim(vec!["http".into()]).unwrap();
    listeners::retain(&inherited);
    let listener = Arc::new(inherited.take("http").unwrap());
    let lock = DataDirLock::acquire(&dir.path().join("data")).unwrap();
    let incumbent = Incumbent::bind_cold_start(&control, lock).unwrap();
    let resumed_with = Arc::<Mutex<Vec<bool>>>::default();
    let hooks = Hooks { listener: Arc::clone(&listener), resumed_with: Arc::clone(&resumed_with) };
    let _serves = thread::spawn(move || incumbent.serve(hooks));

    for _ in 0..2 {
        assert!(!is_nonblocking(&listener));
        undo_a_handover(&control, || {
            // The flag belongs to the open file, so this is what a successor of the listener does.
            listener.set_nonblocking(true).unwrap();
        });
    }
    assert_eq!(*resumed_with.lock().unwrap(), [false, false], "whether accept(2) would not wait");
}

fn undo_a_handover(control: &Path, successor: impl FnOnce()) {
    let mut supervisor = UnixStream::connect(control).unwrap();
    assert!(matches!(hear(&mut supervisor), Message::Hello { .. }));
    let say = |mut stream: &UnixStream, message: Message| write_message(&mut stream, 2, &message).unwrap();
    say(&supervisor, Message::HelloAck { proto_version_chosen: 2, handoff_id: ID });
    let prepare =
        Message::PrepareHandoff { handoff_id: ID, successor_pid: 0, deadline_ms: 60_000, drain_grace_ms: 60_000 };
    say(&supervisor, prepare);
    assert!(matches!(hear(&mut supervisor), Message::Drained { .. }));
    successor();
    say(&supervisor, Message::ResumeAfterAbort { handoff_id: ID });
    assert_eq!(hear(&mut supervisor), Message::Resumed { handoff_id: ID });
}

#[test]
fn the_flags_of_a_shared_listener_are_as_they_were_before_the_daemon_resumes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let program = std::env::current_exe().unwrap();
    let arguments = arguments_for("incumbent::listener_tests::is_handed_over_and_resumes");
    let listeners = [("http".to_owned(), listener.as_fd())];
    let mut process = spawn(&program, &arguments, &[], &listeners, &[]).unwrap();
    assert!(process.wait().unwrap().unwrap().success());
    assert!(!is_nonblocking(&listener));
}
