//! The driver against a scripted incumbent (a thread, with a real lock) and real processes as successors.
//!
//! A scripted successor is this test program again, running [`cast::plays_successor`] alone.

mod cast;
mod handovers;
mod placement;
mod refusals;
mod restarts;
