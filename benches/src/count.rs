//! `penstock-bench count`: one operation, so many times, by one thread, for a tool that counts instructions.
//!
//! Promises the same work each time it is run: the same events, one transaction on its way at any moment, no clock that ends
//! it, and no closing. What it costs to start is the same for any number of events, so that the difference of two runs
//! is the cost of the events between them; `penstock-bench budget` makes that difference.

use std::path::PathBuf;
use std::process::exit;
use std::time::Duration;

use channel::{Channel as _, Devices, DurableChannel, DurableOptions, Settlement, TakeLimits};
use clap::{Args, ValueEnum};
use wal::format::frame::{self, FrameHeader, Mark};
use wal::io::buffer::Buffer;
use wal::io::real::Backend;
use wal::seal::ChannelKey;

use crate::backlog::delete_checkpoints;
use crate::channel::{FOLDER, remove};
use crate::payload::Payload;

/// A frame under load.
const FRAME_BODY: usize = 256 << 10;
/// Nobody waits for this: it is there so that a mistake ends.
const WAIT: Duration = Duration::from_secs(600);
/// Short, so that what recovery reads is mostly frames and not the rest of the last segment.
const SEGMENT_LEN: u64 = 8 << 20;
/// Long enough that no checkpoint falls into a count.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Do one operation so many times with one thread, for `valgrind` or `perf stat` to count
///
/// `penstock-bench budget` runs it under valgrind. What it does is the same each time; it prints nothing, and
/// leaves the folder `penstock-bench` below the directory.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[arg(long, value_enum)]
    pub(crate) op: Operation,
    /// How often; for `seal`, frames of 256 KiB
    #[arg(long, value_name = "N")]
    pub(crate) events: u64,
    /// Where; a file system in memory keeps the disk out of it
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) dir: PathBuf,
    /// Events in one transaction
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// Bytes of an event
    #[arg(long, value_name = "BYTES", default_value = "1K", value_parser = crate::cli::bytes)]
    pub(crate) size: u64,
    #[arg(long)]
    pub(crate) encrypt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Operation {
    /// Put them
    Put,
    /// Put them, then take and settle them
    Take,
    /// Put them, and leave them for `recover`
    Fill,
    /// Open what `fill` left, without a checkpoint
    Recover,
    /// Make frames of bytes: header, checksums, encryption
    Seal,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    if arguments.op == Operation::Seal {
        seal(arguments.events, arguments.encrypt)?;
        exit(0)
    }
    let folder = arguments.dir.join(FOLDER);
    if arguments.op != Operation::Recover {
        remove(&folder)?;
    }
    let channel = open(arguments)?;
    match arguments.op {
        Operation::Put => put(&channel, arguments)?,
        Operation::Fill => {
            put(&channel, arguments)?;
            // Or it would be chance whether the last sealed segment says what it holds, and recovery reads it otherwise.
            channel.close().wait()?;
            delete_checkpoints(&folder)?;
        }
        Operation::Take => {
            put(&channel, arguments)?;
            take(&channel, arguments)?;
        }
        Operation::Recover => {
            let recovered = channel.recovery().queued_events;
            if recovered != arguments.events {
                return Err(format!("{}: {recovered} events were found", folder.display()));
            }
        }
        Operation::Seal => {}
    }
    // Nothing that is counted is closed: closing is not what is counted. Nor is anything removed, while threads may still make
    // files.
    exit(0)
}

fn open(arguments: &Arguments) -> Result<DurableChannel, String> {
    let mut options = DurableOptions::new("count", vec![arguments.dir.join(FOLDER)]);
    options.capacity = u64::MAX / 2;
    options.segment_len = SEGMENT_LEN;
    // No tool that counts instructions knows rings.
    options.backend = Some(Backend::Buffered);
    options.checkpoint_interval = CHECKPOINT_INTERVAL;
    // All of them stay in memory for a take: reading is a thread of its own.
    options.hot_tail_bytes = usize::MAX / 4;
    if arguments.encrypt {
        options.key = Some(ChannelKey::new("count", [7; 32])?);
    }
    DurableChannel::open(options, &Devices::new()).map_err(|error| error.to_string())
}

fn put(channel: &DurableChannel, arguments: &Arguments) -> Result<(), String> {
    let batches = Payload::Random.batches(0, arguments.batch as usize, arguments.size as usize);
    let mut producer = channel.producer();
    for batch in batches.iter().cycle().take((arguments.events / u64::from(arguments.batch)) as usize) {
        producer.put(batch.clone()).wait().map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn take(channel: &DurableChannel, arguments: &Arguments) -> Result<(), String> {
    let mut consumer = channel.consumer("count");
    let limits = TakeLimits { events: arguments.batch as usize, bytes: usize::MAX };
    let mut left = arguments.events;
    while left > 0 {
        let lease = consumer.take(limits, WAIT).wait().map_err(|error| error.to_string())?;
        let bytes: usize = lease.iter().map(|(_, event)| event.body().len()).sum();
        std::hint::black_box(bytes);
        let settled = consumer.settle(vec![Settlement::delivered(lease.ranges())]);
        settled.wait().map_err(|error| error.to_string())?;
        left = left.checked_sub(lease.event_count() as u64).ok_or("more events came than were put")?;
    }
    Ok(())
}

/// What a frame costs between the copy of its events and its write.
fn seal(frames: u64, encrypt: bool) -> Result<(), String> {
    let (key, _) = ChannelKey::new("count", [7; 32])?.derive(&[1; 32]);
    let stored = frame::stored_len(FRAME_BODY, encrypt);
    let mut buffer = Buffer::zeroed(stored).map_err(|error| error.to_string())?;
    for number in 0..frames {
        let header = FrameHeader {
            encrypted: encrypt,
            witness: false,
            incarnation: 1,
            ordinal: 1,
            offset: number * stored as u64,
            number,
            stored_len: u32::try_from(stored).map_err(|error| error.to_string())?,
            body_len: FRAME_BODY as u32,
            first_seq: number,
            seq_count: 1,
            durable: Mark::default(),
            previous_end: 0,
            durable_seq: number,
            floor: 0,
            oldest_ordinal: 0,
            written_ms: 0,
        };
        header.encode_into(&mut buffer[..frame::HEADER]);
        if encrypt {
            let (head, rest) = buffer.split_at_mut(frame::HEADER);
            let (body, rest) = rest.split_at_mut(FRAME_BODY);
            let tag = key.seal(number, &head[..frame::AUTHENTICATED], body);
            rest[..frame::TAG].copy_from_slice(&tag);
        }
        FrameHeader::seal_checksums(&mut buffer);
        std::hint::black_box(&buffer);
    }
    Ok(())
}
