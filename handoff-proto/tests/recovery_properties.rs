//! What the recovery's machine never does, whatever it finds and in whatever order.

use handoff_proto::recovery::{Effect, Findings, Input, Journaled, Recovery, Timer, Verdict};
use handoff_proto::supervisor::{LeaseReading, Stopped};
use handoff_proto::{LeaseState, LeaseView, Machine, Phase, ProcessId, Timing};
use proptest::prelude::*;

const O: ProcessId = ProcessId { pid: 100, start_time: 1 };
const N: ProcessId = ProcessId { pid: 200, start_time: 2 };
const STRANGER: u32 = 300;

fn lease() -> impl Strategy<Value = LeaseView> {
    let states = prop::sample::select(vec![LeaseState::Opening, LeaseState::Active, LeaseState::Sealed]);
    (prop::sample::select(vec![O, N]), states).prop_map(|(owner, state)| LeaseView {
        epoch: 3,
        owner,
        state,
        handoff_id: None,
    })
}

fn some_process() -> impl Strategy<Value = Option<ProcessId>> {
    prop::sample::select(vec![None, Some(O), Some(N)])
}

fn findings() -> impl Strategy<Value = Findings> {
    let phases = prop::sample::select(vec![Phase::Draining, Phase::AwaitingReady, Phase::Committed]);
    let journal = prop::option::of((phases, some_process(), some_process()))
        .prop_map(|found| found.map(|(phase, incumbent, successor)| Journaled { phase, incumbent, successor }));
    let leaving = prop::collection::vec(prop::sample::select(vec![O, N]), 0..2);
    let holder = prop::sample::select(vec![None, Some(O.pid), Some(N.pid), Some(STRANGER)]);
    (journal, prop::option::of(lease()), some_process(), leaving, some_process(), holder).prop_map(
        |(journal, lease, daemon, leaving, answers, lock_holder)| Findings {
            journal,
            lease,
            daemon,
            leaving,
            answers,
            lock_holder,
        },
    )
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => findings().prop_map(Input::Found),
        3 => prop::sample::select(vec![Stopped::Yes, Stopped::NotYet]).prop_map(Input::Stopped),
        3 => lease().prop_map(|lease| Input::Lease(LeaseReading::Found(lease))),
        2 => prop::sample::select(Timer::ALL.to_vec()).prop_map(Input::Fired),
        1 => prop::sample::select(vec![
            Input::Lease(LeaseReading::Nobody),
            Input::Lease(LeaseReading::Unreadable("x".into())),
            Input::Gone,
            Input::WokeLate,
            Input::Start,
        ]),
    ]
}

/// What has been seen so far, by an observer who knows the rules and not the machine.
#[derive(Default)]
struct Observer {
    /// It was sent SIGSTOP, and nobody has decided about it.
    undecided: Option<ProcessId>,
    /// The lease was read after that, and says that it serves.
    serves: Option<bool>,
    /// The results that are due.
    finding: bool,
    seeing: bool,
    looking: bool,
    /// A process is being ended.
    ending: bool,
    armed: Vec<Timer>,
    verdict: Option<Verdict>,
}

impl Observer {
    /// No driver feeds a result that nobody has asked for, or a timer that does not run.
    fn is_possible(&self, input: &Input) -> bool {
        match input {
            Input::Start => self.verdict.is_some() || self.armed.is_empty(),
            Input::Found(_) => self.finding,
            Input::Stopped(_) => self.seeing,
            Input::Lease(_) => self.looking,
            Input::Gone => self.ending,
            Input::Fired(timer) => self.armed.contains(timer),
            Input::WokeLate => true,
        }
    }

    fn before(&mut self, input: &Input) {
        match input {
            Input::Start if self.verdict.is_some() => *self = Self::default(),
            Input::Gone => (self.undecided, self.ending, self.looking, self.seeing) = (None, false, false, false),
            Input::Found(_) => self.finding = false,
            Input::Stopped(_) => self.seeing = false,
            Input::Fired(timer) => self.armed.retain(|armed| armed != timer),
            Input::Lease(reading) => {
                let stopped = self.undecided;
                self.looking = false;
                self.serves = match reading {
                    LeaseReading::Found(lease) => {
                        Some(Some(lease.owner) == stopped && lease.state == LeaseState::Active)
                    }
                    LeaseReading::Nobody => Some(false),
                    LeaseReading::Unreadable(_) => None,
                };
            }
            _ => {}
        }
    }

    fn after(&mut self, effect: &Effect) {
        assert!(self.verdict.is_none(), "{effect:?} after the end");
        match effect {
            Effect::Stop(process) => {
                assert_eq!(self.undecided, None, "one is left standing still for the next");
                assert_ne!(process.pid, STRANGER);
                (self.undecided, self.serves) = (Some(*process), None);
                (self.seeing, self.ending) = (true, true);
            }
            Effect::Continue(process) => {
                self.undecided = self.undecided.filter(|stopped| stopped != process);
                self.ending = false;
            }
            Effect::Kill(process) => {
                assert_eq!(self.undecided, Some(*process), "killed without being stopped");
                assert_eq!(self.serves, Some(false), "killed without a look at the lease, or against it");
                self.undecided = None;
            }
            Effect::ReadLease => self.looking = true,
            Effect::Arm(timer, _) => self.armed.push(*timer),
            Effect::Disarm(timer) => self.armed.retain(|armed| armed != timer),
            Effect::Finish(verdict) => {
                assert_eq!(self.undecided, None, "a process is left standing still");
                assert!(self.armed.is_empty(), "{:?} run after the end", self.armed);
                self.verdict = Some(*verdict);
            }
            Effect::Look => self.finding = true,
            Effect::LookIfStopped(_) => self.seeing = true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keeps_its_promises(inputs in prop::collection::vec(any_input(), 0..80)) {
        let mut machine = Recovery::new(Timing::default());
        let mut observer = Observer::default();
        for input in std::iter::once(Input::Start).chain(inputs) {
            if !observer.is_possible(&input) {
                continue;
            }
            observer.before(&input);
            for effect in machine.step(input) {
                observer.after(&effect);
            }
        }
    }
}
