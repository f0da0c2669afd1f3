//! kill -9 at random instants, again and again, while producers never pause: no acknowledged event may be missing.
//!
//! The books are kept in this process, which is never killed. Two data directories in two flush domains, encryption on. An
//! event whose answer went missing is not sent again; when it comes out nevertheless, the recovery after that kill has met
//! transactions that were durable and not yet acknowledged, which is the interesting case: it must happen after at least every
//! fifth kill, or the loop proves little.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use system_tests::books::{Balance, Id};
use system_tests::events::Random;
use system_tests::penstock::{self, Agent};
use system_tests::producers::{self, Field, Way};
use system_tests::{ports, until};

const KILLS: u64 = 60;
/// Every so manieth kill comes while the agent is still starting: recovery itself is killed.
const KILL_IN_START_EVERY: u64 = 6;
const RUN_MAX: Duration = Duration::from_millis(400);
const START_MAX: Duration = Duration::from_millis(250);
const DRAIN_LIMIT: Duration = Duration::from_secs(120);
/// Of 100 recoveries so many must have met an unacknowledged tail.
const TAILS_PERCENT_MIN: u64 = 20;

fn configuration(netcat: u16, http: u16) -> String {
    format!(
        "a1.sources = r1 r2\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = netcat\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {netcat}\na1.sources.r1.channels = c1\n\
         a1.sources.r1.max-line-length = 2048\n\
         a1.sources.r2.type = http\na1.sources.r2.bind = 127.0.0.1\na1.sources.r2.port = {http}\na1.sources.r2.channels = c1\n\
         a1.channels.c1.type = file\na1.channels.c1.checkpointDir = $DIR/checkpoint\n\
         a1.channels.c1.dataDirs = $DIR/data1,$DIR/data2\na1.channels.c1.penstock.flushDomains = separate\n\
         a1.channels.c1.capacity = 5000000\na1.channels.c1.transactionCapacity = 1000\n\
         a1.channels.c1.encryption.keyProvider = FILE\na1.channels.c1.encryption.keyProvider.keyFile = $DIR/k1.key\n\
         a1.channels.c1.encryption.activeKey = k1\na1.channels.c1.encryption.cipherProvider = AESCTRNOPADDING\n\
         a1.sinks.k1.type = hdfs\na1.sinks.k1.channel = c1\na1.sinks.k1.hdfs.path = file://$DIR/out\n\
         a1.sinks.k1.hdfs.fileType = DataStream\na1.sinks.k1.hdfs.batchSize = 500\na1.sinks.k1.hdfs.rollInterval = 0\n\
         a1.sinks.k1.hdfs.rollSize = 0\na1.sinks.k1.hdfs.rollCount = 20000\na1.sinks.k1.hdfs.idleTimeout = 1\n"
    )
}

#[test]
fn no_acknowledged_event_is_lost_over_sixty_kills() {
    let mut random = Random::from_clock();
    let seed = random.next();
    let began = Instant::now();
    let (netcat, http) = (ports::free(), ports::free());
    let mut agent = Agent::new(&configuration(netcat, http), &[netcat, http]);
    let key = agent.directory().join("k1.key");
    let made = penstock::run(&["keys", "generate", &key.display().to_string()]);
    assert!(made.status.success(), "no key: {}", String::from_utf8_lossy(&made.stderr));

    let field = Arc::new(Field::default());
    let ways = [(Way::Netcat, netcat), (Way::Netcat, netcat), (Way::Http, http), (Way::Http, http)];
    let producers: Vec<_> =
        (1..).zip(ways).map(|(number, (way, port))| producers::start(&field, number, way, port, seed)).collect();

    let (mut kills, mut kills_in_start, mut kills_under_load) = (0, 0, 0);
    while kills < KILLS {
        field.run.fetch_add(1, Ordering::AcqRel);
        if kills % KILL_IN_START_EVERY == KILL_IN_START_EVERY - 1 {
            agent.launch();
            instant(&mut random, START_MAX);
            assert!(agent.process().is_running(), "refused to start\n{}", agent.process().last_lines());
            kills_in_start += 1;
        } else {
            agent.start();
            let before = field.books.acknowledged_count();
            until("a producer is answered", Duration::from_secs(30), || {
                (field.books.acknowledged_count() > before).then_some(())
            });
            instant(&mut random, RUN_MAX);
            kills_under_load += 1;
        }
        agent.kill();
        kills += 1;
    }

    // The last start: the producers end, everything drains, the agent stops by itself.
    field.run.fetch_add(1, Ordering::AcqRel);
    agent.start();
    field.stop.store(true, Ordering::Release);
    for producer in producers {
        producer.join().expect("a producer ends by itself");
    }
    until("the channel is empty", DRAIN_LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
    let log = agent.log();
    assert_eq!(agent.stop(), 0, "the last stop was not clean");

    let (files, received) = received(&agent.directory().join("out"));
    let balance = field.books.balance(&received);
    report(
        &balance,
        seed,
        &[
            ("kills", kills),
            ("kills while starting", kills_in_start),
            ("kills under load", kills_under_load),
            ("producers", ways.len() as u64),
            ("files", files as u64),
            ("events out", received.len() as u64),
            ("seconds", began.elapsed().as_secs()),
        ],
    );
    assert_eq!(balance.lost, [], "acknowledged and gone; seed {seed}");
    assert_eq!(balance.phantoms, [], "never sent and yet there; seed {seed}");
    assert_eq!(balance.refused, 0, "refused although the channel was never full");
    assert!(!log.contains("panicked"), "a thread of the agent panicked");
    let tails = balance.runs_with_kept_tail.len() as u64;
    assert!(
        tails * 100 >= kills_under_load * TAILS_PERCENT_MIN,
        "only {tails} of {kills_under_load} kills left a tail"
    );
}

/// A random instant within `limit`, spent in short waits, so that the kill falls where it falls.
fn instant(random: &mut Random, limit: Duration) {
    let micros = random.below(u64::try_from(limit.as_micros()).expect("a short time"));
    thread::park_timeout(Duration::from_micros(micros));
}

/// Number of files and all ids in them. A file left in use, and a line that is not whole, are failures.
fn received(out: &Path) -> (usize, Vec<Id>) {
    let mut files: Vec<PathBuf> = fs::read_dir(out)
        .expect("the sink made its folder")
        .map(|entry| entry.expect("list the folder").path())
        .collect();
    files.sort();
    let mut ids = Vec::new();
    for file in &files {
        assert!(file.extension().is_none_or(|end| end != "tmp"), "left in use: {}", file.display());
        let text = fs::read_to_string(file).expect("read a rolled file");
        for line in text.lines() {
            ids.push(producers::id_of(line).unwrap_or_else(|| panic!("{}: not a whole line: {line}", file.display())));
        }
    }
    (files.len(), ids)
}

/// One line of counts, past the capture of the test harness: the loop's result is what it counted.
fn report(balance: &Balance, seed: u64, counts: &[(&str, u64)]) {
    let mut line = format!("counts: kill loop, seed {seed}");
    for (name, count) in counts {
        line.push_str(&format!(", {name} {count}"));
    }
    line.push_str(&format!(
        ", acknowledged {}, lost {}, duplicates {}, phantoms {}, recoveries with an unacknowledged tail {}, unacknowledged kept {}, unacknowledged gone {}, refused {}",
        balance.acknowledged,
        balance.lost.len(),
        balance.duplicates,
        balance.phantoms.len(),
        balance.runs_with_kept_tail.len(),
        balance.unacknowledged_kept,
        balance.unacknowledged_gone,
        balance.refused
    ));
    writeln!(std::io::stderr(), "{line}").expect("print the counts");
}
