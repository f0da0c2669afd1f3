//! No path template and no event may lead out of the template's own literal root.
#![no_main]

use channel::EventBatch;
use libfuzzer_sys::fuzz_target;
use store::clock::{Rounding, Zone};
use store::template::{HostNames, PathTemplates, TimeRules, lies_below};

fuzz_target!(|input: (&str, &str, &str, &str, i64, u8)| {
    let (path, prefix, key, value, millis, step) = input;
    let rounding = match step % 4 {
        0 => Rounding::None,
        1 => Rounding::Seconds(step),
        2 => Rounding::Minutes(step),
        _ => Rounding::Hours(step),
    };
    let time = TimeRules { zone: Zone::gmt(), rounding, use_local_time: step & 128 != 0 };
    let path = format!("/root/{path}");
    let Ok(templates) = PathTemplates::new(&path, prefix, &HostNames::default(), time, step & 64 != 0) else { return };
    let mut batch = EventBatch::new();
    batch.push([("a", value), (key, value), ("timestamp", millis.to_string().as_str())], b"x");
    let Ok(place) = templates.expand(batch.get(0), millis) else { return };
    let whole = format!("{}/{}", place.directory, place.name);
    assert!(lies_below(&whole, templates.root()), "{whole:?} leaves {:?}", templates.root());
    // The operator's own root is taken as it is.
    assert!(path.contains('\0') || !whole.contains('\0'));
});
