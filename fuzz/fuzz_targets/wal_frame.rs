//! Any bytes as a frame: decoded or refused, and what is decoded writes the same header again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wal::format::frame::{FrameHeader, HEADER, LAYOUT, stored_len};

fuzz_target!(|data: &[u8]| {
    let [repair, data @ ..] = data else { return };
    let mut frame = data.to_vec();
    // With magic number, version, length and checksums that fit, the values behind them are reached.
    if repair % 2 == 1 && frame.len() >= HEADER {
        frame[..6].copy_from_slice(b"PNSF\x01\x00");
        let field = |name: &str| LAYOUT.iter().find(|field| field.name == name).expect("a field").offset;
        frame[field("features")..][..4].fill(0);
        let at = field("body_len");
        let body_len = u32::from_le_bytes(frame[at..at + 4].try_into().expect("four bytes")) % (2 << 20);
        frame[at..at + 4].copy_from_slice(&body_len.to_le_bytes());
        let stored = stored_len(body_len as usize, frame[field("flags")] & 1 != 0) as u32;
        frame[field("stored_len")..][..4].copy_from_slice(&stored.to_le_bytes());
        FrameHeader::seal_checksums(&mut frame);
        assert!(FrameHeader::body_is_intact(&frame));
    }
    FrameHeader::body_is_intact(&frame);
    let Ok(header) = FrameHeader::decode(&frame) else { return };
    assert!(header.end_seq() >= header.first_seq && header.stored_len.is_multiple_of(4096) && header.stored_len > 0);
    let mut again = frame.clone();
    header.encode_into(&mut again);
    FrameHeader::seal_checksums(&mut again);
    assert_eq!(FrameHeader::decode(&again), Ok(header));
});
