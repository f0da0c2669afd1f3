//! What the charsets do with good, cut and malformed bytes.

use super::*;
use proptest::prelude::*;

/// Decodes in pieces of `piece` bytes; returns the text and whether it was whole.
fn decode(charset: Charset, bytes: &[u8], piece: usize) -> (String, bool) {
    let (mut decoder, mut text) = (charset.decoder(), String::new());
    for piece in bytes.chunks(piece) {
        if decoder.decode(piece, &mut text).is_err() {
            return (text, false);
        }
    }
    (text, true)
}

fn check(name: &str, bytes: &[u8], expected: &str, whole: bool) {
    let charset = Charset::for_name(name).unwrap();
    for piece in [1, 2, 3, bytes.len().max(1)] {
        assert_eq!(decode(charset, bytes, piece), (expected.to_owned(), whole), "{name} in pieces of {piece}");
    }
}

#[test]
fn text_is_decoded_whatever_its_pieces_are() {
    check("utf-8", "grüße 日本 😀".as_bytes(), "grüße 日本 😀", true);
    check("UTF-16BE", b"\0h\0i\0\n", "hi\n", true);
    check("UTF-16LE", b"\x3d\xd8\x00\xde", "😀", true);
    check("UTF-16", b"\xff\xfea\0", "a", true);
    check("UTF-16", b"\0a\xfe\xff", "a\u{feff}", true);
    check("UTF-32", b"\xff\xfe\0\0a\0\0\0", "a", true);
    check("UTF-32", b"\0\0\0a", "a", true);
    check("ISO8859_1", b"gr\xfc\xdfe\x80", "grüße\u{80}", true);
    check("ISO-8859-9", b"\xd0\xfd\xc0", "ĞıÀ", true);
    check("sjis", b"\x93\xfa\x96{", "日本", true);
    check("Shift_JIS", b"\x81\x60", "\u{301c}", true);
    check("windows-31j", b"\x81\x60", "\u{ff5e}", true);
    check("Cp1252", b"\x80\x9c", "€œ", true);
    check("EUC-KR", b"\xc7\xd1", "한", true);
}

#[test]
fn what_comes_before_malformed_bytes_is_decoded() {
    check("UTF-8", b"a\xff\xfeb", "a", false);
    check("UTF-8", b"a\xed\xa0\x80b", "a", false);
    check("US-ASCII", b"a\x80", "a", false);
    check("UTF-16BE", b"\0a\xdc\0", "a", false);
    check("UTF-16BE", b"\0a\xd8\0\0b", "a", false);
    check("UTF-16BE", b"\0a\xff\xfe", "a", false);
    check("UTF-32BE", b"\0\0\0a\0\x11\0\0", "a", false);
    check("windows-1252", b"a\x81b", "a", false);
    check("Shift_JIS", b"a\x80\xffb", "a\u{80}", false);
}

// Counts of U+FFFD as printed by `new String(bytes, charset)` of OpenJDK 17.
#[test]
fn a_reader_puts_as_many_replacement_characters_as_java() {
    let check = |name: &str, bytes: &[u8], expected: &str| {
        assert_eq!(Charset::for_name(name).unwrap().decode_lossy(bytes), expected, "{name} {bytes:?}");
    };
    check("UTF-8", b"a\xff\xfeb", "a\u{fffd}\u{fffd}b");
    check("UTF-8", b"\xed\xa0\x80|", "\u{fffd}|");
    check("UTF-8", b"\xed\xa0|", "\u{fffd}|");
    check("UTF-8", b"\xed\xa0", "\u{fffd}");
    check("UTF-8", b"\xe0\x80\x80|", "\u{fffd}\u{fffd}\u{fffd}|");
    check("UTF-8", b"\xf0\x9f\x98", "\u{fffd}");
    check("UTF-8", b"\xf5\x80|", "\u{fffd}\u{fffd}|");
    check("UTF-16", b"\0a\xd8\0\0b\0c", "a\u{fffd}c");
    check("UTF-16", b"\0a\xdc\0\0c\0", "a\u{fffd}c\u{fffd}");
    check("UTF-16", b"", "");
    check("UTF-32", b"\0\x11\0\0\0\0\0a\0", "\u{fffd}a\u{fffd}");
}

#[test]
fn only_the_beginning_of_a_stream_has_a_byte_order_mark() {
    let mut encoder = Charset::UTF_16.encoder();
    let mut bytes = Vec::new();
    encoder.encode("", &mut bytes);
    encoder.encode("O", &mut bytes);
    encoder.encode("K", &mut bytes);
    assert_eq!(bytes, b"\xfe\xff\0O\0K");
    assert_eq!(*Charset::UTF_16.encode(""), *b"");
    assert_eq!(*Charset::UTF_32.encode("ü"), *b"\0\0\0\xfc");
}

#[test]
fn letters_that_a_charset_lacks_become_question_marks() {
    let encoded = |name: &str, text: &str| Charset::for_name(name).unwrap().encode(text).into_owned();
    assert_eq!(encoded("ISO-8859-1", "ü日x"), b"\xfc?x");
    assert_eq!(encoded("US-ASCII", "aü"), b"a?");
    assert_eq!(encoded("Shift_JIS", "日한"), b"\x93\xfa?");
    assert_eq!(encoded("ISO-8859-9", "ğð"), b"\xf0?");
    assert_eq!(encoded("EUC-JP", "\u{301c}"), b"\xa1\xc1");
}

#[test]
fn names_are_found_by_alias_in_any_case() {
    for (alias, name) in
        [("utf8", "UTF-8"), ("LATIN1", "ISO-8859-1"), ("cp1251", "windows-1251"), ("MS932", "windows-31j")]
    {
        assert_eq!(Charset::for_name(alias).map(Charset::name), Some(name));
    }
    assert_eq!(Charset::for_name("nonsense"), None);
    assert_eq!(Charset::names().filter(|name| Charset::for_name(name).map(Charset::name) != Some(*name)).count(), 0);
}

proptest! {
    #[test]
    fn unicode_text_survives_every_unicode_form(text in ".*", piece in 1_usize..9) {
        for name in ["UTF-8", "UTF-16BE", "UTF-16LE", "UTF-16", "UTF-32", "UTF-32LE", "GB18030"] {
            // A mark at the beginning of the text is taken for that of the stream where the charset allows one.
            prop_assume!(!text.starts_with('\u{feff}') && !text.contains(['\u{fffe}', '\u{e5e5}', '\u{1e3f}']));
            // GB18030 of 2022 gave bytes of private characters to public ones, so private ones come back as those.
            if name == "GB18030" && text.contains(|letter| ('\u{e000}'..='\u{f8ff}').contains(&letter)) {
                continue;
            }
            let charset = Charset::for_name(name).unwrap();
            let bytes = charset.encode(&text);
            prop_assert_eq!(decode(charset, &bytes, piece), (text.clone(), true), "{}", name);
        }
    }

    #[test]
    fn no_bytes_break_a_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..64), piece in 1_usize..9) {
        for name in Charset::names() {
            let charset = Charset::for_name(name).unwrap();
            let (text, whole) = decode(charset, &bytes, piece);
            let lossy = charset.decode_lossy(&bytes);
            // What both understood is the same.
            prop_assert!(!whole || lossy.starts_with(&text), "{}: {:?} {:?}", name, text, lossy);
        }
    }
}
