//! Arbitrary bytes in every charset: the same text whatever the pieces, and what is decoded can be encoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::charset::Charset;

fn decode(charset: Charset, data: &[u8], piece: usize) -> (String, bool) {
    let (mut decoder, mut text) = (charset.decoder(), String::new());
    let whole = data.chunks(piece).all(|piece| decoder.decode(piece, &mut text).is_ok());
    (text, whole)
}

fuzz_target!(|data: &[u8]| {
    let [which, piece, data @ ..] = data else { return };
    let names: Vec<&str> = Charset::names().collect();
    let Some(charset) = Charset::for_name(names[usize::from(*which) % names.len()]) else { return };
    let (text, whole) = decode(charset, data, usize::from(*piece) + 1);
    assert_eq!(decode(charset, data, data.len().max(1)), (text.clone(), whole), "{}", charset.name());
    assert!(!whole || charset.decode_lossy(data).starts_with(&text));
    assert!(charset.encode(&text).len() <= 4 * text.len() + 4);
});
