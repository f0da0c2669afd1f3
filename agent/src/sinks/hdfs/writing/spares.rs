//! Buffers that were written, kept for what comes next.
//!
//! A busy file fills one buffer while the other is on its way to the store. Memory that is given back and asked for again
//! costs a page fault for each 4 KiB, a quarter of what a sink of 8 MiB buffers did; so these two alternate. Promises that
//! few are kept, none that is small or huge, and none while no events come.

/// What `hdfs.maxLeasedBytes` by itself allows in parts of `hdfs.syncBytes`.
const KEPT_MAX: usize = 8;

/// Less than this costs little to be made anew.
const BYTES_MIN: usize = 1 << 20;

/// What a slow store let grow beyond this goes back to the system. Four times what `hdfs.syncBytes` is by itself: a vector
/// doubles, and events come while the buffer before is written.
const BYTES_MAX: usize = 32 << 20;

#[derive(Default)]
pub(super) struct Spares(Vec<Vec<u8>>);

impl Spares {
    /// Keeps an empty buffer, if it is worth it.
    pub(super) fn put(&mut self, buffer: Vec<u8>) {
        assert!(buffer.is_empty(), "what is kept is memory and no events");
        if self.0.len() < KEPT_MAX && (BYTES_MIN..=BYTES_MAX).contains(&buffer.capacity()) {
            self.0.push(buffer);
        }
    }

    /// An empty buffer, kept or new.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_kept_and_none_that_is_small_or_huge() {
        let mut spares = Spares::default();
        for bytes in [0, BYTES_MIN - 1, BYTES_MAX + 1] {
            spares.put(Vec::with_capacity(bytes));
            assert_eq!(spares.take().capacity(), 0, "{bytes}");
        }
        for _ in 0..2 * KEPT_MAX {
            spares.put(Vec::with_capacity(BYTES_MIN));
        }
        let kept = (0..2 * KEPT_MAX).filter(|_| spares.take().capacity() == BYTES_MIN).count();
        assert_eq!(kept, KEPT_MAX);
    }
}
