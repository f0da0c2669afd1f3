//! `memory`: the channel that a crash empties, with Flume's keys and limits.

use std::sync::Arc;
use std::time::Duration;

use channel::{Devices, MemoryChannel, MemoryOptions};

use crate::component::{ChannelEntry, ComponentError, Key, KeyDefault, OpenChannel, Opened, Refused, Settings};

pub(super) static ENTRY: ChannelEntry = ChannelEntry {
    alias: "memory",
    class: "org.apache.flume.channel.MemoryChannel",
    doc: "Keeps events in memory: fast, and lost when the process ends.",
    keys: &[
        Key::integer("capacity", 1, i32::MAX as i64, "events", KeyDefault::Is("100"), "Most events in the channel."),
        Key::integer(
            "transactionCapacity",
            1,
            i32::MAX as i64,
            "events",
            KeyDefault::Is("100"),
            "Most events of one put or take; at most `capacity`.",
        ),
        Key::integer("keep-alive", 0, i32::MAX as i64, "s", KeyDefault::Is("3"), "How long a put waits for room."),
        Key::integer(
            "byteCapacity",
            0,
            i64::MAX,
            "bytes",
            KeyDefault::Absent,
            "Most bytes of bodies in the channel; 0 is no limit. Without it the limit is 1 GiB, where Flume takes 80 % of its heap.",
        ),
        Key::integer(
            "byteCapacityBufferPercentage",
            0,
            99,
            "%",
            KeyDefault::Is("20"),
            "The part of `byteCapacity` that bodies leave to headers.",
        ),
    ],
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn OpenChannel>, Refused> {
    let options = MemoryOptions {
        name: settings.name().to_owned(),
        capacity: settings.count("capacity"),
        transaction_capacity: settings.count("transactionCapacity"),
        keep_alive: Duration::from_secs(settings.count("keep-alive") as u64),
        byte_capacity: settings.integer_opt("byteCapacity").and_then(|bytes| u64::try_from(bytes).ok()),
        byte_capacity_buffer_percentage: settings.count("byteCapacityBufferPercentage") as u32,
    };
    if options.transaction_capacity > options.capacity {
        return Err(settings.refuse(
            "transactionCapacity",
            format!(
                "{} is above capacity = {}; lower it, or raise capacity",
                options.transaction_capacity, options.capacity
            ),
        ));
    }
    Ok(Box::new(Memory(options)))
}

struct Memory(MemoryOptions);

impl OpenChannel for Memory {
    fn transaction_capacity(&self) -> usize {
        self.0.transaction_capacity
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn open(self: Box<Self>, _: &Arc<Devices>) -> Result<Opened, ComponentError> {
        match MemoryChannel::new(self.0) {
            Ok(channel) => Ok(Opened { channel: Arc::new(channel), graveyard: None, key_watch: None }),
            Err(error) => Err(ComponentError(error.to_string())),
        }
    }
}
