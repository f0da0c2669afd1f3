//! What an inspection means for the one who asked: a list of facts, a verdict and an exit code.
//!
//! Promises that everything which is not as it should be becomes exactly one fact, so that table, JSON and exit code
//! cannot disagree.

use channel::inspect::{Content, IdentityState, InspectedDir, Inspection};
use serde_json::{Map, Value, json};
use wal::recover::cases::{Case, Content as Bytes};
use wal::recover::{Finding, KeyAccess, RecoverError, ShortSegment};

use crate::exit::Exit;
use crate::places::Seen;
use crate::text::{count, shown, uuid};

/// Something that is worth a line.
#[derive(Debug)]
pub(crate) struct Fact {
    /// What it does to the exit code; `Clean` is a remark.
    pub(crate) exit: Exit,
    pub(crate) kind: &'static str,
    /// The directory, if it is about one.
    pub(crate) dir: String,
    pub(crate) text: String,
    /// For programs.
    pub(crate) fields: Map<String, Value>,
}

impl Fact {
    fn new(exit: Exit, kind: &'static str, dir: &str, text: impl Into<String>) -> Fact {
        Fact { exit, kind, dir: dir.to_owned(), text: text.into(), fields: Map::new() }
    }

    fn with(mut self, fields: Value) -> Fact {
        if let Value::Object(fields) = fields {
            self.fields.extend(fields);
        }
        self
    }
}

/// Everything that is to be said. `needs_keys` says that the question cannot be answered without them.
pub(crate) fn gather(seen: &Seen, needs_keys: bool) -> Vec<Fact> {
    let inspection = &seen.inspection;
    let mut facts = Vec::new();
    for dir in &seen.absent {
        facts.push(Fact::new(Exit::Findings, "missing_directory", dir, "no such directory"));
    }
    for (dir, error) in &seen.refused {
        facts.push(Fact::new(Exit::Io, "unreadable_directory", dir, error.to_string()));
    }
    for (dir, error) in &inspection.unreadable {
        facts.push(Fact::new(Exit::Io, "unreadable_directory", dir, error.to_string()));
    }
    for dir in &inspection.unidentified {
        let text = "holds segments or an identity, and neither says whose they are";
        facts.push(Fact::new(Exit::Findings, "unidentified_directory", dir, text));
    }
    for dir in &inspection.empty {
        let text = "holds no channel: new, or its disk is not mounted";
        facts.push(Fact::new(Exit::Clean, "empty_directory", dir, text));
    }
    for member in &inspection.missing {
        let text = "a directory of this channel is not among those named; it may hold pending events";
        let log = uuid(member.log);
        facts.push(Fact::new(Exit::Findings, "missing_member", &member.hint, text).with(json!({ "log": log })));
    }
    for dir in &inspection.dirs {
        of_directory(seen, dir, needs_keys, &mut facts);
    }
    of_events(inspection, &mut facts);
    facts
}

fn of_directory(seen: &Seen, dir: &InspectedDir, needs_keys: bool, facts: &mut Vec<Fact>) {
    let name = &dir.dir;
    let identity = match &dir.identity {
        IdentityState::Present => None,
        IdentityState::Missing => Some("its identity is gone; its segments say whose they are".to_owned()),
        IdentityState::Damaged(damage) => Some(format!("its identity is damaged: {damage}")),
    };
    if let (Some(text), Ok(_)) = (identity, &dir.content) {
        facts.push(Fact::new(Exit::Findings, "identity", name, text));
    }
    match &dir.content {
        Err(error @ RecoverError::Version { .. }) => {
            facts.push(Fact::new(Exit::Version, "version", name, error.to_string()));
        }
        Err(error) => facts.push(Fact::new(Exit::Io, "unreadable_log", name, error.to_string())),
        Ok(content) => of_log(seen.is_live(), name, content, needs_keys, facts),
    }
}

fn of_log(is_live: bool, dir: &str, content: &Content, needs_keys: bool, facts: &mut Vec<Fact>) {
    for (id, used) in content.key_uses() {
        let Some(id) = id.as_ref().filter(|_| used.access.is_locked()) else { continue };
        let wrong = used.access == KeyAccess::Wrong;
        let text = if wrong {
            format!("key `{}` is not the key that {} frames were encrypted with", shown(id), count(used.frames))
        } else {
            format!("{} frames are encrypted with key `{}`, which is not given", count(used.frames), shown(id))
        };
        // Whoever names a key file wants it used.
        let exit = if wrong || needs_keys { Exit::Keys } else { Exit::Clean };
        let kind = if wrong { "wrong_key" } else { "locked" };
        let fields = json!({ "key": id, "frames": used.frames, "events": used.events });
        facts.push(Fact::new(exit, kind, dir, text).with(fields));
    }
    for file in content.strays() {
        let text = format!("{} belongs to another channel or directory", shown(file));
        facts.push(Fact::new(Exit::Findings, "stray_file", dir, text).with(json!({ "file": file })));
    }
    for ShortSegment { slot, len, wanted } in content.short_segments() {
        let text = format!("segment {slot} ends at byte {len} of {wanted}: something cut it");
        let fields = json!({ "segment": slot, "bytes": len, "wanted": wanted });
        facts.push(Fact::new(Exit::Findings, "short_segment", dir, text).with(fields));
    }
    if let Some(what) = &content.malformed {
        let text = format!("{what}, although its checksum is right");
        facts.push(Fact::new(Exit::Findings, "malformed", dir, text));
    }
    if let Some(kind) = content.unknown_section {
        let text = format!("a section of kind {kind} is unknown and not optional; a newer version wrote it");
        facts.push(Fact::new(Exit::Version, "unknown_section", dir, text).with(json!({ "section": kind })));
    }
    facts.extend(content.findings.iter().filter_map(|finding| of_place(is_live, dir, finding)));
}

fn of_place(is_live: bool, dir: &str, finding: &Finding) -> Option<Fact> {
    let Finding { slot, ordinal, start, end, content, case } = *finding;
    let exit = match case {
        Case::CleanEnd | Case::Fenced => return None,
        Case::TornTail | Case::TornHole => Exit::Clean,
        _ => Exit::Findings,
    };
    let meaning = match case {
        _ if exit == Exit::Clean && is_live => "in flight",
        Case::TornTail if content == Bytes::Other => "never acknowledged, or left by an earlier use of the file",
        Case::TornTail | Case::TornHole => "never acknowledged",
        _ => "acknowledged bytes",
    };
    let text = format!("segment {slot} bytes {start}..{end}: {case} ({meaning})");
    let content = match content {
        Bytes::Zero => "zero",
        Bytes::Other => "other",
        Bytes::Damaged => "damaged",
        Bytes::Unreadable => "unreadable",
    };
    let fields = json!({
        "segment": slot, "ordinal": ordinal, "start": start, "end": end, "content": content, "case": case.label(),
    });
    Some(Fact::new(exit, "place", dir, text).with(fields))
}

fn of_events(inspection: &Inspection, facts: &mut Vec<Fact>) {
    for range in inspection.lost().unwrap_or_default() {
        let text = format!("{} acknowledged events are on none of these directories: {range}", count(range.count()));
        let fields = json!({ "start": range.start, "end": range.end, "events": range.count() });
        facts.push(Fact::new(Exit::Findings, "lost", "", text).with(fields));
    }
}

/// A transaction that cannot be decoded although its bytes are those that were written.
pub(crate) fn bad_transaction(dir: &str, what: String) -> Fact {
    Fact::new(Exit::Findings, "transaction", dir, what)
}

pub(crate) fn exit_of(facts: &[Fact]) -> Exit {
    facts.iter().map(|fact| fact.exit).max().unwrap_or(Exit::Clean)
}

/// One line that says how it stands, and one that says what to do.
pub(crate) fn verdict(inspection: &Inspection, facts: &[Fact]) -> (&'static str, Option<&'static str>) {
    let has = |kind: &str| facts.iter().any(|fact| fact.kind == kind);
    let lost = inspection.lost().is_some_and(|lost| !lost.is_empty());
    match exit_of(facts) {
        Exit::Version => ("WRITTEN BY A NEWER VERSION", Some("use wal-inspect of that version")),
        Exit::Io | Exit::Usage => {
            ("NOT READABLE", Some("run this as the agent's user or as root, and look at the disk's log"))
        }
        Exit::Keys if has("wrong_key") => ("WRONG KEY", Some("--key-file with the file the agent was started with")),
        Exit::Keys => ("KEYS NEEDED", Some("--key-file with the file the agent was started with")),
        Exit::Findings if has("missing_member") || has("missing_directory") => {
            let verdict = if lost { "RECOVERABLE WITH LOSS" } else { "INCOMPLETE" };
            (verdict, Some("bring back or name the missing directory"))
        }
        Exit::Findings if lost => {
            ("RECOVERABLE WITH LOSS", Some("copy the directories, then start with penstock.onDamage = continue"))
        }
        Exit::Findings if inspection.has_loss() => ("DAMAGED", Some("copy the directories before the agent starts")),
        Exit::Findings => ("FINDINGS", None),
        Exit::Clean if has("locked") => ("CLEAN, EVENTS LOCKED", Some("--key-file shows what is inside")),
        Exit::Clean => ("CLEAN", None),
    }
}
