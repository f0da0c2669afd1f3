//! `docs/recovery.md` prints the decision table; every combination of evidence decides as it says.

use wal::recover::cases::{Content, FenceSays, Position, all_evidence, decide};

const DOCUMENT: &str = include_str!("../../docs/recovery.md");

fn rows() -> Vec<Vec<String>> {
    let lines = DOCUMENT.lines().skip_while(|line| !line.starts_with("| position")).skip(2);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

#[test]
fn every_combination_decides_as_the_document_says() {
    let rows = rows();
    assert!(rows.len() >= 8, "the table is found");
    let mut used = vec![false; rows.len()];
    for evidence in all_evidence() {
        // A tail has no frames behind it, so nothing is beyond a window there.
        let beyond = evidence.beyond_window && evidence.position == Position::Gap;
        let yes_no = |fact: bool| if fact { "yes" } else { "no" };
        let facts = [
            if evidence.position == Position::Gap { "gap" } else { "tail" },
            match evidence.fence {
                FenceSays::Nothing => "nothing",
                FenceSays::Cut => "cut",
                FenceSays::Counts => "counts",
            },
            yes_no(evidence.witnessed),
            yes_no(beyond),
            match evidence.content {
                Content::Zero => "zero",
                Content::Other => "other",
                Content::Damaged => "damaged",
                Content::Unreadable => "unreadable",
            },
        ];
        let fits = |row: &Vec<String>| row.iter().zip(facts).all(|(cell, fact)| cell == "any" || cell == fact);
        let row = rows.iter().position(fits).unwrap_or_else(|| panic!("no row for {evidence:?}"));
        used[row] = true;
        let decided = decide(&wal::recover::cases::Evidence { beyond_window: beyond, ..evidence });
        assert_eq!(rows[row][5], decided.label(), "{evidence:?}");
    }
    assert!(used.iter().all(|used| *used), "a row of the document that never fits: {used:?}");
}
