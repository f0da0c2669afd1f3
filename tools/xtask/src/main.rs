//! `cargo xtask`: chores of the repository. `tidy` checks what the compiler cannot: the arrows between crates, a header in
//! every module, component tables against folders, where `unsafe` may stand, links between documents.

mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => tidy::run(),
        _ => {
            eprintln!("usage: cargo xtask tidy");
            ExitCode::from(2)
        }
    }
}
