//! From arguments to an inspection: finding the directories, whether somebody writes them, and the keys.
//!
//! Promises to open directories for reading only. While a writer is there, a loss is only reported when it is still
//! there on a second look.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use channel::inspect::{InspectError, Inspection, Looking};
use wal::io::Dir;
use wal::io::host::{Writer, raise_open_files, writer_of};
use wal::io::real::RealDir;
use wal::keys::KeyFile;
use wal::recover::scan::Depth;
use wal::seal::ChannelKey;

use crate::cli::Place;
use crate::exit::Failure;
use crate::say;

/// Looks that a writer can spoil, before a loss is believed. Beside one that writes 50,000 events/s into two
/// directories, 23 % of single looks saw a loss that was none; of 1,110 with up to five, none did.
const LOOKS_MAX: usize = 5;

/// The directory inside a data directory that is ours.
const OURS: &str = "penstock";

pub(crate) struct Seen {
    pub(crate) inspection: Inspection,
    /// Who writes each directory that could be opened.
    pub(crate) writers: Vec<(String, Writer)>,
    /// Named, and not there.
    pub(crate) absent: Vec<String>,
    /// Named, and not to be opened.
    pub(crate) refused: Vec<(String, io::Error)>,
}

impl Seen {
    pub(crate) fn is_live(&self) -> bool {
        self.writers.iter().any(|(_, writer)| matches!(writer, Writer::Process(_)))
    }
}

pub(crate) fn look(place: &Place, depth: Depth, from_disk: bool) -> Result<Seen, Failure> {
    let keys = keys(&place.key_file)?;
    if let Err(error) = raise_open_files() {
        say(&format!("cannot raise the limit of open files: {error}; a long log may not open"));
    }
    let (mut dirs, mut absent, mut refused) = (Vec::<Arc<dyn Dir>>::new(), Vec::new(), Vec::new());
    let mut paths = Vec::new();
    for given in &place.dirs {
        let path = resolve(given);
        match RealDir::open_read_only(&path) {
            Ok(dir) => {
                dirs.push(Arc::new(dir));
                paths.push(path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => absent.push(path.display().to_string()),
            Err(error) => refused.push((path.display().to_string(), error)),
        }
    }
    if dirs.is_empty() {
        return Err(match refused.first() {
            Some((dir, error)) => Failure::Io(format!("{dir}: {error}; run this as the agent's user or as root")),
            None => Failure::Nowhere(format!("{}: no such directory", absent.join(", "))),
        });
    }
    let writers = || paths.iter().map(|path| (path.display().to_string(), writer_of(path))).collect::<Vec<_>>();
    let before = writers();
    let is_live = |writers: &[(String, Writer)]| writers.iter().any(|(_, writer)| matches!(writer, Writer::Process(_)));
    let looking = Looking { keys, depth, from_disk: from_disk && !is_live(&before) };
    let named = |error| no_channel(error, &paths);
    let mut inspection = Inspection::look(&dirs, &looking).map_err(named)?;
    let mut writers = writers();
    if is_live(&before) {
        // It may have ended meanwhile, but it was there.
        writers = before;
    }
    for _ in 1..LOOKS_MAX {
        if !is_live(&writers) || !inspection.has_loss() {
            break;
        }
        inspection = inspection.again(&dirs, &looking).map_err(named)?;
    }
    Ok(Seen { inspection, writers, absent, refused })
}

/// Both `<dataDir>` and what is ours in it are accepted.
fn resolve(given: &Path) -> PathBuf {
    let inner = given.join(OURS);
    let has_ours = |path: &Path| {
        fs::read_dir(path).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name();
                name == "identity" || name.to_str().and_then(wal::chore::slot_of).is_some()
            })
        })
    };
    if !has_ours(given) && inner.is_dir() { inner } else { given.to_owned() }
}

/// A directory of Flume's own looks like a mistake, but it may be somebody's backlog.
fn no_channel(error: InspectError, paths: &[PathBuf]) -> Failure {
    let is_flume = |path: &&PathBuf| {
        fs::read_dir(path).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("log-")))
        })
    };
    match (&error, paths.iter().find(is_flume)) {
        (InspectError::NoChannel { .. }, Some(path)) => Failure::Nowhere(format!(
            "{} holds logs of Flume's own file channel, which this version does not read; drain them with Flume",
            path.display()
        )),
        _ => Failure::Channel(error),
    }
}

fn keys(files: &[PathBuf]) -> Result<Vec<ChannelKey>, Failure> {
    let mut keys = Vec::new();
    for file in files {
        keys.extend(KeyFile::read(file).map_err(Failure::Key)?.keys().iter().cloned());
    }
    Ok(keys)
}
