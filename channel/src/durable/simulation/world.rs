//! The whole channel on simulated disks, one step at a time.
//!
//! Steps the same [`Core`] as the threads do. After each crash it opens what survived, takes everything, compares it
//! with the [`Model`], and gives everything back. A broken promise is an `Err` that names it.

mod evidence;
mod recovery;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wal::chore::Chore;
use wal::device::Device;
use wal::flushes::{Durability, Flushes, flush};
use wal::io::buffer::Buffer;
use wal::io::real::{Backend, RealDir};
use wal::io::sim::{Failure, Fault, Operation, Outcome as DiskOutcome, SimDisk, SimRandom, UNLIMITED};
use wal::io::{Dir, durable};
use wal::limits::OVERLAP_MIN;
use wal::log::Log;
use wal::recover::RecoverError;
use wal::seal::{ChannelKey, nonces};
use wal::tuning::{Calibration, Tuning};

use super::coverage::{Coverage, FaultKind, Phase};
use super::model::{Known, Model, SECRET, Settled, body_of};
use super::plan::{Plan, Step, Verb};
use crate::api::{ChannelStats, Lease, PutError, PutReceipt, TakeError, TakeLimits, Unavailable};
use crate::durable::compress::compress;
use crate::durable::core::{Answer, Core, CoreOptions, Start};
use crate::durable::job::{Job, PendingPut};
use crate::durable::open::{OnDamage, OpenDir, OpenError, OpenSettings, Recovery, open};
use crate::durable::read::{Buffers, ReadJob};
use crate::event::EventBatch;
use crate::settlement::{NoteUpdate, Outcome, SeqRange, SettleError, Settlement};
use crate::ticket::Ticket;

const PRODUCERS: usize = 3;
/// So many keys are there at each start; rotations go round.
const KEYS: u8 = 4;
const CONSUMERS: usize = 2;
const CHECKPOINTS: &str = "ckpt";
const OWNER: &str = "sink";
const UNREADABLE: &str = "draining fails";
/// Rounds in which a channel without faults must have finished everything.
const ROUNDS_MAX: usize = 600;

/// What a simulation went through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub crashes: u64,
    pub recovery_crashes: u64,
    pub events_put: u64,
    pub events_acknowledged: u64,
    pub events_settled: u64,
    pub frames: u64,
    pub rolls: u64,
    pub torn: u64,
    pub unproven: u64,
    pub checkpoints: u64,
    /// Segments that recovery did not read because of them.
    pub vouched: u64,
    /// Segments of which it read the footer.
    pub footed: u64,
    /// Events put and segments begun between two crashes.
    pub cycles: Vec<(u32, u32)>,
    pub coverage: Coverage,
    /// Folded over everything that was observed: one seed, one hash.
    pub trace: u64,
}

impl Report {
    fn fold(&mut self, number: u64) {
        self.trace = (self.trace ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    /// Sums up, except for the trace.
    pub fn add(&mut self, other: &Report) {
        self.crashes += other.crashes;
        self.recovery_crashes += other.recovery_crashes;
        self.events_put += other.events_put;
        self.events_acknowledged += other.events_acknowledged;
        self.events_settled += other.events_settled;
        self.frames += other.frames;
        self.rolls += other.rolls;
        self.torn += other.torn;
        self.unproven += other.unproven;
        self.checkpoints += other.checkpoints;
        self.vouched += other.vouched;
        self.footed += other.footed;
        self.cycles.extend(&other.cycles);
        self.coverage.add(&other.coverage);
    }
}

type PutTicket = Ticket<Result<PutReceipt, PutError>>;
type SettleTicket = Ticket<Result<(), SettleError>>;

struct Flight {
    job: Job,
    frame: Buffer,
    /// Its bytes are on their way.
    written: bool,
    /// Its write has returned, and it waits for a flush.
    returned: bool,
    /// For so many more steps it does not return.
    held: u64,
}

struct Held {
    consumer: u64,
    lease: Lease,
}

/// A settlement on its way.
struct Asked {
    events: Vec<u64>,
    /// (key, value) of the note that goes with it.
    /// Its key, and its number in the books.
    note: Option<(String, u64)>,
    ticket: SettleTicket,
}

/// One life of the process.
pub(super) struct Life {
    core: Core,
    puts: Vec<(usize, PutTicket)>,
    flights: Vec<Flight>,
    /// By log: which writes wait for a flush, and what the one that is out will answer.
    flushes: Vec<Flushes>,
    flushing: Vec<Option<io::Result<()>>>,
    held: Vec<Held>,
    takes: Vec<(u64, Ticket<Result<Lease, TakeError>>)>,
    settles: Vec<Asked>,
    producers: Vec<u64>,
    consumers: Vec<u64>,
    /// Reads that are out, by disk: on one that stalls they hang.
    reads: Vec<Vec<ReadJob>>,
    newest_ordinals: Vec<u64>,
    /// The key is rotated while the next chore is under way.
    rotates_midway: bool,
    /// A file could not be removed: the next life will.
    keeps_removed: bool,
}

/// An operation of one disk, counted over all lives, that is to be struck once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Armed {
    Stop { disk: usize, at: u64 },
    Fail { disk: usize, fault: Fault },
}

/// A simulation under way.
pub struct World {
    plan: Plan,
    /// Whether this life encrypts, and whether the next one will.
    encrypted: bool,
    encrypts_next: bool,
    /// Which of the keys seals new frames.
    active_key: u8,
    pub(super) now: Duration,
    disks: Vec<SimDisk>,
    /// Where the directories are when they are real; then nothing but the death of the process is simulated.
    root: Option<PathBuf>,
    backend: Backend,
    /// The real directories that were opened.
    opened: RefCell<BTreeMap<String, Arc<dyn Dir>>>,
    /// What was promised when the last step had asked and heard no answer yet, if anybody wants to know.
    pub(super) keeps_books: bool,
    pub(super) asked: Option<(Model, Duration, bool)>,
    random: Arc<SimRandom>,
    /// What reads read into, with the bytes of earlier reads still in it; kept over lives, for memory costs more than reads.
    buffers: Arc<Buffers>,
    pub(super) model: Model,
    pub(super) report: Report,
    /// What the last start made of the disks.
    outcome: Option<evidence::Outcome>,
    life: Option<Life>,
    phase: Phase,
    /// For each disk, how many more steps it takes no part.
    stalled: Vec<u64>,
    nests: Vec<[u16; 3]>,
    recovery_faults: Vec<[u16; 3]>,
    unmounted: Option<usize>,
    armed: Option<Armed>,
    /// A disk was made to fail or to be full, so a take may say so.
    faults_happen: bool,
    /// A disk slept at least once.
    has_stalled: bool,
    cycle_began: (u64, u64),
}

/// Runs a plan from beginning to end. `Err` names the promise that was broken.
pub fn simulate(plan: &Plan) -> Result<Report, String> {
    watched(World::new(plan.clone()))
}

/// Runs the steps of a plan on real directories below `root`. Only processes die there; disks and machines do not.
pub fn run_on_real_files(plan: &Plan, root: &Path) -> Result<Report, String> {
    watched(World::on_real_files(plan.clone(), root))
}

fn watched(world: World) -> Result<Report, String> {
    nonces::watch();
    let outcome = world.run();
    nonces::stop();
    outcome
}

impl World {
    pub fn new(plan: Plan) -> World {
        let disks: Vec<SimDisk> = (0..plan.dirs).map(|_| SimDisk::default()).collect();
        let encrypted = plan.encrypted;
        disks.iter().for_each(|disk| disk.guard(encrypted.then_some(SECRET)));
        World {
            encrypted,
            encrypts_next: encrypted,
            active_key: 0,
            now: Duration::from_secs(1),
            root: None,
            backend: Backend::Buffered,
            opened: RefCell::default(),
            keeps_books: false,
            asked: None,
            random: Arc::new(SimRandom::new(plan.seed ^ 0xabcd)),
            buffers: Arc::default(),
            model: Model::default(),
            report: Report::default(),
            outcome: None,
            life: None,
            phase: Phase::Idle,
            stalled: vec![0; plan.dirs],
            nests: Vec::new(),
            recovery_faults: Vec::new(),
            unmounted: None,
            armed: None,
            faults_happen: false,
            has_stalled: false,
            cycle_began: (0, 0),
            disks,
            plan,
        }
    }

    /// A world whose directories are real ones below `root`. Steps that concern disks or the machine mean nothing there.
    pub fn on_real_files(plan: Plan, root: &Path) -> World {
        World { root: Some(root.to_owned()), ..World::new(plan) }
    }

    /// The same world, whose real files are written like this.
    pub(super) fn with_backend(self, backend: Backend) -> World {
        World { backend, ..self }
    }

    /// What is promised now, and whether the next life encrypts.
    pub(super) fn books(&self) -> (Model, Duration, bool) {
        (self.model.clone(), self.now, self.encrypts_next)
    }

    /// What the channel says of itself, if it is open.
    pub fn stats(&self) -> Option<ChannelStats> {
        self.life.as_ref().map(|life| life.core.stats())
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    fn run(mut self) -> Result<Report, String> {
        for step in self.plan.steps.clone() {
            self.apply(step)?;
        }
        self.finish()
    }

    /// A world that goes on from the same disks with the same books, after the end of this life.
    pub(super) fn fork(&self) -> World {
        let mut world = World::new(Plan { steps: Vec::new(), encrypted: self.encrypted, ..self.plan });
        world.encrypts_next = self.encrypts_next;
        world.now = self.now;
        world.disks = self.disks.iter().map(SimDisk::fork).collect();
        world.random = Arc::clone(&self.random);
        world.buffers = Arc::clone(&self.buffers);
        world.model = self.model.clone();
        world
    }

    /// Strikes one operation, counted over all lives.
    pub(super) fn arm(&mut self, armed: Armed) {
        self.armed = Some(armed);
        match armed {
            Armed::Stop { disk, at } => self.disks[disk].stop_at(at),
            Armed::Fail { disk, fault } => self.disks[disk].inject(fault),
        }
    }

    pub(super) fn disarm(&mut self) {
        self.armed = None;
    }

    pub(super) fn operations(&self, disk: usize) -> u64 {
        self.disks[disk].operations()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.disks.iter().any(SimDisk::is_stopped)
    }

    fn key(&self) -> Option<ChannelKey> {
        self.encrypted.then(|| key_of(self.active_key))
    }

    fn dir(&self, index: usize, name: &str) -> Result<Arc<dyn Dir>, OpenError> {
        let Some(root) = &self.root else { return Ok(self.disks[index].dir(name)) };
        if let Some(dir) = self.opened.borrow().get(name) {
            return Ok(Arc::clone(dir));
        }
        let path = root.join(name);
        let failed = |error| OpenError::Io { dir: name.to_owned(), action: "open".to_owned(), error };
        let dir: Arc<dyn Dir> = Arc::new(RealDir::open_or_create(&path, Some(self.backend)).map_err(failed)?);
        self.opened.borrow_mut().insert(name.to_owned(), Arc::clone(&dir));
        Ok(dir)
    }

    /// Opens the directories: with all that spares reading, or by the frames alone.
    fn open_dirs(&self, spares_reading: bool, random: &SimRandom) -> Result<(Start, Recovery), OpenError> {
        let overlap_min = if self.plan.overlap { 1 } else { OVERLAP_MIN };
        let durability = if self.plan.shared_flush { Durability::SharedFlush } else { Durability::PerWrite };
        let tuning = Tuning { durability, depth: self.plan.depth };
        let device = |name: String| Device::with_overlap(name, tuning, overlap_min);
        let calibration = self.plan.measured.then_some(Calibration {
            tuning,
            measured_ms: self.report.crashes,
            fingerprint: 1,
            per_write_kib_s: 2,
            shared_flush_kib_s: 3,
            latency_us: 4,
        });
        let shared = device("all".to_owned());
        let mut dirs = Vec::new();
        for index in 0..self.plan.dirs {
            let name = format!("d{index}");
            let dir = self.dir(index, &name)?;
            durable::remove_leftovers(&*dir).map_err(|error| OpenError::Io {
                dir: dir.name(),
                action: "remove leftovers".to_owned(),
                error,
            })?;
            let device = if self.plan.one_device { Arc::clone(&shared) } else { device(name) };
            dirs.push(OpenDir { dir, device, calibration });
        }
        let settings = OpenSettings {
            segment_len: self.plan.segment_pages * 4096,
            pool_bytes: self.plan.pool_segments * self.plan.segment_pages * 4096,
            reserve_bytes: 0,
            key: self.key(),
            keys: (0..KEYS).map(key_of).collect(),
            on_damage: OnDamage::Refuse,
            footers: spares_reading,
        };
        let checkpoint_dir = self.dir(0, CHECKPOINTS)?;
        open(&dirs, &settings, random, 1, spares_reading.then_some(&*checkpoint_dir))
    }

    fn open(&mut self) -> Result<(Core, Recovery), OpenError> {
        let (start, recovery) = self.open_dirs(true, &self.random)?;
        self.outcome = Some(evidence::Outcome::of(&start, &recovery));
        let options = CoreOptions {
            name: "c1".to_owned(),
            capacity: self.plan.capacity,
            transaction_capacity: 100,
            keep_alive: Duration::from_secs(1),
            disk_bytes_max: None,
            hot_tail_bytes: self.plan.hot_tail,
            scrub_interval: Duration::from_millis(20),
            checkpoint_interval: Duration::from_millis(20),
        };
        let random = Arc::clone(&self.random);
        Ok((Core::new(options, random, self.disks.iter().map(|_| Arc::default()).collect(), start), recovery))
    }

    pub(super) fn start(&mut self) -> Result<Life, OpenError> {
        let (mut core, recovery) = self.open()?;
        self.report.torn += recovery.torn;
        self.report.unproven += recovery.unproven_frames;
        self.report.vouched += recovery.vouched_segments;
        self.report.footed += recovery.footed_segments;
        let producers = (0..PRODUCERS).map(|_| core.handle()).collect();
        let consumers = (0..CONSUMERS).map(|_| core.handle()).collect();
        Ok(Life {
            core,
            puts: Vec::new(),
            flights: Vec::new(),
            flushes: (0..self.plan.dirs).map(|_| Flushes::default()).collect(),
            flushing: (0..self.plan.dirs).map(|_| None).collect(),
            held: Vec::new(),
            takes: Vec::new(),
            settles: Vec::new(),
            producers,
            consumers,
            reads: (0..self.plan.dirs).map(|_| Vec::new()).collect(),
            newest_ordinals: vec![0; self.plan.dirs],
            rotates_midway: false,
            keeps_removed: false,
        })
    }

    /// Does one step. `Err` names a broken promise.
    pub fn apply(&mut self, step: Step) -> Result<(), String> {
        match step.verb {
            Verb::Nest => self.nests.push(step.args),
            Verb::FailRecovery => self.recovery_faults.push(step.args),
            Verb::Unmount => self.unmounted = Some(usize::from(step.args[0]) % self.plan.dirs),
            Verb::Encrypt => self.encrypts_next = step.args[0] != 0,
            Verb::Crash => return self.crash(step.args),
            _ if self.is_stopped() => {}
            _ => {
                let mut life = match self.life.take() {
                    Some(life) => life,
                    None => match self.recover()? {
                        Some(life) => life,
                        None => return Ok(()),
                    },
                };
                self.step(&mut life, step)?;
                if self.keeps_books {
                    self.asked = Some(self.books());
                }
                self.hear(&mut life)?;
                life.flights.iter_mut().for_each(|flight| flight.held = flight.held.saturating_sub(1));
                self.life = Some(life);
                self.stalled.iter_mut().for_each(|steps| *steps = steps.saturating_sub(1));
            }
        }
        self.promises_of_disks()
    }

    /// What must hold of every byte written, whoever asks.
    fn promises_of_disks(&self) -> Result<(), String> {
        if let Some(broken) = self.disks.iter().find_map(SimDisk::broken) {
            return Err(broken);
        }
        match nonces::repeated() {
            Some(number) => Err(format!("nonce {number} is used twice under one key")),
            None => Ok(()),
        }
    }

    fn step(&mut self, life: &mut Life, step: Step) -> Result<(), String> {
        let mut answers = Vec::new();
        let [first, second, third] = step.args.map(usize::from);
        let dirs = self.plan.dirs;
        self.now += Duration::from_micros(100);
        self.phase = state_phase(life);
        self.faults_happen |= matches!(step.verb, Verb::Fail | Verb::Space);
        match step.verb {
            Verb::Put => self.put(life, [first, second, third], &mut answers),
            Verb::Gather => self.gather(life, first, &mut answers)?,
            Verb::Write | Verb::Sync => self.advance_write(life, first, step.verb == Verb::Sync, &mut answers),
            Verb::Chore => {
                for index in (0..dirs).filter(|index| self.stalled[*index] == 0).collect::<Vec<_>>() {
                    self.chore(life, index, &mut answers)?;
                }
            }
            Verb::Take => {
                let consumer = life.consumers[first % CONSUMERS];
                let limits = TakeLimits { events: second.max(1), bytes: 1000 };
                let (sender, ticket) = Ticket::pair();
                life.core.take(self.now, consumer, limits, Duration::from_millis(30), sender, &mut answers);
                life.takes.push((consumer, ticket));
                self.read(life, &mut answers);
            }
            Verb::Read => {
                self.read(life, &mut answers);
            }
            Verb::Rotate if first == 0 => self.rotate(life),
            Verb::Rotate => life.rotates_midway = true,
            Verb::Settle => self.settle(life, [first, second, third], &mut answers),
            Verb::Note => {
                let (update, note) = self.draw_note(first, second);
                let (sender, ticket) = Ticket::pair();
                life.core.note(vec![update], sender, &mut answers);
                life.settles.push(Asked { events: Vec::new(), note: Some(note), ticket });
            }
            Verb::Checkpoint => self.checkpoint(life)?,
            Verb::Advance => {
                self.now += Duration::from_millis(first as u64);
                life.core.tick(self.now, &mut answers);
            }
            Verb::Hold => {
                let count = life.flights.len().max(1);
                if let Some(flight) = life.flights.get_mut(first % count) {
                    // Its own step counts as well.
                    flight.held = second as u64 + 1;
                }
            }
            Verb::Stall => {
                self.has_stalled = true;
                self.stalled[first % dirs] = second as u64;
            }
            Verb::Fail => {
                let disk = &self.disks[first % dirs];
                disk.inject(fault(disk.operations() + 1 + second as u64, step.args[2]));
            }
            Verb::Space => {
                let disk = &self.disks[first % dirs];
                disk.set_capacity(if second == 0 { UNLIMITED } else { disk.used() + (second as u64 - 1) * 4096 });
            }
            Verb::Stop => {
                let disk = &self.disks[first % dirs];
                disk.stop_at(disk.operations() + second.max(1) as u64);
            }
            Verb::Nest | Verb::FailRecovery | Verb::Unmount | Verb::Encrypt | Verb::Crash => {}
        }
        answers.into_iter().for_each(Answer::send);
        if self.stalled.iter().any(|steps| *steps > 0) && !life.flights.is_empty() && step.verb != Verb::Advance {
            self.report.coverage.mark(FaultKind::DiskStalls, self.phase);
        }
        Ok(())
    }

    /// Marks what failed in the operations just done. True if a read was among them.
    fn strikes(&mut self) -> bool {
        let mut reads = false;
        for (operation, Fault { only, forever, failure, .. }) in self.disks.iter().flat_map(SimDisk::take_strikes) {
            let full = matches!(failure, Failure::Short | Failure::Errno(28 | 122));
            let kind = match operation {
                _ if forever && only.is_none() => FaultKind::DiskGone,
                Operation::Write if full => FaultKind::DiskFull,
                Operation::Write => FaultKind::WriteFails,
                Operation::Sync => FaultKind::SyncFails,
                Operation::Names => FaultKind::NamesFail,
                Operation::SyncDir => FaultKind::DirectorySyncFails,
                Operation::Read => FaultKind::ReadFails,
            };
            reads |= operation == Operation::Read;
            self.report.coverage.mark(kind, self.phase);
        }
        reads
    }

    fn put(&mut self, life: &mut Life, [producer, events, bytes]: [usize; 3], answers: &mut Vec<Answer>) {
        self.phase = Phase::Put;
        let producer = producer % PRODUCERS;
        let paddings: Vec<usize> = (0..=events).map(|event| if event % 2 == 0 { bytes } else { bytes / 3 }).collect();
        let (put, first) = self.model.put(producer, &paddings);
        let mut batch = EventBatch::new();
        for (event, padding) in (first..).zip(paddings) {
            batch.push([("id", event.to_string().as_str())], &body_of(event, padding));
        }
        self.report.events_put += events as u64 + 1;
        let (sender, ticket) = Ticket::pair();
        let mut pending = PendingPut::new(life.producers[producer], batch, sender, Duration::ZERO);
        if self.plan.compressed {
            pending = pending.compressed(compress);
        }
        life.core.put(self.now, pending, answers);
        life.puts.push((put, ticket));
    }

    fn gather(&mut self, life: &mut Life, first: usize, answers: &mut Vec<Answer>) -> Result<(), String> {
        let dirs = self.plan.dirs;
        for index in (0..dirs).map(|step| (first + step) % dirs).filter(|index| self.stalled[*index] == 0) {
            let Some(job) = life.core.gather(index, self.now, 1, answers) else { continue };
            let header = &job.reservation.header;
            if life.newest_ordinals[index] != header.ordinal {
                life.newest_ordinals[index] = header.ordinal;
                self.report.rolls += 1;
            }
            self.report.frames += 1;
            self.report.fold(header.offset ^ header.first_seq << 20);
            let frame = job.sealed();
            let frame = frame.map_err(|error| format!("sealing fails: {error}"))?;
            life.flights.push(Flight { job, frame, written: false, returned: false, held: 0 });
            break;
        }
        Ok(())
    }

    fn advance_write(&mut self, life: &mut Life, choice: usize, to_the_end: bool, answers: &mut Vec<Answer>) {
        let goes_on = |flight: &Flight| flight.held == 0 && self.stalled[flight.job.log] == 0;
        let free: Vec<usize> = (0..life.flights.len()).filter(|at| goes_on(&life.flights[*at])).collect();
        let Some(&at) = free.get(choice % free.len().max(1)) else { return };
        let flight = &mut life.flights[at];
        let header = &flight.job.reservation.header;
        self.phase = if header.witness { Phase::Idle } else { Phase::Commit };
        if self.plan.shared_flush {
            return self.advance_shared(life, at, to_the_end, answers);
        }
        let (file, offset) = (&flight.job.reservation.file, header.offset);
        let result = if to_the_end {
            file.write_durable_at(&flight.frame, offset)
        } else if flight.written {
            return;
        } else {
            // The write is under way; a crash now tears it.
            flight.written = true;
            file.write_at(&flight.frame, offset)
        };
        if !self.is_stopped() && (to_the_end || result.is_err()) {
            let job = life.flights.swap_remove(at).job;
            life.core.complete(self.now, job, result, answers);
        }
        self.strikes();
    }

    /// The same where one flush makes many writes durable: a write begins, it returns, the flush that covers it ends. What is
    /// flushed is what had returned when the flush began; its answer comes later.
    fn advance_shared(&mut self, life: &mut Life, at: usize, to_the_end: bool, answers: &mut Vec<Answer>) {
        let Life { core, flights, flushes, flushing, .. } = life;
        let flight = &mut flights[at];
        let log = flight.job.log;
        let (id, epoch) = (flight.job.reservation.id, flight.job.reservation.epoch);
        let file = Arc::clone(&flight.job.reservation.file);
        let mut ended = Vec::new();
        if !std::mem::replace(&mut flight.written, true)
            && let Err(error) = file.write_at(&flight.frame, flight.job.reservation.header.offset)
        {
            ended.push((id, Err(error)));
        } else if to_the_end && !std::mem::replace(&mut flight.returned, true) {
            ended.extend(flushes[log].returned(id, &file, epoch).err().map(|error| (id, Err(error))));
        } else if to_the_end && let Some(result) = flushing[log].take() {
            ended = flushes[log].ended(result);
        }
        if !self.is_stopped() {
            for (id, result) in ended {
                let its = |flight: &Flight| flight.job.log == log && flight.job.reservation.id == id;
                let job = flights.swap_remove(flights.iter().position(its).expect("a frame ends once")).job;
                core.complete(self.now, job, result, answers);
            }
        }
        if !self.is_stopped()
            && flushing[log].is_none()
            && let Some(file) = flushes[log].begin()
        {
            flushing[log] = Some(flush(&*file));
        }
        self.strikes();
    }

    fn chore(&mut self, life: &mut Life, index: usize, answers: &mut Vec<Answer>) -> Result<bool, String> {
        let waited_for = life.core.has_work();
        let Some(chore) = life.core.next_chore(index, self.now, 1) else { return Ok(false) };
        if let (Chore::Prepare { header, .. }, Some(key)) = (&chore, self.key())
            && header.key.as_ref().is_some_and(|named| named.id != key.id())
        {
            return Err(format!("a segment is begun under another key than {}", key.id()));
        }
        let rolls = waited_for || matches!(chore, Chore::Prepare { .. });
        self.phase = if rolls { Phase::Roll } else { Phase::Idle };
        let dir = self.dir(index, &format!("d{index}")).map_err(|error| error.to_string())?;
        let result = chore.run(&*dir);
        if std::mem::take(&mut life.rotates_midway) {
            self.rotate(life);
        }
        life.keeps_removed |= matches!(chore, Chore::Remove { .. }) && result.is_err();
        self.strikes();
        if !self.is_stopped() {
            life.core.chore_done(index, self.now, chore, result, answers);
        }
        Ok(true)
    }

    fn rotate(&mut self, life: &mut Life) {
        self.active_key = (self.active_key + 1) % KEYS;
        life.core.rotate(&key_of(self.active_key));
    }

    /// Every disk that does not stall does one of the reads that are asked of it, whichever. False if there was none.
    fn read(&mut self, life: &mut Life, answers: &mut Vec<Answer>) -> bool {
        let mut reads = false;
        for index in 0..self.plan.dirs {
            while let Some(job) = life.core.next_read(index, self.now, 1) {
                life.reads[index].push(job);
            }
            if self.stalled[index] > 0 || life.reads[index].is_empty() {
                continue;
            }
            reads = true;
            if self.phase != Phase::Recovery {
                self.phase = state_phase(life);
            }
            let choice = (self.now.as_micros() / 100) as usize % life.reads[index].len();
            let read = life.reads[index].swap_remove(choice).run(&self.buffers);
            self.strikes();
            if !self.is_stopped() {
                life.core.read_done(self.now, index, read, answers);
            }
        }
        reads
    }

    fn checkpoint(&mut self, life: &mut Life) -> Result<(), String> {
        if let Some(checkpoint) = life.core.next_checkpoint(self.now) {
            self.phase = Phase::Checkpoint;
            let (dir, channel) = (self.dir(0, CHECKPOINTS).map_err(|error| error.to_string())?, life.core.channel());
            // One that fails costs the next start time, and nothing else.
            let written = checkpoint.write(&*dir, &channel, self.key().as_ref(), &*self.random);
            self.report.checkpoints += u64::from(written.is_ok());
            self.strikes();
        }
        Ok(())
    }

    fn draw_note(&mut self, key: usize, value: usize) -> (NoteUpdate, (String, u64)) {
        let key = format!("file{}", key % 4);
        let value = (!value.is_multiple_of(4)).then_some(self.report.frames << 8 | value as u64);
        let number = self.model.note_asked(&key, value);
        let update = NoteUpdate {
            owner: OWNER.to_owned(),
            key: key.clone(),
            note: value.map(|value| Bytes::copy_from_slice(&value.to_le_bytes())),
        };
        (update, (key, number))
    }

    fn settle(&mut self, life: &mut Life, [lease, how, note]: [usize; 3], answers: &mut Vec<Answer>) {
        if life.held.is_empty() {
            return;
        }
        let index = lease % life.held.len();
        let Held { consumer, lease } = life.held.swap_remove(index);
        let ids: Vec<(u64, u64)> = lease.iter().map(|(seq, event)| (seq, event_of(event.header("id")))).collect();
        // One half may have another end than the other.
        let cut = if how >= 6 { ids.len() / 2 } else { ids.len() };
        let outcome = match how % 6 {
            0 => Outcome::Returned,
            1 => Outcome::Dropped { reason: "a reason".to_owned() },
            2 => Outcome::DeadLettered { reason: "another".to_owned() },
            _ => Outcome::Delivered,
        };
        let returned = outcome == Outcome::Returned;
        let mut settlements = vec![Settlement::new(ranges_of(&ids[..cut]), outcome)];
        if cut < ids.len() {
            settlements.push(Settlement::new(ranges_of(&ids[cut..]), Outcome::Returned));
        }
        let events: Vec<u64> = if returned { Vec::new() } else { ids[..cut].iter().map(|(_, event)| *event).collect() };
        self.model.settle(&events, Settled::Asked);
        let mut asked_note = None;
        if note < 6 && !returned {
            let (update, note) = self.draw_note(note, how);
            settlements[0].notes.push(update);
            asked_note = Some(note);
        }
        let (sender, ticket) = Ticket::pair();
        life.core.settle(self.now, consumer, settlements, sender, answers);
        life.settles.push(Asked { events, note: asked_note, ticket });
    }

    /// Takes in the answers that have come.
    fn hear(&mut self, life: &mut Life) -> Result<(), String> {
        for (put, ticket) in std::mem::take(&mut life.puts) {
            match ticket.try_take() {
                Ok(Ok(_)) => {
                    self.report.events_acknowledged += self.model.answer(put, Known::Acknowledged);
                    self.report.fold(put as u64);
                }
                Ok(Err(PutError::Failed { .. } | PutError::Closed)) => {}
                Ok(Err(_)) => {
                    self.model.answer(put, Known::Absent);
                }
                Err(waiting) => life.puts.push((put, waiting)),
            }
        }
        for (consumer, ticket) in std::mem::take(&mut life.takes) {
            match ticket.try_take() {
                Ok(Ok(lease)) if lease.is_empty() => {}
                Ok(Err(TakeError::Closed)) => {}
                Ok(Ok(lease)) => {
                    for (_, event) in lease.iter() {
                        self.model.seen(event_of(event.header("id")), event.body())?;
                    }
                    life.held.push(Held { consumer, lease });
                }
                Ok(Err(error)) if self.faults_happen() => self.report.fold(error.to_string().len() as u64),
                // What it reads may have been out for longer than the disk was told to sleep.
                Ok(Err(error @ TakeError::Unreadable { .. })) if self.has_stalled => {
                    self.report.fold(error.to_string().len() as u64);
                }
                Ok(Err(error)) => return Err(format!("a take fails: {error}")),
                Err(waiting) => life.takes.push((consumer, waiting)),
            }
        }
        for Asked { events, note, ticket } in std::mem::take(&mut life.settles) {
            match ticket.try_take() {
                Ok(Ok(())) => {
                    self.report.events_settled += events.len() as u64;
                    self.model.settle(&events, Settled::Yes);
                    if let Some((key, number)) = note {
                        self.model.note_done(&key, number);
                    }
                }
                Ok(Err(SettleError::Failed(_) | SettleError::NoteRefused(_))) => {}
                Ok(Err(error)) => return Err(format!("a settlement fails: {error}")),
                Err(ticket) => life.settles.push(Asked { events, note, ticket }),
            }
        }
        Ok(())
    }

    fn faults_happen(&self) -> bool {
        self.armed.is_some() || self.faults_happen
    }

    /// The machine or the process dies here, and what survived is compared with what was promised.
    fn crash(&mut self, [outcome, seed, _]: [u16; 3]) -> Result<(), String> {
        if self.life.is_none() && !self.is_stopped() {
            // A crash of what never started.
            let Some(life) = self.recover()? else { return Ok(()) };
            self.life = Some(life);
        }
        if let Some(life) = self.life.take()
            && !self.is_stopped()
        {
            self.phase = state_phase(&life);
        }
        self.restart(outcome, seed);
        self.report.crashes += 1;
        let (events, rolls) = self.cycle_began;
        self.report.cycles.push(((self.report.events_put - events) as u32, (self.report.rolls - rolls) as u32));
        self.cycle_began = (self.report.events_put, self.report.rolls);
        self.life = self.recover()?;
        Ok(())
    }

    fn restart(&mut self, outcome: u16, seed: u16) {
        let (kind, outcome) = match outcome % 8 {
            0 | 1 => (FaultKind::Killed, DiskOutcome::ProcessKilled),
            2 => (FaultKind::CutNothingSurvives, DiskOutcome::Nothing),
            3 => (FaultKind::CutEverythingSurvives, DiskOutcome::Everything),
            _ => (FaultKind::CutTorn, DiskOutcome::Torn(u64::from(seed))),
        };
        self.report.coverage.mark(kind, self.phase);
        self.restart_disks(outcome);
    }

    pub(super) fn restart_disks(&mut self, outcome: DiskOutcome) {
        self.life = None;
        self.stalled.fill(0);
        self.encrypted = self.encrypts_next;
        self.disks.iter().for_each(|disk| disk.guard(self.encrypted.then_some(SECRET)));
        for (disk, salt) in self.disks.iter().zip(0..) {
            disk.restart(if let DiskOutcome::Torn(seed) = outcome {
                DiskOutcome::Torn(seed ^ salt << 32)
            } else {
                outcome
            });
            disk.set_capacity(UNLIMITED);
        }
        match self.armed {
            Some(Armed::Stop { disk, at }) => self.disks[disk].stop_at(at),
            Some(Armed::Fail { disk, fault }) if fault.forever || fault.at > self.disks[disk].operations() => {
                self.disks[disk].inject(fault);
            }
            _ => {}
        }
    }
}

/// One of the keys of all histories.
fn key_of(number: u8) -> ChannelKey {
    ChannelKey::new(&format!("k{}", number + 1), [7 + number; 32]).expect("a fine key")
}

/// What goes on between operations.
fn state_phase(life: &Life) -> Phase {
    if !life.flights.is_empty() {
        Phase::Commit
    } else if !life.puts.is_empty() || life.core.has_work() {
        Phase::Put
    } else {
        Phase::Idle
    }
}

/// The kind of a failing operation, from one number: which error, which operations, once or for ever.
fn fault(at: u64, kind: u16) -> Fault {
    const ONLY: [Option<Operation>; 6] = [
        None,
        Some(Operation::Read),
        Some(Operation::Write),
        Some(Operation::Sync),
        Some(Operation::Names),
        Some(Operation::SyncDir),
    ];
    let (_, failure) = Failure::ALL[usize::from(kind) % 8];
    Fault { at, only: ONLY[usize::from(kind / 8) % 6], forever: (kind / 48).is_multiple_of(3), failure }
}

fn ranges_of(ids: &[(u64, u64)]) -> Vec<SeqRange> {
    let mut ranges: Vec<SeqRange> = Vec::new();
    for (seq, _) in ids {
        match ranges.last_mut() {
            Some(last) if last.end == *seq => last.end += 1,
            _ => ranges.push(SeqRange::new(*seq, seq + 1)),
        }
    }
    ranges
}

fn event_of(header: Option<&str>) -> u64 {
    header.and_then(|id| id.parse().ok()).unwrap_or(0)
}
