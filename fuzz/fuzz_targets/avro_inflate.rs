//! The deflate stream of an Avro connection from arbitrary bytes: never more at a time than was asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::avro::Inflater;

fuzz_target!(|data: &[u8]| {
    let Some((&limit, data)) = data.split_first() else { return };
    let limit = 1 + usize::from(limit) * 16;
    let (mut inflater, mut input) = (Inflater::new(), data);
    // zlib makes at most 1,032 bytes of one.
    for _ in 0..data.len() * 1100 + 2 {
        let mut out = Vec::new();
        if inflater.inflate(&mut input, &mut out, limit).is_err() {
            return;
        }
        assert!(out.len() <= limit);
        if out.len() < limit {
            assert!(input.is_empty());
            return;
        }
    }
    panic!("more came out than zlib can make");
});
