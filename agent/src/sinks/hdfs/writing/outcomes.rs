//! What becomes of files, leftovers and events when their jobs report.
//!
//! Everything that ends a lease is here, so that each event is settled once: delivered after a sync or close that
//! covers it, returned when its file failed, dead-lettered after its burial.

use std::time::{Duration, Instant};

use channel::{EventBatch, EventRef, Outcome, SeqRange, Settlement};
use store::fs::{StoreError, Writer};

use super::{Sick, Writing};
use crate::component::{SinkContext, SinkError};
use crate::sinks::hdfs::file::Stage;
use crate::sinks::hdfs::jobs::{self, Closed, Done, FileId, Healing};
use crate::sinks::hdfs::note::Leftover;

/// Names remembered because the store rejected them.
const REJECTED_NAMES_MAX: usize = 1024;

/// First pause before a leftover that could not be healed is tried again; doubles up to `hdfs.retryInterval`.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// Names that creating one file may bump through.
const CREATE_TRIES_MAX: i64 = 1000;

impl Writing {
    pub(super) fn report(&mut self, context: &SinkContext, done: Done) {
        match done {
            Done::Noted { files, result: Ok(()) } => files.into_iter().for_each(|id| self.open(id)),
            Done::Noted { files, result: Err(error) } => {
                for id in files {
                    self.give_up(context, id, &error.to_string(), false);
                }
            }
            Done::Opened { file: id, result } => self.opened(context, id, result),
            Done::Synced { file: id, writer, buffer, result } => match result {
                Ok(length) => {
                    self.spares.put(buffer);
                    self.settle_flown(id, length, true);
                    let Some(file) = self.files.get_mut(&id) else { return };
                    file.writer = Some(writer);
                    file.stage = Stage::Ready;
                    self.ready(context, id);
                }
                Err(error) => self.give_up(context, id, &error.to_string(), true),
            },
            Done::Closed { file: id, result: Ok(closed) } => self.closed(context, id, closed),
            Done::Closed { file: id, result: Err(error) } => self.give_up(context, id, &error.to_string(), true),
            Done::Healed { leftover, tries, result } => self.healed(context, leftover, tries, result),
            Done::Settled { delivered, result } => {
                self.settling -= 1;
                match result {
                    Ok(()) => context.counters.event_drain_success.add(delivered),
                    Err(error) => self.failure = Some(SinkError::Settle(error)),
                }
            }
            Done::Buried { ranges, reason, result } => {
                self.burying -= 1;
                let outcome = match result {
                    Ok(()) => Outcome::DeadLettered { reason },
                    Err(cause) => {
                        self.fail(format!("an event cannot be written ({reason}), nor kept as a dead letter: {cause}"));
                        Outcome::Returned
                    }
                };
                self.end_lease(ranges, 0, outcome);
            }
        }
    }

    /// The note is durable: create the file.
    pub(super) fn open(&mut self, id: FileId) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.stage = Stage::Opening;
        jobs::open(self.store.clone(), id, file.leftover.in_use.clone(), self.reports.clone());
    }

    fn opened(&mut self, context: &SinkContext, id: FileId, result: Result<Writer, StoreError>) {
        let Some(file) = self.files.get_mut(&id) else { return };
        match result {
            Ok(writer) => {
                file.writer = Some(writer);
                file.stage = Stage::Ready;
                self.rejected.remove(&file.leftover.names.place);
                context.counters.connection_created.add(1);
                self.ready(context, id);
            }
            Err(StoreError::AlreadyExists { path }) => self.take_next_name(context, id, &path),
            Err(error) => {
                if matches!(error, StoreError::Rejected { .. }) {
                    if self.rejected.len() >= REJECTED_NAMES_MAX {
                        self.rejected.clear();
                    }
                    *self.rejected.entry(file.leftover.names.place.clone()).or_default() += 1;
                }
                // Without an answer the file may be there.
                let maybe_created = matches!(error, StoreError::TimedOut { .. } | StoreError::Failed { .. });
                self.give_up(context, id, &error.to_string(), maybe_created);
            }
        }
    }

    /// Somebody has this name: the counter goes up, as it would for the next file.
    fn take_next_name(&mut self, context: &SinkContext, id: FileId, taken: &str) {
        let Some(file) = self.files.get(&id) else { return };
        let old = file.leftover.clone();
        let place = old.names.place.clone();
        let bucket = self.buckets.get_mut(&place).filter(|bucket| bucket.file == id);
        let first = bucket.as_ref().map_or(old.counter, |bucket| bucket.first_counter);
        let counter = old.counter + 1;
        if let Some(bucket) = bucket {
            bucket.counter = counter;
        }
        self.highest_counter = self.highest_counter.max(counter);
        match self.name_in_use(&place, counter) {
            Ok(in_use) if counter - first < CREATE_TRIES_MAX => {
                tracing::warn!("{}: {taken} exists already; taking the next number", self.owner);
                if self.durable {
                    self.notes.push(old.removal(&self.owner, &self.system));
                }
                if let Some(file) = self.files.get_mut(&id) {
                    file.leftover = Leftover { in_use, counter, ..old };
                    file.stage = Stage::Noting;
                }
                self.noting.push(id);
            }
            _ => self.give_up(context, id, &format!("{taken} and a thousand names after it exist already"), false),
        }
    }

    /// Settles what the last job of a file made durable. The note goes with the settlement, both or neither: with the
    /// settlement alone, a crash would cut the file to an older length.
    fn settle_flown(&mut self, id: FileId, length: u64, with_note: bool) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.leftover.settled = length;
        let flown = std::mem::take(&mut file.flying);
        let note = (with_note && self.durable).then(|| file.leftover.update(&self.owner, &self.system));
        if flown.ranges.is_empty() {
            self.leased_bytes = self.leased_bytes.saturating_sub(flown.bytes);
            return self.notes.extend(note);
        }
        self.end_lease(flown.ranges, flown.bytes, Outcome::Delivered);
        if let Some(settlement) = self.settlements.last_mut() {
            settlement.notes.extend(note);
        }
    }

    fn end_lease(&mut self, ranges: Vec<SeqRange>, bytes: u64, outcome: Outcome) {
        self.leased_bytes = self.leased_bytes.saturating_sub(bytes);
        if !ranges.is_empty() {
            let events: u64 = ranges.iter().map(|range| range.count()).sum();
            self.leased_events = self.leased_events.saturating_sub(events);
            self.settlements.push(Settlement::new(ranges, outcome));
        }
    }

    fn closed(&mut self, context: &SinkContext, id: FileId, Closed { length, published }: Closed) {
        // Once published it needs no note: nothing cuts it any more.
        self.settle_flown(id, length, published.is_err());
        let Some(file) = self.files.remove(&id) else { return };
        context.counters.connection_closed.add(1);
        match published {
            Ok(path) => {
                tracing::debug!("{}: {path} has {length} bytes", self.owner);
                self.forget(&file.leftover);
            }
            Err(error) => {
                // The bytes are safe under the name in use; only the rename is to be repeated.
                context.counters.connection_failed.add(1);
                tracing::warn!(
                    "{}: {} is complete but could not be published: {error}",
                    self.owner,
                    file.leftover.in_use
                );
                self.heal_later(file.leftover, 0);
            }
        }
    }

    /// Ends a file that failed: its unsettled events return, and what is on the store is healed.
    fn give_up(&mut self, context: &SinkContext, id: FileId, cause: &str, maybe_created: bool) {
        let Some(mut file) = self.files.remove(&id) else { return };
        let held = file.take_held();
        let place = &file.leftover.names.place;
        if self.buckets.get(place).is_some_and(|bucket| bucket.file == id) {
            self.buckets.remove(place);
        }
        context.counters.connection_failed.add(1);
        context.counters.event_write_fail.add(1);
        held.into_iter().for_each(|held| self.end_lease(held.ranges, held.bytes, Outcome::Returned));
        if maybe_created || file.leftover.settled > 0 {
            self.heal_later(file.leftover, 0);
        } else {
            self.forget(&file.leftover);
        }
        self.fail(cause.to_owned());
    }

    fn fail(&mut self, cause: String) {
        self.failure.get_or_insert(SinkError::Delivery(cause));
    }

    fn forget(&mut self, leftover: &Leftover) {
        if self.durable {
            self.notes.push(leftover.removal(&self.owner, &self.system));
        }
    }

    pub(super) fn heal_later(&mut self, leftover: Leftover, tries: u64) {
        let pause = FIRST_RETRY.saturating_mul(1 << tries.min(16)).min(self.plan.retry);
        let due = if tries == 0 { Instant::now() } else { Instant::now() + pause };
        self.due_at(due);
        self.sick.push(Sick { leftover, tries, due });
    }

    fn healed(&mut self, context: &SinkContext, leftover: Leftover, tries: u64, result: Result<Healing, StoreError>) {
        self.healing -= 1;
        self.due_at(Instant::now());
        let (owner, in_use) = (self.owner.as_str(), leftover.in_use.as_str());
        match result {
            Ok(healing) => {
                match healing {
                    Healing::Published(path) => {
                        tracing::info!("{owner}: {in_use} is published as {path}, with {} bytes", leftover.settled);
                    }
                    Healing::Discarded => tracing::info!("{owner}: {in_use} is removed; its events come again"),
                    Healing::AlreadyGone => tracing::debug!("{owner}: {in_use} is gone already"),
                }
                self.forget(&leftover);
            }
            Err(error) if self.plan.tries_max.is_some_and(|limit| tries + 1 >= limit) => {
                context.counters.connection_failed.add(1);
                tracing::error!(
                    "{owner}: {in_use}, {} bytes settled, is left as it is after {} tries (hdfs.closeTries): {error}",
                    leftover.settled,
                    tries + 1
                );
            }
            Err(error) => {
                tracing::warn!("{owner}: {in_use} cannot be healed yet: {error}");
                self.heal_later(leftover, tries + 1);
            }
        }
    }

    /// An event that no try can write.
    pub(super) fn unwritable(&mut self, context: &SinkContext, seq: u64, event: EventRef<'_>, reason: &str) {
        context.counters.event_write_fail.add(1);
        let range = SeqRange::new(seq, seq + 1);
        if context.dead_letters.is_none() {
            self.fail(format!("an event of channel {} cannot be written and stays: {reason}", context.channel.name));
            return self.end_lease(vec![range], 0, Outcome::Returned);
        }
        let known = self.letters.iter_mut().find(|(known, _, _)| known == reason);
        let (batch, ranges) = match known {
            Some((_, batch, ranges)) => (batch, ranges),
            None => {
                self.letters.push((reason.to_owned(), EventBatch::new(), Vec::new()));
                match self.letters.last_mut() {
                    Some((_, batch, ranges)) => (batch, ranges),
                    None => return,
                }
            }
        };
        batch.push(event.headers(), event.body());
        ranges.push(range);
    }
}
