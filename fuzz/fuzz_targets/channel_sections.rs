//! Any payload as each section of the channel: refused or understood, and events that are decoded can be read.
#![no_main]

use channel::{EventSlice, inspect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [kind, payload @ ..] = data else { return };
    // The kinds of `docs/format.md`, and one beyond.
    let known = inspect::check_section(u16::from(kind % 6) + 15, payload);
    let Ok(events) = EventSlice::decode(payload.to_vec().into()) else {
        assert!(kind % 6 != 1 || known.is_err());
        return;
    };
    for event in events.iter() {
        let headers = event.headers().count();
        assert!(event.headers().all(|(key, _)| event.header(key).is_some()) && headers <= payload.len());
        assert!(event.body().len() <= payload.len());
    }
    let mut encoded = Vec::new();
    events.to_batch().encode(&mut encoded);
    let again = EventSlice::decode(encoded.into()).expect("what was decoded is well formed");
    assert!(events.iter().map(|event| event.body()).eq(again.iter().map(|event| event.body())));
});
