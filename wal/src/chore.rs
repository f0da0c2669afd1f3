//! Chores: the work of a log with files that must not happen under a lock.
//!
//! A log asks for one at a time ([`next_chore`](crate::log::Log::next_chore)) and hears how it ended. Nothing is decided
//! here. Promises that a file has its length and its zeros before it has its name, and that a header is durable before it is
//! reported.

use std::io;
use std::sync::Arc;

use crate::format::frame::FrameHeader;
use crate::format::incarnation::IncarnationHeader;
use crate::frame_writer::{FrameWriter, Workbench};
use crate::io::buffer::Buffer;
use crate::io::{Dir, File, durable};
use crate::limits::{INCARNATION_HEADER, PAGE};
use crate::planted::{self, Bug};
use crate::seal::FrameKey;

pub const PROBE: &str = "probe";

/// The file name of a slot.
pub fn slot_name(slot: u64) -> String {
    format!("segment-{slot:010}")
}

/// The slot number of a file name.
pub fn slot_of(name: &str) -> Option<u64> {
    name.strip_prefix("segment-")?.parse().ok().filter(|slot| slot_name(*slot) == name)
}

/// Work with files that must not happen under a lock.
#[derive(Debug)]
pub enum Chore {
    /// Make a segment (or take a spare one) and write an incarnation header.
    Prepare { header: IncarnationHeader, place: Place, reserve_bytes: u64 },
    /// Make a spare segment: with it, settlements have room even when the disk is full.
    Reserve { slot: u64, len: u64, reserve_bytes: u64 },
    /// Make a spare segment out of one that was given back on a full disk, where space that comes free goes to anybody.
    Renew { old: u64, slot: u64, len: u64 },
    /// Write the last frame of a segment whose other frames are durable.
    Footer { header: FrameHeader, body: Vec<u8>, key: Option<Arc<FrameKey>>, file: Arc<dyn File> },
    /// Remove a drained segment.
    Remove { slot: u64 },
    /// Find out whether a failed device takes writes again.
    Probe,
}

#[derive(Debug)]
pub enum Place {
    /// A new file of the header's length.
    New,
    /// A drained file of the right length.
    Spare(Arc<dyn File>),
    /// Behind the frames of an earlier run, in a segment that has room left.
    Behind(Arc<dyn File>),
}

/// How a chore ended.
#[derive(Debug)]
pub enum ChoreDone {
    Prepared { header: IncarnationHeader, file: Arc<dyn File> },
    Reserved { slot: u64, len: u64, file: Arc<dyn File> },
    Removed,
    Probed,
    Footed,
}

impl Chore {
    /// Whether it finds out if a disk that was full or had failed takes more again.
    pub fn is_attempt(&self) -> bool {
        matches!(self, Chore::Prepare { place: Place::New, .. } | Chore::Reserve { .. } | Chore::Probe)
    }

    /// Does the work. Blocks.
    pub fn run(&self, dir: &dyn Dir) -> io::Result<ChoreDone> {
        match self {
            Chore::Prepare { header, place, reserve_bytes } => {
                let file = match place {
                    Place::New => allocate(dir, header.slot, header.segment_len, *reserve_bytes)?,
                    Place::Spare(file) | Place::Behind(file) => Arc::clone(file),
                };
                let mut pages = Buffer::zeroed(INCARNATION_HEADER)?;
                let page = header.encode();
                pages[..PAGE].copy_from_slice(&page);
                pages[PAGE..].copy_from_slice(&page);
                if planted::is(Bug::SkipHeaderSync) {
                    file.write_at(&pages, header.offset)?;
                } else {
                    // Half a header may be on disk now, which is more than a full disk: the log starts afresh elsewhere.
                    let torn =
                        |error: io::Error| io::Error::other(format!("write a header of slot {}: {error}", header.slot));
                    file.write_durable_at(&pages, header.offset).map_err(torn)?;
                }
                Ok(ChoreDone::Prepared { header: header.clone(), file })
            }
            Chore::Reserve { slot, len, reserve_bytes } => {
                let file = allocate(dir, *slot, *len, *reserve_bytes)?;
                Ok(ChoreDone::Reserved { slot: *slot, len: *len, file })
            }
            Chore::Renew { old, slot, len } => {
                let file = durable::renew(dir, &slot_name(*old), &slot_name(*slot), *len)?;
                Ok(ChoreDone::Reserved { slot: *slot, len: *len, file })
            }
            Chore::Footer { header, body, key, file } => {
                let mut frame = Buffer::zeroed(header.stored_len as usize)?;
                let mut bench = Workbench::default();
                let mut writer = FrameWriter::new(header, key.as_deref(), &mut bench, &mut frame);
                writer.append(body);
                writer.finish();
                file.write_durable_at(&frame, header.offset)?;
                Ok(ChoreDone::Footed)
            }
            Chore::Remove { slot } => {
                durable::remove(dir, &slot_name(*slot))?;
                Ok(ChoreDone::Removed)
            }
            Chore::Probe => {
                durable::put(dir, PROBE, &[1; PAGE])?;
                durable::remove(dir, PROBE)?;
                Ok(ChoreDone::Probed)
            }
        }
    }
}

fn allocate(dir: &dyn Dir, slot: u64, len: u64, reserve_bytes: u64) -> io::Result<Arc<dyn File>> {
    let (free, needed) = (dir.free_bytes()?, len.saturating_add(reserve_bytes));
    if free < needed {
        let detail = format!("{}: {free} bytes are free; a segment and the reserve need {needed}", dir.name());
        return Err(io::Error::new(io::ErrorKind::StorageFull, detail));
    }
    durable::put_zeroed(dir, &slot_name(slot), len)
}
