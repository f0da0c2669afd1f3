//! The whole channel on simulated disks, from one seed: workload, schedule, crashes and faults.
//!
//! A [`Plan`] is a history written out; [`simulate`] runs it and compares what survives each crash with what was
//! promised; [`shrink()`] makes a failing one small. `exhaustive` goes through every operation of short histories.
//!
//! ```text
//! seed ─► Plan ─► World.apply(step) ... crash ─► recover ─► Model.compare ... finish ─► Report
//! ```

mod coverage;
pub mod exhaustive;
pub mod golden;
mod model;
pub mod mortal;
mod plan;
pub mod rot;
mod shrink;
#[cfg(test)]
mod tests;
mod world;

pub use coverage::{Coverage, FaultKind, Phase};
pub use plan::{Plan, Step, Verb};
pub use shrink::shrink;
pub use world::{Report, World, run_on_real_files, simulate};
