//! The tables of components against the folders beside them: a component that nobody can configure, or a table line without
//! a module, is a mistake that compiles.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Findings, Tree};

/// The folder for what several components of a kind share.
const SHARED: &str = "common";
const KINDS: [&str; 5] = ["sources", "sinks", "interceptors", "selectors", "channels"];

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    for kind in KINDS {
        let folder = format!("agent/src/{kind}");
        let table = format!("{folder}/mod.rs");
        let text = match tree.read(Path::new(&table)) {
            Ok(text) => text,
            Err(error) => {
                findings.errors.push(format!("{error}; the table of {kind} belongs there"));
                continue;
            }
        };
        let mut with_entry = BTreeSet::new();
        let mut folders = BTreeSet::new();
        for path in tree.with_extension("rs") {
            let Ok(inner) = path.strip_prefix(&folder) else { continue };
            if inner == Path::new("mod.rs") {
                continue;
            }
            let mut parts = inner.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
            let first = parts.next().unwrap_or_default();
            let module = first.trim_end_matches(".rs").to_owned();
            if parts.next().is_some() && module != SHARED {
                folders.insert(module.clone());
            }
            if tree.read(path).is_ok_and(|text| text.contains(" ENTRY: ")) {
                with_entry.insert(module);
            }
        }
        compare(&table, &listed(&text), &with_entry, &folders, findings);
    }
}

/// Modules named in the table, as `name::ENTRY`.
fn listed(text: &str) -> BTreeSet<String> {
    let Some(start) = text.find("TABLE: ") else { return BTreeSet::new() };
    let body = text[start..].split("];").next().unwrap_or_default();
    let lines = body.lines().map(|line| line.split("//").next().unwrap_or_default());
    let words =
        lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || "&[],=".contains(c)).map(str::to_owned));
    words
        .filter_map(|word| word.strip_suffix("::ENTRY").and_then(|path| path.split("::").next()).map(str::to_owned))
        .collect()
}

fn compare(
    table: &str,
    listed: &BTreeSet<String>,
    with_entry: &BTreeSet<String>,
    folders: &BTreeSet<String>,
    findings: &mut Findings,
) {
    for module in with_entry.difference(listed) {
        findings.errors.push(format!("{table}: `{module}` has an ENTRY and no line in the table"));
    }
    for module in listed.difference(with_entry) {
        findings.errors.push(format!("{table}: the table names `{module}`, which has no ENTRY"));
    }
    for module in folders.difference(with_entry) {
        findings
            .errors
            .push(format!("{table}: the folder `{module}` holds no component; shared code goes to `{SHARED}`"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_table_is_read_on_one_line_and_on_many() {
        assert_eq!(listed("static TABLE: &[&Entry] = &[&netcat::ENTRY, &http::ENTRY];"), set(&["netcat", "http"]));
        let text = "static TABLE: &[&Entry] = &[\n    &netcat::ENTRY,\n    // &gone::ENTRY,\n    &http::ENTRY,\n];";
        assert_eq!(listed(text), set(&["netcat", "http"]));
        assert_eq!(listed("static TABLE: &[&Entry] = &[];"), set(&[]));
    }

    #[test]
    fn a_forgotten_line_a_dead_line_and_an_empty_folder_are_found() {
        let mut findings = Findings::default();
        compare("mod.rs", &set(&["a", "dead"]), &set(&["a", "forgotten"]), &set(&["a", "empty"]), &mut findings);
        assert_eq!(findings.errors.len(), 3, "{:?}", findings.errors);
    }
}
