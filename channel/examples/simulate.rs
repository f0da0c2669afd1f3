//! Runs simulations of the durable channel: `cargo run -p channel --features sim --example simulate -- FIRST COUNT`.
//!
//! Prints each broken promise with its seed, and ends with 1 if there was one.

use std::process::ExitCode;
use std::time::Instant;

use channel::simulation::{Plan, simulate};

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|number| number.parse().ok()).collect();
    let [first, count] = numbers[..] else {
        eprintln!("usage: simulate FIRST_SEED COUNT");
        return ExitCode::from(2);
    };
    let started = Instant::now();
    let (mut crashes, mut broken) = (0, 0);
    for seed in first..first.saturating_add(count) {
        match simulate(&Plan::from_seed(seed)) {
            Ok(report) => crashes += report.crashes,
            Err(story) => {
                println!("{story}");
                broken += 1;
            }
        }
    }
    let rate = crashes as f64 / started.elapsed().as_secs_f64();
    println!("{count} seeds, {crashes} crashes, {broken} broken promises, {rate:.0} crashes a second");
    ExitCode::from(u8::from(broken > 0))
}
