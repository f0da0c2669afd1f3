//! Java's `.properties` format, with the position of every key and value.
//!
//! Reads what `java.util.Properties` reads, byte by byte as Latin-1: continuations, escapes, `\uXXXX`, comments with
//! `#` and `!`, `=`, `:` or a blank as separator. Keys and values are trimmed as Flume trims them. Where a key comes
//! twice the last one wins, and a finding says so. A file that is no properties file is an error finding and yields
//! nothing: a half-read configuration must never run. It knows nothing of agents or lookups.

use std::sync::Arc;

use super::finding::{Finding, Place, Severity};

/// A configuration is written by hand or by a template; one of this size is a mistake, and is refused before it is
/// read into memory twice.
pub const FILE_BYTES_MAX: usize = 16 << 20;

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub key: String,
    pub value: String,
    pub place: Place,
}

/// All properties of one or several files, each key once, in the order of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    pub entries: Vec<Property>,
    pub findings: Vec<Finding>,
}

impl Properties {
    /// Reads `bytes`; `file` is the name for positions.
    pub fn parse(file: &str, bytes: &[u8]) -> Properties {
        let mut properties = Properties::default();
        properties.add_file(file, bytes);
        properties
    }

    /// Reads one more file, whose keys win over those that are there.
    pub fn add_file(&mut self, file: &str, bytes: &[u8]) {
        let mut reader = Reader::new(file, bytes);
        if bytes.len() > FILE_BYTES_MAX {
            let message = format!("the file has {} bytes; the limit is {FILE_BYTES_MAX}", bytes.len());
            self.findings.push(error(reader.place(), message));
            return;
        }
        // Looking every key up in a list would take quadratic time on a hostile file.
        let mut seen: std::collections::HashMap<String, usize> =
            self.entries.iter().enumerate().map(|(index, entry)| (entry.key.clone(), index)).collect();
        let mut read = Vec::new();
        while let Some(outcome) = reader.next_property() {
            match outcome {
                Ok(property) => read.push(property),
                Err(finding) => {
                    // Java gives up the whole file here, and so must we.
                    self.findings.push(finding);
                    return;
                }
            }
        }
        for property in read {
            match seen.get(&property.key) {
                Some(&index) => {
                    let earlier = &self.entries[index].place;
                    if earlier.file == property.place.file {
                        let message =
                            format!("{} is set again; the value of line {} has no effect", property.key, earlier.line);
                        self.findings.push(Finding {
                            severity: Severity::Warning,
                            place: Some(property.place.clone()),
                            component: None,
                            message,
                        });
                    }
                    self.entries[index] = property;
                }
                None => {
                    seen.insert(property.key.clone(), self.entries.len());
                    self.entries.push(property);
                }
            }
        }
    }

    pub fn get(&self, key: &str) -> Option<&Property> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

fn error(place: Place, message: String) -> Finding {
    Finding { severity: Severity::Error, place: Some(place), component: None, message }
}

/// Walks over the bytes, joining natural lines into logical ones.
struct Reader<'a> {
    file: Arc<str>,
    bytes: &'a [u8],
    at: usize,
    line: u32,
    line_start: usize,
}

/// UTF-16, as Java reads it: two `\uXXXX` may be one character.
#[derive(Default)]
struct Text(Vec<u16>);

impl Text {
    /// As text, trimmed as `String.trim` does: everything up to the blank counts as white.
    fn finish(&self) -> String {
        let start = self.0.iter().position(|&unit| unit > 0x20).unwrap_or(self.0.len());
        let end = self.0.iter().rposition(|&unit| unit > 0x20).map_or(start, |last| last + 1);
        String::from_utf16_lossy(&self.0[start..end])
    }
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0c)
}

impl<'a> Reader<'a> {
    fn new(file: &str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { file: file.into(), bytes, at: 0, line: 1, line_start: 0 }
    }

    fn place(&self) -> Place {
        let column = u32::try_from(self.at - self.line_start + 1).unwrap_or(u32::MAX);
        Place { file: Arc::clone(&self.file), line: self.line, column }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Steps over one line end, where there is one: LF, CR or CR LF.
    fn end_line(&mut self) -> bool {
        match self.peek() {
            Some(b'\r') if self.bytes.get(self.at + 1) == Some(&b'\n') => self.at += 2,
            Some(b'\r' | b'\n') => self.at += 1,
            _ => return false,
        }
        self.line = self.line.saturating_add(1);
        self.line_start = self.at;
        true
    }

    fn skip_blanks(&mut self) {
        loop {
            while self.peek().is_some_and(is_blank) {
                self.at += 1;
            }
            if !self.continuation() {
                return;
            }
        }
    }

    /// Steps over a backslash at the end of a line, if there is one here; the blanks behind it belong to nothing.
    fn continuation(&mut self) -> bool {
        if self.peek() != Some(b'\\') || !matches!(self.bytes.get(self.at + 1), Some(b'\r' | b'\n')) {
            return false;
        }
        self.at += 1;
        self.end_line();
        while self.peek().is_some_and(is_blank) {
            self.at += 1;
        }
        true
    }

    fn at_end(&self) -> bool {
        // A lone backslash before the end of the file continues into nothing.
        matches!(self.peek(), None | Some(b'\r' | b'\n')) || self.bytes[self.at..] == *b"\\"
    }

    fn next_property(&mut self) -> Option<Result<Property, Finding>> {
        loop {
            while self.peek().is_some_and(is_blank) {
                self.at += 1;
            }
            match self.peek() {
                None => return None,
                Some(b'#' | b'!') => {
                    while !matches!(self.peek(), None | Some(b'\r' | b'\n')) {
                        self.at += 1;
                    }
                    self.end_line();
                }
                Some(b'\r' | b'\n') => {
                    self.end_line();
                }
                Some(_) => break,
            }
        }
        Some(self.property())
    }

    fn property(&mut self) -> Result<Property, Finding> {
        let place = self.place();
        let key = self.text(|byte| is_blank(byte) || matches!(byte, b'=' | b':'))?;
        self.skip_blanks();
        if matches!(self.peek(), Some(b'=' | b':')) {
            self.at += 1;
            self.skip_blanks();
        }
        let value = self.text(|_| false)?;
        if self.peek() == Some(b'\\') {
            self.at += 1;
        }
        self.end_line();
        Ok(Property { key: key.finish(), value: value.finish(), place })
    }

    /// Text up to the end of the logical line or a byte that `ends` it.
    fn text(&mut self, ends: impl Fn(u8) -> bool) -> Result<Text, Finding> {
        let mut text = Text::default();
        loop {
            if self.continuation() {
                continue;
            }
            if self.at_end() {
                return Ok(text);
            }
            let byte = self.bytes[self.at];
            if ends(byte) {
                return Ok(text);
            }
            if byte == b'\\' {
                text.0.push(self.escape()?);
            } else {
                text.0.push(u16::from(byte));
                self.at += 1;
            }
        }
    }

    /// Reads a backslash and what it stands for. It is not the last byte: `at_end` said so.
    fn escape(&mut self) -> Result<u16, Finding> {
        let place = self.place();
        let escaped = self.bytes[self.at + 1];
        self.at += 2;
        Ok(match escaped {
            b't' => 0x09,
            b'n' => 0x0a,
            b'r' => 0x0d,
            b'f' => 0x0c,
            b'u' => {
                let digits = self.bytes.get(self.at..self.at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
                let unit = digits
                    .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                    .and_then(|digits| u16::from_str_radix(digits, 16).ok());
                self.at += 4;
                unit.ok_or_else(|| {
                    error(place, "\\u needs four hexadecimal digits; this is not a Java properties file".to_owned())
                })?
            }
            other => u16::from(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &[u8]) -> Vec<(String, String)> {
        let properties = Properties::parse("f", text);
        properties.entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
    }

    fn check(text: &[u8], expected: &[(&str, &str)]) {
        let found = pairs(text);
        let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, expected, "{}", String::from_utf8_lossy(text));
    }

    #[test]
    fn java_separators_blanks_and_comments() {
        check(b"a=1\nb:2\nc 3\n d\t = \t4 \n", &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
        check(b"# a=1\n! b=2\n   # c=3\n\n  \n", &[]);
        check(b"a = 6 # six\n", &[("a", "6 # six")]);
        check(b"a==b\nc = = d\ne\n", &[("a", "=b"), ("c", "= d"), ("e", "")]);
        check(b"a=1\r\nb=2\rc=3", &[("a", "1"), ("b", "2"), ("c", "3")]);
        check(b"# comment that ends in \\\na=1\n", &[("a", "1")]);
    }

    #[test]
    fn java_continuations_and_escapes() {
        check(b"a = i \\\n   j\n", &[("a", "i j")]);
        check(b"a = h\\\r\n    e\nb=2", &[("a", "he"), ("b", "2")]);
        check(b"a = x\\\\\nb=2", &[("a", "x\\"), ("b", "2")]);
        check(b"a\\ b\\=c\\:d = \\t|\\n|\\q|\\u0041\n", &[("a b=c:d", "\t|\n|q|A".trim_start())]);
        check(b"a = \\ud83d\\ude00", &[("a", "\u{1f600}")]);
        check(b"a = b\\", &[("a", "b")]);
        check(b"a \\\n  = 1\n", &[("a", "1")]);
        // A continued line is never a comment.
        check(b"a = 1 \\\n# 2\n", &[("a", "1 # 2")]);
    }

    #[test]
    fn bytes_are_latin_1() {
        check(b"a = gr\xfc\xdfe", &[("a", "grüße")]);
    }

    #[test]
    fn positions_are_those_of_the_keys() {
        let properties = Properties::parse("f", b"a = 1 \\\n  2\n\n   b = 3\n");
        let places: Vec<_> = properties.entries.iter().map(|entry| entry.place.to_string()).collect();
        assert_eq!(places, ["f:1:1", "f:4:4"]);
    }

    #[test]
    fn the_last_of_two_equal_keys_wins_and_is_reported() {
        let properties = Properties::parse("f", b"a=1\nb=2\na=3\n");
        assert_eq!(properties.get("a").map(|entry| entry.value.as_str()), Some("3"));
        let found: Vec<_> = properties.findings.iter().map(Finding::to_string).collect();
        assert_eq!(found, ["f:3:1: warning: a is set again; the value of line 1 has no effect"]);
    }

    #[test]
    fn a_file_that_is_no_properties_file_yields_nothing() {
        let properties = Properties::parse("f", b"<configuration/>\n\\u00zz\n");
        assert!(properties.entries.is_empty());
        let found: Vec<_> = properties.findings.iter().map(Finding::to_string).collect();
        assert_eq!(found, ["f:2:1: error: \\u needs four hexadecimal digits; this is not a Java properties file"]);
    }

    #[test]
    fn a_later_file_wins_without_a_word() {
        let mut properties = Properties::parse("f", b"a=1\n");
        properties.add_file("g", b"a=2\n");
        assert_eq!(properties.get("a").map(|entry| entry.place.to_string()), Some("g:1:1".to_owned()));
        assert!(properties.findings.is_empty());
    }
}
