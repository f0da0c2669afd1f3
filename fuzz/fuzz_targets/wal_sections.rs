//! Any bytes as the sections of a frame: all of them are accounted for, or it is damage.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wal::format::section::{HEADER, decode_marks, encode_marks, sections};

fuzz_target!(|data: &[u8]| {
    if let Ok(found) = sections(data) {
        let total: usize = found.iter().map(|section| HEADER + section.payload.len()).sum();
        assert_eq!(total, data.len());
    }
    if let Ok(marks) = decode_marks(data) {
        assert_eq!(encode_marks(&marks), data);
    }
});
