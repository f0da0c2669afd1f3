//! Sees that a configuration file has changed, as Flume does: by looking every 30 seconds.
//!
//! A change counts when the bytes differ; a new time alone does not restart an agent. What to do about it is the
//! caller's.

use std::time::SystemTime;

use crate::config::load::{self, Contents, Location};

/// Remembers what the running agent was built from.
pub struct Watch {
    location: Location,
    seen: Vec<Option<SystemTime>>,
    running: Contents,
    /// The last reading problem, so that it is reported once and not at every poll.
    complaint: Option<String>,
}

/// What a look at the files came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    None,
    /// These are the new bytes.
    Changed(Contents),
    /// The files cannot be read; said once.
    Unreadable(String),
}

impl Watch {
    pub fn new(location: Location, running: Contents) -> Watch {
        // The times of the first look are unknown on purpose: a change between reading and this line is seen.
        let seen = vec![None; location.files.len()];
        Watch { location, seen, running, complaint: None }
    }

    /// Looks at the files. A change is reported once, whatever becomes of it.
    pub fn look(&mut self) -> Change {
        let modified = |file: &std::path::PathBuf| std::fs::metadata(file).and_then(|meta| meta.modified()).ok();
        let now: Vec<Option<SystemTime>> = self.location.files.iter().map(modified).collect();
        if now == self.seen && now.iter().all(Option::is_some) {
            return Change::None;
        }
        match load::read(&self.location) {
            Ok(contents) => {
                self.seen = now;
                self.complaint = None;
                if contents == self.running {
                    return Change::None;
                }
                self.running = contents.clone();
                Change::Changed(contents)
            }
            Err(problem) if self.complaint.as_ref() == Some(&problem) => Change::None,
            Err(problem) => {
                self.complaint = Some(problem.clone());
                Change::Unreadable(problem)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_once_and_a_missing_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.properties");
        std::fs::write(&file, "a=1").unwrap();
        let location = Location { files: vec![file.clone()], ..Location::default() };
        let mut watch = Watch::new(location.clone(), load::read(&location).unwrap());
        assert_eq!(watch.look(), Change::None);
        std::fs::write(&file, "a=2 and more").unwrap();
        let bump = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(bump).unwrap();
        assert_eq!(watch.look(), Change::Changed(vec![b"a=2 and more".to_vec()]));
        assert_eq!(watch.look(), Change::None);
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(watch.look(), Change::Unreadable(_)));
        assert_eq!(watch.look(), Change::None);
        std::fs::write(&file, "a=3").unwrap();
        assert_eq!(watch.look(), Change::Changed(vec![b"a=3".to_vec()]));
    }
}
