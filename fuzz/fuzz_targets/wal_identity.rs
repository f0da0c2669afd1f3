//! Any page as the identity of a directory: absent, damaged or present, and a present one is written the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wal::checksum::crc32c;
use wal::format::Classified;
use wal::format::identity::{Identity, LAYOUT};
use wal::limits::PAGE;

fuzz_target!(|data: &[u8]| {
    let [repair, data @ ..] = data else { return };
    let mut page = [0; PAGE];
    let len = data.len().min(PAGE);
    page[..len].copy_from_slice(&data[..len]);
    if repair % 2 == 1 {
        page[..10].copy_from_slice(b"PNSTKDIR\x01\x00");
        let at = LAYOUT.last().expect("it has fields").offset;
        let sum = crc32c(&page[..at]);
        page[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    }
    let Classified::Present(identity) = Identity::classify(&page) else { return };
    assert_eq!(Identity::classify(&identity.encode()), Classified::Present(identity));
});
