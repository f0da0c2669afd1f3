//! Output: one JSON object for machines, a short table for people. Both come from the same values.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Prints `result` as one line of JSON, or as `table` says.
pub(crate) fn print(as_json: bool, result: &Value, table: impl FnOnce(&Value) -> String) {
    if as_json {
        println!("{result}");
    } else {
        print!("{}", table(result));
    }
}

/// Letters of the longest name of a result.
const NAMES: usize = 44;

/// One line for each member of an object, members of members with a dot between: for results that are no table.
pub(crate) fn lines(result: &Value) -> String {
    fn append(out: &mut String, prefix: &str, members: &Map<String, Value>) {
        for (name, value) in members {
            let name = format!("{prefix}{name}");
            let shown = match value {
                Value::Object(inner) => {
                    append(out, &format!("{name}."), inner);
                    continue;
                }
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            writeln!(out, "{name:<NAMES$} {shown}").expect("a String takes all");
        }
    }
    let mut out = String::new();
    if let Some(members) = result.as_object() {
        append(&mut out, "", members);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn what_was_not_measured_has_no_number() {
        let text = super::lines(&json!({"a": null, "b": {"c": 1.5}, "d": "x"}));
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [vec!["a", "-"], vec!["b.c", "1.5"], vec!["d", "x"]]);
    }
}
