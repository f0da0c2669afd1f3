//! Text for people and programs: nothing that came from a disk reaches a terminal unescaped.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde_json::Value;

/// Version of the JSON lines; grows when a field changes its meaning.
pub(crate) const SCHEMA: &str = "penstock.inspect/1";

/// Characters that move a cursor, reorder text or hide in it.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with control characters escaped as in Rust.
pub(crate) fn shown(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        if is_dangerous(character) {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
        out
    })
}

/// One JSON line. What is dangerous on a terminal is escaped beyond what JSON asks for; it means the same.
pub(crate) fn json_line(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    let plain = value.to_string();
    let mut line = String::with_capacity(plain.len() + 1);
    for character in plain.chars() {
        if is_dangerous(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _infallible = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    out.write_all(line.as_bytes())
}

/// `4.3 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit > 0 && value < 10.0 { format!("{value:.1} {}", units[unit]) } else { format!("{value:.0} {}", units[unit]) }
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Milliseconds since 1970 as RFC 3339, in UTC.
pub(crate) fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01: a year that starts in March has its leap day at its end.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Sixteen bytes as a UUID.
pub(crate) fn uuid(bytes: [u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            out.push('-');
        }
        let _infallible = write!(out, "{byte:02x}");
    }
    out
}

/// The end of a path that is too long for a column.
pub(crate) fn fitted(path: &str, width: usize) -> String {
    let path = shown(path);
    let chars: Vec<char> = path.chars().collect();
    if chars.len() <= width {
        return path;
    }
    std::iter::once('…').chain(chars[chars.len() - (width - 1)..].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_and_sizes_read_as_usual() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_827_696_000), "2000-02-29T12:34:56Z");
        assert_eq!(time(1_798_761_599_999), "2026-12-31T23:59:59Z");
        assert_eq!(
            (size(0), size(1023), size(4608), size(51 << 20)),
            ("0 B".into(), "1023 B".into(), "4.5 KiB".into(), "51 MiB".into())
        );
        assert_eq!((count(7), count(1234), count(1_234_567)), ("7".into(), "1,234".into(), "1,234,567".into()));
        assert_eq!(fitted("/data/0123456789", 8), "…3456789");
        assert_eq!(uuid([0xab; 16]), "abababab-abab-abab-abab-abababababab");
    }

    #[test]
    fn what_could_drive_a_terminal_is_escaped_and_means_the_same() {
        let nasty = "a\u{1b}[2J\u{9b}\u{202e}b\u{e0041}\u{7f}ü";
        assert_eq!(shown(nasty), "a\\u{1b}[2J\\u{9b}\\u{202e}b\\u{e0041}\\u{7f}ü");
        let mut line = Vec::new();
        json_line(&mut line, &json!({ "body": nasty })).unwrap();
        let text = std::str::from_utf8(&line).unwrap().trim_end();
        assert!(!text.chars().any(is_dangerous), "{text}");
        let back: Value = serde_json::from_str(text).unwrap();
        assert_eq!(back["body"], nasty);
    }
}
