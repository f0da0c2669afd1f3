//! The one checksum of the log: CRC-32C, so that damage shows without keys.
//!
//! Where the processor multiplies polynomials 64 bytes at a time, `crc-fast` computes it, at more than twice the speed of the
//! instruction that `crc32c` uses everywhere else (`docs/decisions/0008-two-ways-to-a-checksum.md`).

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// CRC-32C of what `checksum` is that of, followed by `bytes`.
pub fn crc32c_append(checksum: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("vpclmulqdq") {
        return wide::append(checksum, bytes);
    }
    crc32c::crc32c_append(checksum, bytes)
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use crc_fast::{CrcAlgorithm, Digest};

    /// Right on every processor, and quick on those that [`super::crc32c_append`] calls it on.
    pub(super) fn append(checksum: u32, bytes: &[u8]) -> u32 {
        // Between two parts the register stands as it was before its bits were turned over at the end.
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!checksum));
        digest.update(bytes);
        digest.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn the_published_check_value() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }

    #[cfg(target_arch = "x86_64")]
    proptest! {
        #[test]
        fn both_ways_agree_however_the_bytes_are_cut(
            length in 0..40_000_usize,
            seed in any::<u64>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let bytes: Vec<u8> = (0..length).map(|_| next()).collect();
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            let whole = crc32c::crc32c(&bytes);
            prop_assert_eq!(super::wide::append(0, &bytes), whole);
            prop_assert_eq!(super::wide::append(super::wide::append(0, first), second), whole);
        }
    }
}
