//! The command line: one definition for parsing and for help.

use clap::{Parser, Subcommand};

const AFTER: &str = "Put it on an idle machine, on the disk that the node will have, and read docs/performance.md: \
absolute numbers move with the machine, ratios of one run do not.";

/// Measures what a disk can do, and how much of it a Penstock channel reaches.
#[derive(Debug, Parser)]
#[command(name = "penstock-bench", version, about, after_help = AFTER, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Device(crate::device::Arguments),
    Channel(crate::channel::Arguments),
    Goals(crate::goals::Arguments),
    Backlog(crate::backlog::Arguments),
    Idle(crate::idle::Arguments),
    Agent(crate::agent::Arguments),
    Plan(crate::plan::Arguments),
    Count(crate::count::Arguments),
    Budget(crate::budget::Arguments),
}

/// Bytes, as `4096`, `64K`, `1M` or `2G` (powers of 1024).
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|letter: char| !letter.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit.trim_end_matches("iB").to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{unit:?} is no unit: use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    number.checked_shl(shift).filter(|bytes| bytes >> shift == number).ok_or_else(|| format!("{text} is too much"))
}

/// Seconds, also parts of one; more than none.
pub(crate) fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    let time = std::time::Duration::try_from_secs_f64(number).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("no time at all measures nothing".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_have_units() {
        for (text, expected) in [("0", 0), ("4096", 4096), ("64K", 64 << 10), ("1MiB", 1 << 20), ("2g", 2 << 30)] {
            assert_eq!(bytes(text), Ok(expected));
        }
        for text in ["", "K", "1X", "-1", "1.5K", "99999999999999T"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_time_is_refused() {
        assert_eq!(seconds("0.25"), Ok(std::time::Duration::from_millis(250)));
        for text in ["0", "-1", "x", "NaN"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
