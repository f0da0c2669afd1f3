//! The table of channel selectors, which say where each event of a source goes.
//!
//! To add one: write its module here, with an `ENTRY`, and add one line to [`TABLE`].

mod multiplexing;
mod replicating;

use crate::component::{Key, Refused, Selector, Settings};

/// One kind of selector; a line of the table. Its keys follow `selector.`.
pub struct SelectorEntry {
    pub alias: &'static str,
    pub class: &'static str,
    pub doc: &'static str,
    pub keys: &'static [Key],
    pub build: Build,
}

/// Reads the settings. The names are those of the source's channels, in its order.
pub type Build = fn(&Settings, &[String]) -> Result<Box<dyn Selector>, Refused>;

/// Every selector that this build has; the first is the default.
pub static TABLE: &[&SelectorEntry] = &[&replicating::ENTRY, &multiplexing::ENTRY];

/// The positions of the channels that `value` names. `key` is where it stands, for the message.
fn positions(settings: &Settings, key: &str, value: &str, channels: &[String]) -> Result<Vec<usize>, Refused> {
    let mut found = Vec::new();
    for name in value.split_whitespace() {
        match channels.iter().position(|channel| channel == name) {
            Some(position) if found.contains(&position) => {}
            Some(position) => found.push(position),
            None => {
                return Err(
                    settings.refuse(key, format!("{name} is not a channel of this source: {}", channels.join(" ")))
                );
            }
        }
    }
    Ok(found)
}
