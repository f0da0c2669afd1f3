//! From flat properties to the components that one agent declares.
//!
//! Sorts every line to its component, keeps its position, and finds what belongs to nobody. It does not know which
//! types exist or what keys they have: `config::plan` does.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::{Finding, Place, Severity};
use super::properties::Properties;
use super::settings::{Setting, nearest};

/// The kinds of components, as the file spells them.
pub const KINDS: [&str; 5] = ["sources", "channels", "sinks", "sinkgroups", "configfilters"];

/// One component that the agent lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// The line that lists it.
    pub place: Place,
    /// Its lines, without empty values.
    pub settings: Vec<Setting>,
}

impl Declared {
    pub fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }
}

/// One agent of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentModel {
    pub sources: Vec<Declared>,
    pub channels: Vec<Declared>,
    pub sinks: Vec<Declared>,
    pub sinkgroups: Vec<Declared>,
    pub configfilters: Vec<Declared>,
    pub findings: Vec<Finding>,
    /// The names of all agents in the file.
    pub agents: Vec<String>,
}

/// Lines of one kind, by component name.
#[derive(Default)]
struct Lines {
    list: Option<Setting>,
    by_name: BTreeMap<String, Vec<Setting>>,
}

/// Reads what `properties` say about `agent`. Keys in `referenced` are read by a lookup and so belong to somebody.
pub fn read(properties: &Properties, agent: &str, referenced: &[String]) -> AgentModel {
    let mut model = AgentModel { findings: properties.findings.clone(), ..AgentModel::default() };
    let mut kinds: BTreeMap<&str, Lines> = BTreeMap::new();
    let mut agents = BTreeSet::new();
    let referenced: BTreeSet<&str> = referenced.iter().map(String::as_str).collect();
    for entry in &properties.entries {
        let (owner, rest) = entry.key.split_once('.').unwrap_or((&entry.key, ""));
        let (kind, name_and_key) = rest.split_once('.').unwrap_or((rest, ""));
        let known_kind = KINDS.iter().find(|known| **known == kind).copied();
        if known_kind.is_some() {
            agents.insert(owner.to_owned());
        }
        let Some(kind) = known_kind.filter(|_| owner == agent) else {
            if known_kind.is_none() && !referenced.contains(entry.key.as_str()) {
                model.findings.push(nobody(agent, owner, kind, &entry.key, &entry.place));
            }
            continue;
        };
        let lines = kinds.entry(kind).or_default();
        let setting =
            |name: &str| Setting { name: name.to_owned(), value: entry.value.clone(), place: entry.place.clone() };
        match name_and_key.split_once('.') {
            _ if entry.value.is_empty() => model.findings.push(Finding {
                severity: Severity::Warning,
                place: Some(entry.place.clone()),
                component: None,
                message: format!("{} has no value and is ignored", entry.key),
            }),
            None if name_and_key.is_empty() => lines.list = Some(setting("")),
            Some((name, key)) if !key.is_empty() => {
                lines.by_name.entry(name.to_owned()).or_default().push(setting(key));
            }
            _ => model
                .findings
                .push(unknown(&entry.place, format!("{}: no key follows the name of the component", entry.key))),
        }
    }
    for (kind, lines) in kinds {
        let declared = declare(agent, kind, lines, &mut model.findings);
        match kind {
            "sources" => model.sources = declared,
            "channels" => model.channels = declared,
            "sinks" => model.sinks = declared,
            "sinkgroups" => model.sinkgroups = declared,
            _ => model.configfilters = declared,
        }
    }
    model.agents = agents.into_iter().collect();
    model
}

fn unknown(place: &Place, message: String) -> Finding {
    Finding { severity: Severity::UnknownKey, place: Some(place.clone()), component: None, message }
}

/// A key that belongs to no component of any agent.
fn nobody(agent: &str, owner: &str, kind: &str, key: &str, place: &Place) -> Finding {
    let message = if owner == agent {
        let advice =
            nearest(kind, KINDS.into_iter()).map_or_else(String::new, |near| format!("; did you mean {near}?"));
        format!("{key}: an agent has sources, channels and sinks{advice}")
    } else {
        format!("{key}: belongs to no agent, and no value refers to it")
    };
    unknown(place, message)
}

fn declare(agent: &str, kind: &str, mut lines: Lines, findings: &mut Vec<Finding>) -> Vec<Declared> {
    let mut declared: Vec<Declared> = Vec::new();
    if let Some(list) = &lines.list {
        for name in list.value.split_whitespace() {
            if declared.iter().any(|earlier| earlier.name == name) {
                findings.push(Finding {
                    severity: Severity::Warning,
                    place: Some(list.place.clone()),
                    component: None,
                    message: format!("{agent}.{kind} names {name} twice; it runs once"),
                });
                continue;
            }
            let settings = lines.by_name.remove(name).unwrap_or_default();
            declared.push(Declared { name: name.to_owned(), place: list.place.clone(), settings });
        }
    }
    for (name, settings) in lines.by_name {
        let place = settings.first().map(|setting| setting.place.clone());
        let message = format!("{agent}.{kind}.{name} is not in the list {agent}.{kind}, so nothing of it runs");
        findings.push(Finding { severity: Severity::Warning, place, component: None, message });
    }
    declared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> (AgentModel, Vec<String>) {
        let model = read(&Properties::parse("f", text.as_bytes()), "a1", &["port".to_owned()]);
        let findings = model.findings.iter().map(ToString::to_string).collect();
        (model, findings)
    }

    #[test]
    fn every_line_finds_its_component_or_is_reported() {
        let (model, findings) = model(
            "a1.sources = r1 r2 r1\na1.sources.r1.type = x\na1.sources.r1.a.b = 1\na1.sources.r9.type = y\n\
             a1.sources.r2.empty =\nnonsense\nport = 7\na1.nonsense = 1\na1.source = r\na1.sources.r1 = 1\n\
             a2.sources = q\n",
        );
        assert_eq!(model.agents, ["a1", "a2"]);
        let names: Vec<_> = model.sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["r1", "r2"]);
        assert_eq!(model.sources[0].setting("a.b").map(|setting| setting.place.line), Some(3));
        assert_eq!(
            findings,
            [
                "f:5:1: warning: a1.sources.r2.empty has no value and is ignored",
                "f:6:1: unknown key: nonsense: belongs to no agent, and no value refers to it",
                "f:8:1: unknown key: a1.nonsense: an agent has sources, channels and sinks",
                "f:9:1: unknown key: a1.source: an agent has sources, channels and sinks; did you mean sources?",
                "f:10:1: unknown key: a1.sources.r1: no key follows the name of the component",
                "f:1:1: warning: a1.sources names r1 twice; it runs once",
                "f:4:1: warning: a1.sources.r9 is not in the list a1.sources, so nothing of it runs",
            ]
        );
    }
}
