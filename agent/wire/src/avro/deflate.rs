//! `compression-type = deflate`: one zlib stream for each direction, for the life of a connection.
//!
//! The inflater hands out at most what it is asked for, so that the frame decoder behind it can refuse a frame before
//! the frame is in memory. It also refuses what only an attack looks like: a long run that shrank by more than any
//! log does. zlib itself cannot shrink by more than 1,032.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Why a stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    #[error("the bytes are no zlib stream; set compression-type = deflate on both ends or on neither ({0})")]
    NotZlib(String),
    #[error("the zlib stream has ended, which it never does while a connection lasts")]
    Ended,
    #[error("{inflated} bytes came out of {deflated}; more than {limit} for one is refused", limit = Inflater::RATIO_MAX)]
    Bomb { inflated: u64, deflated: u64 },
}

/// The receiving direction.
pub struct Inflater {
    stream: Decompress,
    /// `stream`'s counters when the current run began.
    run_start: (u64, u64),
    ended: bool,
}

impl Inflater {
    /// Runs up to this long may shrink as far as zlib can: a batch of equal events is no attack.
    const RUN_BYTES_FREE: u64 = 16 << 20;
    /// Beyond it, a run may have shrunk to no less than this part of itself.
    pub const RATIO_MAX: u64 = 500;

    pub fn new() -> Inflater {
        Inflater { stream: Decompress::new(true), run_start: (0, 0), ended: false }
    }

    /// Takes bytes off `input` and appends at most `limit` bytes to `out`. When it appends fewer, `input` is empty and
    /// nothing is left inside.
    pub fn inflate(&mut self, input: &mut &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), InflateError> {
        let mut left = limit;
        while left > 0 {
            if self.ended {
                return if input.is_empty() { Ok(()) } else { Err(InflateError::Ended) };
            }
            let before = (self.stream.total_in(), self.stream.total_out());
            let mut room = [0; 8192];
            let asked = left.min(room.len());
            let status = self
                .stream
                .decompress(input, &mut room[..asked], FlushDecompress::Sync)
                .map_err(|error| InflateError::NotZlib(error.to_string()))?;
            let taken = (self.stream.total_in() - before.0) as usize;
            let made = (self.stream.total_out() - before.1) as usize;
            *input = &input[taken..];
            out.extend_from_slice(&room[..made]);
            left -= made;
            self.check_ratio()?;
            match status {
                Status::StreamEnd => self.ended = true,
                Status::Ok | Status::BufError if made < asked && input.is_empty() => return Ok(()),
                // Neither taken nor made: the next call would do the same.
                Status::Ok | Status::BufError if taken == 0 && made == 0 => return Ok(()),
                Status::Ok | Status::BufError => {}
            }
        }
        Ok(())
    }

    /// Starts the next run: a frame is whole, and what it shrank to no longer counts.
    pub fn frame_done(&mut self) {
        self.run_start = (self.stream.total_in(), self.stream.total_out());
    }

    fn check_ratio(&self) -> Result<(), InflateError> {
        let deflated = self.stream.total_in() - self.run_start.0;
        let inflated = self.stream.total_out() - self.run_start.1;
        if inflated > Inflater::RUN_BYTES_FREE && inflated / Inflater::RATIO_MAX > deflated {
            return Err(InflateError::Bomb { inflated, deflated });
        }
        Ok(())
    }
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater::new()
    }
}

/// The sending direction.
pub struct Deflater {
    stream: Compress,
}

impl Deflater {
    /// What Flume's server uses, whatever its clients use.
    pub const SERVER_LEVEL: u32 = 6;

    /// A stream at `level`, 0 (none) to 9 (best).
    pub fn new(level: u32) -> Deflater {
        Deflater { stream: Compress::new(Compression::new(level.min(9)), true) }
    }

    /// Appends `input`, flushed, so that the peer can inflate all of it.
    pub fn deflate(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let mut rest = input;
        loop {
            out.reserve(rest.len() / 2 + 64);
            let before = self.stream.total_in();
            // Compressing from memory into a vector that can grow has no way to fail.
            let status = self.stream.compress_vec(rest, out, FlushCompress::Sync);
            assert!(status.is_ok(), "deflate refused plain bytes: {status:?}");
            rest = &rest[(self.stream.total_in() - before) as usize..];
            // Room left over means that the flush is complete, too.
            if rest.is_empty() && out.len() < out.capacity() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inflate_all(inflater: &mut Inflater, mut input: &[u8]) -> Result<Vec<u8>, InflateError> {
        let mut out = Vec::new();
        loop {
            let before = out.len();
            inflater.inflate(&mut input, &mut out, 1000)?;
            if out.len() - before < 1000 {
                return Ok(out);
            }
        }
    }

    #[test]
    fn each_write_is_flushed_and_the_first_byte_is_zlibs() {
        let mut sent = Vec::new();
        let mut deflater = Deflater::new(6);
        deflater.deflate(b"hello", &mut sent);
        assert_eq!(sent[0], 0x78);
        assert!(sent.ends_with(&[0, 0, 0xff, 0xff]), "{sent:x?}");
        let mut inflater = Inflater::new();
        assert_eq!(inflate_all(&mut inflater, &sent).unwrap(), b"hello");
        sent.clear();
        deflater.deflate(b"hello again", &mut sent);
        assert_eq!(inflate_all(&mut inflater, &sent).unwrap(), b"hello again");
    }

    #[test]
    fn a_step_never_makes_more_than_it_was_asked_for() {
        let mut sent = Vec::new();
        Deflater::new(9).deflate(&vec![b'z'; 3_000_000], &mut sent);
        assert!(sent.len() < 10_000);
        let (mut inflater, mut input, mut made) = (Inflater::new(), &sent[..], 0);
        loop {
            let mut out = Vec::new();
            inflater.inflate(&mut input, &mut out, 777).unwrap();
            made += out.len();
            if out.len() < 777 {
                break;
            }
            assert_eq!(out.len(), 777);
        }
        assert_eq!((made, input.len()), (3_000_000, 0));
    }

    #[test]
    fn a_bomb_is_refused_and_equal_events_are_not() {
        let mut deflater = Deflater::new(9);
        let mut inflater = Inflater::new();
        let mebibyte = vec![0; 1 << 20];
        let mut send = |inflater: &mut Inflater, done: bool| {
            let mut sent = Vec::new();
            deflater.deflate(&mebibyte, &mut sent);
            let result = inflate_all(inflater, &sent).map(|made| made.len());
            if done {
                inflater.frame_done();
            }
            result
        };
        for _ in 0..100 {
            assert_eq!(send(&mut inflater, true), Ok(1 << 20));
        }
        for _ in 0..16 {
            assert_eq!(send(&mut inflater, false), Ok(1 << 20));
        }
        assert!(matches!(send(&mut inflater, false), Err(InflateError::Bomb { .. })));
    }

    #[test]
    fn plain_bytes_and_an_ended_stream_are_named() {
        let plain = [0, 0, 0, 1, 0, 0, 0, 2];
        assert!(matches!(inflate_all(&mut Inflater::new(), &plain), Err(InflateError::NotZlib(_))));
        let mut ended = Vec::new();
        let mut stream = Compress::new(Compression::new(6), true);
        ended.reserve(100);
        stream.compress_vec(b"bye", &mut ended, FlushCompress::Finish).unwrap();
        let mut inflater = Inflater::new();
        assert_eq!(inflate_all(&mut inflater, &ended).unwrap(), b"bye");
        assert_eq!(inflate_all(&mut inflater, b"more"), Err(InflateError::Ended));
    }

    proptest! {
        #[test]
        fn writes_come_back_whatever_the_borders_of_reads(
            writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..6),
            level in 0_u32..10,
            step in 1_usize..500,
        ) {
            let (mut deflater, mut inflater) = (Deflater::new(level), Inflater::new());
            let mut sent = Vec::new();
            for write in &writes {
                deflater.deflate(write, &mut sent);
            }
            let mut found = Vec::new();
            for chunk in sent.chunks(step) {
                found.extend(inflate_all(&mut inflater, chunk).unwrap());
            }
            prop_assert_eq!(found, writes.concat());
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_inflated_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut zlib = vec![0x78, 0x9c];
            zlib.extend(bytes);
            drop(inflate_all(&mut Inflater::new(), &zlib));
        }
    }
}
