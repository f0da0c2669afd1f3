//! A frame on its way to the disk: gathered and reserved under the lock, sealed and written outside of it.

use wal::device::WriteSlot;
use wal::format::section;
use wal::frame_writer::{FrameWriter, Workbench};
use wal::log::Reservation;
use wal::planted::{self, Bug};

use super::sections::{COMPRESSED, SettledRuns, TRANSACTION, VersionedNote};
use crate::api::{PutError, PutReceipt};
use crate::event::EventBatch;
use crate::settlement::{SeqRange, SettleError};
use crate::ticket::TicketSender;

pub(crate) type PutSender = TicketSender<Result<PutReceipt, PutError>>;
pub(crate) type SettleSender = TicketSender<Result<(), SettleError>>;

/// A transaction that waits for its frame.
pub(crate) struct PendingPut {
    pub(crate) producer: u64,
    pub(crate) prefix: Vec<u8>,
    pub(crate) batch: EventBatch,
    /// The payload of its section, where that is shorter than `prefix` and the records.
    compressed: Option<Vec<u8>>,
    /// `None` once the producer has its answer.
    pub(crate) sender: Option<PutSender>,
    /// When the producer gives up waiting for room.
    pub(crate) deadline: std::time::Duration,
    /// Numbers it had in frames that failed; the frame that carries it voids them.
    pub(crate) voids: Vec<SeqRange>,
}

impl PendingPut {
    pub(crate) fn new(
        producer: u64,
        batch: EventBatch,
        sender: PutSender,
        deadline: std::time::Duration,
    ) -> PendingPut {
        let prefix = batch.encoded_prefix();
        PendingPut { producer, prefix, batch, compressed: None, sender: Some(sender), deadline, voids: Vec::new() }
    }

    /// The same, in fewer bytes if `compress` makes it shorter.
    pub(crate) fn compressed(mut self, compress: impl FnOnce(&[u8], &[u8]) -> Option<Vec<u8>>) -> PendingPut {
        self.compressed = compress(&self.prefix, self.batch.records());
        self
    }

    pub(crate) fn events(&self) -> u64 {
        self.batch.len() as u64
    }

    /// Bytes of its section in a frame.
    pub(crate) fn section_len(&self) -> usize {
        self.compressed.as_ref().map_or(self.plain_len(), |compressed| section::HEADER + compressed.len())
    }

    /// Bytes of its section if it is not compressed, which it will be in memory.
    pub(crate) fn plain_len(&self) -> usize {
        section::HEADER + self.prefix.len() + self.batch.records().len()
    }
}

/// A settlement or notes that wait for their frame.
pub(crate) struct PendingState {
    pub(crate) settled: Vec<SettledRuns>,
    pub(crate) notes: Vec<VersionedNote>,
    pub(crate) sender: Option<SettleSender>,
    /// Frames that say it already, on their way to disks that take too long: the log, and the reservation.
    pub(crate) said_in: Vec<(usize, u64)>,
}

/// Segments to give back, by ordinal.
#[derive(Debug, Clone)]
pub(crate) enum Retiring {
    /// The oldest ones, up to this.
    UpTo(u64),
    /// These ones, which hold no events, out of their order.
    Bare(Vec<u64>),
}

/// One frame with all that depends on it.
pub(crate) struct Job {
    pub(crate) log: usize,
    pub(crate) reservation: Reservation,
    pub(crate) puts: Vec<PendingPut>,
    /// Ranges that this frame makes void.
    pub(crate) voids: Vec<SeqRange>,
    /// Sections other than transactions, encoded.
    pub(crate) sections: Vec<u8>,
    /// This frame carries a snapshot for these segments.
    pub(crate) retires: Option<Retiring>,
    pub(crate) slot: Option<WriteSlot>,
}

impl Job {
    /// Bytes of the frame on disk.
    pub(crate) fn stored_len(&self) -> usize {
        self.reservation.header.stored_len as usize
    }

    /// The frame in a buffer of its own.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn sealed(&self) -> std::io::Result<wal::io::buffer::Buffer> {
        let mut buffer = wal::io::buffer::Buffer::zeroed(self.stored_len())?;
        self.seal(&mut buffer, &mut Workbench::default());
        Ok(buffer)
    }

    /// Makes of `buffer`, which is as long as the frame, the frame ready to write.
    pub(crate) fn seal(&self, buffer: &mut [u8], bench: &mut Workbench) {
        let Reservation { header, key, .. } = &self.reservation;
        let mut frame = FrameWriter::new(header, key.as_deref(), bench, buffer);
        frame.append(&self.sections);
        for pending in &self.puts {
            let kind = if pending.compressed.is_some() && !planted::is(Bug::HideCompression) {
                COMPRESSED
            } else {
                TRANSACTION
            };
            frame.append(&section::header(kind, 0, pending.section_len() - section::HEADER));
            if let Some(compressed) = &pending.compressed {
                frame.append(compressed);
                continue;
            }
            frame.append(&pending.prefix);
            frame.append(pending.batch.records());
        }
        frame.finish();
    }

    /// The transactions with the numbers of their events.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (SeqRange, &PendingPut)> {
        let mut next = self.reservation.header.first_seq;
        self.puts.iter().map(move |pending| {
            let range = SeqRange::new(next, next + pending.events());
            next = range.end;
            (range, pending)
        })
    }
}
