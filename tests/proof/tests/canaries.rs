//! Each layer notices what it is there for: the prover itself, run with a planted bug, must fail by its own count.

use std::process::Command;

/// Runs a layer with a bug until it is noticed. What cannot run here is told and not held against it.
fn is_noticed(layer: &str, cycles: u32, bug: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proof"));
    command.args([layer, "--cycles", &cycles.to_string(), "--plant", bug]);
    let output = command.output().expect("run the prover");
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(skip) = text.lines().find(|line| line.starts_with("SKIPPED: ")) {
        println!("{skip}");
        return;
    }
    assert!(
        output.status.success(),
        "{layer} does not notice {bug}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_power_cut_shows_a_missing_data_sync() {
    is_noticed("cuts", 400, "SkipDataSync");
}

#[test]
fn failing_writes_show_a_missing_data_sync() {
    is_noticed("faults", 40, "SkipDataSync");
}

#[test]
fn histories_on_real_files_show_an_answer_before_the_write() {
    is_noticed("model", 400, "AcknowledgeBeforeSync");
}

#[test]
fn a_lost_or_stalled_disk_shows_a_missing_data_sync() {
    is_noticed("disks", 8, "SkipDataSync");
}

#[test]
fn a_full_disk_shows_events_in_the_room_of_settlements() {
    is_noticed("full", 2, "SpendLastSpare");
}
