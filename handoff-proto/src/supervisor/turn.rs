//! The successor's words, above all while it is its turn, and what is made of its Ready.

use std::mem;

use crate::message::{Message, short_name};

use super::checks::{not_ready, unfit};
use super::handover::{Begun, Handover, Step, Warmth};
use super::peer::{Greeting, Link};
use super::{Effect, Milestone, Timer};

impl Handover {
    pub(super) fn heard_successor(&mut self, message: Message, effects: &mut Vec<Effect>) {
        let Some(peer) = &self.successor else { return };
        if peer.link == Link::Gone || peer.link == Link::Cut {
            return;
        }
        if message.since_version() > peer.version_or_min() {
            let error = format!("{} in version {}", short_name(&message), peer.version_or_min());
            return self.successor_misbehaved(&error, effects);
        }
        if self.successor_must_beat() {
            effects.push(Effect::Arm(Timer::SuccessorSilent, self.timing.liveness));
        }
        let id = self.plan.handoff_id;
        match (&mut self.step, message) {
            (_, Message::Heartbeat { .. }) => {}
            (Step::GreetingSuccessor, Message::Hello { role, pid, proto_min, proto_max, capabilities, .. }) => {
                let greeting = Greeting { role, pid, proto_min, proto_max, capabilities };
                self.successor_greeted(&greeting, effects);
            }
            (Step::Preparing { intent, warmth: Warmth::Warming }, Message::Warmed { handoff_id })
                if handoff_id == id =>
            {
                let intent = *intent;
                self.warmed(intent, effects);
            }
            (Step::AwaitingReady(begun), Message::Revisions { first_shard, revisions }) => {
                if let Err(error) = begun.report.push(first_shard, &revisions) {
                    self.successor_misbehaved(&error.to_string(), effects);
                }
            }
            (
                Step::AwaitingReady(begun),
                Message::Ready { handoff_id, healthz_ok, advertised_revision_per_shard, .. },
            ) if handoff_id == id => {
                let advertised = begun.report.complete(&advertised_revision_per_shard);
                let verdict = unfit(healthz_ok, &advertised, begun.seal.as_ref());
                let begun = mem::take(begun);
                self.ready(begun, verdict, effects);
            }
            (Step::AwaitingReady(_), Message::OpenProgress { handoff_id }) if handoff_id == id => {
                effects.push(Effect::Arm(Timer::Open, self.plan.open));
            }
            (
                Step::Preparing { .. }
                | Step::Draining
                | Step::Sealing { .. }
                | Step::Looking { .. }
                | Step::AwaitingReady(_)
                | Step::AwaitingPath(_),
                Message::NotReady { handoff_id, reason },
            ) if handoff_id == id => self.undo_given_up(not_ready(&reason), effects),
            (Step::Undoing(undoing), message) => {
                if let Some(reason) = undoing.take_late_ready(message, id) {
                    self.condemn(reason, effects);
                }
            }
            (Step::Over, _) => {}
            (
                Step::Connecting
                | Step::GreetingIncumbent
                | Step::Spawning
                | Step::GreetingSuccessor
                | Step::Preparing { .. }
                | Step::Draining
                | Step::Sealing { .. }
                | Step::Looking { .. }
                | Step::AwaitingReady(_)
                | Step::AwaitingPath(_),
                message,
            ) => {
                let error = format!("{} out of order or with a foreign id", short_name(&message));
                self.successor_misbehaved(&error, effects);
            }
        }
    }

    fn ready(&mut self, begun: Begun, verdict: Option<String>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Disarm(Timer::SuccessorSilent));
        effects.push(Effect::Disarm(Timer::Open));
        effects.push(Effect::Reached(Milestone::ReadyReceived));
        if let Some(reason) = verdict {
            return self.undo_unfit(reason, begun, effects);
        }
        if self.successor_version() < 2 {
            self.step = Step::AwaitingPath(begun);
            effects.push(Effect::AskControlPath);
        } else {
            self.commit(begun.epoch, effects);
        }
    }

    pub(super) fn control_path_answered(&mut self, pid: Option<u32>, effects: &mut Vec<Effect>) {
        let is_successor = pid.is_some() && pid == self.successor.as_ref().map(|peer| peer.process.pid);
        match &self.step {
            Step::AwaitingPath(begun) if is_successor => self.commit(begun.epoch, effects),
            Step::AwaitingPath(_) => effects.push(Effect::Arm(Timer::AskPath, self.timing.limbo_poll)),
            Step::Undoing(_) if is_successor => self.successor_answers(effects),
            Step::Undoing(_) => self.successor_does_not_answer(effects),
            Step::Connecting
            | Step::GreetingIncumbent
            | Step::Spawning
            | Step::GreetingSuccessor
            | Step::Preparing { .. }
            | Step::Draining
            | Step::Sealing { .. }
            | Step::Looking { .. }
            | Step::AwaitingReady(_)
            | Step::Over => {}
        }
    }
}
