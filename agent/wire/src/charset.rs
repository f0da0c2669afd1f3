//! Character sets by their Java names: what text a byte stream is, and what bytes a text becomes.
//!
//! Flume hands the name of a configured or announced charset to `java.nio.charset`; a name that works there works
//! here, with the same text for the same bytes, for the sets of [`Charset::names`]. A streaming [`Decoder`] stops at
//! malformed bytes and says so (Java's REPORT); [`Charset::decode_lossy`] puts U+FFFD in their place, as Java's readers
//! do (REPLACE), with as many of them as Java puts. Unicode forms, ISO 8859-1 and ASCII are decoded here, since they
//! differ from the rules of the web that `encoding_rs` follows; the others are tables of `encoding_rs`. Compared with
//! OpenJDK 17 over all sequences of one and two bytes: the single-byte sets are equal (KOI8-U but for two letters), the
//! Asian ones read what Java reads and more (vendors' extensions), Big5 with some 260 other letters.

use std::borrow::Cow;

use encoding_rs::{DecoderResult, Encoding};

mod unicode;

use unicode::{Order, Unicode};

/// A set of characters with its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charset {
    name: &'static str,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Ascii,
    Latin1,
    /// Latin-1 with six Turkish letters, ISO 8859-9.
    Latin5,
    Unicode(Unicode),
    Table(&'static Encoding),
    /// As a table, but bytes that the vendor left undefined are malformed and not control characters.
    VendorTable(&'static Encoding),
    /// As a table, with the punctuation of the JIS standards where Microsoft's and the web's differ.
    JisTable(&'static Encoding),
}

/// What `encoding_rs` reads, and what Java reads under the names Shift_JIS and EUC-JP.
const JIS_LETTERS: [(char, char); 7] = [
    ('\u{2015}', '\u{2014}'),
    ('\u{ff5e}', '\u{301c}'),
    ('\u{2225}', '\u{2016}'),
    ('\u{ff0d}', '\u{2212}'),
    ('\u{ffe0}', '\u{a2}'),
    ('\u{ffe1}', '\u{a3}'),
    ('\u{ffe2}', '\u{ac}'),
];

struct Named {
    charset: Charset,
    aliases: &'static [&'static str],
}

const fn named(name: &'static str, form: Form, aliases: &'static [&'static str]) -> Named {
    Named { charset: Charset { name, form }, aliases }
}

/// Java's canonical names, and the aliases in use.
static CHARSETS: &[Named] = &[
    named("UTF-8", Form::Unicode(Unicode::Utf8), &["UTF8", "unicode-1-1-utf-8"]),
    named("UTF-16", Form::Unicode(Unicode::Utf16(Order::ByMark)), &["UTF_16", "utf16", "unicode", "UnicodeBig"]),
    named(
        "UTF-16BE",
        Form::Unicode(Unicode::Utf16(Order::Big)),
        &["UTF_16BE", "ISO-10646-UCS-2", "X-UTF-16BE", "UnicodeBigUnmarked"],
    ),
    named(
        "UTF-16LE",
        Form::Unicode(Unicode::Utf16(Order::Little)),
        &["UTF_16LE", "X-UTF-16LE", "UnicodeLittleUnmarked"],
    ),
    named("UTF-32", Form::Unicode(Unicode::Utf32(Order::ByMark)), &["UTF_32", "UTF32", "ISO-10646-UCS-4"]),
    named("UTF-32BE", Form::Unicode(Unicode::Utf32(Order::Big)), &["UTF_32BE", "X-UTF-32BE"]),
    named("UTF-32LE", Form::Unicode(Unicode::Utf32(Order::Little)), &["UTF_32LE", "X-UTF-32LE"]),
    named(
        "US-ASCII",
        Form::Ascii,
        &[
            "ASCII",
            "ISO646-US",
            "us",
            "cp367",
            "IBM367",
            "646",
            "ANSI_X3.4-1968",
            "ANSI_X3.4-1986",
            "iso-ir-6",
            "csASCII",
        ],
    ),
    named(
        "ISO-8859-1",
        Form::Latin1,
        &[
            "ISO8859_1",
            "ISO_8859-1",
            "ISO_8859_1",
            "ISO8859-1",
            "latin1",
            "l1",
            "8859_1",
            "819",
            "cp819",
            "IBM819",
            "IBM-819",
            "iso-ir-100",
            "csISOLatin1",
        ],
    ),
    named(
        "ISO-8859-2",
        Form::Table(&encoding_rs::ISO_8859_2_INIT),
        &["ISO8859_2", "ISO8859-2", "latin2", "l2", "8859_2"],
    ),
    named(
        "ISO-8859-4",
        Form::Table(&encoding_rs::ISO_8859_4_INIT),
        &["ISO8859_4", "ISO8859-4", "latin4", "l4", "8859_4"],
    ),
    named(
        "ISO-8859-5",
        Form::Table(&encoding_rs::ISO_8859_5_INIT),
        &["ISO8859_5", "ISO8859-5", "cyrillic", "8859_5", "cp915"],
    ),
    named("ISO-8859-9", Form::Latin5, &["ISO8859_9", "ISO8859-9", "latin5", "l5", "8859_9", "cp920"]),
    named("ISO-8859-13", Form::Table(&encoding_rs::ISO_8859_13_INIT), &["ISO8859_13", "ISO8859-13", "8859_13"]),
    named(
        "ISO-8859-15",
        Form::Table(&encoding_rs::ISO_8859_15_INIT),
        &["ISO8859_15", "ISO8859-15", "Latin9", "Latin-9", "L9", "8859_15", "cp923", "csISOlatin9"],
    ),
    named("windows-1250", Form::VendorTable(&encoding_rs::WINDOWS_1250_INIT), &["cp1250"]),
    named("windows-1251", Form::VendorTable(&encoding_rs::WINDOWS_1251_INIT), &["cp1251", "ansi-1251"]),
    named("windows-1252", Form::VendorTable(&encoding_rs::WINDOWS_1252_INIT), &["cp1252", "ibm-1252", "ibm1252"]),
    named("windows-1253", Form::VendorTable(&encoding_rs::WINDOWS_1253_INIT), &["cp1253"]),
    named("windows-1254", Form::VendorTable(&encoding_rs::WINDOWS_1254_INIT), &["cp1254"]),
    named("windows-1257", Form::VendorTable(&encoding_rs::WINDOWS_1257_INIT), &["cp1257"]),
    named("KOI8-R", Form::Table(&encoding_rs::KOI8_R_INIT), &["koi8_r", "koi8", "cskoi8r"]),
    named("KOI8-U", Form::Table(&encoding_rs::KOI8_U_INIT), &["koi8_u"]),
    named("IBM866", Form::Table(&encoding_rs::IBM866_INIT), &["cp866", "ibm-866", "866", "csIBM866"]),
    named("windows-31j", Form::Table(&encoding_rs::SHIFT_JIS_INIT), &["MS932", "windows-932", "csWindows31J"]),
    named(
        "Shift_JIS",
        Form::JisTable(&encoding_rs::SHIFT_JIS_INIT),
        &["sjis", "shift-jis", "ms_kanji", "x-sjis", "csShiftJIS"],
    ),
    named("EUC-JP", Form::JisTable(&encoding_rs::EUC_JP_INIT), &["eucjp", "euc_jp", "x-euc-jp", "x-eucjp"]),
    named("GBK", Form::Table(&encoding_rs::GBK_INIT), &["CP936", "windows-936"]),
    named("GB2312", Form::Table(&encoding_rs::GBK_INIT), &["euc-cn", "euc_cn", "euccn", "gb2312-80", "x-EUC-CN"]),
    named("GB18030", Form::Table(&encoding_rs::GB18030_INIT), &["gb18030-2000"]),
    named("Big5", Form::Table(&encoding_rs::BIG5_INIT), &["csBig5"]),
    named("EUC-KR", Form::Table(&encoding_rs::EUC_KR_INIT), &["euckr", "euc_kr", "ksc5601", "ks_c_5601-1987", "5601"]),
];

/// Bytes that are no text in this charset. What came before them was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0} text")]
pub struct Malformed(pub &'static str);

impl Charset {
    pub const UTF_8: Charset = Charset { name: "UTF-8", form: Form::Unicode(Unicode::Utf8) };
    pub const UTF_16: Charset = Charset { name: "UTF-16", form: Form::Unicode(Unicode::Utf16(Order::ByMark)) };
    pub const UTF_32: Charset = Charset { name: "UTF-32", form: Form::Unicode(Unicode::Utf32(Order::ByMark)) };

    /// The charset of a Java name or alias, in any case.
    pub fn for_name(name: &str) -> Option<Charset> {
        let name = name.trim();
        let is_named = |named: &&Named| {
            named.charset.name.eq_ignore_ascii_case(name)
                || named.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
        };
        CHARSETS.iter().find(is_named).map(|named| named.charset)
    }

    /// The canonical names, for messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CHARSETS.iter().map(|named| named.charset.name)
    }

    pub fn name(self) -> &'static str {
        self.name
    }

    pub fn decoder(self) -> Decoder {
        let table = match self.form {
            Form::Table(encoding) | Form::VendorTable(encoding) | Form::JisTable(encoding) => {
                Some(encoding.new_decoder_without_bom_handling())
            }
            Form::Ascii | Form::Latin1 | Form::Latin5 | Form::Unicode(_) => None,
        };
        Decoder { charset: self, table, order: None, pending: Vec::new() }
    }

    pub fn encoder(self) -> Encoder {
        Encoder { charset: self, started: false }
    }

    /// The bytes of `text`, as `String.getBytes(charset)`.
    pub fn encode<'a>(self, text: &'a str) -> Cow<'a, [u8]> {
        if self == Charset::UTF_8 {
            return Cow::Borrowed(text.as_bytes());
        }
        let mut bytes = Vec::new();
        self.encoder().encode(text, &mut bytes);
        Cow::Owned(bytes)
    }

    /// The text of `bytes`, with U+FFFD where they are malformed, as a Java reader gives it.
    pub fn decode_lossy(self, bytes: &[u8]) -> Cow<'_, str> {
        match self.form {
            Form::Unicode(unicode) => unicode.decode_lossy(bytes),
            Form::Ascii | Form::Latin1 | Form::Latin5 => {
                Cow::Owned(bytes.iter().map(|byte| self.single_byte(*byte).unwrap_or('\u{fffd}')).collect())
            }
            Form::Table(encoding) | Form::VendorTable(encoding) => encoding.decode_without_bom_handling(bytes).0,
            Form::JisTable(encoding) => {
                let text = encoding.decode_without_bom_handling(bytes).0;
                Cow::Owned(text.chars().map(to_jis).collect())
            }
        }
    }

    /// For the forms decoded byte by byte.
    fn single_byte(self, byte: u8) -> Option<char> {
        match (self.form, byte) {
            (Form::Ascii, 0x80..) => None,
            (Form::Latin5, _) => Some(match byte {
                0xd0 => 'Ğ',
                0xdd => 'İ',
                0xde => 'Ş',
                0xf0 => 'ğ',
                0xfd => 'ı',
                0xfe => 'ş',
                _ => char::from(byte),
            }),
            _ => Some(char::from(byte)),
        }
    }

    fn single_byte_of(self, letter: char) -> u8 {
        let all = if self.form == Form::Ascii { 0..=0x7f } else { 0..=0xff };
        all.rev().find(|byte| self.single_byte(*byte) == Some(letter)).unwrap_or(b'?')
    }
}

/// Decodes a stream in pieces, whose borders may be anywhere.
pub struct Decoder {
    charset: Charset,
    table: Option<encoding_rs::Decoder>,
    /// Of a Unicode form, once its beginning was seen.
    order: Option<Order>,
    /// The beginning of a character whose end is not there yet: at most three bytes, plus those of the piece.
    pending: Vec<u8>,
}

impl Decoder {
    /// Appends the text of `bytes` to `text`. After an error nothing more can be decoded.
    pub fn decode(&mut self, bytes: &[u8], text: &mut String) -> Result<(), Malformed> {
        let malformed = Malformed(self.charset.name);
        match self.charset.form {
            Form::Ascii | Form::Latin1 | Form::Latin5 => {
                for byte in bytes {
                    text.push(self.charset.single_byte(*byte).ok_or(malformed)?);
                }
                Ok(())
            }
            Form::Unicode(unicode) if self.pending.is_empty() => {
                let (used, outcome) = unicode.decode(bytes, &mut self.order, text);
                self.pending.extend_from_slice(&bytes[used..]);
                outcome.map_err(|()| malformed)
            }
            Form::Unicode(unicode) => {
                self.pending.extend_from_slice(bytes);
                let (used, outcome) = unicode.decode(&self.pending, &mut self.order, text);
                self.pending.drain(..used);
                outcome.map_err(|()| malformed)
            }
            Form::Table(_) => self.decode_table(bytes, text),
            Form::JisTable(_) => {
                let start = text.len();
                let outcome = self.decode_table(bytes, text);
                let decoded: String = text.drain(start..).map(to_jis).collect();
                text.push_str(&decoded);
                outcome
            }
            Form::VendorTable(_) => {
                let start = text.len();
                let outcome = self.decode_table(bytes, text);
                match text[start..].find(|letter| matches!(letter, '\u{80}'..='\u{9f}')) {
                    Some(undefined) => {
                        text.truncate(start + undefined);
                        Err(malformed)
                    }
                    None => outcome,
                }
            }
        }
    }

    fn decode_table(&mut self, bytes: &[u8], text: &mut String) -> Result<(), Malformed> {
        let Some(decoder) = &mut self.table else { return Err(Malformed(self.charset.name)) };
        let mut rest = bytes;
        loop {
            // An unknown length means that it would not fit the address space; any room then starts the loop.
            text.reserve(decoder.max_utf8_buffer_length_without_replacement(rest.len()).unwrap_or(rest.len()));
            let (outcome, used) = decoder.decode_to_string_without_replacement(rest, text, false);
            rest = &rest[used..];
            match outcome {
                DecoderResult::InputEmpty => return Ok(()),
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(..) => return Err(Malformed(self.charset.name)),
            }
        }
    }
}

/// Encodes a stream in pieces; only the first begins with a byte order mark, where the charset has one.
#[derive(Debug, Clone)]
pub struct Encoder {
    charset: Charset,
    started: bool,
}

impl Encoder {
    /// Appends the bytes of `text`. What the charset lacks becomes `?`, as in Java.
    pub fn encode(&mut self, text: &str, bytes: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let first = !std::mem::replace(&mut self.started, true);
        match self.charset.form {
            Form::Unicode(unicode) => unicode.encode(text, first, bytes),
            Form::Ascii | Form::Latin1 | Form::Latin5 => {
                bytes.extend(text.chars().map(|letter| match letter {
                    '\0'..='\x7f' => letter as u8,
                    _ => self.charset.single_byte_of(letter),
                }));
            }
            Form::Table(encoding) | Form::VendorTable(encoding) => encode_table(encoding, text, bytes),
            Form::JisTable(encoding) => {
                let text: String = text.chars().map(from_jis).collect();
                encode_table(encoding, &text, bytes);
            }
        }
    }
}

fn to_jis(letter: char) -> char {
    JIS_LETTERS.iter().find(|(web, _)| *web == letter).map_or(letter, |(_, jis)| *jis)
}

fn from_jis(letter: char) -> char {
    JIS_LETTERS.iter().find(|(_, jis)| *jis == letter).map_or(letter, |(web, _)| *web)
}

fn encode_table(encoding: &'static Encoding, text: &str, bytes: &mut Vec<u8>) {
    let mut encoder = encoding.new_encoder();
    let mut rest = text;
    loop {
        let room = encoder.max_buffer_length_from_utf8_without_replacement(rest.len()).unwrap_or(rest.len());
        bytes.reserve(room.max(16));
        let (outcome, used) = encoder.encode_from_utf8_to_vec_without_replacement(rest, bytes, true);
        rest = &rest[used..];
        match outcome {
            encoding_rs::EncoderResult::InputEmpty => return,
            encoding_rs::EncoderResult::OutputFull => {}
            encoding_rs::EncoderResult::Unmappable(_) => bytes.push(b'?'),
        }
    }
}

#[cfg(test)]
#[path = "charset/tests.rs"]
mod tests;
