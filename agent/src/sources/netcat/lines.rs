//! Lines out of a stream of bytes, as Flume's netcat source cuts them.
//!
//! A line ends with `\n`; `\r` stays in it. Lengths count UTF-16 units, newline included, since Flume collects them in
//! a buffer of Java characters. Lines that are whole come out before whatever is wrong behind them: Flume loses those
//! that it read in one piece with malformed text.

use wire::charset::{Charset, Decoder};

pub(super) struct Lines {
    decoder: Decoder,
    units_max: usize,
    text: String,
    /// Lines before this are done with.
    start: usize,
    /// Between `start` and this there is no newline, but `units` UTF-16 units.
    scanned: usize,
    units: usize,
    malformed: bool,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    Line(&'a str),
    /// The rest of the line is not there yet.
    More,
    /// The line is longer than allowed: the connection is lost, since its end cannot be told.
    TooLong,
    Malformed,
}

impl Lines {
    /// `units_max` is at least one, the newline.
    pub(super) fn new(charset: Charset, units_max: usize) -> Lines {
        let text = String::new();
        Lines { decoder: charset.decoder(), units_max, text, start: 0, scanned: 0, units: 0, malformed: false }
    }

    /// Adds bytes as they were read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if !self.malformed {
            self.malformed = self.decoder.decode(bytes, &mut self.text).is_err();
        }
    }

    pub(super) fn next(&mut self) -> Next<'_> {
        let newline = self.text[self.scanned..].find('\n').map(|found| self.scanned + found);
        self.units += utf16_units(&self.text[self.scanned..newline.unwrap_or(self.text.len())]);
        if self.units >= self.units_max {
            return Next::TooLong;
        }
        match newline {
            Some(newline) => {
                let line = self.start..newline;
                (self.start, self.scanned, self.units) = (newline + 1, newline + 1, 0);
                Next::Line(&self.text[line])
            }
            None if self.malformed => Next::Malformed,
            None => {
                self.text.drain(..self.start);
                self.text.shrink_to(self.text.len().max(KEPT_BYTES));
                (self.start, self.scanned) = (0, self.text.len());
                Next::More
            }
        }
    }

    /// Text of lines that are not whole.
    pub(super) fn held_bytes(&self) -> usize {
        self.text.len() - self.start
    }
}

/// Memory that stays allocated between reads.
const KEPT_BYTES: usize = 1024;

fn utf16_units(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().map(char::len_utf16).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lines of `bytes`, read in pieces of `piece`, and how it ended.
    fn read(bytes: &[u8], piece: usize, units_max: usize) -> (Vec<String>, &'static str) {
        let mut lines = Lines::new(Charset::UTF_8, units_max);
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            lines.feed(piece);
            loop {
                match lines.next() {
                    Next::Line(line) => found.push(line.to_owned()),
                    Next::More => break,
                    Next::TooLong => return (found, "too long"),
                    Next::Malformed => return (found, "malformed"),
                }
            }
        }
        (found, "more")
    }

    fn check(bytes: &[u8], units_max: usize, lines: &[&str], end: &str) {
        for piece in [1, 2, 3, 7, bytes.len()] {
            let (found, ended) = read(bytes, piece, units_max);
            assert_eq!((found, ended), (lines.iter().map(|line| line.to_string()).collect(), end), "{piece} at once");
        }
    }

    #[test]
    fn lines_come_out_whole_whatever_the_pieces_are() {
        check("hello\r\n\ngrüße\n😀\nrest".as_bytes(), 512, &["hello\r", "", "grüße", "😀"], "more");
    }

    #[test]
    fn a_line_with_its_newline_may_have_just_the_maximum_of_java_characters() {
        check(b"123456789\n", 10, &["123456789"], "more");
        check(b"1234567890\n", 10, &[], "too long");
        check(b"ok\n1234567890123\nafter\n", 10, &["ok"], "too long");
        check(b"1234567890", 10, &[], "too long");
        check("日本日本日本日本日\n".as_bytes(), 10, &["日本日本日本日本日"], "more");
        // Each of these is two Java characters.
        check("😀😀😀😀\n".as_bytes(), 10, &["😀😀😀😀"], "more");
        check("😀😀😀😀😀\n".as_bytes(), 10, &[], "too long");
    }

    #[test]
    fn lines_before_malformed_text_are_not_lost() {
        check(b"good\nbad\xff\nafter\n", 512, &["good"], "malformed");
    }

    #[test]
    fn a_long_line_in_small_pieces_is_looked_at_once() {
        let mut lines = Lines::new(Charset::UTF_8, 1 << 21);
        for _ in 0..1 << 16 {
            lines.feed(b"0123456789abcdef");
            assert_eq!(lines.next(), Next::More);
            assert_eq!(lines.scanned, lines.text.len());
        }
        assert_eq!((lines.units, lines.held_bytes()), (1 << 20, 1 << 20));
        lines.feed(b"\nx");
        assert!(matches!(lines.next(), Next::Line(line) if line.len() == 1 << 20));
        assert_eq!(lines.next(), Next::More);
        assert_eq!(lines.held_bytes(), 1);
    }
}
