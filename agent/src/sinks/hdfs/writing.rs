//! The decisions of the sink: which file an event goes to, when a file is synced, rolled, closed, given up.
//!
//! One round handles the reports of jobs, then what is due, then events, and then waits for the next of them. Rounds
//! never wait for a file: jobs do, one at a time per file. What rounds decide to settle goes out together at their
//! end. Time is read once per round.

mod outcomes;
mod routing;
mod spares;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use channel::{
    Consumer, EventBatch, Lease, LeasedSlice, NoteUpdate, Outcome, SeqRange, Settlement, TakeError, TakeLimits, Ticket,
};
use store::fs::Store;
use store::template::{Expanded, Place};
use tokio::sync::mpsc;

use super::file::{OpenFile, Stage};
use super::jobs::{self, Done, FileId};
use super::keys::Plan;
use super::note::Leftover;
use crate::component::{ComponentError, Progress, SinkContext, SinkError};
use spares::Spares;

/// Longest wait of one take; a take that waits costs nothing.
const TAKE_WAIT: Duration = Duration::from_secs(5);

/// Most bytes of one take, so that one take does not hide the lease limit.
const TAKE_BYTES_MAX: usize = 8 << 20;

/// Least time between two looks at the times of all files.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Files that may be closing beside the open ones, before the sink waits for them.
const CLOSING_MAX: usize = 256;

/// While the sink stops, a failed file is tried again after this long: the store may be on its way back.
const HEAL_WHEN_STOPPING: Duration = Duration::from_secs(1);
/// Leftovers healed at once.
const HEALING_MAX: usize = 8;

/// Failed files that wait to be healed, before the sink takes no more events: a store that is away for hours must not
/// fill the memory with them, nor the channel with their notes.
const SICK_MAX: usize = 4096;

/// Times that the store may reject a file before its events are dead letters.
const REJECTIONS_MAX: u32 = 3;

/// The file that takes the events of one place now.
struct Bucket {
    file: FileId,
    counter: i64,
    first_counter: i64,
}

/// A leftover that waits for its next try.
struct Sick {
    leftover: Leftover,
    tries: u64,
    due: Instant,
}

pub(super) struct Writing {
    pub(super) plan: Plan,
    store: Store,
    system: String,
    owner: String,
    /// Whether notes survive a crash.
    durable: bool,
    leased_events_max: u64,

    buckets: HashMap<Place, Bucket>,
    files: HashMap<FileId, OpenFile>,
    next_file: FileId,
    uses: u64,
    /// The highest counter in any name so far. New ones are above it, so that no two files of a sink ever share a
    /// name in use, which is the key of their notes.
    highest_counter: i64,
    rejected: HashMap<Place, u32>,
    /// What the templates said of the last event.
    printed: Expanded,
    /// The same of the last event that found its file by its place, and that file.
    recent: Option<(Expanded, FileId)>,
    spares: Spares,

    taking: Option<Ticket<Result<Lease, TakeError>>>,
    /// Events taken and not yet routed, and how many of the first slice are.
    backlog: std::collections::VecDeque<LeasedSlice>,
    routed: usize,

    sick: Vec<Sick>,
    healing: usize,
    settling: usize,
    burying: usize,
    /// One report per job, and there are no more jobs than files, leftovers and settlements.
    reports: mpsc::UnboundedSender<Done>,
    arrivals: mpsc::UnboundedReceiver<Done>,

    // What the round decided.
    settlements: Vec<Settlement>,
    notes: Vec<NoteUpdate>,
    noting: Vec<FileId>,
    letters: Vec<(String, EventBatch, Vec<SeqRange>)>,
    failure: Option<SinkError>,

    leased_events: u64,
    leased_bytes: u64,
    next_due: Option<Instant>,
}

impl Writing {
    pub(super) fn new(plan: Plan, store: Store, context: &SinkContext, leftovers: Vec<Leftover>) -> Writing {
        let (reports, arrivals) = mpsc::unbounded_channel();
        let channel = &context.channel.channel;
        let now = Instant::now();
        // A quarter of a small channel may be on lease; else producers would wait for the sync interval.
        let leased_events_max = (channel.stats().capacity_events / 4).max(plan.batch as u64);
        Writing {
            system: store.describe(),
            owner: context.name.clone(),
            durable: channel.is_durable(),
            leased_events_max,
            buckets: HashMap::new(),
            files: HashMap::new(),
            next_file: 0,
            uses: 0,
            highest_counter: leftovers.iter().map(|leftover| leftover.counter).max().unwrap_or(0),
            rejected: HashMap::new(),
            printed: Expanded::default(),
            recent: None,
            spares: Spares::default(),
            taking: None,
            backlog: std::collections::VecDeque::new(),
            routed: 0,
            sick: leftovers.into_iter().map(|leftover| Sick { leftover, tries: 0, due: now }).collect(),
            healing: 0,
            settling: 0,
            burying: 0,
            reports,
            arrivals,
            settlements: Vec::new(),
            notes: Vec::new(),
            noting: Vec::new(),
            letters: Vec::new(),
            failure: None,
            leased_events: 0,
            leased_bytes: 0,
            next_due: Some(now),
            plan,
            store,
        }
    }

    pub(super) async fn round(
        &mut self,
        context: &SinkContext,
        consumer: &mut dyn Consumer,
    ) -> Result<Progress, SinkError> {
        while let Ok(done) = self.arrivals.try_recv() {
            self.report(context, done);
        }
        self.route(context);
        self.run_due(context, Instant::now());
        self.send_out(context, consumer);
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.wait(context, consumer).await
    }

    /// Waits for events, a report or a time, whichever comes first.
    async fn wait(&mut self, context: &SinkContext, consumer: &mut dyn Consumer) -> Result<Progress, SinkError> {
        if self.may_take() && self.taking.is_none() {
            let bytes = TAKE_BYTES_MAX.min((self.plan.leased_bytes_max - self.leased_bytes) as usize).max(1);
            self.taking = Some(consumer.take(TakeLimits { events: self.plan.batch, bytes }, TAKE_WAIT));
        }
        let due = self.next_due.unwrap_or_else(|| Instant::now() + TAKE_WAIT);
        let taking = &mut self.taking;
        let taken = async {
            match taking {
                Some(ticket) => ticket.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(done) = self.arrivals.recv() => {
                self.report(context, done);
                Ok(Progress::Worked)
            }
            lease = taken => {
                self.taking = None;
                let lease = lease.inspect_err(|_| context.counters.channel_read_fail.add(1))?;
                context.counters.count_batch(lease.event_count(), self.plan.batch);
                if lease.is_empty() {
                    self.spares.clear();
                    return Ok(Progress::Idle);
                }
                self.leased_events += lease.event_count() as u64;
                self.backlog.extend(lease.slices);
                self.route(context);
                Ok(Progress::Worked)
            }
            () = tokio::time::sleep_until(due.into()) => Ok(Progress::Worked),
            () = context.stop.requested() => Ok(Progress::Idle),
        }
    }

    fn may_take(&self) -> bool {
        self.backlog.is_empty()
            && !self.too_much_leased()
            && self.files.len() < self.plan.files_max + CLOSING_MAX
            && self.sick.len() < SICK_MAX
    }

    fn too_much_leased(&self) -> bool {
        self.leased_bytes >= self.plan.leased_bytes_max || self.leased_events >= self.leased_events_max
    }

    /// No more events for the file of this place; it closes now, or when it is ready.
    fn close_bucket(&mut self, context: &SinkContext, place: &Place) {
        if let Some(bucket) = self.buckets.remove(place)
            && let Some(file) = self.files.get_mut(&bucket.file)
        {
            file.closing = true;
            self.start_close(context, bucket.file);
        }
    }

    fn due_at(&mut self, when: Instant) {
        self.next_due = Some(self.next_due.map_or(when, |due| due.min(when)));
    }

    /// Syncs and closes what is due, and finds out when to look again.
    fn run_due(&mut self, context: &SinkContext, now: Instant) {
        if self.too_much_leased() {
            self.relieve(context);
        }
        if self.next_due.is_none_or(|due| due > now) {
            return;
        }
        self.next_due = None;
        let is_old = |bucket: &Bucket| self.is_old(bucket.file, now);
        let old: Vec<Place> =
            self.buckets.iter().filter(|(_, bucket)| is_old(bucket)).map(|(place, _)| place.clone()).collect();
        for place in old {
            self.close_bucket(context, &place);
        }
        let is_due = |file: &OpenFile| {
            let waited = file.waiting_since().is_some_and(|since| now >= since + self.plan.sync_interval);
            file.stage == Stage::Ready && waited
        };
        let due: Vec<FileId> = self.files.iter().filter(|(_, file)| is_due(file)).map(|(id, _)| *id).collect();
        for id in due {
            self.start_sync(context, id);
        }
        let dues = self.files.values().flat_map(|file| {
            let sync = file
                .waiting_since()
                .filter(|_| file.stage == Stage::Ready)
                .map(|since| since + self.plan.sync_interval);
            let open = Some(file).filter(|file| !file.closing);
            let roll = open.and(self.plan.roll_interval).map(|interval| file.opened + interval);
            let idle = open.and(self.plan.idle).map(|idle| file.last_event + idle);
            [sync, roll, idle].into_iter().flatten()
        });
        // Every look goes over all files; with thousands of them, their times must not be looked at one by one.
        self.next_due = dues.min().map(|due| due.max(now + LOOK_AGAIN_AFTER));
        self.heal_due(now);
        let oldest = self.files.values().filter_map(OpenFile::oldest).min();
        context.counters.oldest_lease_ms.set(oldest.map_or(0, |oldest| now.duration_since(oldest).as_millis() as i64));
    }

    fn is_old(&self, id: FileId, now: Instant) -> bool {
        let file = &self.files[&id];
        self.plan.roll_interval.is_some_and(|interval| now >= file.opened + interval)
            || self.plan.idle.is_some_and(|idle| now >= file.last_event + idle)
    }

    /// Syncs the files whose events wait longest, until half of what is waiting is on its way.
    fn relieve(&mut self, context: &SinkContext) {
        let mut waiting: Vec<(Instant, FileId)> = self
            .files
            .iter()
            .filter(|(_, file)| file.stage == Stage::Ready && !file.closing)
            .filter_map(|(id, file)| Some((file.waiting_since()?, *id)))
            .collect();
        waiting.sort();
        let half = waiting.len().div_ceil(2);
        for (_, id) in waiting.into_iter().take(half) {
            self.start_sync(context, id);
        }
    }

    fn start_sync(&mut self, context: &SinkContext, id: FileId) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.stage != Stage::Ready || file.waiting_since().is_none() {
            return;
        }
        let Some(writer) = file.writer.take() else { return };
        file.stage = Stage::Syncing;
        if !file.has_full_part() {
            file.cut(self.spares.take());
        }
        context.counters.syncs.add(1);
        jobs::sync(writer, id, file.fly(), self.reports.clone());
    }

    /// A file has no job now: what is wanted of it next?
    fn ready(&mut self, context: &SinkContext, id: FileId) {
        let Some(file) = self.files.get(&id) else { return };
        if file.closing {
            self.start_close(context, id);
        } else if file.has_full_part() {
            self.start_sync(context, id);
        } else if let Some(since) = file.waiting_since() {
            self.due_at(since + self.plan.sync_interval);
        }
    }

    fn start_close(&mut self, context: &SinkContext, id: FileId) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.stage != Stage::Ready {
            return;
        }
        if file.events == 0 {
            // Its only event was refused: there is nothing to publish.
            let Some(mut file) = self.files.remove(&id) else { return };
            let bytes = file.take_held().iter().map(|held| held.bytes).sum();
            self.leased_bytes = self.leased_bytes.saturating_sub(bytes);
            return self.heal_later(file.leftover, 0);
        }
        if file.has_full_part() {
            // The last part closes the file, and comes behind those that are full.
            return self.start_sync(context, id);
        }
        let Some(writer) = file.writer.take() else { return };
        file.stage = Stage::Closing;
        let names = file.leftover.names.clone();
        file.cut(Vec::new());
        let bytes = file.fly();
        jobs::close(self.store.clone(), writer, id, bytes, names, file.leftover.counter, self.reports.clone());
    }

    fn heal_due(&mut self, now: Instant) {
        let mut index = 0;
        while index < self.sick.len() && self.healing < HEALING_MAX {
            if self.sick[index].due <= now {
                let Sick { leftover, tries, .. } = self.sick.swap_remove(index);
                self.healing += 1;
                jobs::heal(self.store.clone(), leftover, tries, self.reports.clone());
            } else {
                index += 1;
            }
        }
        let next = self.sick.iter().map(|sick| sick.due).min();
        if let Some(due) = next.filter(|_| self.healing < HEALING_MAX) {
            self.due_at(due);
        }
    }

    /// Hands the round's decisions to the channel.
    fn send_out(&mut self, context: &SinkContext, consumer: &mut dyn Consumer) {
        for (reason, batch, ranges) in std::mem::take(&mut self.letters) {
            let Some(dead_letters) = &context.dead_letters else { continue };
            tracing::error!("{}: {} events become dead letters: {reason}", self.owner, batch.len());
            let burial = dead_letters.bury(batch, &reason);
            self.burying += 1;
            jobs::spawn(self.reports.clone(), async move { Done::Buried { ranges, reason, result: burial.await } });
        }
        if !self.settlements.is_empty() {
            let settlements = std::mem::take(&mut self.settlements);
            let events = |settlement: &Settlement| settlement.ranges.iter().map(|range| range.count()).sum::<u64>();
            let delivered = settlements.iter().filter(|one| one.outcome == Outcome::Delivered).map(events).sum();
            let ticket = consumer.settle(settlements);
            self.settling += 1;
            jobs::spawn(self.reports.clone(), async move { Done::Settled { delivered, result: ticket.await } });
        }
        let files = std::mem::take(&mut self.noting);
        let mut notes = std::mem::take(&mut self.notes);
        if self.durable {
            let noted = files.iter().filter_map(|id| self.files.get(id));
            notes.extend(noted.map(|file| file.leftover.update(&self.owner, &self.system)));
        }
        if notes.is_empty() || !self.durable {
            files.into_iter().for_each(|id| self.open(id));
        } else {
            let ticket = consumer.note(notes);
            jobs::spawn(self.reports.clone(), async move { Done::Noted { files, result: ticket.await } });
        }
        context.counters.leased_events.set(i64::try_from(self.leased_events).unwrap_or(i64::MAX));
        if self.leased_events == 0 {
            context.counters.oldest_lease_ms.set(0);
        }
    }

    /// Closes and settles everything; what does not end within `limit` is left to the notes.
    pub(super) async fn finish(
        mut self,
        context: &SinkContext,
        consumer: &mut dyn Consumer,
        limit: Duration,
    ) -> Result<(), ComponentError> {
        let end = tokio::time::Instant::now() + limit;
        // What was not routed returns when the consumer is dropped.
        self.taking = None;
        self.backlog.clear();
        for place in self.buckets.keys().cloned().collect::<Vec<_>>() {
            self.close_bucket(context, &place);
        }
        loop {
            self.due_at(Instant::now());
            self.run_due(context, Instant::now());
            self.send_out(context, consumer);
            let waits_for_heal = self.healing > 0 || (!self.durable && !self.sick.is_empty());
            if self.files.is_empty() && self.settling == 0 && self.burying == 0 && !waits_for_heal {
                return Ok(());
            }
            // A failed file is due again at its own time, whatever else arrives; and a stop does not wait long for it.
            let soon = Instant::now() + HEAL_WHEN_STOPPING;
            self.sick.iter_mut().for_each(|sick| sick.due = sick.due.min(soon));
            let due = self.sick.iter().map(|sick| tokio::time::Instant::from_std(sick.due)).min();
            let due = due.filter(|_| self.healing < HEALING_MAX);
            match tokio::time::timeout_at(due.map_or(end, |due| due.min(end)), self.arrivals.recv()).await {
                Ok(Some(done)) => self.report(context, done),
                Ok(None) => return Ok(()),
                Err(_) if tokio::time::Instant::now() < end => {}
                Err(_) => {
                    let open = self.files.values().map(|file| file.leftover.in_use.as_str());
                    let names: Vec<&str> =
                        open.chain(self.sick.iter().map(|sick| sick.leftover.in_use.as_str())).collect();
                    return Err(ComponentError(format!(
                        "{} files could not be closed within {} s: {}",
                        names.len(),
                        limit.as_secs(),
                        names.iter().take(5).copied().collect::<Vec<_>>().join(", ")
                    )));
                }
            }
        }
    }
}
