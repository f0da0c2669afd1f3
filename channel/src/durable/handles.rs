//! What users of a durable channel hold: who puts, and who takes. Each call is one step of the core.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::compress::Compression;
use super::job::PendingPut;
use super::shell::{Shared, wall_ms};
use super::writers;
use crate::api::{Consumer, Lease, Producer, PutError, PutReceipt, TakeError, TakeLimits};
use crate::event::EventBatch;
use crate::settlement::{NoteUpdate, SettleError, Settlement};
use crate::ticket::Ticket;

pub(super) struct DurableProducer {
    shared: Arc<Shared>,
    id: u64,
    compression: Compression,
}

impl DurableProducer {
    pub(super) fn new(shared: Arc<Shared>, id: u64) -> DurableProducer {
        DurableProducer { shared, id, compression: Compression::default() }
    }

    fn pending(&mut self, batch: EventBatch) -> (PendingPut, Ticket<Result<PutReceipt, PutError>>) {
        let (sender, ticket) = Ticket::pair();
        let mut put = PendingPut::new(self.id, batch, sender, Duration::ZERO);
        if self.shared.compresses.load(Ordering::Relaxed) {
            put = put.compressed(|prefix, records| self.compression.compress(prefix, records));
        }
        (put, ticket)
    }
}

impl Producer for DurableProducer {
    fn put(&mut self, batch: EventBatch) -> Ticket<Result<PutReceipt, PutError>> {
        let (put, ticket) = self.pending(batch);
        self.shared.step(|core, now, answers| core.put(now, put, answers));
        ticket
    }

    fn put_and_wait(&mut self, batch: EventBatch) -> Result<PutReceipt, PutError> {
        let shared = Arc::clone(&self.shared);
        let Ok(writing) = shared.writing.try_read() else {
            // It is being closed, and says so.
            return self.put(batch).wait();
        };
        let (put, ticket) = self.pending(batch);
        let (job, chore_waits) = self.shared.step(|core, now, answers| {
            core.put(now, put, answers);
            let job = core.gather_alone(now, wall_ms(), answers);
            let chore_waits = job.as_ref().is_some_and(|job| core.chore_waits(job.log));
            (job, chore_waits)
        });
        if let Some(job) = job {
            if chore_waits {
                self.shared.chores[job.log].raise_one();
            }
            writers::write_here(&self.shared, job);
        }
        drop(writing);
        ticket.wait()
    }
}

pub(super) struct DurableConsumer {
    shared: Arc<Shared>,
    id: u64,
}

impl DurableConsumer {
    pub(super) fn new(shared: Arc<Shared>, id: u64) -> DurableConsumer {
        DurableConsumer { shared, id }
    }
}

impl Consumer for DurableConsumer {
    fn take(&mut self, limits: TakeLimits, wait: Duration) -> Ticket<Result<Lease, TakeError>> {
        let (sender, ticket) = Ticket::pair();
        self.shared.step(|core, now, answers| core.take(now, self.id, limits, wait, sender, answers));
        ticket
    }

    fn settle(&mut self, settlements: Vec<Settlement>) -> Ticket<Result<(), SettleError>> {
        let (sender, ticket) = Ticket::pair();
        self.shared.step(|core, now, answers| core.settle(now, self.id, settlements, sender, answers));
        ticket
    }

    fn note(&mut self, notes: Vec<NoteUpdate>) -> Ticket<Result<(), SettleError>> {
        let (sender, ticket) = Ticket::pair();
        self.shared.step(|core, _, answers| core.note(notes, sender, answers));
        ticket
    }
}

impl Drop for DurableConsumer {
    fn drop(&mut self) {
        self.shared.step(|core, now, answers| core.drop_consumer(now, self.id, answers));
    }
}
