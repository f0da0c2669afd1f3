//! The whole channel on simulated disks, from one seed: workload, schedule, crashes and faults.
//!
//! Steps the same [`Core`] as the threads do, one piece at a time, in an order that the seed decides, and compares
//! what survives each crash with a model of what was promised. A violated promise is an `Err` that names it, so that
//! tests with planted bugs can ask for one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wal::device::Device;
use wal::io::buffer::Buffer;
use wal::io::durable;
use wal::io::sim::{Fault, Outcome as DiskOutcome, Rng, SimDisk, SimRandom};
use wal::seal::ChannelKey;

use super::core::{Answer, Core, CoreOptions};
use super::job::{Job, PendingPut};
use super::open::{OnDamage, OpenDir, OpenError, OpenSettings, Recovery, open};
use super::read::Cursors;
use crate::api::{Lease, PutError, PutReceipt, TakeError, TakeLimits};
use crate::event::EventBatch;
use crate::settlement::{NoteUpdate, Outcome, SettleError, Settlement};
use crate::ticket::Ticket;

/// What a simulation looks like; all else comes from the seed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub dirs: usize,
    pub encrypted: bool,
    pub segment_len: u64,
    pub depth: usize,
    /// Steps between two crashes, at most.
    pub steps: u64,
    pub crashes: u64,
    /// Whether disks fail now and then.
    pub faults: bool,
    /// Whether all directories are one flush domain.
    pub one_device: bool,
}

impl Plan {
    /// A plan whose every property comes from the seed.
    pub fn from_seed(seed: u64) -> Plan {
        let mut rng = Rng(seed ^ 0x5eed);
        Plan {
            seed,
            dirs: 1 + rng.below(3) as usize,
            encrypted: rng.chance(2),
            segment_len: 4096 * (5 + rng.below(12)),
            depth: 1 + rng.below(4) as usize,
            steps: 20 + rng.below(120),
            crashes: 1 + rng.below(5),
            faults: rng.chance(3),
            one_device: rng.chance(3),
        }
    }
}

/// What a simulation went through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub crashes: u64,
    pub events_acknowledged: u64,
    pub events_settled: u64,
    pub frames: u64,
    pub rolls: u64,
    pub torn: u64,
    pub unproven: u64,
    pub disk_failures: u64,
    pub checkpoints: u64,
    /// Segments that recovery did not read because of them.
    pub vouched: u64,
    /// Folded over everything that was observed: one seed, one hash.
    pub trace: u64,
}

impl Report {
    fn fold(&mut self, number: u64) {
        self.trace = (self.trace ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
}

type PutTicket = Ticket<Result<PutReceipt, PutError>>;
type SettleTicket = Ticket<Result<(), SettleError>>;

struct Put {
    producer: u64,
    events: Vec<u64>,
    ticket: Option<PutTicket>,
    known: Known,
}

/// What the producer knows of its put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Neither yes nor no: whole or absent.
    Open,
    Acknowledged,
    /// Refused, or found absent: it must stay away.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    No,
    Asked,
    Yes,
}

struct Flight {
    job: Job,
    frame: Buffer,
    written: bool,
}

struct Held {
    consumer: u64,
    lease: Lease,
}

struct World {
    plan: Plan,
    rng: Rng,
    now: Duration,
    disks: Vec<SimDisk>,
    random: Arc<SimRandom>,
    puts: Vec<Put>,
    events: BTreeMap<u64, (usize, Settled)>,
    next_event: u64,
    notes: BTreeMap<String, NoteModel>,
    nonces: HashSet<(u64, u64)>,
    report: Report,
}

#[derive(Debug, Clone, Default)]
struct NoteModel {
    /// Values that a reader may find: the last one acknowledged, and those asked for after it.
    possible: Vec<Option<u64>>,
}

/// A settlement on its way.
struct Asked {
    events: Vec<u64>,
    /// (key, value) of the note that goes with it.
    note: Option<(String, Option<u64>)>,
    ticket: SettleTicket,
}

/// One life of the process.
struct Life {
    core: Core,
    flights: Vec<Flight>,
    held: Vec<Held>,
    takes: Vec<(u64, Ticket<Result<Lease, TakeError>>)>,
    settles: Vec<Asked>,
    producers: Vec<u64>,
    consumers: Vec<u64>,
    cursors: Cursors,
}

/// Runs a plan. `Err` names the promise that was broken.
pub fn simulate(plan: &Plan) -> Result<Report, String> {
    World::new(plan.clone()).run().map_err(|broken| format!("seed {}: {broken} ({plan:?})", plan.seed))
}

/// Runs a plan without random crashes, stopping the machine at operation `stop` of one disk, with each way the
/// unsynced writes may turn out, and with as many crashes inside recovery. Returns whether the operation was reached.
pub fn crash_at(plan: &Plan, disk: usize, stop: u64, outcomes: &[DiskOutcome], nested: u64) -> Result<bool, String> {
    let tell = |broken: String| format!("seed {}, disk {disk}, stop at {stop}: {broken} ({plan:?})", plan.seed);
    let mut world = World::new(plan.clone());
    world.disks[disk].stop_at(stop);
    let reached = match world.start() {
        Ok(mut life) => {
            world.work(&mut life, plan.steps).map_err(tell)?;
            world.end(life);
            world.disks[disk].is_stopped()
        }
        Err(_) => true,
    };
    let disks: Vec<SimDisk> = world.disks.iter().map(SimDisk::fork).collect();
    for &outcome in outcomes {
        for nested_stop in 0..=nested {
            world.disks = disks.iter().map(SimDisk::fork).collect();
            world.disks.iter().for_each(|disk| disk.restart(outcome));
            if nested_stop > 0 {
                // Recovery is interrupted as well, and must not make things worse.
                world.disks[disk].stop_at(world.disks[disk].operations() + nested_stop * 3);
                let interrupted = world.start().is_err();
                world.disks.iter().for_each(|disk| disk.restart(outcome));
                if !interrupted {
                    continue;
                }
            }
            let known: Vec<Known> = world.puts.iter().map(|put| put.known).collect();
            let settled = world.events.clone();
            world.check(true).map_err(|broken| tell(format!("{outcome:?}, nested {nested_stop}: {broken}")))?;
            for (put, known) in world.puts.iter_mut().zip(known) {
                put.known = known;
            }
            world.events = settled;
        }
    }
    Ok(reached)
}

impl World {
    fn new(plan: Plan) -> World {
        World {
            rng: Rng(plan.seed),
            now: Duration::from_secs(1),
            disks: (0..plan.dirs).map(|_| SimDisk::default()).collect(),
            random: Arc::new(SimRandom::new(plan.seed ^ 0xabcd)),
            puts: Vec::new(),
            events: BTreeMap::new(),
            next_event: 1,
            notes: BTreeMap::new(),
            nonces: HashSet::new(),
            report: Report::default(),
            plan,
        }
    }

    fn run(mut self) -> Result<Report, String> {
        for _ in 0..self.plan.crashes {
            let mut life = self.start().map_err(|error| format!("does not open: {error}"))?;
            let random_stop = self.rng.chance(2);
            if random_stop {
                let disk = self.rng.below(self.disks.len() as u64) as usize;
                self.disks[disk].stop_at(self.disks[disk].operations() + 1 + self.rng.below(150));
            } else if self.plan.faults && self.rng.chance(2) {
                let disk = self.rng.below(self.disks.len() as u64) as usize;
                let at = self.disks[disk].operations() + 1 + self.rng.below(100);
                let error = [io::ErrorKind::Other, io::ErrorKind::StorageFull][self.rng.below(2) as usize];
                self.disks[disk].inject(Fault { at, forever: self.rng.chance(3), error });
                self.report.disk_failures += 1;
            }
            let steps = 1 + self.rng.below(self.plan.steps);
            self.work(&mut life, steps)?;
            self.end(life);
            let outcome = match self.rng.below(5) {
                0 => DiskOutcome::ProcessKilled,
                1 => DiskOutcome::Nothing,
                2 => DiskOutcome::Everything,
                _ => DiskOutcome::Torn(self.rng.number()),
            };
            self.disks.iter().for_each(|disk| disk.restart(outcome));
            self.report.crashes += 1;
            self.check(false)?;
        }
        Ok(self.report)
    }

    fn key(&self) -> Option<ChannelKey> {
        self.plan.encrypted.then(|| ChannelKey::new("k1", [7; 32]).expect("a fine key"))
    }

    fn open(&self, disks: &[SimDisk]) -> Result<(Core, Recovery), OpenError> {
        let shared = Device::new("all", self.plan.depth);
        let mut dirs = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let dir = disk.dir(&format!("d{index}"));
            durable::remove_leftovers(&*dir).map_err(|error| OpenError::Io {
                dir: dir.name(),
                action: "remove leftovers".to_owned(),
                error,
            })?;
            let device = if self.plan.one_device {
                Arc::clone(&shared)
            } else {
                Device::new(format!("d{index}"), self.plan.depth)
            };
            dirs.push(OpenDir { dir, device });
        }
        let settings = OpenSettings {
            segment_len: self.plan.segment_len,
            reserve_bytes: 0,
            key: self.key(),
            keys: self.key().into_iter().collect(),
            on_damage: OnDamage::Refuse,
        };
        let checkpoint_dir = disks[0].dir("ckpt");
        let (start, recovery) = open(&dirs, &settings, &*self.random, 1, Some(&*checkpoint_dir))?;
        let options = CoreOptions {
            name: "c1".to_owned(),
            capacity: 10_000,
            transaction_capacity: 100,
            keep_alive: Duration::from_secs(1),
            disk_bytes_max: None,
            hot_tail_bytes: 2000,
            checkpoint_interval: Duration::from_millis(20),
        };
        let random = Arc::clone(&self.random);
        Ok((Core::new(options, random, disks.iter().map(|_| Arc::default()).collect(), start), recovery))
    }

    fn start(&mut self) -> Result<Life, OpenError> {
        let (mut core, recovery) = self.open(&self.disks)?;
        self.report.torn += recovery.torn;
        self.report.unproven += recovery.unproven_frames;
        self.report.vouched += recovery.vouched_segments;
        let producers = (0..3).map(|_| core.handle()).collect();
        let consumers = (0..2).map(|_| core.handle()).collect();
        Ok(Life {
            core,
            flights: Vec::new(),
            held: Vec::new(),
            takes: Vec::new(),
            settles: Vec::new(),
            producers,
            consumers,
            cursors: Cursors::default(),
        })
    }

    /// Runs random steps until the machine stops or `steps` are done.
    fn work(&mut self, life: &mut Life, steps: u64) -> Result<(), String> {
        for _ in 0..steps {
            self.step(life)?;
            self.hear(life)?;
            if self.disks.iter().any(SimDisk::is_stopped) {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self, life: &mut Life) -> Result<(), String> {
        let mut answers = Vec::new();
        self.now += Duration::from_micros(self.rng.below(20_000));
        let choice = self.rng.below(20);
        self.report.fold(choice);
        match choice {
            0..=3 => self.put(life, &mut answers),
            4..=8 => self.gather(life, &mut answers)?,
            9..=12 => self.advance_write(life, &mut answers),
            13 | 14 => {
                for index in 0..self.disks.len() {
                    if let Some(chore) = life.core.next_chore(index, self.now, 1) {
                        let dir = self.disks[index].dir(&format!("d{index}"));
                        let result = chore.run(&*dir);
                        self.report.rolls += 1;
                        life.core.chore_done(index, self.now, chore, result, &mut answers);
                    }
                }
            }
            15 | 16 => {
                let consumer = life.consumers[self.rng.below(2) as usize];
                let limits = TakeLimits { events: 1 + self.rng.below(9) as usize, bytes: 1000 };
                let (sender, ticket) = Ticket::pair();
                life.core.take(self.now, consumer, limits, Duration::from_millis(30), sender, &mut answers);
                life.takes.push((consumer, ticket));
                if let Some(job) = life.core.next_read() {
                    let done = job.run(&mut life.cursors);
                    let stopped = self.disks.iter().any(SimDisk::is_stopped);
                    if !stopped {
                        life.core.read_done(self.now, done, &mut answers);
                    }
                }
            }
            17 | 18 => self.settle(life, &mut answers),
            19 if self.rng.chance(2) => {
                if let Some(checkpoint) = life.core.next_checkpoint(self.now) {
                    let (dir, channel) = (self.disks[0].dir("ckpt"), life.core.channel());
                    // One that fails costs the next start time, and nothing else.
                    let written = checkpoint.write(&*dir, &channel, self.key().as_ref(), &*self.random);
                    self.report.checkpoints += u64::from(written.is_ok());
                }
            }
            _ => {
                self.now += Duration::from_millis(self.rng.below(200));
                life.core.tick(self.now, &mut answers);
            }
        }
        answers.into_iter().for_each(Answer::send);
        Ok(())
    }

    fn put(&mut self, life: &mut Life, answers: &mut Vec<Answer>) {
        let producer = life.producers[self.rng.below(3) as usize];
        let mut batch = EventBatch::new();
        let mut events = Vec::new();
        for _ in 0..1 + self.rng.below(5) {
            let event = self.next_event;
            self.next_event += 1;
            let mut body = format!("plaintext {event} ").into_bytes();
            body.resize(body.len() + self.rng.below(700) as usize, b'.');
            batch.push([("id", event.to_string().as_str())], &body);
            self.events.insert(event, (self.puts.len(), Settled::No));
            events.push(event);
        }
        let (sender, ticket) = Ticket::pair();
        life.core.put(self.now, PendingPut::new(producer, batch, sender, Duration::ZERO), answers);
        self.puts.push(Put { producer, events, ticket: Some(ticket), known: Known::Open });
    }

    fn gather(&mut self, life: &mut Life, answers: &mut Vec<Answer>) -> Result<(), String> {
        let index = self.rng.below(self.disks.len() as u64) as usize;
        let Some(job) = life.core.gather(index, self.now, 1, answers) else { return Ok(()) };
        let header = &job.reservation.header;
        if !self.nonces.insert((header.incarnation, header.number)) && job.reservation.key.is_some() {
            return Err(format!("nonce {} of incarnation {:#x} is used twice", header.number, header.incarnation));
        }
        self.report.frames += 1;
        self.report.fold(header.offset);
        let frame = job
            .seal(Buffer::zeroed(4096).map_err(|error| error.to_string())?)
            .map_err(|error| format!("sealing fails: {error}"))?;
        life.flights.push(Flight { job, frame, written: false });
        Ok(())
    }

    fn advance_write(&mut self, life: &mut Life, answers: &mut Vec<Answer>) {
        if life.flights.is_empty() {
            return;
        }
        let index = self.rng.below(life.flights.len() as u64) as usize;
        let flight = &mut life.flights[index];
        let offset = flight.job.reservation.header.offset;
        if !flight.written && self.rng.chance(2) {
            // The write is under way; a crash now tears it. Its end is a later step, and an error then says so.
            let _outcome_shows_at_the_end = flight.job.reservation.file.write_at(&flight.frame, offset);
            flight.written = true;
            return;
        }
        let result = flight.job.reservation.file.write_durable_at(&flight.frame, offset);
        if self.disks.iter().any(SimDisk::is_stopped) {
            return;
        }
        let job = life.flights.swap_remove(index).job;
        life.core.complete(self.now, job, result, answers);
    }

    fn settle(&mut self, life: &mut Life, answers: &mut Vec<Answer>) {
        if life.held.is_empty() {
            return;
        }
        let index = self.rng.below(life.held.len() as u64) as usize;
        let Held { consumer, lease } = life.held.swap_remove(index);
        let ranges = lease.ranges();
        let (sender, ticket) = Ticket::pair();
        if self.rng.chance(4) {
            life.core.settle(self.now, consumer, vec![Settlement::returned(ranges)], sender, answers);
            life.settles.push(Asked { events: Vec::new(), note: None, ticket });
            return;
        }
        let events: Vec<u64> = lease.iter().map(|(_, event)| event_of(event.header("id"))).collect();
        for event in &events {
            if let Some((_, settled)) = self.events.get_mut(event) {
                *settled = Settled::Asked;
            }
        }
        let mut settlement = Settlement::delivered(ranges);
        if self.rng.chance(3) {
            settlement.outcome = Outcome::Dropped { reason: "a reason".to_owned() };
        }
        let note = self.rng.chance(2).then(|| {
            let key = format!("file{}", self.rng.below(4));
            let value = (!self.rng.chance(4)).then(|| self.rng.number());
            self.notes.entry(key.clone()).or_insert_with(|| NoteModel { possible: vec![None] }).possible.push(value);
            settlement.notes.push(NoteUpdate {
                owner: "sink".to_owned(),
                key: key.clone(),
                note: value.map(|value| Bytes::copy_from_slice(&value.to_le_bytes())),
            });
            (key, value)
        });
        life.core.settle(self.now, consumer, vec![settlement], sender, answers);
        life.settles.push(Asked { events, note, ticket });
    }

    /// Takes in the answers that have come.
    fn hear(&mut self, life: &mut Life) -> Result<(), String> {
        for put in &mut self.puts {
            let Some(ticket) = put.ticket.take() else { continue };
            match ticket.try_take() {
                Ok(Ok(_)) => {
                    put.known = Known::Acknowledged;
                    self.report.events_acknowledged += put.events.len() as u64;
                    self.report.fold(put.events[0]);
                }
                Ok(Err(PutError::Failed { .. } | PutError::Closed)) => put.known = Known::Open,
                Ok(Err(_)) => put.known = Known::Absent,
                Err(waiting) => put.ticket = Some(waiting),
            }
        }
        for (consumer, ticket) in std::mem::take(&mut life.takes) {
            match ticket.try_take() {
                Ok(Ok(lease)) if lease.is_empty() => {}
                Ok(Ok(lease)) => {
                    for (_, event) in lease.iter() {
                        self.seen(event_of(event.header("id")), event.body())?;
                    }
                    life.held.push(Held { consumer, lease });
                }
                Ok(Err(error)) if self.plan.faults => self.report.fold(error.to_string().len() as u64),
                Ok(Err(error)) => return Err(format!("a take fails: {error}")),
                Err(waiting) => life.takes.push((consumer, waiting)),
            }
        }
        for Asked { events, note, ticket } in std::mem::take(&mut life.settles) {
            match ticket.try_take() {
                Ok(Ok(())) => {
                    for event in events {
                        if let Some((_, settled)) = self.events.get_mut(&event) {
                            *settled = Settled::Yes;
                            self.report.events_settled += 1;
                        }
                    }
                    if let Some((key, value)) = note
                        && let Some(model) = self.notes.get_mut(&key)
                        && let Some(place) = model.possible.iter().position(|found| *found == value)
                    {
                        model.possible.drain(..place);
                    }
                }
                Ok(Err(SettleError::Failed(_))) => {}
                Ok(Err(error)) => return Err(format!("a settlement fails: {error}")),
                Err(ticket) => life.settles.push(Asked { events, note, ticket }),
            }
        }
        Ok(())
    }

    /// An event came out: it must have been put, be whole, and not be settled for good.
    fn seen(&self, event: u64, body: &[u8]) -> Result<(), String> {
        let Some((put, settled)) = self.events.get(&event) else {
            return Err(format!("event {event} was never put"));
        };
        if !body.starts_with(format!("plaintext {event} ").as_bytes()) {
            return Err(format!("event {event} came back with another body"));
        }
        if *settled == Settled::Yes {
            return Err(format!("event {event} comes again although its settlement was acknowledged"));
        }
        if self.puts[*put].known == Known::Absent {
            return Err(format!("event {event} comes although its put was refused or found absent"));
        }
        Ok(())
    }

    /// The process is gone: whoever waited will never hear.
    fn end(&mut self, life: Life) {
        for put in &mut self.puts {
            put.ticket = None;
        }
        drop(life);
    }

    /// Opens what survived, on a copy, and compares it with what was promised.
    fn check(&mut self, twice: bool) -> Result<(), String> {
        let forks: Vec<SimDisk> = self.disks.iter().map(SimDisk::fork).collect();
        let first = self.drain(&forks)?;
        if twice {
            let forks: Vec<SimDisk> = self.disks.iter().map(SimDisk::fork).collect();
            // Recovery, a power cut right after it, and recovery again: the same events.
            self.open(&forks).map_err(|error| format!("does not open: {error}"))?;
            forks.iter().for_each(|disk| disk.restart(DiskOutcome::Nothing));
            let again = self.drain(&forks)?;
            if again != first {
                return Err(format!("a second recovery finds {again:?} instead of {first:?}"));
            }
        }
        let found: BTreeSet<u64> = first.iter().copied().collect();
        if found.len() != first.len() {
            return Err(format!("events come twice: {first:?}"));
        }
        let mut order: BTreeMap<u64, u64> = BTreeMap::new();
        for event in &first {
            let (put, _) = self.events[event];
            let producer = self.puts[put].producer;
            if self.puts[put].known == Known::Acknowledged
                && let Some(before) = order.insert(producer, *event)
                && before > *event
            {
                return Err(format!("events {before} and {event} of producer {producer} changed places"));
            }
        }
        for put in &mut self.puts {
            let present: Vec<u64> = put.events.iter().filter(|event| found.contains(event)).copied().collect();
            if put.known == Known::Open {
                if !present.is_empty() && present.len() < put.events.len() {
                    // Its first events may have been taken and settled; then it was durable as a whole.
                    let missing_unsettled =
                        put.events.iter().any(|event| !found.contains(event) && self.events[event].1 == Settled::No);
                    if missing_unsettled {
                        return Err(format!("of the put {:?} only {present:?} is there", put.events));
                    }
                }
                let settled = put.events.iter().any(|event| self.events[event].1 != Settled::No);
                put.known = if present.is_empty() && !settled { Known::Absent } else { Known::Acknowledged };
            }
            if put.known != Known::Acknowledged {
                continue;
            }
            for event in &put.events {
                let settled = self.events.get_mut(event).expect("every event is known");
                match (settled.1, found.contains(event)) {
                    (Settled::No, false) => return Err(format!("acknowledged event {event} is lost")),
                    // It survived its settlement once, so it must not vanish later.
                    (Settled::Asked, true) => settled.1 = Settled::No,
                    (Settled::Asked, false) => settled.1 = Settled::Yes,
                    _ => {}
                }
            }
        }
        self.report.fold(found.len() as u64);
        if self.plan.encrypted {
            for (_, name, bytes) in self.disks.iter().flat_map(SimDisk::platter) {
                if bytes.windows(9).any(|window| window == b"plaintext") {
                    return Err(format!("an event is in the clear in {name}"));
                }
            }
        }
        Ok(())
    }

    /// Opens and takes everything, in order.
    fn drain(&mut self, disks: &[SimDisk]) -> Result<Vec<u64>, String> {
        let (mut core, _) = self.open(disks).map_err(|error| format!("does not open: {error}"))?;
        for (key, note) in core.notes_of("sink") {
            let value = note.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let model = self.notes.get(&key).ok_or_else(|| format!("note {key} was never written"))?;
            if !model.possible.contains(&value) {
                return Err(format!("note {key} is {value:?} instead of one of {:?}", model.possible));
            }
        }
        for (key, model) in &self.notes {
            let present = core.notes_of("sink").iter().any(|(found, _)| found == key);
            if !present && !model.possible.contains(&None) {
                return Err(format!("note {key} is gone"));
            }
        }
        let consumer = core.handle();
        let mut cursors = Cursors::default();
        let (mut found, mut now) = (Vec::new(), self.now);
        loop {
            let mut answers = Vec::new();
            let (sender, mut ticket) = Ticket::pair();
            let limits = TakeLimits { events: 7, bytes: 5000 };
            core.take(now, consumer, limits, Duration::from_secs(60), sender, &mut answers);
            let lease = loop {
                answers.drain(..).for_each(Answer::send);
                match ticket.try_take() {
                    Ok(lease) => break lease,
                    Err(waiting) => ticket = waiting,
                }
                match core.next_read() {
                    Some(job) => core.read_done(now, job.run(&mut cursors), &mut answers),
                    None => {
                        // Nothing to read and nothing leased: either the end, or an order wait.
                        now += Duration::from_secs(1);
                        core.tick(now, &mut answers);
                    }
                }
            };
            let lease = lease.map_err(|error| format!("draining fails: {error}"))?;
            if lease.is_empty() {
                return Ok(found);
            }
            for (_, event) in lease.iter() {
                let id = event_of(event.header("id"));
                self.seen(id, event.body())?;
                found.push(id);
            }
        }
    }
}

fn event_of(header: Option<&str>) -> u64 {
    header.and_then(|id| id.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal::planted::{Bug, plant};

    const EXHAUSTIVE_OUTCOMES: [DiskOutcome; 5] = [
        DiskOutcome::Nothing,
        DiskOutcome::Everything,
        DiskOutcome::ProcessKilled,
        DiskOutcome::Torn(11),
        DiskOutcome::Torn(12),
    ];

    fn plan(seed: u64) -> Plan {
        let mut plan = Plan::from_seed(seed);
        plan.faults = false;
        plan.steps = 400;
        plan
    }

    /// Crashes at every operation until the plan ends without one.
    fn crash_everywhere(plan: &Plan) -> Result<u64, String> {
        let mut operations = 0;
        for disk in 0..plan.dirs {
            let mut stop = 1;
            while crash_at(plan, disk, stop, &EXHAUSTIVE_OUTCOMES, 2)? {
                stop += 1;
            }
            operations += stop - 1;
        }
        Ok(operations)
    }

    #[test]
    fn nothing_acknowledged_is_lost_over_random_crashes() {
        let mut total = Report::default();
        for seed in 0..400 {
            let report = simulate(&Plan::from_seed(seed)).unwrap();
            total.crashes += report.crashes;
            total.events_acknowledged += report.events_acknowledged;
            total.events_settled += report.events_settled;
            total.rolls += report.rolls;
            total.torn += report.torn;
            total.unproven += report.unproven;
            total.disk_failures += report.disk_failures;
            total.checkpoints += report.checkpoints;
            total.vouched += report.vouched;
        }
        println!("{total:?}");
        assert!(total.crashes > 800 && total.events_acknowledged > 4000 && total.events_settled > 500, "{total:?}");
        assert!(total.torn > 30 && total.unproven > 50 && total.disk_failures > 20, "{total:?}");
        assert!(total.checkpoints > 300 && total.vouched > 100, "{total:?}");
    }

    #[test]
    fn one_seed_gives_one_history() {
        for seed in 0..20 {
            let plan = Plan::from_seed(seed);
            assert_eq!(simulate(&plan), simulate(&plan));
        }
    }

    #[test]
    fn a_crash_at_every_operation_loses_nothing() {
        let operations: u64 = (0..8).map(|seed| crash_everywhere(&plan(seed)).unwrap()).sum();
        println!("a crash at each of {operations} operations, {} outcomes each", EXHAUSTIVE_OUTCOMES.len());
        assert!(operations > 500, "only {operations} operations");
    }

    fn is_caught(bug: Bug) -> Option<String> {
        // Nothing is wrong before the bug is planted, or catching it would prove nothing.
        crash_everywhere(&plan(0)).unwrap();
        plant(Some(bug));
        let caught = (0..40).find_map(|seed| {
            let mut plan = plan(seed);
            plan.encrypted |= bug == Bug::ReuseNonce;
            crash_everywhere(&plan).err().or_else(|| simulate(&plan).err())
        });
        plant(None);
        println!("{bug:?}: {caught:?}");
        caught
    }

    #[test]
    fn a_missing_data_sync_is_caught() {
        is_caught(Bug::SkipDataSync).expect("caught");
    }

    #[test]
    fn a_missing_directory_sync_is_caught() {
        is_caught(Bug::SkipDirectorySync).expect("caught");
    }

    #[test]
    fn an_acknowledgement_before_the_sync_is_caught() {
        is_caught(Bug::AcknowledgeBeforeSync).expect("caught");
    }

    #[test]
    fn a_nonce_used_twice_is_caught() {
        let broken = is_caught(Bug::ReuseNonce).expect("caught");
        assert!(broken.contains("used twice"), "{broken}");
    }
}
