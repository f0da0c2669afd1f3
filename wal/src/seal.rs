//! Encryption of frames and checkpoints: AES-256-GCM, one key per incarnation, counter nonces.
//!
//! The key of an incarnation is HKDF-SHA256(channel key, salt of the incarnation), so no two incarnations share one,
//! and the counter of frames within an incarnation never repeats: a nonce is used once. The key check value in the
//! header tells a wrong key from damage. Keys never reach a log or `Debug`.

mod cipher;

use std::fmt;

use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use self::cipher::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use crate::format::frame::TAG;
use crate::planted::{self, Bug};

/// The secret of a channel and the name it has in the key file.
#[derive(Clone)]
pub struct ChannelKey {
    id: String,
    secret: Zeroizing<[u8; 32]>,
}

impl ChannelKey {
    /// `id` is 1 to 32 bytes of ASCII letters, digits, `-`, `_` or `.`.
    pub fn new(id: &str, secret: [u8; 32]) -> Result<ChannelKey, String> {
        let secret = Zeroizing::new(secret);
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if id.is_empty() || id.len() > 32 || !id.bytes().all(fine) {
            return Err("a key id is 1 to 32 letters, digits, '-', '_' or '.'".to_owned());
        }
        Ok(ChannelKey { id: id.to_owned(), secret })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key of one incarnation or checkpoint, and the value that recognises it.
    pub fn derive(&self, salt: &[u8; 32]) -> (FrameKey, [u8; 16]) {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.secret[..]);
        let expand = |purpose: &'static [u8], out: &mut [u8]| {
            struct Length(usize);
            impl hkdf::KeyType for Length {
                fn len(&self) -> usize {
                    self.0
                }
            }
            secret
                .expand(&[purpose], Length(out.len()))
                .and_then(|okm| okm.fill(out))
                .expect("HKDF-SHA256 gives up to 8,160 bytes");
        };
        let mut key = Zeroizing::new([0; 32]);
        let mut check = [0; 16];
        expand(b"penstock 1 key", &mut key[..]);
        expand(b"penstock 1 key check", &mut check);
        #[cfg(any(test, feature = "sim"))]
        let mark = u64::from_le_bytes(*key.first_chunk().expect("a key has 32 bytes"));
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).expect("the key has the cipher's length");
        let frame_key = FrameKey {
            key: LessSafeKey::new(key),
            #[cfg(any(test, feature = "sim"))]
            mark,
        };
        (frame_key, check)
    }
}

impl fmt::Debug for ChannelKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ChannelKey({})", self.id)
    }
}

/// Encrypts and decrypts under one derived key.
pub struct FrameKey {
    key: LessSafeKey,
    /// Part of the key, so that simulations notice when a nonce is used twice under it.
    #[cfg(any(test, feature = "sim"))]
    mark: u64,
}

/// Watches every nonce that this thread seals with, for simulations.
#[cfg(any(test, feature = "sim"))]
pub mod nonces {
    use std::cell::RefCell;
    use std::collections::HashMap;

    /// What was sealed under (key, number), and the first number used for two different things.
    #[derive(Default)]
    struct Watch {
        used: HashMap<(u64, u64), u32>,
        repeated: Option<u64>,
    }

    thread_local! {
        static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
    }

    /// Forgets what was seen and watches from now on.
    pub fn watch() {
        WATCH.set(Some(Watch::default()));
    }

    /// Forgets what was seen and watches no longer: what follows may run one history several times, with the same keys.
    pub fn stop() {
        WATCH.set(None);
    }

    /// A number that sealed two different plaintexts under one key, if there is one.
    pub fn repeated() -> Option<u64> {
        WATCH.with_borrow(|watch| watch.as_ref()?.repeated)
    }

    pub(super) fn note(key: u64, number: u64, authenticated: &[u8], body: &[u8]) {
        WATCH.with_borrow_mut(|watch| {
            let Some(watch) = watch else { return };
            let content = crate::checksum::crc32c(authenticated) ^ crate::checksum::crc32c(body).rotate_left(7);
            if *watch.used.entry((key, number)).or_insert(content) != content {
                watch.repeated.get_or_insert(number);
            }
        });
    }
}

/// The bytes do not authenticate under this key: they, their place or their header were changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAuthentic;

impl FrameKey {
    /// Encrypts `body` in place. `number` must never be used twice with this key.
    pub fn seal(&self, number: u64, authenticated: &[u8], body: &mut [u8]) -> [u8; TAG] {
        #[cfg(any(test, feature = "sim"))]
        nonces::note(self.mark, number, authenticated, body);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number), additional(authenticated), body)
            .expect("a frame is far below the cipher's 64 GiB");
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Decrypts body and tag in place; the body is what remains.
    pub fn open(&self, number: u64, authenticated: &[u8], body_and_tag: &mut [u8]) -> Result<(), NotAuthentic> {
        if planted::is(Bug::SkipTag) {
            // In this mode a second encryption undoes the first.
            let body_len = body_and_tag.len().checked_sub(TAG).ok_or(NotAuthentic)?;
            let body = &mut body_and_tag[..body_len];
            let undone = self.key.seal_in_place_separate_tag(nonce(number), additional(authenticated), body);
            return undone.map(|_| ()).map_err(|_| NotAuthentic);
        }
        self.key.open_in_place(nonce(number), additional(authenticated), body_and_tag).map_err(|_| NotAuthentic)?;
        Ok(())
    }
}

impl fmt::Debug for FrameKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FrameKey")
    }
}

fn additional(authenticated: &[u8]) -> Aad<&[u8]> {
    if planted::is(Bug::LeaveHeaderOut) { Aad::from(&[]) } else { Aad::from(authenticated) }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Randomness as an argument: salts, identities, incarnation ids.
pub trait Random: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);

    fn bytes<const N: usize>(&self) -> [u8; N]
    where
        Self: Sized,
    {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }
}

/// The kernel's.
#[derive(Debug)]
pub struct OsRandom;

impl Random for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        SystemRandom::new().fill(bytes).expect("the kernel has randomness");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_open_only_whole_and_only_in_their_place() {
        let key = ChannelKey::new("k1", [7; 32]).unwrap();
        let (frame_key, check) = key.derive(&[1; 32]);
        let (other, other_check) = key.derive(&[2; 32]);
        assert_ne!(check, other_check);
        let mut body = b"an event".to_vec();
        let tag = frame_key.seal(9, b"header", &mut body);
        assert_ne!(body, b"an event");
        body.extend_from_slice(&tag);
        let open = |key: &FrameKey, number, header: &[u8], bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            key.open(number, header, &mut bytes).map(|()| bytes[..8].to_vec())
        };
        assert_eq!(open(&frame_key, 9, b"header", &body).unwrap(), b"an event");
        assert!(open(&frame_key, 8, b"header", &body).is_err());
        assert!(open(&frame_key, 9, b"Header", &body).is_err());
        assert!(open(&other, 9, b"header", &body).is_err());
        for bit in 0..body.len() * 8 {
            let mut flipped = body.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&frame_key, 9, b"header", &flipped).is_err(), "bit {bit}");
        }
    }

    /// The tags were written down from ring. A tag holds for every byte that was sealed, so that an equal one says that all of
    /// them are equal, whichever implementation this was built with.
    #[test]
    fn either_cipher_reads_what_the_other_wrote() {
        let (key, check) = ChannelKey::new("k1", [7; 32]).unwrap().derive(&[1; 32]);
        assert_eq!(check, 0x5661_fe11_e5a5_34fd_e503_6888_52a3_b816_u128.to_be_bytes());
        let written: [(usize, u64, u128); 4] = [
            (0, 0, 0xf411_e781_fdb0_648b_c7c2_4d45_ff48_2932),
            (1, 1, 0x3398_673c_cd02_ec8b_352c_36c8_570b_d93f),
            (4096, 2, 0xb417_101e_5417_d384_f44f_98fe_a6b5_877c),
            (100_003, u64::MAX, 0xfd4f_34ef_9748_8bf3_357b_951e_07f8_51f0),
        ];
        for (len, number, tag) in written {
            let body: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
            let mut sealed = body.clone();
            let sealed_tag = key.seal(number, b"header", &mut sealed);
            assert_eq!(sealed_tag, tag.to_be_bytes(), "{len} bytes");
            sealed.extend_from_slice(&tag.to_be_bytes());
            key.open(number, b"header", &mut sealed).unwrap();
            assert_eq!(sealed[..len], body, "{len} bytes");
        }
    }

    #[test]
    fn a_key_never_prints_itself() {
        let key = ChannelKey::new("k1", [0xab; 32]).unwrap();
        assert_eq!(format!("{key:?} {:?}", key.derive(&[0; 32]).0), "ChannelKey(k1) FrameKey");
    }
}
