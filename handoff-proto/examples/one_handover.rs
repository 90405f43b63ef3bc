//! One whole handover through the three machines and the codec, without any I/O: what the protocol itself costs.
//!
//! `.ci/run` counts the instructions of [`hand_over`] with valgrind: a count repeats where a time does not. It is also the
//! shortest driver of the machines that there can be: everything that they ask for works at once.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use handoff_proto::frame::{FrameAccumulator, encode_into};
use handoff_proto::incumbent::{self, Drain, Incumbent, Leaving, LockTried, Seal, SessionId};
use handoff_proto::successor::{self, Age, Answer, Call, Errand, Found, LockShown, Report, Successor};
use handoff_proto::supervisor::{self, LeaseReading, Outcome, Ownership, Plan, Supervisor, Watchdog};
use handoff_proto::{HandoffId, LeaseState, LeaseView, Machine, Message, ProcessId, ProtoVersion, Timing};

const ID: HandoffId = HandoffId::from_bytes([7; 16]);
const S: ProcessId = ProcessId { pid: 50, start_time: 1 };
const O: ProcessId = ProcessId { pid: 100, start_time: 2 };
const N: ProcessId = ProcessId { pid: 200, start_time: 3 };
const SESSION: SessionId = SessionId(1);
const DEADLINE_NS: u64 = 1_000_000_000_000;
const REVISIONS: [u64; 4] = [10, 20_000, 30_000_000, 40_000_000_000];

fn main() {
    println!("{} messages in a handover", black_box(hand_over()));
}

/// Returns how many messages went over the wire.
#[inline(never)]
fn hand_over() -> usize {
    let mut world = World::new();
    let plan = Plan {
        handoff_id: ID,
        deadline: Duration::from_secs(300),
        drain_grace: Duration::from_secs(60),
        warm: Duration::from_secs(60),
        open: Duration::from_secs(60),
        resume: Duration::from_secs(60),
        ownership: Ownership::ByLease,
        watchdog: Watchdog::Ends,
        unheard: None,
    };
    world.inputs.push_back(Input::Supervisor(supervisor::Input::Start(plan)));
    while let Some(input) = world.inputs.pop_front() {
        world.take(input);
    }
    assert_eq!(world.outcome, Some(Outcome::Committed { epoch: Some(2) }));
    assert_eq!(world.left, Some(Leaving::Committed));
    assert!(world.n.is_active());
    world.messages
}

enum Input {
    Supervisor(supervisor::Input),
    Incumbent(incumbent::Input),
    Successor(successor::Input),
}

struct World {
    s: Supervisor,
    o: Incumbent,
    n: Successor,
    lease: LeaseView,
    /// What is to be told to the machines, in order.
    inputs: VecDeque<Input>,
    /// What an effect of the step at hand came to: it is told before anything else.
    results: Vec<Input>,
    kept: Vec<u8>,
    accumulator: FrameAccumulator,
    messages: usize,
    outcome: Option<Outcome>,
    left: Option<Leaving>,
}

impl World {
    fn new() -> Self {
        let timing = Timing::default();
        let config = incumbent::Config { me: O, epoch: 1, build_id: b"build 1".to_vec(), timing };
        Self {
            s: Supervisor::new(timing),
            o: Incumbent::new(config),
            n: Successor::new(N.pid, b"build 2".to_vec(), timing),
            lease: LeaseView { epoch: 1, owner: O, state: LeaseState::Active, handoff_id: None },
            inputs: VecDeque::with_capacity(16),
            results: Vec::with_capacity(8),
            kept: Vec::with_capacity(256),
            accumulator: FrameAccumulator::new(),
            messages: 0,
            outcome: None,
            left: None,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Supervisor(input) => {
                for effect in self.s.step(input) {
                    self.perform_supervisors(effect);
                }
            }
            Input::Incumbent(input) => {
                for effect in self.o.step(input) {
                    self.perform_incumbents(effect);
                }
            }
            Input::Successor(input) => {
                for effect in self.n.step(input) {
                    self.perform_successors(effect);
                }
            }
        }
        while let Some(result) = self.results.pop() {
            self.inputs.push_front(result);
        }
    }

    /// Over the wire and back.
    fn sent(&mut self, version: ProtoVersion, message: &Message) -> (ProtoVersion, Message) {
        self.messages += 1;
        self.kept.clear();
        encode_into(&mut self.kept, version, message).expect("it fits a frame");
        self.accumulator.poll_read(&mut self.kept.as_slice()).expect("a frame").expect("whole")
    }

    fn perform_supervisors(&mut self, effect: supervisor::Effect) {
        use supervisor::Effect;
        let answer = match effect {
            Effect::ConnectIncumbent => {
                let connected = incumbent::Input::Connected { session: SESSION, peer_pid: Some(S.pid) };
                self.inputs.push_back(Input::Incumbent(connected));
                supervisor::Input::Connected(O)
            }
            Effect::SpawnSuccessor(_) => {
                self.inputs.push_back(Input::Successor(successor::Input::Daemon(Call::Handshake)));
                supervisor::Input::Spawned(N)
            }
            Effect::SendIncumbent(version, message) => {
                let (version, message) = self.sent(version, &message);
                return self.inputs.push_back(Input::Incumbent(incumbent::Input::Received(SESSION, version, message)));
            }
            Effect::SendSuccessor(version, mut message) => {
                if let Message::BeginWith { deadline_ns, .. } = &mut message {
                    *deadline_ns = DEADLINE_NS;
                }
                let (_, message) = self.sent(version, &message);
                let arrived = successor::Wire::Message(message);
                return self.inputs.push_back(Input::Successor(successor::Input::Wire(arrived)));
            }
            Effect::PassTransfer(version, message) => {
                let (version, message) = self.sent(version, &message);
                return self.inputs.push_back(Input::Incumbent(incumbent::Input::Received(SESSION, version, message)));
            }
            Effect::SyncJournal => supervisor::Input::JournalSynced,
            Effect::ReadLease => supervisor::Input::Lease(LeaseReading::Found(self.lease)),
            Effect::AskControlPath => supervisor::Input::ControlPath(Some(N.pid)),
            Effect::Finish(outcome) => {
                self.outcome = Some(outcome);
                return;
            }
            // Timers never run out here, and what is noted is noted for nobody.
            _ => return,
        };
        self.results.push(Input::Supervisor(answer));
    }

    fn perform_incumbents(&mut self, effect: incumbent::Effect) {
        use incumbent::Effect;
        let answer = match effect {
            Effect::Send(_, version, message) | Effect::SendWithNext(_, version, message) => {
                let (_, message) = self.sent(version, &message);
                return self.inputs.push_back(Input::Supervisor(supervisor::Input::FromIncumbent(message)));
            }
            // Hooks end when they end, behind what has arrived meanwhile.
            Effect::RunDrain { .. } => {
                let drained = Ok(Drain { open_conns_remaining: 8, accept_closed: true });
                return self.inputs.push_back(Input::Incumbent(incumbent::Input::DrainEnded(drained)));
            }
            Effect::RunSeal => {
                let sealed = Ok(Seal { last_revision_per_shard: REVISIONS.to_vec(), data_dir_fingerprint: [9; 32] });
                return self.inputs.push_back(Input::Incumbent(incumbent::Input::SealEnded(sealed)));
            }
            Effect::PassDirectory(_) => incumbent::Input::DirectoryPassed(Ok(())),
            Effect::StampLease(id) => {
                self.lease.handoff_id = Some(id);
                incumbent::Input::Stamped(Ok(()))
            }
            Effect::ReleaseLock(_) => {
                self.lease.state = LeaseState::Sealed;
                incumbent::Input::Released(Ok(()))
            }
            Effect::WatchSuccessor { .. } => incumbent::Input::SuccessorWatched,
            Effect::ReadLease => incumbent::Input::LeaseRead(Ok(Some(self.lease))),
            Effect::FindHolder => incumbent::Input::HolderFound(Some(N.pid)),
            Effect::TryLock => incumbent::Input::LockTried(LockTried::Held),
            Effect::AskControlPath => incumbent::Input::PathAnswered(Some(N.pid)),
            Effect::Leave(leaving) => {
                self.left = Some(leaving);
                return;
            }
            _ => return,
        };
        self.results.push(Input::Incumbent(answer));
    }

    fn perform_successors(&mut self, effect: successor::Effect) {
        use successor::Effect;
        let answer = match effect {
            Effect::Send(version, message) => {
                let (_, message) = self.sent(version, &message);
                return self.inputs.push_back(Input::Supervisor(supervisor::Input::FromSuccessor(message)));
            }
            Effect::Answer(answer) => match self.next_call(&answer) {
                Some(call) => successor::Input::Daemon(call),
                None => return,
            },
            Effect::Do(errand) => successor::Input::Did(self.run(errand)),
            _ => return,
        };
        self.results.push(Input::Successor(answer));
    }

    /// A daemon that does one thing after the other.
    fn next_call(&self, answer: &Answer) -> Option<Call> {
        match answer {
            Answer::Greeted { .. } => Some(Call::Warmed),
            Answer::Done => Some(Call::WaitForBegin),
            Answer::Begun { .. } => Some(Call::Lock),
            Answer::Locked { .. } => Some(Call::Announce {
                report: Report {
                    listening_on: vec!["127.0.0.1:8080".to_owned()],
                    healthz_ok: true,
                    advertised_revision_per_shard: REVISIONS.to_vec(),
                    data_dir_fingerprint: None,
                },
                lock: LockShown { epoch: self.lease.epoch, handoff_id: self.lease.handoff_id },
            }),
            Answer::Announced => None,
            Answer::GaveUp(_) | Answer::Misuse => unreachable!("{answer:?}"),
        }
    }

    fn run(&mut self, errand: Errand) -> successor::Outcome {
        match errand {
            Errand::TryLock => successor::Outcome::Locked(Found::Lease { lease: self.lease, age: Age::AfterBegin }),
            Errand::ClaimLease { handoff_id } => {
                let epoch = self.lease.epoch + 1;
                self.lease = LeaseView { epoch, owner: N, state: LeaseState::Opening, handoff_id: Some(handoff_id) };
                successor::Outcome::Claimed { epoch }
            }
            Errand::ActivateLease { .. } => {
                self.lease.state = LeaseState::Active;
                successor::Outcome::Done
            }
            Errand::Unlock | Errand::StageControl | Errand::PublishControl => successor::Outcome::Done,
        }
    }
}

#[test]
fn one_handover_commits() {
    assert!(hand_over() > 10);
}
