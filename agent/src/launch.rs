//! `penstock agent`: from a location to a process that runs until it is told to stop.
//!
//! ```text
//! load ─► refuse, or start ─► { a signal: stop in order, say what remained
//!                             { the file changed: build it; invalid: keep running; valid: stop all, start all }
//! ```
//! Promises that a change that cannot run never stops what runs, that the last log line says what remained, and that
//! a second signal ends the process at once, which is safe: what was acknowledged is in the channels.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::component::ComponentError;
use crate::config::finding::{Finding, Severity};
use crate::config::load::{self, Contents, Loaded, Location};
use crate::config::report::{self, Strictness};
use crate::reload::{Change, Watch};
use crate::supervisor::{self, Handles, Remains, Running, Runtimes};
use crate::telemetry::http;
use crate::telemetry::registry::Registry;

/// Stopped as asked; nothing is lost.
pub const EXIT_STOPPED: u8 = 0;
/// Could not start, or could not go on.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the configuration was refused; nothing was started.
pub const EXIT_REFUSED: u8 = 2;
/// Stopped, but events of a memory channel are lost, or a component did not end in time.
pub const EXIT_INCOMPLETE: u8 = 3;

/// How `penstock agent` was called.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    pub location: Location,
    /// `None` never reloads.
    pub poll_interval: Option<Duration>,
    pub stop_limit: Duration,
    /// The port of `/metrics`; `None` serves nothing.
    pub metrics_port: Option<u16>,
}

/// Runs the agent until it is told to stop.
pub fn run(options: LaunchOptions) -> ExitCode {
    if let Err(error) = wal::io::host::raise_open_files() {
        tracing::warn!("the limit of open files stays as it is ({error}); a long backlog needs one for each segment");
    }
    let contents = match load::read(&options.location) {
        Ok(contents) => contents,
        Err(problem) => {
            tracing::error!("cannot read the configuration: {problem}");
            return ExitCode::from(EXIT_REFUSED);
        }
    };
    let loaded = load::build(&options.location, &contents);
    let strictness = strictness(&options.location);
    log_findings(&loaded.findings);
    if report::to_fix(&loaded.findings, strictness) > 0 {
        tracing::error!("the configuration does not run: {}", report::verdict(&loaded.findings, strictness));
        return ExitCode::from(EXIT_REFUSED);
    }
    tracing::info!("the configuration {}", report::verdict(&loaded.findings, strictness));
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtimes, control) = match (Runtimes::new(), control) {
        (Ok(runtimes), Ok(control)) => (runtimes, control),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!("cannot create threads: {error}");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let outcome = control.block_on(control_loop(&options, contents, loaded, runtimes.handles()));
    // What did not end is abandoned; waiting for it again would break the promise of the deadline.
    drop(runtimes);
    control.shutdown_background();
    match outcome {
        Ok(remains) if remains.is_clean() => {
            tracing::info!("stopped: {remains}");
            ExitCode::from(EXIT_STOPPED)
        }
        Ok(remains) => {
            tracing::error!("stopped: {remains}");
            ExitCode::from(EXIT_INCOMPLETE)
        }
        Err(error) => {
            tracing::error!("stopped, it cannot go on: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn strictness(location: &Location) -> Strictness {
    if location.drop_broken { Strictness::DropBroken } else { Strictness::Run }
}

fn log_findings(findings: &[Finding]) {
    let mut ordered: Vec<&Finding> = findings.iter().collect();
    ordered.sort_by(|left, right| left.place.cmp(&right.place));
    for finding in ordered {
        match finding.severity {
            Severity::Error => tracing::error!("{finding}"),
            Severity::UnknownKey | Severity::Warning => tracing::warn!("{finding}"),
            Severity::Notice => tracing::info!("{finding}"),
        }
    }
}

/// The signals that stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn control_loop(
    options: &LaunchOptions,
    contents: Contents,
    loaded: Loaded,
    handles: Handles,
) -> Result<Remains, ComponentError> {
    let mut signals = Signals::new().map_err(|error| ComponentError(format!("signals: {error}")))?;
    let registry = Arc::new(Registry::default());
    if let Some(port) = options.metrics_port {
        match http::serve(port, Arc::clone(&registry)).await {
            Ok(serving) => {
                tracing::info!("metrics are at http://0.0.0.0:{port}/metrics");
                tokio::spawn(serving);
            }
            // As Flume: an agent without metrics is better than none.
            Err(error) => tracing::error!("metrics are not served, port {port} cannot be bound: {error}"),
        }
    }
    let mut watch = Watch::new(options.location.clone(), contents.clone());
    let mut good = contents;
    let mut running = tokio::select! {
        started = supervisor::start(loaded.plan, &handles, &registry, Vec::new()) => started?,
        name = signals.next() => {
            tracing::info!("{name} while channels were opening: stopping at once; nothing was accepted");
            return Ok(Remains::default());
        }
    };
    tracing::info!("agent {} runs", options.location.agent);
    // A poll interval that is never reached stands for "never".
    let mut polls = tokio::time::interval(options.poll_interval.unwrap_or(Duration::from_secs(u64::from(u32::MAX))));
    polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    polls.tick().await;
    loop {
        tokio::select! {
            name = signals.next() => {
                tracing::info!("{name}: stopping within {} s; a second signal stops at once", options.stop_limit.as_secs());
                return Ok(stop(running, options.stop_limit, &mut signals).await);
            }
            _ = polls.tick() => match watch.look() {
                Change::None => running.look_at_keys(),
                Change::Unreadable(problem) => {
                    tracing::error!("reload: cannot read the configuration, the old one runs on: {problem}");
                }
                Change::Changed(contents) => {
                    if let Some(next) = acceptable(options, &contents) {
                        running = replace(options, running, next, &good, &handles, &registry).await?;
                        good = contents;
                    }
                }
            }
        }
    }
}

/// Signals this close together are one: wrappers such as `timeout` tell the process and its group.
const ONE_SIGNAL: Duration = Duration::from_millis(500);

async fn stop(running: Running, limit: Duration, signals: &mut Signals) -> Remains {
    let first = std::time::Instant::now();
    let second = async {
        loop {
            let name = signals.next().await;
            if first.elapsed() >= ONE_SIGNAL {
                return name;
            }
        }
    };
    tokio::select! {
        remains = running.stop(limit) => remains,
        name = second => {
            Remains { abandoned: vec![format!("the agent (a second signal, {name})")], ..Remains::default() }
        }
    }
}

/// What the changed files say, unless it cannot run.
fn acceptable(options: &LaunchOptions, contents: &Contents) -> Option<Loaded> {
    let loaded = load::build(&options.location, contents);
    let strictness = strictness(&options.location);
    log_findings(&loaded.findings);
    let verdict = report::verdict(&loaded.findings, strictness);
    if report::to_fix(&loaded.findings, strictness) > 0 {
        tracing::error!("reload: the changed configuration does not run ({verdict}); the old one runs on");
        return None;
    }
    tracing::info!("reload: the configuration has changed and {verdict}; restarting all components");
    Some(loaded)
}

/// Stops everything and starts `next`; where that does not start, starts what ran before.
async fn replace(
    options: &LaunchOptions,
    running: Running,
    next: Loaded,
    good: &Contents,
    handles: &Handles,
    registry: &Registry,
) -> Result<Running, ComponentError> {
    let (channels, abandoned) = running.stop_components(options.stop_limit).await;
    // A memory channel of the same name keeps its events; every other channel is closed, and opened again.
    let again = |name: &str| next.plan.channels.iter().any(|plan| plan.name == name && plan.alias == "memory");
    let (kept, gone): (Vec<_>, Vec<_>) =
        channels.into_iter().partition(|channel| channel.alias == "memory" && again(&channel.named.name));
    let end = tokio::time::Instant::now() + options.stop_limit;
    let remains = supervisor::close(gone, abandoned, end).await;
    if !remains.is_clean() {
        tracing::error!("reload: {remains}");
    }
    match supervisor::start(next.plan, handles, registry, kept).await {
        Ok(running) => Ok(running),
        Err(error) => {
            tracing::error!("reload: the changed configuration does not start, going back to the old one: {error}");
            let old = load::build(&options.location, good);
            supervisor::start(old.plan, handles, registry, Vec::new()).await
        }
    }
}
