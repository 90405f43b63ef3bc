//! The `handoff` program.
fn main() {}
