//! `replicating`: every event into every channel; those in `optional` may fail.

use channel::EventRef;

use super::{SelectorEntry, positions};
use crate::component::{Key, KeyDefault, Refused, Route, Selector, Settings};

pub(super) static ENTRY: SelectorEntry = SelectorEntry {
    alias: "replicating",
    class: "org.apache.flume.channel.ReplicatingChannelSelector",
    doc: "Puts every event into every channel of the source.",
    keys: &[Key::list("optional", KeyDefault::Absent, "Channels whose failure the source does not report.")],
    build,
};

fn build(settings: &Settings, channels: &[String]) -> Result<Box<dyn Selector>, Refused> {
    let optional = positions(settings, "optional", &settings.text("optional"), channels)?;
    let required = (0..channels.len()).filter(|position| !optional.contains(position)).collect();
    Ok(Box::new(Replicating(Route { required, optional })))
}

struct Replicating(Route);

impl Selector for Replicating {
    fn common_route(&self) -> Option<&Route> {
        Some(&self.0)
    }

    fn route(&self, _: EventRef<'_>) -> &Route {
        &self.0
    }
}
