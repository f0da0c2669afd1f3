//! `proof`: the layers of the proof that nothing is lost, each a subcommand, and the lanes that put them together.
//!
//! Run it as `cargo xtask prove`. Each layer is one module with a function `run(&Budget) -> Tally`; `docs/reliability.md`
//! says what each of them shows.

mod tally;

use std::process::ExitCode;

fn main() -> ExitCode {
    let _ = tally::Tally::new("nothing", "cycles").line();
    ExitCode::SUCCESS
}
