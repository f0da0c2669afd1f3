//! Events made from a seed, and the file format in which a sender written in Java reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: a few lines, the same numbers on every machine, good enough to mix sizes and instants.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// For instants and ports, where another run should be another run. Tests print the seed they took.
    pub fn from_clock() -> Random {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
        Random(now.as_secs().rotate_left(32) ^ u64::from(now.subsec_nanos()))
    }

    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Event {
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// `count` events of mixed sizes. Each carries its number in the header `id`, so that a lost one has a name.
///
/// Of 100 bodies about 60 are short lines, 25 are Unicode of several scripts, 10 are bytes that are no UTF-8, 4 are
/// some KiB and 1 is up to 64 KiB; empty bodies and empty header values occur.
pub fn mixed(seed: u64, count: u64) -> Vec<Event> {
    let mut random = Random::new(seed);
    (0..count).map(|id| one(&mut random, id)).collect()
}

fn one(random: &mut Random, id: u64) -> Event {
    const WORDS: [&str; 8] = ["Grüße", "日本語", "שלום", "𝄞 clef", "naïve", "Ωμέγα", "🙂🙃", "tab\tand \"quotes\""];
    let mut headers = BTreeMap::from([("id".to_owned(), id.to_string())]);
    for _ in 0..random.below(4) {
        let key = format!("k{}", random.below(20));
        let value = match random.below(4) {
            0 => String::new(),
            1 => WORDS[random.below(8) as usize].to_owned(),
            _ => format!("{:x}", random.next()),
        };
        headers.insert(key, value);
    }
    if random.below(10) == 0 {
        headers.insert(format!("ключ-{}", random.below(5)), WORDS[random.below(8) as usize].to_owned());
    }
    let body = match random.below(100) {
        0..60 => {
            let length = random.below(300) as usize;
            let mut line = format!("event {id} ").into_bytes();
            while line.len() < length {
                line.extend_from_slice(format!("{:016x} ", random.next()).as_bytes());
            }
            line.truncate(length);
            line
        }
        60..85 => (0..random.below(40)).map(|_| WORDS[random.below(8) as usize]).collect::<String>().into_bytes(),
        85..95 => bytes(random, 1_000),
        95..99 => bytes(random, 8_000),
        _ => bytes(random, 65_536),
    };
    Event { headers, body }
}

fn bytes(random: &mut Random, limit: u64) -> Vec<u8> {
    let length = random.below(limit) as usize;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Writes what `SdkClient.java` reads: per event two blobs, the headers and the body; in the first, key and value of each
/// header as blobs. A blob is its length (32 bits, big-endian) and its bytes.
pub fn write_file(path: &Path, events: &[Event]) {
    let mut file = BufWriter::new(File::create(path).expect("create the file of events"));
    for event in events {
        let mut headers = Vec::new();
        for (key, value) in &event.headers {
            put_blob(&mut headers, key.as_bytes());
            put_blob(&mut headers, value.as_bytes());
        }
        let mut both = Vec::with_capacity(headers.len() + event.body.len() + 8);
        put_blob(&mut both, &headers);
        put_blob(&mut both, &event.body);
        file.write_all(&both).expect("write the file of events");
    }
    file.flush().expect("write the file of events");
}

fn put_blob(target: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("a test event is small");
    target.extend_from_slice(&length.to_be_bytes());
    target.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_events_again_and_another_seed_gives_others() {
        assert_eq!(mixed(7, 500), mixed(7, 500));
        assert_ne!(mixed(7, 500), mixed(8, 500));
    }

    #[test]
    fn the_mix_holds_empty_large_and_undecodable_bodies() {
        let events = mixed(1, 5_000);
        assert!(events.iter().any(|event| event.body.is_empty()));
        assert!(events.iter().any(|event| event.body.len() > 32_768));
        assert!(events.iter().any(|event| std::str::from_utf8(&event.body).is_err()));
        assert!(events.iter().any(|event| event.headers.values().any(|value| !value.is_ascii())));
    }
}
