//! Which file an event goes to.
//!
//! Events of one file come one after the other mostly, so that the place of an event is compared with that of the one before,
//! and looked up only where it differs.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use channel::EventRef;
use store::serializer::Encoder;
use store::template::Place;

use super::{Bucket, CLOSING_MAX, REJECTIONS_MAX, Writing};
use crate::component::SinkContext;
use crate::sinks::hdfs::file::OpenFile;
use crate::sinks::hdfs::jobs::FileId;
use crate::sinks::hdfs::note::{Leftover, Names};

impl Writing {
    /// Puts the backlog's events into the buffers of their files, as far as the limits allow.
    pub(super) fn route(&mut self, context: &SinkContext) {
        let (now, now_ms) = (Instant::now(), wall_clock_ms());
        while let Some(slice) = self.backlog.front().cloned() {
            while self.routed < slice.events.len() {
                if self.files.len() >= self.plan.files_max + CLOSING_MAX
                    || self.leased_bytes >= self.plan.leased_bytes_max
                {
                    return;
                }
                let seq = slice.first_seq + self.routed as u64;
                self.routed += 1;
                self.route_event(context, seq, slice.events.get(self.routed - 1), now, now_ms);
            }
            self.backlog.pop_front();
            self.routed = 0;
        }
    }

    fn route_event(&mut self, context: &SinkContext, seq: u64, event: EventRef<'_>, now: Instant, now_ms: i64) {
        if let Err(reason) = self.plan.templates.print(event, now_ms, &mut self.printed) {
            return self.unwritable(context, seq, event, &reason.to_string());
        }
        let id = match self.recent_file() {
            Some(id) => id,
            None => match self.find_file(context, now, now_ms) {
                Ok(id) => id,
                Err(reason) => return self.unwritable(context, seq, event, &reason),
            },
        };
        let Some(file) = self.files.get_mut(&id) else { return };
        self.uses += 1;
        file.used = self.uses;
        let idle = file.waiting_since().is_none();
        match file.add(seq, event, now, now_ms) {
            Ok(bytes) => self.leased_bytes += bytes,
            Err(reason) => return self.unwritable(context, seq, event, &reason.to_string()),
        }
        if file.buffered_bytes() >= self.plan.sync_bytes {
            file.cut(self.spares.take());
            self.start_sync(context, id);
        } else if idle {
            self.due_at(now + self.plan.sync_interval);
        }
        if let Some(idle) = self.plan.idle {
            self.due_at(now + idle);
        }
    }

    /// The file of the event before, if this one goes there too. A file that is there and not closing is the open one of its
    /// place.
    fn recent_file(&self) -> Option<FileId> {
        let (printed, id) = self.recent.as_ref()?;
        let file = self.files.get(id)?;
        (*printed == self.printed && !file.closing && !self.is_full(file)).then_some(*id)
    }

    /// The file for what was printed last.
    fn find_file(&mut self, context: &SinkContext, now: Instant, now_ms: i64) -> Result<FileId, String> {
        let place = self.plan.templates.place(&self.printed).map_err(|reason| reason.to_string())?;
        if self.rejected.get(&place).is_some_and(|times| *times >= REJECTIONS_MAX) {
            return Err("the store rejects the name of its file".to_owned());
        }
        let id = self.file_for(context, place, now, now_ms)?;
        match &mut self.recent {
            Some((printed, file)) => {
                printed.clone_from(&self.printed);
                *file = id;
            }
            None => self.recent = Some((self.printed.clone(), id)),
        }
        Ok(id)
    }

    /// Whether the next event of its place goes to the next file.
    fn is_full(&self, file: &OpenFile) -> bool {
        self.plan.roll_events.is_some_and(|limit| file.events >= limit)
            || self.plan.roll_bytes.is_some_and(|limit| file.body_bytes >= limit)
    }

    /// The file that takes an event of `place` now: the open one, unless it is full, or a new one.
    fn file_for(&mut self, context: &SinkContext, place: Place, now: Instant, now_ms: i64) -> Result<FileId, String> {
        let mut counter = None;
        if let Some(bucket) = self.buckets.get(&place) {
            if !self.is_full(&self.files[&bucket.file]) {
                return Ok(bucket.file);
            }
            counter = Some(bucket.counter + 1);
            self.close_bucket(context, &place);
        } else if self.buckets.len() >= self.plan.files_max {
            let unused = self.buckets.iter().min_by_key(|(_, bucket)| self.files[&bucket.file].used);
            if let Some(place) = unused.map(|(place, _)| place.clone()) {
                self.close_bucket(context, &place);
            }
        }
        // Files of one bucket count up by one, as in Flume; a new bucket starts at the clock, above every other name.
        let counter = counter.unwrap_or_else(|| now_ms.max(self.highest_counter + 1));
        self.highest_counter = self.highest_counter.max(counter);
        let names = Names { place: place.clone(), suffix: self.plan.suffix.clone() };
        let leftover = Leftover { in_use: self.name_in_use(&place, counter)?, names, counter, settled: 0 };
        let encoder = Encoder::new(self.plan.format, wire::java::event_headers, random_marker());
        let file = OpenFile::new(leftover, encoder, now);
        let id = self.next_file;
        self.next_file += 1;
        self.leased_bytes += file.buffered_bytes();
        self.files.insert(id, file);
        self.buckets.insert(place, Bucket { file: id, counter, first_counter: counter });
        self.noting.push(id);
        if let Some(interval) = self.plan.roll_interval {
            self.due_at(now + interval);
        }
        Ok(id)
    }

    pub(super) fn name_in_use(&self, place: &Place, counter: i64) -> Result<String, String> {
        let (before, after) = (&self.plan.in_use_prefix, &self.plan.in_use_suffix);
        let name = format!("{before}{}.{counter}{}{after}", place.name, self.plan.suffix);
        if name.len() > store::limits::COMPONENT_BYTES_MAX {
            let limit = store::limits::COMPONENT_BYTES_MAX;
            return Err(format!("its file's name has {} bytes; a store takes {limit}", name.len()));
        }
        Ok(format!("{}/{name}", place.directory))
    }
}

fn wall_clock_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Sixteen random bytes, from what the standard library seeds its hash tables with.
fn random_marker() -> [u8; 16] {
    use std::hash::{BuildHasher as _, RandomState};
    let half = || RandomState::new().hash_one(Instant::now()).to_le_bytes();
    let mut marker = [0; 16];
    marker[..8].copy_from_slice(&half());
    marker[8..].copy_from_slice(&half());
    marker
}
