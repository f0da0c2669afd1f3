//! The table of interceptors: one line per kind, one file each.
//!
//! To add one: write its module here, with an `ENTRY`, and add one line to [`TABLE`].

mod fixed;
mod host;
mod timestamp;

use channel::Existing;

use crate::component::{InterceptorEntry, Settings};

/// Every interceptor that this build has.
pub static TABLE: &[&InterceptorEntry] = &[&timestamp::ENTRY, &host::ENTRY, &fixed::ENTRY];

/// `preserveExisting`, which every one of them has.
fn existing(settings: &Settings) -> Existing {
    if settings.flag("preserveExisting") { Existing::Keep } else { Existing::Replace }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::EventBatch;

    fn header_after(alias: &str, lines: &[(&str, &str)], own: &[(&str, &str)], key: &str) -> Option<String> {
        let entry = TABLE.iter().find(|entry| entry.alias == alias).unwrap();
        let settings = Settings::of("sources.r1.interceptors.i", entry.keys, lines);
        settings.check(&[]);
        assert_eq!(settings.take_findings(), []);
        let interceptor = (entry.build)(&settings).unwrap();
        let mut batch = EventBatch::new();
        batch.push(own.iter().copied(), b"x");
        interceptor.intercept(&mut batch);
        batch.get(0).header(key).map(str::to_owned)
    }

    #[test]
    fn static_keeps_what_an_event_brings_unless_told_otherwise() {
        assert_eq!(header_after("static", &[], &[], "key").as_deref(), Some("value"));
        let lines = [("key", "k"), ("value", "v")];
        assert_eq!(header_after("static", &lines, &[("k", "own")], "k").as_deref(), Some("own"));
        let lines = [("key", "k"), ("value", "v"), ("preserveExisting", "false")];
        assert_eq!(header_after("static", &lines, &[("k", "own")], "k").as_deref(), Some("v"));
    }

    #[test]
    fn timestamp_replaces_what_an_event_brings_unless_told_otherwise() {
        let millis: u64 = header_after("timestamp", &[], &[("timestamp", "5")], "timestamp").unwrap().parse().unwrap();
        assert!(millis > 1_700_000_000_000);
        let lines = [("preserveExisting", "true"), ("headerName", "ts")];
        assert_eq!(header_after("timestamp", &lines, &[("ts", "5")], "ts").as_deref(), Some("5"));
    }

    #[test]
    fn host_is_an_address_or_a_name() {
        if let Some(address) = header_after("host", &[], &[], "host") {
            assert!(address.parse::<std::net::IpAddr>().is_ok(), "{address}");
        }
        let lines = [("hostHeader", "h"), ("useIP", "false")];
        assert_ne!(header_after("host", &lines, &[], "h").as_deref(), Some(""));
    }
}
