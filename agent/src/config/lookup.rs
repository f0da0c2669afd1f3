//! `${env:X}`, `${sys:X}`, `${date:yyyy}`, `${other.property}` and `${…:-default}` in values.
//!
//! Follows what Flume's resolver does, measured on the real one: values of lookups are looked up again, `$${` is a
//! literal `${`, a default stands behind `:-`, and what cannot be resolved stays as written, with a finding. Other
//! lookups of commons-text (script, const, base64 …) are off in Flume 1.11, and here.

use std::collections::HashMap;

use jiff::Zoned;

use super::finding::{Finding, Severity};
use super::properties::Properties;

/// A chain of references longer than this is a cycle.
const DEPTH_MAX: usize = 16;

/// A value grows by lookups; beyond this it is an attack or a mistake (every level may double it).
const VALUE_BYTES_MAX: usize = 1 << 20;

/// The time, with its zone.
pub type Now = Zoned;

/// Where lookups look.
pub struct World<'a> {
    /// `-Dk=v`.
    pub system: &'a HashMap<String, String>,
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    pub now: Now,
}

/// Replaces every lookup in every value. Returns the keys that a value refers to: nobody else needs to read them.
pub fn resolve(properties: &mut Properties, world: &World<'_>) -> Vec<String> {
    let table: HashMap<String, String> =
        properties.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    let mut resolver = Resolver { table: &table, world, referenced: Vec::new(), problems: Vec::new() };
    let mut findings = Vec::new();
    for entry in &mut properties.entries {
        if !entry.value.contains("${") {
            continue;
        }
        entry.value = resolver.replace(&entry.value, 0);
        for (severity, problem) in resolver.problems.drain(..) {
            let message = format!("{}: {problem}", entry.key);
            findings.push(Finding { severity, place: Some(entry.place.clone()), component: None, message });
        }
    }
    properties.findings.extend(findings);
    resolver.referenced
}

struct Resolver<'a> {
    table: &'a HashMap<String, String>,
    world: &'a World<'a>,
    referenced: Vec<String>,
    problems: Vec<(Severity, String)>,
}

impl Resolver<'_> {
    fn replace(&mut self, value: &str, depth: usize) -> String {
        let mut out = String::with_capacity(value.len());
        let mut rest = value;
        while let Some(start) = rest.find("${") {
            if out.len() > VALUE_BYTES_MAX {
                self.problems
                    .push((Severity::Error, format!("lookups make the value longer than {VALUE_BYTES_MAX} bytes")));
                return out;
            }
            // `$${name}` is how a literal `${name}` is written.
            if rest[..start].ends_with('$') {
                out.push_str(&rest[..start - 1]);
                out.push_str("${");
                rest = &rest[start + 2..];
                continue;
            }
            out.push_str(&rest[..start]);
            let Some(length) = rest[start + 2..].find('}') else {
                out.push_str(&rest[start..]);
                return out;
            };
            let inner = &rest[start + 2..start + 2 + length];
            match self.look_up(inner, depth) {
                Some(found) => out.push_str(&found),
                None => out.push_str(&rest[start..start + 3 + length]),
            }
            rest = &rest[start + 3 + length..];
        }
        out.push_str(rest);
        out
    }

    fn look_up(&mut self, inner: &str, depth: usize) -> Option<String> {
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        if depth >= DEPTH_MAX {
            self.problems.push((Severity::Error, format!("${{{name}}} refers to itself")));
            return None;
        }
        match self.value_of(name).or_else(|| default.map(str::to_owned)) {
            Some(found) => Some(self.replace(&found, depth + 1)),
            None => {
                self.problems.push((Severity::Warning, unresolved(name)));
                None
            }
        }
    }

    fn value_of(&mut self, name: &str) -> Option<String> {
        let by_prefix = match name.split_once(':') {
            Some(("env", variable)) => (self.world.environment)(variable),
            Some(("sys", property)) => self.world.system.get(property).cloned(),
            Some(("date", pattern)) => format_date(&self.world.now, pattern),
            _ => None,
        };
        by_prefix.or_else(|| {
            let found = self.table.get(name)?;
            self.referenced.push(name.to_owned());
            Some(found.clone())
        })
    }
}

fn unresolved(name: &str) -> String {
    let why = match name.split_once(':') {
        Some(("env", variable)) => format!("the environment has no {variable}"),
        Some(("sys", property)) => format!("there is no -D{property}=…"),
        Some(("date", _)) => "the date pattern is not understood".to_owned(),
        Some((kind, _)) => format!("there is no lookup `{kind}`; env, sys and date exist"),
        None if name.contains("['") => {
            return format!("${{{name}}} stays as written: config filters are not supported; use ${{env:…}}");
        }
        None => "no property has this name; an environment variable is written ${env:NAME}".to_owned(),
    };
    format!("${{{name}}} stays as written: {why}")
}

/// Formats as Java's `SimpleDateFormat` does, for the letters that dates in configurations use. `None` for others.
fn format_date(now: &Zoned, pattern: &str) -> Option<String> {
    let mut out = String::new();
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == '\'' {
            // '' is a quote; otherwise everything up to the next quote is literal.
            if letters.next_if_eq(&'\'').is_some() {
                out.push('\'');
                continue;
            }
            while let Some(literal) = letters.next() {
                if literal == '\'' && letters.next_if_eq(&'\'').is_none() {
                    break;
                }
                out.push(literal);
            }
            continue;
        }
        if !letter.is_ascii_alphabetic() {
            out.push(letter);
            continue;
        }
        let mut width = 1;
        while letters.next_if_eq(&letter).is_some() {
            width += 1;
            if width > 32 {
                return None;
            }
        }
        let number = |value: i64| format!("{value:0width$}");
        let text = match letter {
            'y' if width == 2 => format!("{:02}", now.year().rem_euclid(100)),
            'y' => number(i64::from(now.year())),
            'M' if width >= 4 => now.strftime("%B").to_string(),
            'M' if width == 3 => now.strftime("%b").to_string(),
            'M' => number(i64::from(now.month())),
            'd' => number(i64::from(now.day())),
            'D' => number(i64::from(now.day_of_year())),
            'H' => number(i64::from(now.hour())),
            'k' => number(if now.hour() == 0 { 24 } else { i64::from(now.hour()) }),
            'K' => number(i64::from(now.hour() % 12)),
            'h' => number(if now.hour() % 12 == 0 { 12 } else { i64::from(now.hour() % 12) }),
            'm' => number(i64::from(now.minute())),
            's' => number(i64::from(now.second())),
            'S' => number(i64::from(now.millisecond())),
            'a' => (if now.hour() < 12 { "AM" } else { "PM" }).to_owned(),
            'E' if width >= 4 => now.strftime("%A").to_string(),
            'E' => now.strftime("%a").to_string(),
            'Z' => now.strftime("%z").to_string(),
            'z' => now.strftime("%Z").to_string(),
            _ => return None,
        };
        out.push_str(&text);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> (Vec<(String, String)>, Vec<String>) {
        let mut properties = Properties::parse("f", text.as_bytes());
        let system = HashMap::from([("region".to_owned(), "eu".to_owned())]);
        let environment = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        let now = "2026-03-07T15:04:05.678+01:00[Europe/Berlin]".parse().unwrap();
        resolve(&mut properties, &World { system: &system, environment: &environment, now });
        let values = properties.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        (values, properties.findings.iter().map(Finding::to_string).collect())
    }

    fn check(value: &str, expected: &str) -> Vec<String> {
        let (values, findings) = resolved(&format!("port = 7\nname = p${{port}}\na = {value}\n"));
        assert_eq!(values[2].1, expected, "{value}");
        findings
    }

    #[test]
    fn lookups_as_flume_does_them() {
        for (value, expected) in [
            ("${env:HOME}/x", "/home/me/x"),
            ("${sys:region}-${port}", "eu-7"),
            ("${name}", "p7"),
            ("${env:NO:-fallback}", "fallback"),
            ("${env:NO:-${port}", "${port"),
            ("${NO:-}", ""),
            ("$${port}", "${port}"),
            ("${date:yyyy-MM-dd HH:mm:ss.SSS}", "2026-03-07 15:04:05.678"),
            ("${date:yy.M.d h a EEE 'o''clock'}", "26.3.7 3 PM Sat o'clock"),
            ("${open", "${open"),
        ] {
            let findings = check(value, expected);
            assert!(findings.len() <= 1, "{value}: {findings:?}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_stays_as_written_with_a_warning() {
        for value in ["${env:NO}", "${script:javascript:1+1}", "${HOME}", "${f['key']}", "${date:QQ}"] {
            let findings = check(value, value);
            assert_eq!(findings.len(), 1, "{value}");
            assert!(findings[0].starts_with("f:3:1: warning: a: ${"), "{findings:?}");
        }
    }

    #[test]
    fn a_cycle_is_an_error_and_ends() {
        let (_, findings) = resolved("a = ${b}\nb = ${a}\n");
        assert!(findings[0].contains("error: a: ${"), "{findings:?}");
    }

    #[test]
    fn doubling_references_stop_at_the_limit() {
        let mut text = String::from("a0 = xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n");
        for level in 1..16 {
            text.push_str(&format!("a{level} = {}\n", format!("${{a{}}}", level - 1).repeat(8)));
        }
        let (values, findings) = resolved(&text);
        assert!(values.iter().all(|(_, value)| value.len() < 16 * VALUE_BYTES_MAX));
        assert!(findings.iter().any(|finding| finding.contains("longer than")), "{}", findings.len());
    }
}
