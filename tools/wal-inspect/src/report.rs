//! The verbs `info` and `verify`: one table or one set of JSON lines. Neither prints a byte of an event.

use std::fmt::Write as _;
use std::io::{self, Write};

use channel::inspect::{InspectedDir, Inspection, Unreadable};
use serde_json::{Value, json};
use wal::io::host::Writer;
use wal::recover::KeyAccess;
use wal::recover::scan::Depth;

use crate::cli::{Form, Level, Place};
use crate::exit::{Exit, Failure};
use crate::facts::{self, Fact};
use crate::places::{Seen, look};
use crate::text::{SCHEMA, count, fitted, json_line, shown, size, time, uuid};

/// Findings a screen shows; JSON has them all.
const FACTS_SHOWN: usize = 12;

pub(crate) fn info(place: &Place, form: Form, out: &mut dyn Write) -> Result<Exit, Failure> {
    let seen = look(place, Depth::Bodies, false)?;
    let facts = facts::gather(&seen, false);
    write(&Report { verb: "info", level: None, seen: &seen, facts: &facts }, form, out)
}

pub(crate) fn verify(level: Level, place: &Place, form: Form, out: &mut dyn Write) -> Result<Exit, Failure> {
    let depth = if level == Level::Structure { Depth::Headers } else { Depth::Bodies };
    let seen = look(place, depth, true)?;
    let mut facts = facts::gather(&seen, level == Level::Full);
    if level == Level::Full {
        for dir in &seen.inspection.dirs {
            for problem in seen.inspection.check_events(dir) {
                // What its writer gives back while it is read was settled.
                if !(seen.is_live() && matches!(problem, Unreadable::Rest(_))) {
                    facts.push(facts::bad_transaction(&dir.dir, problem.to_string()));
                }
            }
        }
    }
    write(&Report { verb: "verify", level: Some(level), seen: &seen, facts: &facts }, form, out)
}

struct Report<'a> {
    verb: &'static str,
    level: Option<Level>,
    seen: &'a Seen,
    facts: &'a [Fact],
}

fn write(report: &Report<'_>, form: Form, out: &mut dyn Write) -> Result<Exit, Failure> {
    match form {
        Form::Json => report.json(out)?,
        Form::Table => out.write_all(report.table().as_bytes())?,
    }
    Ok(facts::exit_of(report.facts))
}

impl Report<'_> {
    fn writer_of(&self, dir: &str) -> Option<&Writer> {
        self.seen.writers.iter().find(|(name, _)| name == dir).map(|(_, writer)| writer)
    }

    /// The writer of the channel: anyone who holds one of its directories.
    fn writer(&self) -> (&'static str, Option<u32>) {
        let writers = || self.seen.writers.iter().map(|(_, writer)| writer);
        let live = writers().find_map(|writer| if let Writer::Process(pid) = writer { Some(*pid) } else { None });
        match live {
            Some(pid) => ("live", Some(pid)),
            None if writers().any(|writer| matches!(writer, Writer::Unknown(_))) => ("unknown", None),
            None => ("none", None),
        }
    }

    /// Where the directories stand, one word each.
    fn state_of(&self, dir: &InspectedDir) -> &'static str {
        let own = || self.facts.iter().filter(|fact| fact.dir == dir.dir);
        match own().map(|fact| fact.exit).max() {
            Some(Exit::Version) => "newer",
            Some(Exit::Io) => "unreadable",
            Some(Exit::Findings) => "damaged",
            _ if own().any(|fact| matches!(fact.kind, "locked" | "wrong_key")) => "locked",
            _ => "ok",
        }
    }

    /// Named or known, and without a log that could be looked for.
    fn other_dirs(&self) -> Vec<(&str, &'static str)> {
        let inspection = &self.seen.inspection;
        let absent = self.seen.absent.iter().map(|dir| (dir.as_str(), "missing"));
        let refused =
            self.seen.refused.iter().chain(&inspection.unreadable).map(|(dir, _)| (dir.as_str(), "unreadable"));
        let unidentified = inspection.unidentified.iter().map(|dir| (dir.as_str(), "damaged"));
        let empty = inspection.empty.iter().map(|dir| (dir.as_str(), "empty"));
        // One that was named and is not there may be the one that its channel misses.
        let named = |hint: &str| self.seen.absent.iter().any(|dir| dir.ends_with(hint) || hint.ends_with(dir.as_str()));
        let missing = inspection.missing.iter().filter(|member| !named(&member.hint));
        let missing = missing.map(|member| (member.hint.as_str(), "missing"));
        absent.chain(refused).chain(unidentified).chain(empty).chain(missing).collect()
    }

    fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        for dir in &self.seen.inspection.dirs {
            json_line(out, &self.directory(dir))?;
        }
        for (dir, state) in self.other_dirs() {
            json_line(out, &json!({ "schema": SCHEMA, "type": "directory", "dir": dir, "state": state }))?;
        }
        for fact in self.facts {
            let mut line = fact.fields.clone();
            line.insert("schema".to_owned(), SCHEMA.into());
            line.insert("type".to_owned(), if fact.exit == Exit::Clean { "remark" } else { "finding" }.into());
            line.insert("kind".to_owned(), fact.kind.into());
            line.insert("text".to_owned(), fact.text.as_str().into());
            if !fact.dir.is_empty() {
                line.insert("dir".to_owned(), fact.dir.as_str().into());
            }
            json_line(out, &Value::Object(line))?;
        }
        json_line(out, &self.summary())
    }

    fn directory(&self, dir: &InspectedDir) -> Value {
        let mut line = json!({
            "schema": SCHEMA, "type": "directory", "dir": dir.dir, "log": uuid(dir.log), "state": self.state_of(dir),
        });
        if let Ok(content) = &dir.content {
            let keys = content.key_uses().iter().map(|(id, used)| {
                let access = match used.access {
                    KeyAccess::Plain => "plain",
                    KeyAccess::Here => "here",
                    KeyAccess::Missing => "missing",
                    KeyAccess::Wrong => "wrong",
                };
                json!({ "key": id, "access": access, "frames": used.frames, "events": used.events })
            });
            let (spares, spare_bytes) = content.spares();
            line["segments"] = content.segments().into();
            line["spares"] = spares.into();
            line["spare_bytes"] = spare_bytes.into();
            line["disk_bytes"] = content.disk_bytes().into();
            line["frames"] = content.frames.into();
            line["frame_bytes"] = content.frame_bytes.into();
            line["events"] = content.events.into();
            line["keys"] = keys.collect();
            line["oldest"] = content.written_ms.map(|(first, _)| time(first)).into();
            line["newest"] = content.written_ms.map(|(_, last)| time(last)).into();
        }
        line["writer"] = match self.writer_of(&dir.dir) {
            Some(Writer::Process(pid)) => json!({ "state": "live", "pid": pid }),
            Some(Writer::Unknown(why)) => json!({ "state": "unknown", "why": why }),
            Some(Writer::None) | None => json!({ "state": "none" }),
        };
        line
    }

    fn summary(&self) -> Value {
        let inspection = &self.seen.inspection;
        let exit = facts::exit_of(self.facts);
        let (verdict, next) = facts::verdict(inspection, self.facts);
        let known = inspection.knows_settlements();
        let (floor, end) = inspection.numbers();
        let (writer, pid) = self.writer();
        json!({
            "schema": SCHEMA,
            "type": self.verb,
            "level": self.level.map(Level::name),
            "channel": uuid(inspection.channel),
            "format": wal::format::VERSION,
            "generation": inspection.generation,
            "members": inspection.members.len(),
            "writer": writer,
            "pid": pid,
            "stored_events": inspection.stored_events(),
            "pending_events": known.then(|| inspection.pending_events()),
            "pending_events_at_most": inspection.pending_events(),
            "lost_events": inspection.lost().map(|lost| lost.iter().map(|range| range.count()).sum::<u64>()),
            "settled_below": floor,
            "next_number": end,
            "notes": known.then(|| inspection.note_count()),
            "findings": self.facts.iter().filter(|fact| fact.exit != Exit::Clean).count(),
            "verdict": verdict,
            "next": next,
            "exit_code": exit.code(),
            "exit_reason": exit.reason(),
        })
    }

    fn table(&self) -> String {
        let inspection = &self.seen.inspection;
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            let _infallible = writeln!(text, "{line}");
        };
        let writer = match self.writer() {
            ("live", Some(pid)) => format!("LIVE (process {pid})"),
            (state, _) => state.to_owned(),
        };
        line(format_args!("channel {}   format {}   writer: {writer}", uuid(inspection.channel), wal::format::VERSION));
        if let Some(level) = self.level {
            line(format_args!("level {}", level.name()));
        }
        line(format_args!("{:<30} {:<10} {:>5} {:>8} {:>9}  keys", "directory", "state", "segs", "bytes", "frames"));
        for dir in &inspection.dirs {
            let (path, state) = (fitted(&dir.dir, 30), self.state_of(dir));
            let Ok(content) = &dir.content else {
                line(format_args!("{path:<30} {state:<10} {:>5} {:>8} {:>9}", "-", "-", "-"));
                continue;
            };
            let keys: Vec<String> =
                content.key_uses().keys().map(|id| id.as_deref().map_or("plain".to_owned(), shown)).collect();
            line(format_args!(
                "{path:<30} {state:<10} {:>5} {:>8} {:>9}  {}",
                content.segments(),
                size(content.disk_bytes()),
                count(content.frames),
                fitted(&keys.join(","), 12),
            ));
        }
        for (dir, state) in self.other_dirs() {
            let state = if state == "missing" { "MISSING" } else { state };
            line(format_args!("{:<30} {state:<10} {:>5} {:>8} {:>9}", fitted(dir, 30), "-", "-", "-"));
        }
        if let Some((first, last)) = written(inspection) {
            line(format_args!("written {} .. {}", time(first), time(last)));
        }
        let pending = inspection.pending_events();
        let at_most = if inspection.knows_settlements() { "" } else { "at most " };
        line(format_args!(
            "events  stored {}   pending {at_most}{}   next number {}",
            count(inspection.stored_events()),
            count(pending),
            count(inspection.numbers().1),
        ));
        for fact in self.facts.iter().take(FACTS_SHOWN) {
            let mark = if fact.exit == Exit::Clean { "-" } else { "!" };
            let dir = if fact.dir.is_empty() { String::new() } else { format!("{}: ", shown(&fact.dir)) };
            line(format_args!("{mark} {dir}{}", shown(&fact.text)));
        }
        if self.facts.len() > FACTS_SHOWN {
            line(format_args!("… and {} more; --json lists them", self.facts.len() - FACTS_SHOWN));
        }
        let (verdict, next) = facts::verdict(inspection, self.facts);
        let code = facts::exit_of(self.facts).code();
        line(format_args!("verdict: {verdict}   [exit {code}]"));
        if let Some(next) = next {
            line(format_args!("next: {next}"));
        }
        text
    }
}

fn written(inspection: &Inspection) -> Option<(u64, u64)> {
    let spans = inspection.dirs.iter().filter_map(|dir| dir.content.as_ref().ok()?.written_ms);
    spans.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
}
