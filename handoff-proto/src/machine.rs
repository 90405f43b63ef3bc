//! The contract of the role machines: `step(input) -> effects`.
//!
//! * **Total.** Every input is legal in every state; what makes no sense there is ignored or ends a session. No panic.
//! * **Pure.** The state after a step and the effects follow from the state before it and the input alone. There is no clock:
//!   a machine asks for a timer with `Arm` and is told by `Fired`. Ids are drawn outside and come in.
//! * **Hashable.** Two equal states behave alike for ever after, so a model checker can walk all of them.
//! * **In order.** A driver performs the effects of a step in their order, and all of them, before it takes the next input.
//! * **Input before time.** A driver takes all input that has arrived before it obeys a timer that has run out, and tells a
//!   machine when its own loop was late, so that a paused machine makes nobody kill a healthy peer (promise 8).
//! * **Nothing of the past.** A timer names no handover and a result no process. So once a machine has disarmed a timer or armed it
//!   anew, its earlier setting never comes as `Fired`; each effect that has a result is answered once, before the next input or not
//!   at all; and what belongs to a handover or a process that is over is dropped. A driver whose timers or results travel through a
//!   queue has to look, when it takes one out, whether it is still wanted. [`Checked`](crate::Checked) notices in debug builds if it does not. A machine that is done has disarmed all of its timers.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

/// One role of a handover, or another decision that is taken step by step.
pub trait Machine: Clone + Debug + Eq + Hash {
    /// What can happen to it.
    type Input;
    /// What it asks its driver to do.
    type Effect: Debug;

    /// Takes one input and returns what is to be done now, in order.
    #[must_use = "effects do nothing until they are performed"]
    fn step(&mut self, input: Self::Input) -> Vec<Self::Effect>;
}

/// The protocol's intervals. The defaults are those of `docs/protocol.md`, section 5; tests shorten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timing {
    /// How often whoever is busy says so.
    pub heartbeat: Duration,
    /// Silence where heartbeats are due means dead or frozen after this long.
    pub liveness: Duration,
    /// The bound on a greeting: Hello and HelloAck.
    pub hello: Duration,
    /// A late successor is ended by the supervisor this long after the deadline.
    pub successor_slack: Duration,
    /// A late successor is ended by an incumbent in limbo this long after the deadline.
    pub limbo_slack: Duration,
    /// A closed channel means death only if the process is gone too; else the peer gets this long.
    pub closed_grace: Duration,
    /// How often an incumbent in limbo looks at the lease, at most.
    pub limbo_poll: Duration,
    /// The longest handover that an incumbent agrees to, whatever it was asked for.
    pub deadline_max: Duration,
    /// How long the supervisor waits for an ended process to be gone.
    pub settle: Duration,
    /// How long a successor may still warm up once its incumbent is dead: to start the last good build takes no longer.
    pub promotion: Duration,
    /// How long a successor that has given up may take to leave by itself, with its last words.
    pub parting: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(2),
            liveness: Duration::from_secs(10),
            hello: Duration::from_secs(5),
            successor_slack: Duration::from_secs(1),
            limbo_slack: Duration::from_secs(3),
            closed_grace: Duration::from_millis(200),
            limbo_poll: Duration::from_millis(50),
            deadline_max: Duration::from_secs(3600),
            settle: Duration::from_secs(10),
            promotion: Duration::from_secs(2),
            parting: Duration::from_secs(1),
        }
    }
}
