//! `wal-inspect`: what a channel has on its disks, read-only, beside a running agent or on what an accident left.
//!
//! # wal-inspect
//!
//! ```text
//! wal-inspect info /data/1 /data/2                      one screen: directories, events, keys, verdict
//! wal-inspect verify --level full /data/1 /data/2       reads every frame; --key-file F for an encrypted channel
//! wal-inspect cat --output jsonl /data/1 /data/2        pending events, one JSON object a line, in channel order
//! wal-inspect cases                                     how recovery decides about bytes that are no frame
//! wal-inspect layout                                    the byte tables of the format
//! ```
//!
//! Name all data directories of one channel, as in `dataDirs`; both `<dataDir>` and `<dataDir>/penstock` will do. No
//! directory is ever opened for writing and no lock is tried, so it may be used while the agent runs: what is in
//! flight then is not damage. Without the keys of an encrypted channel structure, counts and checksums still work.
//! Standard output is data: a table on a terminal (or with `--table`), JSON lines otherwise (or with `--json`), each
//! with `schema` and `type`. Messages go to standard error.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | clean, complete |
//! | 1 | findings: damage, a directory missing, a partial listing |
//! | 2 | usage, or no channel in these directories |
//! | 3 | the host refused to read something |
//! | 4 | what was asked needs keys that are missing or wrong |
//! | 7 | written by a newer version; nothing is guessed |
//!
//! A fully static binary, to copy to a broken host:
//!
//! ```text
//! RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p wal-inspect --target x86_64-unknown-linux-gnu
//! ldd target/x86_64-unknown-linux-gnu/release/wal-inspect      # says: statically linked
//! strip target/x86_64-unknown-linux-gnu/release/wal-inspect    # 2.7 MB; 31 MB with line numbers for a crash report
//! ```

mod cat;
mod cli;
mod exit;
mod facts;
mod places;
mod report;
mod tables;
mod text;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Form, Verb};
use exit::{Exit, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = run(cli, &mut out).and_then(|exit| {
        out.flush()?;
        Ok(exit)
    });
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        // The reader has seen enough (`| head`).
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(Exit::Clean.code()),
        Err(failure) => {
            say(&failure.to_string());
            ExitCode::from(failure.exit().code())
        }
    }
}

fn run(cli: Cli, out: &mut dyn Write) -> Result<Exit, Failure> {
    let form = match (cli.json, cli.table) {
        (true, _) => Form::Json,
        (_, true) => Form::Table,
        _ if io::stdout().is_terminal() => Form::Table,
        _ => Form::Json,
    };
    match cli.verb {
        Verb::Info { place } => report::info(&place, form, out),
        Verb::Verify { level, place } => report::verify(level, &place, form, out),
        Verb::Cat { output: cli::Output::Jsonl, state, limit, place } => cat::cat(&place, state, limit, out),
        Verb::Cases => Ok(tables::cases(form, out)?),
        Verb::Layout => Ok(tables::layout(form, out)?),
    }
}

/// A line for the person who runs this. Standard error may be closed; there is nobody left to tell.
fn say(line: &str) {
    let _nobody_left = writeln!(io::stderr(), "wal-inspect: {}", text::shown(line));
}
