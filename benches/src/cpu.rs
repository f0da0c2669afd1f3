//! What one core of this machine does with bytes, measured with the very code that the log runs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wal::seal::ChannelKey;

use crate::numbers::{Spread, rounded};

/// More than any cache of one core: events come from memory.
const MEMORY: usize = 64 << 20;
/// The longest piece: a frame under load.
const FRAME: usize = 256 << 10;
/// Pieces to encrypt: a lone small frame, and frames under load.
const SEALED: [usize; 3] = [4 << 10, 64 << 10, FRAME];

/// Gigabytes a second of one core, medians of `rounds`.
pub(crate) fn rates(rounds: usize, time: Duration) -> Value {
    let source = vec![0x5a_u8; MEMORY];
    let mut frame = vec![0_u8; FRAME];
    let (key, _) = ChannelKey::new("bench", [7; 32]).expect("a fine name").derive(&[1; 32]);
    let mut pieces = source.chunks_exact(FRAME).cycle();
    let mut next = || pieces.next().expect("they go round for ever");

    let copy = rate(rounds, time, FRAME, || frame.copy_from_slice(black_box(next())));
    let mut pieces = source.chunks_exact(FRAME).cycle();
    let checksum = rate(rounds, time, FRAME, || {
        black_box(wal::checksum::crc32c(pieces.next().expect("they go round for ever")));
    });
    let mut number = 0;
    let seal = SEALED.map(|len| {
        let sealed = rate(rounds, time, len, || {
            number += 1;
            black_box(key.seal(number, b"header", &mut frame[..len]));
        });
        (len.to_string(), rounded(sealed))
    });
    json!({
        "copy_gb_s": rounded(copy),
        "crc32c_gb_s": rounded(checksum),
        "aes_256_gcm_gb_s": seal.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "zstd_1_gb_s": null,
    })
}

fn rate(rounds: usize, time: Duration, len: usize, mut work: impl FnMut()) -> f64 {
    let rates: Vec<f64> = (0..rounds.max(1))
        .map(|_| {
            let (begin, mut bytes) = (Instant::now(), 0_u64);
            while begin.elapsed() < time {
                work();
                bytes += len as u64;
            }
            bytes as f64 / begin.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    Spread::of(&rates).median
}
