//! The bytes on disk, specified in `docs/format.md`: pure encoding and decoding, no I/O.
//!
//! Each structure keeps its byte table as a `LAYOUT`, which encodes, decodes and is compared with the document by a
//! test. All numbers are little-endian.

pub mod footer;
pub mod frame;
pub mod identity;
pub mod incarnation;
pub mod section;

/// The format this build writes: frozen, and held by `channel/tests/golden/`.
pub const VERSION: u16 = 1;

/// Feature bits that this build understands; a structure that needs others is refused, not guessed at.
pub const FEATURES_KNOWN: u32 = 0;

/// One field of a byte table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

impl Field {
    pub(crate) fn put(self, page: &mut [u8], bytes: &[u8]) {
        assert_eq!(bytes.len(), self.size, "field {}", self.name);
        page[self.offset..self.offset + self.size].copy_from_slice(bytes);
    }

    pub(crate) fn get(self, page: &[u8]) -> &[u8] {
        &page[self.offset..self.offset + self.size]
    }

    pub(crate) fn array<const N: usize>(self, page: &[u8]) -> [u8; N] {
        assert_eq!(self.size, N, "field {}", self.name);
        let mut array = [0; N];
        array.copy_from_slice(self.get(page));
        array
    }

    pub(crate) fn u16(self, page: &[u8]) -> u16 {
        u16::from_le_bytes(self.array(page))
    }

    pub(crate) fn u32(self, page: &[u8]) -> u32 {
        u32::from_le_bytes(self.array(page))
    }

    pub(crate) fn u64(self, page: &[u8]) -> u64 {
        u64::from_le_bytes(self.array(page))
    }
}

/// Declares the fields of a structure in order, and its `LAYOUT`. Offsets follow from the sizes.
macro_rules! layout {
    ($len:expr; $($constant:ident = $name:literal : $size:expr),+ $(,)?) => {
        layout!(@fields 0usize; $($constant = $name : $size,)+);
        /// The byte table of this structure, as `docs/format.md` prints it.
        pub const LAYOUT: &[$crate::format::Field] = &[$($constant),+];
        const _: () = {
            let last = LAYOUT[LAYOUT.len() - 1];
            assert!(last.offset + last.size == $len, "the fields fill the structure exactly");
        };
    };
    (@fields $at:expr; $constant:ident = $name:literal : $size:expr, $($rest:tt)*) => {
        const $constant: $crate::format::Field = $crate::format::Field { name: $name, offset: $at, size: $size };
        layout!(@fields $at + $size; $($rest)*);
    };
    (@fields $at:expr;) => {};
}
pub(crate) use layout;

/// Why bytes are not the structure they should be. `Version` is no damage: a newer build wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("no magic number")]
    Magic,
    #[error("checksum mismatch")]
    Checksum,
    #[error("an impossible value in field `{0}`")]
    Value(&'static str),
    #[error("intact, but written for another place")]
    Misplaced,
    #[error("format version {found} with feature bits {features:#x}; this build reads version {VERSION}")]
    Version { found: u16, features: u32 },
}

/// What a page holds, with damage kept apart from absence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classified<T> {
    /// All zeros: what allocation leaves.
    Absent,
    Present(T),
    Damaged(Damage),
}
