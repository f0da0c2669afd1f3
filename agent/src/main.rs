//! `penstock`: the agent's command line. Everything is in the library `agent`.

fn main() -> std::process::ExitCode {
    agent::cli::run(std::env::args_os())
}
