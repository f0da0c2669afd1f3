//! Starts and stops an agent: channels, then sinks, then sources, and back.
//!
//! Promises that a component that hangs cannot keep the process from stopping: every step of a stop has a deadline,
//! and what did not end by then is named. Sources and sinks run on runtimes of their own, so that a flood on one side
//! cannot starve the other. It decides nothing about configuration.

use std::sync::Arc;
use std::time::Duration;

use channel::Devices;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use crate::component::{
    Budget, ComponentError, DeadLetters, IntakePlan, NamedChannel, Opened, SinkContext, SourceContext, Stop, Stopper,
};
use crate::config::plan::{ChannelPlan, Plan, SinkPlan, SourcePlan};
use crate::dead_letters::{Grave, Graveyard};
use crate::key_watch::KeyWatch;
use crate::runner;
use crate::telemetry::counters::Gauge;
use crate::telemetry::registry::{Registry, Subject};

/// Bytes that all sources together hold before a channel has them. A quarter of a small collector's memory.
const SOURCE_BYTES_MAX: u64 = 256 << 20;

/// What channels that were opened in vain may take to close.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(10);

/// The runtimes of the components. Dropping them abandons what still runs.
pub struct Runtimes {
    sources: Option<Runtime>,
    sinks: Option<Runtime>,
}

impl Runtimes {
    pub fn new() -> std::io::Result<Runtimes> {
        let runtime = |name: &str| Builder::new_multi_thread().thread_name(name).enable_all().build();
        Ok(Runtimes { sources: Some(runtime("source")?), sinks: Some(runtime("sink")?) })
    }

    pub fn handles(&self) -> Handles {
        let handle = |runtime: &Option<Runtime>| match runtime {
            Some(runtime) => runtime.handle().clone(),
            None => unreachable!("the runtimes are there until they are dropped"),
        };
        Handles { sources: handle(&self.sources), sinks: handle(&self.sinks), devices: Devices::new() }
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        for runtime in [self.sources.take(), self.sinks.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

/// Where components are spawned.
#[derive(Clone)]
pub struct Handles {
    pub sources: Handle,
    pub sinks: Handle,
    /// The flush domains of the process; a reload goes on with the same ones.
    pub devices: Arc<Devices>,
}

/// A channel that is open, and outlives a reload where it may.
pub struct OpenedChannel {
    pub named: NamedChannel,
    pub alias: &'static str,
    settings: Vec<(String, String)>,
    start_time: Arc<Gauge>,
    graveyard: Option<Graveyard>,
    key_watch: Option<KeyWatch>,
}

/// One source or sink.
struct Task {
    name: String,
    stopper: Stopper,
    ended: JoinHandle<()>,
    inner: AbortHandle,
}

/// An agent that runs.
pub struct Running {
    channels: Vec<OpenedChannel>,
    sinks: Vec<Task>,
    graves: Vec<Grave>,
    sources: Vec<Task>,
}

/// What was left when an agent stopped.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Remains {
    /// Events in durable channels, by channel: they come with the next start.
    pub kept: Vec<(String, u64)>,
    /// Events in channels that are gone now.
    pub lost: Vec<(String, u64)>,
    /// Components that did not end by their deadline.
    pub abandoned: Vec<String>,
}

impl Remains {
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.abandoned.is_empty()
    }
}

impl std::fmt::Display for Remains {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_clean() && self.kept.is_empty() {
            return formatter.write_str("nothing remained");
        }
        let kept = self.kept.iter().map(|(name, events)| format!("{events} events stay in channel {name}"));
        let lost = self.lost.iter().map(|(name, events)| {
            format!("{events} events in memory channel {name} are lost (a `file` channel keeps them)")
        });
        let abandoned = self.abandoned.iter().map(|name| format!("{name} did not end in time"));
        formatter.write_str(&kept.chain(lost).chain(abandoned).collect::<Vec<_>>().join("; "))
    }
}

/// Starts `plan`. Channels of `reuse` that the plan names again keep their events; the others are dropped.
pub async fn start(
    plan: Plan,
    handles: &Handles,
    registry: &Registry,
    reuse: Vec<OpenedChannel>,
) -> Result<Running, ComponentError> {
    let mut subjects = Vec::new();
    let channels = open_channels(plan.channels, reuse, handles, &mut subjects).await?;
    let budget = Budget::new(SOURCE_BYTES_MAX);
    let mut graves = Vec::new();
    let sinks =
        plan.sinks.into_iter().map(|sink| start_sink(sink, &channels, handles, &mut graves, &mut subjects)).collect();
    let sources = plan
        .sources
        .into_iter()
        .map(|source| start_source(source, &channels, &budget, handles, &mut subjects))
        .collect();
    registry.replace(&plan.agent, subjects, plan.dropped);
    Ok(Running { channels, sinks, graves, sources })
}

async fn open_channels(
    plans: Vec<ChannelPlan>,
    mut reuse: Vec<OpenedChannel>,
    handles: &Handles,
    subjects: &mut Vec<Subject>,
) -> Result<Vec<OpenedChannel>, ComponentError> {
    let mut opened = Vec::new();
    for plan in plans {
        let same = |channel: &OpenedChannel| channel.named.name == plan.name && channel.alias == plan.alias;
        let channel = match reuse.iter().position(same) {
            Some(index) => {
                let channel = reuse.swap_remove(index);
                if channel.settings != plan.settings {
                    tracing::warn!(
                        "channel {} keeps its events and, until the agent is started again, its old settings",
                        plan.name
                    );
                }
                channel
            }
            None => match open(plan, &handles.devices).await {
                Ok(channel) => channel,
                Err(error) => {
                    // Not left to their destructors, which would block this thread.
                    let end = Instant::now() + GIVE_UP_LIMIT;
                    close(opened, Vec::new(), end).await;
                    return Err(error);
                }
            },
        };
        let start_time = Arc::clone(&channel.start_time);
        subjects.push(Subject::Channel { channel: channel.named.clone(), start_time });
        opened.push(channel);
    }
    Ok(opened)
}

async fn open(plan: ChannelPlan, devices: &Arc<Devices>) -> Result<OpenedChannel, ComponentError> {
    let (name, unopened) = (plan.name.clone(), plan.channel);
    let devices = Arc::clone(devices);
    let outcome = tokio::task::spawn_blocking(move || unopened.open(&devices)).await;
    let Opened { channel, graveyard, key_watch } = match outcome {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(ComponentError(format!("channel {name} does not open: {error}"))),
        Err(panic) => return Err(ComponentError(format!("channel {name} does not open, a defect of ours: {panic}"))),
    };
    let start_time = Arc::new(Gauge::default());
    start_time.set_to_now();
    tracing::info!("channel {name} open ({})", plan.alias);
    let named = NamedChannel { name, channel };
    Ok(OpenedChannel { named, alias: plan.alias, settings: plan.settings, start_time, graveyard, key_watch })
}

fn find<'a>(channels: &'a [OpenedChannel], name: &str) -> Option<&'a OpenedChannel> {
    channels.iter().find(|channel| channel.named.name == name)
}

fn start_sink(
    plan: SinkPlan,
    channels: &[OpenedChannel],
    handles: &Handles,
    graves: &mut Vec<Grave>,
    subjects: &mut Vec<Subject>,
) -> Task {
    let (stopper, stop) = Stop::pair();
    let Some(channel) = find(channels, &plan.channel) else {
        unreachable!("a plan opens every channel that a sink names: {}", plan.channel)
    };
    let grave = channel.graveyard.as_ref().map(|graveyard| graveyard.grave(&plan.name));
    let context = SinkContext {
        name: plan.name.clone(),
        counters: Arc::default(),
        stop,
        channel: channel.named.clone(),
        dead_letters: grave.clone().map(|grave| Arc::new(grave) as Arc<dyn DeadLetters>),
    };
    subjects.push(Subject::Sink { name: plan.name.clone(), counters: Arc::clone(&context.counters) });
    subjects.extend(grave.clone().map(Subject::DeadLetters));
    graves.extend(grave);
    let runs = runner::sink::run(plan.sink, context);
    spawn(&handles.sinks, format!("sink {}", plan.name), stopper, runs)
}

fn start_source(
    plan: SourcePlan,
    channels: &[OpenedChannel],
    budget: &Budget,
    handles: &Handles,
    subjects: &mut Vec<Subject>,
) -> Task {
    let (stopper, stop) = Stop::pair();
    let intake = Arc::new(IntakePlan {
        channels: plan
            .channels
            .iter()
            .filter_map(|name| find(channels, name))
            .map(|channel| channel.named.clone())
            .collect(),
        interceptors: plan.interceptors,
        selector: plan.selector,
        counters: Arc::default(),
    });
    assert_eq!(intake.channels.len(), plan.channels.len(), "a plan opens every channel that a source names");
    let context = SourceContext::new(&plan.name, intake, stop, budget.clone());
    subjects.push(Subject::Source { name: plan.name.clone(), counters: Arc::clone(&context.counters) });
    let runs = runner::source::run(plan.source, context);
    spawn(&handles.sources, format!("source {}", plan.name), stopper, runs)
}

/// Spawns a component, and a watcher that reports a panic at once instead of at the stop.
fn spawn(runtime: &Handle, name: String, stopper: Stopper, runs: impl Future<Output = ()> + Send + 'static) -> Task {
    let inner = runtime.spawn(runs);
    let abort = inner.abort_handle();
    let watched = name.clone();
    let ended = runtime.spawn(async move {
        if let Err(error) = inner.await
            && error.is_panic()
        {
            tracing::error!("{watched} ended by a defect of ours and stays stopped: {error}");
        }
    });
    Task { name, stopper, ended, inner: abort }
}

impl Running {
    /// Lets channels whose key was rotated go on with the new one, and the dead letters beside them.
    pub fn look_at_keys(&mut self) {
        for channel in &mut self.channels {
            let name = &channel.named.name;
            if let Some(key) = channel.key_watch.as_mut().and_then(|watch| watch.look(name)) {
                self.graves.iter().filter(|grave| grave.channel() == name).for_each(|grave| grave.rotate(&key));
            }
        }
    }

    /// Stops sources and sinks, in this order, and hands over the channels. A third of `limit` is the sources',
    /// half of it the sinks'; the rest is for the channels.
    pub async fn stop_components(self, limit: Duration) -> (Vec<OpenedChannel>, Vec<String>) {
        let mut abandoned = stop_tasks(self.sources, Instant::now() + limit / 3).await;
        abandoned.extend(stop_tasks(self.sinks, Instant::now() + limit / 2).await);
        let end = Instant::now() + limit / 8;
        let closing = self.graves.into_iter().map(|grave| {
            let name = grave.name().to_owned();
            (name, tokio::task::spawn_blocking(move || grave.close()))
        });
        for (name, closed) in closing.collect::<Vec<_>>() {
            if !matches!(tokio::time::timeout_at(end, closed).await, Ok(Ok(()))) {
                abandoned.push(format!("channel {name}"));
            }
        }
        (self.channels, abandoned)
    }

    /// Stops everything within `limit` and says what remained.
    pub async fn stop(self, limit: Duration) -> Remains {
        let end = Instant::now() + limit;
        let (channels, abandoned) = self.stop_components(limit).await;
        close(channels, abandoned, end).await
    }
}

/// Closes channels by `end`, all at once: one on a disk that hangs costs the others nothing.
pub async fn close(channels: Vec<OpenedChannel>, abandoned: Vec<String>, end: Instant) -> Remains {
    let mut remains = Remains { abandoned, ..Remains::default() };
    let closing = channels.into_iter().map(|OpenedChannel { named, .. }| {
        let (events, durable, channel) = (named.channel.stats().size_events, named.channel.is_durable(), named.channel);
        (named.name, events, durable, tokio::task::spawn_blocking(move || channel.close().wait()))
    });
    for (name, events, durable, closed) in closing.collect::<Vec<_>>() {
        match tokio::time::timeout_at(end, closed).await {
            Ok(Ok(Ok(()))) => tracing::info!("channel {name} closed"),
            Ok(Ok(Err(error))) => tracing::error!("channel {name} did not close well: {error}"),
            Ok(Err(panic)) => tracing::error!("channel {name} did not close, a defect of ours: {panic}"),
            Err(_) => remains.abandoned.push(format!("channel {name}")),
        }
        if events > 0 {
            let list = if durable { &mut remains.kept } else { &mut remains.lost };
            list.push((name, events));
        }
    }
    remains
}

async fn stop_tasks(tasks: Vec<Task>, end: Instant) -> Vec<String> {
    tasks.iter().for_each(|task| task.stopper.request());
    let mut abandoned = Vec::new();
    for task in tasks {
        if tokio::time::timeout_at(end, task.ended).await.is_err() {
            tracing::error!("{} did not end in time and is abandoned", task.name);
            task.inner.abort();
            abandoned.push(task.name);
        }
    }
    abandoned
}
