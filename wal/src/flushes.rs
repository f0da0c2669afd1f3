//! One flush for many writes: which writes a flush makes durable, and which none ever will.
//!
//! A write that has returned is in the disk's cache at best. [`Flushes`] keeps those that wait, says which file to flush
//! next, and whose writes are durable once that has ended. It promises three things: a flush covers only writes that had
//! returned before it was asked for; one is under way at a time; and after one has failed, nothing of its epoch is flushed
//! again, because Linux may answer the second flush well although the data is gone. It does no I/O: the ring, the threads
//! and the simulator do, each in its own way.
//!
//! ```text
//! write ─► returned ─┐            ┌─► durable
//! write ─► returned ─┴─ flush … ──┴─► durable
//!           write ─► returned ──────────┬─ flush … ─► durable      came too late for the first
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::io::File;
use crate::planted::{self, Bug};

/// When a write counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// Each write by itself: `RWF_DSYNC` with direct I/O, which is the same as a file opened with `O_DSYNC`.
    #[default]
    PerWrite,
    /// One flush for all writes that have returned.
    SharedFlush,
}

impl Durability {
    pub const ALL: [Durability; 2] = [Durability::PerWrite, Durability::SharedFlush];

    /// As commands and log lines say it.
    pub fn name(self) -> &'static str {
        match self {
            Durability::PerWrite => "per-write",
            Durability::SharedFlush => "shared-flush",
        }
    }

    /// The way that is called `name`.
    pub fn named(name: &str) -> Option<Durability> {
        Durability::ALL.into_iter().find(|durability| durability.name() == name)
    }
}

#[derive(Debug)]
struct Returned {
    token: u64,
    epoch: u64,
    file: Arc<dyn File>,
}

/// The writes of one log that wait for a flush. Tokens are the caller's.
#[derive(Debug, Default)]
pub struct Flushes {
    waiting: Vec<Returned>,
    under_way: Option<Vec<Returned>>,
    /// The newest epoch in which a flush failed.
    failed: Option<u64>,
}

impl Flushes {
    /// A write of `epoch` has returned and went well. An error means that no flush can make it durable any more.
    pub fn returned(&mut self, token: u64, file: &Arc<dyn File>, epoch: u64) -> io::Result<()> {
        if self.is_lost(epoch) {
            return Err(lost());
        }
        self.waiting.push(Returned { token, epoch, file: Arc::clone(file) });
        Ok(())
    }

    /// Begins a flush and says of which file: none while a flush is under way, or nothing waits. [`ended`](Flushes::ended) must follow.
    pub fn begin(&mut self) -> Option<Arc<dyn File>> {
        if self.under_way.is_some() {
            return None;
        }
        let file = Arc::clone(&self.waiting.first()?.file);
        let (covered, others) =
            std::mem::take(&mut self.waiting).into_iter().partition(|write| Arc::ptr_eq(&write.file, &file));
        (self.under_way, self.waiting) = (Some(covered), others);
        Some(file)
    }

    /// The flush that was under way has ended: whose writes are durable now, and whose never will be.
    ///
    /// # Panics
    /// When none was under way.
    pub fn ended(&mut self, result: io::Result<()>) -> Vec<(u64, io::Result<()>)> {
        let mut covered = self.under_way.take().expect("a flush ends once");
        let Err(error) = result else {
            if planted::is(Bug::FlushCoversLater) {
                covered.append(&mut self.waiting);
            }
            return covered.into_iter().map(|write| (write.token, Ok(()))).collect();
        };
        if !planted::is(Bug::FlushAgain) {
            self.failed = covered.iter().map(|write| write.epoch).chain(self.failed).max();
        }
        let (late, others) = std::mem::take(&mut self.waiting).into_iter().partition(|write| self.is_lost(write.epoch));
        self.waiting = others;
        let late: Vec<Returned> = late;
        let failed = covered.into_iter().map(|write| (write.token, Err(again(&error))));
        failed.chain(late.into_iter().map(|write| (write.token, Err(lost())))).collect()
    }

    fn is_lost(&self, epoch: u64) -> bool {
        self.failed.is_some_and(|failed| epoch <= failed)
    }
}

fn lost() -> io::Error {
    io::Error::other("a flush of this disk has failed")
}

fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Writers that share their flushes, each on a thread of its own: whoever finds none under way asks for the next one.
#[derive(Debug, Default)]
pub struct FlushGroup {
    state: Mutex<Group>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Group {
    flushes: Flushes,
    outcomes: BTreeMap<u64, io::Result<()>>,
}

impl FlushGroup {
    /// Writes all of `bytes` and returns when they are durable. `token` is the caller's own among all that are here.
    pub fn write(&self, token: u64, file: &Arc<dyn File>, bytes: &[u8], offset: u64, epoch: u64) -> io::Result<()> {
        file.write_at(bytes, offset)?;
        let mut state = self.lock();
        state.flushes.returned(token, file, epoch)?;
        loop {
            if let Some(outcome) = state.outcomes.remove(&token) {
                return outcome;
            }
            let Some(file) = state.flushes.begin() else {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let result = flush(&*file);
            state = self.lock();
            let ended = state.flushes.ended(result);
            state.outcomes.extend(ended);
            self.ended.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Group> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flushes `file`: what had been written to it before is durable when this returns.
pub fn flush(file: &dyn File) -> io::Result<()> {
    if planted::is(Bug::SkipDataSync) {
        return Ok(());
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::Buffer;
    use crate::io::sim::{Failure, Fault, Operation, SimDisk};
    use crate::limits::PAGE;

    fn files() -> (Arc<dyn File>, Arc<dyn File>) {
        let dir = SimDisk::default().dir("d");
        (dir.create("a").unwrap(), dir.create("b").unwrap())
    }

    fn tokens(ended: &[(u64, io::Result<()>)]) -> Vec<(u64, bool)> {
        ended.iter().map(|(token, result)| (*token, result.is_ok())).collect()
    }

    #[test]
    fn a_flush_covers_what_had_returned_before_it_was_asked_for_and_nothing_else() {
        let (file, other) = files();
        let mut flushes = Flushes::default();
        assert!(flushes.begin().is_none());
        for (token, file) in [(1, &file), (2, &other), (3, &file)] {
            flushes.returned(token, file, 0).unwrap();
        }
        assert!(Arc::ptr_eq(&flushes.begin().unwrap(), &file));
        flushes.returned(4, &file, 0).unwrap();
        assert!(flushes.begin().is_none(), "one at a time");
        assert_eq!(tokens(&flushes.ended(Ok(()))), [(1, true), (3, true)]);
        assert!(Arc::ptr_eq(&flushes.begin().unwrap(), &other));
        assert_eq!(tokens(&flushes.ended(Ok(()))), [(2, true)]);
        assert!(Arc::ptr_eq(&flushes.begin().unwrap(), &file));
        assert_eq!(tokens(&flushes.ended(Ok(()))), [(4, true)]);
        assert!(flushes.begin().is_none());
    }

    #[test]
    fn after_a_flush_has_failed_nothing_of_its_epoch_is_flushed_again() {
        let (file, other) = files();
        let mut flushes = Flushes::default();
        flushes.returned(1, &file, 5).unwrap();
        flushes.begin().unwrap();
        flushes.returned(2, &file, 5).unwrap();
        flushes.returned(3, &other, 4).unwrap();
        flushes.returned(4, &file, 6).unwrap();
        let ended = flushes.ended(Err(io::Error::from_raw_os_error(5)));
        assert_eq!(tokens(&ended), [(1, false), (2, false), (3, false)]);
        assert_eq!(ended[0].1.as_ref().unwrap_err().raw_os_error(), Some(5));
        assert!(flushes.returned(5, &file, 5).is_err());
        assert!(flushes.begin().is_some(), "the file may be used again after a probe");
        assert_eq!(tokens(&flushes.ended(Ok(()))), [(4, true)]);
    }

    #[test]
    fn a_flush_that_is_asked_for_again_is_noticed_by_the_simulated_disk() {
        for bug in [None, Some(Bug::FlushAgain)] {
            planted::plant(bug);
            let disk = SimDisk::default();
            let file = disk.dir("d").create("a").unwrap();
            let page = Buffer::zeroed(PAGE).unwrap();
            let mut flushes = Flushes::default();
            for token in [1, 2] {
                file.write_at(&page, token * PAGE as u64).unwrap();
            }
            flushes.returned(1, &file, 0).unwrap();
            let at = disk.operations() + 1;
            disk.inject(Fault { at, only: Some(Operation::Sync), forever: false, failure: Failure::Errno(5) });
            let file = flushes.begin().unwrap();
            flushes.ended(flush(&*file));
            if flushes.returned(2, &file, 0).is_ok() {
                flush(&*flushes.begin().unwrap()).unwrap();
            }
            assert_eq!(disk.broken().is_some(), bug.is_some(), "{:?}", disk.broken());
        }
        planted::plant(None);
    }

    #[test]
    fn threads_share_flushes_and_each_hears_of_its_own_write() {
        let disk = SimDisk::default();
        let file = disk.dir("d").create("a").unwrap();
        let group = FlushGroup::default();
        let page = Buffer::zeroed(PAGE).unwrap();
        let write = |token: u64| group.write(token, &file, &page, token * PAGE as u64, 0);
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8u64).map(|first| scope.spawn(move || (0..50).try_for_each(|n| write(first * 50 + n)))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        });
        assert!((1..=400).contains(&disk.syncs()));
        let at = disk.operations() + 1;
        disk.inject(Fault { at, only: Some(Operation::Sync), forever: false, failure: Failure::Errno(5) });
        assert_eq!(write(400).unwrap_err().raw_os_error(), Some(5));
        let syncs = disk.syncs();
        assert!(write(401).is_err());
        assert_eq!(disk.syncs(), syncs, "it is not asked a second time");
    }
}
