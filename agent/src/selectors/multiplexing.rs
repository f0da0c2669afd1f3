//! `multiplexing`: the value of one header chooses the channels.
//!
//! Values match exactly. An event without the header, with a blank one or with a value that has no mapping takes the
//! default channels; without a default it goes nowhere and counts as accepted, as in Flume. A channel that is required
//! for a value is not optional for it as well.

use std::collections::HashMap;

use channel::EventRef;

use super::{SelectorEntry, positions};
use crate::component::{Key, KeyDefault, Refused, Route, Selector, Settings};

pub(super) static ENTRY: SelectorEntry = SelectorEntry {
    alias: "multiplexing",
    class: "org.apache.flume.channel.MultiplexingChannelSelector",
    doc: "Chooses the channels of an event by the value of one of its headers.",
    keys: &[
        Key::text("header", KeyDefault::Is("flume.selector.header"), "The header whose value chooses."),
        Key::list("mapping.*", KeyDefault::Absent, "`mapping.VALUE`: channels for events with this value."),
        Key::list("default", KeyDefault::Absent, "Channels for all other events; without it they are dropped."),
        Key::list("optional.*", KeyDefault::Absent, "`optional.VALUE`: further channels, which may fail."),
    ],
    build,
};

fn build(settings: &Settings, channels: &[String]) -> Result<Box<dyn Selector>, Refused> {
    let default = positions(settings, "default", &settings.text("default"), channels)?;
    let mut routes: HashMap<String, Route> = HashMap::new();
    for (value, setting) in settings.beginning("mapping.") {
        let required = positions(settings, &setting.name, &setting.value, channels)?;
        if required.is_empty() {
            return Err(settings.refuse(&setting.name, "names no channel"));
        }
        routes.insert(value.to_owned(), Route { required, optional: Vec::new() });
    }
    for (value, setting) in settings.beginning("optional.") {
        let optional = positions(settings, &setting.name, &setting.value, channels)?;
        let route =
            routes.entry(value.to_owned()).or_insert_with(|| Route { required: default.clone(), optional: Vec::new() });
        route.optional = optional.into_iter().filter(|position| !route.required.contains(position)).collect();
    }
    if default.is_empty() {
        settings.warn("default", "not set: events without a mapping are acknowledged and dropped");
    }
    let default = Route { required: default, optional: Vec::new() };
    Ok(Box::new(Multiplexing { header: settings.text("header"), routes, default }))
}

struct Multiplexing {
    header: String,
    routes: HashMap<String, Route>,
    default: Route,
}

impl Selector for Multiplexing {
    fn common_route(&self) -> Option<&Route> {
        None
    }

    fn route(&self, event: EventRef<'_>) -> &Route {
        let value = event.header(&self.header).unwrap_or_default();
        if value.trim().is_empty() {
            return &self.default;
        }
        self.routes.get(value).unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::EventBatch;

    fn selector(lines: &[(&str, &str)]) -> Result<Box<dyn Selector>, Vec<String>> {
        let settings = Settings::of("sources.r1.selector", ENTRY.keys, lines);
        settings.check(&[]);
        let channels = ["c1", "c2", "c3"].map(str::to_owned);
        build(&settings, &channels)
            .map_err(|Refused| settings.take_findings().iter().map(ToString::to_string).collect())
    }

    fn route(selector: &dyn Selector, headers: &[(&str, &str)]) -> (Vec<usize>, Vec<usize>) {
        let mut batch = EventBatch::new();
        batch.push(headers.iter().copied(), b"x");
        let route = selector.route(batch.get(0));
        (route.required.clone(), route.optional.clone())
    }

    #[test]
    fn the_value_chooses_exactly_and_everything_else_takes_the_default() {
        let lines = [
            ("header", "color"),
            ("mapping.red", "c1 c2"),
            ("default", "c3"),
            ("optional.red", "c2 c3"),
            ("optional.grey", "c1"),
        ];
        let selector = selector(&lines).unwrap();
        assert_eq!(route(&*selector, &[("color", "red")]), (vec![0, 1], vec![2]));
        assert_eq!(route(&*selector, &[("color", "RED")]), (vec![2], vec![]));
        assert_eq!(route(&*selector, &[("color", " ")]), (vec![2], vec![]));
        assert_eq!(route(&*selector, &[]), (vec![2], vec![]));
        assert_eq!(route(&*selector, &[("color", "grey")]), (vec![2], vec![0]));
    }

    #[test]
    fn a_mapping_to_a_channel_of_somebody_else_is_refused_by_name() {
        let found = selector(&[("mapping.red", "c1 c9")]).err().unwrap();
        assert!(found[0].contains("mapping.red: c9 is not a channel of this source: c1 c2 c3"), "{found:?}");
    }
}
