//! The threads that write frames: one with a ring for each log, or, where io_uring is denied or not wanted, one for each
//! write in flight.
//!
//! Both ask the core for the next frame, seal it outside of its lock, and tell it how the write ended. The ring seals what
//! comes while the disk is busy, and writes together what has piled up when it is free: the frames stay small and the
//! writes become large. Where one flush makes many writes durable, a write has ended when the flush that covers it has:
//! `wal::flushes` says which.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, mpsc};

use wal::flushes::{Durability, FlushGroup, Flushes};
use wal::frame_writer::Workbench;
use wal::io::buffer::{Buffer, LARGE_PAGE};
use wal::io::real::Backend;
use wal::io::uring::{Ring, Written};
use wal::limits::{FRAME_TARGET, RING_MEMORY};
use wal::tuning::Tuning;

use super::job::Job;
use super::shell::{Role, Shared, wall_ms};

/// Bytes of a frame buffer, one for each thread that writes; longer frames bring their own.
const FRAME_BUFFER: usize = LARGE_PAGE;
const _: () = assert!(2 * FRAME_TARGET <= FRAME_BUFFER);

/// Starts what writes one log.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    index: usize,
    backend: Backend,
    start: &mut impl FnMut(String, Role) -> io::Result<()>,
) -> io::Result<()> {
    let Tuning { durability, depth } = shared.devices[index].tuning();
    if backend == Backend::Uring {
        let (began, begins) = mpsc::channel();
        let owner = Arc::clone(shared);
        // A ring belongs to the thread that makes it.
        let run = move || match Ring::new(depth, RING_MEMORY, durability) {
            Ok(ring) => {
                owner.writes[index].wakes(ring.alarm());
                let _somebody_listens = began.send(None);
                ring_loop(&owner, index, ring, durability);
            }
            Err(error) => {
                let _somebody_listens = began.send(Some(error));
            }
        };
        start(format!("w{index}"), Box::new(run))?;
        match begins.recv() {
            Ok(None) => return Ok(()),
            Ok(Some(error)) => {
                shared.lock().counts.rings_denied += 1;
                tracing::warn!(dir = shared.dirs[index].name(), %error, "io_uring is denied; writing with threads");
            }
            Err(_) => return Err(io::Error::other("the writer did not start")),
        }
    }
    let group = (durability == Durability::SharedFlush).then(|| Arc::new(FlushGroup::default()));
    for _ in 0..depth {
        let (shared, group) = (Arc::clone(shared), group.clone());
        start(format!("w{index}"), Box::new(move || thread_loop(&shared, index, group.as_deref())))?;
    }
    Ok(())
}

/// The next frame of a log, and whether more waits than it holds.
fn next_job(shared: &Shared, index: usize) -> Option<(Job, bool)> {
    let mut answers = Vec::new();
    let (job, chore_waits, more) = {
        let mut core = shared.lock();
        let job = core.gather(index, shared.now(), wall_ms(), &mut answers);
        (job, core.chore_waits(index), core.has_work())
    };
    answers.into_iter().for_each(super::core::Answer::send);
    if chore_waits {
        shared.chores[index].raise_one();
    }
    job.map(|job| (job, more))
}

/// Tells the core how writes ended, and whoever waits for that.
fn ended(shared: &Shared, written: impl IntoIterator<Item = (Job, io::Result<()>)>) {
    let (chore_waits, bytes) = shared.step(|core, now, answers| {
        written.into_iter().for_each(|(job, result)| core.complete(now, job, result, answers));
        ((0..shared.dirs.len()).filter(|index| core.chore_waits(*index)).collect::<Vec<_>>(), core.counts.put_bytes)
    });
    shared.durable(bytes);
    chore_waits.into_iter().for_each(|index| shared.chores[index].raise_one());
    shared.progress.raise_all();
}

fn ring_loop(shared: &Shared, index: usize, mut ring: Ring, durability: Durability) {
    let signal = &shared.writes[index];
    let mut flying = BTreeMap::new();
    let (mut written, mut bench) = (Vec::new(), Workbench::default());
    let mut flushes = Flushes::default();
    loop {
        let seen = signal.count();
        while written.is_empty()
            && let Some((job, _)) = next_job(shared, index)
        {
            let (id, file, offset) = (job.reservation.id, &job.reservation.file, job.reservation.header.offset);
            match ring.write(id, file, offset, job.stored_len(), |frame| job.seal(frame, &mut bench)) {
                Ok(()) => {
                    flying.insert(id, job);
                }
                Err(error) => ended(shared, [(job, Err(error))]),
            }
            // What waits for the disk goes there before more is made.
            ring.look(&mut written);
        }
        if flying.is_empty() && shared.is_stopping() {
            return;
        }
        if let Some(file) = flushes.begin() {
            ring.flush(file);
        }
        if written.is_empty()
            && let Err(error) = ring.wait(&mut written, || signal.count() == seen)
        {
            // What is in flight is of unknown outcome for good. Who waits for it hears that it is closed, with this thread's
            // jobs; the log owes an answer for ever, so that others are used instead.
            tracing::error!(dir = shared.dirs[index].name(), %error, "the ring of a disk is lost; restart to use it again");
            return;
        }
        if !written.is_empty() {
            let outcomes = written.drain(..).flat_map(|written| outcomes(written, &flying, &mut flushes, durability));
            let outcomes: Vec<(u64, io::Result<()>)> = outcomes.collect();
            if !outcomes.is_empty() {
                let mut job = |id| flying.remove(&id).expect("a frame ends once");
                ended(shared, outcomes.into_iter().map(|(id, result)| (job(id), result)));
            }
        }
    }
}

/// Which frames are durable, or will never be, now that a write or a flush has ended.
fn outcomes(
    Written { token, result }: Written,
    flying: &BTreeMap<u64, Job>,
    flushes: &mut Flushes,
    durability: Durability,
) -> Vec<(u64, io::Result<()>)> {
    let Some(id) = token else { return flushes.ended(result) };
    if durability == Durability::PerWrite || result.is_err() {
        return vec![(id, result)];
    }
    let reservation = &flying[&id].reservation;
    let lost = flushes.returned(id, &reservation.file, reservation.epoch).err();
    lost.map(|error| (id, Err(error))).into_iter().collect()
}

fn thread_loop(shared: &Shared, index: usize, group: Option<&FlushGroup>) {
    let signal = &shared.writes[index];
    let mut desk = Desk::default();
    loop {
        let seen = signal.count();
        let Some((job, more)) = next_job(shared, index) else {
            if shared.is_stopping() {
                return;
            }
            signal.wait(seen, None);
            continue;
        };
        if more {
            // Another thread can start on it meanwhile.
            signal.raise_one();
        }
        let result = desk.write(&job, group);
        ended(shared, [(job, result)]);
    }
}

/// Writes a frame in the thread of the producer that waits for it, on a disk where each write is durable by itself.
pub(super) fn write_here(shared: &Shared, job: Job) {
    let mut desk = shared.desk.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    let result = desk.write(&job, None);
    shared.desk.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(desk);
    ended(shared, [(job, result)]);
}

/// What a thread needs to write frames one by one.
#[derive(Default)]
pub(super) struct Desk {
    spare: Option<Buffer>,
    bench: Workbench,
}

impl Desk {
    /// Durable once this returns.
    fn write(&mut self, job: &Job, group: Option<&FlushGroup>) -> io::Result<()> {
        let len = job.stored_len();
        let kept = self.spare.take().filter(|spare| len <= spare.capacity());
        let mut frame = kept.map_or_else(|| Buffer::zeroed(len.max(FRAME_BUFFER)), Ok)?;
        frame.set_len(len);
        job.seal(&mut frame, &mut self.bench);
        let (reservation, offset) = (&job.reservation, job.reservation.header.offset);
        let result = match group {
            None => reservation.file.write_durable_at(&frame, offset),
            Some(group) => group.write(reservation.id, &reservation.file, &frame, offset, reservation.epoch),
        };
        self.spare = Some(frame).filter(|frame| frame.capacity() == FRAME_BUFFER);
        result
    }
}
