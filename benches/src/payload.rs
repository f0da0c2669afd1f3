//! Events to put, made before anything is measured.

use channel::EventBatch;
use clap::ValueEnum;

/// Batches made for each producer; they go round.
const BATCHES: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Payload {
    /// Nothing compresses it
    Random,
    /// Lines of an access log, which shrink to a third
    Log,
}

impl Payload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Payload::Random => "random",
            Payload::Log => "log",
        }
    }

    /// Batches of `events` events with bodies of `size` bytes, others for each `producer`.
    pub(crate) fn batches(self, producer: u64, events: usize, size: usize) -> Vec<EventBatch> {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (producer + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9));
        let batch = |_| {
            let mut batch = EventBatch::with_capacity(events, events * (size + 1));
            let mut body = Vec::with_capacity(size + 8);
            for _ in 0..events {
                body.clear();
                while body.len() < size {
                    match self {
                        Payload::Random => body.extend_from_slice(&random.next().to_le_bytes()),
                        Payload::Log => body.extend_from_slice(line(&mut random).as_bytes()),
                    }
                }
                batch.push_body(&body[..size]);
            }
            batch
        };
        (0..BATCHES).map(batch).collect()
    }
}

/// Xorshift: quick, and the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u64) as usize]
    }
}

fn line(random: &mut Random) -> String {
    let path =
        random.one_of(&["/index.html", "/api/v1/orders", "/api/v1/users", "/static/app.js", "/health", "/login"]);
    let agent = random.one_of(&["Mozilla/5.0 (X11; Linux x86_64)", "curl/8.5.0", "okhttp/4.12.0", "kube-probe/1.29"]);
    let (status, method) =
        (random.one_of(&["200", "200", "200", "304", "404", "500"]), random.one_of(&["GET", "POST"]));
    format!(
        "10.{}.{}.{} - - [21/Nov/2026:08:{:02}:{:02} +0000] \"{method} {path}?id={} HTTP/1.1\" {status} {} \"-\" \
         \"{agent}\" {}us\n",
        random.below(4),
        random.below(256),
        random.below(256),
        random.below(60),
        random.below(60),
        random.below(1_000_000),
        random.below(50_000),
        random.below(100_000),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_size_and_producers_differ() {
        for payload in [Payload::Random, Payload::Log] {
            let (one, other) = (payload.batches(0, 10, 333), payload.batches(1, 10, 333));
            assert_eq!(one.len(), BATCHES);
            let bodies: Vec<_> = one[0].iter().map(|event| event.body().to_vec()).collect();
            assert!(bodies.len() == 10 && bodies.iter().all(|body| body.len() == 333));
            assert_ne!(bodies[0], other[0].get(0).body());
        }
    }
}
