//! kill -9 at random instants, again and again, while producers never pause: no acknowledged event may be missing. The
//! loop is `system_tests::kill_loop`, and `cargo xtask prove` runs it much longer; this is the short version that belongs to
//! every test run, with the sink that must heal files.

use std::io::Write;

use system_tests::events::Random;
use system_tests::kill_loop::{Behind, Kept, Outcome, Plan, run};
use system_tests::next_hop::UNSETTLED_CALLS;

#[test]
fn no_acknowledged_event_is_lost_over_sixty_kills() {
    let seed = Random::from_clock().next();
    let outcome = run(&Plan {
        kills: 60,
        kept: Kept::Durable { separate: true },
        behind: Behind::Files,
        unsettled_calls: UNSETTLED_CALLS,
        seed,
    });
    report(&outcome, seed);
    assert_eq!(outcome.failures(), Vec::<String>::new(), "seed {seed}");
    assert_eq!(outcome.tells_something(), Ok(()), "seed {seed}");
}

#[test]
fn the_books_notice_a_channel_that_forgets() {
    let seed = Random::from_clock().next();
    let outcome =
        run(&Plan { kills: 3, kept: Kept::Forgetful, behind: Behind::Files, unsettled_calls: UNSETTLED_CALLS, seed });
    assert!(
        !outcome.balance.lost.is_empty(),
        "a memory channel lost nothing: this loop cannot see a loss; seed {seed}"
    );
}

/// One line of counts, past the capture of the test harness: the loop's result is what it counted.
fn report(outcome: &Outcome, seed: u64) {
    let counts = outcome.counts().into_iter().map(|(name, count)| format!("{name} {count}"));
    let text: Vec<String> = counts.collect();
    let (kills, seconds) = (outcome.kills_under_load(), outcome.seconds);
    let line =
        format!("counts: kill loop: seed {seed}, kills under load {kills}, seconds {seconds:.1}, {}", text.join(", "));
    writeln!(std::io::stderr(), "{line}").expect("print the counts");
}
