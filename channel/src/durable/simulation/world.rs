//! The whole channel on simulated disks, one step at a time.
//!
//! Steps the same [`Core`] as the threads do. After each crash it opens what survived, takes everything, compares it
//! with the [`Model`], and gives everything back. A broken promise is an `Err` that names it.

mod evidence;
mod recovery;
mod steps;

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
use wal::limits::{FRAMES_AHEAD_MAX, OVERLAP_MIN};
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
pub(super) const KEYS: u8 = 4;
const CONSUMERS: usize = 2;
pub(super) const CHECKPOINTS: &str = "ckpt";
pub(super) const OWNER: &str = "sink";
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
        let frames = self.plan.depth..=self.plan.depth + if self.plan.ahead { FRAMES_AHEAD_MAX } else { 0 };
        let device = |name: String| Device::with_frames(name, tuning, frames.clone(), overlap_min);
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

    pub(super) fn restart(&mut self, outcome: u16, seed: u16) {
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
pub(super) fn key_of(number: u8) -> ChannelKey {
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

fn event_of(header: Option<&str>) -> u64 {
    header.and_then(|id| id.parse().ok()).unwrap_or(0)
}
