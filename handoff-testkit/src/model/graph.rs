//! All states of a model and what leads from each to which: the question "can somebody serve again from here?" needs the
//! whole of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

use stateright::Model;

use super::HandoverModel;
use crate::world::{Broken, Move, World};

/// The states of a model.
#[derive(Debug)]
pub struct Graph {
    model: HandoverModel,
    /// From where each state was reached first; the first one from itself.
    parents: Vec<u32>,
    prints: Vec<u64>,
    broken: BTreeMap<Broken, u32>,
    stuck: Vec<u32>,
    edges: usize,
}

/// What a walk has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How many states there are.
    pub states: usize,
    /// How many moves lead from one to another.
    pub edges: usize,
    /// Each promise that is broken somewhere.
    pub broken: Vec<Broken>,
    /// From how many states nobody can serve again without help.
    pub dead_ends: usize,
}

impl Graph {
    /// Walks through all states, the nearest first.
    pub fn explore(model: HandoverModel) -> Self {
        Self::explore_while(model, |_| true)
    }

    /// The same, but only until a promise is broken.
    pub fn explore_until_broken(model: HandoverModel) -> Self {
        Self::explore_while(model, BTreeMap::is_empty)
    }

    fn explore_while(model: HandoverModel, goes_on: fn(&BTreeMap<Broken, u32>) -> bool) -> Self {
        let mut walk = Walk::default();
        for world in model.init_states() {
            walk.reach(0, world.fingerprint(), world);
        }
        while goes_on(&walk.broken) && !walk.open.is_empty() {
            let batch: Vec<_> = walk.open.drain(..walk.open.len().min(BATCH)).collect();
            for expanded in walk.expand(&model, &batch) {
                if !goes_on(&walk.broken) {
                    break;
                }
                walk.take(expanded);
            }
        }
        walk.close(model)
    }

    /// What was found, in figures.
    pub fn summary(&self) -> Summary {
        Summary {
            states: self.prints.len(),
            edges: self.edges,
            broken: self.broken.keys().copied().collect(),
            dead_ends: self.stuck.len(),
        }
    }

    /// The states from which nobody can serve again without help.
    pub fn dead_ends(&self) -> impl Iterator<Item = World> {
        self.stuck.iter().filter_map(|at| self.walk_to(*at).last().map(|(_, world)| world.clone()))
    }

    /// The shortest way to each broken promise and to the nearest dead ends, for people.
    pub fn traces(&self) -> String {
        let broken = self.broken.iter().map(|(broken, at)| format!("{broken:?}:\n{}", self.trace(*at)));
        let stuck = self.stuck.iter().take(3).map(|at| format!("dead end:\n{}", self.trace(*at)));
        broken.chain(stuck).collect::<Vec<_>>().join("\n")
    }

    /// How one state is reached, a move and the world after it in each line.
    fn trace(&self, at: u32) -> String {
        let mut world = World::new(self.model.0.sabotage);
        let mut text = String::new();
        for (next, after) in self.walk_to(at) {
            text += &line(&world, next, &after);
            world = after;
        }
        text
    }

    /// The moves that lead to a state, each with the world after it.
    fn walk_to(&self, at: u32) -> Vec<(Move, World)> {
        let mut way = Vec::new();
        let mut here = at;
        while self.parents[here as usize] != here {
            way.push(here);
            here = self.parents[here as usize];
        }
        let mut steps: Vec<(Move, World)> = Vec::new();
        for at in way.into_iter().rev() {
            let start = World::new(self.model.0.sabotage);
            let world = steps.last().map_or(&start, |(_, world)| world);
            let print = self.prints[at as usize];
            steps.extend(self.model.next_steps(world).into_iter().find(|(_, next)| next.fingerprint() == print));
        }
        steps
    }
}

/// One step of a trace.
pub(super) fn line(before: &World, next: Move, after: &World) -> String {
    format!("  {next:?} {}\n      {}\n", before.about_to(next), after.summary())
}

#[derive(Default)]
struct Walk {
    seen: HashMap<u64, u32>,
    parents: Vec<u32>,
    prints: Vec<u64>,
    open: VecDeque<(u32, World)>,
    /// Moves that happen by themselves, backwards.
    progress: Vec<(u32, u32)>,
    serving: Vec<u32>,
    broken: BTreeMap<Broken, u32>,
    edges: usize,
}

/// How many states are looked at between two times that what was found is put together. The order in which states are found
/// does not depend on how many threads look.
const BATCH: usize = 8192;

/// What one state leads to.
struct Expanded {
    from: u32,
    what: What,
}

enum What {
    /// What comes after it is not judged.
    Broken(Broken),
    Goes {
        is_serving: bool,
        on: Vec<Next>,
    },
}

struct Next {
    /// Whether it happens by itself.
    is_progress: bool,
    to: To,
}

enum To {
    Known(u32),
    New(u64, Box<World>),
}

impl Walk {
    /// Looks at these states, on all cores; the result is in the states' order.
    fn expand(&self, model: &HandoverModel, batch: &[(u32, World)]) -> Vec<Expanded> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            let expand = move |part: &[(u32, World)]| {
                part.iter().map(|(from, world)| self.look(model, *from, world)).collect::<Vec<_>>()
            };
            let parts = batch.chunks(batch.len().div_ceil(threads).max(1));
            let workers: Vec<_> = parts.map(|part| scope.spawn(move || expand(part))).collect();
            let join =
                |worker: thread::ScopedJoinHandle<'_, _>| worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            workers.into_iter().flat_map(join).collect()
        })
    }

    fn look(&self, model: &HandoverModel, from: u32, world: &World) -> Expanded {
        let next = |next: Move| {
            let after = world.after(next);
            let print = after.fingerprint();
            let to = self.seen.get(&print).map_or_else(|| To::New(print, Box::new(after)), |at| To::Known(*at));
            Next { is_progress: next.is_progress(), to }
        };
        let what = match world.broken() {
            Some(broken) => What::Broken(broken),
            None => {
                What::Goes { is_serving: world.is_serving(), on: world.moves(&model.0).into_iter().map(next).collect() }
            }
        };
        Expanded { from, what }
    }

    fn take(&mut self, Expanded { from, what }: Expanded) {
        match what {
            What::Broken(broken) => {
                self.broken.entry(broken).or_insert(from);
                self.serving.push(from);
            }
            What::Goes { is_serving, on } => {
                if is_serving {
                    self.serving.push(from);
                }
                for Next { is_progress, to } in on {
                    let to = match to {
                        To::Known(at) => at,
                        To::New(print, world) => self.reach(from, print, *world),
                    };
                    self.edges += 1;
                    if is_progress && to != from {
                        self.progress.push((to, from));
                    }
                }
            }
        }
    }

    fn reach(&mut self, from: u32, print: u64, world: World) -> u32 {
        match self.seen.entry(print) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(unknown) => {
                let at = self.parents.len() as u32;
                unknown.insert(at);
                self.parents.push(from);
                self.prints.push(print);
                self.open.push_back((at, world));
                at
            }
        }
    }

    /// Finds the states from which no serving one is reached.
    fn close(mut self, model: HandoverModel) -> Graph {
        drop(self.seen);
        self.progress.sort_unstable();
        let mut is_good = vec![false; self.parents.len()];
        let mut good = self.serving;
        good.iter().for_each(|at| is_good[*at as usize] = true);
        while let Some(at) = good.pop() {
            let first = self.progress.partition_point(|(to, _)| *to < at);
            for (_, from) in self.progress[first..].iter().take_while(|(to, _)| *to == at) {
                if !std::mem::replace(&mut is_good[*from as usize], true) {
                    good.push(*from);
                }
            }
        }
        let stuck = (0..self.parents.len() as u32).filter(|at| !is_good[*at as usize]).collect();
        Graph { model, parents: self.parents, prints: self.prints, broken: self.broken, stuck, edges: self.edges }
    }
}
