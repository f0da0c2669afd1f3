//! What each step does to the channel, and what is heard of it.

use super::*;

impl World {
    pub(super) fn step(&mut self, life: &mut Life, step: Step) -> Result<(), String> {
        let mut answers = Vec::new();
        let [first, second, third] = step.args.map(usize::from);
        let dirs = self.plan.dirs;
        self.now += Duration::from_micros(100);
        self.phase = state_phase(life);
        self.faults_happen |= matches!(step.verb, Verb::Fail | Verb::Space);
        match step.verb {
            Verb::Put => self.put(life, [first, second, third], &mut answers),
            Verb::Gather => self.gather(life, first, &mut answers)?,
            Verb::Write | Verb::Sync => self.advance_write(life, first, step.verb == Verb::Sync, &mut answers),
            Verb::Chore => {
                for index in (0..dirs).filter(|index| self.stalled[*index] == 0).collect::<Vec<_>>() {
                    self.chore(life, index, &mut answers)?;
                }
            }
            Verb::Take => {
                let consumer = life.consumers[first % CONSUMERS];
                let limits = TakeLimits { events: second.max(1), bytes: 1000 };
                let (sender, ticket) = Ticket::pair();
                life.core.take(self.now, consumer, limits, Duration::from_millis(30), sender, &mut answers);
                life.takes.push((consumer, ticket));
                self.read(life, &mut answers);
            }
            Verb::Read => {
                self.read(life, &mut answers);
            }
            Verb::Rotate if first == 0 => self.rotate(life),
            Verb::Rotate => life.rotates_midway = true,
            Verb::Settle => self.settle(life, [first, second, third], &mut answers),
            Verb::Note => {
                let (update, note) = self.draw_note(first, second);
                let (sender, ticket) = Ticket::pair();
                life.core.note(vec![update], sender, &mut answers);
                life.settles.push(Asked { events: Vec::new(), note: Some(note), ticket });
            }
            Verb::Checkpoint => self.checkpoint(life)?,
            Verb::Advance => {
                self.now += Duration::from_millis(first as u64);
                life.core.tick(self.now, &mut answers);
            }
            Verb::Hold => {
                let count = life.flights.len().max(1);
                if let Some(flight) = life.flights.get_mut(first % count) {
                    // Its own step counts as well.
                    flight.held = second as u64 + 1;
                }
            }
            Verb::Stall => {
                self.has_stalled = true;
                self.stalled[first % dirs] = second as u64;
            }
            Verb::Fail => {
                let disk = &self.disks[first % dirs];
                disk.inject(fault(disk.operations() + 1 + second as u64, step.args[2]));
            }
            Verb::Space => {
                let disk = &self.disks[first % dirs];
                disk.set_capacity(if second == 0 { UNLIMITED } else { disk.used() + (second as u64 - 1) * 4096 });
            }
            Verb::Stop => {
                let disk = &self.disks[first % dirs];
                disk.stop_at(disk.operations() + second.max(1) as u64);
            }
            Verb::Nest | Verb::FailRecovery | Verb::Unmount | Verb::Encrypt | Verb::Crash => {}
        }
        answers.into_iter().for_each(Answer::send);
        if self.stalled.iter().any(|steps| *steps > 0) && !life.flights.is_empty() && step.verb != Verb::Advance {
            self.report.coverage.mark(FaultKind::DiskStalls, self.phase);
        }
        Ok(())
    }

    /// Marks what failed in the operations just done. True if a read was among them.
    pub(super) fn strikes(&mut self) -> bool {
        let mut reads = false;
        for (operation, Fault { only, forever, failure, .. }) in self.disks.iter().flat_map(SimDisk::take_strikes) {
            let full = matches!(failure, Failure::Short | Failure::Errno(28 | 122));
            let kind = match operation {
                _ if forever && only.is_none() => FaultKind::DiskGone,
                Operation::Write if full => FaultKind::DiskFull,
                Operation::Write => FaultKind::WriteFails,
                Operation::Sync => FaultKind::SyncFails,
                Operation::Names => FaultKind::NamesFail,
                Operation::SyncDir => FaultKind::DirectorySyncFails,
                Operation::Read => FaultKind::ReadFails,
            };
            reads |= operation == Operation::Read;
            self.report.coverage.mark(kind, self.phase);
        }
        reads
    }

    pub(super) fn put(&mut self, life: &mut Life, [producer, events, bytes]: [usize; 3], answers: &mut Vec<Answer>) {
        self.phase = Phase::Put;
        let producer = producer % PRODUCERS;
        let paddings: Vec<usize> = (0..=events).map(|event| if event % 2 == 0 { bytes } else { bytes / 3 }).collect();
        let (put, first) = self.model.put(producer, &paddings);
        let mut batch = EventBatch::new();
        for (event, padding) in (first..).zip(paddings) {
            batch.push([("id", event.to_string().as_str())], &body_of(event, padding));
        }
        self.report.events_put += events as u64 + 1;
        let (sender, ticket) = Ticket::pair();
        let mut pending = PendingPut::new(life.producers[producer], batch, sender, Duration::ZERO);
        if self.plan.compressed {
            pending = pending.compressed(compress);
        }
        life.core.put(self.now, pending, answers);
        life.puts.push((put, ticket));
    }

    pub(super) fn gather(&mut self, life: &mut Life, first: usize, answers: &mut Vec<Answer>) -> Result<(), String> {
        let dirs = self.plan.dirs;
        for index in (0..dirs).map(|step| (first + step) % dirs).filter(|index| self.stalled[*index] == 0) {
            let Some(job) = life.core.gather(index, self.now, 1, answers) else { continue };
            let header = &job.reservation.header;
            if life.newest_ordinals[index] != header.ordinal {
                life.newest_ordinals[index] = header.ordinal;
                self.report.rolls += 1;
            }
            self.report.frames += 1;
            self.report.fold(header.offset ^ header.first_seq << 20);
            let frame = job.sealed();
            let frame = frame.map_err(|error| format!("sealing fails: {error}"))?;
            life.flights.push(Flight { job, frame, written: false, returned: false, held: 0 });
            break;
        }
        Ok(())
    }

    pub(super) fn advance_write(
        &mut self,
        life: &mut Life,
        choice: usize,
        to_the_end: bool,
        answers: &mut Vec<Answer>,
    ) {
        let goes_on = |flight: &Flight| flight.held == 0 && self.stalled[flight.job.log] == 0;
        let free: Vec<usize> = (0..life.flights.len()).filter(|at| goes_on(&life.flights[*at])).collect();
        let Some(&at) = free.get(choice % free.len().max(1)) else { return };
        let flight = &mut life.flights[at];
        let header = &flight.job.reservation.header;
        self.phase = if header.witness { Phase::Idle } else { Phase::Commit };
        if self.plan.shared_flush {
            return self.advance_shared(life, at, to_the_end, answers);
        }
        let (file, offset) = (&flight.job.reservation.file, header.offset);
        let result = if to_the_end {
            file.write_durable_at(&flight.frame, offset)
        } else if flight.written {
            return;
        } else {
            // The write is under way; a crash now tears it.
            flight.written = true;
            file.write_at(&flight.frame, offset)
        };
        if !self.is_stopped() && (to_the_end || result.is_err()) {
            let job = life.flights.swap_remove(at).job;
            life.core.complete(self.now, job, result, answers);
        }
        self.strikes();
    }

    /// The same where one flush makes many writes durable: a write begins, it returns, the flush that covers it ends. What is
    /// flushed is what had returned when the flush began; its answer comes later.
    fn advance_shared(&mut self, life: &mut Life, at: usize, to_the_end: bool, answers: &mut Vec<Answer>) {
        let Life { core, flights, flushes, flushing, .. } = life;
        let flight = &mut flights[at];
        let log = flight.job.log;
        let (id, epoch) = (flight.job.reservation.id, flight.job.reservation.epoch);
        let file = Arc::clone(&flight.job.reservation.file);
        let mut ended = Vec::new();
        if !std::mem::replace(&mut flight.written, true)
            && let Err(error) = file.write_at(&flight.frame, flight.job.reservation.header.offset)
        {
            ended.push((id, Err(error)));
        } else if to_the_end && !std::mem::replace(&mut flight.returned, true) {
            ended.extend(flushes[log].returned(id, &file, epoch).err().map(|error| (id, Err(error))));
        } else if to_the_end && let Some(result) = flushing[log].take() {
            ended = flushes[log].ended(result);
        }
        if !self.is_stopped() {
            for (id, result) in ended {
                let its = |flight: &Flight| flight.job.log == log && flight.job.reservation.id == id;
                let job = flights.swap_remove(flights.iter().position(its).expect("a frame ends once")).job;
                core.complete(self.now, job, result, answers);
            }
        }
        if !self.is_stopped()
            && flushing[log].is_none()
            && let Some(file) = flushes[log].begin()
        {
            flushing[log] = Some(flush(&*file));
        }
        self.strikes();
    }

    pub(super) fn chore(&mut self, life: &mut Life, index: usize, answers: &mut Vec<Answer>) -> Result<bool, String> {
        let waited_for = life.core.has_work();
        let Some(chore) = life.core.next_chore(index, self.now, 1) else { return Ok(false) };
        if let (Chore::Prepare { header, .. }, Some(key)) = (&chore, self.key())
            && header.key.as_ref().is_some_and(|named| named.id != key.id())
        {
            return Err(format!("a segment is begun under another key than {}", key.id()));
        }
        let rolls = waited_for || matches!(chore, Chore::Prepare { .. });
        self.phase = if rolls { Phase::Roll } else { Phase::Idle };
        let dir = self.dir(index, &format!("d{index}")).map_err(|error| error.to_string())?;
        let result = chore.run(&*dir);
        if std::mem::take(&mut life.rotates_midway) {
            self.rotate(life);
        }
        life.keeps_removed |= matches!(chore, Chore::Remove { .. }) && result.is_err();
        self.strikes();
        if !self.is_stopped() {
            life.core.chore_done(index, self.now, chore, result, answers);
        }
        Ok(true)
    }

    fn rotate(&mut self, life: &mut Life) {
        self.active_key = (self.active_key + 1) % KEYS;
        life.core.rotate(&key_of(self.active_key));
    }

    /// Every disk that does not stall does one of the reads that are asked of it, whichever. False if there was none.
    pub(super) fn read(&mut self, life: &mut Life, answers: &mut Vec<Answer>) -> bool {
        let mut reads = false;
        for index in 0..self.plan.dirs {
            while let Some(job) = life.core.next_read(index, self.now, 1) {
                life.reads[index].push(job);
            }
            if self.stalled[index] > 0 || life.reads[index].is_empty() {
                continue;
            }
            reads = true;
            if self.phase != Phase::Recovery {
                self.phase = state_phase(life);
            }
            let choice = (self.now.as_micros() / 100) as usize % life.reads[index].len();
            let read = life.reads[index].swap_remove(choice).run(&self.buffers);
            self.strikes();
            if !self.is_stopped() {
                life.core.read_done(self.now, index, read, answers);
            }
        }
        reads
    }

    pub(super) fn checkpoint(&mut self, life: &mut Life) -> Result<(), String> {
        if let Some(checkpoint) = life.core.next_checkpoint(self.now) {
            self.phase = Phase::Checkpoint;
            let (dir, channel) = (self.dir(0, CHECKPOINTS).map_err(|error| error.to_string())?, life.core.channel());
            // One that fails costs the next start time, and nothing else.
            let written = checkpoint.write(&*dir, &channel, self.key().as_ref(), &*self.random);
            self.report.checkpoints += u64::from(written.is_ok());
            self.strikes();
        }
        Ok(())
    }

    pub(super) fn draw_note(&mut self, key: usize, value: usize) -> (NoteUpdate, (String, u64)) {
        let key = format!("file{}", key % 4);
        let value = (!value.is_multiple_of(4)).then_some(self.report.frames << 8 | value as u64);
        let number = self.model.note_asked(&key, value);
        let update = NoteUpdate {
            owner: OWNER.to_owned(),
            key: key.clone(),
            note: value.map(|value| Bytes::copy_from_slice(&value.to_le_bytes())),
        };
        (update, (key, number))
    }

    pub(super) fn settle(&mut self, life: &mut Life, [lease, how, note]: [usize; 3], answers: &mut Vec<Answer>) {
        if life.held.is_empty() {
            return;
        }
        let index = lease % life.held.len();
        let Held { consumer, lease } = life.held.swap_remove(index);
        let ids: Vec<(u64, u64)> = lease.iter().map(|(seq, event)| (seq, event_of(event.header("id")))).collect();
        // One half may have another end than the other.
        let cut = if how >= 6 { ids.len() / 2 } else { ids.len() };
        let outcome = match how % 6 {
            0 => Outcome::Returned,
            1 => Outcome::Dropped { reason: "a reason".to_owned() },
            2 => Outcome::DeadLettered { reason: "another".to_owned() },
            _ => Outcome::Delivered,
        };
        let returned = outcome == Outcome::Returned;
        let mut settlements = vec![Settlement::new(ranges_of(&ids[..cut]), outcome)];
        if cut < ids.len() {
            settlements.push(Settlement::new(ranges_of(&ids[cut..]), Outcome::Returned));
        }
        let events: Vec<u64> = if returned { Vec::new() } else { ids[..cut].iter().map(|(_, event)| *event).collect() };
        self.model.settle(&events, Settled::Asked);
        let mut asked_note = None;
        if note < 6 && !returned {
            let (update, note) = self.draw_note(note, how);
            settlements[0].notes.push(update);
            asked_note = Some(note);
        }
        let (sender, ticket) = Ticket::pair();
        life.core.settle(self.now, consumer, settlements, sender, answers);
        life.settles.push(Asked { events, note: asked_note, ticket });
    }

    /// Takes in the answers that have come.
    pub(super) fn hear(&mut self, life: &mut Life) -> Result<(), String> {
        for (put, ticket) in std::mem::take(&mut life.puts) {
            match ticket.try_take() {
                Ok(Ok(_)) => {
                    self.report.events_acknowledged += self.model.answer(put, Known::Acknowledged);
                    self.report.fold(put as u64);
                }
                Ok(Err(PutError::Failed { .. } | PutError::Closed)) => {}
                Ok(Err(_)) => {
                    self.model.answer(put, Known::Absent);
                }
                Err(waiting) => life.puts.push((put, waiting)),
            }
        }
        for (consumer, ticket) in std::mem::take(&mut life.takes) {
            match ticket.try_take() {
                Ok(Ok(lease)) if lease.is_empty() => {}
                Ok(Err(TakeError::Closed)) => {}
                Ok(Ok(lease)) => {
                    for (_, event) in lease.iter() {
                        self.model.seen(event_of(event.header("id")), event.body())?;
                    }
                    life.held.push(Held { consumer, lease });
                }
                Ok(Err(error)) if self.faults_happen() => self.report.fold(error.to_string().len() as u64),
                // What it reads may have been out for longer than the disk was told to sleep.
                Ok(Err(error @ TakeError::Unreadable { .. })) if self.has_stalled => {
                    self.report.fold(error.to_string().len() as u64);
                }
                Ok(Err(error)) => return Err(format!("a take fails: {error}")),
                Err(waiting) => life.takes.push((consumer, waiting)),
            }
        }
        for Asked { events, note, ticket } in std::mem::take(&mut life.settles) {
            match ticket.try_take() {
                Ok(Ok(())) => {
                    self.report.events_settled += events.len() as u64;
                    self.model.settle(&events, Settled::Yes);
                    if let Some((key, number)) = note {
                        self.model.note_done(&key, number);
                    }
                }
                Ok(Err(SettleError::Failed(_) | SettleError::NoteRefused(_))) => {}
                Ok(Err(error)) => return Err(format!("a settlement fails: {error}")),
                Err(ticket) => life.settles.push(Asked { events, note, ticket }),
            }
        }
        Ok(())
    }
}

fn ranges_of(ids: &[(u64, u64)]) -> Vec<SeqRange> {
    let mut ranges: Vec<SeqRange> = Vec::new();
    for (seq, _) in ids {
        match ranges.last_mut() {
            Some(last) if last.end == *seq => last.end += 1,
            _ => ranges.push(SeqRange::new(*seq, seq + 1)),
        }
    }
    ranges
}
