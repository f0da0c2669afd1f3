//! Page-aligned memory for direct I/O: anonymous maps, so no `unsafe` and no allocator tricks.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::limits::{PAGE, pages};

/// From here on a map of its own is cheaper than a page of slack; below, the kernel would be asked too often.
const MAP_FROM: usize = 128 << 10;
/// A page as large as the machine can have it. A disk is told where each page of a transfer is and takes only so many at a time
/// (a virtio disk 254): what lies in one large page goes in one piece, and on such a disk nearly twice as fast.
pub const LARGE_PAGE: usize = 2 << 20;
/// From here on that is worth the rest of the page.
const LARGE_FROM: usize = LARGE_PAGE / 2;

/// Page-aligned bytes. The capacity is whole pages, from a mebibyte on large ones; the length in use is set by the owner.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Map(MmapMut),
    /// Heap bytes with a page of slack; the aligned part starts at `offset`.
    Heap {
        bytes: Vec<u8>,
        offset: usize,
    },
}

impl Buffer {
    /// A zeroed buffer of `len` bytes, in use from the start.
    pub fn zeroed(len: usize) -> io::Result<Buffer> {
        let capacity = if len >= LARGE_FROM { len.next_multiple_of(LARGE_PAGE) } else { pages(len.max(1)) };
        let memory = if capacity >= MAP_FROM {
            let map = MmapMut::map_anon(capacity)?;
            #[cfg(target_os = "linux")]
            if capacity >= LARGE_PAGE
                && let Err(error) = map.advise(memmap2::Advice::HugePage)
            {
                tracing::debug!(%error, "memory in small pages");
            }
            Memory::Map(map)
        } else {
            let bytes = vec![0; capacity + PAGE];
            let offset = bytes.as_ptr().align_offset(PAGE);
            Memory::Heap { bytes, offset }
        };
        Ok(Buffer { memory, len })
    }

    pub(super) fn empty() -> Buffer {
        Buffer { memory: Memory::Heap { bytes: vec![0; PAGE], offset: 0 }, len: 0 }
    }

    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Map(map) => map.len(),
            Memory::Heap { bytes, .. } => bytes.len() - PAGE,
        }
    }

    /// Sets the length in use.
    ///
    /// # Panics
    /// When it is beyond the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Map(map) => &map[..self.len],
            Memory::Heap { bytes, offset } => &bytes[*offset..*offset + self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Map(map) => &mut map[..self.len],
            Memory::Heap { bytes, offset } => &mut bytes[*offset..*offset + self.len],
        }
    }
}

impl fmt::Debug for Buffer {
    // The bytes are somebody's events.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_starts_at_a_page_and_is_zeroed() {
        for len in [1, PAGE, PAGE + 1, MAP_FROM, MAP_FROM + 1, LARGE_FROM, LARGE_PAGE + 1] {
            let buffer = Buffer::zeroed(len).unwrap();
            assert_eq!(buffer.as_ptr().align_offset(PAGE), 0);
            assert!(buffer.len() == len && buffer.capacity() >= len && buffer.iter().all(|&byte| byte == 0));
        }
    }
}
