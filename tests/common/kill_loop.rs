//! `kill -9` of the whole agent at random instants, while producers never pause; the books are kept in this process, which
//! is never killed.
//!
//! An event whose answer went missing is not sent again; when it comes out nevertheless, the recovery after that kill has met
//! transactions that were durable and not yet acknowledged, which is the interesting case. Behind the agent is either a
//! [`NextHop`], which knows what was settled, or local files of the hdfs sink, which must be healed after each kill.
//!
//! A loop is fast because it waits for what it needs and nothing else: an agent with three encrypted directories serves
//! about 20 ms after its start, so the kill comes as soon as a few answers have.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::books::{Balance, Id};
use crate::events::Random;
use crate::next_hop::{NextHop, Receipts, UNSETTLED_CALLS};
use crate::penstock::{self, Agent};
use crate::producers::{self, Field, Way};
use crate::{ports, until};

/// Every so manieth kill comes while the agent is still starting: recovery itself is killed.
const KILL_IN_START_EVERY: u64 = 6;
const START_MAX: Duration = Duration::from_millis(30);
/// A kill under load comes after up to so many answers of this run, and up to so much time.
const ANSWERS_MAX: u64 = 300;
const RUN_MAX: Duration = Duration::from_millis(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LIMIT: Duration = Duration::from_secs(120);
/// A dead agent is noticed this soon while an answer is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Of 100 recoveries so many must have met an unacknowledged tail, or the loop proves little.
const TAILS_PERCENT_MIN: u64 = 20;

/// The channel under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Three data directories, encrypted; in three flush domains or in one.
    Durable { separate: bool },
    /// The canary: what the loop must find wanting.
    Forgetful,
}

/// What the events go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    NextHop,
    Files,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub kills: u64,
    pub kept: Kept,
    pub behind: Behind,
    /// What the next hop takes for the most calls that are not settled; less than the truth makes a canary.
    pub unsettled_calls: usize,
    pub seed: u64,
}

/// What a loop left behind.
#[derive(Debug, Default)]
pub struct Outcome {
    pub kills: u64,
    pub kills_in_start: u64,
    pub balance: Balance,
    /// What the next hop knows, if there was one.
    pub receipts: Option<Receipts>,
    /// Files with the suffix of an open file.
    pub left_in_use: Vec<PathBuf>,
    /// Recoveries that, by the agent's own word, met frames that nothing had yet shown to be acknowledged.
    pub unproven_recoveries: u64,
    /// Broken promises, without what the balance says.
    pub wrong: Vec<String>,
    pub seconds: f64,
}

impl Outcome {
    pub fn kills_under_load(&self) -> u64 {
        self.kills - self.kills_in_start
    }

    /// Every broken promise, in words.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.wrong.clone();
        let balance = &self.balance;
        let mut list = |what: &str, ids: &[Id]| {
            if !ids.is_empty() {
                failures.push(format!("{} {what}, as {:?}", ids.len(), &ids[..ids.len().min(8)]));
            }
        };
        list("events were acknowledged and are gone", &balance.lost);
        list("events are there and were never sent", &balance.phantoms);
        if let Some(receipts) = &self.receipts {
            list("events came again after their settlement", &receipts.settled_again);
            if balance.duplicates > receipts.open_events {
                let open = receipts.open_events;
                failures.push(format!("{} duplicates of {open} events that were leased", balance.duplicates));
            }
            failures.extend(receipts.spoilt.iter().take(3).map(|body| format!("spoilt: {body:?}")));
        }
        if balance.refused > 0 {
            failures.push(format!("{} events refused although the channel was never full", balance.refused));
        }
        if !self.left_in_use.is_empty() {
            failures.push(format!("files left open: {:?}", self.left_in_use));
        }
        failures
    }

    /// Whether the kills hit what they should: recoveries that met what was durable and not acknowledged.
    pub fn tells_something(&self) -> Result<(), String> {
        let least = self.kills_under_load() * TAILS_PERCENT_MIN;
        let kept = self.balance.runs_with_kept_tail.len() as u64;
        if kept * 100 < least {
            return Err(format!("only {kept} of {} recoveries kept an unacknowledged event", self.kills));
        }
        if self.unproven_recoveries * 100 < least {
            return Err(format!("only {} of {} recoveries met unproven frames", self.unproven_recoveries, self.kills));
        }
        if self.receipts.as_ref().is_some_and(|receipts| receipts.settled_events() == 0) {
            return Err("no settlement was witnessed".to_owned());
        }
        Ok(())
    }

    /// What was counted, by name.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let balance = &self.balance;
        let mut counts = vec![
            ("kills while starting", self.kills_in_start),
            ("acknowledged", balance.acknowledged),
            ("lost", balance.lost.len() as u64),
            ("duplicates", balance.duplicates),
            ("recoveries that kept unacknowledged events", balance.runs_with_kept_tail.len() as u64),
            ("such events", balance.unacknowledged_kept),
            ("unacknowledged and gone", balance.unacknowledged_gone),
            ("recoveries that met unproven frames", self.unproven_recoveries),
        ];
        if let Some(receipts) = &self.receipts {
            counts.push(("leased at a kill", receipts.open_events));
            counts.push(("seen to be settled", receipts.settled_events()));
            counts.push(("settled and again", receipts.settled_again.len() as u64));
        }
        counts
    }
}

/// Kills the agent as often as planned, lets it drain and stop, and compares.
pub fn run(plan: &Plan) -> Outcome {
    let mut random = Random::new(plan.seed);
    let began = Instant::now();
    let (netcat, http) = (ports::free(), ports::free());
    let next_hop = (plan.behind == Behind::NextHop).then(|| NextHop::start(random.next(), plan.unsettled_calls));
    let mut agent = Agent::new(&configuration(plan, netcat, http, next_hop.as_ref()), &[netcat, http]);
    let key = agent.directory().join("k1.key");
    let made = penstock::run(&["keys", "generate", &key.display().to_string()]);
    assert!(made.status.success(), "no key: {}", String::from_utf8_lossy(&made.stderr));

    let field = Arc::new(Field::default());
    let ways = [(Way::Netcat, netcat), (Way::Netcat, netcat), (Way::Http, http), (Way::Http, http)];
    let producers: Vec<_> =
        (1..).zip(ways).map(|(number, (way, port))| producers::start(&field, number, way, port, plan.seed)).collect();

    let mut outcome = Outcome::default();
    for kill in 1..=plan.kills {
        let run = field.run.fetch_add(1, Ordering::AcqRel) + 1;
        agent.launch();
        let is_in_start = kill % KILL_IN_START_EVERY == 0;
        let is_well = if is_in_start {
            instant(&mut random, START_MAX);
            agent.process().is_running()
        } else {
            let served = await_answers(&mut agent, &field, run, 1 + random.below(ANSWERS_MAX));
            instant(&mut random, RUN_MAX);
            served
        };
        if !is_well {
            outcome.wrong.push(format!("start {kill} serves nobody\n{}", agent.process().last_lines()));
            break;
        }
        agent.kill();
        next_hop.iter().for_each(NextHop::settle_accounts);
        outcome.kills += 1;
        outcome.kills_in_start += u64::from(is_in_start);
    }
    // The last start: the producers end, everything drains, the agent stops by itself.
    agent.kill();
    field.run.fetch_add(1, Ordering::AcqRel);
    if outcome.wrong.is_empty() {
        agent.start();
    }
    field.stop.store(true, Ordering::Release);
    for producer in producers {
        producer.join().expect("a producer ends by itself");
    }
    if outcome.wrong.is_empty() {
        until("the channel is empty", DRAIN_LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
        let code = agent.stop();
        outcome.wrong.extend((code != 0).then(|| format!("the last stop was not clean: {code}")));
    }
    let ids = match next_hop {
        Some(next_hop) => {
            next_hop.settle_accounts();
            outcome.receipts.insert(next_hop.receipts()).ids.clone()
        }
        None => found(&agent.directory().join("out"), &mut outcome),
    };
    let log = agent.log();
    if log.contains("panicked") {
        outcome.wrong.push("a thread of the agent panicked".to_owned());
    }
    let unproven = log.lines().filter_map(|line| line.split("unproven_frames=").nth(1));
    outcome.unproven_recoveries = unproven.filter(|rest| !rest.starts_with("0 ")).count() as u64;
    outcome.balance = field.books.balance(&ids);
    let is_canary = plan.kept == Kept::Forgetful || plan.unsettled_calls < UNSETTLED_CALLS;
    if !outcome.failures().is_empty() && !is_canary {
        let kept = agent.keep_directory().display().to_string();
        outcome.wrong.push(format!("the agent's directory is kept: {kept}"));
    }
    outcome.seconds = began.elapsed().as_secs_f64();
    outcome
}

fn configuration(plan: &Plan, netcat: u16, http: u16, next_hop: Option<&NextHop>) -> String {
    let channel = match plan.kept {
        Kept::Durable { separate } => format!(
            "a1.channels.c1.type = file\na1.channels.c1.checkpointDir = $DIR/checkpoint\n\
             a1.channels.c1.dataDirs = $DIR/data1,$DIR/data2,$DIR/data3\n\
             a1.channels.c1.penstock.flushDomains = {}\n\
             a1.channels.c1.maxFileSize = 1048576\na1.channels.c1.checkpointInterval = 1000\n\
             a1.channels.c1.minimumRequiredSpace = 1048576\n\
             a1.channels.c1.encryption.keyProvider = FILE\n\
             a1.channels.c1.encryption.keyProvider.keyFile = $DIR/k1.key\na1.channels.c1.encryption.activeKey = k1\n\
             a1.channels.c1.encryption.cipherProvider = AESGCM\n",
            if separate { "separate" } else { "auto" }
        ),
        Kept::Forgetful => "a1.channels.c1.type = memory\na1.channels.c1.byteCapacity = 500000000\n".to_owned(),
    };
    let sink = match next_hop {
        Some(next_hop) => format!(
            "a1.sinks.k1.type = avro\na1.sinks.k1.hostname = 127.0.0.1\na1.sinks.k1.port = {}\n\
             a1.sinks.k1.batch-size = 200\n",
            next_hop.port()
        ),
        None => "a1.sinks.k1.type = hdfs\na1.sinks.k1.hdfs.path = file://$DIR/out\n\
                 a1.sinks.k1.hdfs.fileType = DataStream\na1.sinks.k1.hdfs.batchSize = 500\n\
                 a1.sinks.k1.hdfs.rollInterval = 0\na1.sinks.k1.hdfs.rollSize = 0\n\
                 a1.sinks.k1.hdfs.rollCount = 20000\na1.sinks.k1.hdfs.idleTimeout = 1\n"
            .to_owned(),
    };
    format!(
        "a1.sources = r1 r2\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = netcat\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {netcat}\n\
         a1.sources.r1.channels = c1\na1.sources.r1.max-line-length = 2048\n\
         a1.sources.r2.type = http\na1.sources.r2.bind = 127.0.0.1\na1.sources.r2.port = {http}\n\
         a1.sources.r2.channels = c1\n\
         {channel}a1.channels.c1.capacity = 5000000\na1.channels.c1.transactionCapacity = 1000\n\
         a1.sinks.k1.channel = c1\n{sink}"
    )
}

/// Waits for `count` answers of this run; `false` when the agent died before, or answers nobody.
fn await_answers(agent: &mut Agent, field: &Field, run: u64, count: u64) -> bool {
    let end = Instant::now() + ANSWER_LIMIT;
    while !field.books.await_acknowledged(run, count, LOOK) {
        if !agent.process().is_running() || Instant::now() >= end {
            return false;
        }
    }
    true
}

/// A random instant within `limit`, spent waiting, so that the kill falls where it falls.
fn instant(random: &mut Random, limit: Duration) {
    let micros = random.below(u64::try_from(limit.as_micros()).expect("a short time"));
    thread::park_timeout(Duration::from_micros(micros));
}

/// Reads everything below `out`. A line that is not whole is wrong, except at the end of a file left in use.
fn found(out: &Path, outcome: &mut Outcome) -> Vec<Id> {
    let mut files: Vec<PathBuf> = fs::read_dir(out)
        .expect("the sink made its folder")
        .map(|entry| entry.expect("list the folder").path())
        .collect();
    files.sort();
    let is_in_use = |file: &Path| file.extension().is_some_and(|end| end == "tmp");
    let mut ids = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).expect("read a file of the sink");
        for line in text.lines() {
            match producers::id_of(line) {
                Some(id) => ids.push(id),
                None if is_in_use(file) => {}
                None => outcome.wrong.push(format!("{}: not a whole line: {line}", file.display())),
            }
        }
    }
    outcome.left_in_use = files.into_iter().filter(|file| is_in_use(file)).collect();
    ids
}
