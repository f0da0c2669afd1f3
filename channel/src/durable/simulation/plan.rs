//! What a simulation does, written out: a configuration and a list of steps, made from a seed or read from text.
//!
//! Steps are small numbers that are taken modulo what is there, so any sub-list of a history is a history too. That is
//! what makes a failing one shrink.

use std::fmt;

use wal::io::sim::Rng;
use wal::limits::{DEPTH_DEFAULT, FRAMES_AHEAD};

/// The world of a simulation and all that happens in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    /// Data directories, each on a disk of its own.
    pub dirs: usize,
    pub encrypted: bool,
    /// Pages of 4 KiB of a segment: 3 to 16.
    pub segment_pages: u64,
    /// Writes in flight on one device.
    pub depth: usize,
    /// Whether frames overlap on a device although few bytes wait.
    pub overlap: bool,
    /// Whether all directories are one flush domain.
    pub one_device: bool,
    /// Bytes of events kept in memory for takes.
    pub hot_tail: usize,
    /// Events that the channel holds at most.
    pub capacity: u64,
    /// Segments that are kept when they are drained.
    pub pool_segments: u64,
    /// Whether transactions are compressed, short ones too.
    pub compressed: bool,
    /// Whether one flush makes many writes durable.
    pub shared_flush: bool,
    /// Whether each start finds disks that behave otherwise than at the last one, and keeps that.
    pub measured: bool,
    /// Whether more frames are under way where the disk is quick.
    pub ahead: bool,
    pub steps: Vec<Step>,
}

/// One thing that happens, with three numbers whose meaning depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub verb: Verb,
    pub args: [u16; 3],
}

macro_rules! verbs {
    ($($(#[doc = $doc:literal])+ $verb:ident = $name:literal,)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Verb {
            $($(#[doc = $doc])+ $verb,)+
        }

        impl Verb {
            const NAMES: &[(&str, Verb)] = &[$(($name, Verb::$verb),)+];
        }
    };
}

verbs! {
    /// producer, events, bytes of each
    Put = "put",
    /// The next frame for a log: which.
    Gather = "gather",
    /// A frame's write begins and is not synced: which.
    Write = "write",
    /// A frame is written and synced, and its outcome heard: which.
    Sync = "sync",
    /// File work of every log.
    Chore = "chore",
    /// consumer, events
    Take = "take",
    /// What a take waits for is read from disk.
    Read = "read",
    /// lease, outcome, note
    Settle = "settle",
    /// key, value
    Note = "note",
    /// A checkpoint, if one is due.
    Checkpoint = "checkpoint",
    /// Milliseconds pass.
    Advance = "advance",
    /// A write does not return for some steps, whatever becomes of its disk meanwhile: which, steps
    Hold = "hold",
    /// From the next start on, new frames are encrypted, or they are not: 1 or 0
    Encrypt = "encrypt",
    /// New frames are sealed with another key: 0 at once, 1 while the next file work is under way
    Rotate = "rotate",
    /// A disk takes no part for some steps: disk, steps
    Stall = "stall",
    /// An operation fails: disk, how many operations from now, kind (see [`Plan::fault`])
    Fail = "fail",
    /// The same, in the next recovery.
    FailRecovery = "fail-recovery",
    /// The space of a disk ends some pages from now, or does not: disk, pages (0 for no end)
    Space = "space",
    /// The machine stops during an operation: disk, how many operations from now
    Stop = "stop",
    /// The next recovery is interrupted too: disk, how many operations into it, outcome
    Nest = "nest",
    /// The next start is tried without a disk first, as if it were not mounted: which.
    Unmount = "unmount",
    /// This life ends: outcome, seed of the damage
    Crash = "crash",
}

impl Verb {
    /// Whether it is about a disk or the machine, which only simulated ones can obey.
    pub fn needs_simulated_disks(self) -> bool {
        matches!(self, Verb::Fail | Verb::FailRecovery | Verb::Space | Verb::Stop | Verb::Nest)
    }
}

impl Step {
    pub fn new(verb: Verb, args: [u16; 3]) -> Step {
        Step { verb, args }
    }
}

impl Plan {
    /// A plan whose every property comes from the seed.
    pub fn from_seed(seed: u64) -> Plan {
        let mut rng = Rng(seed ^ 0x5eed_0002);
        let small = rng.chance(2);
        let mut plan = Plan {
            seed,
            dirs: 1 + rng.below(4) as usize,
            encrypted: rng.chance(2),
            segment_pages: 3 + rng.below(if small { 4 } else { 14 }),
            depth: 1 + rng.below((DEPTH_DEFAULT + FRAMES_AHEAD) as u64) as usize,
            overlap: rng.chance(2),
            one_device: rng.chance(3),
            hot_tail: if rng.chance(3) { 100 } else { 2000 },
            capacity: if rng.chance(5) { 30 + rng.below(100) } else { 10_000 },
            // Drawn apart, so that older seeds mean what they meant but for this.
            pool_segments: if (seed ^ seed >> 7).is_multiple_of(2) { 0 } else { 8 },
            compressed: (seed ^ seed >> 5).is_multiple_of(3),
            shared_flush: (seed ^ seed >> 11).is_multiple_of(3),
            measured: (seed ^ seed >> 9).is_multiple_of(5),
            ahead: (seed ^ seed >> 13).is_multiple_of(3),
            steps: Vec::new(),
        };
        let moods = Moods::draw(&mut rng);
        // Now and then one long life between two crashes: some states take hundreds of steps to come about.
        let (cycles, steps) = if rng.chance(12) { (2, 600) } else { (2 + rng.below(4), 80) };
        for _ in 0..cycles {
            plan.draw_cycle(&mut rng, &moods, steps);
        }
        plan.draw_rarities();
        plan
    }

    /// What was added to histories later, from numbers of its own: in all other histories a seed means what it meant.
    fn draw_rarities(&mut self) {
        let mut rng = Rng(self.seed ^ 0x5eed_0003);
        if rng.chance(8) {
            for _ in 0..1 + rng.below(4) {
                self.insert(&mut rng, Verb::Hold, |rng| [rng.below(8), 1 + rng.below(120), 0]);
            }
        }
        if rng.chance(8) {
            for _ in 0..1 + rng.below(3) {
                self.insert(&mut rng, Verb::Encrypt, |rng| [rng.below(2), 0, 0]);
            }
        }
        if rng.chance(6) {
            for _ in 0..1 + rng.below(5) {
                self.insert(&mut rng, Verb::Rotate, |rng| [rng.below(2), 0, 0]);
            }
        }
    }

    fn insert(&mut self, rng: &mut Rng, verb: Verb, args: impl FnOnce(&mut Rng) -> [u64; 3]) {
        let at = rng.below(self.steps.len() as u64) as usize;
        self.steps.insert(at, Step::new(verb, args(rng).map(|number| number as u16)));
    }

    fn draw_cycle(&mut self, rng: &mut Rng, moods: &Moods, steps_max: u64) {
        let steps = 60 + rng.below(steps_max);
        let accident = rng.below(steps);
        let stops = rng.chance(2);
        for step in 0..steps {
            if step == accident {
                if stops {
                    self.push(rng, Verb::Stop, |rng| [rng.below(4), 1 + rng.below(40), 0]);
                } else if moods.faults {
                    self.push(rng, Verb::Fail, |rng| [rng.below(4), rng.below(12), rng.number()]);
                } else if moods.space && rng.chance(2) {
                    self.push(rng, Verb::Space, |rng| [rng.below(4), rng.below(24), 0]);
                }
            }
            match rng.below(100) {
                0..22 => self.push(rng, Verb::Put, |rng| [rng.below(3), rng.below(5), rng.below(moods.bytes)]),
                22..44 => self.push(rng, Verb::Gather, |rng| [rng.below(4), 0, 0]),
                44..50 => self.push(rng, Verb::Write, |rng| [rng.below(8), 0, 0]),
                50..70 => self.push(rng, Verb::Sync, |rng| [rng.below(8), 0, 0]),
                70..78 => self.push(rng, Verb::Chore, |rng| [rng.below(4), 0, 0]),
                78..85 if moods.takes => self.push(rng, Verb::Take, |rng| [rng.below(2), 1 + rng.below(9), 0]),
                85..88 if moods.takes => self.push(rng, Verb::Read, |_| [0; 3]),
                88..94 if moods.takes => {
                    self.push(rng, Verb::Settle, |rng| [rng.below(4), rng.below(8), rng.below(16)]);
                }
                94 => self.push(rng, Verb::Note, |rng| [rng.below(4), rng.below(8), 0]),
                95 | 96 if moods.checkpoints => self.push(rng, Verb::Checkpoint, |_| [0; 3]),
                97 if moods.stalls => self.push(rng, Verb::Stall, |rng| [rng.below(4), 1 + rng.below(20), 0]),
                _ => self.push(rng, Verb::Advance, |rng| [if rng.chance(3) { rng.below(400) } else { 5 }, 0, 0]),
            }
        }
        if rng.chance(3) {
            for _ in 0..1 + rng.below(5) {
                self.push(rng, Verb::Nest, |rng| [rng.below(4), 1 + rng.below(60), rng.number()]);
            }
        }
        if moods.faults && rng.chance(3) {
            self.push(rng, Verb::FailRecovery, |rng| [rng.below(4), rng.below(40), rng.number()]);
        }
        if rng.chance(8) {
            self.push(rng, Verb::Unmount, |rng| [rng.below(4), 0, 0]);
        }
        self.push(rng, Verb::Crash, |rng| [rng.below(8), rng.number(), 0]);
    }

    fn push(&mut self, rng: &mut Rng, verb: Verb, args: impl FnOnce(&mut Rng) -> [u64; 3]) {
        self.steps.push(Step::new(verb, args(rng).map(|number| number as u16)));
    }

    /// The same plan with other steps.
    pub fn with_steps(&self, steps: Vec<Step>) -> Plan {
        Plan { steps, ..self.clone() }
    }
}

/// What kinds of things happen in a history at all: rare combinations are found where others are left out.
struct Moods {
    faults: bool,
    space: bool,
    takes: bool,
    checkpoints: bool,
    stalls: bool,
    bytes: u64,
}

impl Moods {
    fn draw(rng: &mut Rng) -> Moods {
        Moods {
            faults: rng.chance(3),
            space: rng.chance(4),
            takes: !rng.chance(5),
            checkpoints: !rng.chance(3),
            stalls: rng.chance(3),
            bytes: if rng.chance(4) { 1500 } else { 400 },
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "seed {} dirs {} encrypted {} segment-pages {} depth {} overlap {} one-device {} hot-tail {} capacity {} \
             pool {} compressed {} shared-flush {} measured {} ahead {}",
            self.seed,
            self.dirs,
            u8::from(self.encrypted),
            self.segment_pages,
            self.depth,
            u8::from(self.overlap),
            u8::from(self.one_device),
            self.hot_tail,
            self.capacity,
            self.pool_segments,
            u8::from(self.compressed),
            u8::from(self.shared_flush),
            u8::from(self.measured),
            u8::from(self.ahead)
        )?;
        for Step { verb, args: [first, second, third] } in &self.steps {
            let name = Verb::NAMES.iter().find(|(_, found)| found == verb).map_or("?", |(name, _)| name);
            writeln!(formatter, "{name} {first} {second} {third}")?;
        }
        Ok(())
    }
}

impl Plan {
    /// Reads what `Display` wrote. Lines that begin with `#` are comments.
    pub fn parse(text: &str) -> Result<Plan, String> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let head: Vec<&str> = lines.next().ok_or("an empty plan")?.split_whitespace().collect();
        let number = |name: &str| -> Result<u64, String> {
            let place = head.iter().position(|word| *word == name).ok_or_else(|| format!("no {name}"))?;
            head.get(place + 1).and_then(|word| word.parse().ok()).ok_or_else(|| format!("{name} is no number"))
        };
        let mut plan = Plan {
            seed: number("seed")?,
            dirs: number("dirs")? as usize,
            encrypted: number("encrypted")? != 0,
            segment_pages: number("segment-pages")?,
            depth: number("depth")? as usize,
            overlap: number("overlap")? != 0,
            one_device: number("one-device")? != 0,
            hot_tail: number("hot-tail")? as usize,
            capacity: number("capacity")?,
            pool_segments: number("pool").unwrap_or(0),
            compressed: number("compressed").unwrap_or(0) != 0,
            shared_flush: number("shared-flush").unwrap_or(0) != 0,
            measured: number("measured").unwrap_or(0) != 0,
            ahead: number("ahead").unwrap_or(0) != 0,
            steps: Vec::new(),
        };
        for line in lines {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            let (_, verb) =
                Verb::NAMES.iter().find(|(found, _)| *found == name).ok_or_else(|| format!("unknown step {name}"))?;
            let mut args = [0; 3];
            for arg in &mut args {
                *arg = words.next().map_or(Ok(0), str::parse).map_err(|_| format!("not a number in {line}"))?;
            }
            plan.steps.push(Step::new(*verb, args));
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_comes_back_from_its_text() {
        let plan = Plan::from_seed(7);
        assert_eq!(Plan::parse(&format!("# a story\n{plan}")), Ok(plan));
        assert!(Plan::parse("seed 1").is_err() && Plan::parse("").is_err());
    }
}
