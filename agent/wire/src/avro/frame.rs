//! The transport frame: a serial number and a list of pieces whose borders mean nothing.
//!
//! The decoder takes bytes as they come. What it holds grows with what has arrived, so a frame that claims 2 GiB
//! costs nothing and is refused by name; a count that would keep it busy with empty pieces is refused too.

/// One message and the number that its answer repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub serial: i32,
    pub payload: Vec<u8>,
}

/// What a sender may send. Where the limits come from is in the caller's documentation.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Most bytes of all pieces together.
    pub payload_bytes: usize,
    /// Most pieces, empty ones included.
    pub pieces: u32,
}

impl FrameLimits {
    /// Flume's writer makes at most two pieces of 2 KiB, so 2²⁰ pieces are room for a gigabyte.
    pub const PIECES: u32 = 1 << 20;
}

/// Why a connection cannot go on: after one of these nobody knows where the next frame starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {pieces} pieces; the limit is {limit}{hint}")]
    Pieces { pieces: i32, limit: u32, hint: &'static str },
    #[error("a frame has a piece of {bytes} bytes; a length is never negative")]
    NegativePiece { bytes: i32 },
    #[error("a frame of at least {bytes} bytes; the limit is {limit}")]
    TooLarge { bytes: u64, limit: usize },
}

/// Puts frames together from the bytes of one connection.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: FrameLimits,
    state: State,
    /// The header word under construction.
    word: [u8; 4],
    word_len: usize,
    serial: i32,
    /// Pieces that have not started.
    pieces_left: u32,
    /// Bytes of the current piece that have not arrived.
    piece_left: usize,
    payload: Vec<u8>,
    first_frame: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serial,
    Count,
    PieceLength,
    Piece,
}

impl FrameDecoder {
    pub fn new(limits: FrameLimits) -> FrameDecoder {
        FrameDecoder {
            limits,
            state: State::Serial,
            word: [0; 4],
            word_len: 0,
            serial: 0,
            pieces_left: 0,
            piece_left: 0,
            payload: Vec::new(),
            first_frame: true,
        }
    }

    /// Whether no byte of a frame has arrived.
    pub fn is_between_frames(&self) -> bool {
        self.state == State::Serial && self.word_len == 0
    }

    /// Bytes of the unfinished frame's payload that have arrived.
    pub fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Takes bytes off `input` until a frame is whole or `input` is empty. After an error the connection is over.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.state == State::Piece {
                let taken = self.piece_left.min(input.len());
                self.payload.extend_from_slice(&input[..taken]);
                *input = &input[taken..];
                self.piece_left -= taken;
                if self.piece_left > 0 {
                    return Ok(None);
                }
                self.state = State::PieceLength;
            }
            if self.state == State::PieceLength && self.pieces_left == 0 {
                self.state = State::Serial;
                self.first_frame = false;
                return Ok(Some(Frame { serial: self.serial, payload: std::mem::take(&mut self.payload) }));
            }
            let Some(word) = self.word(input) else { return Ok(None) };
            match self.state {
                State::Serial => {
                    self.serial = word;
                    self.state = State::Count;
                }
                State::Count => {
                    self.pieces_left = u32::try_from(word)
                        .ok()
                        .filter(|&pieces| pieces <= self.limits.pieces)
                        .ok_or_else(|| self.refused_count(word))?;
                    self.state = State::PieceLength;
                }
                State::PieceLength => {
                    let bytes = usize::try_from(word).map_err(|_| FrameError::NegativePiece { bytes: word })?;
                    if bytes > self.limits.payload_bytes - self.payload.len() {
                        let claimed = self.payload.len() as u64 + bytes as u64;
                        return Err(FrameError::TooLarge { bytes: claimed, limit: self.limits.payload_bytes });
                    }
                    self.pieces_left -= 1;
                    self.piece_left = bytes;
                    self.state = State::Piece;
                }
                State::Piece => unreachable!("pieces are read above"),
            }
        }
    }

    fn word(&mut self, input: &mut &[u8]) -> Option<i32> {
        let taken = (4 - self.word_len).min(input.len());
        self.word[self.word_len..self.word_len + taken].copy_from_slice(&input[..taken]);
        *input = &input[taken..];
        self.word_len += taken;
        if self.word_len < 4 {
            return None;
        }
        self.word_len = 0;
        Some(i32::from_be_bytes(self.word))
    }

    /// The first eight bytes of a connection that is no Avro RPC often say what it is instead.
    fn refused_count(&self, pieces: i32) -> FrameError {
        let first = self.serial.to_be_bytes();
        let zlib = first[0] == 0x78 && u16::from_be_bytes([first[0], first[1]]).is_multiple_of(31);
        let hint = match first {
            _ if !self.first_frame => "",
            _ if zlib => "; it starts like a zlib stream: set compression-type = deflate on both ends or on neither",
            [0x16, 3, ..] => "; it starts like TLS, which this end does not speak",
            [b'G', b'E', b'T', b' '] | [b'P', b'O', b'S', b'T'] => "; it starts like an HTTP request",
            _ => "",
        };
        FrameError::Pieces { pieces, limit: self.limits.pieces, hint }
    }
}

/// Appends a frame of the given pieces.
///
/// # Panics
/// When a piece is longer than 2 GiB: what is written here was cut to a smaller limit before.
pub fn put_frame(out: &mut Vec<u8>, serial: i32, pieces: &[&[u8]]) {
    out.reserve(8 + pieces.iter().map(|piece| 4 + piece.len()).sum::<usize>());
    out.extend_from_slice(&serial.to_be_bytes());
    let length = |len: usize| i32::try_from(len).expect("own frames are cut below 2 GiB");
    out.extend_from_slice(&length(pieces.len()).to_be_bytes());
    for piece in pieces {
        out.extend_from_slice(&length(piece.len()).to_be_bytes());
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: FrameLimits = FrameLimits { payload_bytes: 1000, pieces: 50 };

    fn refused(bytes: &[u8]) -> FrameError {
        FrameDecoder::new(LIMITS).feed(&mut &bytes[..]).unwrap_err()
    }

    #[test]
    fn a_frame_that_claims_two_gigabytes_is_refused_at_its_header() {
        let mut claim = vec![0, 0, 0, 1, 0, 0, 0, 1];
        claim.extend_from_slice(&i32::MAX.to_be_bytes());
        assert_eq!(refused(&claim), FrameError::TooLarge { bytes: 0x7fff_ffff, limit: 1000 });
        assert_eq!(refused(&claim).to_string(), "a frame of at least 2147483647 bytes; the limit is 1000");
        // In pieces that are small enough one by one, too.
        let mut pieces = Vec::new();
        put_frame(&mut pieces, 1, &[&[0; 900], &[0; 101]]);
        assert_eq!(refused(&pieces), FrameError::TooLarge { bytes: 1001, limit: 1000 });
    }

    #[test]
    fn impossible_counts_and_lengths_are_refused() {
        assert!(matches!(refused(&[0xff; 8]), FrameError::Pieces { pieces: -1, .. }));
        assert!(matches!(refused(&[0, 0, 0, 1, 0, 0, 0, 51]), FrameError::Pieces { pieces: 51, limit: 50, .. }));
        let negative = [0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xfe];
        assert_eq!(refused(&negative), FrameError::NegativePiece { bytes: -2 });
    }

    #[test]
    fn another_protocol_is_named_when_its_first_bytes_give_it_away() {
        for (bytes, word) in [
            (&[0x78, 0x9c, 0x63, 0x60, 0x60, 0x60, 0x64, 0x60][..], "compression-type"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01", "TLS"),
            (b"GET / HTTP/1.1\r\n", "HTTP"),
        ] {
            assert!(refused(bytes).to_string().contains(word), "{}", refused(bytes));
        }
    }

    #[test]
    fn a_frame_without_pieces_is_a_frame() {
        let frame = FrameDecoder::new(LIMITS).feed(&mut &[0, 0, 0, 9, 0, 0, 0, 0][..]);
        assert_eq!(frame, Ok(Some(Frame { serial: 9, payload: Vec::new() })));
    }

    proptest! {
        #[test]
        fn frames_come_back_whatever_the_borders_of_reads_and_pieces(
            frames in proptest::collection::vec(
                (any::<i32>(), proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6)), 0..5),
            step in 1_usize..30,
        ) {
            let mut sent = Vec::new();
            let mut expected = Vec::new();
            for (serial, pieces) in &frames {
                let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
                put_frame(&mut sent, *serial, &pieces);
                expected.push(Frame { serial: *serial, payload: pieces.concat() });
            }
            let mut decoder = FrameDecoder::new(LIMITS);
            let mut found = Vec::new();
            for mut chunk in sent.chunks(step) {
                while let Some(frame) = decoder.feed(&mut chunk).unwrap() {
                    found.push(frame);
                }
                prop_assert!(chunk.is_empty());
            }
            prop_assert_eq!(found, expected);
            prop_assert!(decoder.is_between_frames());
        }
    }
}
