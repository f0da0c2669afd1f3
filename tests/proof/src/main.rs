//! `proof`: the layers of the proof that nothing is lost, each a subcommand, and the lanes that put them together.
//!
//! Run it as `cargo xtask prove`. Each layer is one module with a function `run(&Budget) -> Tally`; `docs/reliability.md`
//! says what each of them shows.

mod agent_faults;
mod bench;
mod block;
mod cuts;
mod disks;
mod faults;
mod full;
mod kills;
mod lanes;
mod ledger;
mod load;
mod model;
mod mortal;
mod planted;
mod simulated;
mod syscalls;
mod tally;
mod two;
mod volume;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "proof")]
enum Arguments {
    /// Several layers together.
    Lane(lanes::Arguments),
    /// Random histories on simulated disks.
    Simulation(tally::Alone),
    /// A crash and each error at every operation of short histories.
    Exhaustive(tally::Alone),
    /// Random histories on real files.
    Model(tally::Alone),
    /// Every bit of every file of a small channel.
    Flips(tally::Alone),
    /// Bugs on purpose, each of which must be noticed.
    Planted(tally::Alone),
    #[command(hide = true)]
    PlantedOne(planted::One),
    /// Power cuts on ext4 and xfs.
    Cuts(tally::Alone),
    /// Failing writes and flushes below the whole agent.
    AgentFaults(tally::Alone),
    /// One of three disks lost or stalled.
    Disks(tally::Alone),
    /// Failing writes and flushes below ext4 and xfs.
    Faults(tally::Alone),
    /// `kill -9` of the whole agent.
    Kills(tally::Alone),
    /// A kill at each system call.
    Syscalls(tally::Alone),
    /// Full disks.
    Full(tally::Alone),
    /// A process for a kill at one of its system calls.
    #[command(hide = true)]
    Mortal(syscalls::Mortal),
    /// Two processes on one directory.
    Two(tally::Alone),
    /// A load on a channel, for layers that kill it.
    #[command(hide = true)]
    Load(load::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse() {
        Arguments::Lane(lane) => lane.run(),
        Arguments::Simulation(alone) => alone.run(simulated::random),
        Arguments::Exhaustive(alone) => alone.run(simulated::exhaustive),
        Arguments::Model(alone) => alone.run(model::run),
        Arguments::Flips(alone) => alone.run(simulated::flips),
        Arguments::Planted(alone) => alone.run(planted::run),
        Arguments::PlantedOne(one) => planted::one(&one),
        Arguments::Cuts(alone) => alone.run(cuts::run),
        Arguments::AgentFaults(alone) => alone.run(agent_faults::run),
        Arguments::Disks(alone) => alone.run(disks::run),
        Arguments::Faults(alone) => alone.run(faults::run),
        Arguments::Kills(alone) => alone.run(kills::run),
        Arguments::Syscalls(alone) => alone.run(syscalls::run),
        Arguments::Full(alone) => alone.run(full::run),
        Arguments::Mortal(mortal) => syscalls::die(&mortal),
        Arguments::Two(alone) => alone.run(two::run),
        Arguments::Load(arguments) => load::child(&arguments),
    }
}
