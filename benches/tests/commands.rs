//! The commands as a planner runs them: what they print means what it says. No test looks at a rate or a latency.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_penstock-bench")).args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = bench(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    serde_json::from_str(&text).unwrap()
}

fn dir(scratch: &tempfile::TempDir) -> &str {
    scratch.path().to_str().unwrap()
}

fn is_empty(dir: &Path) -> bool {
    dir.read_dir().unwrap().next().is_none()
}

fn scratch() -> tempfile::TempDir {
    // Below the target folder, which is on a disk where `/tmp` may be memory.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

const QUICK: [&str; 6] = ["--json", "--bytes", "1M", "--seconds", "0.002", "--rounds"];

#[test]
fn a_device_is_measured_at_every_point_of_the_grid_and_the_limits_are_among_them() {
    let scratch = scratch();
    let mut arguments =
        vec!["device", "--dir", dir(&scratch), "--block", "4K,64K", "--depth", "1,2", "--in-flight", "80K"];
    arguments.extend(QUICK);
    arguments.push("2");
    let result = json(&arguments);
    let writes = result["writes"].as_array().unwrap();
    // Two blocks, and 80 KiB as one block and as two of 40 KiB; twice two depths; two ways to sync.
    assert_eq!(writes.len(), (2 * 2 + 2) * 2);
    for limit in result["w"].as_array().unwrap() {
        let rate = |row: &Value| row["mb_s"]["median"].as_f64().unwrap();
        let in_flight = |row: &Value| row["block"].as_u64().unwrap() * row["depth"].as_u64().unwrap();
        let fit = writes.iter().filter(|row| in_flight(row) <= limit["in_flight"].as_u64().unwrap());
        let best = fit.map(rate).fold(0.0, f64::max);
        assert_eq!(limit["mb_s"].as_f64().unwrap(), best, "{limit}");
    }
    let alone: Vec<u64> = result["l"].as_array().unwrap().iter().map(|row| row["block"].as_u64().unwrap()).collect();
    assert_eq!(alone, [4 << 10, 64 << 10, 80 << 10]);
    for row in writes {
        let us = &row["latency_us"];
        assert!(us["p50"].as_f64() <= us["p99"].as_f64() && us["p99_9"].as_f64() <= us["max"].as_f64(), "{row}");
    }
    assert!(result["r"]["mb_s"].as_f64().unwrap() > 0.0);
    assert!(result["cpu"]["aes_256_gcm_gb_s"]["262144"].as_f64().unwrap() > 0.0);
    assert!(is_empty(scratch.path()), "the file is removed");
}

#[test]
fn a_flush_that_was_asked_for_is_looked_for_at_the_device_or_it_says_why_not() {
    let scratch = scratch();
    let mut arguments = vec!["device", "--dir", dir(&scratch), "--block", "4K", "--depth", "1"];
    arguments.extend(QUICK);
    arguments.push("1");
    let syncs = &json(&arguments)["syncs"];
    match syncs["verified"].as_bool() {
        Some(verified) => {
            let ways = syncs["ways"].as_array().unwrap();
            assert_eq!(ways.len(), 2);
            assert_eq!(verified, ways.iter().all(|way| way["reached"].as_bool() != Some(false)), "{syncs}");
            assert!(ways.iter().all(|way| way["asked"].as_u64().unwrap() > 0), "{syncs}");
        }
        None => assert!(!syncs["how"].as_str().unwrap().is_empty()),
    }
}

#[test]
fn a_file_is_kept_for_another_tool_and_used_again() {
    let scratch = scratch();
    let mut arguments =
        vec!["device", "--dir", dir(&scratch), "--keep", "--writes-only", "--block", "4K", "--depth", "1"];
    arguments.extend(QUICK);
    arguments.push("1");
    json(&arguments);
    let file = scratch.path().join("penstock-bench.device");
    let before = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    let result = json(&arguments);
    assert!(result["r"].is_null() && result["cpu"].is_null() && result["syncs"].is_null(), "not asked for");
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap()), before);
}

#[test]
fn what_no_disk_takes_is_refused_by_name() {
    let scratch = scratch();
    for (option, value) in [("--block", "1000"), ("--depth", "0"), ("--depth", "65"), ("--bytes", "64K")] {
        let output = bench(&["device", "--dir", dir(&scratch), option, value]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.contains(option), "{option} {value}: {told}");
        assert!(is_empty(scratch.path()), "nothing was written");
    }
}

/// What every mode prints.
const FIELDS: [&str; 12] = [
    "put_ev_s",
    "put_mb_s",
    "take_ev_s",
    "txn_us",
    "cpu_s",
    "cpu_s_per_gib",
    "rss_max_mib",
    "device_write_bytes",
    "device_read_bytes",
    "first_take_s",
    "depth",
    "load_average",
];

fn channel(dir: &str, mode: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["channel", "--json", "--dir", dir, "--mode", mode, "--batch", "10", "--size", "100"];
    arguments.extend(more);
    let result = json(&arguments);
    for field in FIELDS {
        assert!(result.get(field).is_some(), "{mode} has no {field}: {result}");
    }
    result
}

#[test]
fn a_load_puts_and_takes_and_leaves_nothing_behind() {
    let scratch = scratch();
    let short = ["--warmup", "0.05", "--seconds", "0.2", "--producers", "2"];
    let result = channel(dir(&scratch), "load", &short);
    assert!(result["put_ev_s"].as_f64().unwrap() > 0.0 && result["take_ev_s"].is_null(), "{result}");
    assert!(result["txn_us"]["p50"].as_f64() <= result["txn_us"]["max"].as_f64());
    if let Some(written) = result["device_write_bytes"].as_u64() {
        let put = result["put_mb_s"].as_f64().unwrap() * 1e6 * result["seconds"].as_f64().unwrap();
        assert!(written as f64 >= put * 0.9, "the disk saw less than was acknowledged: {result}");
    }
    let with = [&short[..], &["--consumers", "1", "--take-batch", "50", "--max-lag", "1000", "--encrypt"]].concat();
    let result = channel(dir(&scratch), "load", &with);
    assert!(result["take_ev_s"].as_f64().unwrap() > 0.0, "{result}");
    assert!(result["depth"].as_u64().unwrap() <= 1000 + 2 * 10 + 17 * 50, "{result}");
    assert!(is_empty(scratch.path()), "the channel is removed");
}

#[test]
fn a_load_says_how_evenly_it_went_and_what_the_disk_itself_takes() {
    let scratch = scratch();
    let short =
        ["--warmup", "0.05", "--seconds", "0.3", "--producers", "2", "--consumers", "1", "--raw-flushes", "0.05"];
    let result = channel(dir(&scratch), "load", &short);
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{result}"));
    let pause = &result["pause_us"];
    assert!(number(&pause["p50"]) <= number(&pause["longest_ms"]) * 1e3 * 1.01, "{result}");
    assert!(number(&pause["longest_ended_s"]) <= number(&result["seconds"]) * 1.01, "{result}");
    let samples = result["memory"]["rss_mib"].as_array().unwrap().len();
    assert!((2..=11).contains(&samples), "the begin, the end, and what is between: {result}");
    let raw = &result["raw_flush"];
    assert!(number(&raw["before_us"]["p99_9"]) <= number(&raw["before_us"]["max"]), "{result}");
    assert!(number(&raw["longest_pause_of_max"]) <= number(&raw["longest_pause_of_p99_9"]), "{result}");
    assert!(is_empty(scratch.path()), "the file and the channel are removed");
}

#[test]
fn an_open_loop_never_sends_more_than_it_was_told_to() {
    let scratch = scratch();
    let begin = std::time::Instant::now();
    let open = ["--rate", "1000", "--producers", "2", "--seconds", "0.5", "--warmup", "0.1"];
    let result = channel(dir(&scratch), "load", &open);
    // What a slow machine did not send in time it sends later: the sum is what is bounded.
    let sent = result["put_ev_s"].as_f64().unwrap() * result["seconds"].as_f64().unwrap();
    assert!(sent > 0.0 && sent <= 1000.0 * begin.elapsed().as_secs_f64() + 2.0 * 10.0, "{result}");
}

#[test]
fn what_was_filled_and_killed_is_there_again_and_drains_to_nothing() {
    let scratch = scratch();
    let fill = ["--events", "1005", "--producers", "3", "--payload", "log"];
    let killed = [&["channel", "--json", "--dir", dir(&scratch), "--mode", "fill", "--kill"][..], &fill[..]].concat();
    let output = bench(&killed);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(9));
    let printed: Value = serde_json::from_slice(&output.stdout).expect("it prints before it dies");
    assert_eq!(printed["depth"], 1005);

    let opened = channel(dir(&scratch), "open", &[]);
    assert_eq!(opened["depth"], 1005);
    assert!(opened["ready_s"].as_f64().unwrap() <= opened["first_take_s"].as_f64().unwrap(), "{opened}");

    let drained = channel(dir(&scratch), "drain", &["--seconds", "60", "--consumers", "2"]);
    assert_eq!(drained["depth"], 0, "{drained}");
    assert_eq!(channel(dir(&scratch), "open", &[])["depth"], 0);
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let scratch = scratch();
    let output = bench(&["channel", "--dir", dir(&scratch), "--mode", "open"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("--mode fill"), "{told}");
}

#[test]
fn without_json_there_is_a_table_for_people() {
    let scratch = scratch();
    let fast = ["--seconds", "0.05", "--warmup", "0.01"];
    let output = bench(&[&["channel", "--dir", dir(&scratch)][..], &fast[..]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("put_ev_s")), "{text}");
    let output =
        bench(&["device", "--dir", dir(&scratch), "--bytes", "1M", "--block", "4K", "--depth", "1", "--rounds", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("fastest durable writer"), "{text}");
}

#[test]
fn a_backlog_is_filled_killed_and_found_again_with_and_without_its_checkpoint() {
    let scratch = scratch();
    // With 1 KiB, twice the hot tail is 131,072 events: more than these, so that the memory is that of a full tail.
    let result = json(&[
        "backlog",
        "--json",
        "--dir",
        dir(&scratch),
        "--events",
        "150000",
        "--size",
        "1K",
        "--rounds",
        "1",
        "--checkpoint-interval",
        "0.001",
        "--put-seconds",
        "0.05",
        "--put-rounds",
        "2",
    ]);
    assert!(result["queue_bytes_per_event"].as_f64().unwrap() > 0.0, "{result}");
    let (with, without) = (&result["open_with_checkpoint"], &result["open_without_checkpoint"]);
    assert!(with["segments_vouched_for"].as_u64().unwrap() > 0, "{result}");
    assert_eq!(without["segments_vouched_for"], 0, "{result}");
    assert!(without["frames_read"].as_u64() > with["frames_read"].as_u64(), "{result}");
    for opened in [with, without] {
        assert!(opened["ready_s"]["median"].as_f64() <= opened["first_take_s"]["median"].as_f64(), "{result}");
    }
    assert!(result["disk_bytes"].as_u64().unwrap() >= 150_000 * 1024, "{result}");
    let puts = &result["puts"];
    for figure in ["beside_mb_s", "alone_mb_s", "beside_of_alone"] {
        assert!(puts[figure]["median"].as_f64().unwrap() > 0.0, "{figure}: {result}");
    }
    assert!(is_empty(scratch.path()), "the queue is removed");
}

#[test]
fn an_idle_channel_is_looked_at_before_and_after_its_first_event() {
    let scratch = scratch();
    let result = json(&["idle", "--json", "--dir", dir(&scratch), "--seconds", "0.2"]);
    for moment in ["opened", "used"] {
        let idle = &result[moment];
        assert!(idle["wake_ups_per_s"].as_f64().is_some() && idle["cpu_percent"].as_f64().is_some(), "{result}");
        assert!(idle["threads"].as_u64().unwrap() > 1 && idle["resident_mib"].as_f64().unwrap() > 0.0, "{result}");
    }
    assert!(result["used"]["disk_bytes"].as_u64() > result["opened"]["disk_bytes"].as_u64(), "{result}");
    assert!(is_empty(scratch.path()));
}

#[test]
fn the_goals_are_ratios_of_the_same_rounds() {
    let scratch = scratch();
    let quick = ["--rounds", "2", "--seconds", "0.2", "--bytes", "16M", "--drain-events", "1000", "--warm-pool", "4M"];
    let result = json(&[&["goals", "--json", "--dir", dir(&scratch)][..], &quick[..]].concat());
    let rows = result["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["rounds"] == 2), "every figure is of every round: {result}");
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} of {row}"));
        assert!(number("min") <= number("median") && number("median") <= number("max"), "{row}");
    }
    for goal in ["P1", "P2", "P4", "P7", "P10", "P11", "P12", "P13"] {
        assert!(rows.iter().any(|row| row["goal"] == goal), "{goal} is missing: {result}");
    }
    assert!(is_empty(scratch.path()), "nothing stays");
}

#[test]
fn goals_that_are_named_are_the_only_ones() {
    let scratch = scratch();
    let quick = ["--rounds", "1", "--seconds", "0.05", "--bytes", "16M", "--warm-pool", "4M", "--only", "p4,P10"];
    let result = json(&[&["goals", "--json", "--dir", dir(&scratch)][..], &quick[..]].concat());
    let goals: std::collections::BTreeSet<&str> =
        result["rows"].as_array().unwrap().iter().map(|row| row["goal"].as_str().unwrap()).collect();
    assert_eq!(goals.into_iter().collect::<Vec<_>>(), ["P10", "P4"], "{result}");
    assert!(is_empty(scratch.path()), "nothing stays");
    let output = bench(&["goals", "--dir", dir(&scratch), "--only", "P99"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("P99"), "a goal without a figure is refused");
}

#[test]
fn an_agent_is_measured_beside_its_parts_and_delivers_what_it_accepts() {
    let scratch = scratch();
    let penstock = system_tests::penstock::binary().display().to_string();
    for (source, rounds) in [("avro", 2), ("http", 1), ("netcat", 1)] {
        let rounds = rounds.to_string();
        let quick =
            ["--seconds", "0.2", "--warmup", "0.1", "--drain-events", "2000", "--connections", "2", "--batch", "10"];
        let what = ["agent", "--json", "--dir", dir(&scratch), "--penstock", &penstock, "--source", source];
        let result = json(&[&what[..], &quick, &["--rounds", &rounds]].concat());
        let row = |what: &str| {
            let rows = result["rows"].as_array().unwrap();
            rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("{what} is missing: {result}"))
        };
        // That all of it was delivered, the command has waited for; so short a load has hardly a rate.
        assert_eq!(row("events refused")["max"], 0.0, "{result}");
        for part in ["whole", "source alone", "channel alone", "sink alone"] {
            assert_eq!(row(&format!("{part}, MB/s"))["rounds"].as_u64(), rounds.parse().ok(), "{result}");
        }
    }
    assert!(is_empty(scratch.path()), "nothing stays");
}

#[test]
fn an_agent_that_is_not_there_is_named() {
    let scratch = scratch();
    let output = bench(&["agent", "--dir", dir(&scratch), "--penstock", "/nowhere/penstock"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("/nowhere/penstock"), "{told}");
}
