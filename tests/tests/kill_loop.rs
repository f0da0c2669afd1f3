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

const DURABLE: &str = "a1.channels.c1.type = file
a1.channels.c1.checkpointDir = $DIR/checkpoint
a1.channels.c1.dataDirs = $DIR/data1,$DIR/data2
a1.channels.c1.penstock.flushDomains = separate
a1.channels.c1.encryption.keyProvider = FILE
a1.channels.c1.encryption.keyProvider.keyFile = $DIR/k1.key
a1.channels.c1.encryption.activeKey = k1
a1.channels.c1.encryption.cipherProvider = AESCTRNOPADDING
";
/// The canary: what the loop must find wanting.
const FORGETFUL: &str = "a1.channels.c1.type = memory\na1.channels.c1.byteCapacity = 500000000\n";

fn configuration(netcat: u16, http: u16, channel: &str) -> String {
    format!(
        "a1.sources = r1 r2\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = netcat\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {netcat}\n\
         a1.sources.r1.channels = c1\na1.sources.r1.max-line-length = 2048\n\
         a1.sources.r2.type = http\na1.sources.r2.bind = 127.0.0.1\na1.sources.r2.port = {http}\n\
         a1.sources.r2.channels = c1\n\
         {channel}a1.channels.c1.capacity = 5000000\na1.channels.c1.transactionCapacity = 1000\n\
         a1.sinks.k1.type = hdfs\na1.sinks.k1.channel = c1\na1.sinks.k1.hdfs.path = file://$DIR/out\n\
         a1.sinks.k1.hdfs.fileType = DataStream\na1.sinks.k1.hdfs.batchSize = 500\na1.sinks.k1.hdfs.rollInterval = 0\n\
         a1.sinks.k1.hdfs.rollSize = 0\na1.sinks.k1.hdfs.rollCount = 20000\na1.sinks.k1.hdfs.idleTimeout = 1\n"
    )
}

/// What a loop left behind.
struct Outcome {
    balance: Balance,
    seed: u64,
    kills: u64,
    kills_in_start: u64,
    found: Found,
    seconds: u64,
    log: String,
}

impl Outcome {
    fn kills_under_load(&self) -> u64 {
        self.kills - self.kills_in_start
    }

    /// Recoveries that, by the agent's own word, met frames that nothing had yet shown to be acknowledged.
    fn unproven_recoveries(&self) -> u64 {
        let unproven = self.log.lines().filter_map(|line| line.split("unproven_frames=").nth(1));
        unproven.filter(|rest| !rest.starts_with("0 ")).count() as u64
    }
}

/// Kills the agent `kills` times, lets it drain and stop, and compares.
fn run(channel: &str, kills: u64) -> Outcome {
    let mut random = Random::from_clock();
    let seed = random.next();
    let began = Instant::now();
    let (netcat, http) = (ports::free(), ports::free());
    let mut agent = Agent::new(&configuration(netcat, http, channel), &[netcat, http]);
    let key = agent.directory().join("k1.key");
    let made = penstock::run(&["keys", "generate", &key.display().to_string()]);
    assert!(made.status.success(), "no key: {}", String::from_utf8_lossy(&made.stderr));

    let field = Arc::new(Field::default());
    let ways = [(Way::Netcat, netcat), (Way::Netcat, netcat), (Way::Http, http), (Way::Http, http)];
    let producers: Vec<_> =
        (1..).zip(ways).map(|(number, (way, port))| producers::start(&field, number, way, port, seed)).collect();

    let mut kills_in_start = 0;
    for kill in 1..=kills {
        field.run.fetch_add(1, Ordering::AcqRel);
        if kill % KILL_IN_START_EVERY == 0 {
            agent.launch();
            instant(&mut random, START_MAX);
            assert!(agent.process().is_running(), "refused to start\n{}", agent.process().last_lines());
            kills_in_start += 1;
        } else {
            agent.start();
            let before = field.books.acknowledged_count();
            let answered = || (field.books.acknowledged_count() > before).then_some(());
            until("a producer is answered", Duration::from_secs(30), answered);
            instant(&mut random, RUN_MAX);
        }
        agent.kill();
    }

    // The last start: the producers end, everything drains, the agent stops by itself.
    field.run.fetch_add(1, Ordering::AcqRel);
    agent.start();
    field.stop.store(true, Ordering::Release);
    for producer in producers {
        producer.join().expect("a producer ends by itself");
    }
    until("the channel is empty", DRAIN_LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
    assert_eq!(agent.stop(), 0, "the last stop was not clean");
    let found = found(&agent.directory().join("out"));
    Outcome {
        balance: field.books.balance(&found.ids),
        seed,
        kills,
        kills_in_start,
        found,
        seconds: began.elapsed().as_secs(),
        log: agent.log(),
    }
}

#[test]
fn no_acknowledged_event_is_lost_over_sixty_kills() {
    let outcome = run(DURABLE, KILLS);
    report(&outcome);
    let (balance, seed) = (&outcome.balance, outcome.seed);
    assert_eq!(balance.lost, [], "acknowledged and gone; seed {seed}");
    assert_eq!(balance.phantoms, [], "never sent and yet there; seed {seed}");
    assert_eq!(balance.refused, 0, "refused although the channel was never full");
    assert_eq!(outcome.found.left_in_use, Vec::<PathBuf>::new(), "files left open; seed {seed}");
    assert!(!outcome.log.contains("panicked"), "a thread of the agent panicked");
    let least = outcome.kills_under_load() * TAILS_PERCENT_MIN;
    let kept = balance.runs_with_kept_tail.len() as u64;
    assert!(kept * 100 >= least, "only {kept} recoveries kept an unacknowledged event");
    let unproven = outcome.unproven_recoveries();
    assert!(unproven * 100 >= least, "only {unproven} recoveries met unproven frames");
}

#[test]
fn the_books_notice_a_channel_that_forgets() {
    let outcome = run(FORGETFUL, 3);
    assert!(!outcome.balance.lost.is_empty(), "a memory channel lost nothing: this loop cannot see a loss");
}

/// A random instant within `limit`, spent in short waits, so that the kill falls where it falls.
fn instant(random: &mut Random, limit: Duration) {
    let micros = random.below(u64::try_from(limit.as_micros()).expect("a short time"));
    thread::park_timeout(Duration::from_micros(micros));
}

/// What the sink wrote.
struct Found {
    files: usize,
    ids: Vec<Id>,
    /// Files with the suffix of an open file.
    left_in_use: Vec<PathBuf>,
}

/// Reads everything below `out`. A line that is not whole is a failure, except at the end of a file left in use.
fn found(out: &Path) -> Found {
    let mut files: Vec<PathBuf> = fs::read_dir(out)
        .expect("the sink made its folder")
        .map(|entry| entry.expect("list the folder").path())
        .collect();
    files.sort();
    let left_in_use: Vec<PathBuf> =
        files.iter().filter(|file| file.extension().is_some_and(|end| end == "tmp")).cloned().collect();
    let mut ids = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).expect("read a file of the sink");
        for line in text.lines() {
            match producers::id_of(line) {
                Some(id) => ids.push(id),
                None => assert!(left_in_use.contains(file), "{}: not a whole line: {line}", file.display()),
            }
        }
    }
    Found { files: files.len(), ids, left_in_use }
}

/// One line of counts, past the capture of the test harness: the loop's result is what it counted.
fn report(outcome: &Outcome) {
    let balance = &outcome.balance;
    let counts = [
        ("seed", outcome.seed),
        ("kills under load", outcome.kills_under_load()),
        ("kills while starting", outcome.kills_in_start),
        ("seconds", outcome.seconds),
        ("acknowledged", balance.acknowledged),
        ("lost", balance.lost.len() as u64),
        ("duplicates", balance.duplicates),
        ("phantoms", balance.phantoms.len() as u64),
        ("refused", balance.refused),
        ("recoveries that kept unacknowledged events", balance.runs_with_kept_tail.len() as u64),
        ("such events", balance.unacknowledged_kept),
        ("unacknowledged and gone", balance.unacknowledged_gone),
        ("recoveries that met unproven frames", outcome.unproven_recoveries()),
        ("events out", outcome.found.ids.len() as u64),
        ("files", outcome.found.files as u64),
    ];
    let text: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    writeln!(std::io::stderr(), "counts: kill loop: {}", text.join(", ")).expect("print the counts");
}
