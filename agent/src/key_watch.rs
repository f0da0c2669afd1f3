//! Sees that the key of a running channel was rotated, by looking into its key file when the configuration is looked at.
//!
//! A file that cannot be read, or in which the key is missing, changes nothing and is reported once: the channel goes on with
//! the key it has.

use std::path::PathBuf;
use std::sync::Arc;

use channel::DurableChannel;
use wal::keys::{KeyError, KeyFile};
use wal::seal::ChannelKey;

/// Remembers which key a channel seals with.
pub struct KeyWatch {
    key_file: PathBuf,
    active_key: String,
    /// The id of the key that seals now.
    seals: String,
    channel: Arc<DurableChannel>,
    complaint: Option<String>,
}

impl KeyWatch {
    /// For a channel whose active key is `active_key`, or one of its successors: the one with the id `seals`.
    pub fn new(key_file: PathBuf, active_key: String, seals: &str, channel: Arc<DurableChannel>) -> KeyWatch {
        KeyWatch { key_file, active_key, seals: seals.to_owned(), channel, complaint: None }
    }

    /// Looks into the file and lets the channel seal with the newest key; returns it when it is a new one.
    pub fn look(&mut self, name: &str) -> Option<ChannelKey> {
        let newest = KeyFile::read(&self.key_file).and_then(|file| file.newest(&self.active_key).cloned());
        let key = newest.map_err(|error| self.complain(name, &error)).ok()?;
        self.complaint = None;
        if key.id() == self.seals {
            return None;
        }
        tracing::info!("channel {name}: new data is sealed with key {} instead of {}", key.id(), self.seals);
        self.seals = key.id().to_owned();
        self.channel.rotate(&key);
        Some(key)
    }

    fn complain(&mut self, name: &str, error: &KeyError) {
        let complaint = error.to_string();
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::warn!("channel {name} goes on with key {}: {complaint}", self.seals);
            self.complaint = Some(complaint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{Devices, DurableOptions};

    #[test]
    fn a_rotation_is_seen_once_and_a_missing_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        KeyFile::generate(&path, "k1").unwrap();
        let key = KeyFile::read(&path).unwrap().key("k1").unwrap().clone();
        let options = DurableOptions { key: Some(key), ..DurableOptions::new("c1", vec![dir.path().join("data")]) };
        let channel = Arc::new(DurableChannel::open(options, &Devices::new()).unwrap());
        let mut watch = KeyWatch::new(path.clone(), "k1".to_owned(), "k1", channel);
        assert!(watch.look("c1").is_none());
        KeyFile::rotate(&path, "k1").unwrap();
        assert_eq!(watch.look("c1").unwrap().id(), "k1.2");
        assert!(watch.look("c1").is_none());
        std::fs::remove_file(&path).unwrap();
        assert!(watch.look("c1").is_none() && watch.complaint.is_some());
        assert_eq!(watch.seals, "k1.2");
    }
}
