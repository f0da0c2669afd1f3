//! Any bytes as the contents of a checkpoint, and as one segment in it: understood to the last byte, or refused.
#![no_main]

use channel::inspect;
use libfuzzer_sys::fuzz_target;
use wal::recover::known::KnownSegment;

fuzz_target!(|data: &[u8]| {
    let _either_way = inspect::check_checkpoint(data);
    let mut at = 0;
    if let Ok(known) = KnownSegment::decode(data, &mut at) {
        let mut again = Vec::new();
        known.encode(&mut again);
        assert_eq!(KnownSegment::decode(&again, &mut 0), Ok(known));
        assert!(at <= data.len());
    }
});
