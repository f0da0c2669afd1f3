//! The end of a life and the start of the next one: what survived is opened and compared, and a last life must finish
//! everything.

use wal::chore::slot_name;
use wal::format::frame::FrameHeader;
use wal::segment::Segment;

use super::*;

/// How long a take waits that nobody interrupts.
const PATIENCE: Duration = Duration::from_secs(60);

impl World {
    /// Opens what survived, through interruptions and failures, and checks it. `None` when an armed stop hit.
    pub(in crate::durable::simulation) fn recover(&mut self) -> Result<Option<Life>, String> {
        self.phase = Phase::Recovery;
        if let Some(disk) = self.unmounted.take()
            && self.plan.dirs > 1
            && self.root.is_none()
            && self.report.events_acknowledged > 0
        {
            self.refuses_without(disk)?;
        }
        for [disk, after, outcome] in std::mem::take(&mut self.nests) {
            let disk = &self.disks[usize::from(disk) % self.plan.dirs];
            disk.stop_at(disk.operations() + u64::from(after.max(1)));
            let opened = self.start();
            if !self.is_stopped() {
                // Recovery is shorter than that: the process dies right after it.
                opened.map_err(|error| format!("does not open: {error}"))?;
            }
            self.report.recovery_crashes += 1;
            self.restart(outcome, outcome);
            self.promises_of_disks()?;
        }
        for [disk, after, kind] in std::mem::take(&mut self.recovery_faults) {
            let disk = &self.disks[usize::from(disk) % self.plan.dirs];
            disk.inject(fault(disk.operations() + 1 + u64::from(after), kind));
            let opened = self.start().map(|_| ());
            self.only_the_disk(opened)?;
            self.disks.iter().for_each(SimDisk::heal);
            self.restart_disks(DiskOutcome::ProcessKilled);
        }
        let expected = self.by_frames_alone();
        let mut opened = self.start();
        if self.is_stopped() {
            return Ok(None);
        }
        if opened.is_err() && matches!(self.armed, Some(Armed::Fail { .. })) {
            self.only_the_disk(opened.map(|_| ()))?;
            self.armed = None;
            self.restart_disks(DiskOutcome::ProcessKilled);
            opened = self.start();
        }
        let mut life = opened.map_err(|error| format!("does not open: {error}"))?;
        match (expected, &self.outcome) {
            (Some(Ok(expected)), Some(found)) if expected != *found => {
                return Err(format!("what was not read changes what is found: {found:?} instead of {expected:?}"));
            }
            (Some(Err(error)), _) => return Err(format!("does not open by its frames alone: {error}")),
            _ => {}
        }
        let whole = self.inspect(&mut life)?;
        self.promises_of_disks()?;
        Ok(whole.then_some(life))
    }

    /// A disk that is not mounted looks like an empty one; its events must not be forgotten for that.
    fn refuses_without(&mut self, disk: usize) -> Result<(), String> {
        let disks = self.disks.clone();
        self.disks = disks.iter().map(SimDisk::fork).collect();
        self.disks[disk] = SimDisk::default();
        let opened = self.start().map(|_| ());
        self.disks = disks;
        match opened {
            Err(_) => Ok(()),
            Ok(()) => Err(format!("it starts although disk {disk} is not mounted")),
        }
    }

    /// A start may fail because its disk does, and for no other reason.
    fn only_the_disk(&mut self, opened: Result<(), OpenError>) -> Result<(), String> {
        let unreadable = self.strikes();
        match opened {
            // What cannot be read may be lost: that is said, and nothing is changed.
            Err(OpenError::Damaged(_)) if unreadable => Ok(()),
            Ok(()) | Err(OpenError::Io { .. } | OpenError::Recover(RecoverError::Io { .. })) => Ok(()),
            Err(error) => Err(format!("a failing disk is taken for something else: {error}")),
        }
    }

    /// Takes everything without settling, compares, and gives it back. False when the machine stopped in between.
    fn inspect(&mut self, life: &mut Life) -> Result<bool, String> {
        let size = life.core.stats().size_events;
        let consumer = life.core.handle();
        let (mut found, mut late, mut failures) = (Vec::new(), false, 0);
        loop {
            let mut answers = Vec::new();
            let (sender, mut ticket) = Ticket::pair();
            let limits = TakeLimits { events: 50, bytes: 50_000 };
            life.core.take(self.now, consumer, limits, PATIENCE, sender, &mut answers);
            let lease = loop {
                answers.drain(..).for_each(Answer::send);
                match ticket.try_take() {
                    Ok(lease) => break lease,
                    Err(waiting) => ticket = waiting,
                }
                let reads = self.read(life, &mut answers);
                if self.is_stopped() {
                    return Ok(false);
                }
                if !reads {
                    // Nothing to read: an order wait, a disk that will be tried again, or the end, where nothing but time
                    // can come.
                    let ends = found.len() as u64 >= size;
                    self.now += if ends { PATIENCE } else { Duration::from_secs(1) };
                    life.core.tick(self.now, &mut answers);
                }
            };
            let lease = match lease {
                Ok(lease) => lease,
                Err(_) if self.armed.is_some() && failures < 3 => {
                    failures += 1;
                    self.disks.iter().filter(|_| failures > 1).for_each(SimDisk::heal);
                    continue;
                }
                Err(error) => return Err(format!("{UNREADABLE}: {error}")),
            };
            if lease.is_empty() {
                break;
            }
            for (seq, event) in lease.iter() {
                let id = event_of(event.header("id"));
                self.model.seen(id, event.body())?;
                late |= found.last().is_some_and(|(newest, _)| *newest > seq);
                found.push((seq, id));
            }
        }
        if late && life.core.stats().order_relaxed_events == 0 {
            return Err("events come late, and nobody counts them".to_owned());
        }
        found.sort_unstable();
        let found: Vec<u64> = found.into_iter().map(|(_, id)| id).collect();
        let number = |(key, note): (String, Bytes)| (key, note.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)));
        let notes: Vec<_> = life.core.notes_of(OWNER).into_iter().map(number).collect();
        self.model.compare(&found, &notes)?;
        if found.len() as u64 != size {
            return Err(format!("the channel says {size} events and has {}", found.len()));
        }
        found.iter().for_each(|event| self.report.fold(*event));
        let mut answers = Vec::new();
        life.core.drop_consumer(self.now, consumer, &mut answers);
        answers.into_iter().for_each(Answer::send);
        Ok(true)
    }

    /// Nothing fails any more: everything must be answered, come out, be settled, and leave no trace behind.
    pub fn finish(mut self) -> Result<Report, String> {
        // What could not be read before is tried again in a second, not at once.
        self.faults_happen |= self.armed.is_some();
        self.armed = None;
        self.disks.iter().for_each(SimDisk::heal);
        self.disks.iter().for_each(|disk| disk.set_capacity(UNLIMITED));
        self.stalled.fill(0);
        if self.is_stopped() {
            self.restart(3, 0);
        }
        let mut life = match self.life.take() {
            Some(life) => life,
            None => self.recover()?.ok_or("a recovery stops although nothing is armed")?,
        };
        self.goes_on_without_a_disk(&mut life)?;
        let kept_max = self.plan.dirs as u64 * self.kept_max();
        let mut quiet = 0;
        for round in 0.. {
            if round == ROUNDS_MAX {
                return Err(format!(
                    "no progress: {} puts and {} settlements wait, {} events are there, and {} bytes of segments",
                    life.puts.len(),
                    life.settles.len(),
                    life.core.stats().size_events,
                    life.core.stats().disk_bytes
                ));
            }
            self.round(&mut life, round % 8 == 0)?;
            let waits = !life.puts.is_empty() || !life.settles.is_empty() || !life.held.is_empty();
            let stats = life.core.stats();
            let idle = !waits && life.flights.is_empty() && stats.size_events == 0 && stats.disk_bytes <= kept_max;
            quiet = if idle { quiet + 1 } else { 0 };
            if quiet > 6 {
                break;
            }
        }
        self.model.nothing_is_left()?;
        let mut answers = Vec::new();
        for index in 0..self.plan.dirs {
            while self.chore(&mut life, index, &mut answers)? {}
        }
        answers.into_iter().for_each(Answer::send);
        self.no_plaintext_is_left(&life)?;
        self.life = Some(life);
        self.close()?;
        self.restart_disks(DiskOutcome::Nothing);
        self.life = self.recover()?;
        self.report.trace ^= self.disks.iter().fold(0_u64, |trace, disk| trace.rotate_left(7) ^ disk.trace());
        Ok(self.report)
    }

    /// Once a channel is encrypted, plaintext of its events is in no file but segments that still count and that an
    /// earlier life began in the clear.
    fn no_plaintext_is_left(&self, life: &Life) -> Result<(), String> {
        if !self.encrypted || life.keeps_removed {
            return Ok(());
        }
        for (dir, name) in self.disks.iter().flat_map(|disk| disk.files_with(SECRET)) {
            let index: Option<usize> = dir.strip_prefix('d').and_then(|number| number.parse().ok());
            let mut segments = index.into_iter().flat_map(|index| life.core.segments(index));
            let was_plain = |segment: &Segment| segment.incarnations.iter().any(|incarnation| !incarnation.encrypted);
            let counts = segments.any(|segment| slot_name(segment.slot) == name && was_plain(segment));
            if !counts {
                return Err(format!("plaintext of an event stays in {dir}/{name}, which was given back"));
            }
        }
        Ok(())
    }

    /// A few segments of each log hold nothing but what must outlive the others.
    fn kept_max(&self) -> u64 {
        8 * self.plan.segment_pages * 4096
    }

    /// One disk of several can no longer be read, fails altogether, or answers nothing: all that is not on it must be
    /// answered, come out and be settled, its space must come back, and what is on it must be held and said.
    fn goes_on_without_a_disk(&mut self, life: &mut Life) -> Result<(), String> {
        if self.plan.dirs == 1 || self.plan.one_device || self.root.is_some() || !self.plan.seed.is_multiple_of(2) {
            return Ok(());
        }
        let sick = (self.plan.seed / 2 % self.plan.dirs as u64) as usize;
        let how = self.plan.seed / 2 / self.plan.dirs as u64 % 3;
        self.faults_happen = true;
        if how == 2 {
            // Something is on its way to it: a note that must not wait for it, and a put that a younger one must not pass.
            let mut answers = Vec::new();
            while self.chore(life, sick, &mut answers)? {}
            let (update, note) = self.draw_note(1, 1);
            let (sender, ticket) = Ticket::pair();
            life.core.note(vec![update], sender, &mut answers);
            life.settles.push(Asked { events: Vec::new(), note: Some(note), ticket });
            self.put(life, [0, 0, 50], &mut answers);
            self.gather(life, sick, &mut answers)?;
            self.put(life, [0, 0, 50], &mut answers);
            answers.into_iter().for_each(Answer::send);
            self.stalled[sick] = u64::MAX;
        } else {
            let only = (how == 0).then_some(Operation::Read);
            let at = self.disks[sick].operations() + 1;
            self.disks[sick].inject(Fault { at, only, forever: true, failure: Failure::Errno(5) });
        }
        for round in 0.. {
            self.round(life, round % 8 == 0)?;
            let flying = life.flights.iter().map(|flight| &flight.job).chain(life.core.waiting_frames(sick));
            let (puts, in_flight) =
                flying.flat_map(|job| &job.puts).fold((0, 0), |(puts, sum), put| (puts + 1, sum + put.events()));
            let stats = life.core.stats();
            let held = stats.unavailable.iter().map(|disk| disk.events).sum::<u64>();
            let full: Vec<u64> = (0..self.plan.dirs).map(|index| life.core.disk_bytes_of(index)).collect();
            let space = full.iter().enumerate().all(|(index, bytes)| index == sick || *bytes <= self.kept_max());
            let answered = life.puts.len() <= puts && life.settles.is_empty() && life.held.is_empty();
            // What a healthy disk could not read before is tried again in a while.
            let others = |disk: &&Unavailable| disk.disk != format!("d{sick}") || disk.damaged_events > 0;
            let stranger = stats.unavailable.iter().find(others);
            if answered && stranger.is_none() && stats.size_events == held + in_flight && space {
                break;
            }
            if life.core.is_scattered() {
                // So many runs were settled around what is held that nothing more is given out: that is the limit.
                break;
            }
            if round == ROUNDS_MAX {
                return Err(format!(
                    "without disk {sick} (fault {how}) it does not go on: {} puts wait and {puts} are in flight, {} \
                     settlements wait, {} events are there, {held} are held and {in_flight} in flight, segments {full:?}, \
                     events of another are held, or called damaged: {stranger:?}",
                    life.puts.len(),
                    life.settles.len(),
                    stats.size_events,
                ));
            }
        }
        self.strikes();
        self.disks[sick].heal();
        self.stalled[sick] = 0;
        Ok(())
    }

    /// Closes the channel in order: what was accepted is durable and witnessed.
    pub(in crate::durable::simulation) fn close(&mut self) -> Result<(), String> {
        let Some(mut life) = self.life.take() else { return Ok(()) };
        let mut answers = Vec::new();
        life.core.close(&mut answers);
        answers.into_iter().for_each(Answer::send);
        for _ in 0..20 {
            if life.core.is_flushed() {
                return Ok(());
            }
            self.round(&mut life, false)?;
        }
        Err("a closed channel does not come to an end".to_owned())
    }

    /// Every file as the platter has it.
    pub(in crate::durable::simulation) fn platter(&self) -> Vec<(String, String, Vec<u8>)> {
        self.disks.iter().flat_map(SimDisk::platter).collect()
    }

    /// Changes a file behind everybody's back.
    pub(in crate::durable::simulation) fn corrupt(&self, dir: &str, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.disk_of(dir).corrupt(dir, name, change);
    }

    /// Changes bits of one byte behind everybody's back.
    pub(in crate::durable::simulation) fn flip(&self, dir: &str, name: &str, byte: usize, mask: u8) {
        self.disk_of(dir).flip(dir, name, byte, mask);
    }

    fn disk_of(&self, dir: &str) -> &SimDisk {
        let index: Option<usize> = dir.strip_prefix('d').and_then(|number| number.parse().ok());
        &self.disks[index.unwrap_or(0)]
    }

    /// False when it does not open, or says which event it cannot read; otherwise all that was promised must be there.
    pub(in crate::durable::simulation) fn opens_and_holds(&mut self) -> Result<bool, String> {
        match self.start() {
            Ok(life) => self.holds(life),
            Err(_) => Ok(false),
        }
    }

    /// The same for a channel that is open.
    pub(in crate::durable::simulation) fn holds(&mut self, mut life: Life) -> Result<bool, String> {
        match self.inspect(&mut life) {
            // A checkpoint vouched for the segment, or it changed since: frames are checked when they are read.
            Err(broken) if broken.starts_with(UNREADABLE) => Ok(false),
            other => other,
        }
    }

    /// Whether the events of this frame wait in an open channel with one directory.
    pub(in crate::durable::simulation) fn waits(&self, life: &Life, name: &str, frame: &FrameHeader) -> bool {
        let here = |segment: &Segment| slot_name(segment.slot) == name && segment.ordinal == frame.ordinal;
        let holds = |segment: &Segment| here(segment) && segment.range_around(frame.first_seq).is_some();
        frame.seq_count > 0 && life.core.is_queued(frame.first_seq) && life.core.segments(0).any(holds)
    }

    /// Lets an open channel lie, and says how many of its events are known to be damaged then.
    pub(in crate::durable::simulation) fn lies(&mut self, mut life: Life) -> u64 {
        for _ in 0..40 {
            let mut answers = Vec::new();
            self.now += Duration::from_millis(50);
            life.core.tick(self.now, &mut answers);
            self.read(&mut life, &mut answers);
            answers.into_iter().for_each(Answer::send);
        }
        life.core.stats().unavailable.iter().map(|disk| disk.damaged_events).sum()
    }

    /// Everything that can go on goes on, once.
    fn round(&mut self, life: &mut Life, checkpoint: bool) -> Result<(), String> {
        let mut answers = Vec::new();
        self.now += Duration::from_millis(100);
        life.core.tick(self.now, &mut answers);
        for index in (0..self.plan.dirs).filter(|index| self.stalled[*index] == 0).collect::<Vec<_>>() {
            while self.chore(life, index, &mut answers)? {}
            self.gather(life, index, &mut answers)?;
        }
        while life.flights.iter().any(|flight| flight.held == 0 && self.stalled[flight.job.log] == 0) {
            self.advance_write(life, 0, true, &mut answers);
        }
        if checkpoint {
            self.checkpoint(life)?;
        }
        if life.takes.is_empty() && life.core.stats().size_events > 0 {
            let (sender, ticket) = Ticket::pair();
            let limits = TakeLimits { events: 100, bytes: 100_000 };
            life.core.take(self.now, life.consumers[0], limits, Duration::from_millis(30), sender, &mut answers);
            life.takes.push((life.consumers[0], ticket));
        }
        self.read(life, &mut answers);
        answers.drain(..).for_each(Answer::send);
        self.hear(life)?;
        while !life.held.is_empty() {
            self.settle(life, [0, 3, 9], &mut answers);
            answers.drain(..).for_each(Answer::send);
        }
        self.hear(life)?;
        life.flights.iter_mut().for_each(|flight| flight.held = flight.held.saturating_sub(1));
        self.promises_of_disks()
    }
}
