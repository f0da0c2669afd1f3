//! What a memory channel may hold, in Flume's units, and what it says when there is no room.
//!
//! Flume counts a body in slots of 100 bytes and leaves `byteCapacityBufferPercentage` of `byteCapacity` for what it
//! does not count. This keeps the same slots, so that the same puts are refused with the same words; beside them the
//! bytes really held, headers included, stay below `byteCapacity`, so that headers cannot pass it unnoticed.

use std::time::Duration;

use super::{MemoryOptions, MemoryOptionsError};
use crate::api::PutError;
use crate::settlement::{NoteUpdate, SettleError};

/// Transactions that may wait for space at a time. More senders than this are told at once that the channel is full.
pub(super) const WAITING_PUTS_MAX: usize = 16_384;

/// Bytes of events that may wait for space; one transaction may always wait.
pub(super) const WAITING_PUT_BYTES_MAX: usize = 256 << 20;

/// Takes that may wait for an event: far more than sinks, each of which needs one.
pub(super) const WAITING_TAKES_MAX: usize = 4_096;

/// What is left of a transaction is copied once it is less than this part of the memory it holds.
pub(super) const COMPACT_BELOW: usize = 4;

/// Below this a copy frees less than its bookkeeping takes.
pub(super) const COMPACT_BYTES_MIN: usize = 4 << 10;

/// Beside its record an event has two numbers of four bytes: where the record ends, and its slots.
pub(super) const EVENT_OVERHEAD_BYTES: usize = 8;

/// Longest note, as for a durable channel, so that a sink sees the same refusal on both.
const NOTE_BYTES_MAX: usize = 4 << 10;

/// Flume's unit of `byteCapacity`.
const SLOT_BYTES: usize = 100;

/// Under a small `byteCapacity` the headers of a few events may take more than the bodies; Flume lets them.
const HELD_BYTES_FLOOR: usize = 1 << 20;

/// Flume's words for a queue without room.
pub(super) const NO_SPACE: &str = "Space for commit to queue couldn't be acquired. Sinks are likely not keeping up \
                                   with sources, or the buffer size is too tight";

/// The limits of one channel.
pub(super) struct Limits {
    pub(super) channel: String,
    pub(super) capacity: usize,
    pub(super) transaction_capacity: usize,
    pub(super) keep_alive: Duration,
    /// Slots of bodies, queued and leased.
    pub(super) slots: u64,
    /// Bytes held for queued and leased events, headers included.
    pub(super) bytes: usize,
}

impl Limits {
    pub(super) fn new(options: &MemoryOptions) -> Result<Limits, MemoryOptionsError> {
        let MemoryOptions { name, capacity, transaction_capacity, keep_alive, .. } = options;
        let channel = name.clone();
        if *capacity == 0 || *transaction_capacity == 0 {
            return Err(MemoryOptionsError::Zero { channel });
        }
        if transaction_capacity > capacity {
            return Err(MemoryOptionsError::TransactionAboveCapacity {
                channel,
                transaction_capacity: *transaction_capacity,
                capacity: *capacity,
            });
        }
        let byte_capacity = options.byte_capacity.unwrap_or(MemoryOptions::BYTE_CAPACITY_DEFAULT);
        let share = 1.0 - f64::from(options.byte_capacity_buffer_percentage) * 0.01;
        // As Flume computes it: a fraction is cut off, and less than one slot means no limit.
        let slots = (byte_capacity as f64 * share / SLOT_BYTES as f64) as i32;
        let (slots, bytes) = if slots < 1 {
            (i32::MAX as u64, usize::MAX)
        } else {
            (slots as u64, usize::try_from(byte_capacity).unwrap_or(usize::MAX).max(HELD_BYTES_FLOOR))
        };
        let (capacity, transaction_capacity, keep_alive) = (*capacity, *transaction_capacity, *keep_alive);
        Ok(Limits { channel, capacity, transaction_capacity, keep_alive, slots, bytes })
    }

    /// Why a transaction can never be put, however empty the channel is.
    pub(super) fn refusal(&self, events: usize, slots: u64, bytes: usize) -> Option<PutError> {
        let channel = self.channel.clone();
        if events > self.transaction_capacity {
            Some(PutError::TooManyEvents { channel, events, limit: self.transaction_capacity })
        } else if slots > self.slots {
            let in_bytes = |slots: u64| slots as usize * SLOT_BYTES;
            Some(PutError::TooLarge { channel, bytes: in_bytes(slots), limit: in_bytes(self.slots) })
        } else if bytes > self.bytes {
            Some(PutError::TooLarge { channel, bytes, limit: self.bytes })
        } else {
            None
        }
    }

    /// Flume's words for a channel without bytes.
    pub(super) fn no_bytes(&self) -> String {
        no_bytes(self.slots * SLOT_BYTES as u64)
    }
}

/// The slots of a body of `bytes` bytes.
pub(super) fn slots_of(bytes: usize) -> u32 {
    // A batch stays below 4 GiB, and so do its bodies.
    bytes.div_ceil(SLOT_BYTES) as u32
}

/// The message of the exception that Flume's memory channel throws where ours refuses a put.
pub(super) fn flume_message(error: &PutError) -> String {
    match error {
        PutError::Full { detail, .. } => detail.clone(),
        PutError::TooManyEvents { limit, .. } => format!(
            "Put queue for MemoryTransaction of capacity {limit} full, consider committing more frequently, \
             increasing capacity or increasing thread count"
        ),
        PutError::TooLarge { limit, .. } => no_bytes(*limit as u64),
        PutError::Failed { .. } | PutError::Closed => error.to_string(),
    }
}

pub(super) fn check_notes<'a>(notes: impl IntoIterator<Item = &'a NoteUpdate>) -> Result<(), SettleError> {
    for update in notes {
        let len = update.note.as_ref().map_or(0, bytes::Bytes::len);
        if len > NOTE_BYTES_MAX {
            return Err(SettleError::NoteRefused(format!(
                "{} of {} has {len} bytes; a note has at most {NOTE_BYTES_MAX}",
                update.key, update.owner
            )));
        }
    }
    Ok(())
}

fn no_bytes(limit: u64) -> String {
    format!(
        "Cannot commit transaction. Byte capacity allocated to store event body {}reached. Please increase heap \
         space/byte capacity allocated to the channel as the sinks may not be keeping up with the sources",
        java_double(limit)
    )
}

/// A whole number below 2^53 as Java prints it when it is a `double`.
fn java_double(value: u64) -> String {
    if value < 10_000_000 {
        return format!("{value}.0");
    }
    let digits = value.to_string();
    let fraction = digits[1..].trim_end_matches('0');
    let fraction = if fraction.is_empty() { "0" } else { fraction };
    format!("{}.{fraction}E{}", &digits[..1], digits.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_capacity_becomes_slots_as_in_flume() {
        let slots = |byte_capacity, byte_capacity_buffer_percentage| {
            let options = MemoryOptions { byte_capacity, byte_capacity_buffer_percentage, ..MemoryOptions::default() };
            Limits::new(&options).unwrap().slots
        };
        assert_eq!(slots(Some(1000), 20), 8);
        assert_eq!(slots(Some(1000), 0), 10);
        assert_eq!(slots(Some(249), 20), 1);
        for unlimited in [slots(Some(0), 20), slots(Some(124), 20), slots(Some(1000), 100), slots(Some(u64::MAX), 0)] {
            assert_eq!(unlimited, i32::MAX as u64);
        }
    }

    #[test]
    fn numbers_look_as_java_prints_doubles() {
        for (value, text) in [
            (0, "0.0"),
            (800, "800.0"),
            (9_999_999, "9999999.0"),
            (10_000_000, "1.0E7"),
            (85_899_300, "8.58993E7"),
            (214_748_364_700, "2.147483647E11"),
        ] {
            assert_eq!(java_double(value), text);
        }
    }

    #[test]
    fn capacities_that_contradict_each_other_are_refused() {
        let refused = |capacity, transaction_capacity| {
            let options = MemoryOptions { capacity, transaction_capacity, ..MemoryOptions::default() };
            Limits::new(&options).map(|_| ()).unwrap_err()
        };
        assert!(matches!(refused(0, 0), MemoryOptionsError::Zero { .. }));
        assert!(matches!(refused(10, 0), MemoryOptionsError::Zero { .. }));
        assert!(matches!(refused(10, 11), MemoryOptionsError::TransactionAboveCapacity { .. }));
    }
}
