//! `docs/configuration.md`: every key of every component, from the tables that the agent reads.

use super::plan::{CHANNEL_KEYS, INTERCEPTOR_KEYS, SELECTOR_KEYS, SINK_KEYS, SOURCE_KEYS};
use super::refused;
use super::settings::{Default, Key, Kind, Status};
use crate::component::Entry;
use crate::{channels, interceptors, selectors, sinks, sources};

const HEAD: &str = "# Configuration

An unchanged `.properties` file of Apache Flume 1.11 is the configuration. This page lists every key that is known;
`penstock config-reference` prints it, from the same tables that the agent reads.

- A key that is not here is a warning with the nearest known key in `penstock agent`, and an error in `penstock validate`.
- A value or type that cannot be used refuses to start: all findings at once, each with file, line and column, ending in
  `runs` or `N to fix`. `--drop-broken` leaves the broken component out instead, as Flume does.
- *Inert* keys are accepted without effect and say so once. *Refused* keys are errors that say what to use instead.
- Values: `${env:X}`, `${sys:X}` (from `-DX=…`), `${date:yyyy-MM-dd}`, `${other.property}`, each with `:-default`; `$${`
  stands for `${`. Files are Latin-1; other characters are written `\\uXXXX`.
- Flags are true for `true` in any case, and false for everything else.
";

/// The whole page.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    page.push_str("\n# Sources\n\nKeys of every source:\n\n");
    table(&mut page, SOURCE_KEYS);
    sources::TABLE.iter().for_each(|entry| section(&mut page, entry));
    page.push_str("\n# Interceptors\n\nKeys of every interceptor, after `interceptors.NAME.`:\n\n");
    table(&mut page, INTERCEPTOR_KEYS);
    interceptors::TABLE.iter().for_each(|entry| section(&mut page, entry));
    page.push_str("\n# Channel selectors\n\nKeys of every selector, after `selector.`:\n\n");
    table(&mut page, SELECTOR_KEYS);
    for entry in selectors::TABLE {
        heading(&mut page, entry.alias, entry.class, entry.doc);
        table(&mut page, entry.keys);
    }
    page.push_str("\n# Channels\n\nKeys of every channel:\n\n");
    table(&mut page, CHANNEL_KEYS);
    channels::TABLE.iter().for_each(|entry| section(&mut page, entry));
    page.push_str("\n# Sinks\n\nKeys of every sink:\n\n");
    table(&mut page, SINK_KEYS);
    sinks::TABLE.iter().for_each(|entry| section(&mut page, entry));
    page.push_str("\n# Types of Flume that are refused by name\n\n| kind | type | what to do |\n|---|---|---|\n");
    for refused in refused::TYPES {
        page.push_str(&format!("| {} | `{}` | {}. |\n", refused.kind, refused.alias, cell(refused.instead)));
    }
    page.push_str("| sinkgroups | all | Leave one sink on the channel, or let several sinks share it. |\n");
    page.push_str("| configfilters | all | Use `${env:NAME}`. |\n");
    page
}

fn section<Built>(page: &mut String, entry: &Entry<Built>) {
    heading(page, entry.alias, entry.class, entry.doc);
    table(page, entry.keys);
}

fn heading(page: &mut String, alias: &str, class: &str, doc: &str) {
    page.push_str(&format!("\n## {alias}\n\n`{class}`. {doc}\n\n"));
}

fn table(page: &mut String, keys: &[Key]) {
    if keys.is_empty() {
        page.push_str("No keys of its own.\n");
        return;
    }
    page.push_str("| key | default | unit | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let default = match key.default {
            Default::Required => "required".to_owned(),
            Default::Absent => String::new(),
            Default::Is("") => "empty".to_owned(),
            Default::Is(value) => format!("`{}`", cell(value)),
        };
        let meaning = match key.status {
            Status::Live => format!("{}{}", cell(key.doc), limits(key.kind)),
            Status::Inert(why) => format!("*Inert:* {}. {}", cell(why), cell(key.doc)),
            Status::Refused(instead) => {
                format!("*Refused.* {} {}.", cell(key.doc), cell(instead).trim_end_matches('.'))
            }
        };
        page.push_str(&format!("| `{}` | {default} | {} | {meaning} |\n", cell(key.name), key.unit));
    }
}

fn limits(kind: Kind) -> String {
    match kind {
        Kind::Choice(words) => {
            format!(" One of: {}.", words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "))
        }
        Kind::Integer { min, max } if max >= i64::from(i32::MAX) => {
            if min > 0 {
                format!(" At least {min}.")
            } else {
                String::new()
            }
        }
        Kind::Integer { min, max } => format!(" From {min} to {max}."),
        Kind::Text | Kind::Path | Kind::Flag | Kind::List => String::new(),
    }
}

/// Text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_the_repository_is_the_one_that_the_tables_make() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == markdown(), "docs/configuration.md is old: penstock config-reference > docs/configuration.md");
    }

    #[test]
    fn every_key_is_listed_once_per_component() {
        let tables = sources::TABLE.iter().map(|entry| (entry.alias, entry.keys));
        let tables = tables.chain(sinks::TABLE.iter().map(|entry| (entry.alias, entry.keys)));
        for (alias, keys) in tables.chain(channels::TABLE.iter().map(|entry| (entry.alias, entry.keys))) {
            for (index, key) in keys.iter().enumerate() {
                assert!(
                    keys[..index].iter().all(|earlier| earlier.name != key.name),
                    "{alias}: {} is there twice",
                    key.name
                );
            }
        }
    }
}
