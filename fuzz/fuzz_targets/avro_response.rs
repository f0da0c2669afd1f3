//! Avro answers from arbitrary bytes, as a client reads them: first with, then without a handshake.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::avro::ClientSession;

fuzz_target!(|data: &[u8]| {
    let mut session = ClientSession::new();
    let _first = session.response(data);
    let _second = session.response(data);
});
