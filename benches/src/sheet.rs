//! Figures over rounds: each is measured in every round, and printed as the median with the smallest and the largest.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::numbers::Spread;

/// One figure over all rounds.
#[derive(Debug)]
struct Row {
    goal: &'static str,
    what: &'static str,
    target: &'static str,
    rounds: Vec<f64>,
}

/// All figures, in the order of their first measurement.
#[derive(Debug, Default)]
pub(crate) struct Sheet(Vec<Row>);

impl Sheet {
    pub(crate) fn add(&mut self, goal: &'static str, what: &'static str, target: &'static str, value: f64) {
        match self.0.iter_mut().find(|row| row.goal == goal && row.what == what) {
            Some(row) => row.rounds.push(value),
            None => self.0.push(Row { goal, what, target, rounds: vec![value] }),
        }
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            let mut value = Spread::of(&row.rounds).json();
            value["goal"] = json!(row.goal);
            value["what"] = json!(row.what);
            value["target"] = json!(row.target);
            value["rounds"] = json!(row.rounds.len());
            value
        };
        self.0.iter().map(row).collect()
    }
}

/// The result of a command whose `rows` are a sheet's, for people.
pub(crate) fn table(result: &Value) -> String {
    let load = &result["load_average"];
    let mut out = format!(
        "{} rounds of {} s, load average {} ({} to {})\n\n| goal | what | target | median | min | max |\n|---|---|---|---|---|---|\n",
        result["rounds"], result["seconds"], load["median"], load["min"], load["max"]
    );
    for row in result["rows"].as_array().into_iter().flatten() {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            text("goal"),
            text("what"),
            text("target"),
            row["median"],
            row["min"],
            row["max"]
        )
        .expect("a String takes all");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_of_several_rounds_is_one_row() {
        let mut sheet = Sheet::default();
        for value in [3.0, 1.0, 2.0] {
            sheet.add("P1", "a", ">= 1", value);
            sheet.add("P1", "b", "", 10.0 * value);
        }
        let rows = sheet.json();
        assert_eq!(rows.as_array().unwrap().len(), 2);
        assert_eq!((&rows[0]["median"], &rows[0]["rounds"], &rows[1]["max"]), (&json!(2.0), &json!(3), &json!(30.0)));
    }
}
