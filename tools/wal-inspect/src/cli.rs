//! The command line: verbs and their options, one definition for parsing and for help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "Exit codes: 0 clean, 1 findings, 2 usage, 3 the host refused to read, \
4 keys missing or wrong, 7 written by a newer version";

/// Shows and verifies what a Penstock channel has on its disks. Reads only.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// JSON lines, also on a terminal
    #[arg(long, global = true, conflicts_with = "table")]
    pub(crate) json: bool,
    /// A table, also into a file or a pipe
    #[arg(long, global = true)]
    pub(crate) table: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// One screen: directories, events, keys, verdict
    Info {
        #[command(flatten)]
        place: Place,
    },
    /// Check what is there, and say what is not
    Verify {
        /// structure: headers; checksum: every byte; full: also decrypt and decode every event
        #[arg(long, value_enum, default_value_t = Level::Checksum)]
        level: Level,
        #[command(flatten)]
        place: Place,
    },
    /// Print events in channel order
    Cat {
        #[arg(long, value_enum, default_value_t = Output::Jsonl)]
        output: Output,
        /// Which events: not yet delivered, settled ones that are still on the disk, or both
        #[arg(long, value_enum, default_value_t = State::Pending)]
        state: State,
        /// Stop after so many events
        #[arg(long)]
        limit: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// Print how recovery decides about bytes that are no frame
    Cases,
    /// Print the byte tables of the format
    Layout,
}

/// Where to look.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Key file of the channel, as the agent uses it; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Vec<PathBuf>,
    /// All data directories of one channel
    #[arg(required = true, value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Level {
    Structure,
    Checksum,
    Full,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Structure => "structure",
            Level::Checksum => "checksum",
            Level::Full => "full",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Output {
    Jsonl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Pending,
    Settled,
    All,
}

/// How data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Table,
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
