//! Gson's lenient tokens over a text in memory.
//!
//! A stack says what may come next, so depth costs one byte and no recursion. Promises never to panic and never to
//! look at a byte more than a few times.

use std::borrow::Cow;

use super::JsonError;

/// Deepest nesting. Only members that Flume skips can nest at all; Gson has no limit.
pub(super) const DEPTH_MAX: usize = 1024;

/// What Gson allows before a document, against scripts that include it.
const NON_EXECUTE_PREFIX: &[u8] = b")]}'\n";

pub(super) const BROKEN_ESCAPE: JsonError = JsonError::NotEvents("an escape \\u has no four hexadecimal digits");

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'a> {
    BeginArray,
    EndArray,
    BeginObject,
    EndObject,
    /// A name, a quoted or unquoted text, a number as it is written.
    Text(Text<'a>),
    /// A text with an escape that Gson throws something at which Flume does not take for bad syntax. It only does when
    /// it reads the text: where none may be, this is bad syntax as any other text. Nothing can be read after it.
    BrokenText,
    Flag(bool),
    Null,
}

/// A text that may have escapes in it, all of which were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text<'a> {
    raw: &'a str,
    escaped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    EmptyArray,
    Array,
    EmptyObject,
    Object,
    /// A name was read, its value comes.
    DanglingName,
}

pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
    scopes: Vec<Scope>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader { text, at: 0, scopes: Vec::new() }
    }

    pub(super) fn error(&self, what: &'static str) -> JsonError {
        JsonError::Syntax { what, at: self.at }
    }

    /// The first token of the document; `None` when there is none.
    pub(super) fn first(&mut self) -> Result<Option<Token<'a>>, JsonError> {
        if self.text.starts_with('\u{feff}') {
            self.at = '\u{feff}'.len_utf8();
        }
        if self.significant()?.is_none() {
            return Ok(None);
        }
        if self.rest().starts_with(NON_EXECUTE_PREFIX) {
            self.at += NON_EXECUTE_PREFIX.len();
            if self.significant()?.is_none() {
                return Ok(None);
            }
        }
        self.value(false).map(Some)
    }

    /// The next token inside the first.
    pub(super) fn next(&mut self) -> Result<Token<'a>, JsonError> {
        let Some(scope) = self.scopes.last().copied() else { return Err(self.error("expected nothing more")) };
        match scope {
            Scope::EmptyArray => {
                self.set_scope(Scope::Array);
                if self.required()? == b']' {
                    return Ok(self.close(Token::EndArray));
                }
                self.value(true)
            }
            Scope::Array => match self.required()? {
                b']' => Ok(self.close(Token::EndArray)),
                b',' | b';' => {
                    self.at += 1;
                    self.required()?;
                    self.value(true)
                }
                _ => Err(self.error("unterminated array")),
            },
            Scope::EmptyObject => match self.required()? {
                b'}' => Ok(self.close(Token::EndObject)),
                _ => self.name(),
            },
            Scope::Object => match self.required()? {
                b'}' => Ok(self.close(Token::EndObject)),
                b',' | b';' => {
                    self.at += 1;
                    self.required()?;
                    self.name()
                }
                _ => Err(self.error("unterminated object")),
            },
            Scope::DanglingName => {
                match self.required()? {
                    b':' => self.at += 1,
                    b'=' => self.at += if self.rest().starts_with(b"=>") { 2 } else { 1 },
                    _ => return Err(self.error("expected `:`")),
                }
                self.set_scope(Scope::Object);
                self.required()?;
                self.value(false)
            }
        }
    }

    /// Passes over the next value, whatever it is.
    pub(super) fn skip_value(&mut self) -> Result<(), JsonError> {
        let depth = self.scopes.len();
        loop {
            if self.next()? == Token::BrokenText {
                return Err(BROKEN_ESCAPE);
            }
            if self.scopes.len() == depth {
                return Ok(());
            }
        }
    }

    /// Nothing but blanks may follow the document: here Gson is strict.
    pub(super) fn end(&mut self) -> Result<(), JsonError> {
        let blanks = self.rest().iter().take_while(|byte| is_blank(**byte)).count();
        self.at += blanks;
        if self.rest().is_empty() { Ok(()) } else { Err(self.error("more text after the array")) }
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn set_scope(&mut self, scope: Scope) {
        if let Some(last) = self.scopes.last_mut() {
            *last = scope;
        }
    }

    fn open(&mut self, scope: Scope, token: Token<'a>) -> Result<Token<'a>, JsonError> {
        if self.scopes.len() == DEPTH_MAX {
            return Err(self.error("nested too deeply"));
        }
        self.at += 1;
        self.scopes.push(scope);
        Ok(token)
    }

    fn close(&mut self, token: Token<'a>) -> Token<'a> {
        self.at += 1;
        self.scopes.pop();
        token
    }

    /// Passes blanks and comments; the byte that follows, if any.
    fn significant(&mut self) -> Result<Option<u8>, JsonError> {
        loop {
            let rest = self.rest();
            match rest {
                [] => return Ok(None),
                [byte, ..] if is_blank(*byte) => self.at += 1,
                [b'#', ..] | [b'/', b'/', ..] => {
                    self.at += rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                }
                [b'/', b'*', after @ ..] => match after.windows(2).position(|pair| pair == b"*/") {
                    Some(inside) => self.at += inside + 4,
                    None => return Err(self.error("unterminated comment")),
                },
                [byte, ..] => return Ok(Some(*byte)),
            }
        }
    }

    fn required(&mut self) -> Result<u8, JsonError> {
        self.significant()?.ok_or_else(|| self.error("the text ends too early"))
    }

    /// A value; the next byte is significant.
    fn value(&mut self, in_array: bool) -> Result<Token<'a>, JsonError> {
        match self.rest().first() {
            // Nothing between commas of an array is null, and what ends it stays.
            Some(b']' | b',' | b';') if in_array => Ok(Token::Null),
            Some(b'[') => self.open(Scope::EmptyArray, Token::BeginArray),
            Some(b'{') => self.open(Scope::EmptyObject, Token::BeginObject),
            Some(quote @ (b'"' | b'\'')) => self.quoted(*quote),
            _ => {
                let text = self.literal("expected a value")?;
                Ok(match text.raw {
                    word if word.eq_ignore_ascii_case("null") => Token::Null,
                    word if word.eq_ignore_ascii_case("true") => Token::Flag(true),
                    word if word.eq_ignore_ascii_case("false") => Token::Flag(false),
                    _ => Token::Text(text),
                })
            }
        }
    }

    /// A name; the next byte is significant.
    fn name(&mut self) -> Result<Token<'a>, JsonError> {
        let name = match self.rest().first() {
            Some(quote @ (b'"' | b'\'')) => self.quoted(*quote)?,
            _ => Token::Text(self.literal("expected a name")?),
        };
        self.set_scope(Scope::DanglingName);
        Ok(name)
    }

    /// An unquoted text, up to the next byte that has a meaning.
    fn literal(&mut self, expected: &'static str) -> Result<Text<'a>, JsonError> {
        let rest = self.rest();
        let len = rest.iter().position(|byte| !is_literal(*byte)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.error(expected));
        }
        // The bytes that end a literal are ASCII, so both cuts are between characters.
        let raw = &self.text[self.at..self.at + len];
        self.at += len;
        Ok(Text { raw, escaped: false })
    }

    /// A text in quotes; every escape in it is checked.
    fn quoted(&mut self, quote: u8) -> Result<Token<'a>, JsonError> {
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.rest();
            let Some(plain) = first_of(rest, quote, b'\\') else {
                return Err(self.error("unterminated text"));
            };
            self.at += plain;
            if rest[plain] == quote {
                let raw = &self.text[start..self.at];
                self.at += 1;
                return Ok(Token::Text(Text { raw, escaped }));
            }
            escaped = true;
            self.at += match &rest[plain + 1..] {
                [] => return Err(self.error("unterminated escape")),
                [b'u', digits @ ..] => {
                    let Some(digits) = digits.get(..4) else { return Err(self.error("unterminated escape")) };
                    if hex(digits).is_none() {
                        return Ok(Token::BrokenText);
                    }
                    6
                }
                [b't' | b'b' | b'n' | b'r' | b'f' | b'\n' | b'\'' | b'"' | b'\\' | b'/', ..] => 2,
                _ => return Err(self.error("no such escape")),
            };
        }
    }
}

impl<'a> Text<'a> {
    /// The text itself, with `lone` for halves of surrogate pairs.
    pub(super) fn get(self, lone: char) -> Cow<'a, str> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        let mut text = String::with_capacity(self.raw.len());
        let mut rest = self.raw;
        while let Some(at) = rest.find('\\') {
            text.push_str(&rest[..at]);
            let escape = &rest[at..];
            let (letter, len) = unescape(escape, lone);
            text.push(letter);
            rest = &escape[len..];
        }
        text.push_str(rest);
        Cow::Owned(text)
    }
}

/// The letter of a checked escape, and the bytes it takes.
fn unescape(escape: &str, lone: char) -> (char, usize) {
    let bytes = escape.as_bytes();
    let unit = |at: usize| {
        let found = bytes.get(at..at + 6)?;
        if found.starts_with(b"\\u") { hex(&found[2..]) } else { None }
    };
    match bytes.get(1) {
        Some(b't') => ('\t', 2),
        Some(b'b') => ('\u{8}', 2),
        Some(b'n') => ('\n', 2),
        Some(b'r') => ('\r', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'u') => {
            let first = unit(0).unwrap_or(0xfffd);
            if let Some(letter) = char::from_u32(u32::from(first)) {
                return (letter, 6);
            }
            let pair = unit(6).and_then(|second| char::decode_utf16([first, second]).next()?.ok());
            pair.map_or((lone, 6), |letter| (letter, 12))
        }
        Some(other) => (char::from(*other), 2),
        None => (lone, 1),
    }
}

/// Where the first of two bytes is. Bodies are most of a request: whole blocks without either are passed at once, which a
/// loop that may end at any byte is not compiled to.
fn first_of(bytes: &[u8], one: u8, other: u8) -> Option<usize> {
    const BLOCK: usize = 32;
    let is_in = |block: &&[u8]| block.iter().fold(false, |found, byte| found | (*byte == one) | (*byte == other));
    let passed = bytes.chunks_exact(BLOCK).take_while(|block| !is_in(block)).count() * BLOCK;
    let found = bytes[passed..].iter().position(|byte| *byte == one || *byte == other)?;
    Some(passed + found)
}

fn hex(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0_u16, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value << 4 | u16::try_from(digit).ok()?)
    })
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b'\n' | b' ' | b'\r' | b'\t')
}

fn is_literal(byte: u8) -> bool {
    !matches!(
        byte,
        b'/' | b'\\'
            | b';'
            | b'#'
            | b'='
            | b'{'
            | b'}'
            | b'['
            | b']'
            | b':'
            | b','
            | b' '
            | b'\t'
            | 0x0c
            | b'\r'
            | b'\n'
    )
}
