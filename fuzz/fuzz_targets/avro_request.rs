//! Avro requests from arbitrary bytes, on a fresh and on an established connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::avro::{ClientSession, FrameDecoder, FrameLimits, KnownProtocols, Request, ServerSession, Status};

fuzz_target!(|data: &[u8]| {
    let known = KnownProtocols::new();
    let mut established = ServerSession::new();
    let mut call = Vec::new();
    ClientSession::new().put_append_batch(1, std::iter::empty(), &mut call);
    let limits = FrameLimits { payload_bytes: 4096, pieces: 64 };
    let frame = FrameDecoder::new(limits).feed(&mut &call[..]).expect("our own").expect("and whole");
    assert!(matches!(established.request(&frame.payload, &known), Request::Call(_)));
    for mut session in [ServerSession::new(), established] {
        let mut answer = Vec::new();
        match session.request(data, &known) {
            Request::Handshake(reply) => reply.put_handshake(1, &mut answer),
            Request::Refused(reply, text) => reply.put_error(1, &text, &mut answer),
            Request::Call(call) => {
                for event in call.events.iter() {
                    event.headers().for_each(drop);
                    assert!(event.body().len() <= data.len());
                }
                call.reply.put_status(1, Status::Ok, &mut answer);
            }
        }
        assert!(!answer.is_empty());
    }
});
