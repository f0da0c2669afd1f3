//! Rot: every single bit of every file of a small channel, flipped one at a time.
//!
//! The channel was closed in order, so a later frame witnesses everything in it. A flip must be noticed with an error, or
//! change nothing; events that come out are compared byte by byte. It strikes before the channel opens, or while it runs:
//! between recovery, which finds everything in order, and the first take, which reads the events back.

use std::fmt;
use std::ops::Range;

use wal::format::frame::{self, FrameHeader};
use wal::limits::PAGE;

use super::exhaustive::scenario;
use super::plan::{Step, Verb};
use super::world::World;

const BITS: u64 = 8;
/// Every so manieth byte of a frame is looked at while the channel lies idle: a prime.
const IDLE_EVERY: usize = 211;

/// Two lives, rolls, a footer, settlements and a note in each, a backlog; stays below 64 KiB.
const HISTORY: &str =
    "seed 11 dirs 1 encrypted 0 segment-pages 6 depth 1 overlap 1 one-device 0 hot-tail 2000 capacity 10000
    put 0 2 300
    gather 0
    chore
    chore
    chore
    gather 0
    sync 0
    put 1 2 300
    gather 0
    chore
    chore
    chore
    gather 0
    sync 0
    take 0 2
    settle 0 3 1
    gather 0
    chore
    chore
    chore
    gather 0
    sync 0
    put 2 1 300
    gather 0
    chore
    chore
    chore
    chore
    gather 0
    sync 0
    chore
    chore
    crash 0
    put 2 3 500
    gather 0
    chore
    chore
    chore
    gather 0
    sync 0
    put 0 1 900
    gather 0
    chore
    chore
    chore
    gather 0
    sync 0
    take 0 1
    settle 0 3 2
    gather 0
    chore
    chore
    chore
    gather 0
    sync 0
    advance 30";

/// A small channel at rest.
pub struct Fixture {
    world: World,
    /// (directory, file, first bit)
    files: Vec<(String, String, u64)>,
    bits: u64,
}

/// One bit of one file.
struct Place<'a> {
    dir: &'a str,
    name: &'a str,
    byte: usize,
    mask: u8,
}

impl Place<'_> {
    fn flip(&self, world: &World) {
        world.flip(self.dir, self.name, self.byte, self.mask);
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { dir, name, byte, mask } = self;
        write!(formatter, "byte {byte} of {dir}/{name}, mask {mask:#x}")
    }
}

/// One of several parts of the same work, about equal to the others.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub number: u64,
    pub of: u64,
}

impl Part {
    pub const WHOLE: Part = Part { number: 0, of: 1 };

    /// Its part of `count` things.
    pub fn range(self, count: u64) -> Range<u64> {
        count * self.number / self.of..count * (self.number + 1) / self.of
    }

    /// Whether it is its turn, where things are dealt out one by one.
    fn has_next(self, dealt: &mut u64) -> bool {
        *dealt += 1;
        *dealt % self.of == self.number
    }
}

/// What flips led to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flips {
    /// An error that names what is wrong.
    pub noticed: u64,
    /// Everything is there as if nothing had happened.
    pub harmless: u64,
}

impl Flips {
    fn count(&mut self, harmless: bool) {
        *(if harmless { &mut self.harmless } else { &mut self.noticed }) += 1;
    }

    pub fn add(&mut self, other: &Flips) {
        self.noticed += other.noticed;
        self.harmless += other.harmless;
    }
}

impl Fixture {
    /// Without a checkpoint the frames are the only evidence of each other.
    pub fn new(encrypted: bool, checkpoint: bool) -> Fixture {
        let mut plan = scenario(HISTORY);
        if checkpoint {
            plan.steps.push(Step::new(Verb::Checkpoint, [0; 3]));
        }
        plan.encrypted = encrypted;
        let mut world = World::new(plan.clone());
        for step in &plan.steps {
            world.apply(*step).expect("the fixture keeps its promises");
        }
        world.close().expect("the fixture closes");
        let mut opened = world.fork();
        opened.start().expect("the fixture opens");
        assert!(checkpoint || opened.report().footed > 0, "a segment of the fixture has a footer");
        let (mut files, mut bits) = (Vec::new(), 0);
        for (dir, name, bytes) in world.platter() {
            files.push((dir, name, bits));
            bits += bytes.len() as u64 * BITS;
        }
        Fixture { world, files, bits }
    }

    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Flips each bit of `range` by itself.
    pub fn flip(&self, range: Range<u64>) -> Result<Flips, String> {
        let mut flips = Flips::default();
        for bit in range {
            let (mut world, place) = (self.world.fork(), self.place(bit));
            place.flip(&world);
            flips.count(world.opens_and_holds().map_err(|broken| format!("{place}: {broken}"))?);
        }
        Ok(flips)
    }

    /// Flips each bit of `range` by itself under a channel that is already open and has read nothing back yet.
    pub fn flip_running(&self, range: Range<u64>) -> Result<Flips, String> {
        let mut flips = Flips::default();
        for bit in range {
            let (mut world, place) = (self.world.fork(), self.place(bit));
            let told = |broken: String| format!("{place}, while it runs: {broken}");
            let life = world.start().map_err(|error| told(format!("does not open: {error}")))?;
            place.flip(&world);
            flips.count(world.holds(life).map_err(told)?);
        }
        Ok(flips)
    }

    /// Flips bits of each frame whose events wait, under a channel that is open and then lies idle: it must say so before
    /// anybody takes them.
    pub fn flip_idle(&self, part: Part) -> Result<Flips, String> {
        let (mut flips, mut dealt) = (Flips::default(), 0);
        for (dir, name, bytes) in self.world.platter() {
            for start in (0..bytes.len()).step_by(PAGE) {
                let Ok(header) = FrameHeader::decode(&bytes[start..]) else { continue };
                for byte in (start..start + header.stored_len as usize).step_by(IDLE_EVERY) {
                    if !part.has_next(&mut dealt) {
                        continue;
                    }
                    let mut world = self.world.fork();
                    let life = world.start().map_err(|error| format!("does not open: {error}"))?;
                    if !world.waits(&life, &name, &header) {
                        break;
                    }
                    let place = Place { dir: &dir, name: &name, byte, mask: 1 << (byte % 8) };
                    place.flip(&world);
                    if world.lies(life) == 0 {
                        return Err(format!("{place}, while it lies idle: nobody says so"));
                    }
                    flips.noticed += 1;
                }
            }
        }
        Ok(flips)
    }

    fn place(&self, bit: u64) -> Place<'_> {
        let file = self.files.partition_point(|(_, _, first)| *first <= bit) - 1;
        let (dir, name, first) = &self.files[file];
        Place { dir, name, byte: ((bit - first) / BITS) as usize, mask: 1 << (bit % BITS) }
    }

    /// Changes a bit of each encrypted frame, header and body, and mends the checksums, as one can who has no key: no
    /// frame may count that was changed. The last one, a mere witness, may be missed.
    pub fn forge(&self, part: Part) -> Result<Flips, String> {
        let (mut flips, mut dealt) = (Flips::default(), 0);
        for (dir, name, bytes) in self.world.platter() {
            for start in (0..bytes.len()).step_by(PAGE) {
                let Ok(header) = FrameHeader::decode(&bytes[start..]) else { continue };
                let frame = start..start + header.stored_len as usize;
                let body_end = start + frame::HEADER + header.body_len as usize;
                for at in (start..start + frame::AUTHENTICATED).chain((start + frame::HEADER..body_end).step_by(7)) {
                    if !part.has_next(&mut dealt) {
                        continue;
                    }
                    let mut world = self.world.fork();
                    world.corrupt(&dir, &name, |bytes| {
                        bytes[at] ^= 1;
                        FrameHeader::seal_checksums(&mut bytes[frame.clone()]);
                    });
                    let holds = world
                        .opens_and_holds()
                        .map_err(|broken| format!("byte {at} of {dir}/{name} forged: {broken}"))?;
                    flips.count(holds);
                }
            }
        }
        Ok(flips)
    }
}
