//! Runs simulations of the durable channel: `cargo run -p channel --features sim --example simulate -- FIRST COUNT`.
//!
//! Prints what was met, and for a broken promise the smallest history that breaks it.

use std::process::ExitCode;
use std::time::Instant;

use channel::simulation::{Plan, Report, shrink, simulate};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (Some(Ok(first)), Some(Ok(count))) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: simulate FIRST_SEED COUNT");
        return ExitCode::from(2);
    };
    let (began, mut total) = (Instant::now(), Report::default());
    for seed in first..first + count {
        let plan = Plan::from_seed(seed);
        match simulate(&plan) {
            Ok(report) => total.add(&report),
            Err(broken) => {
                println!("seed {seed}: {broken}");
                let small = shrink(&plan, &|plan| simulate(plan).is_err());
                println!("{}\n{small}", simulate(&small).expect_err("it still fails"));
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    total.cycles.sort_unstable();
    let median = total.cycles[total.cycles.len() / 2].0;
    total.cycles.sort_unstable_by_key(|(_, rolls)| *rolls);
    let rolls = total.cycles[total.cycles.len() / 2].1;
    println!(
        "{} crashes, {:.0} a second, median cycle {median} events {rolls} rolls",
        total.crashes,
        total.crashes as f64 / seconds
    );
    println!("{}\nmissing {:?}, surprises {:?}", total.coverage, total.coverage.missing(), total.coverage.surprises());
    total.cycles.clear();
    println!("{total:?}");
    ExitCode::SUCCESS
}
