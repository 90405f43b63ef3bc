//! The driver against a scripted supervisor on a socket pair, with a real lock and a real control socket.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use handoff_lock::{DataDirLock, LeaseState, LockError, ServingLock, Unlocked, read_lease};
use handoff_proto::frame::{read_message, write_message};
use handoff_proto::{BeginMode, HandoffId, Message, Side, Timing, WireError};
use tempfile::TempDir;

use super::Driver;
use crate::drainable::ReadinessSnapshot;
use crate::error::{Error, Result};
use crate::testing::{assert_nothing_is_left, footprint, run_alone};
use crate::timers::now_ns;
use crate::transfer::pass_directory;

const ID: HandoffId = HandoffId::from_bytes([4; 16]);
const FAR: Duration = Duration::from_secs(60);

/// The supervisor's end, one message at a time.
struct Supervisor {
    stream: UnixStream,
    version: u16,
}

impl Supervisor {
    /// Greets a new successor with this version.
    fn greet(version: u16) -> (Self, Driver) {
        Self::greet_with(version, Timing::default())
    }

    fn greet_with(version: u16, timing: Timing) -> (Self, Driver) {
        Self::greet_over(version, timing, None)
    }

    /// The same, and it has a channel to its incumbent.
    fn greet_over(version: u16, timing: Timing, transfer: Option<UnixStream>) -> (Self, Driver) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(FAR)).unwrap();
        let mut supervisor = Self { stream: ours, version };
        supervisor.tell(&Message::HelloAck { proto_version_chosen: version, handoff_id: ID });
        let mut driver = Driver::greet(theirs.into(), transfer.map(Into::into), b"build 7".to_vec(), timing).unwrap();
        assert_eq!(driver.greeted().unwrap(), ID);
        match supervisor.hear() {
            Message::Hello { role: Side::Successor, pid, build_id, .. } => {
                assert_eq!((pid, build_id), (std::process::id(), b"build 7".to_vec()));
            }
            other => panic!("{other:?}"),
        }
        (supervisor, driver)
    }

    fn tell(&mut self, message: &Message) {
        write_message(&mut self.stream, self.version, message).unwrap();
    }

    /// The next message that is no heartbeat.
    fn hear(&mut self) -> Message {
        loop {
            match read_message(&mut self.stream).unwrap().1 {
                Message::Heartbeat { .. } => {}
                message => return message,
            }
        }
    }

    fn hear_heartbeat(&mut self) {
        let (version, message) = read_message(&mut self.stream).unwrap();
        assert_eq!(version, self.version);
        assert!(matches!(message, Message::Heartbeat { .. }), "{message:?}");
    }

    /// Whether something has arrived that was not read yet.
    fn has_heard(&self) -> bool {
        rustix::io::ioctl_fionread(&self.stream).unwrap() > 0
    }

    fn hear_the_end(&mut self) {
        match read_message(&mut self.stream) {
            Err(WireError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof => {}
            other => panic!("{other:?}"),
        }
    }

    fn begin(&mut self, epoch: u64, sealed: &[u64]) {
        self.begin_until(epoch, sealed, now_ns() + FAR.as_nanos() as u64);
    }

    fn begin_until(&mut self, epoch: u64, sealed: &[u64], deadline_ns: u64) {
        self.tell(&Message::BeginWith {
            handoff_id: ID,
            mode: BeginMode::Sealed,
            sealed_revision_per_shard: sealed.to_vec(),
            data_dir_fingerprint: [1; 32],
            epoch,
            deadline_ns,
            open_ms: 10_000,
        });
    }

    /// Lets the driver say that it is warm, and begins.
    fn begin_warmed(&mut self, driver: &mut Driver, epoch: u64, sealed: &[u64]) {
        driver.warmed().unwrap();
        assert_eq!(self.hear(), Message::Warmed { handoff_id: ID });
        self.begin(epoch, sealed);
        driver.wait_for_begin().unwrap();
    }

    fn abort(&mut self) {
        self.tell(&Message::Abort { handoff_id: ID, reason: "changed my mind".into() });
    }
}

/// A data dir that an incumbent has just sealed.
struct Sealed {
    dir: TempDir,
    epoch: u64,
}

impl Sealed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = DataDirLock::acquire(dir.path()).unwrap();
        lock.stamp(Some(*ID.as_bytes())).unwrap();
        lock.activate(b"build 6").unwrap();
        let epoch = lock.epoch();
        drop(lock.seal().map_err(|(_, error)| error).unwrap());
        Self { dir, epoch }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    fn state(&self) -> (u64, LeaseState) {
        let lease = read_lease(self.path()).unwrap().unwrap();
        (lease.epoch, lease.state)
    }

    fn is_locked(&self) -> bool {
        matches!(DataDirLock::acquire(self.path()), Err(LockError::Held { .. }))
    }
}

fn ready(revisions: &[u64]) -> ReadinessSnapshot {
    ReadinessSnapshot {
        listening_on: vec!["here".into()],
        healthz_ok: true,
        advertised_revision_per_shard: revisions.to_vec(),
        ..ReadinessSnapshot::default()
    }
}

/// A successor that holds the lock and opens, and its supervisor.
fn opening(sealed: &Sealed, revisions: &[u64]) -> (Supervisor, Driver, ServingLock) {
    let (mut supervisor, mut driver) = Supervisor::greet(2);
    supervisor.begin_warmed(&mut driver, sealed.epoch, revisions);
    let lock = take_lock(&mut driver, sealed.path()).unwrap();
    (supervisor, driver, lock)
}

fn take_lock(driver: &mut Driver, dir: &Path) -> Result<ServingLock> {
    Ok(driver.lock(Unlocked::open(dir)?)?.0)
}

/// What a successor that failed must not do.
fn never() {
    panic!("it must serve nobody");
}

fn assert_not_ready(supervisor: &mut Supervisor) {
    match supervisor.hear() {
        Message::NotReady { handoff_id: ID, reason } => {
            assert!(!reason.is_empty());
            supervisor.hear_the_end();
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn takes_over_from_a_sealed_incumbent() {
    let sealed = Sealed::new();
    let (mut supervisor, mut driver) = Supervisor::greet(2);
    driver.warmed().unwrap();
    driver.warmed().unwrap();
    assert_eq!(supervisor.hear(), Message::Warmed { handoff_id: ID });
    supervisor.begin(sealed.epoch, &[5, 6]);
    let (mode, seen) = driver.wait_for_begin().unwrap();
    let seen = seen.unwrap();
    assert_eq!((mode, seen.last_revision_per_shard), (BeginMode::Sealed, vec![5, 6]));
    assert_eq!(seen.data_dir_fingerprint, [1; 32]);

    let lock = take_lock(&mut driver, sealed.path()).unwrap();
    assert_eq!(lock.lease().handoff_id, Some(*ID.as_bytes()));
    assert_eq!(sealed.state(), (sealed.epoch + 1, LeaseState::Opening));
    assert!(matches!(take_lock(&mut driver, sealed.path()), Err(Error::Usage(_))));

    let mut seen = None;
    let serve = || seen = Some((sealed.state().1, supervisor.has_heard()));
    let taken_over = driver.announce(ready(&[5, 7]), &sealed.socket(), lock, serve).unwrap();
    assert_eq!(seen, Some((LeaseState::Active, false)), "it serves when it owns the data, and Ready comes after");
    assert_eq!(sealed.state(), (sealed.epoch + 1, LeaseState::Active));
    assert!(taken_over.serving.control.is_published());
    assert_eq!(taken_over.serving.lock.lease().build_id, b"build 7");
    let expected = Message::Ready {
        handoff_id: ID,
        listening_on: vec!["here".into()],
        healthz_ok: true,
        advertised_revision_per_shard: vec![5, 7],
    };
    assert_eq!(supervisor.hear(), expected);
    drop(driver);
    supervisor.stream.set_nonblocking(true).unwrap();
    let error = read_message(&mut supervisor.stream).unwrap_err();
    assert!(matches!(&error, WireError::Io(error) if error.kind() == ErrorKind::WouldBlock), "{error}");
}

#[test]
fn takes_over_under_version_1() {
    let dir = tempfile::tempdir().unwrap();
    let (mut supervisor, mut driver) = Supervisor::greet(1);
    driver.warmed().unwrap();
    supervisor.tell(&Message::Begin { handoff_id: ID });
    assert_eq!(driver.wait_for_begin().unwrap(), (BeginMode::Sealed, None));
    let lock = take_lock(&mut driver, dir.path()).unwrap();
    let mut seen = None;
    let serve = || seen = Some(supervisor.has_heard());
    let taken_over = driver.announce(ready(&[1]), &dir.path().join("control"), lock, serve).unwrap();
    assert_eq!(seen, Some(true), "to this supervisor it owns nothing before Ready");
    assert!(matches!(supervisor.hear(), Message::Ready { healthz_ok: true, .. }));
    assert!(taken_over.serving.control.is_published());
}

#[test]
fn a_version_1_supervisor_hears_a_refusal_as_a_closed_channel() {
    let sealed = Sealed::new();
    let (mut supervisor, mut driver) = Supervisor::greet(1);
    supervisor.tell(&Message::Begin { handoff_id: ID });
    driver.wait_for_begin().unwrap();
    let lock = take_lock(&mut driver, sealed.path()).unwrap();
    let result = driver.announce(ReadinessSnapshot::default(), &sealed.socket(), lock, never);
    assert!(matches!(result, Err(Error::Unfit { .. })), "{result:?}");
    supervisor.hear_the_end();
}

#[test]
fn a_lease_of_another_epoch_is_left_alone() {
    for named in [-1, 1] {
        let sealed = Sealed::new();
        let (mut supervisor, mut driver) = Supervisor::greet(2);
        supervisor.begin(sealed.epoch.saturating_add_signed(named), &[]);
        driver.wait_for_begin().unwrap();
        let result = take_lock(&mut driver, sealed.path());
        assert!(matches!(result, Err(Error::Aborted { .. })), "{result:?}");
        assert_eq!(sealed.state(), (sealed.epoch, LeaseState::Sealed));
        assert!(!sealed.is_locked());
    }
}

#[test]
fn waits_for_a_lock_that_is_held_and_keeps_talking_meanwhile() {
    let sealed = Sealed::new();
    let holder = hold(&sealed);
    let timing = Timing { heartbeat: Duration::from_millis(5), ..Timing::default() };
    let (mut supervisor, mut driver) = Supervisor::greet_with(2, timing);
    supervisor.begin_warmed(&mut driver, sealed.epoch, &[]);
    std::thread::scope(|scope| {
        let locking = scope.spawn(|| take_lock(&mut driver, sealed.path()).unwrap());
        (0..3).for_each(|_| supervisor.hear_heartbeat());
        drop(holder);
        assert_eq!(locking.join().unwrap().epoch(), sealed.epoch + 1);
    });
}

/// Somebody who has the lock and has written nothing, as an incumbent that is just dying.
fn hold(sealed: &Sealed) -> handoff_lock::Claim {
    match Unlocked::open(sealed.path()).unwrap().try_lock() {
        handoff_lock::Attempt::Locked(claim) => claim,
        other => panic!("{other:?}"),
    }
}

/// Whether nobody else can lock the directory, which needs no more than to read it.
fn is_closed_to_strangers(dir: &Path) -> bool {
    let stranger = File::open(dir).unwrap();
    rustix::fs::flock(&stranger, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}

#[test]
fn takes_part_in_the_directorys_lock_that_was_passed() {
    let sealed = Sealed::new();
    let mut lock = hold(&sealed).claim(Some(*ID.as_bytes())).map_err(|(_, error)| error).unwrap();
    let (incumbents, transfer) = UnixStream::pair().unwrap();
    pass_directory(incumbents.as_fd(), lock.directory().unwrap().as_fd()).unwrap();
    let epoch = lock.epoch();
    let fallback = lock.seal_and_pass().map_err(|(_, error)| error).unwrap();
    let (mut supervisor, mut driver) = Supervisor::greet_over(2, Timing::default(), Some(transfer));
    supervisor.begin_warmed(&mut driver, epoch, &[]);
    assert!(is_closed_to_strangers(sealed.path()));
    let taken = take_lock(&mut driver, sealed.path()).unwrap();
    drop(fallback);
    assert!(is_closed_to_strangers(sealed.path()), "it outlives the incumbent's part");
    taken.release().unwrap();
    assert!(!is_closed_to_strangers(sealed.path()));
}

/// The incumbent counts on it that the directory was taken over: to try without it would be to wait for the deadline.
#[test]
fn leaves_at_once_when_what_was_passed_can_not_be_used() {
    let elsewhere = tempfile::tempdir().unwrap();
    for path in [elsewhere.path(), Path::new("/dev/null")] {
        let sealed = Sealed::new();
        let (incumbents, transfer) = UnixStream::pair().unwrap();
        pass_directory(incumbents.as_fd(), File::open(path).unwrap().as_fd()).unwrap();
        let (mut supervisor, mut driver) = Supervisor::greet_over(2, Timing::default(), Some(transfer));
        supervisor.begin_warmed(&mut driver, sealed.epoch, &[]);
        assert!(take_lock(&mut driver, sealed.path()).is_err(), "{path:?}");
        assert_not_ready(&mut supervisor);
        assert_eq!(sealed.state(), (sealed.epoch, LeaseState::Sealed));
    }
}

#[test]
fn takes_the_lock_by_itself_when_nothing_was_passed() {
    let sealed = Sealed::new();
    let (_incumbents, transfer) = UnixStream::pair().unwrap();
    let (mut supervisor, mut driver) = Supervisor::greet_over(2, Timing::default(), Some(transfer));
    supervisor.begin_warmed(&mut driver, sealed.epoch, &[]);
    assert_eq!(take_lock(&mut driver, sealed.path()).unwrap().epoch(), sealed.epoch + 1);
}

#[test]
fn gives_up_waiting_for_the_lock_when_another_owner_claims_it() {
    let sealed = Sealed::new();
    let other = hold(&sealed).claim(None).map_err(|(_, error)| error).unwrap();
    let (mut supervisor, mut driver) = Supervisor::greet(2);
    supervisor.begin(sealed.epoch, &[]);
    driver.wait_for_begin().unwrap();
    let result = take_lock(&mut driver, sealed.path());
    assert!(matches!(result, Err(Error::Aborted { .. })), "{result:?}");
    assert_eq!(sealed.state(), (other.epoch(), LeaseState::Opening));
}

#[test]
fn an_abort_or_the_deadline_ends_the_wait_for_the_lock() {
    for abort in [true, false] {
        let sealed = Sealed::new();
        let _holder = hold(&sealed);
        let (mut supervisor, mut driver) = Supervisor::greet(2);
        let within = if abort { FAR } else { Duration::from_millis(20) };
        supervisor.begin_until(sealed.epoch, &[], now_ns() + within.as_nanos() as u64);
        driver.wait_for_begin().unwrap();
        if abort {
            supervisor.abort();
        }
        let result = take_lock(&mut driver, sealed.path());
        let expected = if abort { "changed my mind" } else { "deadline" };
        assert!(result.unwrap_err().to_string().contains(expected));
    }
}

#[test]
fn before_begin_the_end_of_the_supervisor_ends_the_wait() {
    for expected in ["changed my mind", "closed the channel", "no message"] {
        let (mut supervisor, mut driver) = Supervisor::greet(2);
        match expected {
            "changed my mind" => supervisor.abort(),
            "no message" => supervisor.stream.write_all(&[0xff; 64]).unwrap(),
            _ => {}
        }
        drop(supervisor);
        let error = driver.wait_for_begin().unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn begin_counts_even_if_the_supervisor_died_right_after_it() {
    let sealed = Sealed::new();
    let (mut supervisor, mut driver) = Supervisor::greet(2);
    supervisor.begin(sealed.epoch, &[]);
    drop(supervisor);
    driver.wait_for_begin().unwrap();
    let lock = take_lock(&mut driver, sealed.path()).unwrap();
    driver.announce(ready(&[]), &sealed.socket(), lock, || {}).unwrap();
}

#[test]
fn a_supervisor_that_never_answers_is_given_up() {
    let (_silent, theirs) = UnixStream::pair().unwrap();
    let timing = Timing { hello: Duration::from_millis(20), ..Timing::default() };
    let result = Driver::greet(theirs.into(), None, Vec::new(), timing).unwrap().greeted();
    assert!(matches!(result, Err(Error::Aborted { .. })), "{result:?}");
}

#[test]
fn whoever_does_not_wait_for_the_answer_hangs_up() {
    let (mut supervisor, theirs) = UnixStream::pair().unwrap();
    drop(Driver::greet(theirs.into(), None, Vec::new(), Timing::default()).unwrap());
    let mut sent = Vec::new();
    std::io::Read::read_to_end(&mut supervisor, &mut sent).unwrap();
    assert!(!sent.is_empty(), "the greeting, and then the end");
}

#[test]
fn who_is_unfit_never_becomes_active_and_keeps_the_lock_until_it_exits() {
    let sick = ReadinessSnapshot { healthz_ok: false, ..ready(&[5, 6]) };
    for (snapshot, expected) in
        [(sick, "unhealthy"), (ready(&[5]), "1 shards, 2 were sealed"), (ready(&[9, 5]), "shard 1 at revision 5")]
    {
        let sealed = Sealed::new();
        let (mut supervisor, mut driver, lock) = opening(&sealed, &[5, 6]);
        let error = driver.announce(snapshot, &sealed.socket(), lock, never).unwrap_err();
        assert!(matches!(error, Error::Unfit { .. }) && error.to_string().contains(expected), "{error}");
        assert_not_ready(&mut supervisor);
        drop(driver);
        assert_eq!(sealed.state(), (sealed.epoch + 1, LeaseState::Opening));
        assert!(sealed.is_locked(), "its store may still be open");
        assert!(!sealed.socket().exists());
    }
}

#[test]
fn lateness_while_opening_comes_back_from_announce() {
    let sealed = Sealed::new();
    let (mut supervisor, mut driver) = Supervisor::greet(2);
    supervisor.begin_warmed(&mut driver, sealed.epoch, &[]);
    let lock = take_lock(&mut driver, sealed.path()).unwrap();
    driver.shared.lock().timers.arm(handoff_proto::successor::Timer::Deadline, Duration::ZERO);
    driver.shared.wakers().0.wake();
    assert_not_ready(&mut supervisor);
    let error = driver.announce(ready(&[]), &sealed.socket(), lock, never).unwrap_err();
    assert!(error.to_string().contains("deadline"), "{error}");
    assert_eq!(sealed.state().1, LeaseState::Opening);
}

#[test]
fn a_lost_supervisor_does_not_stop_it_once_it_has_begun() {
    let sealed = Sealed::new();
    let (supervisor, mut driver, lock) = opening(&sealed, &[5]);
    drop(supervisor);
    let taken_over = driver.announce(ready(&[5]), &sealed.socket(), lock, || {}).unwrap();
    assert!(taken_over.serving.control.is_published());
    assert_eq!(sealed.state(), (sealed.epoch + 1, LeaseState::Active));
}

#[test]
fn an_abort_while_it_opens_comes_back_from_announce() {
    let sealed = Sealed::new();
    let (mut supervisor, mut driver, lock) = opening(&sealed, &[5]);
    supervisor.abort();
    supervisor.hear_the_end();
    let error = driver.announce(ready(&[5]), &sealed.socket(), lock, never).unwrap_err();
    assert!(error.to_string().contains("changed my mind"), "{error}");
    assert_eq!(sealed.state().1, LeaseState::Opening);
}

#[test]
fn an_abort_that_nobody_has_read_yet_comes_before_the_announcement() {
    let sealed = Sealed::new();
    let (mut supervisor, mut driver, lock) = opening(&sealed, &[5]);
    supervisor.abort();
    let error = driver.announce(ready(&[5]), &sealed.socket(), lock, never).unwrap_err();
    assert!(error.to_string().contains("changed my mind"), "{error}");
    assert!(!sealed.socket().exists() && sealed.state().1 == LeaseState::Opening);
}

#[test]
fn only_the_lock_of_this_handover_is_accepted() {
    let sealed = Sealed::new();
    let (mut supervisor, mut driver, lock) = opening(&sealed, &[5]);
    lock.release().unwrap();
    let own = DataDirLock::acquire(sealed.path()).unwrap().for_serving();
    let error = driver.announce(ready(&[5]), &sealed.socket(), own, never).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert_not_ready(&mut supervisor);
    assert!(sealed.is_locked());
}

#[test]
fn a_lock_or_a_socket_that_fails_names_the_reason() {
    let (mut supervisor, mut driver) = Supervisor::greet(2);
    supervisor.begin_warmed(&mut driver, 0, &[]);
    let error = take_lock(&mut driver, Path::new("/proc/nowhere")).unwrap_err();
    assert!(matches!(error, Error::Lock(_)), "{error}");
    drop(driver);
    assert_not_ready(&mut supervisor);

    let sealed = Sealed::new();
    let (mut supervisor, mut driver, lock) = opening(&sealed, &[]);
    let error = driver.announce(ready(&[]), &sealed.path().join("missing/control"), lock, never).unwrap_err();
    assert!(error.to_string().contains("missing/.control") || error.to_string().contains("missing"), "{error}");
    assert_not_ready(&mut supervisor);
    assert_eq!(sealed.state().1, LeaseState::Opening);
}

#[test]
fn an_activation_after_the_deadline_writes_nothing() {
    use handoff_proto::successor::{Errand, Outcome};
    let sealed = Sealed::new();
    let (_supervisor, mut driver, lock) = opening(&sealed, &[]);
    driver.hands.present(lock, &sealed.socket());
    let errand = Errand::ActivateLease { not_after_ns: Some(now_ns() - 1) };
    assert_eq!(driver.hands.perform(errand, 0), Outcome::TooLate);
    assert_eq!(sealed.state().1, LeaseState::Opening);
}

#[test]
fn dropping_it_at_any_stage_ends_the_session() {
    let (mut supervisor, driver) = Supervisor::greet(2);
    drop(driver);
    supervisor.hear_the_end();

    let sealed = Sealed::new();
    let (mut supervisor, driver, lock) = opening(&sealed, &[]);
    drop(driver);
    assert_not_ready(&mut supervisor);
    lock.release().unwrap();
    assert!(!sealed.is_locked());
}

#[test]
fn heartbeats_are_sent_while_the_daemon_warms_and_opens() {
    let timing = Timing { heartbeat: Duration::from_millis(5), ..Timing::default() };
    let sealed = Sealed::new();
    let (mut supervisor, mut driver) = Supervisor::greet_with(2, timing);
    (0..3).for_each(|_| supervisor.hear_heartbeat());
    driver.warmed().unwrap();
    assert_eq!(supervisor.hear(), Message::Warmed { handoff_id: ID });
    thread::scope(|scope| {
        let begun = scope.spawn(|| driver.wait_for_begin().map(drop));
        // Those of the daemon's own thread; the library's has long stepped back at the last.
        (0..3).for_each(|_| supervisor.hear_heartbeat());
        supervisor.begin(sealed.epoch, &[]);
        begun.join().unwrap().unwrap();
    });
    // A daemon that does something else first, without a call of ours.
    (0..3).for_each(|_| supervisor.hear_heartbeat());
    let _lock = take_lock(&mut driver, sealed.path()).unwrap();
    (0..3).for_each(|_| supervisor.hear_heartbeat());
}

#[test]
fn no_descriptor_and_no_thread_is_left_of_a_successor_that_gave_up() {
    run_alone("successor::tests::counts_what_is_left");
}

#[test]
#[ignore = "run by the test before in a process of its own"]
fn counts_what_is_left() {
    let sealed = Sealed::new();
    let before = footprint();
    for _ in 0..3 {
        drop(Supervisor::greet(2));
        assert_nothing_is_left(before, "the greeting");

        let (mut supervisor, mut driver) = Supervisor::greet(2);
        driver.stage_control(&sealed.socket()).unwrap();
        supervisor.abort();
        driver.wait_for_begin().unwrap_err();
        drop((supervisor, driver));
        assert_nothing_is_left(before, "an abort before Begin");

        let (mut supervisor, mut driver) = Supervisor::greet(2);
        supervisor.begin_warmed(&mut driver, sealed.epoch, &[5]);
        drop((supervisor, driver));
        assert_nothing_is_left(before, "a Begin that it made nothing of");
    }
}
