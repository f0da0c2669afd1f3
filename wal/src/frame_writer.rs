//! Makes a frame of its parts, in memory that the disk reads next.
//!
//! Every byte is touched once while it is in the cache: checksum, then past the caches to its place. Encryption works in
//! place, so it has a place of its own, which stays in the cache from frame to frame.

use crate::checksum::crc32c_append;
use crate::format::frame::{self, FrameHeader};
use crate::io::pour::pour;
use crate::limits::PAGE;
use crate::seal::FrameKey;

/// So much is read twice, by the checksum and by the copy, and comes from the nearest cache the second time.
const BLOCK: usize = 16 << 10;
const PLAINTEXT_KEPT: usize = 1 << 20;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// A frame under construction: append its sections, then finish it.
pub struct FrameWriter<'a> {
    header: &'a FrameHeader,
    key: Option<&'a FrameKey>,
    plaintext: &'a mut Vec<u8>,
    frame: &'a mut [u8],
    at: usize,
    checksum: u32,
}

impl<'a> FrameWriter<'a> {
    /// `frame` is as long as the frame on disk, with anything in it. `plaintext` is where encryption works: keep it from
    /// frame to frame.
    ///
    /// # Panics
    /// When `frame` has another length than the header says.
    pub fn new(
        header: &'a FrameHeader,
        key: Option<&'a FrameKey>,
        plaintext: &'a mut Vec<u8>,
        frame: &'a mut [u8],
    ) -> FrameWriter<'a> {
        assert_eq!(frame.len(), header.stored_len as usize);
        plaintext.clear();
        // After a frame of unusual length.
        plaintext.shrink_to(PLAINTEXT_KEPT);
        FrameWriter { header, key, plaintext, frame, at: frame::HEADER, checksum: 0 }
    }

    /// The next bytes of the body.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.key.is_some() {
            self.plaintext.extend_from_slice(bytes);
        } else {
            self.store(bytes);
        }
    }

    fn store(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BLOCK) {
            self.checksum = crc32c_append(self.checksum, block);
            pour(&mut self.frame[self.at..self.at + block.len()], block);
            self.at += block.len();
        }
    }

    /// Encrypts, pads and sums up.
    ///
    /// # Panics
    /// When the body is not as long as the header says.
    pub fn finish(mut self) {
        let mut head = [0; frame::HEADER];
        self.header.encode_into(&mut head);
        let body_end = frame::HEADER + self.header.body_len as usize;
        if let Some(key) = self.key {
            let mut sealed = std::mem::take(self.plaintext);
            let tag = key.seal(self.header.number, &head[..frame::AUTHENTICATED], &mut sealed);
            self.store(&sealed);
            assert_eq!(self.at, body_end, "the body is as long as it was reserved");
            self.store(&tag);
            *self.plaintext = sealed;
        } else {
            assert_eq!(self.at, body_end, "the body is as long as it was reserved");
        }
        self.store(&ZEROS[..self.frame.len() - self.at]);
        FrameHeader::seal_header(&mut head, self.checksum);
        self.frame[..frame::HEADER].copy_from_slice(&head);
    }
}
