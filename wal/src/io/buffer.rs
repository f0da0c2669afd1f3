//! Page-aligned memory for direct I/O: anonymous maps, so no `unsafe` and no allocator tricks.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::limits::pages;

/// Page-aligned bytes. The capacity is whole pages; the length in use is set by the owner.
pub struct Buffer {
    map: MmapMut,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer of `len` bytes, in use from the start.
    pub fn zeroed(len: usize) -> io::Result<Buffer> {
        Ok(Buffer { map: MmapMut::map_anon(pages(len.max(1)))?, len })
    }

    pub fn capacity(&self) -> usize {
        self.map.len()
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
        &self.map[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}

impl fmt::Debug for Buffer {
    // The bytes are somebody's events.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}
