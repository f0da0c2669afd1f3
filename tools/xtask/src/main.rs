//! `cargo xtask`: chores of the repository. `tidy` checks what the compiler cannot: the arrows between crates, a header in
//! every module, component tables against folders, where `unsafe` may stand, links between documents. `prove` and `planted`
//! build and run the layers of the proof that nothing is lost, `tests/proof`.

mod tidy;

use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask tidy
       cargo xtask prove [--lane dev|ci|long] [--minutes N] [--seed N] [--record]
       cargo xtask prove LAYER [--cycles N] [--seconds N] [--seed N] [--jobs N]
       cargo xtask planted                 every planted bug: noticed or not, by which layer, how fast";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => tidy::run(),
        ["planted", rest @ ..] => prove(&[&["planted", "--cycles", "1000", "--jobs", "2"], rest].concat()),
        ["prove", rest @ ..] => match rest.first() {
            Some(layer) if !layer.starts_with('-') => prove(rest),
            _ => prove(&[&["lane"], rest].concat()),
        },
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Builds the agent, which some layers kill, and the proof, and runs it.
fn prove(arguments: &[&str]) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = |arguments: &[&str]| Command::new(&cargo).args(arguments).status().is_ok_and(|status| status.success());
    let has_agent = std::env::var_os("PENSTOCK_BIN").is_some();
    if !has_agent && !run(&["build", "--quiet", "--package", "agent", "--bins"]) {
        return ExitCode::FAILURE;
    }
    let proof = ["run", "--quiet", "--profile", "proof", "--package", "proof", "--"];
    if run(&[&proof, arguments].concat()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
