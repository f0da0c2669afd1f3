//! The bytes of one simulated file: what the platter has, what the cache shows, and which sectors differ.
//!
//! Pages are shared until written, so that copies of a whole disk are cheap and a zeroed segment costs nothing.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use super::random::Rng;
use super::{Outcome, contains};
use crate::limits::PAGE;

/// What disks write whole, at best.
const SECTOR: usize = 512;
const SECTORS: usize = PAGE / SECTOR;

type Page = Arc<[u8; PAGE]>;

static ZEROS: LazyLock<Page> = LazyLock::new(|| Arc::new([0; PAGE]));

#[derive(Debug, Default, Clone)]
pub(super) struct Inode {
    durable: Content,
    cached: Content,
    /// For each page of `cached` a bit for each sector that is not on the platter.
    dirty: Vec<u8>,
    length_dirty: bool,
    /// Pages that were made durable one by one: nothing may write there again before the file is used afresh.
    acknowledged: BTreeSet<usize>,
    /// Pages that a failed sync marked clean: syncing them again proves nothing.
    forgotten: BTreeSet<usize>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    pages: Vec<Page>,
    len: usize,
}

impl Content {
    fn grow(&mut self, len: usize) {
        self.len = self.len.max(len);
        let pages = self.len.div_ceil(PAGE);
        if self.pages.len() < pages {
            self.pages.resize(pages, Arc::clone(&ZEROS));
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        self.grow(offset + bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let (page, start) = ((offset + at) / PAGE, (offset + at) % PAGE);
            let part = &bytes[at..bytes.len().min(at + PAGE - start)];
            if part.len() == PAGE {
                let zeros = part == &ZEROS[..];
                let whole = || Arc::new(*part.first_chunk().expect("one page"));
                self.pages[page] = if zeros { Arc::clone(&ZEROS) } else { whole() };
            } else {
                Arc::make_mut(&mut self.pages[page])[start..start + part.len()].copy_from_slice(part);
            }
            at += part.len();
        }
    }

    fn read(&self, bytes: &mut [u8], offset: usize) -> usize {
        let end = self.len.min(offset + bytes.len());
        let mut at = offset.min(end);
        let from = at;
        while at < end {
            let (page, start) = (at / PAGE, at % PAGE);
            let len = (PAGE - start).min(end - at);
            bytes[at - from..at - from + len].copy_from_slice(&self.pages[page][start..start + len]);
            at += len;
        }
        end - from
    }
}

impl Inode {
    pub(super) fn len(&self) -> usize {
        self.cached.len
    }

    /// Writes through the cache. `Err` names a promise of the log that this write breaks.
    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) -> Result<(), String> {
        let pages = offset / PAGE..(offset + bytes.len()).div_ceil(PAGE);
        if offset == 0 {
            // Used afresh: nothing of an earlier use counts any more.
            self.acknowledged.clear();
            self.forgotten.clear();
        }
        let rewritten = self.acknowledged.range(pages.clone()).next().copied();
        self.length_dirty |= offset + bytes.len() > self.cached.len;
        self.cached.write(bytes, offset);
        self.dirty.resize(self.cached.pages.len(), 0);
        for page in pages {
            let first = offset.saturating_sub(page * PAGE) / SECTOR;
            let last = (offset + bytes.len() - page * PAGE).min(PAGE).div_ceil(SECTOR);
            self.dirty[page] |= (u8::MAX >> (SECTORS - last)) & (u8::MAX << first);
        }
        rewritten.map_or(Ok(()), |page| Err(format!("page {page} is written again although it was made durable")))
    }

    pub(super) fn read(&self, bytes: &mut [u8], offset: usize) -> usize {
        self.cached.read(bytes, offset)
    }

    /// Makes a range durable, as the write of a frame does. `Err` names a promise that this breaks.
    pub(super) fn sync_range(&mut self, range: Range<usize>) -> Result<(), String> {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE).min(self.dirty.len());
        self.flush(pages.clone());
        let retried = self.forgotten.range(pages.clone()).next().copied();
        self.acknowledged.extend(pages);
        retried.map_or(Ok(()), |page| Err(format!("page {page} is synced again after a failed sync")))
    }

    /// Makes all bytes durable, as the flush of many frames does, but no new length.
    pub(super) fn sync_data(&mut self) -> Result<(), String> {
        let dirty: Vec<usize> = (0..self.dirty.len()).filter(|page| self.dirty[*page] != 0).collect();
        self.flush(0..self.dirty.len());
        self.acknowledged.extend(dirty);
        self.forgotten.first().map_or(Ok(()), |page| Err(format!("page {page} is flushed again after a failed sync")))
    }

    pub(super) fn sync(&mut self) -> Result<(), String> {
        self.flush(0..self.dirty.len());
        self.durable.pages.truncate(self.cached.pages.len());
        self.durable.len = 0;
        self.durable.grow(self.cached.len);
        self.length_dirty = false;
        self.forgotten.first().map_or(Ok(()), |page| Err(format!("page {page} is synced again after a failed sync")))
    }

    fn flush(&mut self, pages: Range<usize>) {
        for page in pages {
            let sectors = std::mem::take(&mut self.dirty[page]);
            if sectors == u8::MAX {
                self.durable.grow((page + 1) * PAGE);
                self.durable.pages[page] = Arc::clone(&self.cached.pages[page]);
            } else if sectors != 0 {
                for sector in (0..SECTORS).filter(|sector| sectors & (1 << sector) != 0) {
                    self.keep_sector(page, sector, |old, new| old.copy_from_slice(new));
                }
            }
        }
    }

    fn keep_sector(&mut self, page: usize, sector: usize, change: impl FnOnce(&mut [u8], &[u8])) {
        let at = sector * SECTOR..(sector + 1) * SECTOR;
        self.durable.grow(page * PAGE + at.end);
        let new = Arc::clone(&self.cached.pages[page]);
        change(&mut Arc::make_mut(&mut self.durable.pages[page])[at.clone()], &new[at]);
    }

    /// As Linux does after a failed sync: the pages are clean, the platter never saw them.
    pub(super) fn forget_dirty(&mut self, range: Range<usize>) {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE).min(self.dirty.len());
        for page in pages {
            if std::mem::take(&mut self.dirty[page]) != 0 {
                self.forgotten.insert(page);
            }
        }
    }

    /// Clean pages show the platter again; dirty ones cannot be dropped.
    pub(super) fn drop_cache(&mut self) {
        if !self.dirty.iter().any(|sectors| *sectors != 0) {
            let len = self.cached.len;
            self.cached = self.durable.clone();
            self.cached.grow(len);
        }
    }

    /// The power goes.
    pub(super) fn meet(&mut self, outcome: Outcome, rng: &mut Rng) {
        self.forgotten.clear();
        // In some cuts nearly everything was still on its way, in others nearly nothing.
        let kept_in_8 = 1 + 3 * rng.below(3);
        for page in 0..self.dirty.len() {
            let sectors = std::mem::take(&mut self.dirty[page]);
            for sector in (0..SECTORS).filter(|sector| sectors & (1 << sector) != 0) {
                match outcome {
                    Outcome::Nothing | Outcome::ProcessKilled => {}
                    Outcome::Everything => self.keep_sector(page, sector, |old, new| old.copy_from_slice(new)),
                    Outcome::Torn(_) => match rng.below(10) {
                        8 => {
                            let cut = rng.below(SECTOR as u64) as usize;
                            self.keep_sector(page, sector, |old, new| old[..cut].copy_from_slice(&new[..cut]));
                        }
                        9 => self.keep_sector(page, sector, |old, _| {
                            for chunk in old.chunks_mut(8) {
                                chunk.copy_from_slice(&rng.number().to_le_bytes());
                            }
                        }),
                        number if number < kept_in_8 => {
                            self.keep_sector(page, sector, |old, new| old.copy_from_slice(new));
                        }
                        _ => {}
                    },
                }
            }
        }
        // The length lives for itself: a file may grow without its data.
        let torn = matches!(outcome, Outcome::Torn(_));
        if self.length_dirty && (outcome == Outcome::Everything || (torn && rng.chance(2))) {
            self.durable.grow(self.cached.len);
        }
        self.length_dirty = false;
        self.cached = self.durable.clone();
        self.dirty.clear();
        self.dirty.resize(self.cached.pages.len(), 0);
    }

    /// The machine goes on; only the process that knew of failed syncs is gone.
    pub(super) fn forgive(&mut self) {
        self.forgotten.clear();
    }

    pub(super) fn platter(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.durable.len];
        self.durable.read(&mut bytes, 0);
        bytes
    }

    /// Whether the platter has these bytes, none of which is zero.
    pub(super) fn has(&self, wanted: &[u8]) -> bool {
        let is_zero = |page: &Page| Arc::ptr_eq(page, &ZEROS);
        let mut runs = self.durable.pages.split(is_zero).filter(|run| !run.is_empty());
        runs.any(|run| {
            let mut bytes = Vec::with_capacity(run.len() * PAGE);
            run.iter().for_each(|page| bytes.extend_from_slice(&page[..]));
            contains(&bytes, wanted)
        })
    }

    pub(super) fn set_platter(&mut self, bytes: &[u8]) {
        self.durable = Content::default();
        self.durable.write(bytes, 0);
        self.show_platter();
    }

    pub(super) fn flip(&mut self, byte: usize, mask: u8) {
        Arc::make_mut(&mut self.durable.pages[byte / PAGE])[byte % PAGE] ^= mask;
        self.show_platter();
    }

    /// The cache shows what the platter has.
    fn show_platter(&mut self) {
        self.cached = self.durable.clone();
        self.dirty.clear();
        self.dirty.resize(self.cached.pages.len(), 0);
        self.length_dirty = false;
    }
}
