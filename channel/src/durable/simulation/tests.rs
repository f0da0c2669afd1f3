//! Short runs of the simulation in the ordinary tests; the long ones are `cargo xtask prove`.

use super::exhaustive::{SCENARIOS, crash_everywhere, fail_everywhere, scenario};
use super::world::World;
use super::*;
use wal::format::frame::FrameHeader;
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

/// Two segments, written in one life.
const SEALED: &str =
    "seed 3 dirs 1 encrypted 0 segment-pages 6 depth 1 overlap 1 one-device 0 hot-tail 0 capacity 10000
    put 0 2 300
    gather 0
    chore
    chore
    chore
    chore
    chore
    chore
    gather 0
    sync 0
    take 0 2
    settle 0 3 1
    gather 0
    sync 0
    put 1 2 300
    gather 0
    chore
    chore
    chore
    chore
    chore
    chore
    gather 0
    sync 0
    put 0 2 300
    gather 0
    chore
    chore
    chore
    chore
    chore
    chore
    gather 0
    sync 0
    put 1 2 300
    gather 0
    chore
    chore
    chore
    chore
    chore
    chore
    gather 0
    sync 0";

#[test]
fn a_start_reads_footers_and_where_one_is_damaged_the_frames_instead() {
    for encrypted in [false, true] {
        let mut world = World::new(Plan { encrypted, ..scenario(SEALED) });
        for step in scenario(SEALED).steps {
            world.apply(step).unwrap();
        }
        world.close().unwrap();
        let mut whole = world.fork();
        assert!(whole.opens_and_holds().unwrap());
        assert_eq!(whole.report().footed, 1);
        let footers = |bytes: &[u8]| -> Vec<std::ops::Range<usize>> {
            let pages = (0..bytes.len()).step_by(4096);
            let headers = pages.filter_map(|at| FrameHeader::decode(&bytes[at..]).ok());
            let footers = headers.filter(|header| header.witness && header.ordinal == 1);
            footers.map(|header| header.offset as usize..header.end() as usize).collect()
        };
        let (dir, name, bytes) = world.platter().into_iter().find(|(_, _, bytes)| !footers(bytes).is_empty()).unwrap();
        for at in footers(&bytes)[0].clone() {
            let mut damaged = world.fork();
            damaged.corrupt(&dir, &name, |bytes| bytes[at] ^= 16);
            assert!(damaged.opens_and_holds().unwrap(), "byte {at}");
            assert_eq!(damaged.report().footed, 0, "byte {at}");
        }
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

#[test]
fn a_channel_that_lies_idle_tells_rot_before_a_take_meets_it() {
    for encrypted in [false, true] {
        let flips = rot::Fixture::new(encrypted, false).flip_idle(rot::Part::WHOLE).unwrap();
        assert!(flips.noticed > 50, "{flips:?}");
    }
}
