//! Random walks: a driver with a lock, a lease, hooks and a successor of its own checks what the machine asks for.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What the machine's effects do, and what they must never do.
struct Stage {
    rig: Rig,
    lock: Option<u32>,
    lease: LeaseView,
    hook: Option<Hook>,
    drains_open: u32,
    /// Released, and not read again since.
    stale: bool,
    asked: bool,
    next_session: u64,
    open: Vec<SessionId>,
    prepared: u8,
    armed: BTreeSet<Timer>,
    /// Whether the successor of the handover that is about to begin has a part in the directory's lock, and that of the last.
    passing: bool,
    passed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Hook {
    Drain,
    Seal,
    Resume,
}

impl Stage {
    fn new() -> Self {
        let lease = LeaseView { epoch: 5, owner: ME, state: LeaseState::Active, handoff_id: None };
        Self {
            rig: Rig { machine: machine(), version: 2 },
            lock: Some(ME.pid),
            lease,
            hook: None,
            drains_open: 0,
            stale: false,
            asked: false,
            next_session: 0,
            open: Vec::new(),
            prepared: 0,
            armed: BTreeSet::new(),
            passing: false,
            passed: false,
        }
    }

    /// Feeds an input, then every local result, as a driver does.
    fn feed(&mut self, input: Input, luck: u8) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let has_resumed = matches!(input, Input::ResumeEnded(_));
            let effects = self.rig.step(input);
            assert!(
                !has_resumed || !effects.iter().any(tells_failure),
                "a failure was kept back until the resume: {effects:?}"
            );
            let results: Vec<Input> = effects.into_iter().filter_map(|effect| self.perform(effect, luck)).collect();
            assert!(results.len() <= 2, "{results:?}");
            inputs.extend(results.into_iter().rev());
            if self.hook.is_some() {
                assert_eq!(self.lock, Some(ME.pid), "a hook runs without the lock");
            }
            if self.rig.machine.is_serving() {
                assert_eq!(self.lock, Some(ME.pid), "serving without the lock (promise 1)");
                assert!(!self.stale, "serving stale memory");
                assert_eq!(self.drains_open, 0, "serving without a resume (promise 9)");
            }
        }
    }

    fn fails(luck: u8, one_in: u8) -> bool {
        luck.is_multiple_of(one_in)
    }

    fn start(&mut self, hook: Hook) {
        assert_eq!(self.hook, None, "{hook:?} overlaps");
        assert_eq!(self.lock, Some(ME.pid), "{hook:?} without the lock");
        self.hook = Some(hook);
    }

    fn perform(&mut self, effect: Effect, luck: u8) -> Option<Input> {
        let failure = || "chance".to_owned();
        match effect {
            Effect::RunDrain { .. } => {
                self.drains_open += 1;
                self.start(Hook::Drain);
            }
            Effect::RunSeal => self.start(Hook::Seal),
            Effect::RunResume { state_may_have_changed, epoch } => {
                assert!(self.drains_open > 0, "a resume without a drain (promise 9)");
                assert!(state_may_have_changed || !self.stale, "stale memory");
                assert_eq!((self.lease.state, self.lease.owner, self.lease.epoch), (LeaseState::Active, ME, epoch));
                self.start(Hook::Resume);
            }
            Effect::PassDirectory(session) => {
                assert_eq!(self.lock, Some(ME.pid), "who does not hold the lock has nothing to pass");
                assert!(self.open.contains(&session), "over the channel of a closed session");
                self.passing = !Self::fails(luck, 3);
                return Some(Input::DirectoryPassed(if self.passing { Ok(()) } else { Err(failure()) }));
            }
            Effect::StampLease(handoff_id) => {
                self.passed = std::mem::take(&mut self.passing);
                if Self::fails(luck, 7) {
                    return Some(Input::Stamped(Err(failure())));
                }
                self.write(LeaseView { handoff_id: Some(handoff_id), ..self.lease });
                return Some(Input::Stamped(Ok(())));
            }
            Effect::ReleaseLock(directory) => {
                assert_eq!(
                    directory == Directory::Passed,
                    self.passed,
                    "the directory's lock is let go, or kept for nobody"
                );
                assert_eq!(self.hook, None, "released under a hook");
                if Self::fails(luck, 5) {
                    return Some(Input::Released(Err(failure())));
                }
                self.write(LeaseView { state: LeaseState::Sealed, ..self.lease });
                self.lock = None;
                self.stale = true;
                return Some(Input::Released(Ok(())));
            }
            Effect::ReadLease if Self::fails(luck, 11) => return Some(Input::LeaseRead(Err(failure()))),
            Effect::ReadLease => return Some(Input::LeaseRead(Ok(Some(self.lease)))),
            Effect::FindHolder => return Some(Input::HolderFound(self.lock.filter(|_| !Self::fails(luck, 3)))),
            Effect::TryLock => {
                assert_ne!(self.lock, Some(ME.pid), "tried while held");
                let tried = match self.lock {
                    Some(_) => LockTried::Held,
                    None if Self::fails(luck, 13) => LockTried::Failed,
                    None => {
                        self.lock = Some(ME.pid);
                        LockTried::Locked(Some(self.lease))
                    }
                };
                return Some(Input::LockTried(tried));
            }
            Effect::ClaimLease => {
                if Self::fails(luck, 5) {
                    self.lock = None;
                    return Some(Input::Claimed(Err(failure())));
                }
                let epoch = self.lease.epoch + 1;
                self.write(LeaseView { epoch, owner: ME, state: LeaseState::Opening, handoff_id: None });
                return Some(Input::Claimed(Ok(epoch)));
            }
            Effect::ActivateLease if Self::fails(luck, 3) => return Some(Input::Activated(Err(failure()))),
            Effect::ActivateLease => {
                self.write(LeaseView { state: LeaseState::Active, ..self.lease });
                return Some(Input::Activated(Ok(())));
            }
            Effect::Unlock => {
                assert_eq!(self.lock, Some(ME.pid));
                self.lock = None;
            }
            Effect::KillSuccessor => {
                let serves = self.lease.owner == SUCCESSOR && self.lease.state == LeaseState::Active;
                assert!(!serves || self.lock != Some(SUCCESSOR_PID), "a serving successor is ended");
                if self.lock == Some(SUCCESSOR_PID) {
                    self.lock = None;
                }
                return Some(Input::SuccessorExited);
            }
            Effect::WatchSuccessor { .. } if !Self::fails(luck, 4) => return Some(Input::SuccessorWatched),
            Effect::SeeSuccessor if Self::fails(luck, 2) => return Some(Input::SuccessorRunning),
            Effect::SeeSuccessor => return Some(Input::SuccessorStopped),
            Effect::AskControlPath => self.asked = true,
            Effect::StopAsking => self.asked = false,
            Effect::PublishControl if Self::fails(luck, 2) => return Some(Input::ControlPublished(Err(failure()))),
            Effect::PublishControl => return Some(Input::ControlPublished(Ok(()))),
            Effect::Arm(timer, _) => drop(self.armed.insert(timer)),
            Effect::Disarm(timer) => drop(self.armed.remove(&timer)),
            Effect::Close(session, _) => self.open.retain(|open| *open != session),
            Effect::Send(session, ..)
            | Effect::SendWithNext(session, ..)
            | Effect::SendHeartbeat(session, _)
            | Effect::SendListeners(session) => {
                assert!(self.open.contains(&session), "sent into a closed session");
            }
            Effect::SendStatus { session, .. } => assert!(self.open.contains(&session)),
            Effect::Leave(Leaving::Committed | Leaving::Superseded) => {
                assert_ne!(self.lock, Some(ME.pid), "left with the lock");
            }
            Effect::Leave(Leaving::NotReadable(_)) => assert_eq!(self.lock, None),
            Effect::WatchSuccessor { .. }
            | Effect::ForgetSuccessor
            | Effect::StopSuccessor
            | Effect::ContinueSuccessor
            | Effect::RememberListenerFlags
            | Effect::RestoreListenerFlags
            | Effect::CancelHook
            | Effect::Reached(..) => {}
        }
        None
    }

    fn write(&mut self, lease: LeaseView) {
        assert_eq!(self.lock, Some(ME.pid), "wrote the lease without the lock");
        self.lease = lease;
    }

    /// One thing that can happen in the world.
    fn happen(&mut self, what: u8, detail: u8, luck: u8) {
        let session = self.open.get(usize::from(detail) % self.open.len().max(1)).copied().unwrap_or(SessionId(99));
        let handoff_id = id(self.prepared.saturating_sub(detail % 8 / 7));
        match what % 24 {
            0 | 1 => {
                let session = SessionId(self.next_session);
                self.next_session += 1;
                self.open.push(session);
                self.feed(Input::Connected { session, peer_pid: Some(SUPERVISOR_PID) }, luck);
                let version = 1 + u16::from(!detail.is_multiple_of(3));
                self.say(session, Message::HelloAck { proto_version_chosen: version, handoff_id }, luck);
            }
            2..=4 => {
                self.prepared = self.prepared.wrapping_add(1);
                if detail.is_multiple_of(2) {
                    self.say(session, Message::TransferChannel { handoff_id: id(self.prepared) }, luck);
                }
                let prepare = Message::PrepareHandoff {
                    handoff_id: id(self.prepared),
                    successor_pid: SUCCESSOR_PID,
                    deadline_ms: 1,
                    drain_grace_ms: 1,
                };
                self.say(session, prepare, luck);
            }
            5..=7 => self.say(session, Message::SealRequest { handoff_id }, luck),
            8 => self.say(session, Message::ResumeAfterAbort { handoff_id }, luck),
            9 if self.lock == Some(SUCCESSOR_PID) => self.say(session, Message::Commit { handoff_id }, luck),
            10 => self.say(session, Message::Heartbeat { ts_ms: 0 }, luck),
            11 if detail.is_multiple_of(4) => {
                self.open.retain(|open| *open != session);
                self.feed(Input::Closed(session), luck);
            }
            12..=17 => self.hook_ends(detail, luck),
            18 => {
                const TIMERS: [Timer; 9] = [
                    Timer::Heartbeat,
                    Timer::Silence,
                    Timer::Deadline,
                    Timer::Late,
                    Timer::Progress,
                    Timer::Poll,
                    Timer::Stopping,
                    Timer::Retry,
                    Timer::Publish,
                ];
                self.fire(TIMERS[usize::from(detail) % TIMERS.len()], luck);
            }
            19 => self.fire(Timer::Poll, luck),
            20 => self.fire(Timer::Retry, luck),
            21 => self.successor_acts(detail),
            22 if self.asked => self.feed(Input::PathAnswered(Some(ME.pid).filter(|_| detail.is_multiple_of(2))), luck),
            23 => self.feed([Input::WokeLate, Input::ControlPathLost][usize::from(detail) % 2].clone(), luck),
            _ => {}
        }
    }

    /// Lets a timer run out, if it runs.
    fn fire(&mut self, timer: Timer, luck: u8) {
        if self.armed.remove(&timer) {
            self.feed(Input::Fired(timer), luck);
        }
    }

    /// From here on everything goes well: whatever happened before, somebody must serve in the end (promise 8).
    fn all_goes_well(&mut self) {
        const LUCK: u8 = 1;
        const GOOD: u8 = 1;
        while let Some(session) = self.open.pop() {
            self.feed(Input::Closed(session), LUCK);
        }
        for _ in 0..8 {
            self.hook_ends(GOOD, LUCK);
            if self.lock == Some(SUCCESSOR_PID) && self.lease.state != LeaseState::Active {
                self.lock = None;
                self.feed(Input::SuccessorExited, LUCK);
            }
            if self.asked {
                self.feed(Input::PathAnswered(None), LUCK);
            }
            for timer in [Timer::Stopping, Timer::Poll, Timer::Retry] {
                self.fire(timer, LUCK);
            }
        }
        let machine = &self.rig.machine;
        assert!(machine.is_serving() || machine.has_left(), "nobody serves: {machine:?}");
    }

    fn say(&mut self, session: SessionId, message: Message, luck: u8) {
        self.feed(Input::Received(session, 2, message), luck);
    }

    fn hook_ends(&mut self, detail: u8, luck: u8) {
        let good = !detail.is_multiple_of(4);
        let input = match self.hook.take() {
            None => return,
            Some(Hook::Drain) => Input::DrainEnded(if good { Ok(drain()) } else { Err("no".into()) }),
            Some(Hook::Seal) => Input::SealEnded(if good { Ok(seal()) } else { Err("no".into()) }),
            Some(Hook::Resume) if good => {
                self.drains_open = 0;
                self.stale = false;
                Input::ResumeEnded(ResumeEnd::Serving)
            }
            Some(Hook::Resume) => Input::ResumeEnded(ResumeEnd::Failed("no".into())),
        };
        self.feed(input, luck);
    }

    /// The successor of the handover that is sealed, as far as the lock lets it.
    fn successor_acts(&mut self, detail: u8) {
        match self.lock {
            None if self.lease.state == LeaseState::Sealed => {
                self.lock = Some(SUCCESSOR_PID);
                self.lease = LeaseView {
                    epoch: self.lease.epoch + 1,
                    owner: SUCCESSOR,
                    state: LeaseState::Opening,
                    handoff_id: self.lease.handoff_id,
                };
            }
            Some(SUCCESSOR_PID) if detail.is_multiple_of(2) => self.lease.state = LeaseState::Active,
            Some(SUCCESSOR_PID) => {
                self.lock = None;
                self.feed(Input::SuccessorExited, detail);
            }
            None | Some(_) => {}
        }
    }
}

/// In the words of version 2.
fn tells_failure(effect: &Effect) -> bool {
    matches!(effect, Effect::Send(_, 2, Message::DrainFailed { .. } | Message::SealFailed { .. }))
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (1u8..4).prop_map(|n| Message::PrepareHandoff {
            handoff_id: id(n),
            successor_pid: u32::from(n),
            deadline_ms: 1,
            drain_grace_ms: 1
        }),
        (1u8..4).prop_map(|n| Message::TransferChannel { handoff_id: id(n) }),
        (1u8..4).prop_map(|n| Message::SealRequest { handoff_id: id(n) }),
        (1u8..4).prop_map(|n| Message::Commit { handoff_id: id(n) }),
        (1u8..4).prop_map(|n| Message::ResumeAfterAbort { handoff_id: id(n) }),
        (0u16..4).prop_map(|version| Message::HelloAck { proto_version_chosen: version, handoff_id: id(1) }),
        Just(Message::Heartbeat { ts_ms: 0 }),
        Just(Message::Status),
        Just(Message::Warmed { handoff_id: id(1) }),
    ]
}

fn any_lease() -> impl Strategy<Value = Option<LeaseView>> {
    prop_oneof![
        Just(None),
        Just(Some(own_seal(1))),
        Just(Some(successor_lease(LeaseState::Opening, 1))),
        Just(Some(successor_lease(LeaseState::Active, 1))),
        Just(Some(successor_lease(LeaseState::Active, 2))),
    ]
}

fn any_input() -> impl Strategy<Value = Input> {
    let session = || (0u64..4).prop_map(SessionId);
    prop_oneof![
        4 => session().prop_map(|session| Input::Connected { session, peer_pid: Some(SUPERVISOR_PID) }),
        30 => (session(), 1u16..3, any_message()).prop_map(|(s, v, m)| Input::Received(s, v, m)),
        1 => session().prop_map(Input::Malformed),
        1 => session().prop_map(Input::Closed),
        4 => prop_oneof![Just(Ok(drain())), Just(Err("no".to_owned()))].prop_map(Input::DrainEnded),
        4 => prop_oneof![Just(Ok(seal())), Just(Err("no".to_owned()))].prop_map(Input::SealEnded),
        4 => prop_oneof![Just(ResumeEnd::Serving), Just(ResumeEnd::Failed("no".into()))].prop_map(Input::ResumeEnded),
        4 => prop_oneof![Just(Ok(())), Just(Err("no".to_owned()))].prop_map(Input::Stamped),
        4 => prop_oneof![Just(Ok(())), Just(Err("no".to_owned()))].prop_map(Input::Released),
        4 => any_lease().prop_map(|lease| Input::LeaseRead(Ok(lease))),
        2 => prop_oneof![Just(None), Just(Some(SUCCESSOR_PID))].prop_map(Input::HolderFound),
        4 => prop_oneof![
            any_lease().prop_map(LockTried::Locked),
            Just(LockTried::Held),
            Just(LockTried::Failed)
        ].prop_map(Input::LockTried),
        2 => prop_oneof![Just(Ok(6)), Just(Err("no".to_owned()))].prop_map(Input::Claimed),
        2 => prop_oneof![Just(Ok(())), Just(Err("no".to_owned()))].prop_map(Input::Activated),
        2 => prop_oneof![
            Just(Input::SuccessorWatched),
            Just(Input::SuccessorExited),
            Just(Input::SuccessorStopped),
            Just(Input::SuccessorRunning),
            Just(Input::PathAnswered(Some(1))),
            Just(Input::ControlPathLost),
            Just(Input::WokeLate),
            Just(Input::ControlPublished(Err("no".into()))),
        ],
        4 => prop_oneof![
            session().prop_map(Timer::Session),
            Just(Timer::Heartbeat),
            Just(Timer::Silence),
            Just(Timer::Deadline),
            Just(Timer::Late),
            Just(Timer::Progress),
            Just(Timer::Poll),
            Just(Timer::Stopping),
            Just(Timer::Ask),
            Just(Timer::Retry),
            Just(Timer::Publish),
        ].prop_map(Input::Fired),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_walk_breaks_a_promise(happenings in prop::collection::vec(any::<(u8, u8, u8)>(), 1..120)) {
        let mut stage = Stage::new();
        stage.happen(0, 1, 1);
        for (what, detail, luck) in happenings {
            stage.happen(what, detail, luck);
        }
        stage.all_goes_well();
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a broken driver feeds, also results that nobody asked for: no panic, no two hooks at a time.
    #[test]
    fn no_input_is_too_strange(inputs in prop::collection::vec(any_input(), 1..120)) {
        let mut machine = machine();
        let mut running = 0;
        for input in inputs {
            if let Input::DrainEnded(_) | Input::SealEnded(_) | Input::ResumeEnded(_) = input {
                running = 0;
            }
            let effects = machine.step(input);
            let starts = |effect: &&Effect| {
                matches!(effect, Effect::RunDrain { .. } | Effect::RunSeal | Effect::RunResume { .. })
            };
            running += effects.iter().filter(starts).count();
            prop_assert!(running <= 1);
            prop_assert_eq!(machine.clone(), machine.clone());
        }
    }
}
