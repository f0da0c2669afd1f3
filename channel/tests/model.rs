//! The durable channel against a small model of it, with histories made and shrunk by proptest.
//!
//! The reference only counts: what was put, gathered and taken in this life, and whether anything may fail. The system
//! under test is the simulation's [`World`], which keeps the promises' own books, and which runs on two grounds: on
//! simulated disks, where everything fails, and on real files, where only the process dies.
//!
//! proptest's files of regressions are off: they hold seeds of a generator, which mean another history as soon as a weight
//! changes. A failure prints its history as text instead, to be kept in `src/durable/simulation/cases`.

use std::env;
use std::ops::Range;

use channel::ChannelStats;
use channel::simulation::{Plan, Report, Step, Verb, World};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tempfile::TempDir;
use wal::planted::{Bug, plant};
use wal::seal::nonces;

/// A capacity that no history fills, so that no put is refused.
const PLENTY: u64 = 10_000;
/// Bytes of an event: five of them fit into the smallest segment.
const BYTES: Range<u16> = 0..400;

/// What must be so, from the operations alone.
#[derive(Debug, Clone)]
struct Reference {
    plan: Plan,
    /// Events put since the process began, and ever.
    put_in_life: u64,
    put_ever: u64,
    /// Frames that may be in flight, and leases that may be out. At most that many: a stalled disk gives none.
    gathered: u32,
    taken: u32,
    /// Nothing can fail in this life, so its numbers are known exactly.
    is_calm: bool,
    /// A write may stay out for longer than a put waits.
    may_stall: bool,
}

impl Reference {
    fn new(plan: Plan) -> Reference {
        Reference {
            is_calm: plan.capacity == PLENTY,
            may_stall: false,
            plan,
            put_in_life: 0,
            put_ever: 0,
            gathered: 0,
            taken: 0,
        }
    }
}

struct Histories<const REAL: bool>;

impl<const REAL: bool> ReferenceStateMachine for Histories<REAL> {
    type State = Reference;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Reference> {
        let disks = (1..=4_usize, any::<bool>(), 3..=16_u64, 1..=4_usize);
        let sizes = (prop_oneof![Just(2000_usize), Just(100)], prop_oneof![4 => Just(PLENTY), 1 => 30..130_u64]);
        (any::<u64>(), disks, any::<[bool; 2]>(), sizes)
            .prop_map(|(seed, (dirs, encrypted, segment_pages, depth), [overlap, one_device], (hot_tail, capacity))| {
                let steps = Vec::new();
                let plan = Plan {
                    seed,
                    dirs,
                    encrypted,
                    segment_pages,
                    depth,
                    overlap,
                    one_device,
                    hot_tail,
                    capacity,
                    pool_segments: if seed.is_multiple_of(2) { 0 } else { 8 },
                    compressed: seed.is_multiple_of(3),
                    shared_flush: seed.is_multiple_of(5),
                    measured: seed.is_multiple_of(7),
                    ahead: seed.is_multiple_of(2),
                    steps,
                };
                Reference::new(plan)
            })
            .boxed()
    }

    fn transitions(state: &Reference) -> BoxedStrategy<Step> {
        let step = |verb: Verb, args: [Range<u16>; 3]| args.prop_map(move |args| Step::new(verb, args)).boxed();
        let one = 0..1;
        let mut steps = vec![
            (22, step(Verb::Put, [0..3, 0..5, BYTES])),
            (20, step(Verb::Gather, [0..4, one.clone(), one.clone()])),
            (8, step(Verb::Chore, [one.clone(), one.clone(), one.clone()])),
            (8, step(Verb::Take, [0..2, 1..10, one.clone()])),
            (2, step(Verb::Note, [0..4, 0..8, one.clone()])),
            (3, step(Verb::Checkpoint, [one.clone(), one.clone(), one.clone()])),
            (4, step(Verb::Advance, [1..400, one.clone(), one.clone()])),
            (1, step(Verb::Stall, [0..4, 1..20, one.clone()])),
            (3, step(Verb::Crash, [0..8, 0..u16::MAX, one.clone()])),
        ];
        if state.gathered > 0 {
            steps.push((6, step(Verb::Write, [0..8, one.clone(), one.clone()])));
            steps.push((24, step(Verb::Sync, [0..8, one.clone(), one.clone()])));
        }
        if state.taken > 0 {
            steps.push((4, step(Verb::Read, [one.clone(), one.clone(), one.clone()])));
            // Delivered, dropped, dead-lettered, returned, one half so and the other half back; with a note and without.
            steps.push((8, step(Verb::Settle, [0..4, 0..12, 0..16])));
        }
        if !REAL {
            steps.extend([
                (1, step(Verb::Stop, [0..4, 1..40, one.clone()])),
                (1, step(Verb::Fail, [0..4, 0..12, 0..u16::MAX])),
                (1, step(Verb::Space, [0..4, 0..24, one.clone()])),
                (1, step(Verb::Nest, [0..4, 1..60, 0..8])),
                (1, step(Verb::FailRecovery, [0..4, 0..40, 0..u16::MAX])),
            ]);
        }
        proptest::strategy::Union::new_weighted(steps).boxed()
    }

    fn preconditions(state: &Reference, step: &Step) -> bool {
        match step.verb {
            Verb::Write | Verb::Sync => state.gathered > 0,
            Verb::Read | Verb::Settle => state.taken > 0,
            verb => !(REAL && verb.needs_simulated_disks()),
        }
    }

    fn apply(mut state: Reference, step: &Step) -> Reference {
        match step.verb {
            Verb::Put => {
                let events = u64::from(step.args[1]) + 1;
                state.put_in_life += events;
                state.put_ever += events;
            }
            Verb::Gather => state.gathered += 1,
            Verb::Sync => state.gathered -= 1,
            Verb::Take => state.taken += 1,
            Verb::Settle => state.taken -= 1,
            Verb::Stop | Verb::Fail | Verb::Space => state.is_calm = false,
            Verb::Stall => state.may_stall = true,
            Verb::Advance => state.may_stall |= state.gathered > 0,
            Verb::Crash => {
                let put_ever = state.put_ever;
                state = Reference { put_ever, ..Reference::new(state.plan) };
            }
            _ => {}
        }
        state.plan.steps.push(*step);
        state
    }
}

/// The channel, and with which numbers this life of it began.
struct Channel<const REAL: bool> {
    world: World,
    born: Option<Born>,
    _root: Option<TempDir>,
}

#[derive(Clone, Copy, Default)]
struct Born {
    size: u64,
    settled: u64,
}

impl<const REAL: bool> StateMachineTest for Channel<REAL> {
    type SystemUnderTest = Channel<REAL>;
    type Reference = Histories<REAL>;

    fn init_test(reference: &Reference) -> Channel<REAL> {
        nonces::watch();
        let plan = reference.plan.clone();
        let root = REAL.then(|| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory for real files"));
        let world = match &root {
            Some(root) => World::on_real_files(plan, root.path()),
            None => World::new(plan),
        };
        Channel { world, born: Some(Born::default()), _root: root }
    }

    fn apply(mut channel: Channel<REAL>, _: &Reference, step: Step) -> Channel<REAL> {
        channel.world.apply(step).unwrap_or_else(|broken| panic!("{broken}"));
        if step.verb == Verb::Crash {
            let settled = channel.world.report().events_settled;
            channel.born = channel.world.stats().map(|stats| Born { size: stats.size_events, settled });
            assert!(
                channel.world.stats().is_none_or(|stats| stats.leased_events == 0),
                "a new life begins with leases"
            );
        }
        channel
    }

    fn check_invariants(channel: &Channel<REAL>, reference: &Reference) {
        let (Some(stats), report) = (channel.world.stats(), channel.world.report()) else { return };
        let ChannelStats { size_events: size, capacity_events, leased_events, .. } = stats;
        assert!(report.events_put <= reference.put_ever, "more was put than asked for");
        assert!(leased_events <= size && size <= capacity_events, "{stats:?}");
        assert!(size + report.events_settled <= reference.put_ever, "events from nowhere: {stats:?}");
        assert!(stats.put_success_events <= stats.put_attempt_events, "{stats:?}");
        if let (true, Some(born)) = (reference.is_calm, channel.born) {
            let settled = report.events_settled - born.settled;
            assert_eq!(stats.put_attempt_events, reference.put_in_life, "puts are counted wrong: {stats:?}");
            if stats.put_errors == 0 {
                assert_eq!(size + settled, born.size + reference.put_in_life, "the size is wrong: {stats:?}");
            } else {
                // A disk owed an answer for so long that what waited for it was refused.
                assert!(reference.may_stall, "a put was refused without a reason: {stats:?}");
                assert!(size + settled < born.size + reference.put_in_life, "the size is wrong: {stats:?}");
            }
        }
    }

    fn teardown(channel: Channel<REAL>, _: Reference) {
        let report = channel.world.finish().unwrap_or_else(|broken| panic!("at the end, {broken}"));
        TOTAL.with_borrow_mut(|total| total.add(&report));
    }
}

thread_local! {
    static TOTAL: std::cell::RefCell<Report> = std::cell::RefCell::default();
}

/// Runs histories of up to so many steps. `Err` is the smallest history that breaks a promise, as a plan to keep.
fn check<const REAL: bool>(cases: u32, steps: usize) -> Result<Report, String> {
    let mut config = ProptestConfig { failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    TOTAL.take();
    let histories = Histories::<REAL>::sequential_strategy(1..=steps);
    let outcome = TestRunner::new(config.clone()).run(&histories, |(reference, steps, seen)| {
        Channel::<REAL>::test_sequential(config.clone(), reference, steps, seen);
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(TOTAL.take()),
        Err(TestError::Fail(broken, (reference, steps, _))) => {
            Err(format!("# {broken}\n{}", reference.plan.with_steps(steps)))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn check_with<const REAL: bool>(bug: Bug, cases: u32, steps: usize) -> Result<Report, String> {
    plant(Some(bug));
    let outcome = check::<REAL>(cases, steps);
    plant(None);
    outcome
}

#[test]
fn on_simulated_disks_the_channel_is_its_model() {
    let report = check::<false>(256, 200).unwrap_or_else(|history| panic!("{history}"));
    println!("{report:?}");
}

#[test]
fn on_real_files_the_channel_is_its_model() {
    let report = check::<true>(24, 60).unwrap_or_else(|history| panic!("{history}"));
    println!("{report:?}");
}

#[test]
fn simulated_disks_show_a_missing_sync() {
    let history = check_with::<false>(Bug::SkipDataSync, 256, 200).expect_err("a missing sync is seen");
    println!("{history}");
}

#[test]
fn real_files_show_an_answer_before_the_write() {
    let history = check_with::<true>(Bug::AcknowledgeBeforeSync, 256, 60).expect_err("an early answer is seen");
    println!("{history}");
}
