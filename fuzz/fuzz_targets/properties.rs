//! Configuration files from hostile hands: parsing and lookups end, and never panic.
#![no_main]

use agent::config::lookup::{World, resolve};
use agent::config::properties::Properties;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut properties = Properties::parse("fuzz", bytes);
    let system = std::collections::HashMap::from([("k".to_owned(), "${env:X}".to_owned())]);
    let environment = |_: &str| Some("${sys:k}".to_owned());
    resolve(&mut properties, &World { system: &system, environment: &environment, now: jiff_now() });
});

fn jiff_now() -> agent::config::lookup::Now {
    "2026-03-07T15:04:05.678+00:00[UTC]".parse().expect("a date")
}
