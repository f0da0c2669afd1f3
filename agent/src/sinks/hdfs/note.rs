//! The durable note of a file that is being written: what a restart must know to heal what a crash left.
//!
//! The key is the file's location while in use. A note from a newer version is kept and left alone.

use bytes::Bytes;
use channel::NoteUpdate;
use serde_json::{Value, json};
use store::template::Place;

/// Version of the note's text.
const VERSION: u64 = 1;

/// A file that this sink created and has not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leftover {
    /// Below its file system: `/logs/_events.17.tmp`.
    pub(super) in_use: String,
    pub(super) names: Names,
    pub(super) counter: i64,
    /// Its events up to this length are settled, and must be published.
    pub(super) settled: u64,
}

/// What a file will be called: directory, prefix and suffix around a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) place: Place,
    pub(super) suffix: String,
}

impl Names {
    pub(super) fn published(&self, counter: i64) -> String {
        format!("{}/{}.{counter}{}", self.place.directory, self.place.name, self.suffix)
    }
}

impl Leftover {
    /// The note that says this, under `system` (`file`, `hdfs://nameservice`).
    pub(super) fn update(&self, owner: &str, system: &str) -> NoteUpdate {
        let text = json!({
            "version": VERSION,
            "directory": self.names.place.directory,
            "name": self.names.place.name,
            "suffix": self.names.suffix,
            "counter": self.counter,
            "settled": self.settled,
        });
        NoteUpdate {
            owner: owner.to_owned(),
            key: key(system, &self.in_use),
            note: Some(Bytes::from(text.to_string())),
        }
    }

    pub(super) fn removal(&self, owner: &str, system: &str) -> NoteUpdate {
        NoteUpdate { owner: owner.to_owned(), key: key(system, &self.in_use), note: None }
    }

    /// Reads a note back; the system is the first part of what is given.
    pub(super) fn read(key: &str, note: &[u8]) -> Result<(String, Leftover), String> {
        let (system, in_use) = key.split_once(' ').ok_or("its key names no file")?;
        let value: Value = serde_json::from_slice(note).map_err(|error| error.to_string())?;
        let version = value["version"].as_u64().unwrap_or(0);
        if version != VERSION {
            return Err(format!("it has version {version}; this build reads version {VERSION}"));
        }
        let text = |name: &str| value[name].as_str().map(str::to_owned).ok_or(format!("it has no {name}"));
        let leftover = Leftover {
            in_use: in_use.to_owned(),
            names: Names {
                place: Place { directory: text("directory")?, name: text("name")? },
                suffix: text("suffix")?,
            },
            counter: value["counter"].as_i64().ok_or("it has no counter")?,
            settled: value["settled"].as_u64().ok_or("it has no settled length")?,
        };
        Ok((system.to_owned(), leftover))
    }
}

fn key(system: &str, in_use: &str) -> String {
    format!("{system} {in_use}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftover() -> Leftover {
        let place = Place { directory: "/a b/ü".to_owned(), name: "events".to_owned() };
        Leftover {
            in_use: "/a b/ü/_events.17.log.tmp".to_owned(),
            names: Names { place, suffix: ".log".to_owned() },
            counter: 17,
            settled: 4711,
        }
    }

    #[test]
    fn a_note_comes_back_as_it_was_written() {
        let update = leftover().update("k1", "hdfs://ns");
        let (system, read) = Leftover::read(&update.key, &update.note.unwrap()).unwrap();
        assert_eq!((system.as_str(), read), ("hdfs://ns", leftover()));
        assert_eq!(leftover().names.published(18), "/a b/ü/events.18.log");
    }

    #[test]
    fn the_longest_note_stays_below_the_limit_of_a_channel() {
        let long = "\u{1F642}".repeat(store::limits::PATH_BYTES_MAX / 4 / 2);
        let place = Place { directory: format!("/{long}"), name: long.clone() };
        let names = Names { place, suffix: ".log".to_owned() };
        let in_use = format!("{}.tmp", names.published(i64::MAX));
        let update = Leftover { in_use, names, counter: i64::MAX, settled: u64::MAX }.update("k1", "hdfs://ns");
        assert!(update.note.unwrap().len() + update.key.len() < 4096);
    }

    #[test]
    fn a_note_of_another_version_or_shape_is_left_alone() {
        let update = leftover().update("k1", "file");
        for broken in [&b"{\"version\":2}"[..], b"{}", b"not json", b"{\"version\":1,\"name\":3}"] {
            assert!(Leftover::read(&update.key, broken).is_err());
        }
    }
}
