//! What Java's own classes print, where Flume's output depends on it: the order of a `HashMap`, its `toString`.
//!
//! Flume keeps an event's headers in a `java.util.HashMap` and prints them in the map's order. That order follows from
//! the size of the table: a source that brings headers hands over a copy of its map, sized for what it holds, while a
//! source without headers starts with an empty map of 16 buckets; what interceptors add later makes either grow. The
//! order here is that of an event in a memory channel; Flume's file channel builds its maps anew with another size, and
//! prints some events in another order, which is not repeated here.
//!
//! ```text
//! bucket = (h ^ h >>> 16) & (table - 1)     h = String.hashCode, over UTF-16 units
//! ```

use std::fmt::Write as _;

use channel::EventRef;

/// A bucket of as many keys becomes a tree, or makes a table below [`TREE_TABLE_MIN`] grow.
const TREE_BIN_KEYS: usize = 8;
const TREE_TABLE_MIN: usize = 64;
const DEFAULT_TABLE: usize = 16;

/// Java's `String.hashCode`.
fn string_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// An event's headers in the order in which Flume prints them.
pub fn event_headers(event: EventRef<'_>) -> Vec<(&str, &str)> {
    ordered(event.headers().collect(), event.own_header_count())
}

/// An event's headers as Flume prints them: `{key=value, key=value}`.
pub fn event_headers_text(event: EventRef<'_>) -> String {
    map_text(&event_headers(event))
}

/// `Map.toString` of entries that are in order already.
fn map_text(headers: &[(&str, &str)]) -> String {
    let mut text =
        String::with_capacity(2 + headers.iter().map(|(key, value)| key.len() + value.len() + 3).sum::<usize>());
    text.push('{');
    for (index, (key, value)) in headers.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        write!(text, "{key}={value}").expect("a String takes everything");
    }
    text.push('}');
    text
}

/// The order of a map copied from the first `brought` headers, into which the others were put one by one.
fn ordered<'a>(headers: Vec<(&'a str, &'a str)>, brought: usize) -> Vec<(&'a str, &'a str)> {
    if headers.len() < 2 {
        return headers;
    }
    let hashes: Vec<u32> = headers.iter().map(|(key, _)| spread(string_hash(key))).collect();
    let mask = (table_size(&hashes, brought) - 1) as u32;
    let mut keyed: Vec<_> = hashes.into_iter().map(|hash| hash & mask).zip(headers).collect();
    // Within a bucket keys stay in the order of insertion; splitting a bucket keeps it, hence a stable sort.
    keyed.sort_by_key(|(bucket, _)| *bucket);
    keyed.into_iter().map(|(_, header)| header).collect()
}

fn spread(hash: i32) -> u32 {
    let bits = hash as u32;
    bits ^ (bits >> 16)
}

/// Buckets of the table after all insertions.
fn table_size(hashes: &[u32], brought: usize) -> usize {
    let mut table = match brought.min(hashes.len()) {
        0 => DEFAULT_TABLE,
        // HashMap(Map): the smallest power of two not below size / 0.75 + 1, in Java's float.
        brought => ((brought as f32 / 0.75 + 1.0) as usize).next_power_of_two(),
    };
    for (size, hash) in (1..).zip(hashes) {
        // A full bucket below 64 buckets makes the table grow before its time.
        if size > TREE_BIN_KEYS && table < TREE_TABLE_MIN {
            let mask = (table - 1) as u32;
            let neighbours = hashes[..size - 1].iter().filter(|other| *other & mask == hash & mask).count();
            if neighbours >= TREE_BIN_KEYS {
                table *= 2;
            }
        }
        if size > table / 4 * 3 + (table % 4) * 3 / 4 {
            table *= 2;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{EventBatch, Existing};
    use proptest::prelude::*;

    fn check(own: &[&str], added: &[&str], expected: &str) {
        let mut batch = EventBatch::new();
        let values: Vec<String> = (0..own.len()).map(|index| index.to_string()).collect();
        batch.push(own.iter().copied().zip(values.iter().map(String::as_str)), b"");
        for key in added {
            batch.set_common(key, &key[..1].to_uppercase(), Existing::Replace);
        }
        assert_eq!(event_headers_text(batch.get(0)), expected, "{own:?} then {added:?}");
    }

    // The expected texts were printed by OpenJDK 17.
    #[test]
    fn headers_that_a_source_brings_come_in_the_order_of_a_copied_map() {
        check(&[], &[], "{}");
        check(&["k"], &[], "{k=0}");
        check(&["k", "n"], &[], "{n=1, k=0}");
        check(&["k", "n", "a"], &[], "{a=2, k=0, n=1}");
        check(
            &["Severity", "Facility", "host", "timestamp", "priority"],
            &[],
            "{host=2, Severity=0, Facility=1, priority=4, timestamp=3}",
        );
        check(&["ü", "日本", "😀", "e", ""], &[], "{😀=2, =4, 日本=1, ü=0, e=3}");
    }

    #[test]
    fn headers_that_interceptors_add_to_an_empty_event_come_in_the_order_of_sixteen_buckets() {
        check(&[], &["k", "n"], "{k=K, n=N}");
        check(&[], &["timestamp", "host", "key"], "{host=H, key=K, timestamp=T}");
    }

    #[test]
    fn headers_added_later_make_the_copied_table_grow() {
        check(&["k", "n"], &["timestamp", "host", "key"], "{host=H, k=0, n=1, key=K, timestamp=T}");
        check(
            &["ü", "日本", "😀", "e", ""],
            &["timestamp", "host", "key"],
            "{=4, e=3, 😀=2, host=H, 日本=1, ü=0, key=K, timestamp=T}",
        );
    }

    #[test]
    fn keys_of_one_bucket_keep_the_order_in_which_they_were_put() {
        check(&["AaAa", "BBBB", "AaBB", "BBAa"], &[], "{AaAa=0, BBBB=1, AaBB=2, BBAa=3}");
        check(&["BBAa", "AaBB"], &[], "{BBAa=0, AaBB=1}");
    }

    #[test]
    fn tables_grow_where_javas_do() {
        let expected = [
            (1, "0"),
            (2, "1,0"),
            (3, "2,1,0"),
            (5, "2,4,1,3,0"),
            (6, "2,3,0,4,1,5"),
            (11, "9,2,6,10,3,0,7,4,8,1,5"),
            (12, "9,10,1,2,6,3,0,11,7,4,8,5"),
            (13, "9,10,1,12,2,6,3,0,11,7,4,8,5"),
            (24, "9,10,12,2,6,3,22,7,4,23,8,5,21,19,20,1,13,14,0,11,16,15,17,18"),
            (25, "9,10,12,2,6,3,22,7,4,23,8,5,21,19,20,24,1,13,14,0,11,16,15,17,18"),
        ];
        for (count, values) in expected {
            let headers: Vec<(String, String)> =
                (0..count).map(|index| (format!("header-{}", index * 7919 % 1000), index.to_string())).collect();
            let headers: Vec<_> = headers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let ordered = ordered(headers, count);
            let found: Vec<&str> = ordered.iter().map(|(_, value)| *value).collect();
            assert_eq!(found.join(","), values, "{count} headers");
        }
    }

    #[test]
    fn a_bucket_of_nine_keys_makes_a_small_table_grow() {
        // All of these have one hash code, so a table of 32 buckets is the only sign.
        let same: Vec<String> = (0..9)
            .map(|bits| (0..4).map(|bit| if bits >> bit & 1 == 0 { "Aa" } else { "BB" }).collect::<String>())
            .collect();
        let hashes: Vec<u32> = same.iter().map(|key| spread(string_hash(key))).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]));
        assert_eq!(table_size(&hashes[..8], 8), 16);
        assert_eq!(table_size(&hashes, 9), 32);
    }

    #[test]
    fn hash_codes_are_those_of_java() {
        for (text, hash) in [("", 0), ("timestamp", 55_126_294), ("😀", 1_772_899), ("日本", 835_047)] {
            assert_eq!(string_hash(text), hash, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_header_is_printed_once(
            keys in proptest::collection::hash_set(".{0,6}", 0..80),
            brought in 0_usize..80,
        ) {
            let headers = keys.iter().map(|key| (key.as_str(), "")).collect();
            let mut found: Vec<&str> = ordered(headers, brought).into_iter().map(|(key, _)| key).collect();
            let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
