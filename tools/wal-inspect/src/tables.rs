//! The verbs `cases` and `layout`: what the code itself says about recovery and about the bytes.

use std::io::{self, Write};

use serde_json::json;
use wal::format::{Field, frame, identity, incarnation};
use wal::recover::cases::{Case, Content, Evidence, FenceSays, Position, all_evidence, decide};

use crate::cli::Form;
use crate::exit::Exit;
use crate::text::{SCHEMA, json_line};

const DIMENSIONS: [&str; 5] = ["position", "fence", "witnessed", "beyond window", "content"];

/// One combination of evidence as words, in the order of [`DIMENSIONS`].
fn words(evidence: &Evidence) -> [&'static str; 5] {
    let yes = |flag| if flag { "yes" } else { "no" };
    [
        match evidence.position {
            Position::Gap => "gap",
            Position::Tail => "tail",
        },
        match evidence.fence {
            FenceSays::Nothing => "none",
            FenceSays::Cut => "cut",
            FenceSays::Counts => "counts",
        },
        yes(evidence.witnessed),
        yes(evidence.beyond_window),
        match evidence.content {
            Content::Zero => "zero",
            Content::Other => "other",
            Content::Damaged => "damaged",
            Content::Unreadable => "unreadable",
        },
    ]
}

/// Combinations that differ only in what does not matter, as one row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    values: [Vec<&'static str>; 5],
    case: Case,
}

/// All combinations in as few rows as joining neighbours gives; each combination is in exactly one.
fn rows() -> Vec<Row> {
    let single = |evidence: &Evidence| Row { values: words(evidence).map(|word| vec![word]), case: decide(evidence) };
    let mut rows: Vec<Row> = all_evidence().iter().map(single).collect();
    // Last dimensions first: the table reads from left to right.
    for dimension in (0..DIMENSIONS.len()).rev() {
        let mut joined: Vec<Row> = Vec::new();
        for row in rows {
            let same = |other: &&mut Row| {
                other.case == row.case
                    && (0..DIMENSIONS.len()).all(|at| at == dimension || other.values[at] == row.values[at])
            };
            match joined.iter_mut().find(same) {
                Some(other) => other.values[dimension].extend(&row.values[dimension]),
                None => joined.push(row),
            }
        }
        rows = joined;
    }
    rows
}

fn value_count(dimension: usize) -> usize {
    let mut values: Vec<_> = all_evidence().iter().map(|evidence| words(evidence)[dimension]).collect();
    values.sort_unstable();
    values.dedup();
    values.len()
}

pub(crate) fn cases(form: Form, out: &mut dyn Write) -> io::Result<Exit> {
    if form == Form::Json {
        for evidence in all_evidence() {
            let [position, fence, _, _, content] = words(&evidence);
            let case = decide(&evidence);
            let line = json!({
                "schema": SCHEMA, "type": "case", "position": position, "fence": fence, "content": content,
                "witnessed": evidence.witnessed, "beyond_window": evidence.beyond_window,
                "case": case.label(), "is_loss": case.is_loss(),
            });
            json_line(out, &line)?;
        }
        return Ok(Exit::Clean);
    }
    let [position, fence, witnessed, window, content] = DIMENSIONS;
    writeln!(out, "| {position} | {fence} | {witnessed} | {window} | {content} | case | loss |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for Row { values, case } in rows() {
        for (dimension, values) in values.iter().enumerate() {
            let any = values.len() == value_count(dimension);
            write!(out, "| {} ", if any { "any".to_owned() } else { values.join(", ") })?;
        }
        writeln!(out, "| {case} | {} |", if case.is_loss() { "yes" } else { "no" })?;
    }
    Ok(Exit::Clean)
}

pub(crate) fn layout(form: Form, out: &mut dyn Write) -> io::Result<Exit> {
    let structures: [(&str, &[Field]); 3] =
        [("identity", identity::LAYOUT), ("incarnation header", incarnation::LAYOUT), ("frame header", frame::LAYOUT)];
    for (index, (structure, fields)) in structures.into_iter().enumerate() {
        if form == Form::Table {
            let gap = if index > 0 { "\n" } else { "" };
            writeln!(out, "{gap}{structure}\n\n| offset | size | field |\n|---|---|---|")?;
        }
        for Field { name, offset, size } in fields {
            if form == Form::Table {
                writeln!(out, "| {offset} | {size} | {name} |")?;
                continue;
            }
            let line = json!({
                "schema": SCHEMA, "type": "field", "format": wal::format::VERSION, "structure": structure,
                "offset": offset, "size": size, "field": name,
            });
            json_line(out, &line)?;
        }
    }
    Ok(Exit::Clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_is_in_exactly_one_row_of_its_case() {
        let rows = rows();
        for evidence in all_evidence() {
            let words = words(&evidence);
            let matching: Vec<&Row> =
                rows.iter().filter(|row| (0..5).all(|at| row.values[at].contains(&words[at]))).collect();
            assert_eq!(matching.len(), 1, "{evidence:?}");
            assert_eq!(matching[0].case, decide(&evidence), "{evidence:?}");
        }
        assert!(rows.len() <= 20, "{} rows are no table for people", rows.len());
        assert!(Case::ALL.iter().all(|case| *case == Case::HeaderLost || rows.iter().any(|row| row.case == *case)));
    }
}
