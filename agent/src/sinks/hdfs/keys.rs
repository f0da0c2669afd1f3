//! The keys of the sink, and what a configuration makes of them.
//!
//! Every key of Flume's `hdfs` sink is here: live, accepted without effect, or refused by name. Three keys are our
//! own (`hdfs.syncBytes`, `hdfs.syncInterval`, `hdfs.maxLeasedBytes`). Reading has no side effects but reading
//! Hadoop's XML files.

#[cfg(feature = "hdfs")]
use std::path::PathBuf;
use std::time::Duration;

use store::clock::{Rounding, Zone};
use store::location::{Location, System};
use store::sequence_file::ValueClass;
use store::serializer::{AvroCodec, Format};
use store::template::{HostNames, PathTemplates, TimeRules};

use crate::component::{Key, KeyDefault, Refused, Settings};
use crate::own_host::OwnHost;

const NOT_BUILT: &str = "Compressed files are not built yet; use hdfs.fileType = DataStream or SequenceFile.";
const SERIALIZERS: &str = "there are text, header_and_text and avro_event";
const AVRO_SERIALIZER: &str = "Only avro_event writes Avro files, with its own schema.";

pub(super) static KEYS: &[Key] = &[
    Key::text("hdfs.path", KeyDefault::Required, "Directory to write to, with escape sequences: file:// or hdfs://."),
    Key::text("hdfs.filePrefix", KeyDefault::Is("FlumeData"), "Start of every file's name, with escape sequences."),
    Key::text(
        "hdfs.fileSuffix",
        KeyDefault::Absent,
        "End of every file's name, such as .avro; nothing is added to it.",
    ),
    Key::text("hdfs.inUsePrefix", KeyDefault::Absent, "Start of the name while the file is written."),
    Key::text("hdfs.inUseSuffix", KeyDefault::Is(".tmp"), "End of the name while the file is written."),
    Key::flag("hdfs.emptyInUseSuffix", "false", "Use no inUseSuffix at all."),
    Key::integer(
        "hdfs.rollInterval",
        0,
        MAX_SECONDS,
        "s",
        KeyDefault::Is("30"),
        "Age at which a file is closed; 0 is never.",
    ),
    Key::integer(
        "hdfs.rollSize",
        0,
        i64::MAX,
        "bytes",
        KeyDefault::Is("1024"),
        "Sum of event bodies after which the next event opens a new file; 0 is never.",
    ),
    Key::integer(
        "hdfs.rollCount",
        0,
        i64::MAX,
        "events",
        KeyDefault::Is("10"),
        "Events after which the next one opens a new file; 0 is never.",
    ),
    Key::integer(
        "hdfs.idleTimeout",
        0,
        MAX_SECONDS,
        "s",
        KeyDefault::Is("0"),
        "Time without an event after which a file is closed; 0 is never.",
    ),
    Key::integer("hdfs.batchSize", 1, 1_000_000, "events", KeyDefault::Is("100"), "Most events taken at once."),
    Key::refused("hdfs.codeC", "Compression codec.", NOT_BUILT),
    Key::choice(
        "hdfs.fileType",
        &["SequenceFile", "DataStream", "CompressedStream"],
        KeyDefault::Is("SequenceFile"),
        "SequenceFile, or DataStream for what the serializer writes.",
    ),
    Key::integer(
        "hdfs.maxOpenFiles",
        1,
        10_000,
        "files",
        KeyDefault::Is("5000"),
        "Beyond this the file unused for longest is closed.",
    ),
    Key::inert("hdfs.minBlockReplicas", "Least replicas of a block.", "files are never rolled for lack of replicas"),
    Key::choice(
        "hdfs.writeFormat",
        &["Writable", "Text"],
        KeyDefault::Is("Writable"),
        "Class of the values of a SequenceFile.",
    ),
    Key::integer(
        "hdfs.callTimeout",
        1,
        3_600_000,
        "ms",
        KeyDefault::Is("30000"),
        "Longest time for one call to the file system.",
    ),
    Key::integer(
        "hdfs.threadsPoolSize",
        1,
        64,
        "threads",
        KeyDefault::Is("10"),
        "Calls at once to a local file system.",
    ),
    Key::inert("hdfs.rollTimerPoolSize", "Threads for timed rolls.", "rolls need no threads"),
    Key::text(
        "hdfs.kerberosPrincipal",
        KeyDefault::Absent,
        "Principal to log in as; _HOST becomes this host's full name.",
    ),
    Key::path("hdfs.kerberosKeytab", KeyDefault::Absent, "Keytab of the principal."),
    Key::refused(
        "hdfs.proxyUser",
        "User to act as.",
        "Run one agent per user, or give that user's principal and keytab.",
    ),
    Key::flag("hdfs.round", "false", "Round the time down before it is printed into a path."),
    Key::integer(
        "hdfs.roundValue",
        1,
        60,
        "",
        KeyDefault::Is("1"),
        "Round down to a multiple of this many units; hours up to 24.",
    ),
    Key::choice("hdfs.roundUnit", &["second", "minute", "hour"], KeyDefault::Is("second"), "Unit of roundValue."),
    Key::text(
        "hdfs.timeZone",
        KeyDefault::Absent,
        "Time zone of printed times; the machine's without it, GMT for an unknown one.",
    ),
    Key::flag("hdfs.useLocalTimeStamp", "false", "Print the time of writing instead of the event's timestamp header."),
    Key::integer(
        "hdfs.closeTries",
        0,
        i64::MAX,
        "",
        KeyDefault::Is("0"),
        "Tries to close and publish a file that failed; 0 has no end.",
    ),
    Key::integer(
        "hdfs.retryInterval",
        0,
        MAX_SECONDS,
        "s",
        KeyDefault::Is("180"),
        "Longest time between two such tries; 0 allows one try.",
    ),
    Key::inert(
        "hdfs.useRawLocalFileSystem",
        "Write local files without checksums.",
        "local files never have Hadoop's checksum files",
    ),
    Key::integer(
        "hdfs.syncBytes",
        1,
        1 << 30,
        "bytes",
        KeyDefault::Is("8388608"),
        "A file with this many new bytes is made durable at once.",
    ),
    Key::integer(
        "hdfs.syncInterval",
        1,
        600_000,
        "ms",
        KeyDefault::Is("1000"),
        "Longest time before new bytes are made durable and their events settled.",
    ),
    Key::integer(
        "hdfs.maxLeasedBytes",
        1 << 20,
        1 << 34,
        "bytes",
        KeyDefault::Is("67108864"),
        "Bytes of taken events not yet durable; at this the oldest files are synced early.",
    ),
    Key::text("serializer", KeyDefault::Is("TEXT"), "What a DataStream file holds: text, header_and_text, avro_event."),
    Key::flag("serializer.appendNewline", "true", "End each event of a text file with a newline."),
    Key::integer(
        "serializer.syncIntervalBytes",
        32,
        1 << 30,
        "bytes",
        KeyDefault::Is("2048000"),
        "Size of a block of an Avro file.",
    ),
    Key::text("serializer.compressionCodec", KeyDefault::Is("null"), "Codec of an Avro file: null or deflate."),
    Key::refused("serializer.schemaURL", "Schema of pre-encoded Avro bodies.", AVRO_SERIALIZER),
];

/// About three years; keeps times addable.
const MAX_SECONDS: i64 = 100_000_000;

/// What the sink was told.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) templates: PathTemplates,
    pub(super) suffix: String,
    pub(super) in_use_prefix: String,
    pub(super) in_use_suffix: String,
    pub(super) roll_interval: Option<Duration>,
    pub(super) roll_bytes: Option<u64>,
    pub(super) roll_events: Option<u64>,
    pub(super) idle: Option<Duration>,
    pub(super) batch: usize,
    pub(super) files_max: usize,
    pub(super) format: Format,
    pub(super) retry: Duration,
    /// `None` has no end.
    pub(super) tries_max: Option<u64>,
    pub(super) sync_bytes: u64,
    pub(super) sync_interval: Duration,
    pub(super) leased_bytes_max: u64,
    pub(super) call_timeout: Duration,
    pub(super) local_calls: usize,
}

/// Where the files go.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Local,
    #[cfg(feature = "hdfs")]
    Hdfs(store::hdfs::HdfsSettings),
}

impl Plan {
    pub(super) fn read(settings: &Settings) -> Result<Plan, Refused> {
        let location = Location::parse(settings.text("hdfs.path").trim())
            .map_err(|error| settings.refuse("hdfs.path", error.to_string()));
        let format = format(settings);
        let time = time_rules(settings);
        let (location, format, time) = (location?, format?, time?);
        let target = target(settings, location.system)?;
        let is_hdfs = !matches!(target, Target::Local);
        let prefix = settings.text("hdfs.filePrefix");
        let names =
            if location.path.contains("%[") || prefix.contains("%[") { host_names() } else { HostNames::default() };
        let templates = PathTemplates::new(&location.path, &prefix, &names, time, is_hdfs)
            .map_err(|error| settings.refuse("hdfs.path", error.to_string()))?;
        if templates.needs_time() && !settings.flag("hdfs.useLocalTimeStamp") {
            settings.notice(
                "hdfs.path",
                "needs a timestamp header in every event: a timestamp interceptor, or hdfs.useLocalTimeStamp = true",
            );
        }
        let seconds = |name: &str| Some(settings.integer(name) as u64).filter(|&value| value > 0);
        let empty_suffix = settings.flag("hdfs.emptyInUseSuffix");
        let retry = seconds("hdfs.retryInterval");
        let plan = Plan {
            target,
            templates,
            suffix: settings.text("hdfs.fileSuffix"),
            in_use_prefix: settings.text("hdfs.inUsePrefix"),
            in_use_suffix: if empty_suffix { String::new() } else { settings.text("hdfs.inUseSuffix") },
            roll_interval: seconds("hdfs.rollInterval").map(Duration::from_secs),
            roll_bytes: seconds("hdfs.rollSize"),
            roll_events: seconds("hdfs.rollCount"),
            idle: seconds("hdfs.idleTimeout").map(Duration::from_secs),
            batch: settings.count("hdfs.batchSize"),
            files_max: settings.count("hdfs.maxOpenFiles"),
            format,
            retry: Duration::from_secs(retry.unwrap_or(0)),
            tries_max: if retry.is_none() { Some(1) } else { seconds("hdfs.closeTries") },
            sync_bytes: settings.integer("hdfs.syncBytes") as u64,
            sync_interval: Duration::from_millis(settings.integer("hdfs.syncInterval") as u64),
            leased_bytes_max: settings.integer("hdfs.maxLeasedBytes") as u64,
            call_timeout: Duration::from_millis(settings.integer("hdfs.callTimeout") as u64),
            local_calls: settings.count("hdfs.threadsPoolSize"),
        };
        plan.refuse_slashes(settings)?;
        plan.warn_of_tiny_files(settings);
        Ok(plan)
    }

    fn refuse_slashes(&self, settings: &Settings) -> Result<(), Refused> {
        let parts = [
            ("hdfs.fileSuffix", &self.suffix),
            ("hdfs.inUsePrefix", &self.in_use_prefix),
            ("hdfs.inUseSuffix", &self.in_use_suffix),
        ];
        for (name, value) in parts {
            if value.contains('/') || value.len() > 100 {
                return Err(settings.refuse(name, "must be a part of a file's name: no slash, at most 100 bytes"));
            }
        }
        Ok(())
    }

    /// Small files are what Hadoop bears worst, and Flume's defaults make them.
    fn warn_of_tiny_files(&self, settings: &Settings) {
        const EVENTS_PER_SECOND: f64 = 1000.0;
        const TINY_FILES_PER_HOUR: f64 = 1000.0;
        let by_events = self.roll_events.map_or(0.0, |events| EVENTS_PER_SECOND / events as f64);
        let by_bytes = self.roll_bytes.map_or(0.0, |bytes| EVENTS_PER_SECOND / (bytes as f64 / 100.0).max(1.0));
        let by_time = self.roll_interval.map_or(0.0, |interval| 1.0 / interval.as_secs_f64());
        let files_per_hour = by_events.max(by_bytes).max(by_time) * 3600.0;
        if files_per_hour > TINY_FILES_PER_HOUR {
            settings.warn(
                "hdfs.rollCount",
                format!(
                    "tiny files: at 1,000 events/s of 100 bytes this makes about {files_per_hour:.0} files an hour; raise \
                     hdfs.rollCount, hdfs.rollSize and hdfs.rollInterval, or set those you do not need to 0"
                ),
            );
        }
    }
}

fn host_names() -> HostNames {
    let own = OwnHost::find();
    let address = own.address.map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string());
    HostNames { name: own.name, address, full_name: own.full_name }
}

fn format(settings: &Settings) -> Result<Format, Refused> {
    match settings.choice("hdfs.fileType") {
        "CompressedStream" => Err(settings.refuse("hdfs.fileType", NOT_BUILT)),
        "SequenceFile" => Ok(Format::SequenceFile(match settings.choice("hdfs.writeFormat") {
            "Text" => ValueClass::Text,
            _ => ValueClass::BytesWritable,
        })),
        _ => serializer(settings),
    }
}

fn serializer(settings: &Settings) -> Result<Format, Refused> {
    let append_newline = settings.flag("serializer.appendNewline");
    let name = settings.text("serializer");
    let class = name.trim();
    if class.eq_ignore_ascii_case("text") || class == "org.apache.flume.serialization.BodyTextEventSerializer$Builder" {
        return Ok(Format::Text { append_newline });
    }
    if class.eq_ignore_ascii_case("header_and_text")
        || class == "org.apache.flume.serialization.HeaderAndBodyTextEventSerializer$Builder"
    {
        return Ok(Format::HeaderAndText { append_newline });
    }
    if class.eq_ignore_ascii_case("avro_event")
        || class == "org.apache.flume.serialization.FlumeEventAvroEventSerializer$Builder"
    {
        let codec = settings.text("serializer.compressionCodec");
        let Some(codec) = AvroCodec::for_name(codec.trim()) else {
            let message = format!("the Avro codec {codec} is not built; there are null and deflate");
            return Err(settings.refuse("serializer.compressionCodec", message));
        };
        let sync_interval_bytes = settings.count("serializer.syncIntervalBytes");
        return Ok(Format::AvroEvent { sync_interval_bytes, codec });
    }
    Err(settings.refuse("serializer", format!("{class} is not built; {SERIALIZERS}")))
}

fn time_rules(settings: &Settings) -> Result<TimeRules, Refused> {
    let zone = match settings.text_opt("hdfs.timeZone").map(str::trim) {
        None => Zone::local(),
        Some(name) => Zone::named(name).unwrap_or_else(|| {
            settings.warn("hdfs.timeZone", format!("{name} is no known time zone: GMT is used, as Flume does"));
            Zone::gmt()
        }),
    };
    let step = settings.integer("hdfs.roundValue");
    let rounding = match settings.choice("hdfs.roundUnit") {
        _ if !settings.flag("hdfs.round") => Rounding::None,
        "hour" if step > 24 => return Err(settings.refuse("hdfs.roundValue", "hours round to 1 to 24")),
        "hour" => Rounding::Hours(step as u8),
        "minute" => Rounding::Minutes(step as u8),
        _ => Rounding::Seconds(step as u8),
    };
    Ok(TimeRules { zone, rounding, use_local_time: settings.flag("hdfs.useLocalTimeStamp") })
}

#[cfg(not(feature = "hdfs"))]
fn target(settings: &Settings, system: System) -> Result<Target, Refused> {
    match system {
        System::Local | System::Default => Ok(Target::Local),
        System::Hdfs { .. } => Err(settings.refuse("hdfs.path", "this build has no HDFS (feature hdfs); use file://")),
    }
}

#[cfg(feature = "hdfs")]
fn target(settings: &Settings, system: System) -> Result<Target, Refused> {
    use store::hdfs::{HadoopConfig, HdfsSettings};
    if system == System::Local {
        return Ok(Target::Local);
    }
    let from_environment = std::env::var_os("HADOOP_CONF_DIR").map(PathBuf::from);
    let directories: Vec<PathBuf> =
        settings.conf_dir().map(PathBuf::from).into_iter().chain(from_environment).collect();
    let hadoop = HadoopConfig::read(&directories).map_err(|error| settings.refuse("hdfs.path", error.to_string()))?;
    let default = hadoop.get("fs.defaultFS").unwrap_or_default();
    let authority = match system {
        System::Local => return Ok(Target::Local),
        System::Default if default.is_empty() || default.starts_with("file:") => return Ok(Target::Local),
        System::Default if !default.starts_with("hdfs://") => {
            return Err(
                settings.refuse("hdfs.path", format!("fs.defaultFS = {default} is not a file system of this build"))
            );
        }
        System::Default => String::new(),
        System::Hdfs { authority } => authority,
    };
    if authority.is_empty() && !default.starts_with("hdfs://") {
        return Err(settings.refuse("hdfs.path", "names no host or name service, and neither does fs.defaultFS"));
    }
    let principal = settings.text_opt("hdfs.kerberosPrincipal").map(|principal| {
        if principal.contains("_HOST") {
            principal.replace("_HOST", &OwnHost::find().full_name.to_lowercase())
        } else {
            principal.to_owned()
        }
    });
    let keytab = settings.path_opt("hdfs.kerberosKeytab");
    match (&principal, &keytab) {
        (Some(_), None) if hadoop.kerberos() => {
            return Err(settings.refuse("hdfs.kerberosPrincipal", "needs hdfs.kerberosKeytab as well"));
        }
        (None, Some(_)) => return Err(settings.refuse("hdfs.kerberosKeytab", "needs hdfs.kerberosPrincipal as well")),
        (_, Some(keytab)) => {
            if let Err(error) = std::fs::File::open(keytab) {
                let message = format!("{} cannot be read: {error}", keytab.display());
                return Err(settings.refuse("hdfs.kerberosKeytab", message));
            }
        }
        _ => {}
    }
    Ok(Target::Hdfs(HdfsSettings { authority, hadoop, principal, keytab }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(lines: &[(&str, &str)]) -> Result<Plan, Vec<String>> {
        let settings = Settings::of("sinks.k1", KEYS, lines);
        settings.check(&[]);
        let plan = Plan::read(&settings);
        let errors: Vec<String> = settings.take_findings().into_iter().map(|finding| finding.message).collect();
        plan.map_err(|Refused| errors)
    }

    fn refusal(lines: &[(&str, &str)]) -> String {
        plan(lines).unwrap_err().join("\n")
    }

    #[test]
    fn the_defaults_are_flumes() {
        let plan = plan(&[("hdfs.path", "/logs")]).unwrap();
        assert_eq!(plan.roll_interval, Some(Duration::from_secs(30)));
        assert_eq!((plan.roll_bytes, plan.roll_events, plan.idle), (Some(1024), Some(10), None));
        assert_eq!((plan.batch, plan.files_max), (100, 5000));
        assert_eq!(plan.format, Format::SequenceFile(ValueClass::BytesWritable));
        assert_eq!(plan.in_use_suffix, ".tmp");
        assert!(matches!(plan.target, Target::Local));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let path = ("hdfs.path", "file:///logs");
        for (name, value, says) in [
            ("hdfs.fileType", "CompressedStream", "not built yet"),
            ("hdfs.path", "s3a://bucket/x", "s3a"),
            ("hdfs.path", "file:///logs/%[nonsense]", "%[nonsense]"),
            ("hdfs.path", "file:///logs/%{a}/../x", "lead out"),
            ("hdfs.fileSuffix", "a/b", "no slash"),
        ] {
            assert!(refusal(&[(name, value), path]).contains(says), "{name} = {value}");
        }
        let stream = ("hdfs.fileType", "DataStream");
        assert!(refusal(&[path, stream, ("serializer", "nonsense")]).contains("nonsense is not built"));
        let snappy = [path, stream, ("serializer", "avro_event"), ("serializer.compressionCodec", "snappy")];
        assert!(refusal(&snappy).contains("snappy is not built"));
        let hours = [path, ("hdfs.round", "true"), ("hdfs.roundUnit", "hour"), ("hdfs.roundValue", "25")];
        assert!(refusal(&hours).contains("1 to 24"));
    }

    #[cfg(feature = "hdfs")]
    #[test]
    fn a_path_without_a_host_needs_the_default_of_hadoop() {
        assert!(refusal(&[("hdfs.path", "hdfs:///logs")]).contains("fs.defaultFS"));
        let keytab =
            [("hdfs.path", "hdfs://nn/x"), ("hdfs.kerberosPrincipal", "a@B"), ("hdfs.kerberosKeytab", "/none")];
        assert!(refusal(&keytab).contains("/none cannot be read"));
        let Target::Hdfs(settings) = plan(&[("hdfs.path", "hdfs://nn:8020/x")]).unwrap().target else {
            panic!("not HDFS")
        };
        assert_eq!(settings.authority, "nn:8020");
    }
}
