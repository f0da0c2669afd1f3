//! Makes golden directories: `cargo run -p channel --features sim --example golden -- NAME...`
//!
//! Each name is a folder of `channel/tests/golden/` with a `plan.txt`, the history to write. The directories and
//! `expected.txt` are put beside it. What is there already is never changed: a new writer gets a new name.

use std::path::Path;
use std::process::ExitCode;

use channel::simulation::{Plan, golden};

fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in std::env::args().skip(1) {
        if let Err(why) = make(&folder.join(&name)) {
            eprintln!("{name}: {why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn make(root: &Path) -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let plan = Plan::parse(&std::fs::read_to_string(root.join("plan.txt")).map_err(told)?)?;
    let files = golden::leave(&plan)?;
    golden::write(root, &files).map_err(told)?;
    let copy = tempfile::tempdir().map_err(told)?;
    golden::write(copy.path(), &files).map_err(told)?;
    std::fs::write(root.join("expected.txt"), golden::describe(copy.path(), &plan)?).map_err(told)
}
