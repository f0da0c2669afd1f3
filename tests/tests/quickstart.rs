//! The README's first command: a line, kill -9, start again, and the line is in a file.

use std::time::Duration;

use system_tests::penstock;
use system_tests::process::Process;
use system_tests::repository;

#[test]
fn the_first_command_of_the_readme_keeps_its_promise() {
    let directory = tempfile::tempdir().expect("create a directory");
    let binary = penstock::binary().display().to_string();
    let script = repository().join("tools/quickstart");
    let mut process = Process::start(
        "quickstart",
        directory.path(),
        &script,
        &["--self-check".to_owned()],
        &[("PENSTOCK_BIN", binary)],
    );
    let status = process.await_end(Duration::from_secs(120));
    assert!(status.success(), "{}", process.last_lines());
    assert!(process.log().contains("self-check passed"), "{}", process.last_lines());
}
