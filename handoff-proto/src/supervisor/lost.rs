//! A peer ends its channel, breaks the protocol, or dies: in every step, of either peer.
//!
//! The end of a channel is a death only when the process is dead too; else its peer gets a moment, and then counts as alive
//! and out of reach.

use super::handover::{Handover, Intent, Step, Warmth};
use super::peer::Link;
use super::{Effect, Timer};

impl Handover {
    pub(super) fn cancelled(&mut self, why: String, effects: &mut Vec<Effect>) {
        self.undo(why, effects);
    }

    pub(super) fn incumbent_closed(&mut self, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.incumbent.as_mut().filter(|peer| peer.link == Link::Open) {
            peer.link = Link::Closing;
            effects.push(Effect::CloseIncumbent);
            effects.push(Effect::Disarm(Timer::Heartbeat));
            effects.push(Effect::Arm(Timer::IncumbentClosed, self.timing.closed_grace));
        }
    }

    pub(super) fn incumbent_still_alive(&mut self, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.incumbent.as_mut().filter(|peer| peer.link == Link::Closing) {
            peer.link = Link::Cut;
            self.incumbent_unreachable("the incumbent closed its session".into(), effects);
        }
    }

    pub(super) fn incumbent_misbehaved(&mut self, error: &str, effects: &mut Vec<Effect>) {
        if let Link::Open | Link::Closing = self.incumbent_link() {
            self.cut_incumbent(effects);
            self.incumbent_unreachable(format!("the incumbent broke the protocol: {error}"), effects);
        }
    }

    pub(super) fn cut_incumbent(&mut self, effects: &mut Vec<Effect>) {
        if let Some(peer) = &mut self.incumbent {
            peer.link = Link::Cut;
            effects.push(Effect::CloseIncumbent);
            effects.push(Effect::Disarm(Timer::Heartbeat));
            effects.push(Effect::Disarm(Timer::IncumbentClosed));
        }
    }

    /// It lives, so it resumes by itself; once its successor's turn has come, it is not needed.
    fn incumbent_unreachable(&mut self, reason: String, effects: &mut Vec<Effect>) {
        match &self.step {
            Step::GreetingIncumbent
            | Step::GreetingSuccessor
            | Step::Preparing { .. }
            | Step::Draining
            | Step::Sealing { .. }
            | Step::Looking { .. } => self.undo(reason, effects),
            Step::Undoing(_) => self.incumbent_lost(effects),
            Step::Connecting | Step::Spawning | Step::AwaitingReady(_) | Step::AwaitingPath(_) | Step::Over => {}
        }
    }

    pub(super) fn incumbent_gone(&mut self, effects: &mut Vec<Effect>) {
        let Some(peer) = self.incumbent.as_mut().filter(|peer| peer.link != Link::Gone) else { return };
        peer.link = Link::Gone;
        effects.push(Effect::CloseIncumbent);
        effects.push(Effect::Disarm(Timer::Heartbeat));
        effects.push(Effect::Disarm(Timer::IncumbentClosed));
        match &self.step {
            Step::GreetingIncumbent => self.refuse("the incumbent died before it said Hello".into(), effects),
            Step::Draining | Step::Sealing { .. } => self.promote(effects),
            Step::Undoing(_) => self.incumbent_died(effects),
            Step::Preparing { intent: Intent::Durable, warmth: Warmth::Warm } => self.promote(effects),
            // Its successor goes on, and is promoted if it is soon warmed: nobody serves meanwhile.
            Step::Preparing { warmth: Warmth::Warming, .. } => {
                effects.push(Effect::Arm(Timer::Warm, self.warm_bound()));
            }
            Step::GreetingSuccessor => effects.push(Effect::Arm(Timer::Hello, self.greeting_bound())),
            Step::Spawning | Step::Preparing { .. } => {}
            // Its data are sealed.
            Step::Looking { .. } | Step::AwaitingReady(_) | Step::AwaitingPath(_) => {}
            Step::Connecting | Step::Over => {}
        }
    }

    pub(super) fn successor_closed(&mut self, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.successor.as_mut().filter(|peer| peer.link == Link::Open) {
            peer.link = Link::Closing;
            effects.push(Effect::CloseSuccessor);
            effects.push(Effect::Arm(Timer::SuccessorClosed, self.timing.closed_grace));
        }
    }

    pub(super) fn successor_still_alive(&mut self, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.successor.as_mut().filter(|peer| peer.link == Link::Closing) {
            peer.link = Link::Cut;
            // One of version 1 hangs up when it has said that it is ready.
            if !matches!(self.step, Step::AwaitingPath(_)) {
                self.undo("the successor closed its channel".into(), effects);
            }
        }
    }

    pub(super) fn successor_misbehaved(&mut self, error: &str, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.successor.as_mut().filter(|peer| matches!(peer.link, Link::Open | Link::Closing)) {
            peer.link = Link::Cut;
            effects.push(Effect::CloseSuccessor);
            effects.push(Effect::Disarm(Timer::SuccessorClosed));
            self.undo(format!("the successor broke the protocol: {error}"), effects);
        }
    }

    pub(super) fn successor_gone(&mut self, how: &str, effects: &mut Vec<Effect>) {
        let Some(peer) = self.successor.as_mut().filter(|peer| peer.link != Link::Gone) else { return };
        peer.link = Link::Gone;
        effects.push(Effect::CloseSuccessor);
        effects.push(Effect::Disarm(Timer::SuccessorClosed));
        match &self.step {
            Step::GreetingSuccessor => self.undo(format!("the successor {how} before it said Hello"), effects),
            Step::Preparing { warmth: Warmth::Warming, .. } => {
                self.undo(format!("the successor {how} before it was warmed"), effects);
            }
            Step::Preparing { warmth: Warmth::Warm, .. }
            | Step::Draining
            | Step::Sealing { .. }
            | Step::Looking { .. } => self.undo(format!("the successor {how} before its turn"), effects),
            Step::AwaitingReady(_) => self.undo(format!("the successor {how} before it was ready"), effects),
            Step::AwaitingPath(_) => {
                self.undo(format!("the successor {how} before the control path was its own"), effects);
            }
            Step::Undoing(_) => self.ended(effects),
            Step::Connecting | Step::GreetingIncumbent | Step::Spawning | Step::Over => {}
        }
    }
}
