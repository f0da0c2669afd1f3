//! The command line: `penstock agent`, `validate`, `keys`, `config-reference`, `version`.
//!
//! Accepts every flag of `flume-ng agent`: those that mean nothing without a JVM say so once, those that are not
//! built are refused by name. Exit codes are those of `launch`; clap's own errors exit with 2 as well.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use wal::keys::KeyFile;

use crate::channels::OWN_DIR;
use crate::config::load::{self, Location};
use crate::config::reference;
use crate::config::report::{self, Strictness};
use crate::launch::{self, EXIT_FAILED, EXIT_REFUSED, EXIT_STOPPED, LaunchOptions};
use crate::telemetry::http::DEFAULT_PORT;

#[derive(Debug, Parser)]
#[command(
    name = "penstock",
    version,
    about = "Carries log events from the machines that make them to the store that keeps them, and loses none.",
    after_help = "Exit codes: 0 stopped as asked, or all is well; 1 could not start or go on; 2 the command line or \
                  the configuration was refused; 3 stopped, but something was lost or did not end in time."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an agent from a Flume configuration.
    #[command(alias = "node")]
    Agent(Box<AgentArgs>),
    /// Check a configuration without any side effect; exits with 2 when there is something to fix.
    Validate(ConfigArgs),
    /// Make key files for encrypted channels.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Measure the disks of a channel again, and keep what is found for its next start. The agent must not run.
    Calibrate {
        /// Data directories as the configuration names them.
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
    /// Print every key of every component, as docs/configuration.md has them.
    ConfigReference,
    /// Print the version.
    Version,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Write a new key file, readable by its owner only. Never overwrites.
    Generate {
        file: PathBuf,
        /// The id of the key, for `encryption.activeKey`.
        #[arg(long, default_value = "k1")]
        id: String,
    },
    /// Add a key to a key file. Agents that run seal with it from their next look on; what is there stays readable.
    Rotate {
        file: PathBuf,
        /// What `encryption.activeKey` says. The new key is called ID.2, the next one ID.3.
        #[arg(long, default_value = "k1")]
        id: String,
    },
}

/// Where the configuration is.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// Directory with flume-env.sh and Hadoop's core-site.xml and hdfs-site.xml.
    #[arg(short = 'c', long = "conf", value_name = "DIR")]
    conf: Option<PathBuf>,
    /// The configuration; may be given several times, the last one wins.
    #[arg(short = 'f', long = "conf-file", value_name = "FILE", required = true)]
    conf_file: Vec<PathBuf>,
    /// The agent in the configuration that is meant.
    #[arg(short = 'n', long = "name", value_name = "NAME")]
    name: String,
    /// A property for ${sys:…} and for flume.monitoring.*.
    #[arg(short = 'D', value_name = "KEY=VALUE", allow_hyphen_values = true)]
    define: Vec<String>,
}

#[derive(Debug, Args)]
struct AgentArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Leave out a component that has an error, as Flume does, instead of refusing to start.
    #[arg(long)]
    drop_broken: bool,
    /// Do not look whether the configuration has changed.
    #[arg(long)]
    no_reload_conf: bool,
    /// Seconds between two looks.
    #[arg(short = 'i', long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    poll_interval: u32,
    /// Seconds that a stop may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    stop_limit: u32,
    /// Only say whether it would run.
    #[arg(short = 'd', long)]
    dryrun: bool,
    /// Accepted without effect: there is no class path.
    #[arg(short = 'C', long, value_name = "PATH")]
    classpath: Option<String>,
    /// Accepted without effect: there are no plug-ins.
    #[arg(long, value_name = "DIRS")]
    plugins_path: Option<String>,
    /// Accepted without effect: there is no JVM.
    #[arg(short = 'X', value_name = "OPTION", allow_hyphen_values = true)]
    jvm: Vec<String>,
    /// Refused: configuration from ZooKeeper.
    #[arg(short = 'z', long = "zkConnString", value_name = "ADDRESSES", hide = true)]
    zookeeper: Option<String>,
    /// Refused: base path in ZooKeeper.
    #[arg(short = 'p', long = "zkBasePath", value_name = "PATH", hide = true)]
    zookeeper_path: Option<String>,
    /// Refused: configuration from a URI.
    #[arg(short = 'u', long, value_name = "URI", hide = true)]
    conf_uri: Vec<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    conf_user: Option<String>,
    #[arg(long, value_name = "PASSWORD", hide = true)]
    conf_password: Option<String>,
    #[arg(short = 'a', long, value_name = "CLASS", hide = true)]
    auth_provider: Option<String>,
    #[arg(long = "conf-provider", value_name = "CLASS", hide = true)]
    conf_provider: Option<String>,
    #[arg(short = 'b', long, value_name = "DIR", hide = true)]
    backup_directory: Option<PathBuf>,
}

/// Runs the command line `arguments`, of which the first is the program.
pub fn run(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    // `-prov` is the one flag of Flume that is neither short nor long.
    let arguments = arguments.into_iter().map(|word| if word == "-prov" { "--conf-provider".into() } else { word });
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            // A closed terminal is no reason to fail differently.
            drop(error.print());
            return ExitCode::from(if failed { EXIT_REFUSED } else { EXIT_STOPPED });
        }
    };
    match cli.command {
        Command::Agent(arguments) => agent(*arguments),
        Command::Validate(arguments) => validate(arguments),
        Command::Keys { command: KeysCommand::Generate { file, id } } => match KeyFile::generate(&file, &id) {
            Ok(()) => say(&format!("key {id} is in {}; keep a copy where the data is not", file.display())),
            Err(error) => complain(&error.to_string(), EXIT_FAILED),
        },
        Command::Keys { command: KeysCommand::Rotate { file, id } } => match KeyFile::rotate(&file, &id) {
            Ok(new) => say(&format!(
                "key {new} is in {}; agents with activeKey = {id} seal with it from their next look on. Keep a copy where the \
                 data is not, and keep the older keys: they open what was sealed with them",
                file.display()
            )),
            Err(error) => complain(&error.to_string(), EXIT_FAILED),
        },
        Command::Calibrate { dirs } => calibrate(&dirs),
        Command::ConfigReference => say(reference::markdown().trim_end()),
        Command::Version => say(&format!("penstock {}", env!("CARGO_PKG_VERSION"))),
    }
}

fn calibrate(dirs: &[PathBuf]) -> ExitCode {
    for dir in dirs {
        let own = dir.join(OWN_DIR);
        match channel::calibrate(&own, None) {
            Ok(None) => say(&format!(
                "{}: not measured: in memory, without direct I/O, or too little space is free",
                own.display()
            )),
            Ok(Some(measured)) => say(&format!(
                "{}: {}, {} writes in flight: {} MiB/s with each write durable by itself, {} MiB/s with one flush for many; one \
                 durable page takes {} µs",
                own.display(),
                measured.tuning.durability.name(),
                measured.tuning.depth,
                measured.per_write_kib_s >> 10,
                measured.shared_flush_kib_s >> 10,
                measured.latency_us
            )),
            Err(error) => return complain(&error.to_string(), EXIT_FAILED),
        };
    }
    ExitCode::from(EXIT_STOPPED)
}

fn say(text: &str) -> ExitCode {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::from(EXIT_STOPPED),
        Err(_) => ExitCode::from(EXIT_FAILED),
    }
}

fn complain(text: &str, code: u8) -> ExitCode {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "penstock: {text}"));
    ExitCode::from(code)
}

fn location(config: ConfigArgs, drop_broken: bool) -> Location {
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (word, String::new()),
    };
    let system: HashMap<String, String> = config.define.into_iter().map(pair).collect();
    Location { files: config.conf_file, conf_dir: config.conf, agent: config.name, system, drop_broken }
}

fn agent(arguments: AgentArgs) -> ExitCode {
    if let Some(refusal) = refusal(&arguments) {
        return complain(&refusal, EXIT_REFUSED);
    }
    if arguments.dryrun {
        return check(&location(arguments.config, arguments.drop_broken), false);
    }
    let inert: Vec<&str> = [
        arguments.classpath.is_some().then_some("--classpath"),
        arguments.plugins_path.is_some().then_some("--plugins-path"),
        (!arguments.jvm.is_empty()).then_some("-X"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let location = location(arguments.config, arguments.drop_broken);
    start_log(location.system.get("flume.root.logger"));
    if !inert.is_empty() {
        tracing::info!("{} accepted without effect: there is no JVM", inert.join(", "));
    }
    let metrics_port = match metrics_port(&location.system) {
        Ok(port) => port,
        Err(problem) => return complain(&problem, EXIT_REFUSED),
    };
    let poll = Duration::from_secs(u64::from(arguments.poll_interval));
    launch::run(LaunchOptions {
        location,
        poll_interval: (!arguments.no_reload_conf).then_some(poll),
        stop_limit: Duration::from_secs(u64::from(arguments.stop_limit)),
        metrics_port,
    })
}

/// What of Flume's command line is not built, with what to do instead.
fn refusal(arguments: &AgentArgs) -> Option<String> {
    let file = "Put the configuration into a file and name it with --conf-file";
    [
        (arguments.zookeeper.is_some() || arguments.zookeeper_path.is_some(), "-z, -p: ZooKeeper is", file),
        (!arguments.conf_uri.is_empty(), "--conf-uri is", file),
        (arguments.conf_user.is_some() || arguments.conf_password.is_some(), "--conf-user, --conf-password are", file),
        (arguments.auth_provider.is_some(), "--auth-provider is", file),
        (arguments.conf_provider.is_some(), "--conf-provider is", file),
        (arguments.backup_directory.is_some(), "--backup-directory is", "Keep a copy of the file under another name"),
    ]
    .into_iter()
    .find_map(|(given, what, instead)| given.then(|| format!("{what} not supported. {instead}.")))
}

fn metrics_port(system: &HashMap<String, String>) -> Result<Option<u16>, String> {
    match system.get("flume.monitoring.type").map(String::as_str) {
        None | Some("") => Ok(None),
        Some(kind) if kind.eq_ignore_ascii_case("http") => match system.get("flume.monitoring.port") {
            None => Ok(Some(DEFAULT_PORT)),
            Some(port) => port.trim().parse().map(Some).map_err(|_| {
                format!("-Dflume.monitoring.port={port}: not a port. Give a number from 0 to 65535, or leave it out for {DEFAULT_PORT}.")
            }),
        },
        Some(other) => Err(format!("-Dflume.monitoring.type={other} is not supported. Use http, and scrape /metrics.")),
    }
}

/// Logs go to standard error; `-Dflume.root.logger=LEVEL,…` sets the level.
fn start_log(root_logger: Option<&String>) {
    let word = root_logger.and_then(|value| value.split(',').next()).unwrap_or("INFO").trim().to_ascii_uppercase();
    let level = match word.as_str() {
        "ALL" | "TRACE" => tracing::Level::TRACE,
        "DEBUG" => tracing::Level::DEBUG,
        "WARN" => tracing::Level::WARN,
        "ERROR" | "FATAL" | "OFF" => tracing::Level::ERROR,
        _ => tracing::Level::INFO,
    };
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    // Fails only when a test has set one already.
    drop(log.with_max_level(level).try_init());
}

fn validate(arguments: ConfigArgs) -> ExitCode {
    check(&location(arguments, false), true)
}

fn check(location: &Location, strict: bool) -> ExitCode {
    let contents = match load::read(location) {
        Ok(contents) => contents,
        Err(problem) => return complain(&format!("cannot read the configuration: {problem}"), EXIT_REFUSED),
    };
    let strictness = match (strict, location.drop_broken) {
        (true, _) => Strictness::Validate,
        (false, true) => Strictness::DropBroken,
        (false, false) => Strictness::Run,
    };
    let findings = load::build(location, &contents).findings;
    let mut lines = report::lines(&findings);
    lines.push(report::verdict(&findings, strictness));
    let said = say(&lines.join("\n"));
    if report::to_fix(&findings, strictness) > 0 { ExitCode::from(EXIT_REFUSED) } else { said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_flume_ng_is_accepted() {
        let line = "penstock agent -n a1 -c conf -f a.properties -f b.properties -Dk=v -Dflume.root.logger=INFO,console \
                    -Xmx512m -C lib/* --plugins-path p --no-reload-conf -i 5 -d";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Agent(arguments) = cli.command else { panic!("{cli:?}") };
        assert_eq!(refusal(&arguments), None);
        assert_eq!(arguments.jvm, ["mx512m"]);
        let location = location(arguments.config, false);
        assert_eq!(location.files.len(), 2);
        assert_eq!(location.system["flume.root.logger"], "INFO,console");
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for flag in ["-z zk:2181", "-u http://x", "--backup-directory d", "-a C", "--conf-provider C"] {
            let line = format!("penstock agent -n a1 -f f {flag}");
            let Command::Agent(arguments) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
                panic!("{flag}")
            };
            let refusal = refusal(&arguments).unwrap();
            assert!(refusal.contains("not supported. "), "{refusal}");
        }
    }

    #[test]
    fn monitoring_is_http_or_refused() {
        let ask = |pairs: &[(&str, &str)]| {
            metrics_port(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(ask(&[]), Ok(None));
        assert_eq!(ask(&[("flume.monitoring.type", "http")]), Ok(Some(41414)));
        assert_eq!(ask(&[("flume.monitoring.type", "HTTP"), ("flume.monitoring.port", "5")]), Ok(Some(5)));
        assert!(ask(&[("flume.monitoring.type", "ganglia")]).is_err());
        assert!(ask(&[("flume.monitoring.type", "http"), ("flume.monitoring.port", "x")]).is_err());
    }
}
