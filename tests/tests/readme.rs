//! The README's table against `docs/configuration.md`, which is printed from the tables that the agent reads: all that runs is
//! in its column, and exactly what is refused in the next one.

use std::collections::BTreeSet;
use std::fs;

use system_tests::repository;

/// The README's row and the reference's heading of each kind of component.
const KINDS: [(&str, &str); 5] = [
    ("sources", "Sources"),
    ("interceptors", "Interceptors"),
    ("selectors", "Channel selectors"),
    ("channels", "Channels"),
    ("sinks", "Sinks"),
];

#[test]
fn the_table_of_the_readme_says_what_the_agent_knows() {
    let read = |name: &str| fs::read_to_string(repository().join(name)).expect("read a document of the repository");
    let (readme, reference) = (read("README.md"), read("docs/configuration.md"));
    for (kind, heading) in KINDS {
        let row = cells(&readme).find(|cells| cells.first() == Some(&kind)).expect("the table has a row for each kind");
        let runs = built(&reference, heading);
        assert!(!runs.is_empty(), "the reference has no part `{heading}`");
        assert_eq!(names(row[1]).intersection(&runs).count(), runs.len(), "{kind} that run: {runs:?}, in {}", row[1]);
        // Those without an alias are known by their class, which is too long for a table.
        let refused: BTreeSet<&str> = cells(&reference)
            .filter(|cells| cells.len() == 3 && cells[0] == kind)
            .map(|cells| cells[1].trim_matches('`'))
            .filter(|name| !name.contains('.'))
            .collect();
        assert_eq!(names(row[2]), refused, "{kind} that are refused");
    }
}

/// The rows of all tables.
fn cells(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// What a cell has in backticks.
fn names(cell: &str) -> BTreeSet<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The components of one part of the reference.
fn built<'a>(reference: &'a str, heading: &str) -> BTreeSet<&'a str> {
    let part = reference.lines().skip_while(|line| line.strip_prefix("# ") != Some(heading)).skip(1);
    part.take_while(|line| !line.starts_with("# ")).filter_map(|line| line.strip_prefix("## ")).collect()
}
