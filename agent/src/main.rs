//! `penstock`: the agent.
fn main() {}
