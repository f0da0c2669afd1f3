//! A disk from what `penstock-bench device --json` wrote. What is wrong with a file names it, the field, and what to do.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use wal::calibrate::Shape;

use super::model::Disk;

/// What the disk reached, by depth and block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    file: String,
    writes: BTreeMap<usize, BTreeMap<usize, f64>>,
    /// The fastest reader, bytes a second.
    pub(crate) read_bytes_s: f64,
}

/// Written in messages: how to get a file that can be read.
const MAKE: &str = "make it with `penstock-bench device --json --dir DIR > FILE`";
const PER_WRITE: &str = "per-write";

impl Measured {
    pub(crate) fn load(path: &Path) -> Result<Measured, String> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{file}: {error}; {MAKE}"))?;
        Measured::parse(&file, &text)
    }

    fn parse(file: &str, text: &str) -> Result<Measured, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("{file}: {error}; {MAKE}"))?;
        let wrong = |field: &str, found: &str| format!("{file}: field `{field}`: {found}; {MAKE}");
        if value["command"] != "device" {
            return Err(wrong("command", &format!("{} instead of \"device\"", value["command"])));
        }
        let rows = value["writes"].as_array().ok_or_else(|| wrong("writes", "not a list"))?;
        let mut writes: BTreeMap<usize, BTreeMap<usize, f64>> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate() {
            let count = |name: &str| {
                let found = row[name].as_u64().filter(|number| *number > 0);
                found.map(|number| number as usize).ok_or_else(|| {
                    wrong(&format!("writes[{index}].{name}"), &format!("{} instead of a whole number", row[name]))
                })
            };
            let rate = row["mb_s"]["median"].as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
            let rate = rate.ok_or_else(|| {
                let found = format!("{} instead of a rate above 0", row["mb_s"]["median"]);
                wrong(&format!("writes[{index}].mb_s.median"), &found)
            })?;
            // The channel makes each of its writes durable by itself.
            if row["sync"] == PER_WRITE {
                writes.entry(count("depth")?).or_default().insert(count("block")?, rate * 1e6);
            }
        }
        if !writes.contains_key(&1) {
            return Err(wrong("writes", "no write of depth 1 with sync per-write; measure without --depth and --sync"));
        }
        let read = value["r"]["mb_s"].as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
        let read = read.ok_or_else(|| wrong("r.mb_s", "reads were not measured; measure without --writes-only"))?;
        Ok(Measured { file: file.to_owned(), writes, read_bytes_s: read * 1e6 })
    }
}

impl Disk for Measured {
    /// Between two blocks that were measured the time of a write is on the line through both; beyond the largest the rate stays,
    /// and below the smallest the time. Between two depths, the smaller one is what is sure.
    fn write_bytes_s(&self, shape: Shape) -> Result<f64, String> {
        let (_depth, rates) = self.writes.range(..=shape.depth).next_back().ok_or_else(|| self.nothing(shape))?;
        let time = |block: usize, rate: f64| block as f64 / rate;
        let (below, above) = (rates.range(..=shape.block).next_back(), rates.range(shape.block..).next());
        let each = match (below, above) {
            (Some((&low, &slow)), Some((&high, &fast))) if low < high => {
                let part = (shape.block - low) as f64 / (high - low) as f64;
                time(low, slow) + part * (time(high, fast) - time(low, slow))
            }
            (Some((_, &rate)), _) => time(shape.block, rate),
            (None, Some((&high, &rate))) => time(high, rate),
            (None, None) => return Err(self.nothing(shape)),
        };
        Ok(shape.block as f64 / each)
    }
}

impl Measured {
    fn nothing(&self, shape: Shape) -> String {
        format!("{}: field `writes`: nothing about {} writes in flight; {MAKE}", self.file, shape.depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn device() -> Value {
        let row = |block: u64, depth: u64, sync: &str, rate: f64| json!({"block": block, "depth": depth, "sync": sync, "mb_s": {"median": rate}});
        json!({
            "command": "device",
            "writes": [
                row(4096, 1, "per-write", 40.96), row(8192, 1, "per-write", 54.613_333),
                row(4096, 4, "per-write", 100.0), row(4096, 1, "shared-flush", 1.0),
            ],
            "r": {"mb_s": 1000.0},
        })
    }

    fn parse(value: &Value) -> Result<Measured, String> {
        Measured::parse("d.json", &value.to_string())
    }

    fn micros(disk: &Measured, block: usize, depth: usize) -> f64 {
        (disk.latency_s(Shape { block, depth }).unwrap() * 1e6).round()
    }

    #[test]
    fn times_between_two_blocks_are_on_a_line() {
        let disk = parse(&device()).unwrap();
        assert_eq!(disk.read_bytes_s, 1e9);
        // 4 KiB take 100 µs, 8 KiB 150 µs.
        assert_eq!([4096, 6144, 8192, 16_384].map(|block| micros(&disk, block, 1)), [100.0, 125.0, 150.0, 300.0]);
        // Four at once: 25 µs more of the disk for each, and two are not known better than one.
        assert_eq!((micros(&disk, 4096, 4), micros(&disk, 4096, 2)), (164.0, 200.0));
    }

    #[test]
    fn what_is_wrong_names_the_file_the_field_and_what_to_do() {
        let wrong = |change: &dyn Fn(&mut Value)| {
            let mut value = device();
            change(&mut value);
            parse(&value).unwrap_err()
        };
        let cases: [(String, &str); 6] = [
            (wrong(&|device| device["command"] = json!("channel")), "field `command`: \"channel\""),
            (wrong(&|device| device["writes"] = json!(null)), "field `writes`: not a list"),
            (wrong(&|device| device["writes"][1]["block"] = json!(-1)), "field `writes[1].block`: -1"),
            (wrong(&|device| device["writes"][0]["mb_s"] = json!({"median": 0})), "field `writes[0].mb_s.median`: 0"),
            (wrong(&|device| device["r"] = json!(null)), "field `r.mb_s`: reads were not measured"),
            (Measured::parse("d.json", "{").unwrap_err(), "EOF"),
        ];
        for (found, expected) in cases {
            assert!(found.starts_with("d.json: ") && found.contains(expected), "{found}");
            assert!(found.contains("penstock-bench device --json"), "{found}");
        }
        let missing = Measured::load(Path::new("/nowhere/d.json")).unwrap_err();
        assert!(missing.contains("/nowhere/d.json") && missing.contains("make it with"), "{missing}");
    }
}
