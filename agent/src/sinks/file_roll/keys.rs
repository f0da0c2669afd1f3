//! The keys of the file_roll sink, and what they ask for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use store::serializer::{AvroCodec, Format};

use super::Plan;
use super::names::Names;
use crate::component::{Key, KeyDefault, Refused, Settings};

/// No channel's transaction is larger.
const BATCH_EVENTS_MAX: i64 = 1 << 30;

/// A block of an Avro file is held in memory until it is full.
const SYNC_INTERVAL_MAX: i64 = 1 << 30;

/// Flume's limits for an Avro block.
const SYNC_INTERVAL_MIN: i64 = 32;

const SERIALIZERS: &str = "there are TEXT, HEADER_AND_TEXT and AVRO_EVENT";

pub(super) static KEYS: &[Key] = &[
    Key::path("sink.directory", KeyDefault::Required, "Directory of the files; it is made where it is missing."),
    Key::integer(
        "sink.rollInterval",
        0,
        1 << 40,
        "s",
        KeyDefault::Is("30"),
        "How long one file is written, counted from its first event; 0 is for ever.",
    ),
    Key::integer(
        "sink.batchSize",
        1,
        BATCH_EVENTS_MAX,
        "events",
        KeyDefault::Is("100"),
        "Events in one transaction, written and synced together.",
    ),
    Key::text("sink.serializer", KeyDefault::Is("TEXT"), "What a file holds: TEXT, HEADER_AND_TEXT, AVRO_EVENT."),
    Key::flag("sink.serializer.appendNewline", "true", "Whether each event of a text file ends with a newline."),
    Key::integer(
        "sink.serializer.syncIntervalBytes",
        SYNC_INTERVAL_MIN,
        SYNC_INTERVAL_MAX,
        "bytes",
        KeyDefault::Is("2048000"),
        "Size of a block of an Avro file; every commit ends a block as well.",
    ),
    Key::text("sink.serializer.compressionCodec", KeyDefault::Is("null"), "Codec of an Avro file: null or deflate."),
    Key::refused(
        "sink.serializer.schemaURL",
        "Schema of pre-encoded Avro bodies.",
        "Use AVRO_EVENT, with its own schema.",
    ),
    Key::text(
        "sink.pathManager",
        KeyDefault::Is("DEFAULT"),
        "How files are named: DEFAULT (`<start ms>-<n>`) or ROLLTIME (`<yyyyMMddHHmmss>-<n>`).",
    ),
    Key::text("sink.pathManager.prefix", KeyDefault::Absent, "Beginning of each name."),
    Key::text("sink.pathManager.extension", KeyDefault::Absent, "End of each name, after a dot."),
];

pub(super) fn plan(settings: &Settings) -> Result<Plan, Refused> {
    let (format, names) = (format(settings), names(settings));
    let seconds = u64::try_from(settings.integer("sink.rollInterval")).unwrap_or(0);
    Ok(Plan {
        directory: settings.path_opt("sink.directory").ok_or(Refused)?,
        roll_interval: (seconds > 0).then(|| Duration::from_secs(seconds)),
        batch_size: settings.count("sink.batchSize"),
        format: format?,
        names: names?,
    })
}

fn names(settings: &Settings) -> Result<Names, Refused> {
    let part = |name| settings.text_opt(name).unwrap_or_default();
    let (prefix, extension) = (part("sink.pathManager.prefix"), part("sink.pathManager.extension"));
    for (key, value) in [("sink.pathManager.prefix", prefix), ("sink.pathManager.extension", extension)] {
        if value.contains('/') {
            return Err(settings.refuse(key, format!("`{value}` names another directory; put it into sink.directory")));
        }
    }
    let manager = settings.text("sink.pathManager");
    let manager = manager.trim();
    if manager.eq_ignore_ascii_case("DEFAULT")
        || manager == "org.apache.flume.formatter.output.DefaultPathManager$Builder"
    {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(Names::by_start(prefix, extension, i64::try_from(since.as_millis()).unwrap_or(i64::MAX)));
    }
    if manager.eq_ignore_ascii_case("ROLLTIME")
        || manager == "org.apache.flume.formatter.output.RollTimePathManager$Builder"
    {
        return Ok(Names::by_roll_time(prefix, extension));
    }
    Err(settings.refuse("sink.pathManager", format!("{manager} is not built; there are DEFAULT and ROLLTIME")))
}

fn format(settings: &Settings) -> Result<Format, Refused> {
    let append_newline = settings.flag("sink.serializer.appendNewline");
    let name = settings.text("sink.serializer");
    let name = name.trim();
    let is = |alias: &str, class: &str| name.eq_ignore_ascii_case(alias) || name == class;
    if is("TEXT", "org.apache.flume.serialization.BodyTextEventSerializer$Builder") {
        Ok(Format::Text { append_newline })
    } else if is("HEADER_AND_TEXT", "org.apache.flume.serialization.HeaderAndBodyTextEventSerializer$Builder") {
        Ok(Format::HeaderAndText { append_newline })
    } else if is("AVRO_EVENT", "org.apache.flume.serialization.FlumeEventAvroEventSerializer$Builder") {
        let codec = settings.text("sink.serializer.compressionCodec");
        let Some(codec) = AvroCodec::for_name(codec.trim()) else {
            let message = format!("the Avro codec {codec} is not built; there are null and deflate");
            return Err(settings.refuse("sink.serializer.compressionCodec", message));
        };
        let sync_interval_bytes = settings.count("sink.serializer.syncIntervalBytes");
        Ok(Format::AvroEvent { sync_interval_bytes, codec })
    } else {
        Err(settings.refuse("sink.serializer", format!("{name} is not built; {SERIALIZERS}")))
    }
}
