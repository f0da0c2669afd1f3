//! What every Rust file keeps to: a header, no `unsafe` outside its one folder, no reminders to do something later, no
//! test that is switched off, a length one can read.

use std::path::Path;

use super::{Findings, Tree};

/// The one folder that talks to the kernel directly.
const UNSAFE_FOLDER: &str = "wal/src/io/";
/// Measured beside the product and no part of it: a library that is called by its C interface.
const UNSAFE_PEER: &str = "benches/peers/src/rocksdb.rs";
const LINES_MAX: usize = 700;
/// Split, so that this file does not find itself.
const REMINDERS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimplemented", "!(")];
const SWITCHED_OFF: &str = concat!("#[", "ignore");
const UNSAFE: [&str; 5] = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code"];

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    for path in tree.with_extension("rs") {
        match tree.read(path) {
            Ok(text) => check_text(path, &text, findings),
            Err(error) => findings.errors.push(error),
        }
    }
    for extension in ["sh", "py", "toml", "java"] {
        for path in tree.with_extension(extension) {
            if let Ok(text) = tree.read(path) {
                reminders(path, &text, findings);
            }
        }
    }
}

fn check_text(path: &Path, text: &str, findings: &mut Findings) {
    let name = path.display().to_string();
    // A fuzz target begins with the attribute that takes `main` away.
    let first = text.lines().find(|line| !line.starts_with("#![") && !line.is_empty()).unwrap_or_default();
    if !first.starts_with("//!") {
        findings
            .errors
            .push(format!("{name}:1: begin with `//!`: the module's job, what it promises, what it leaves to others"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings
            .warnings
            .push(format!("{name}: {lines} lines, more than {LINES_MAX}: does a part of it deserve a name?"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        let may = name.starts_with(UNSAFE_FOLDER) || name == UNSAFE_PEER || in_own_rules(&name);
        if !may && UNSAFE.iter().any(|word| code.contains(word)) {
            findings.errors.push(format!("{name}:{number}: `unsafe` stands only below {UNSAFE_FOLDER}"));
        }
        if code.contains(SWITCHED_OFF) {
            findings.errors.push(format!("{name}:{number}: a test that never runs; make it skip aloud, or remove it"));
        }
    }
    reminders(path, text, findings);
}

/// This file holds the words it looks for.
fn in_own_rules(name: &str) -> bool {
    name == "tools/xtask/src/tidy/sources.rs"
}

fn reminders(path: &Path, text: &str, findings: &mut Findings) {
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(word) = REMINDERS.iter().find(|word| line.contains(**word)) {
            findings
                .errors
                .push(format!("{}:{number}: `{word}`: do it, or say in docs what is not built", path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(path: &str, text: &str) -> usize {
        let mut findings = Findings::default();
        check_text(Path::new(path), text, &mut findings);
        findings.errors.len()
    }

    #[test]
    fn a_file_without_a_header_is_found_and_a_fuzz_target_with_one_is_not() {
        assert_eq!(errors_of("wal/src/a.rs", "use std::fs;\n"), 1);
        assert_eq!(errors_of("wal/src/a.rs", "//! Bytes.\n"), 0);
        assert_eq!(errors_of("fuzz/fuzz_targets/a.rs", "#![no_main]\n//! Any bytes.\n"), 0);
    }

    #[test]
    fn unsafe_is_found_outside_its_folder_only() {
        let text = "//! Bytes.\nfn f() { unsafe { g() } }\n";
        assert_eq!(errors_of("channel/src/a.rs", text), 1);
        assert_eq!(errors_of("wal/src/io/a.rs", text), 0);
        assert_eq!(errors_of(UNSAFE_PEER, text), 0);
        assert_eq!(errors_of("benches/peers/src/stores.rs", text), 1);
        assert_eq!(errors_of("channel/src/a.rs", "//! Bytes.\n// No unsafe { } here.\n"), 0);
    }

    #[test]
    fn a_reminder_and_a_switched_off_test_are_found() {
        assert_eq!(errors_of("a.rs", &format!("//! A.\n// {}: later\n", REMINDERS[0])), 1);
        assert_eq!(errors_of("a.rs", &format!("//! A.\n{SWITCHED_OFF}]\n")), 1);
    }
}
