//! Copies into memory that a disk reads next.
//!
//! Past the caches: lines that another processor has are not fetched back before they are changed, and what is in the
//! caches stays there. Whether that is faster is for the caller to find out.

#![expect(unsafe_code, reason = "streaming stores are an intrinsic that takes an address")]

/// Copies `from` to `to`, which are of one length.
///
/// # Panics
/// When they are not.
#[cfg(target_arch = "x86_64")]
pub(crate) fn pour(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// A cache line: less than a whole one is not worth it.
    const LINE: usize = 64;
    const STORE: usize = size_of::<__m128i>();
    assert_eq!(to.len(), from.len());
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let mut to_lines = to.chunks_exact_mut(LINE);
    let mut from_lines = from.chunks_exact(LINE);
    for (to_line, from_line) in (&mut to_lines).zip(&mut from_lines) {
        let (target, source) = (to_line.as_mut_ptr(), from_line.as_ptr());
        for at in (0..LINE).step_by(STORE) {
            // SAFETY: both lines have `LINE` bytes, of which these are `STORE` ones; the target begins at a whole line, so
            // it is aligned for a store, and every x86-64 has these instructions.
            unsafe { _mm_stream_si128(target.add(at).cast(), _mm_loadu_si128(source.add(at).cast())) };
        }
    }
    to_lines.into_remainder().copy_from_slice(from_lines.remainder());
    // SAFETY: an instruction without operands. What is stored until here is seen before anything that is stored later.
    unsafe { _mm_sfence() };
}

/// Copies `from` to `to`, which are of one length.
///
/// # Panics
/// When they are not.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn pour(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::pour;

    #[test]
    fn any_length_at_any_place_is_copied_and_nothing_beside_it() {
        let from: Vec<u8> = (0..700_u32).map(|number| (number % 251) as u8).collect();
        for start in 0..130 {
            for len in (0..200).chain([500, 570]) {
                let mut to = vec![255; 800];
                pour(&mut to[start..start + len], &from[7..7 + len]);
                assert_eq!(to[start..start + len], from[7..7 + len], "{len} bytes to {start}");
                assert!(
                    to[..start].iter().chain(&to[start + len..]).all(|byte| *byte == 255),
                    "{len} bytes to {start}"
                );
            }
        }
    }
}
