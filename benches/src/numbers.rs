//! Numbers as they are printed: latencies of a histogram, the spread over rounds, sizes for people.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Longer than any write that ends at all.
const LATENCY_MAX: Duration = Duration::from_secs(600);

/// Latencies to three digits, from a nanosecond to ten minutes.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3).expect("bounds that it takes"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub(crate) fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// `part` of all latencies are not longer than this, in microseconds.
    pub(crate) fn quantile_us(&self, part: f64) -> f64 {
        rounded(self.0.value_at_quantile(part) as f64 / 1e3)
    }

    pub(crate) fn json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        json!({
            "p50": self.quantile_us(0.50),
            "p99": self.quantile_us(0.99),
            "p99_9": self.quantile_us(0.999),
            "max": rounded(self.0.max() as f64 / 1e3),
        })
    }
}

/// The rounds of one measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// # Panics
    /// Without a single round.
    pub(crate) fn of(rounds: &[f64]) -> Spread {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Spread { min: sorted[0], median: f64::midpoint(low, high), max: sorted[sorted.len() - 1] }
    }

    pub(crate) fn json(self) -> Value {
        json!({"min": rounded(self.min), "median": rounded(self.median), "max": rounded(self.max)})
    }
}

/// Four digits that mean something: more would claim what no run can know.
pub(crate) fn rounded(number: f64) -> f64 {
    if number == 0.0 || !number.is_finite() {
        return number;
    }
    let digits = (3 - number.abs().log10().floor() as i32).clamp(-15, 15);
    if digits > 0 {
        let scale = 10f64.powi(digits);
        (number * scale).round() / scale
    } else {
        let scale = 10f64.powi(-digits);
        (number / scale).round() * scale
    }
}

/// `4 KiB`, `1 MiB`, `100 B`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_of_rounds_is_between_the_two_in_the_middle() {
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0]), Spread { min: 1.0, median: 3.0, max: 4.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0, 2.0]).median, 2.5);
    }

    #[test]
    fn four_digits_remain() {
        let cases = [(123_456.0, 123_500.0), (12.3456, 12.35), (0.001_234_56, 0.001_235), (0.0, 0.0)];
        for (number, expected) in cases {
            assert_eq!(rounded(number), expected);
        }
    }

    #[test]
    fn latencies_of_threads_add_up_and_keep_their_tail() {
        let (mut one, mut other) = (Latencies::new(), Latencies::new());
        (0..999).for_each(|_| one.record(Duration::from_micros(100)));
        other.record(Duration::from_millis(50));
        one.add(&other);
        let (middle, tail) = (one.quantile_us(0.5), one.json()["max"].as_f64().unwrap());
        assert!((99.0..101.0).contains(&middle) && (49_900.0..50_100.0).contains(&tail), "{middle} {tail}");
        assert_eq!(one.count(), 1000);
        assert_eq!(Latencies::new().json(), Value::Null);
    }

    #[test]
    fn sizes_are_read_by_people() {
        for (bytes, expected) in [(100, "100 B"), (4096, "4 KiB"), (1 << 20, "1 MiB"), (1536, "1.5 KiB")] {
            assert_eq!(size(bytes), expected);
        }
    }
}
