//! `file`: the durable channel, under the keys of Flume's file channel.
//!
//! Reads the keys into [`FileOptions`] and checks what can be checked without touching anything: that the directories
//! hold no queue of Flume's own. The engine behind it is `channel`'s.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::component::{ChannelEntry, Key, KeyDefault, OpenChannel, Refused, Settings};

pub(super) static ENTRY: ChannelEntry = ChannelEntry {
    alias: "file",
    class: "org.apache.flume.channel.file.FileChannel",
    doc: "Keeps events on disk: what was acknowledged survives a crash of the process and of the machine.",
    keys: KEYS,
    build,
};

const ALWAYS_SYNCED: &str = "every transaction is on stable storage before it is acknowledged, whatever this says";
const CHECKPOINT_SLOTS: &str =
    "checkpoints go to fresh slots and are not needed to start, so there is nothing to back up";

static KEYS: &[Key] = &[
    Key::path(
        "checkpointDir",
        KeyDefault::Is("~/.flume/file-channel/checkpoint"),
        "Directory of the checkpoints. Our files are in its sub-directory `penstock`.",
    ),
    Key::text(
        "dataDirs",
        KeyDefault::Is("~/.flume/file-channel/data"),
        "Directories of the log, separated by commas, best on several disks. Our files are in the sub-directory `penstock` of each.",
    ),
    Key::integer("capacity", 1, i64::MAX, "events", KeyDefault::Is("1000000"), "Most events in the channel."),
    Key::integer(
        "transactionCapacity",
        1,
        i32::MAX as i64,
        "events",
        KeyDefault::Is("10000"),
        "Most events of one put or take; at most `capacity`.",
    ),
    Key::integer("keep-alive", 0, i32::MAX as i64, "s", KeyDefault::Is("3"), "How long a put waits for room."),
    Key::integer("checkpointInterval", 1000, i64::MAX, "ms", KeyDefault::Is("30000"), "Time between two checkpoints."),
    Key::integer(
        "maxFileSize",
        1 << 20,
        i64::MAX,
        "bytes",
        KeyDefault::Is("1623195647"),
        "Largest size of one log file; files are allocated ahead and may be smaller.",
    ),
    Key::integer(
        "minimumRequiredSpace",
        1 << 20,
        i64::MAX,
        "bytes",
        KeyDefault::Is("524288000"),
        "Free space of a disk below which it takes no more puts; takes go on.",
    ),
    Key::inert("useDualCheckpoints", "A second checkpoint.", CHECKPOINT_SLOTS),
    Key::inert("backupCheckpointDir", "Where the second checkpoint goes.", CHECKPOINT_SLOTS),
    Key::inert("compressBackupCheckpoint", "Compress the second checkpoint.", CHECKPOINT_SLOTS),
    Key::inert("checkpointOnClose", "Write a checkpoint when stopping.", "a stop always leaves a fast start behind"),
    Key::inert("use-log-replay-v1", "Flume's old replay.", "there is one replay, which needs no checkpoint"),
    Key::inert("use-fast-replay", "Flume's fast replay.", "there is one replay, which needs no checkpoint"),
    Key::inert("fsyncPerTransaction", "Sync every transaction.", ALWAYS_SYNCED),
    Key::inert("fsyncInterval", "Seconds between two syncs.", ALWAYS_SYNCED),
    Key::text(
        "encryption.activeKey",
        KeyDefault::Absent,
        "Id of the key that seals new data. Encryption is on when it is set.",
    ),
    Key::choice(
        "encryption.cipherProvider",
        &["AESGCM", "AESCTRNOPADDING"],
        KeyDefault::Is("AESGCM"),
        "The cipher is AES-256-GCM; Flume's `AESCTRNOPADDING` is accepted and means the same.",
    ),
    Key::text(
        "encryption.keyProvider",
        KeyDefault::Is("FILE"),
        "Where keys come from: `FILE`, a key file made by `penstock keys generate`.",
    ),
    Key::path("encryption.keyProvider.keyFile", KeyDefault::Absent, "The key file."),
    Key::refused("encryption.keyProvider.keyStoreFile", "A JCEKS key store.", INSTEAD_OF_JCEKS),
    Key::refused("encryption.keyProvider.keyStorePasswordFile", "Its password.", INSTEAD_OF_JCEKS),
    Key::refused("encryption.keyProvider.keys", "The keys in it.", INSTEAD_OF_JCEKS),
    Key::refused("encryption.keyProvider.keys.*", "Their passwords.", INSTEAD_OF_JCEKS),
];

const INSTEAD_OF_JCEKS: &str = "Make a key file with `penstock keys generate FILE`, and set encryption.keyProvider = FILE and encryption.keyProvider.keyFile";

/// What the keys say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileOptions {
    pub name: String,
    pub checkpoint_dir: PathBuf,
    /// Never empty.
    pub data_dirs: Vec<PathBuf>,
    pub capacity: usize,
    /// At most `capacity`.
    pub transaction_capacity: usize,
    pub keep_alive: Duration,
    pub checkpoint_interval: Duration,
    pub file_bytes_max: u64,
    pub free_bytes_min: u64,
    pub encryption: Option<EncryptionOptions>,
}

/// The key that seals new data, and the file it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EncryptionOptions {
    pub active_key: String,
    pub key_file: PathBuf,
}

fn build(settings: &Settings) -> Result<Box<dyn OpenChannel>, Refused> {
    let _options = read(settings)?;
    Err(settings.refuse("type", "the durable channel is not in this build. Use `memory`, which a crash empties"))
}

fn read(settings: &Settings) -> Result<FileOptions, Refused> {
    let data_dirs: Vec<PathBuf> =
        settings.text("dataDirs").split(',').map(str::trim).filter(|dir| !dir.is_empty()).map(expand_home).collect();
    if data_dirs.is_empty() {
        return Err(settings.refuse("dataDirs", "names no directory"));
    }
    let mut refused = None;
    for (index, dir) in data_dirs.iter().enumerate() {
        if data_dirs[..index].contains(dir) {
            refused = Some(settings.refuse("dataDirs", format!("{} is there twice", dir.display())));
        }
        if let Some(log) = flume_log(dir) {
            let message = format!(
                "{} is a log of Flume's own, and may hold events that were never delivered. Drain the channel with \
                 Flume, stop it, then set the files in {} and in its checkpointDir aside",
                log.display(),
                dir.display()
            );
            refused = Some(settings.refuse("dataDirs", message));
        }
    }
    let options = FileOptions {
        name: settings.name().to_owned(),
        checkpoint_dir: expand_home(settings.text("checkpointDir").trim()),
        data_dirs,
        capacity: settings.count("capacity"),
        transaction_capacity: settings.count("transactionCapacity"),
        keep_alive: Duration::from_secs(settings.count("keep-alive") as u64),
        checkpoint_interval: Duration::from_millis(settings.count("checkpointInterval") as u64),
        file_bytes_max: settings.count("maxFileSize") as u64,
        free_bytes_min: settings.count("minimumRequiredSpace") as u64,
        encryption: encryption(settings)?,
    };
    if options.transaction_capacity > options.capacity {
        let (transaction, capacity) = (options.transaction_capacity, options.capacity);
        let message = format!("{transaction} is above capacity = {capacity}; lower it, or raise capacity");
        refused = Some(settings.refuse("transactionCapacity", message));
    }
    refused.map_or(Ok(options), Err)
}

fn encryption(settings: &Settings) -> Result<Option<EncryptionOptions>, Refused> {
    let provider = settings.text("encryption.keyProvider");
    if !provider.trim().eq_ignore_ascii_case("FILE") {
        return Err(
            settings.refuse("encryption.keyProvider", format!("{provider} is not supported. {INSTEAD_OF_JCEKS}"))
        );
    }
    let Some(active_key) = settings.text_opt("encryption.activeKey") else {
        let asked = settings.beginning("encryption.").find(|(_, setting)| !setting.value.is_empty());
        return match asked {
            Some((_, setting)) => Err(settings.refuse(
                &setting.name,
                "encryption.activeKey is missing, so nothing would be encrypted; set it to a key id of the key file",
            )),
            None => Ok(None),
        };
    };
    let Some(key_file) = settings.path_opt("encryption.keyProvider.keyFile") else {
        let message = "missing: the key file of encryption.activeKey. Make one with `penstock keys generate FILE`";
        return Err(settings.refuse("encryption.keyProvider.keyFile", message));
    };
    if settings.setting("encryption.cipherProvider").is_some()
        && settings.choice("encryption.cipherProvider") != "AESGCM"
    {
        settings.notice("encryption.cipherProvider", "the cipher is AES-256-GCM, which also shows tampering");
    }
    Ok(Some(EncryptionOptions { active_key: active_key.to_owned(), key_file }))
}

/// A log file of Flume's file channel in `dir`: `log-` and a number.
fn flume_log(dir: &Path) -> Option<PathBuf> {
    let is_log = |name: &str| {
        name.strip_prefix("log-")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    // A directory that cannot be read is the engine's to report, when it opens it.
    let entries = std::fs::read_dir(dir).ok()?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_str().is_some_and(is_log))
        .map(|entry| entry.path())
}

fn expand_home(dir: &str) -> PathBuf {
    match (dir.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[(&str, &str)]) -> (Result<FileOptions, Refused>, Vec<String>) {
        let settings = Settings::of("channels.c1", KEYS, lines);
        settings.check(&[]);
        let options = read(&settings);
        (options, settings.take_findings().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn directories_are_separated_by_commas_and_never_twice() {
        let (options, _) = check(&[("dataDirs", "/a/b, /c d ,,/e"), ("checkpointDir", "/k")]);
        assert_eq!(options.unwrap().data_dirs, ["/a/b", "/c d", "/e"].map(PathBuf::from));
        let (options, found) = check(&[("dataDirs", "/a,/a")]);
        assert_eq!(options, Err(Refused));
        assert!(found[0].ends_with("/a is there twice"), "{found:?}");
    }

    #[test]
    fn a_directory_with_flumes_own_logs_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("log-12.meta"), b"").unwrap();
        let data = dir.path().to_str().unwrap();
        assert!(check(&[("dataDirs", data)]).0.is_ok());
        std::fs::write(dir.path().join("log-12"), b"").unwrap();
        let (options, found) = check(&[("dataDirs", data)]);
        assert_eq!(options, Err(Refused));
        assert!(found[0].contains("log-12 is a log of Flume's own") && found[0].contains("Drain"), "{found:?}");
    }

    #[test]
    fn encryption_is_on_with_an_active_key_and_never_half_on() {
        assert_eq!(check(&[]).0.unwrap().encryption, None);
        let (options, found) = check(&[
            ("encryption.activeKey", "k1"),
            ("encryption.cipherProvider", "AESCTRNOPADDING"),
            ("encryption.keyProvider.keyFile", "/etc/keys"),
        ]);
        let expected = EncryptionOptions { active_key: "k1".to_owned(), key_file: "/etc/keys".into() };
        assert_eq!(options.unwrap().encryption, Some(expected));
        assert!(found[0].contains("AES-256-GCM"), "{found:?}");
        for lines in [
            &[("encryption.keyProvider.keyFile", "/etc/keys")][..],
            &[("encryption.activeKey", "k1")],
            &[("encryption.activeKey", "k1"), ("encryption.keyProvider", "JCEKSFILE")],
        ] {
            let (options, found) = check(lines);
            assert_eq!(options, Err(Refused), "{lines:?}");
            assert_eq!(found.len(), 1, "{found:?}");
        }
    }
}
