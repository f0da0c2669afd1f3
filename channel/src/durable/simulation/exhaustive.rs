//! Short histories in which every operation of every disk is struck once: by the end of the machine, and by each error.

use wal::io::sim::{Failure, Fault, Outcome};

use super::plan::Plan;
use super::world::{Armed, Report, World};

/// The canonical histories, by name: small enough that all of their operations can be tried.
pub const SCENARIOS: [(&str, &str); 9] = [
    (
        "put",
        "seed 1 dirs 2 encrypted 1 segment-pages 6 depth 2 overlap 1 one-device 0 hot-tail 2000 capacity 10000
         put 0 0 100
         gather 0
         chore
         gather 0
         write 0
         sync 0
         advance 100
         gather 0
         chore
         gather 0
         sync 0
         put 0 1 300
         gather 0
         sync 0",
    ),
    (
        "batch",
        "seed 2 dirs 3 encrypted 0 segment-pages 8 depth 4 overlap 1 one-device 1 hot-tail 2000 capacity 10000
         put 0 4 900
         put 1 2 1500
         gather 0
         chore
         put 2 1 30
         put 0 0 10
         gather 0
         put 1 3 200
         gather 1
         write 1
         sync 0
         put 2 0 5
         gather 2
         write 0
         write 1
         sync 1
         sync 0
         gather 0
         sync 0
         sync 0",
    ),
    (
        "take",
        "seed 3 dirs 2 encrypted 1 segment-pages 5 depth 2 overlap 1 one-device 0 hot-tail 100 capacity 10000
         put 0 4 200
         gather 0
         chore
         gather 0
         sync 0
         put 1 4 200
         gather 1
         chore
         gather 1
         sync 0
         take 0 4
         take 1 3
         settle 0 3 1
         gather 0
         write 0
         settle 0 0 9
         sync 0
         take 1 9
         settle 0 9 2
         note 1 2
         gather 1
         chore
         gather 1
         sync 0
         take 0 9
         read
         settle 0 1 9
         gather 0
         chore
         gather 0
         sync 0",
    ),
    (
        "roll",
        "seed 4 dirs 1 encrypted 1 segment-pages 4 depth 2 overlap 1 one-device 0 hot-tail 2000 capacity 10000
         put 0 2 600
         gather 0
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         put 1 2 600
         gather 0
         chore
         gather 0
         sync 0
         put 2 2 600
         gather 0
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 4 1
         gather 0
         chore
         gather 0
         sync 0
         chore
         put 0 1 600
         gather 0
         chore
         gather 0
         write 0
         put 1 1 600
         chore
         gather 0
         sync 0
         sync 0
         chore
         gather 0
         sync 0",
    ),
    (
        "checkpoint",
        "seed 5 dirs 2 encrypted 1 segment-pages 4 depth 2 overlap 1 one-device 0 hot-tail 100 capacity 10000
         put 0 2 600
         gather 0
         chore
         gather 0
         sync 0
         put 1 2 600
         gather 0
         chore
         gather 0
         sync 0
         put 2 2 600
         gather 0
         chore
         gather 0
         sync 0
         advance 30
         checkpoint
         take 0 4
         settle 0 3 1
         gather 0
         chore
         gather 0
         sync 0
         advance 30
         checkpoint
         put 0 2 600
         gather 0
         chore
         gather 0
         sync 0
         crash 0
         put 1 2 600
         gather 0
         chore
         gather 0
         sync 0
         advance 30
         checkpoint",
    ),
    (
        "recovery",
        "seed 6 dirs 2 encrypted 1 segment-pages 5 depth 2 overlap 1 one-device 0 hot-tail 2000 capacity 10000
         put 0 2 600
         gather 0
         chore
         gather 0
         sync 0
         put 1 2 600
         gather 1
         chore
         gather 1
         sync 0
         put 2 3 900
         put 0 3 900
         gather 0
         write 0
         gather 1
         write 1
         crash 4 77
         put 1 1 50
         gather 0
         chore
         gather 0
         write 0
         crash 0
         put 2 1 50
         gather 1
         chore
         gather 1
         sync 0
         take 0 3
         settle 0 3 1
         gather 0
         sync 0
         crash 4 9",
    ),
    // A write fails beside one that does not return until its disk works again, is full, and segments are used afresh.
    (
        "late",
        "seed 7 dirs 1 encrypted 0 segment-pages 6 depth 3 overlap 1 one-device 0 hot-tail 2000 capacity 10000 pool 12
         put 0 0 50
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         chore
         chore
         chore
         chore
         chore
         chore
         take 0 9
         settle 0 3 9
         gather 0
         sync 0
         put 1 0 50
         gather 0
         hold 0 150
         put 2 0 50
         gather 0
         chore
         gather 0
         fail 0 0 72
         sync 0
         advance 300
         chore
         chore
         chore
         chore
         chore
         chore
         put 0 0 600
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         put 0 0 600
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         put 0 0 600
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         put 0 0 600
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         put 0 0 600
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         put 0 0 600
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         put 0 0 600
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         chore
         chore
         chore
         chore
         chore
         gather 0
         sync 0",
    ),
    // A channel that is encrypted, then not, then again, with frames of two kinds in one segment.
    (
        "keys",
        "seed 8 dirs 2 encrypted 1 segment-pages 5 depth 2 overlap 1 one-device 0 hot-tail 100 capacity 10000
         put 0 0 50
         gather 0
         chore
         gather 0
         sync 0
         put 1 0 50
         gather 1
         chore
         gather 1
         sync 0
         take 0 9
         settle 0 3 1
         gather 0
         sync 0
         encrypt 0
         crash 0
         put 0 1 600
         gather 0
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         gather 0
         sync 0
         put 1 1 600
         gather 0
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         gather 0
         sync 0
         put 2 0 50
         gather 1
         sync 0
         encrypt 1
         crash 4 9
         put 0 1 600
         gather 0
         chore
         gather 0
         sync 0
         take 0 9
         settle 0 3 9
         gather 0
         chore
         gather 0
         sync 0
         put 2 0 50
         gather 1
         chore
         gather 1
         sync 0",
    ),
    // Some writes wait for a flush while another flush is out and a third one is on its way, over two segments and two lives.
    (
        "flush",
        "seed 9 dirs 2 encrypted 1 segment-pages 8 depth 4 overlap 1 one-device 0 hot-tail 2000 capacity 10000 \
         shared-flush 1 measured 1
         put 0 0 50
         gather 0
         chore
         gather 0
         chore
         put 1 0 50
         gather 0
         chore
         put 2 0 50
         gather 0
         write 0
         sync 0
         sync 1
         sync 0
         sync 0
         sync 0
         put 0 0 50
         gather 0
         chore
         put 1 0 50
         gather 0
         put 2 0 50
         gather 0
         sync 0
         sync 1
         write 2
         sync 0
         sync 1
         sync 0
         sync 0
         take 0 9
         settle 0 3 1
         gather 0
         put 0 0 1500
         gather 0
         chore
         gather 0
         sync 0
         sync 1
         sync 0
         sync 0
         crash 4 3
         put 1 0 50
         gather 1
         chore
         gather 1
         put 2 0 50
         gather 1
         sync 0
         sync 0
         sync 1
         sync 0
         take 0 9
         settle 0 3 9
         gather 1
         sync 0
         sync 0
         sync 0",
    ),
];

/// A canonical history.
pub fn scenario(text: &str) -> Plan {
    Plan::parse(text).expect("the scenarios are in order")
}

/// What a sweep went through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sweep {
    pub operations: u64,
    /// Recoveries that were compared with what was promised.
    pub recoveries: u64,
}

/// Runs the plan until its armed operation stops the machine, or to its end. Returns whether it stopped.
fn run_until_stopped(world: &mut World, plan: &Plan) -> Result<bool, String> {
    for step in &plan.steps {
        world.apply(*step)?;
        if world.is_stopped() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Stops the machine at each operation of each disk, recoveries included; what was unsynced then survives not at all,
/// whole, as in a mere kill, and in `tears` random ways.
pub fn crash_everywhere(plan: &Plan, tears: u64) -> Result<Sweep, String> {
    let mut sweep = Sweep::default();
    for disk in 0..plan.dirs {
        for at in 1.. {
            let tell = |outcome: Option<Outcome>| {
                move |broken: String| format!("disk {disk} stops at {at}, {outcome:?}: {broken}")
            };
            let mut world = World::new(plan.clone());
            world.arm(Armed::Stop { disk, at });
            if !run_until_stopped(&mut world, plan).map_err(tell(None))? {
                break;
            }
            sweep.operations += 1;
            world.disarm();
            let torn = (0..tears).map(|tear| Outcome::Torn(at * 1000 + tear));
            for outcome in [Outcome::ProcessKilled, Outcome::Nothing, Outcome::Everything].into_iter().chain(torn) {
                let mut world = world.fork();
                world.restart_disks(outcome);
                world.recover().map_err(tell(Some(outcome)))?;
                sweep.recoveries += 1;
                if outcome == Outcome::Nothing {
                    world.finish().map_err(tell(Some(outcome)))?;
                }
            }
        }
    }
    Ok(sweep)
}

/// Lets each operation of each disk fail, recoveries included, once and for ever, with each of `failures`.
pub fn fail_everywhere(plan: &Plan, failures: &[(&str, Failure)]) -> Result<Sweep, String> {
    let mut sweep = Sweep::default();
    for disk in 0..plan.dirs {
        for at in 1.. {
            let mut reached = false;
            for (name, failure) in failures {
                for forever in [false, true] {
                    let mut world = World::new(plan.clone());
                    world.arm(Armed::Fail { disk, fault: Fault { at, only: None, forever, failure: *failure } });
                    let outcome = run_until_stopped(&mut world, plan);
                    reached |= world.operations(disk) >= at;
                    let finished: Result<Report, String> = outcome.and_then(|_| world.finish());
                    finished.map_err(|broken| {
                        let how = if forever { "for ever" } else { "once" };
                        format!("operation {at} of disk {disk} fails {how} with {name}: {broken}")
                    })?;
                    sweep.recoveries += 1;
                }
            }
            if !reached {
                break;
            }
            sweep.operations += 1;
        }
    }
    Ok(sweep)
}
