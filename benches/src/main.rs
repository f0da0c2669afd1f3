//! `penstock-bench`: sizes a node before it is bought.
//!
//! Each command measures one thing and prints one JSON object, or a short table. It promises that what it calls durable
//! was durable, and that a number which could not be measured is `null` and never a guess. What the numbers mean and how
//! they were reached is in `docs/performance.md`.

mod agent;
mod backlog;
mod budget;
mod channel;
mod cli;
mod count;
mod cpu;
mod device;
mod fio;
mod goals;
mod host;
mod idle;
mod meter;
mod numbers;
mod open_loop;
mod output;
mod payload;
mod plan;
mod pool;
mod sheet;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Device(arguments) => device::run(&arguments),
        Command::Channel(arguments) => channel::run(&arguments),
        Command::Goals(arguments) => goals::run(&arguments),
        Command::Backlog(arguments) => backlog::run(&arguments),
        Command::Idle(arguments) => idle::run(&arguments),
        Command::Agent(arguments) => agent::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Count(arguments) => count::run(&arguments),
        Command::Budget(arguments) => budget::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
