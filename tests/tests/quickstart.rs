//! The README's first command: a line, kill -9, start again, and the line is in a file.

use std::process::Command;

use system_tests::{penstock, repository};

#[test]
fn the_first_command_of_the_readme_keeps_its_promise() {
    let output = Command::new("timeout")
        .args(["-k", "5", "120"])
        .arg(repository().join("tools/quickstart"))
        .arg("--self-check")
        .env("PENSTOCK_BIN", penstock::binary())
        .output()
        .expect("run tools/quickstart");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("self-check passed"), "{text}");
}
