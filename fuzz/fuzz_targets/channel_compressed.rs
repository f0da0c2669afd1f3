//! Any payload as a compressed transaction: refused, or expanded to what it says. What expands to events is events.
#![no_main]

use channel::inspect::{check_section, expand};
use libfuzzer_sys::fuzz_target;

const TRANSACTION: u16 = 16;
const COMPRESSED: u16 = 32;

fuzz_target!(|data: &[u8]| {
    let expanded = expand(data);
    let understood = check_section(COMPRESSED, data);
    match expanded {
        Ok(plain) => {
            let said = data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
            assert_eq!(said, Some(plain.len()));
            assert_eq!(check_section(TRANSACTION, &plain), understood);
        }
        Err(_) => assert!(understood.is_err()),
    }
});
