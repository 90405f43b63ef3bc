//! Long random walks through the same world, with more faults than an exhaustive walk can afford.
//!
//! A walk follows from its seed alone: the same seed goes the same way, and a failure says which it was.

use super::HandoverModel;
use super::graph::line;
use crate::world::{Broken, Move, World};

/// One in so many moves is a fault, where one is possible and allowed.
const FAULT_ONE_IN: u64 = 24;

/// What a walk was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walked {
    /// How many moves it took.
    pub moves: usize,
    /// How often the world had come to rest, and began anew.
    pub rounds: usize,
    /// How many faults happened.
    pub faults: usize,
    /// In how many of its states somebody served.
    pub serving: usize,
}

/// A walk that came to a broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed: the same one finds it again.
    pub seed: u64,
    /// What was broken.
    pub broken: Broken,
    /// The way there since the world was last at rest.
    pub trace: String,
}

impl HandoverModel {
    /// Walks at random for so many moves.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn simulate(&self, seed: u64, moves: usize) -> Result<Walked, Box<Failure>> {
        let mut dice = Dice::new(seed);
        let mut world = World::new(self.0.sabotage);
        let mut walked = Walked { moves: 0, rounds: 0, faults: 0, serving: 0 };
        let mut way = Vec::new();
        while walked.moves < moves {
            if world.is_over(&self.0) {
                world = World::new(self.0.sabotage);
                way.clear();
                walked.rounds += 1;
            }
            let (faults, others): (Vec<_>, Vec<_>) =
                world.moves(&self.0).into_iter().partition(|possible| possible.is_fault());
            let wants_fault = others.is_empty() || dice.throw(FAULT_ONE_IN) == 0;
            let chosen = if wants_fault && !faults.is_empty() { &faults } else { &others };
            // Nothing can happen any more: as good as at rest.
            let Some(next) = dice.choose(chosen) else {
                world = World::new(self.0.sabotage);
                way.clear();
                continue;
            };
            world = world.after(next);
            way.push(next);
            walked.moves += 1;
            walked.faults += usize::from(next.is_fault());
            walked.serving += usize::from(world.is_serving());
            if let Some(broken) = world.broken() {
                return Err(Box::new(Failure { seed, broken, trace: self.trace(&way) }));
            }
        }
        Ok(walked)
    }

    fn trace(&self, way: &[Move]) -> String {
        let mut world = World::new(self.0.sabotage);
        let mut text = String::new();
        for next in way {
            let after = world.after(*next);
            text += &line(&world, *next, &after);
            world = after;
        }
        text
    }
}

/// A xorshift generator (Marsaglia, 2003): all that is needed is that a seed says everything.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One of the numbers below `sides`.
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }

    fn choose<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        if among.is_empty() {
            return None;
        }
        among.get(self.throw(among.len() as u64) as usize).copied()
    }
}
