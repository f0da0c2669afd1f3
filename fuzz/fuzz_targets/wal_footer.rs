//! Any bytes as a footer: what is taken comes back the same, takes no more memory than its bytes warrant, and is in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wal::format::footer::Footer;

fuzz_target!(|data: &[u8]| {
    if let Ok(footer) = Footer::decode(data) {
        assert_eq!(footer.encode().as_deref(), Some(data));
        assert!(footer.ranges.iter().all(|(start, end)| start < end));
        assert!(footer.ranges.is_sorted() && footer.index.is_sorted());
        assert!(footer.ranges.len() + footer.index.len() <= data.len());
    }
});
