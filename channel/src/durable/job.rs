//! A frame on its way to the disk: gathered and reserved under the lock, sealed and written outside of it.

use wal::device::WriteSlot;
use wal::format::frame::{self, FrameHeader};
use wal::format::section;
use wal::io::buffer::Buffer;
use wal::log::Reservation;

use super::sections::{SettledRuns, TRANSACTION, VersionedNote};
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
        PendingPut { producer, prefix, batch, sender: Some(sender), deadline, voids: Vec::new() }
    }

    pub(crate) fn events(&self) -> u64 {
        self.batch.len() as u64
    }

    /// Bytes of its section in a frame.
    pub(crate) fn section_len(&self) -> usize {
        section::HEADER + self.prefix.len() + self.batch.records().len()
    }
}

/// A settlement or notes that wait for their frame.
pub(crate) struct PendingState {
    pub(crate) settled: Vec<SettledRuns>,
    pub(crate) notes: Vec<VersionedNote>,
    pub(crate) sender: Option<SettleSender>,
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
    pub(crate) fn sealed(&self) -> std::io::Result<Buffer> {
        let mut buffer = Buffer::zeroed(self.stored_len())?;
        self.seal(&mut buffer);
        Ok(buffer)
    }

    /// Makes of `buffer`, which is as long as the frame, the frame ready to write.
    pub(crate) fn seal(&self, buffer: &mut Buffer) {
        let header = &self.reservation.header;
        header.encode_into(&mut buffer[..frame::HEADER]);
        let mut at = frame::HEADER;
        let mut put = |bytes: &[u8]| {
            buffer[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.sections);
        for pending in &self.puts {
            put(&section::header(TRANSACTION, 0, pending.section_len() - section::HEADER));
            put(&pending.prefix);
            put(pending.batch.records());
        }
        let body_end = frame::HEADER + header.body_len as usize;
        assert_eq!(at, body_end, "the body is as long as it was reserved");
        buffer[body_end..].fill(0);
        if let Some(key) = &self.reservation.key {
            let (head, rest) = buffer.split_at_mut(frame::HEADER);
            let (body, rest) = rest.split_at_mut(header.body_len as usize);
            let tag = key.seal(header.number, &head[..frame::AUTHENTICATED], body);
            rest[..frame::TAG].copy_from_slice(&tag);
        }
        FrameHeader::seal_checksums(buffer);
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
