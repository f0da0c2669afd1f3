//! Avro transport frames from arbitrary bytes, in reads of arbitrary sizes: the same frames whatever the sizes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::avro::{Frame, FrameDecoder, FrameError, FrameLimits};

const LIMITS: FrameLimits = FrameLimits { payload_bytes: 4096, pieces: 64 };

fn decode(data: &[u8], step: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = FrameDecoder::new(LIMITS);
    let mut frames = Vec::new();
    for mut chunk in data.chunks(step) {
        while !chunk.is_empty() {
            match decoder.feed(&mut chunk) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => assert!(chunk.is_empty()),
                Err(error) => return (frames, Some(error)),
            }
            assert!(decoder.payload_bytes() <= LIMITS.payload_bytes);
        }
    }
    (frames, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else { return };
    assert_eq!(decode(data, usize::from(step) + 1), decode(data, usize::MAX));
});
