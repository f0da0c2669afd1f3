//! Golden directories: what a history leaves on the disks, byte for byte the same each time, and what a reader makes of it.
//!
//! `channel/tests/golden/` holds some of them, committed: whatever reads format 1 must read them for ever. `examples/golden.rs`
//! makes new ones, and never changes one that is there.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wal::checksum::crc32c;
use wal::io::Dir;
use wal::io::real::{Backend, RealDir};
use wal::recover::scan::Depth;
use wal::seal::ChannelKey;

use super::plan::{Plan, Verb};
use super::world::{CHECKPOINTS, KEYS, OWNER, World, key_of};
use crate::api::{Channel, TakeLimits};
use crate::durable::inspect::{Inspection, Looking, Which};
use crate::durable::{Compress, Devices, DurableChannel, DurableOptions};
use crate::event::EventRef;

/// Nobody puts, so a take ends as soon as nothing is left.
const LIMITS: TakeLimits = TakeLimits { events: 100, bytes: 1 << 20 };

/// Every file that a history leaves, as (directory, name, bytes). If it ends with a crash, no start has been at it; otherwise
/// the channel was closed in order.
pub fn leave(plan: &Plan) -> Result<Vec<(String, String, Vec<u8>)>, String> {
    let mut world = World::new(plan.clone());
    let (last, steps) = plan.steps.split_last().ok_or("a history without steps")?;
    for step in steps {
        world.apply(*step)?;
    }
    if last.verb == Verb::Crash {
        let [outcome, seed, _] = last.args;
        world.restart(outcome, seed);
    } else {
        world.apply(*last)?;
        world.close()?;
        world.restart(POWER_CUT, 0);
    }
    Ok(world.platter())
}

/// What was not synced is gone, as after any power cut.
const POWER_CUT: u16 = 2;

/// The keys of all histories.
pub fn keys() -> Vec<ChannelKey> {
    (0..KEYS).map(key_of).collect()
}

/// What tools and the channel say of the directories below `root`, which were written by this plan: one fact a line. The
/// channel is opened, so give it a copy.
pub fn describe(root: &Path, plan: &Plan) -> Result<String, String> {
    let names: Vec<String> = (0..plan.dirs).map(|index| format!("d{index}")).collect();
    let mut text = String::new();
    inspected(root, &names, &mut text).map_err(|error| format!("looking at it: {error}"))?;
    opened(root, &names, plan, &mut text).map_err(|error| format!("opening it: {error}"))?;
    Ok(text)
}

fn inspected(root: &Path, names: &[String], text: &mut String) -> Result<(), String> {
    let open = |name: &String| -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::new(RealDir::open_or_create(&root.join(name), Some(Backend::Buffered))?))
    };
    let dirs: io::Result<Vec<Arc<dyn Dir>>> = names.iter().map(open).collect();
    let dirs = dirs.map_err(|error| error.to_string())?;
    let looking = Looking { keys: keys(), depth: Depth::Bodies, from_disk: false };
    let inspection = Inspection::look(&dirs, &looking).map_err(|error| error.to_string())?;
    let (floor, next) = inspection.numbers();
    line(text, format_args!("generation {}, {} directories", inspection.generation, inspection.members.len()));
    line(text, format_args!("numbers {floor} to {next}"));
    for (name, dir) in names.iter().zip(&inspection.dirs) {
        let content = dir.content.as_ref().map_err(|error| error.to_string())?;
        let (spares, _) = content.spares();
        line(text, format_args!("{name}: {} frames, {} segments, {spares} spares", content.frames, content.segments()));
        for (key, used) in content.key_uses() {
            let key = key.as_deref().unwrap_or("no key");
            line(text, format_args!("{name}: {key}: {} frames", used.frames));
        }
        for finding in &content.findings {
            let (slot, start, end, case) = (finding.slot, finding.start, finding.end, finding.case);
            line(text, format_args!("{name}: segment {slot} from {start} to {end}: {case}"));
        }
        if content.malformed.is_some() || content.unknown_section.is_some() {
            return Err(format!("{name}: {:?} {:?}", content.malformed, content.unknown_section));
        }
    }
    for slice in inspection.events(Which::Settled) {
        let slice = slice.map_err(|unreadable| format!("{unreadable:?}"))?;
        for (seq, event) in (slice.first_seq..).zip(slice.events.iter()).filter(|(seq, _)| !inspection.is_pending(*seq))
        {
            line(text, format_args!("settled {}", shown(seq, event)));
        }
    }
    if inspection.has_loss() {
        return Err("events are lost".to_owned());
    }
    Ok(())
}

fn opened(root: &Path, names: &[String], plan: &Plan, text: &mut String) -> Result<(), String> {
    let options = DurableOptions {
        segment_len: plan.segment_pages * 4096,
        pool_bytes: plan.pool_segments * plan.segment_pages * 4096,
        compress: if plan.compressed { Compress::Always } else { Compress::Never },
        key: plan.encrypted.then(|| key_of(0)),
        old_keys: keys(),
        backend: Some(Backend::Buffered),
        checkpoint_dir: Some(root.join(CHECKPOINTS)),
        separate_flush_domains: true,
        hot_tail_bytes: 0,
        ..DurableOptions::new("golden", names.iter().map(|name| root.join(name)).collect())
    };
    let channel = DurableChannel::open(options, &Devices::new()).map_err(|error| error.to_string())?;
    let recovery = channel.recovery();
    line(
        text,
        format_args!(
            "{} torn places, {} frames without proof, {} events lost",
            recovery.torn, recovery.unproven_frames, recovery.lost_events
        ),
    );
    for (key, note) in channel.notes(OWNER) {
        let note: String = note.iter().map(|byte| format!("{byte:02x}")).collect();
        line(text, format_args!("note {key} {note}"));
    }
    let mut consumer = channel.consumer("golden");
    let mut left = channel.stats().size_events;
    while left > 0 {
        let lease = consumer.take(LIMITS, Duration::from_secs(60)).wait().map_err(|error| error.to_string())?;
        if lease.is_empty() {
            return Err(format!("{left} events do not come"));
        }
        for (seq, event) in lease.iter() {
            line(text, format_args!("queued {}", shown(seq, event)));
            left -= 1;
        }
    }
    Ok(())
}

fn shown(seq: u64, event: EventRef<'_>) -> String {
    let headers: Vec<String> = event.headers().map(|(key, value)| format!("{key}={value}")).collect();
    let body = event.body();
    format!("{seq} {} {} bytes {:08x}", headers.join(" "), body.len(), crc32c(body))
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    writeln!(text, "{words}").expect("a string takes everything");
}

/// Writes files below `root`, where none of them may be.
pub fn write(root: &Path, files: &[(String, String, Vec<u8>)]) -> io::Result<()> {
    for (dir, name, bytes) in files {
        fs::create_dir_all(root.join(dir))?;
        let mut file = fs::File::create_new(root.join(dir).join(name))?;
        io::Write::write_all(&mut file, bytes)?;
    }
    Ok(())
}
