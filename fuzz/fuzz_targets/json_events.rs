//! Events of the http source from arbitrary text: bounded, and every event well formed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::charset::Charset;
use wire::json::{EVENT_HEADERS_MAX, read_events};

fuzz_target!(|data: &[u8]| {
    let Some((&charset, data)) = data.split_first() else { return };
    let charset = [Charset::UTF_8, Charset::UTF_16, Charset::UTF_32][usize::from(charset) % 3];
    if let Ok(batch) = read_events(&charset.decode_lossy(data), charset) {
        // An event takes at least two letters and a comma; no letter becomes more than eight bytes.
        assert!(batch.len() <= data.len() / 2 && batch.bytes() <= 8 * data.len() + 8);
        assert!(batch.iter().all(|event| event.headers().count() <= EVENT_HEADERS_MAX));
        let slice = batch.clone().freeze();
        assert!(batch.iter().zip(slice.iter()).all(|(one, other)| one.body() == other.body()));
    }
});
