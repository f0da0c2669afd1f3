//! Failing writes and flushes below the whole agent: what `faults` does to a channel, with real sources, a sink and processes.
//!
//! One of three data directories is on a disk in user space. Its k-th write or flush fails while four producers send; their
//! answers must go on. Then the power of all disks is cut, the agent is killed and starts again on the healed disk, and in
//! the end everything that was acknowledged has arrived at the next hop. The negative control is a channel that forgets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use system_tests::books::Balance;
use system_tests::events::Random;
use system_tests::next_hop::{NextHop, UNSETTLED_CALLS};
use system_tests::penstock::Agent;
use system_tests::producers::{self, Field, Way};
use system_tests::{ports, until};
use wal::io::power::Journal;

use crate::bench::lock;
use crate::block::{Asked, Disk, Times};
use crate::tally::{Budget, Tally};
use crate::volume::{Kind, Volume, folder};

/// Points on one agent, between two final balances.
const POINTS_EACH: u64 = 4;
/// Answers before a fault, and beside a failed disk.
const ANSWERS: u64 = 100;
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at the disk.
const LOOK: Duration = Duration::from_millis(2);

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("faults below the agent", "failed writes and flushes");
    tally.seeds = format!("seed {}", budget.seed);
    tally.counts = ["not reached", "not mountable", "acknowledged", "lost", "unacknowledged and kept"]
        .map(|name| (name, 0))
        .to_vec();
    // Points that some agent has taken on.
    let taken = Mutex::new(0);
    let tally = Mutex::new(tally);
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = {
                        let mut taken = lock(&taken);
                        *taken += 1;
                        *taken - 1
                    };
                    if !budget.wants(number * POINTS_EACH) {
                        break;
                    }
                    let seed = budget.seed.wrapping_add(number);
                    // Waits of the system tests panic when nothing comes.
                    let outcome = outcome(seed, POINTS_EACH, Kept::Durable);
                    add(&mut lock(&tally), seed, outcome);
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if tally.skips.is_empty() {
        let seen = outcome(budget.seed, 2, Kept::Forgetful).map_or(0, |outcome| outcome.balance.lost.len() as u64);
        tally.counts.push(("lost by a channel that forgets", seen));
        if seen == 0 {
            tally
                .failures
                .push(format!("a channel that forgets lost nothing: no loss can be seen; seed {}", budget.seed));
        }
    }
    tally.took = began.elapsed();
    tally
}

/// The channel under test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Durable,
    /// The canary.
    Forgetful,
}

/// One agent. A wait of the system tests panics when nothing comes.
fn outcome(seed: u64, points: u64, kept: Kept) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| one(seed, points, kept))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        Ok(Outcome { wrong: vec![text], ..Outcome::default() })
    })
}

#[derive(Default)]
struct Outcome {
    met: u64,
    not_met: u64,
    /// The file system needs a repair by hand: nothing can be compared.
    not_mounted: bool,
    wrong: Vec<String>,
    balance: Balance,
}

fn add(tally: &mut Tally, seed: u64, outcome: Result<Outcome, String>) {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(why) => return tally.skips.push(format!("faults below the agent: {why}")),
    };
    let balance = &outcome.balance;
    tally.cycles += outcome.met;
    let counted = [
        outcome.not_met,
        u64::from(outcome.not_mounted),
        balance.acknowledged,
        balance.lost.len() as u64,
        balance.unacknowledged_kept,
    ];
    tally.counts.iter_mut().zip(counted).for_each(|((_, sum), count)| *sum += count);
    let mut wrong = outcome.wrong;
    for (what, ids) in [("acknowledged and gone", &balance.lost), ("never sent and there", &balance.phantoms)] {
        if !ids.is_empty() {
            wrong.push(format!("{} events are {what}, as {:?}", ids.len(), &ids[..ids.len().min(8)]));
        }
    }
    let again = format!("again with: proof agent-faults --jobs 1 --cycles {POINTS_EACH} --seed {seed}, several times");
    tally.failures.extend(wrong.into_iter().map(|what| format!("faults below the agent: {what}; {again}")));
}

/// One agent and its points. An error is a reason to skip.
fn one(seed: u64, points: u64, kept: Kept) -> Result<Outcome, String> {
    let mut random = Random::new(seed);
    let folder = folder()?;
    let kind = Kind::ALL[(seed % 2) as usize];
    let disk = Disk::create(kind.len(), kind.sector(), folder.path(), "front")?;
    let mut sick = Volume::on(kind, &disk.file(), &folder.path().join("sick"))?;
    let mut sound = Volume::with_room(Kind::Ext4, 256 << 20, folder.path(), "sound")?;
    let (netcat, http) = (ports::free(), ports::free());
    let next_hop = NextHop::start(random.next(), UNSETTLED_CALLS);
    let text = configuration(&channel(kept, &sick, &sound), netcat, http, next_hop.port());
    let mut agent = Agent::new(&text, &[netcat, http]);
    let field = Arc::new(Field::default());
    let ways = [(Way::Netcat, netcat), (Way::Netcat, netcat), (Way::Http, http), (Way::Http, http)];
    let producers: Vec<_> =
        (1..).zip(ways).map(|(number, (way, port))| producers::start(&field, number, way, port, seed)).collect();
    let mut outcome = Outcome::default();
    for index in 0..points {
        let run = field.run.fetch_add(1, Ordering::AcqRel) + 1;
        let answered = |count: u64| field.books.await_acknowledged(run, count, ANSWER_LIMIT);
        agent.launch();
        let handle = sound.handle()?;
        let failed_before = disk.failed();
        let asked = if index % 2 == 0 { Asked::Write } else { Asked::Flush };
        let times = if random.below(2) == 0 { Times::Once } else { Times::ForEver };
        let left = random.below(12);
        if !answered(ANSWERS) {
            outcome.wrong.push(format!("start {index} answers nobody\n{}", agent.process().last_lines()));
        } else {
            disk.fail(asked, left, times);
            // A disk that is not asked often enough within so many answers is left alone.
            let mut count = ANSWERS;
            while disk.failed() == failed_before && count < 20 * ANSWERS && answered(count + 1) {
                count += 10;
                thread::sleep(LOOK);
            }
            if !answered(count + ANSWERS) {
                let last = agent.process().last_lines();
                outcome.wrong.push(format!("no answers beside a failed disk ({asked:?} {left} {times:?})\n{last}"));
            }
        }
        // Power first: whatever the agent would still write after that is lost too.
        disk.cut(&mut random)?;
        sound.cut(&handle, Journal::Lost)?;
        agent.kill();
        next_hop.settle_accounts();
        drop(handle);
        outcome.met += u64::from(disk.failed() > failed_before);
        outcome.not_met += u64::from(disk.failed() == failed_before);
        sick.unmount()?;
        sound.unmount()?;
        disk.heal();
        sound.mount()?;
        outcome.not_mounted = sick.mount().is_err();
        if outcome.not_mounted || !outcome.wrong.is_empty() {
            break;
        }
    }
    let is_whole = !outcome.not_mounted && outcome.wrong.is_empty();
    if is_whole {
        field.run.fetch_add(1, Ordering::AcqRel);
        agent.start();
    }
    field.stop.store(true, Ordering::Release);
    for producer in producers {
        producer.join().expect("a producer ends by itself");
    }
    if is_whole {
        until("the channel is empty", DRAIN_LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
        let code = agent.stop();
        outcome.wrong.extend((code != 0).then(|| format!("the last stop was not clean: {code}")));
        next_hop.settle_accounts();
        outcome.balance = field.books.balance(&next_hop.receipts().ids);
    }
    if agent.log().contains("panicked") {
        outcome.wrong.push("a thread of the agent panicked".to_owned());
    }
    agent.kill();
    Ok(outcome)
}

fn channel(kept: Kept, sick: &Volume, sound: &Volume) -> String {
    let (sick, sound) = (sick.path().display(), sound.path().display());
    match kept {
        Kept::Durable => format!(
            "a1.channels.c1.type = file\na1.channels.c1.checkpointDir = {sound}/checkpoint\n\
             a1.channels.c1.dataDirs = {sick}/data1,{sound}/data2,{sound}/data3\n\
             a1.channels.c1.penstock.flushDomains = separate\n\
             a1.channels.c1.maxFileSize = 1048576\na1.channels.c1.checkpointInterval = 1000\n\
             a1.channels.c1.minimumRequiredSpace = 1048576\n"
        ),
        Kept::Forgetful => "a1.channels.c1.type = memory\na1.channels.c1.byteCapacity = 500000000\n".to_owned(),
    }
}

fn configuration(channel: &str, netcat: u16, http: u16, next_hop: u16) -> String {
    format!(
        "a1.sources = r1 r2\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = netcat\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {netcat}\n\
         a1.sources.r1.channels = c1\na1.sources.r1.max-line-length = 2048\n\
         a1.sources.r2.type = http\na1.sources.r2.bind = 127.0.0.1\na1.sources.r2.port = {http}\n\
         a1.sources.r2.channels = c1\n\
         {channel}a1.channels.c1.capacity = 1000000\na1.channels.c1.transactionCapacity = 1000\n\
         a1.sinks.k1.channel = c1\na1.sinks.k1.type = avro\na1.sinks.k1.hostname = 127.0.0.1\n\
         a1.sinks.k1.port = {next_hop}\na1.sinks.k1.batch-size = 200\n"
    )
}
