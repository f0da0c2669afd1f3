//! `penstock-bench budget`: instructions for each event, counted by valgrind, against figures that were committed.
//!
//! Time on a shared machine tells little, instructions tell the same each time: one more copy, allocation or checksum of each
//! event shows. Each figure is the difference of two runs of `penstock-bench count`, divided by the events between them, so
//! that starting and ending drop out. What the kernel does is not in it, nor what waits: a budget watches the code, and
//! `penstock-bench goals` the speed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use clap::Args;

use crate::numbers::rounded;

/// More than the same build ever differed from itself, less than what one more copy of an event costs.
const TOLERANCE: f64 = 0.03;
/// glibc copies long ranges with one instruction that counts once for each byte: then nothing else would show. With vectors
/// a copy counts as what it is.
const COPY_WITH_VECTORS: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000";
const REFRESH: &str = "cargo run --release --package benches -- budget --write";

/// Compare instructions for each event with the figures in a file, counted by valgrind
///
/// Fails when a figure is more than 3 % above its budget, and says so when one is that much below.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The figures
    #[arg(long, value_name = "FILE", default_value = "benches/budgets.txt")]
    file: PathBuf,
    /// Write what was counted into the file
    #[arg(long)]
    write: bool,
    /// Where the counted channels live; a file system in memory
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,
}

/// What is counted.
struct Figure {
    name: &'static str,
    what: &'static str,
    /// Of `penstock-bench count`.
    arguments: &'static [&'static str],
    /// Written natively first: what the counted run finds.
    prepare: bool,
    /// How often in the two runs.
    less: u64,
    more: u64,
    /// Another figure that is part of this one.
    without: Option<&'static str>,
}

const FIGURES: [Figure; 6] = [
    Figure {
        name: "put",
        what: "an event of 1 KiB, put in batches of 100",
        arguments: &["--op", "put"],
        prepare: false,
        less: 5_000,
        more: 15_000,
        without: None,
    },
    Figure {
        name: "put-alone",
        what: "an event of 100 bytes, put by itself",
        arguments: &["--op", "put", "--batch", "1", "--size", "100"],
        prepare: false,
        less: 500,
        more: 1_500,
        without: None,
    },
    Figure {
        name: "take",
        what: "an event taken and settled, in batches of 100, from memory",
        arguments: &["--op", "take"],
        prepare: false,
        less: 5_000,
        more: 15_000,
        without: Some("put"),
    },
    Figure {
        name: "seal",
        what: "a frame of 256 KiB: header and checksums",
        arguments: &["--op", "seal"],
        prepare: false,
        less: 20,
        more: 60,
        without: None,
    },
    Figure {
        name: "seal-encrypted",
        what: "a frame of 256 KiB: header, checksums, encryption",
        arguments: &["--op", "seal", "--encrypt"],
        prepare: false,
        less: 20,
        more: 60,
        without: None,
    },
    Figure {
        name: "recover",
        // Most of it is the newest segment, whose rest was never written: that is the same for the same events.
        what: "an event of 1 KiB found again without a checkpoint, of 40,000 in segments of 8 MiB",
        arguments: &["--op", "recover"],
        prepare: true,
        less: 0,
        more: 40_000,
        without: None,
    },
];

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        println!("SKIPPED: budget: the figures are those of x86-64");
        return Ok(());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: budget: valgrind is not installed");
        return Ok(());
    }
    let budgets = if arguments.write { Vec::new() } else { read(&arguments.file)? };
    let mut counted: Vec<(&str, f64)> = Vec::new();
    let (mut report, mut failed) = (String::new(), false);
    for figure in &FIGURES {
        let mut count = figure.count(&arguments.dir, &counted)?;
        let budget = budgets.iter().find(|(name, _)| name == figure.name).map(|(_, budget)| *budget);
        let mut verdict = Verdict::of(count, budget);
        if verdict == Verdict::Above {
            // Threads may have taken turns in an unlucky order: that does not happen twice.
            count = count.min(figure.count(&arguments.dir, &counted)?);
            verdict = Verdict::of(count, budget);
        }
        counted.push((figure.name, count));
        if !arguments.write {
            failed |= verdict.fails();
            let budget = budget.map_or_else(|| "no budget".to_owned(), |budget| format!("budget {budget}"));
            let (word, count) = (verdict.word(), rounded(count));
            writeln!(report, "{word:<8}{:<16}{count:>10}, {budget:<16} {}", figure.name, figure.what)
                .expect("a String takes all");
        }
    }
    if arguments.write {
        return std::fs::write(&arguments.file, text(&counted))
            .map_err(|error| format!("{}: {error}", arguments.file.display()));
    }
    print!("{report}");
    if failed {
        let (file, made) = (arguments.file.display(), made_with(&arguments.file));
        return Err(format!(
            "more instructions than {file} allows ({made}). If that is the price of something worth it, or the compiler is \
             another one, say so in the commit and run: {REFRESH}"
        ));
    }
    if report.contains(Verdict::Below.word()) {
        println!("what is below its budget can be lowered: {REFRESH}");
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Within,
    Above,
    Below,
    Unknown,
}

impl Verdict {
    fn of(count: f64, budget: Option<f64>) -> Verdict {
        match budget {
            None => Verdict::Unknown,
            Some(budget) if count > budget * (1.0 + TOLERANCE) => Verdict::Above,
            Some(budget) if count < budget * (1.0 - TOLERANCE) => Verdict::Below,
            Some(_) => Verdict::Within,
        }
    }

    fn fails(self) -> bool {
        matches!(self, Verdict::Above | Verdict::Unknown)
    }

    fn word(self) -> &'static str {
        match self {
            Verdict::Within => "ok",
            Verdict::Above => "ABOVE",
            Verdict::Below => "below",
            Verdict::Unknown => "UNKNOWN",
        }
    }
}

impl Figure {
    /// Instructions for each event, or frame.
    fn count(&self, dir: &Path, counted: &[(&str, f64)]) -> Result<f64, String> {
        let (less, more) = thread::scope(|scope| {
            let less = scope.spawn(|| self.instructions(dir, self.less));
            let more = self.instructions(dir, self.more);
            (less.join().unwrap_or_else(|_| Err("panicked".to_owned())), more)
        });
        let each = (more? as f64 - less? as f64) / (self.more - self.less) as f64;
        let part = self.without.and_then(|name| counted.iter().find(|(counted, _)| *counted == name));
        Ok(each - part.map_or(0.0, |(_, count)| *count))
    }

    /// All instructions of one run.
    fn instructions(&self, dir: &Path, events: u64) -> Result<u64, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let scratch = dir.join(format!("penstock-budget-{}-{}-{events}", std::process::id(), self.name));
        std::fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
        let counts = scratch.join("callgrind");
        let events = events.to_string();
        let common = |command: &mut Command| {
            command.args(["--events", &events, "--dir"]).arg(&scratch);
        };
        let counted = self.prepared(&own, &common).and_then(|()| {
            let mut command = Command::new("valgrind");
            command.args(["--quiet", "--tool=callgrind"]);
            command.arg(format!("--callgrind-out-file={}", counts.display())).arg(&own).arg("count");
            command.args(self.arguments).env("GLIBC_TUNABLES", COPY_WITH_VECTORS);
            common(&mut command);
            succeed(&mut command)?;
            let text = std::fs::read_to_string(&counts).map_err(|error| format!("{}: {error}", counts.display()))?;
            total(&text).ok_or_else(|| format!("{}: no totals in it", counts.display()))
        });
        std::fs::remove_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
        counted
    }

    fn prepared(&self, own: &Path, common: &dyn Fn(&mut Command)) -> Result<(), String> {
        if !self.prepare {
            return Ok(());
        }
        let mut command = Command::new(own);
        command.args(["count", "--op", "fill"]);
        common(&mut command);
        succeed(&mut command)
    }
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Instructions of the whole run, in what callgrind writes.
fn total(callgrind: &str) -> Option<u64> {
    callgrind.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

/// The file: a name and a number in each line, `#` begins what is for people.
fn read(file: &Path) -> Result<Vec<(String, f64)>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(index, line)| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let parsed = match words[..] {
                [name, number] => number.parse().ok().map(|number| (name.to_owned(), number)),
                _ => None,
            };
            parsed.ok_or_else(|| {
                format!("{}: line {}: a name and a number belong here; {REFRESH}", file.display(), index + 1)
            })
        })
        .collect()
}

fn text(counted: &[(&str, f64)]) -> String {
    let mut out = String::from("# Instructions as valgrind counts them on x86-64; docs/performance.md says how.\n");
    writeln!(out, "# Written by: {REFRESH}").expect("a String takes all");
    writeln!(out, "{MADE_WITH}{}\n", compiler()).expect("a String takes all");
    for (figure, (name, count)) in FIGURES.iter().zip(counted) {
        writeln!(out, "# {}\n{name} {}", figure.what, rounded(*count)).expect("a String takes all");
    }
    out
}

const MADE_WITH: &str = "# Made with ";

/// Another compiler makes other instructions.
fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().ok();
    let version = output.and_then(|output| String::from_utf8(output.stdout).ok());
    version.map_or_else(|| "an unknown rustc".to_owned(), |version| version.trim().to_owned())
}

fn made_with(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let theirs = text.lines().find_map(|line| line.strip_prefix(MADE_WITH)).unwrap_or("an unknown rustc").to_owned();
    format!("made with {theirs}, here is {}", compiler())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_budget_fails_and_less_is_only_said() {
        let verdicts = [(1000.0, Verdict::Within), (1029.0, Verdict::Within), (1031.0, Verdict::Above)];
        for (count, expected) in verdicts.into_iter().chain([(971.0, Verdict::Within), (969.0, Verdict::Below)]) {
            assert_eq!(Verdict::of(count, Some(1000.0)), expected, "{count}");
        }
        let fails = [Verdict::Within, Verdict::Above, Verdict::Below, Verdict::Unknown].map(Verdict::fails);
        assert_eq!(fails, [false, true, false, true]);
        assert_eq!(Verdict::of(1.0, None), Verdict::Unknown);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("budgets.txt");
        let counted: Vec<(&str, f64)> =
            FIGURES.iter().zip(1..).map(|(figure, n)| (figure.name, f64::from(n))).collect();
        std::fs::write(&file, text(&counted)).unwrap();
        let read_again = read(&file).unwrap();
        assert_eq!(read_again.iter().map(|(name, count)| (name.as_str(), *count)).collect::<Vec<_>>(), counted);
        std::fs::write(&file, "put\n").unwrap();
        let error = read(&file).unwrap_err();
        assert!(error.contains("budgets.txt: line 1") && error.contains("--write"), "{error}");
    }

    #[test]
    fn the_totals_are_found_in_what_callgrind_writes() {
        assert_eq!(total("version: 1\nevents: Ir\nfn=(1)\n1 5\n\ntotals: 96317863\n"), Some(96_317_863));
        assert_eq!(total("events: Ir\n"), None);
    }
}
