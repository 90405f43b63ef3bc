//! Performs the successor machine's effects, on two threads around one machine: the daemon's, and the library's (`helper`).
//!
//! The library thread waits for the supervisor and for time, sends the heartbeats, and never touches the disk. The
//! daemon's thread runs the errands (the lock, the lease, the control socket) inside its own blocking calls, so a slow disk
//! delays no heartbeat and no errand costs a change of thread. Which of them waits, and how each is woken, stands in `shifts`.
//! Whoever has an input takes the mutex, steps the machine and performs the effects at once; only an errand is run outside of
//! the mutex. When the successor has taken over, the library thread is the incumbent's, and so is what is still to be said to
//! the supervisor.
//!
//! No decision of the protocol is taken here, and nothing here ends the process.

mod effects;
mod hands;
mod last_words;
mod shifts;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use handoff_lock::{ServingLock, Unlocked};
use handoff_proto::successor::{
    Answer, Call, Errand, GaveUp, Input, LockShown, Outcome, Report, Sealed, Successor as Machine,
};
use handoff_proto::{BeginMode, HandoffId, Timing};

use crate::channel::Channel;
use crate::drainable::ReadinessSnapshot;
use crate::error::{Error, Result};
use crate::events;
use crate::helper::Helper;
use crate::relief::Relief;
use crate::sys::fork::StaysHere;
use crate::waker::Waker;
use effects::Core;
use hands::Hands;
pub(crate) use hands::Serving;
pub use last_words::telling_why;
use shifts::{Next, Shared, converse};

/// The daemon's end: its calls, and the errands in them. Dropping it gives the handover up and ends the library thread.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    helper: Option<Helper>,
    hands: Hands,
}

/// What a successor that has taken over has become.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) serving: Serving,
    pub(crate) helper: Helper,
    /// Nobody waits for these any more.
    pub(crate) waker: Waker,
    pub(crate) relief: Relief,
    /// To the supervisor, which may not have taken all of the Ready yet.
    pub(crate) parting: Option<Channel>,
}

/// Tells the supervisor that a successor gets on with opening its data; see
/// [`BegunSuccessor::open_progress`](crate::BegunSuccessor::open_progress).
#[derive(Debug, Clone)]
pub struct OpenProgress(Arc<Shared>);

impl OpenProgress {
    /// The opening has got on. It costs little, never waits, and may be said as often as you like: what is sent is a few messages
    /// within the bound. After the opening it does nothing.
    pub fn report(&self) {
        self.0.act_from_outside(|core| core.step(Input::Progressed));
    }
}

impl Driver {
    /// Greets the supervisor, and starts the library thread while it answers.
    ///
    /// # Errors
    /// The system gives no thread or descriptor.
    pub(crate) fn greet(
        control: StaysHere,
        transfer: Option<StaysHere>,
        build_id: Vec<u8>,
        timing: Timing,
    ) -> Result<Self> {
        events::prepare();
        let failed = |error: io::Error| Error::io("prepare the channel to the supervisor", error);
        let channel = Channel::new(control);
        let polled = channel.polled();
        let machine = Machine::new(std::process::id(), build_id.clone(), timing);
        let mut core = Core::new(machine, channel);
        core.step(Input::Daemon(Call::Handshake));
        let shared = Arc::new(Shared::new(core, polled).map_err(failed)?);
        let helper = Helper::start()?;
        let theirs = Arc::clone(&shared);
        helper.give(move || converse(&theirs));
        Ok(Self { shared, helper: Some(helper), hands: Hands::new(build_id, transfer) })
    }

    /// Waits for the answer to the greeting.
    ///
    /// # Errors
    /// The supervisor does not answer as it should.
    pub(crate) fn greeted(&mut self) -> Result<HandoffId> {
        self.shared.listen_until_answered();
        match self.answer()? {
            Answer::Greeted { handoff_id, .. } => Ok(handoff_id),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Binds the control socket beside its path, for [`announce`](Self::announce) to find.
    pub(crate) fn stage_control(&mut self, control_socket: &Path) -> Result<()> {
        self.hands.stage_ahead(control_socket)
    }

    /// Tells that all is loaded that needs no data.
    pub(crate) fn warmed(&mut self) -> Result<()> {
        self.call(Call::Warmed).map(drop)
    }

    /// Waits for the turn: how the data was left, and what was sealed if that is known.
    pub(crate) fn wait_for_begin(&mut self) -> Result<(BeginMode, Option<Sealed>)> {
        self.shared.lock().step(Input::Daemon(Call::WaitForBegin));
        self.shared.listen_until_answered();
        match self.answer()? {
            Answer::Begun { mode, sealed } => Ok((mode, sealed)),
            other => Err(out_of_turn(&other)),
        }
    }

    fn call(&mut self, call: Call) -> Result<Answer> {
        self.shared.lock().step(Input::Daemon(call));
        self.answer()
    }

    /// Blocks until the machine answers, and runs the errands that the answer takes.
    fn answer(&mut self) -> Result<Answer> {
        self.answer_and_serve(&mut || {})
    }

    /// The same; `serve` is called when the lease has become Active, if that alone makes this process the owner.
    fn answer_and_serve(&mut self, serve: &mut dyn FnMut()) -> Result<Answer> {
        loop {
            match self.shared.next() {
                Next::Errand { errand, begun_unix_ms } => {
                    // A supervisor of version 1 does not look at the lease: to it only Ready counts.
                    let by_lease = matches!(errand, Errand::ActivateLease { not_after_ns: Some(_) });
                    let outcome = self.hands.perform(errand, begun_unix_ms);
                    if by_lease && outcome == Outcome::Done {
                        serve();
                    }
                    self.shared.lock().step(Input::Did(outcome));
                }
                Next::Answer(answer) => return self.accepted(answer),
                Next::Nothing => {
                    return Err(Error::Aborted { reason: "the thread that talks to the supervisor has ended".into() });
                }
            }
        }
    }

    /// Takes the lock when it is this process's turn, and tells how the data was left.
    pub(crate) fn lock(&mut self, unlocked: Unlocked) -> Result<(ServingLock, BeginMode)> {
        self.hands.look_at(unlocked);
        match self.call(Call::Lock)? {
            Answer::Locked { mode } => Ok((self.hands.take_lock()?, mode)),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Gives the handover up, and has the supervisor told why.
    pub(crate) fn give_up(self, reason: String) {
        self.shared.lock().step(Input::Daemon(Call::GiveUp(reason)));
    }

    /// What tells the supervisor that the opening gets on, from any thread.
    pub(crate) fn open_progress(&self) -> OpenProgress {
        OpenProgress(Arc::clone(&self.shared))
    }

    /// Becomes the incumbent; `serve` is called as soon as that can't be undone. On an error the lock stays held until the
    /// process exits.
    pub(crate) fn announce(
        &mut self,
        readiness: ReadinessSnapshot,
        control_socket: &Path,
        lock: ServingLock,
        serve: impl FnOnce(),
    ) -> Result<Announced> {
        let report = Report {
            listening_on: readiness.listening_on,
            healthz_ok: readiness.healthz_ok,
            advertised_revision_per_shard: readiness.advertised_revision_per_shard,
            data_dir_fingerprint: readiness.data_dir_fingerprint,
        };
        let shown =
            LockShown { epoch: lock.lease().epoch, handoff_id: lock.lease().handoff_id.map(HandoffId::from_bytes) };
        self.hands.present(lock, control_socket);
        let mut serve = Some(serve);
        let mut serve_once = || {
            if let Some(serve) = serve.take() {
                serve();
            }
        };
        let mut core = self.shared.lock();
        // The store was opened meanwhile: an order to give up comes before the word that it is done.
        core.turn();
        core.step(Input::Daemon(Call::Announce { report, lock: shown }));
        drop(core);
        self.answer_and_serve(&mut serve_once)?;
        let serving = self.hands.take_serving()?;
        let helper = self.helper.take().ok_or_else(|| Error::Usage("it has taken over before".into()))?;
        serve_once();
        let parting = self.shared.part();
        events::pass_on();
        let (waker, relief) = self.shared.wakers();
        Ok(Announced { serving, helper, waker, relief, parting })
    }

    fn accepted(&mut self, answer: Answer) -> Result<Answer> {
        match answer {
            Answer::GaveUp(GaveUp::StepFailed { .. }) => Err(self.hands.take_error()),
            Answer::GaveUp(why) => Err(error_of(&why)),
            Answer::Misuse => Err(Error::Usage("lock() was called before: a successor takes the lock once".into())),
            answer => Ok(answer),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let Some(helper) = self.helper.take() else { return };
        let conversation = Conversation { shared: Arc::clone(&self.shared), helper };
        if let Some(conversation) = last_words::leave(conversation) {
            let is_panicking = std::thread::panicking();
            conversation.end(if is_panicking { Call::GiveUp("the daemon panicked".into()) } else { Call::Dropped });
        }
    }
}

/// What is left of a handle that was dropped: the library thread, which talks to the supervisor.
struct Conversation {
    shared: Arc<Shared>,
    helper: Helper,
}

impl Conversation {
    /// Ends it, and the thread, with this.
    fn end(self, call: Call) {
        let mut core = self.shared.lock();
        core.step(Input::Daemon(call));
        // One whose lease is Active gives nothing up any more. But if its `serve` has panicked it does not serve either: the
        // supervisor hears that it is gone, and does not wait for it.
        core.hang_up();
        drop(core);
        self.shared.end();
        // It blocks on nothing but its own wait, which has just ended.
        self.helper.join();
        events::settle();
    }
}

/// The machine answered another question than the one that was asked; its tests show that it does not.
fn out_of_turn(answer: &Answer) -> Error {
    Error::Protocol(format!("the successor's machine answered {answer:?} out of turn"))
}

fn error_of(why: &GaveUp) -> Error {
    match why {
        GaveUp::Aborted { .. }
        | GaveUp::SupervisorGone
        | GaveUp::SupervisorSilent
        | GaveUp::Late
        | GaveUp::NotItsTurn { .. }
        | GaveUp::LockHeld
        | GaveUp::StepFailed { .. }
        | GaveUp::Daemon { .. }
        | GaveUp::Dropped => Error::Aborted { reason: why.to_string() },
        GaveUp::Version { .. } | GaveUp::Unexpected { .. } | GaveUp::Garbage => Error::Protocol(why.to_string()),
        GaveUp::Unfit(unfit) => Error::Unfit { reason: unfit.to_string() },
        GaveUp::WrongLock => Error::Usage(why.to_string()),
    }
}
