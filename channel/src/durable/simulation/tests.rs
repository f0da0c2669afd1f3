//! Short runs of the simulation in the ordinary tests; the long ones are `cargo xtask prove`.

use super::exhaustive::{SCENARIOS, crash_everywhere, fail_everywhere, scenario};
use super::*;
use wal::io::sim::Failure;

#[test]
fn nothing_acknowledged_is_lost_over_random_crashes() {
    let mut total = Report::default();
    for seed in 0..600 {
        let plan = Plan::from_seed(seed);
        total.add(&simulate(&plan).unwrap_or_else(|broken| panic!("{broken}\n{plan}")));
    }
    println!("{}", total.coverage);
    assert!(total.crashes > 1000 && total.events_acknowledged > 20_000 && total.events_settled > 2000, "{total:?}");
}

#[test]
fn one_seed_gives_one_history() {
    for seed in 0..20 {
        let plan = Plan::from_seed(seed);
        assert_eq!(simulate(&plan), simulate(&plan));
    }
}

/// Each file is a history that once broke a promise, with its story.
#[test]
fn what_was_found_once_stays_mended() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/durable/simulation/cases");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let plan = Plan::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        simulate(&plan).unwrap_or_else(|broken| panic!("{}: {broken}", path.display()));
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn a_crash_at_every_operation_loses_nothing() {
    for (name, text) in SCENARIOS {
        let sweep = crash_everywhere(&scenario(text), 4).unwrap_or_else(|broken| panic!("{name}: {broken}"));
        println!("{name}: {sweep:?}");
        assert!(sweep.operations > 40, "{name}: only {sweep:?}");
    }
}

#[test]
fn an_error_at_every_operation_loses_nothing() {
    for (name, text) in SCENARIOS {
        let failures = [Failure::ALL[0], Failure::ALL[1], Failure::ALL[7]];
        let sweep = fail_everywhere(&scenario(text), &failures).unwrap_or_else(|broken| panic!("{name}: {broken}"));
        println!("{name}: {sweep:?}");
        assert!(sweep.operations > 40, "{name}: only {sweep:?}");
    }
}
