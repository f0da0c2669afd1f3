//! `kill -9` of the whole agent under load: three encrypted data directories, four producers that never pause, an avro sink
//! before a next hop that knows what was settled, or the hdfs sink whose files must be healed.
//!
//! Kept: no acknowledged event is lost, no settled event comes again, and what comes twice was leased and unsettled when the
//! agent died. The loop itself is `system_tests::kill_loop`; here several run side by side, in rounds, so that books stay
//! small. The negative controls are a channel that forgets, and a settlement that is believed before it is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use system_tests::events::Random;
use system_tests::kill_loop::{self, Behind, Kept, Outcome, Plan};
use system_tests::next_hop::UNSETTLED_CALLS;

use crate::tally::{Budget, Tally};

/// Kills between two final balances, at most.
const ROUND: u64 = 125;
/// Fewer kills than this say nothing about how often a recovery met an open tail.
const TELLING: u64 = 50;
/// Every so manieth round has the hdfs sink, whose drain takes longer.
const FILES_EVERY: u64 = 4;
/// Rounds of the second negative control before it says that it saw nothing.
const EARLY_ROUNDS: u64 = 25;

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let tally = Mutex::new(Tally::new("kills of the agent", "kills"));
    // Kills that some round has taken on.
    let taken = AtomicU64::new(0);
    let rounds = AtomicU64::new(0);
    let round = ROUND.min(budget.cycles.div_ceil(budget.jobs.max(1) as u64)).max(1);
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let before = taken.fetch_add(round, Ordering::AcqRel);
                    if !budget.wants(before) {
                        break;
                    }
                    let kills = budget.cycles.checked_sub(before).map_or(round, |left| left.clamp(1, round));
                    let plan = plan(budget.seed, rounds.fetch_add(1, Ordering::AcqRel), kills);
                    add(&mut tally.lock().expect("no round panics with the tally open"), &plan, outcome(&plan));
                }
            });
        }
    });
    let mut tally = tally.into_inner().expect("no round panics with the tally open");
    let seen = losses_of_a_forgetful_channel(budget.seed);
    tally.counts.push(("lost by a channel that forgets", seen));
    if seen == 0 {
        tally.failures.push(format!("a channel that forgets lost nothing: no loss can be seen; seed {}", budget.seed));
    }
    let again = repeats_of_a_sink_that_tells_too_early(budget.seed);
    tally.counts.push(("again from a sink that tells too early", again));
    if again == 0 {
        tally
            .failures
            .push(format!("settled too early, and nothing came again: no repeat can be seen; seed {}", budget.seed));
    }
    tally.seeds = format!("seed {}", budget.seed);
    tally.took = began.elapsed();
    tally
}

/// Each round of a run is another one: the sink, the flush domains, the instants.
fn plan(seed: u64, round: u64, kills: u64) -> Plan {
    let behind = if round % FILES_EVERY == FILES_EVERY - 1 { Behind::Files } else { Behind::NextHop };
    let kept = Kept::Durable { separate: round.is_multiple_of(2) };
    Plan { kills, kept, behind, unsettled_calls: UNSETTLED_CALLS, seed: Random::new(seed ^ round).next() }
}

/// A loop that cannot go on panics, with the agent's last words.
fn outcome(plan: &Plan) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| kill_loop::run(plan))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

fn add(tally: &mut Tally, plan: &Plan, outcome: Result<Outcome, String>) {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(why) => return tally.failures.push(format!("{plan:?}: {why}")),
    };
    tally.cycles += outcome.kills;
    for (name, count) in outcome.counts() {
        match tally.counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += count,
            None => tally.counts.push((name, count)),
        }
    }
    let tells = if plan.kills < TELLING { Ok(()) } else { outcome.tells_something() };
    tally.failures.extend(outcome.failures().into_iter().chain(tells.err()).map(|what| format!("{plan:?}: {what}")));
}

/// The negative control: how many events a channel loses that forgets. None would mean that the layer sees nothing.
fn losses_of_a_forgetful_channel(seed: u64) -> u64 {
    let kept = Kept::Forgetful;
    let plan = Plan { kills: 5, kept, behind: Behind::NextHop, unsettled_calls: UNSETTLED_CALLS, seed };
    outcome(&plan).map_or(0, |outcome| outcome.balance.lost.len() as u64)
}

/// The other one: to a next hop that takes every answered call for settled, the sink is one that tells of its settlements
/// before they are durable. Gives how many events then come again, and 0 only if none did in many kills.
fn repeats_of_a_sink_that_tells_too_early(seed: u64) -> u64 {
    let mut seeds = Random::new(seed);
    let mut repeats = || {
        let kept = Kept::Durable { separate: false };
        let plan = Plan { kills: 20, kept, behind: Behind::NextHop, unsettled_calls: 1, seed: seeds.next() };
        let receipts = outcome(&plan).ok().and_then(|outcome| outcome.receipts);
        receipts.map_or(0, |receipts| receipts.settled_again.len() as u64)
    };
    (0..EARLY_ROUNDS).map(|_| repeats()).find(|repeats| *repeats > 0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_kills_lose_nothing_and_a_channel_that_forgets_does() {
        let seed = Random::from_clock().next();
        let tally = run(&Budget { cycles: 10, until: None, seed, jobs: 2 });
        assert_eq!(tally.failures, Vec::<String>::new());
        assert_eq!(tally.cycles, 10);
    }
}
