//! Flume's escape sequences: `%Y/%m/%d`, `%{header}`, `%[IP]`, expanded for each event.
//!
//! Promises that no event leaves the literal root of its path: what an event brings is cleaned, so that no component
//! is `.` or `..`, none holds a control character, and neither a component nor the path is longer than a store can
//! take. An event that has no path gets an error that says which header it lacks. The clock is the caller's.

use std::fmt::Write as _;
use std::ops::Range;

use channel::EventRef;

use crate::clock::{Rounding, WallTime, Zone, round_down};
use crate::limits::{COMPONENT_BYTES_MAX, PATH_BYTES_MAX, TEMPLATE_BYTES_MAX};

/// A template that cannot be used, found while reading the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("it has {0} bytes; at most {TEMPLATE_BYTES_MAX} are read")]
    TooLong(usize),
    #[error("%[{0}] is unknown; there are %[localhost], %[IP] and %[FQDN]")]
    UnknownHostTag(String),
    #[error("`{0}` after the first escape sequence would lead out of the directory that an event belongs to")]
    DotsAfterEscape(String),
}

/// An event for which there is no path: trying again gives the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    #[error(
        "the path needs the event's `timestamp` header, and it has none; add a timestamp interceptor or \
         hdfs.useLocalTimeStamp = true"
    )]
    NoTimestamp,
    #[error("the event's `timestamp` header is not a number of milliseconds")]
    TimestampNotANumber,
    #[error("the event's path has a component of {0} bytes; a store takes {COMPONENT_BYTES_MAX}")]
    ComponentTooLong(usize),
    #[error("the event's path has {0} bytes; the limit is {PATH_BYTES_MAX}")]
    PathTooLong(usize),
}

/// How times are printed.
#[derive(Debug, Clone)]
pub struct TimeRules {
    pub zone: Zone,
    pub rounding: Rounding,
    /// Use the sink's clock instead of the event's header.
    pub use_local_time: bool,
}

/// This machine, for `%[…]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNames {
    pub name: String,
    pub address: String,
    pub full_name: String,
}

/// What stands in for characters that an event must not bring into a path.
const REPLACEMENT: char = '_';

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Time(char),
    Header(String),
}

/// One string with escape sequences.
#[derive(Debug, Clone)]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    pub fn parse(text: &str, host: &HostNames) -> Result<Template, TemplateError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong(text.len()));
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            let Some((tag, length)) = Tag::at(&rest[at..]) else {
                literal.push('%');
                rest = &rest[at + 1..];
                continue;
            };
            match tag {
                Tag::Letter('%') => literal.push('%'),
                Tag::Letter(letter) if TIME_TAGS.contains(letter) => {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                    parts.push(Part::Time(letter));
                }
                // Unknown letters print nothing.
                Tag::Letter(_) => {}
                Tag::Header(name) => {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                    parts.push(Part::Header(name.to_owned()));
                }
                Tag::Host(name) => literal.push_str(match name.to_ascii_lowercase().as_str() {
                    "localhost" => &host.name,
                    "ip" => &host.address,
                    "fqdn" => &host.full_name,
                    _ => return Err(TemplateError::UnknownHostTag(name.to_owned())),
                }),
            }
            rest = &rest[at + length..];
        }
        literal.push_str(rest);
        parts.push(Part::Literal(literal));
        parts.retain(|part| *part != Part::Literal(String::new()));
        Ok(Template { parts })
    }

    pub fn needs_time(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Time(_)))
    }

    fn needs_headers(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Header(_)))
    }

    /// The text before the first escape sequence.
    fn literal_start(&self) -> &str {
        match self.parts.first() {
            Some(Part::Literal(text)) => text,
            _ => "",
        }
    }

    /// Appends what the template says for this moment and event.
    fn expand(&self, moment: Option<&Moment>, event: EventRef<'_>, out: &mut String) {
        for part in &self.parts {
            match (part, moment) {
                (Part::Literal(text), _) => out.push_str(text),
                (Part::Time(letter), Some(moment)) => moment.print(*letter, out),
                // `PathTemplates::expand` has refused the event by now.
                (Part::Time(_), None) => {}
                (Part::Header(name), _) => out.push_str(event.header(name).unwrap_or_default()),
            }
        }
    }
}

/// An escape sequence: `%x` and `%%`, `%{name}`, `%[name]`.
enum Tag<'a> {
    Letter(char),
    Header(&'a str),
    Host(&'a str),
}

impl<'a> Tag<'a> {
    /// The tag at the start of `text`, which starts with `%`, and its length.
    fn at(text: &'a str) -> Option<(Tag<'a>, usize)> {
        let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let rest = &text[1..];
        let next = rest.chars().next()?;
        if next == '%' || word(next) {
            return Some((Tag::Letter(next), 2));
        }
        let within = |close: char, allowed: &dyn Fn(char) -> bool| {
            let name = &rest[1..rest.find(close)?];
            (!name.is_empty() && name.chars().all(allowed)).then_some((name, name.len() + 3))
        };
        match next {
            '{' => within('}', &|letter| word(letter) || letter == '.' || letter == '-')
                .map(|(name, length)| (Tag::Header(name), length)),
            '[' => within(']', &word).map(|(name, length)| (Tag::Host(name), length)),
            _ => None,
        }
    }
}

const TIME_TAGS: &str = "aAbBcdDeHIjklmMnpsStyYz";
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The time of one event, as its path prints it.
struct Moment {
    raw_ms: i64,
    rounded_ms: i64,
    wall: WallTime,
}

impl Moment {
    fn new(raw_ms: i64, rules: &TimeRules) -> Moment {
        let rounded_ms = round_down(raw_ms, rules.rounding, &rules.zone);
        Moment { raw_ms, rounded_ms, wall: WallTime::of(rounded_ms, &rules.zone) }
    }

    fn print(&self, letter: char, out: &mut String) {
        let wall = &self.wall;
        let day_name = DAYS[usize::from(wall.weekday % 7)];
        let month_name = MONTHS[usize::from((wall.month - 1) % 12)];
        let half_day_hour = (wall.hour + 11) % 12 + 1;
        // Java prints years before 1 by era: year 0 is 1 BC.
        let year = if wall.year > 0 { wall.year } else { 1 - wall.year };
        let written = match letter {
            'a' => write!(out, "{}", &day_name[..3]),
            'A' => write!(out, "{day_name}"),
            'b' => write!(out, "{}", &month_name[..3]),
            'B' => write!(out, "{month_name}"),
            'c' => write!(
                out,
                "{} {} {} {:02}:{:02}:{:02} {year:04}",
                &day_name[..3],
                &month_name[..3],
                wall.day,
                wall.hour,
                wall.minute,
                wall.second
            ),
            'd' => write!(out, "{:02}", wall.day),
            'e' => write!(out, "{}", wall.day),
            'D' => write!(out, "{:02}/{:02}/{:02}", wall.month, wall.day, year % 100),
            'H' => write!(out, "{:02}", wall.hour),
            'I' => write!(out, "{half_day_hour:02}"),
            'j' => write!(out, "{:03}", wall.day_of_year),
            'k' => write!(out, "{}", wall.hour),
            'l' => write!(out, "{half_day_hour}"),
            'm' => write!(out, "{:02}", wall.month),
            'M' => write!(out, "{:02}", wall.minute),
            'n' => write!(out, "{}", wall.month),
            'p' => write!(out, "{}", if wall.hour < 12 { "AM" } else { "PM" }),
            's' => write!(out, "{}", self.rounded_ms / 1000),
            'S' => write!(out, "{:02}", wall.second),
            't' => write!(out, "{}", self.raw_ms),
            'y' => write!(out, "{:02}", year % 100),
            'Y' => write!(out, "{year:04}"),
            'z' => {
                let (sign, minutes) = (if wall.offset_seconds < 0 { '-' } else { '+' }, wall.offset_seconds.abs() / 60);
                write!(out, "{sign}{:02}{:02}", minutes / 60, minutes % 60)
            }
            _ => Ok(()),
        };
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
}

/// Where an event belongs: a directory, and the start of the file's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub directory: String,
    pub name: String,
}

/// What the templates say of an event, before it is cleaned. Events of one file mostly have the same: whoever keeps it sees
/// that with one comparison.
#[derive(Debug, Clone, Default)]
pub struct Expanded {
    whole: String,
    /// Where the file's name starts in it.
    name_at: usize,
    /// The moment that was printed, where nothing but that decides.
    only_of: Option<Option<i64>>,
}

impl PartialEq for Expanded {
    /// Whether both lead to the same place, whatever moment they were printed of.
    fn eq(&self, other: &Expanded) -> bool {
        self.name_at == other.name_at && self.whole == other.whole
    }
}

/// `hdfs.path` and `hdfs.filePrefix` together.
#[derive(Debug, Clone)]
pub struct PathTemplates {
    directory: Template,
    name: Template,
    time: TimeRules,
    /// HDFS allows no colon in a name.
    replace_colons: bool,
    /// Up to where the expanded directory is the operator's own words: no event changes it.
    root_length: usize,
    /// Whether anything but the time tells one event's place from another's.
    needs_headers: bool,
}

impl PathTemplates {
    /// `directory` is an absolute path without scheme and authority.
    pub fn new(
        directory: &str,
        name: &str,
        host: &HostNames,
        time: TimeRules,
        replace_colons: bool,
    ) -> Result<PathTemplates, TemplateError> {
        let directory_template = Template::parse(directory, host)?;
        let root = directory_template.literal_start();
        let root_length = if directory_template.parts.len() <= 1 { root.len() } else { root.rfind('/').unwrap_or(0) };
        // Dots that the operator wrote beside an escape are as dangerous as those of an event, and surely a mistake.
        let dots = |text: &str| text.split('/').find(|part| matches!(*part, "." | "..")).map(str::to_owned);
        let escaped = directory_template.parts.len() > 1;
        let after_root = &directory[root_length.min(directory.len())..];
        if let Some(found) = dots(after_root).filter(|_| escaped).or_else(|| dots(name)) {
            return Err(TemplateError::DotsAfterEscape(found));
        }
        let name = Template::parse(name, host)?;
        let needs_headers = directory_template.needs_headers() || name.needs_headers();
        Ok(PathTemplates { directory: directory_template, name, time, replace_colons, root_length, needs_headers })
    }

    pub fn needs_time(&self) -> bool {
        self.directory.needs_time() || self.name.needs_time()
    }

    /// The literal directory that no event can leave.
    pub fn root(&self) -> &str {
        &self.directory.literal_start()[..self.root_length]
    }

    /// Where `event` belongs. `now_ms` counts only with `hdfs.useLocalTimeStamp`.
    pub fn expand(&self, event: EventRef<'_>, now_ms: i64) -> Result<Place, NoPath> {
        let mut expanded = Expanded::default();
        self.print(event, now_ms, &mut expanded)?;
        self.place(&expanded)
    }

    /// Prints what the templates say of `event` over what `expanded` held, in its memory.
    pub fn print(&self, event: EventRef<'_>, now_ms: i64, expanded: &mut Expanded) -> Result<(), NoPath> {
        let moment = match (self.needs_time(), self.time.use_local_time) {
            (false, _) => None,
            (true, true) => Some(now_ms),
            (true, false) => {
                let text = event.header("timestamp").ok_or(NoPath::NoTimestamp)?;
                Some(text.parse().map_err(|_| NoPath::TimestampNotANumber)?)
            }
        };
        if expanded.only_of == Some(moment) {
            return Ok(());
        }
        expanded.only_of = (!self.needs_headers).then_some(moment);
        let moment = moment.map(|millis| Moment::new(millis, &self.time));
        let whole = &mut expanded.whole;
        whole.clear();
        self.directory.expand(moment.as_ref(), event, whole);
        whole.push('/');
        expanded.name_at = whole.len();
        self.name.expand(moment.as_ref(), event, whole);
        Ok(())
    }

    /// The place that was printed, cleaned.
    ///
    /// # Panics
    /// When nothing was printed.
    pub fn place(&self, expanded: &Expanded) -> Result<Place, NoPath> {
        self.clean(&expanded.whole, expanded.name_at)
    }

    /// Cleans what was expanded, and cuts it at the last `/`. The first bytes of `whole` are the root.
    fn clean(&self, whole: &str, name_at: usize) -> Result<Place, NoPath> {
        let (root, rest) = whole.split_at(self.root_length);
        // An empty prefix still has a name: the part after the last slash, which may be empty.
        let last_slash = whole.rfind('/').unwrap_or(name_at - 1);
        let mut directory = String::with_capacity(whole.len());
        for component in root.split('/').filter(|component| !component.is_empty()) {
            directory.push('/');
            directory.push_str(component);
        }
        let rest_end = last_slash.saturating_sub(root.len());
        for component in rest[..rest_end].split('/').filter(|component| !component.is_empty()) {
            directory.push('/');
            self.push_clean(component, &mut directory);
        }
        let mut name = String::new();
        self.push_clean(&whole[last_slash + 1..], &mut name);
        let longest = directory[..].split('/').chain([name.as_str()]).map(str::len).max().unwrap_or(0);
        if longest > COMPONENT_BYTES_MAX {
            return Err(NoPath::ComponentTooLong(longest));
        }
        if directory.len() + 1 + name.len() > PATH_BYTES_MAX {
            return Err(NoPath::PathTooLong(directory.len() + 1 + name.len()));
        }
        Ok(Place { directory, name })
    }

    fn push_clean(&self, component: &str, out: &mut String) {
        let only_dots = matches!(component, "." | "..");
        out.extend(component.chars().map(|letter| {
            let bad = letter.is_control() || only_dots || (letter == ':' && self.replace_colons);
            if bad { REPLACEMENT } else { letter }
        }));
    }
}

/// Whether `path` lies below `root`, for tests and the fuzzer.
pub fn lies_below(path: &str, root: &str) -> bool {
    let components = |text: &str| -> Vec<String> {
        text.split('/').filter(|component| !component.is_empty()).map(str::to_owned).collect()
    };
    let (path, root) = (components(path), components(root));
    let own: Range<usize> = root.len().min(path.len())..path.len();
    path.starts_with(&root) && path[own].iter().all(|component| component != "." && component != "..")
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
