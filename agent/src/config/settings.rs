//! One component's settings: the keys it knows, and what the file says about them.
//!
//! A component lists each key once in a `&'static [Key]`; the table is checked against the file before the component
//! is built ([`Settings::check`]), printed as `docs/configuration.md`, and read through the typed getters here. The
//! getters cannot fail: a wrong value was already found, and the component is then never built.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::finding::{Finding, Place, Severity};

/// One documented key. `name` is relative to the component (`hdfs.path`); a name that ends in `*` stands for every
/// key with that beginning (`serializer.*`).
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// `"ms"`, `"s"`, `"bytes"`, `"events"`; empty where there is none.
    pub unit: &'static str,
    pub default: Default,
    /// One sentence: what it does.
    pub doc: &'static str,
    pub status: Status,
}

/// What values a key takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    /// A path on this machine.
    Path,
    /// `true` in any case is true, everything else false, as in Flume.
    Flag,
    /// A whole number, limits included.
    Integer {
        min: i64,
        max: i64,
    },
    /// One of these words, in any case.
    Choice(&'static [&'static str]),
    /// Words separated by blanks.
    List,
}

/// What holds when the key is absent.
#[derive(Debug, Clone, Copy)]
pub enum Default {
    /// The component cannot do without.
    Required,
    /// There is no value; the component says in `doc` what it then does.
    Absent,
    Is(&'static str),
}

/// What the key does here.
#[derive(Debug, Clone, Copy)]
pub enum Status {
    Live,
    /// Accepted without effect; says why, once.
    Inert(&'static str),
    /// Refused by name; says what to use instead. The value `false` of a flag is accepted: it asks for nothing.
    Refused(&'static str),
}

impl Key {
    const fn new(name: &'static str, kind: Kind, unit: &'static str, default: Default, doc: &'static str) -> Key {
        Key { name, kind, unit, default, doc, status: Status::Live }
    }

    pub const fn text(name: &'static str, default: Default, doc: &'static str) -> Key {
        Key::new(name, Kind::Text, "", default, doc)
    }

    pub const fn path(name: &'static str, default: Default, doc: &'static str) -> Key {
        Key::new(name, Kind::Path, "", default, doc)
    }

    pub const fn flag(name: &'static str, default: &'static str, doc: &'static str) -> Key {
        Key::new(name, Kind::Flag, "", Default::Is(default), doc)
    }

    pub const fn integer(
        name: &'static str,
        min: i64,
        max: i64,
        unit: &'static str,
        default: Default,
        doc: &'static str,
    ) -> Key {
        Key::new(name, Kind::Integer { min, max }, unit, default, doc)
    }

    pub const fn choice(
        name: &'static str,
        words: &'static [&'static str],
        default: Default,
        doc: &'static str,
    ) -> Key {
        Key::new(name, Kind::Choice(words), "", default, doc)
    }

    pub const fn list(name: &'static str, default: Default, doc: &'static str) -> Key {
        Key::new(name, Kind::List, "", default, doc)
    }

    pub const fn inert(name: &'static str, doc: &'static str, why: &'static str) -> Key {
        Key { status: Status::Inert(why), ..Key::new(name, Kind::Text, "", Default::Absent, doc) }
    }

    pub const fn refused(name: &'static str, doc: &'static str, instead: &'static str) -> Key {
        Key { status: Status::Refused(instead), ..Key::new(name, Kind::Text, "", Default::Absent, doc) }
    }

    /// A switch that is refused when it is on, and says nothing when it is off.
    pub const fn refused_flag(name: &'static str, doc: &'static str, instead: &'static str) -> Key {
        Key { status: Status::Refused(instead), ..Key::new(name, Kind::Flag, "", Default::Is("false"), doc) }
    }

    /// Whether this line of the table speaks of `name`.
    pub fn matches(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.name == name,
        }
    }
}

/// One line of the file that belongs to a component; `name` is relative to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
    pub place: Place,
}

/// A component said no; what is wrong was recorded as a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// The settings of one component, and what is found while it reads them.
#[derive(Debug)]
pub struct Settings {
    agent: String,
    /// `sources.r1`.
    component: String,
    conf_dir: Option<PathBuf>,
    keys: &'static [Key],
    settings: Vec<Setting>,
    /// Where the component is declared, for findings about keys that are absent.
    declared: Option<Place>,
    findings: RefCell<Vec<Finding>>,
}

impl Settings {
    pub fn new(agent: &str, component: &str, keys: &'static [Key], settings: Vec<Setting>) -> Settings {
        Settings {
            agent: agent.to_owned(),
            component: component.to_owned(),
            conf_dir: None,
            keys,
            settings,
            declared: None,
            findings: RefCell::default(),
        }
    }

    /// Settings as a file with these lines would give, one per line, for tests of components.
    pub fn of(component: &str, keys: &'static [Key], lines: &[(&str, &str)]) -> Settings {
        let setting = |(index, (name, value)): (usize, &(&str, &str))| Setting {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
            place: Place { file: "test.properties".into(), line: index as u32 + 1, column: 1 },
        };
        Settings::new("a1", component, keys, lines.iter().enumerate().map(setting).collect())
    }

    pub fn declared_at(self, place: Place) -> Settings {
        Settings { declared: Some(place), ..self }
    }

    pub fn with_conf_dir(self, dir: Option<&Path>) -> Settings {
        Settings { conf_dir: dir.map(Path::to_owned), ..self }
    }

    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// The component's name in the file: `r1`.
    pub fn name(&self) -> &str {
        self.component.rsplit_once('.').map_or(self.component.as_str(), |(_, name)| name)
    }

    /// The directory of `--conf`, where Hadoop's XML files may be.
    pub fn conf_dir(&self) -> Option<&Path> {
        self.conf_dir.as_deref()
    }

    /// What the file says for `name`; `None` when it says nothing. An empty value counts as nothing.
    pub fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name && !setting.value.is_empty())
    }

    /// Every setting that begins with `prefix`, as (rest of the name, setting), in file order.
    pub fn beginning<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Setting)> {
        self.settings.iter().filter_map(move |setting| Some((setting.name.strip_prefix(prefix)?, setting)))
    }

    /// The value of `name` or its default; `None` when there is neither.
    ///
    /// # Panics
    /// When `name` is not in the component's table.
    pub fn text_opt(&self, name: &str) -> Option<&str> {
        let key = self.key(name);
        self.setting(name).map(|setting| setting.value.as_str()).or(match key.default {
            Default::Is(default) => Some(default),
            Default::Required | Default::Absent => None,
        })
    }

    /// As [`text_opt`](Settings::text_opt), empty when there is nothing.
    pub fn text(&self, name: &str) -> String {
        self.text_opt(name).unwrap_or_default().to_owned()
    }

    pub fn path_opt(&self, name: &str) -> Option<PathBuf> {
        self.text_opt(name).map(PathBuf::from)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.text_opt(name).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    /// The number or the key's default. A value that is no number within the limits was found by `check`; the
    /// default then stands in, so that one mistake is not reported as two.
    pub fn integer_opt(&self, name: &str) -> Option<i64> {
        let key = self.key(name);
        let within = |number: &i64| match key.kind {
            Kind::Integer { min, max } => (min..=max).contains(number),
            _ => true,
        };
        let written = self.setting(name).and_then(|setting| setting.value.trim().parse().ok()).filter(within);
        written.or_else(|| match key.default {
            Default::Is(default) => default.parse().ok(),
            Default::Required | Default::Absent => None,
        })
    }

    /// The number, or the key's default; the least allowed one when there is neither.
    pub fn integer(&self, name: &str) -> i64 {
        let least = match self.key(name).kind {
            Kind::Integer { min, .. } => min,
            _ => 0,
        };
        self.integer_opt(name).unwrap_or(least)
    }

    /// The number as a size or count. Negative ones become 0: give the key a `min` that rules them out.
    pub fn count(&self, name: &str) -> usize {
        usize::try_from(self.integer(name)).unwrap_or(0)
    }

    /// The word as the table spells it.
    pub fn choice(&self, name: &str) -> &'static str {
        let Kind::Choice(words) = self.key(name).kind else { return "" };
        let value = self.text_opt(name).unwrap_or_default().trim();
        words.iter().find(|word| word.eq_ignore_ascii_case(value)).or(words.first()).copied().unwrap_or("")
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        self.text_opt(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    /// Says no to the value of `name`: the agent will not start with it.
    pub fn refuse(&self, name: &str, message: impl Into<String>) -> Refused {
        self.found(Severity::Error, name, message.into());
        Refused
    }

    /// Something legal that the operator should know.
    pub fn warn(&self, name: &str, message: impl Into<String>) {
        self.found(Severity::Warning, name, message.into());
    }

    /// Something without effect, or done otherwise than asked.
    pub fn notice(&self, name: &str, message: impl Into<String>) {
        self.found(Severity::Notice, name, message.into());
    }

    /// What was found so far; leaves nothing behind.
    pub fn take_findings(&self) -> Vec<Finding> {
        std::mem::take(&mut self.findings.borrow_mut())
    }

    fn found(&self, severity: Severity, name: &str, message: String) {
        let place = self.settings.iter().find(|setting| setting.name == name).map(|setting| setting.place.clone());
        let message = format!("{}.{}.{name}: {message}", self.agent, self.component);
        self.findings.borrow_mut().push(Finding {
            severity,
            place: place.or_else(|| self.declared.clone()),
            component: Some(self.component.clone()),
            message,
        });
    }

    fn key(&self, name: &str) -> &'static Key {
        self.keys.iter().find(|key| key.matches(name)).unwrap_or_else(|| panic!("{name} is not in the table of keys"))
    }

    /// Compares what the file says with the table of keys. `common` are the keys that the agent reads itself.
    pub fn check(&self, common: &'static [Key]) {
        let known = || self.keys.iter().chain(common);
        for setting in &self.settings {
            match known().find(|key| key.matches(&setting.name)) {
                None => self.unknown(setting, known()),
                Some(key) => self.check_value(key, setting),
            }
        }
        for key in known() {
            if matches!(key.default, Default::Required) && self.setting(key.name).is_none() {
                self.found(Severity::Error, key.name, format!("missing. {}", key.doc));
            }
        }
    }

    fn unknown(&self, setting: &Setting, known: impl Iterator<Item = &'static Key>) {
        let near = nearest(&setting.name, known.map(|key| key.name));
        let advice = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        self.found(Severity::UnknownKey, &setting.name, format!("no such key{advice}"));
    }

    fn check_value(&self, key: &Key, setting: &Setting) {
        let (name, value) = (setting.name.as_str(), setting.value.trim());
        if value.is_empty() {
            return;
        }
        match key.status {
            Status::Inert(why) => return self.notice(name, format!("accepted without effect: {why}")),
            Status::Refused(instead) => {
                if !matches!(key.kind, Kind::Flag) || value.eq_ignore_ascii_case("true") {
                    self.refuse(name, format!("not supported. {instead}"));
                }
                return;
            }
            Status::Live => {}
        }
        match key.kind {
            Kind::Text | Kind::Path | Kind::List => {}
            Kind::Flag => {
                if !value.eq_ignore_ascii_case("true") && !value.eq_ignore_ascii_case("false") {
                    self.warn(name, format!("`{value}` counts as false; write true or false"));
                }
            }
            Kind::Integer { min, max } => match value.parse::<i64>() {
                Ok(number) if (min..=max).contains(&number) => {}
                Ok(number) if max == i64::MAX => {
                    self.refuse(name, format!("{number} is too small; the least is {min}"));
                }
                Ok(number) => {
                    self.refuse(name, format!("{number} is outside {min} to {max}"));
                }
                Err(_) => {
                    self.refuse(name, format!("`{value}` is not a whole number"));
                }
            },
            Kind::Choice(words) => {
                if !words.iter().any(|word| word.eq_ignore_ascii_case(value)) {
                    self.refuse(name, format!("`{value}` is none of: {}", words.join(", ")));
                }
            }
        }
    }
}

/// The word of `known` that `name` was probably meant to be.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |word: &str| edit_distance(&name.to_lowercase(), &word.to_lowercase());
    // A third of the letters may differ, and two swapped ones (which count twice); beyond that a suggestion is noise.
    let length = name.chars().count();
    let limit = (length / 3).max(if length >= 4 { 2 } else { 1 });
    known
        .map(|word| (distance(word), word))
        .filter(|(found, _)| *found <= limit)
        .min_by_key(|(found, _)| *found)
        .map(|(_, word)| word)
}

fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (index, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(row[index] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    static KEYS: &[Key] = &[
        Key::integer("port", 0, 65535, "", Default::Required, "Port to listen on."),
        Key::flag("ack", "true", "Whether to answer."),
        Key::choice("mode", &["ALL", "none"], Default::Is("ALL"), "What to do."),
        Key::text("serializer.*", Default::Absent, "Options of the serializer."),
        Key::refused_flag("ssl", "Encrypt.", "Put a TLS proxy in front."),
        Key::inert("threads", "Threads.", "tasks share a pool"),
    ];

    fn check(lines: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let settings = Settings::of("sources.r1", KEYS, lines);
        settings.check(&[]);
        let found = settings.take_findings().iter().map(Finding::to_string).collect();
        (settings, found)
    }

    #[test]
    fn every_wrong_key_is_found_at_once_with_its_line() {
        let (_, found) = check(&[
            ("prot", "1"),
            ("ack", "yes"),
            ("mode", "some"),
            ("serializer.anything", "1"),
            ("ssl", "true"),
            ("threads", "4"),
        ]);
        assert_eq!(
            found,
            [
                "test.properties:1:1: unknown key: a1.sources.r1.prot: no such key; did you mean port?",
                "test.properties:2:1: warning: a1.sources.r1.ack: `yes` counts as false; write true or false",
                "test.properties:3:1: error: a1.sources.r1.mode: `some` is none of: ALL, none",
                "test.properties:5:1: error: a1.sources.r1.ssl: not supported. Put a TLS proxy in front.",
                "test.properties:6:1: notice: a1.sources.r1.threads: accepted without effect: tasks share a pool",
                "error: a1.sources.r1.port: missing. Port to listen on.",
            ]
        );
    }

    #[test]
    fn values_are_read_as_flume_reads_them() {
        let (settings, found) = check(&[("port", " 44444 "), ("ack", "TRUE"), ("mode", "NONE"), ("ssl", "false")]);
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(settings.integer("port"), 44444);
        assert!(settings.flag("ack"));
        assert_eq!(settings.choice("mode"), "none");
    }

    #[test]
    fn an_absent_or_empty_key_has_its_default() {
        let (settings, found) = check(&[("port", "1"), ("mode", "")]);
        assert!(found.is_empty(), "{found:?}");
        assert!(settings.flag("ack"));
        assert_eq!(settings.choice("mode"), "ALL");
    }
}
