//! `file`: the durable channel, under the keys of Flume's file channel.
//!
//! Reads the keys and checks what can be checked without touching anything: that the directories hold no queue of
//! Flume's own. The engine behind it is `channel::DurableChannel`, in the sub-directory `penstock` of every data
//! directory.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use channel::{Compress, Devices, DurableChannel, DurableOptions, OnDamage, OpenError};
use wal::io::real::Backend;
use wal::keys::{KeyError, KeyFile};
use wal::limits::{PAGE, SEGMENT_DEFAULT};
use wal::recover::RecoverError;

use crate::component::{ChannelEntry, ComponentError, Key, KeyDefault, OpenChannel, Opened, Refused, Settings};
use crate::dead_letters::Graveyard;
use crate::key_watch::KeyWatch;

pub(super) static ENTRY: ChannelEntry = ChannelEntry {
    alias: "file",
    class: "org.apache.flume.channel.file.FileChannel",
    doc: "Keeps events on disk: what was acknowledged survives a crash of the process and of the machine.",
    keys: KEYS,
    build,
};

const ALWAYS_SYNCED: &str = "every transaction is on stable storage before it is acknowledged, whatever this says";
const ONE_IS_ENOUGH: &str = "no start depends on a checkpoint, so one is enough";

static KEYS: &[Key] = &[
    Key::path(
        "checkpointDir",
        KeyDefault::Is("~/.flume/file-channel/checkpoint"),
        "Directory of the checkpoint, which makes a start fast and which nothing depends on. Ours is in its sub-directory `penstock`.",
    ),
    Key::integer(
        "checkpointInterval",
        1000,
        i64::MAX,
        "ms",
        KeyDefault::Is("30000"),
        "Shortest time between two checkpoints.",
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
    Key::integer(
        "maxFileSize",
        1 << 20,
        i64::MAX,
        "bytes",
        KeyDefault::Is("1623195647"),
        "Largest size of one log file. Files are allocated ahead, and above 64 MiB they are 64 MiB long.",
    ),
    Key::integer(
        "minimumRequiredSpace",
        1 << 20,
        i64::MAX,
        "bytes",
        KeyDefault::Is("524288000"),
        "Free space that is left alone on every disk: below it puts are refused, and takes go on.",
    ),
    Key::inert("useDualCheckpoints", "A second checkpoint.", ONE_IS_ENOUGH),
    Key::inert("backupCheckpointDir", "Where the second checkpoint goes.", ONE_IS_ENOUGH),
    Key::inert("compressBackupCheckpoint", "Compress the second checkpoint.", ONE_IS_ENOUGH),
    Key::inert("checkpointOnClose", "Write a checkpoint when stopping.", "a stop always leaves a fast start behind"),
    Key::inert("use-log-replay-v1", "Flume's old replay.", "there is one replay, which needs no checkpoint"),
    Key::inert("use-fast-replay", "Flume's fast replay.", "there is one replay, which needs no checkpoint"),
    Key::inert("fsyncPerTransaction", "Sync every transaction.", ALWAYS_SYNCED),
    Key::inert("fsyncInterval", "Seconds between two syncs.", ALWAYS_SYNCED),
    Key::text(
        "encryption.activeKey",
        KeyDefault::Absent,
        "Id of the key that seals new data. Encryption is on when it is set. After `penstock keys rotate` its newest successor does, also in an agent that runs, within one poll interval of the configuration.",
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
    Key::choice(
        "penstock.onDamage",
        &["refuse", "continue"],
        KeyDefault::Is("refuse"),
        "What to do when acknowledged events are damaged: refuse to start, or start without them and count them as lost.",
    ),
    Key::integer(
        "penstock.maxBytes",
        2 << 20,
        i64::MAX,
        "bytes",
        KeyDefault::Absent,
        "Bytes of log files, counted as whole files, at which puts are refused; at least two files for each directory. Without it the disk decides.",
    ),
    Key::integer(
        "penstock.hotTailBytes",
        0,
        1 << 40,
        "bytes",
        KeyDefault::Is("67108864"),
        "Most bytes of events kept in memory for sinks that keep up. While a backlog is drained, up to a quarter of it more for each data directory holds what was read ahead.",
    ),
    Key::integer(
        "penstock.poolBytes",
        0,
        1 << 50,
        "bytes",
        KeyDefault::Is("1073741824"),
        "Bytes of log files in each data directory up to which drained ones are kept to be written again. Within it every byte is written to the disk once; a new file is zeroed first.",
    ),
    Key::choice(
        "penstock.compression",
        &["none", "zstd", "zstd-always"],
        KeyDefault::Is("none"),
        "Whether events are compressed on their way into the log: while that makes the channel faster, because the disk is slower than the processors, or always, for the space on disk. Transactions that do not shrink are written as they are.",
    ),
    Key::integer(
        "penstock.deadLetterMaxBytes",
        2 << 20,
        i64::MAX,
        "bytes",
        KeyDefault::Is("1073741824"),
        "Bytes of dead letters, counted as whole files, at which a sink of this channel stops instead of adding to them. They are in `penstock-dead-letters/SINK` of the first data directory.",
    ),
    Key::integer(
        "penstock.scrubHours",
        0,
        24 * 365,
        "hours",
        KeyDefault::Is("24"),
        "How often a backlog that stays on disk is read, slowly and while nothing else is to be done, so that rot is reported before a sink meets it; 0 for never.",
    ),
    Key::choice(
        "penstock.flushDomains",
        &["auto", "separate"],
        KeyDefault::Is("auto"),
        "Which directories share a disk, and so fail and are written together: found out, or each is a disk of its own.",
    ),
    Key::choice(
        "penstock.io",
        &["auto", "io_uring", "direct", "buffered"],
        KeyDefault::Is("auto"),
        "How log files are written: past the page cache through io_uring, past it with a thread for each write in flight, through it with a sync for each write, or the first of these that works.",
    ),
    Key::refused("encryption.keyProvider.keyStoreFile", "A JCEKS key store.", INSTEAD_OF_JCEKS),
    Key::refused("encryption.keyProvider.keyStorePasswordFile", "Its password.", INSTEAD_OF_JCEKS),
    Key::refused("encryption.keyProvider.keys", "The keys in it.", INSTEAD_OF_JCEKS),
    Key::refused("encryption.keyProvider.keys.*", "Their passwords.", INSTEAD_OF_JCEKS),
];

const INSTEAD_OF_JCEKS: &str = "Make a key file with `penstock keys generate FILE`, and set encryption.keyProvider = FILE and encryption.keyProvider.keyFile";

/// The sub-directory of a data directory that is ours.
pub(crate) const OWN_DIR: &str = "penstock";

/// The shortest segment: room for a few thousand events.
const SEGMENT_MIN: u64 = 1 << 20;

/// What the keys say, keys still in their file.
#[derive(Debug, Clone)]
struct FileOptions {
    /// Never empty; as the file names them.
    data_dirs: Vec<PathBuf>,
    durable: DurableOptions,
    encryption: Option<EncryptionOptions>,
    dead_letter_bytes_max: u64,
}

/// The key that seals new data, and the file it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EncryptionOptions {
    active_key: String,
    key_file: PathBuf,
}

fn build(settings: &Settings) -> Result<Box<dyn OpenChannel>, Refused> {
    Ok(Box::new(read(settings)?))
}

impl OpenChannel for FileOptions {
    fn transaction_capacity(&self) -> usize {
        self.durable.transaction_capacity
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn open(self: Box<Self>, devices: &Arc<Devices>) -> Result<Opened, ComponentError> {
        let mut options = self.durable;
        if let Some(EncryptionOptions { active_key, key_file }) = &self.encryption {
            let named = |key: &str, error: KeyError| ComponentError(format!("{key}: {error}"));
            let file = KeyFile::read(key_file).map_err(|error| named("encryption.keyProvider.keyFile", error))?;
            let active = file.newest(active_key).map_err(|error| named("encryption.activeKey", error))?;
            options.key = Some(active.clone());
            options.old_keys = file.keys().to_vec();
        }
        let graveyard = Graveyard::new(self.data_dirs, &options, self.dead_letter_bytes_max, devices);
        let seals = options.key.clone();
        let channel = DurableChannel::open(options, devices).map_err(|error| ComponentError(explain(&error)))?;
        let channel = Arc::new(channel);
        let key_watch = self.encryption.zip(seals).map(|(EncryptionOptions { active_key, key_file }, seals)| {
            KeyWatch::new(key_file, active_key, seals.id(), Arc::clone(&channel))
        });
        Ok(Opened { channel, graveyard: Some(graveyard), key_watch })
    }
}

/// What went wrong and where, as the engine says it, and what to do about it in words of the configuration.
fn explain(error: &OpenError) -> String {
    let advice = match error {
        OpenError::Recover(RecoverError::KeyMissing { .. }) => {
            "set encryption.activeKey and encryption.keyProvider.keyFile, with this key in the file"
        }
        OpenError::Recover(RecoverError::WrongKey { .. }) => {
            "name the key file that it was encrypted with in encryption.keyProvider.keyFile"
        }
        OpenError::Recover(RecoverError::Foreign { .. }) => "somebody copied it here; move it to where it came from",
        OpenError::Recover(RecoverError::Io { error, .. }) | OpenError::Io { error, .. } => match error.kind() {
            ErrorKind::PermissionDenied => {
                "give the directory to the user that runs the agent (chown), or run as its owner"
            }
            ErrorKind::NotADirectory => "name a directory in dataDirs, or move the file away",
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on this disk",
            ErrorKind::ReadOnlyFilesystem => "mount it writable; a disk that turned read-only has failed",
            _ => "look at this disk (dmesg), and start again; nothing that was accepted is touched",
        },
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
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
    let (capacity, transaction_capacity) = (settings.count("capacity"), settings.count("transactionCapacity"));
    if transaction_capacity > capacity {
        let message = format!("{transaction_capacity} is above capacity = {capacity}; lower it, or raise capacity");
        refused = Some(settings.refuse("transactionCapacity", message));
    }
    // Shorter segments give their space back sooner, and longer ones would gain nothing.
    let segment_len = (settings.count("maxFileSize") as u64).clamp(SEGMENT_MIN, SEGMENT_DEFAULT);
    let segment_len = segment_len - segment_len % PAGE as u64;
    let bytes_max = settings.integer_opt("penstock.maxBytes").and_then(|bytes| u64::try_from(bytes).ok());
    let dead_letter_bytes_max = settings.count("penstock.deadLetterMaxBytes") as u64;
    // One file is written while another drains: with less, a channel that is full once would stay so.
    for (key, bytes, dirs) in [
        ("penstock.maxBytes", bytes_max, data_dirs.len() as u64),
        ("penstock.deadLetterMaxBytes", Some(dead_letter_bytes_max), 1),
    ] {
        let least = 2 * segment_len * dirs;
        if let Some(bytes) = bytes.filter(|bytes| *bytes < least) {
            let message = format!(
                "{bytes} is less than two files of {segment_len} bytes for each directory; give at least {least}, or lower maxFileSize"
            );
            refused = Some(settings.refuse(key, message));
        }
    }
    let own_dirs = data_dirs.iter().map(|dir| dir.join(OWN_DIR)).collect();
    let durable = DurableOptions {
        capacity: capacity as u64,
        transaction_capacity,
        keep_alive: Duration::from_secs(settings.count("keep-alive") as u64),
        segment_len,
        reserve_bytes: settings.count("minimumRequiredSpace") as u64,
        disk_bytes_max: bytes_max,
        pool_bytes: settings.count("penstock.poolBytes") as u64,
        compress: match settings.choice("penstock.compression") {
            "zstd" => Compress::WhereFaster,
            "zstd-always" => Compress::Always,
            _ => Compress::Never,
        },
        hot_tail_bytes: settings.count("penstock.hotTailBytes"),
        scrub_interval: Duration::from_secs(settings.count("penstock.scrubHours") as u64 * 3600),
        on_damage: match settings.choice("penstock.onDamage") {
            "continue" => OnDamage::Continue,
            _ => OnDamage::Refuse,
        },
        backend: Backend::named(settings.choice("penstock.io")),
        checkpoint_dir: Some(expand_home(settings.text("checkpointDir").trim()).join(OWN_DIR)),
        checkpoint_interval: Duration::from_millis(settings.count("checkpointInterval") as u64),
        separate_flush_domains: settings.choice("penstock.flushDomains") == "separate",
        tuning: None,
        ..DurableOptions::new(settings.name(), own_dirs)
    };
    let encryption = encryption(settings)?;
    refused.map_or(Ok(FileOptions { data_dirs, durable, encryption, dead_letter_bytes_max }), Err)
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

    type Outcome = Result<(Vec<PathBuf>, Option<EncryptionOptions>), Refused>;

    fn check(lines: &[(&str, &str)]) -> (Outcome, Vec<String>) {
        // What the default directory holds is the machine's business.
        let default = [("dataDirs", "/a")].into_iter().filter(|_| lines.iter().all(|(key, _)| *key != "dataDirs"));
        let lines: Vec<(&str, &str)> = lines.iter().copied().chain(default).collect();
        let settings = Settings::of("channels.c1", KEYS, &lines);
        settings.check(&[]);
        let options = read(&settings);
        (
            options.map(|options| (options.data_dirs, options.encryption)),
            settings.take_findings().iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn directories_are_separated_by_commas_and_never_twice() {
        let (options, _) = check(&[("dataDirs", "/a/b, /c d ,,/e")]);
        assert_eq!(options.unwrap().0, ["/a/b", "/c d", "/e"].map(PathBuf::from));
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
        assert_eq!(check(&[]).0.unwrap().1, None);
        let (options, found) = check(&[
            ("encryption.activeKey", "k1"),
            ("encryption.cipherProvider", "AESCTRNOPADDING"),
            ("encryption.keyProvider.keyFile", "/etc/keys"),
        ]);
        let expected = EncryptionOptions { active_key: "k1".to_owned(), key_file: "/etc/keys".into() };
        assert_eq!(options.unwrap().1, Some(expected));
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

    #[test]
    fn a_byte_limit_leaves_room_to_write_one_file_while_another_drains() {
        let limit = |bytes: &str| {
            let lines = [("dataDirs", "/a,/b"), ("maxFileSize", "2000000"), ("penstock.maxBytes", bytes)];
            check(&lines).1
        };
        // 2,000,000 bytes in whole pages are 1,998,848.
        assert!(limit("7995391")[0].contains("give at least 7995392"), "{:?}", limit("7995391"));
        assert_eq!(limit("7995392"), Vec::<String>::new());
    }
}
