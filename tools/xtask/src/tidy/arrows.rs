//! Who may depend on whom, compared with what Cargo says. An arrow that is not in the table is a finding, so that a new one
//! is a decision and not an accident.

use std::process::Command;

use serde_json::Value;

use super::{Findings, Tree};

/// Crate, and the crates of this repository that it may use. Tests inside a crate keep to the same arrows.
const ARROWS: &[(&str, &[&str])] = &[
    ("wal", &[]),
    ("channel", &["wal"]),
    ("wire", &["channel"]),
    ("store", &["channel", "wire"]),
    ("agent", &["wire", "store", "channel", "wal"]),
    // `wire` and `store` only for replay over the network, behind the feature `targets`.
    ("wal-inspect", &["channel", "wal"]),
    ("xtask", &[]),
    ("system-tests", &["wal", "channel", "wire", "store", "agent", "wal-inspect"]),
    ("proof", &["wal", "channel", "system-tests"]),
    ("benches", &["wal", "channel", "wire", "system-tests"]),
];

/// Crates that must stay optional, and so must `wire` and `store` of wal-inspect.
const OPTIONAL_ARROWS: &[(&str, &[&str])] = &[("wal-inspect", &["wire", "store"]), ("store", &["hdfs-native"])];

/// Crates that know no async runtime, and the one crate that may speak to HDFS.
const NOT_IN: &[(&str, &[&str])] = &[
    ("tokio", &["wal", "channel", "wire", "wal-inspect"]),
    ("hdfs-native", &["wal", "channel", "wire", "agent", "wal-inspect"]),
    ("hyper", &["wal", "channel", "wire", "store", "wal-inspect"]),
];

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(&tree.root)
        .output();
    let metadata = match output {
        Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        Ok(output) => {
            findings.errors.push(format!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr)));
            return;
        }
        Err(error) => {
            findings.errors.push(format!("cannot run cargo metadata: {error}"));
            return;
        }
    };
    compare(&metadata, findings);
}

fn compare(metadata: &Value, findings: &mut Findings) {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    if packages.is_empty() {
        findings.errors.push("cargo metadata names no packages".to_owned());
    }
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = lookup(ARROWS, name) else {
            findings
                .errors
                .push(format!("crate {name} has no line in the table of arrows, tools/xtask/src/tidy/arrows.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().map_or(&[][..], Vec::as_slice) {
            let target = dependency["name"].as_str().unwrap_or_default();
            let is_optional = dependency["optional"].as_bool().unwrap_or(false);
            let is_development = dependency["kind"].as_str() == Some("dev");
            let may_be_optional = lookup(OPTIONAL_ARROWS, name).is_some_and(|targets| targets.contains(&target));
            if may_be_optional && !is_optional && !is_development {
                findings.errors.push(format!("{name} -> {target} must be optional, behind a feature"));
            }
            if ours.contains(&target) && target != name && !allowed.contains(&target) && !may_be_optional {
                findings.errors.push(format!("{name} -> {target} is not one of the arrows between crates"));
            }
            let banned = lookup(NOT_IN, target).is_some_and(|crates| crates.contains(&name));
            if banned && !is_development {
                findings.errors.push(format!("{name} must not depend on {target}"));
            }
        }
    }
}

fn lookup<'a>(table: &'a [(&str, &'a [&'a str])], key: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors_of(name: &str, dependency: &str, optional: bool, kind: Option<&str>) -> Vec<String> {
        let dependency = json!({"name": dependency, "optional": optional, "kind": kind});
        let mut packages = vec![json!({"name": name, "dependencies": [dependency]})];
        packages.extend(
            ["wal", "wire", "store"].iter().filter(|other| **other != name).map(|other| json!({"name": other})),
        );
        let mut findings = Findings::default();
        compare(&json!({"packages": packages}), &mut findings);
        findings.errors
    }

    #[test]
    fn an_arrow_upwards_is_found_and_an_arrow_of_the_table_is_not() {
        assert_eq!(errors_of("channel", "wal", false, None), Vec::<String>::new());
        assert_eq!(errors_of("wal", "wire", false, None).len(), 1);
        assert_eq!(errors_of("wal", "wire", false, Some("dev")).len(), 1);
        assert_eq!(errors_of("newcomer", "wal", false, None).len(), 1);
    }

    #[test]
    fn a_runtime_in_the_engine_and_a_forced_hdfs_are_found() {
        assert_eq!(errors_of("wal", "tokio", false, None).len(), 1);
        assert_eq!(errors_of("store", "hdfs-native", false, None).len(), 1);
        assert_eq!(errors_of("store", "hdfs-native", true, None), Vec::<String>::new());
        assert_eq!(errors_of("wal-inspect", "store", false, None).len(), 1);
        assert_eq!(errors_of("wal-inspect", "store", true, None), Vec::<String>::new());
    }
}
