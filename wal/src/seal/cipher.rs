//! Whose AES-256-GCM seals: that of ring, or with the feature `aws-lc-rs` that of aws-lc-rs.
//!
//! Both give the same bytes, so a file says nothing of which one wrote it, and either reads what the other wrote. Which one is
//! faster depends on the processor: aws-lc-rs uses instructions on several blocks at once (VAES) only where it has AVX-512 as
//! well, ring where it has AVX2. Keys are derived, and randomness comes, by ring in both cases: nobody waits for either.

#[cfg(feature = "aws-lc-rs")]
pub(super) use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
#[cfg(not(feature = "aws-lc-rs"))]
pub(super) use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
