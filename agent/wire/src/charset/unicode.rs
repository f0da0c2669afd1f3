//! UTF-8, UTF-16 and UTF-32 as Java decodes and encodes them.
//!
//! The differences to the web's rules are in what is malformed and for how long: a surrogate in UTF-8 is one error of
//! three bytes, a high surrogate before something else takes that along, a reversed byte order mark is an error.

use std::borrow::Cow;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unicode {
    Utf8,
    Utf16(Order),
    Utf32(Order),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
    /// A mark at the beginning says it; without one it is big-endian.
    ByMark,
}

/// What the next bytes are.
enum Step {
    Letter(char, usize),
    Malformed(usize),
    /// More bytes are needed to say.
    CutOff,
}

impl Unicode {
    /// Decodes as far as it goes. Returns how many bytes are done with, and an error when the next are malformed.
    /// `order` is kept between pieces, and `None` at the beginning.
    pub(super) fn decode(self, bytes: &[u8], order: &mut Option<Order>, text: &mut String) -> (usize, Result<(), ()>) {
        let (mut at, known) = match order {
            Some(known) => (0, *known),
            None => match self.begin(bytes) {
                Some((skipped, found)) => {
                    *order = Some(found);
                    (skipped, found)
                }
                None => return (0, Ok(())),
            },
        };
        loop {
            if self == Unicode::Utf8 {
                at += push_valid_utf8(&bytes[at..], text);
            }
            match self.step(&bytes[at..], known) {
                Step::Letter(letter, len) => {
                    text.push(letter);
                    at += len;
                }
                Step::Malformed(_) => return (at, Err(())),
                Step::CutOff => return (at, Ok(())),
            }
        }
    }

    pub(super) fn decode_lossy(self, bytes: &[u8]) -> Cow<'_, str> {
        if self == Unicode::Utf8
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return Cow::Borrowed(text);
        }
        let (mut at, order) = self.begin(bytes).unwrap_or((0, Order::Big));
        let mut text = String::with_capacity(bytes.len());
        while at < bytes.len() {
            if self == Unicode::Utf8 {
                at += push_valid_utf8(&bytes[at..], &mut text);
            }
            match self.step(&bytes[at..], order) {
                Step::Letter(letter, len) => {
                    text.push(letter);
                    at += len;
                }
                Step::Malformed(len) => {
                    text.push('\u{fffd}');
                    at += len;
                }
                Step::CutOff => {
                    if at < bytes.len() {
                        text.push('\u{fffd}');
                    }
                    break;
                }
            }
        }
        Cow::Owned(text)
    }

    /// The byte order, and the length of the mark that says it. `None` when too little is there.
    fn begin(self, bytes: &[u8]) -> Option<(usize, Order)> {
        match self {
            Unicode::Utf8 => Some((0, Order::Big)),
            Unicode::Utf16(Order::ByMark) => Some(match bytes.get(..2)? {
                [0xfe, 0xff] => (2, Order::Big),
                [0xff, 0xfe] => (2, Order::Little),
                _ => (0, Order::Big),
            }),
            Unicode::Utf16(order) => Some((0, order)),
            Unicode::Utf32(order) => Some(match bytes.get(..4)? {
                [0, 0, 0xfe, 0xff] if order != Order::Little => (4, Order::Big),
                [0xff, 0xfe, 0, 0] if order != Order::Big => (4, Order::Little),
                _ => (0, if order == Order::Little { Order::Little } else { Order::Big }),
            }),
        }
    }

    fn step(self, bytes: &[u8], order: Order) -> Step {
        match self {
            Unicode::Utf8 => step_utf8(bytes),
            Unicode::Utf16(_) => step_utf16(bytes, order),
            Unicode::Utf32(_) => {
                let Some(&[a, b, c, d]) = bytes.get(..4) else { return Step::CutOff };
                let code = match order {
                    Order::Little => u32::from_le_bytes([a, b, c, d]),
                    Order::Big | Order::ByMark => u32::from_be_bytes([a, b, c, d]),
                };
                char::from_u32(code).map_or(Step::Malformed(4), |letter| Step::Letter(letter, 4))
            }
        }
    }

    /// Appends the bytes of `text`; `first` says that the stream begins here.
    pub(super) fn encode(self, text: &str, first: bool, bytes: &mut Vec<u8>) {
        match self {
            Unicode::Utf8 => bytes.extend_from_slice(text.as_bytes()),
            Unicode::Utf16(order) => {
                if first && order == Order::ByMark {
                    bytes.extend_from_slice(&[0xfe, 0xff]);
                }
                let little = order == Order::Little;
                bytes.extend(
                    text.encode_utf16().flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() }),
                );
            }
            // Java writes no mark here.
            Unicode::Utf32(order) => {
                let little = order == Order::Little;
                let codes = text.chars().map(u32::from);
                bytes.extend(codes.flat_map(|code| if little { code.to_le_bytes() } else { code.to_be_bytes() }));
            }
        }
    }
}

/// Appends the valid beginning of `bytes` and returns its length. `from_utf8` looks at several bytes at once where they are
/// ASCII, which `utf8_chunks` does not.
fn push_valid_utf8(bytes: &[u8], text: &mut String) -> usize {
    let valid = std::str::from_utf8(bytes)
        .unwrap_or_else(|error| std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default());
    text.push_str(valid);
    valid.len()
}

/// For bytes that do not begin with a valid character.
fn step_utf8(bytes: &[u8]) -> Step {
    let is_continuation = |byte: &u8| (0x80..0xc0).contains(byte);
    match bytes {
        [] => Step::CutOff,
        // A surrogate: Java looks at its third byte before it complains.
        [0xed, 0xa0..=0xbf] => Step::CutOff,
        [0xed, 0xa0..=0xbf, third, ..] => Step::Malformed(if is_continuation(third) { 3 } else { 2 }),
        _ => match std::str::from_utf8(bytes) {
            Ok(_) => Step::CutOff,
            Err(error) => error.error_len().map_or(Step::CutOff, Step::Malformed),
        },
    }
}

fn step_utf16(bytes: &[u8], order: Order) -> Step {
    let unit = |at: usize| {
        let pair: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
        Some(if order == Order::Little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let Some(first) = unit(0) else { return Step::CutOff };
    match first {
        0xfffe | 0xdc00..=0xdfff => Step::Malformed(2),
        0xd800..=0xdbff => match unit(2) {
            None => Step::CutOff,
            Some(second) => match char::decode_utf16([first, second]).next() {
                Some(Ok(letter)) => Step::Letter(letter, 4),
                _ => Step::Malformed(4),
            },
        },
        _ => char::from_u32(u32::from(first)).map_or(Step::Malformed(2), |letter| Step::Letter(letter, 2)),
    }
}
