//! Whether compressing makes this channel faster, found out by trying.
//!
//! Compression spends processor time to spare the disk bytes. Which of the two is short depends on the disk and its limits, the
//! processors, the events and on whatever else runs, and it changes. So nothing is computed: now and then the channel does
//! for a moment what it does not do otherwise, and counts how many bytes of events become durable, before, during and after.
//! It promises that a trial takes a small part of the time, that its winner was better than both of its neighbours, and that
//! nothing is compressed where that makes no difference.
//!
//! ```text
//!  … as settled … │ before │  turn  │ trial │  turn  │ after │ … as settled, or the other way from now on …
//! ```

use std::time::Duration;

/// Between two trials, at first and after one that changed something: a single one may have met a bad moment of the disk.
const EVERY_MIN: Duration = Duration::from_secs(1);
/// Twice as long after each one that changed nothing, up to this. A trial turns the channel for `TURN + SPAN` = 0.4 s.
const EVERY_MAX: Duration = Duration::from_secs(32);
/// What is compared: several of the tenths of a second in which Linux deals out the bytes of a disk that it limits.
const SPAN: Duration = Duration::from_millis(300);
/// Transactions on their way when the way changes are of the other kind.
const TURN: Duration = Duration::from_millis(100);
/// Compressed, the same disk must take so many times the bytes, or it is not worth the processor time.
const WORTH: f64 = 1.1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Settled,
    Before,
    ToTrial,
    Trial,
    Back,
    After,
}

/// Bytes per second of the channel with and without compression, and what follows.
#[derive(Debug)]
pub(crate) struct Trials {
    compresses: bool,
    /// From the end of this trial to the next one.
    every: Duration,
    phase: Phase,
    since: Duration,
    /// Bytes at that time.
    from: u64,
    before: f64,
    trial: f64,
}

impl Trials {
    /// Nothing is compressed; the first trial begins with the first load.
    pub(crate) fn new() -> Trials {
        let (since, from, before, trial) = (Duration::ZERO, 0, 0.0, 0.0);
        Trials { compresses: false, every: EVERY_MIN, phase: Phase::Before, since, from, before, trial }
    }

    /// Whether transactions that are put now are compressed.
    pub(crate) fn compresses(&self) -> bool {
        self.compresses != matches!(self.phase, Phase::ToTrial | Phase::Trial)
    }

    /// So many bytes of transactions, as they are without compression, are durable since the channel was opened.
    pub(crate) fn durable(&mut self, now: Duration, bytes: u64) {
        let passed = now.saturating_sub(self.since);
        let (lasts, next) = match self.phase {
            Phase::Settled => (self.every, Phase::Before),
            Phase::Before => (SPAN, Phase::ToTrial),
            Phase::ToTrial => (TURN, Phase::Trial),
            Phase::Trial => (SPAN, Phase::Back),
            Phase::Back => (TURN, Phase::After),
            Phase::After => (SPAN, Phase::Settled),
        };
        if passed < lasts {
            return;
        }
        let rate = bytes.saturating_sub(self.from) as f64 / passed.as_secs_f64();
        match self.phase {
            Phase::Before => self.before = rate,
            Phase::Trial => self.trial = rate,
            Phase::After => self.decide(rate),
            Phase::Settled | Phase::ToTrial | Phase::Back => {}
        }
        (self.phase, self.since, self.from) = (next, now, bytes);
    }

    fn decide(&mut self, after: f64) {
        // A load that only grows or only shrinks meanwhile has a better neighbour on one side.
        let settled = self.before.max(after);
        let compresses = if self.compresses { self.trial * WORTH < settled } else { self.trial > settled * WORTH };
        self.every = if compresses == self.compresses { EVERY_MAX.min(2 * self.every) } else { EVERY_MIN };
        self.compresses = compresses;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a channel for some seconds, in steps of a millisecond, whose rate is `rate(second, compressed)`. Returns the
    /// part of the last half in which it compressed.
    fn compressed_part(trials: &mut Trials, seconds: u64, rate: impl Fn(u64, bool) -> usize) -> f64 {
        let (mut compressed, mut bytes, steps) = (0, trials.from, seconds * 1000);
        let begin = trials.since.as_millis() as u64;
        for step in 0..steps {
            bytes += rate(step / 1000, trials.compresses()) as u64 / 1000;
            trials.durable(Duration::from_millis(begin + step), bytes);
            compressed += u64::from(step >= steps / 2 && trials.compresses());
        }
        compressed as f64 / (steps - steps / 2) as f64
    }

    #[test]
    fn a_slow_disk_is_spared_and_a_fast_one_is_not_and_a_change_is_noticed() {
        let slow = |_, compressed| if compressed { 300 << 20 } else { 100 << 20 };
        let fast = |_, compressed| if compressed { 200 << 20 } else { 900 << 20 };
        let idle = |_, _| 1 << 20;
        let mut trials = Trials::new();
        for _ in 0..2 {
            assert!(compressed_part(&mut trials, 120, slow) > 0.97);
            assert!(compressed_part(&mut trials, 120, fast) < 0.03);
            assert!(compressed_part(&mut trials, 120, slow) > 0.97);
            assert!(
                compressed_part(&mut trials, 120, idle) < 0.03,
                "where it makes no difference, nothing is compressed"
            );
        }
    }

    #[test]
    fn a_load_that_grows_or_shrinks_by_itself_decides_nothing() {
        for factor in [2, -2] {
            let mut trials = Trials::new();
            let rate = |second: u64, compressed| {
                let load = (100_i64 << 20) + factor * ((second as i64) << 20) / 4;
                (load as usize) / if compressed { 2 } else { 1 }
            };
            assert!(compressed_part(&mut trials, 120, rate) < 0.03);
        }
    }
}
