//! The exhaustive checks on the [world](crate::world): stateright walks through all of its states and holds the promises
//! against each; a graph of the same states tells whether a serving one can be reached from everywhere.

mod graph;
mod simulation;

use stateright::{Model, Property};

use crate::world::{Limits, Move, World};

pub use graph::{Graph, Summary};
pub use simulation::{Failure, Walked};

/// A world within limits, as stateright sees it.
#[derive(Debug, Clone, Copy)]
pub struct HandoverModel(pub Limits);

impl Model for HandoverModel {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.0.sabotage)]
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        moves.extend(world.moves(&self.0));
    }

    fn next_state(&self, world: &World, next: Move) -> Option<World> {
        Some(world.after(next))
    }

    fn format_step(&self, world: &World, next: Move) -> Option<String> {
        Some(world.after(next).summary())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("no promise is broken", |_, world: &World| world.broken().is_none())]
    }
}
