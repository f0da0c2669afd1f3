//! Every size and count of the log, with its reason. Relations are checked when this compiles.

use std::time::Duration;

/// Unit of alignment: the largest logical block of current disks. A sector that holds acknowledged bytes is never
/// written again, because nothing shares a page.
pub const PAGE: usize = 4096;

/// An incarnation header, written twice in a row so that one rotten page does not cost the segment.
pub const INCARNATION_HEADER: usize = 2 * PAGE;

/// A segment holds at least its header and one page of frames.
pub const SEGMENT_MIN: u64 = (INCARNATION_HEADER + PAGE) as u64;

/// Default length of a segment: long enough that a roll is rare, short enough that space comes back soon.
pub const SEGMENT_DEFAULT: u64 = 64 << 20;

/// The first segment of a log is short, because the first put waits until it is zeroed.
pub const SEGMENT_FIRST: u64 = 4 << 20;

/// Segments of a directory up to this stay when they are drained: a queue that comes and goes within it is written once,
/// and not zeroed first each time.
pub const POOL_DEFAULT: u64 = 1 << 30;

/// Longest segment: frame offsets keep room in 32 bits of pages.
pub const SEGMENT_MAX: u64 = 1 << 30;

/// Frames grow to this under load: writes of this size reach a disk's full bandwidth.
pub const FRAME_TARGET: usize = 256 << 10;

/// Longest frame, and so the longest transaction: it must fit a buffer and stay far below a segment.
pub const FRAME_MAX: usize = 32 << 20;

/// Bytes of one log that may be in flight at once. Recovery looks for whole frames beyond a torn one this far.
pub const IN_FLIGHT_MAX: u64 = 2 * FRAME_MAX as u64;

/// Writes of one log in flight where nobody has measured: one on the disk, one behind it, one on its way back.
pub const DEPTH_DEFAULT: usize = 3;

/// Frames that are made while the disk is busy, to be written together when it is free.
pub const FRAMES_AHEAD: usize = 4;

/// The same on a disk that is through with each of them within [`AHEAD_TIME`]: as many as the memory of its writer holds.
pub const FRAMES_AHEAD_MAX: usize = RING_MEMORY / FRAME_TARGET - DEPTH_DEFAULT;

/// So long after it was begun a frame should be durable, or fewer are made ahead: others wait behind them, settlements as well,
/// and what was given to a slow disk is not there for a fast one.
pub const AHEAD_TIME: Duration = Duration::from_millis(8);

/// What lies one behind the other is written together up to this.
pub const WRITE_MAX: usize = 8 * FRAME_TARGET;

/// While a write is in flight another one starts only when this much waits: otherwise frames stay tiny.
pub const OVERLAP_MIN: usize = 64 << 10;

/// Memory of a log's writer, for the frames in flight and those that are made meanwhile; what finds no room brings its own.
pub const RING_MEMORY: usize = 32 * FRAME_TARGET;

/// Fences that one incarnation header has room for.
pub const FENCES_MAX: usize = 64;

/// Data directories of one channel: what an identity page has room for.
pub const MEMBERS_MAX: usize = 32;

/// Sections in one frame: more is a damaged or hostile frame.
pub const SECTIONS_MAX: usize = 1 << 20;

const _: () = assert!(FRAME_TARGET.is_multiple_of(PAGE) && FRAME_MAX.is_multiple_of(PAGE));
const _: () = assert!(SEGMENT_FIRST >= SEGMENT_MIN && SEGMENT_DEFAULT >= SEGMENT_FIRST);
const _: () = assert!(FRAME_MAX as u64 + INCARNATION_HEADER as u64 <= SEGMENT_DEFAULT);
const _: () = assert!(OVERLAP_MIN <= FRAME_TARGET);
const _: () = assert!(FRAMES_AHEAD <= FRAMES_AHEAD_MAX);

/// `len` rounded up to whole pages.
pub const fn pages(len: usize) -> usize {
    len.div_ceil(PAGE) * PAGE
}
