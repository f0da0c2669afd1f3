//! What the system tests share: Penstock's own agent, the real servers before and behind it, and waiting with an end.
//!
//! Promises: no process outlives the test that started it (a parent-death signal and `Drop`); every wait ends, stops at once
//! when the process it waits for has died, and shows the last lines of that process's log; every server has a directory of
//! its own. What the tests assert is left to `tests/tests/`.

pub mod avro_file;
pub mod books;
pub mod events;
pub mod flume;
pub mod hdfs;
pub mod http;
pub mod java;
pub mod kdc;
pub mod kill_loop;
pub mod next_hop;
pub mod penstock;
pub mod ports;
pub mod process;
pub mod producers;
pub mod wait;

pub use wait::until;

/// Says why a test did not run, past the capture of the test harness, in the form that `.ci/run` compares with `.ci/skips`.
pub fn skipped(why: &str) {
    use std::io::Write;
    if writeln!(std::io::stderr(), "SKIPPED: {why}").is_err() {
        panic!("cannot say that a test is skipped: {why}");
    }
}

/// The repository's top folder.
pub fn repository() -> std::path::PathBuf {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the repository").to_path_buf()
}
