//! From declared components to built ones, ready to start.
//!
//! Promises that everything wrong is found in one go, that nothing has a side effect (`validate` does the same), and
//! that what would lose or misroute events is an error. With `drop_broken` the plan goes on without the component
//! that has an error, as Flume does; the errors stay in the findings, and the names in [`Plan::dropped`].

use std::path::Path;

use super::finding::{Finding, Severity};
use super::model::{AgentModel, Declared};
use super::refused;
use super::settings::{Default, Key, Setting, Settings, nearest};
use crate::component::{Entry, Interceptor, OpenChannel, Refused, Selector, Sink, Source};
use crate::selectors::SelectorEntry;
use crate::{channels, interceptors, selectors, sinks, sources};

/// Keys of every source, read by the agent itself.
pub static SOURCE_KEYS: &[Key] = &[
    Key::text("type", Default::Required, "Alias or class name of the source."),
    Key::list("channels", Default::Required, "Channels that get the events."),
    Key::list("interceptors", Default::Absent, "Names of the interceptors, in their order."),
    Key::text("interceptors.*", Default::Absent, "`interceptors.NAME.type` and the keys of each interceptor."),
    Key::text("selector.*", Default::Absent, "`selector.type` (default `replicating`) and the keys of the selector."),
];

/// Keys of every sink, read by the agent itself.
pub static SINK_KEYS: &[Key] = &[
    Key::text("type", Default::Required, "Alias or class name of the sink."),
    Key::text("channel", Default::Required, "The channel that it takes from."),
];

/// Keys of every channel, read by the agent itself.
pub static CHANNEL_KEYS: &[Key] = &[Key::text("type", Default::Required, "Alias or class name of the channel.")];

/// Keys of every interceptor, read by the agent itself.
pub static INTERCEPTOR_KEYS: &[Key] =
    &[Key::text("type", Default::Required, "Alias or builder class of the interceptor.")];

/// Keys of every selector, read by the agent itself.
pub static SELECTOR_KEYS: &[Key] = &[Key::text("type", Default::Is("replicating"), "Alias or class of the selector.")];

/// An agent, built and not started.
#[derive(Default)]
pub struct Plan {
    pub agent: String,
    pub channels: Vec<ChannelPlan>,
    pub sinks: Vec<SinkPlan>,
    pub sources: Vec<SourcePlan>,
    /// Components that are not here because they have an error: `sinks.k1`.
    pub dropped: Vec<String>,
}

pub struct ChannelPlan {
    pub name: String,
    pub alias: &'static str,
    /// What the file says about it, to see whether a reload changes it.
    pub settings: Vec<(String, String)>,
    pub channel: Box<dyn OpenChannel>,
}

pub struct SinkPlan {
    pub name: String,
    pub alias: &'static str,
    pub channel: String,
    pub sink: Box<dyn Sink>,
}

pub struct SourcePlan {
    pub name: String,
    pub alias: &'static str,
    pub channels: Vec<String>,
    pub interceptors: Vec<Box<dyn Interceptor>>,
    pub selector: Box<dyn Selector>,
    pub source: Box<dyn Source>,
}

/// How to build.
#[derive(Debug, Clone, Copy)]
pub struct PlanOptions<'a> {
    pub agent: &'a str,
    pub conf_dir: Option<&'a Path>,
    pub drop_broken: bool,
}

/// Builds everything that `model` declares. Whether it may start is `report::Verdict`'s to say.
pub fn plan(model: AgentModel, options: PlanOptions<'_>) -> (Plan, Vec<Finding>) {
    let mut planner = Planner { options, findings: model.findings, dropped: Vec::new() };
    if !model.agents.iter().any(|agent| agent == options.agent) {
        let there = if model.agents.is_empty() { "no agent".to_owned() } else { model.agents.join(", ") };
        planner.findings.push(Finding {
            severity: Severity::Error,
            place: None,
            component: None,
            message: format!("the configuration says nothing about agent {}; it describes {there}", options.agent),
        });
    }
    for filter in &model.configfilters {
        let instead = "config filters are not supported. Use ${env:NAME} for secrets";
        planner.error(&format!("configfilters.{}", filter.name), filter.setting("type"), filter, instead);
        planner.dropped.push(format!("configfilters.{}", filter.name));
    }
    let grouped = planner.sinkgroups(&model.sinkgroups);
    let channels: Vec<ChannelPlan> = model.channels.iter().filter_map(|channel| planner.channel(channel)).collect();
    let sinks: Vec<SinkPlan> = model
        .sinks
        .iter()
        .filter(|sink| !grouped.contains(&sink.name))
        .filter_map(|sink| planner.sink(sink, &model.channels, &channels))
        .collect();
    let sources: Vec<SourcePlan> =
        model.sources.iter().filter_map(|source| planner.source(source, &model.channels, &channels)).collect();
    let channels = planner.connected(channels, &sources, &sinks, &model.channels);
    let plan = Plan { agent: options.agent.to_owned(), channels, sinks, sources, dropped: planner.dropped };
    (plan, planner.findings)
}

struct Planner<'a> {
    options: PlanOptions<'a>,
    findings: Vec<Finding>,
    dropped: Vec<String>,
}

/// What every line of a table has, whatever it builds.
trait Line: 'static {
    fn names(&self) -> (&'static str, &'static str);
}

impl<Built: 'static> Line for Entry<Built> {
    fn names(&self) -> (&'static str, &'static str) {
        (self.alias, self.class)
    }
}

impl Line for SelectorEntry {
    fn names(&self) -> (&'static str, &'static str) {
        (self.alias, self.class)
    }
}

impl Planner<'_> {
    fn sinkgroups(&mut self, groups: &[Declared]) -> Vec<String> {
        let mut members = Vec::new();
        for group in groups {
            let instead = "sink groups (failover, load_balance) are not built yet. Leave one sink on the channel, or let \
                           several sinks share it: each event goes to one of them";
            self.error(&format!("sinkgroups.{}", group.name), group.setting("processor.type"), group, instead);
            self.dropped.push(format!("sinkgroups.{}", group.name));
            let sinks = group.setting("sinks").map(|setting| setting.value.as_str()).unwrap_or_default();
            members.extend(sinks.split_whitespace().map(str::to_owned));
        }
        // What Flume does with a broken group; without --drop-broken nothing starts anyway, and the sinks' own
        // mistakes are worth finding.
        if self.options.drop_broken { members } else { Vec::new() }
    }

    fn channel(&mut self, declared: &Declared) -> Option<ChannelPlan> {
        let component = format!("channels.{}", declared.name);
        let built =
            self.entry(&component, "channels", declared.setting("type"), declared, channels::TABLE).and_then(|entry| {
                let settings = self.settings(&component, declared, declared.settings.clone(), entry.keys);
                settings.check(CHANNEL_KEYS);
                self.built(&settings, (entry.build)(&settings)).map(|channel| (entry.alias, channel))
            });
        let Some((alias, channel)) = built else {
            self.dropped.push(component);
            return None;
        };
        let settings = declared.settings.iter().map(|setting| (setting.name.clone(), setting.value.clone())).collect();
        Some(ChannelPlan { name: declared.name.clone(), alias, settings, channel })
    }

    fn sink(&mut self, declared: &Declared, all: &[Declared], channels: &[ChannelPlan]) -> Option<SinkPlan> {
        let component = format!("sinks.{}", declared.name);
        let built =
            self.entry(&component, "sinks", declared.setting("type"), declared, sinks::TABLE).and_then(|entry| {
                let settings = self.settings(&component, declared, declared.settings.clone(), entry.keys);
                settings.check(SINK_KEYS);
                self.built(&settings, (entry.build)(&settings)).map(|sink| (entry.alias, sink))
            });
        let named = declared.setting("channel");
        let name = named.map(|setting| setting.value.clone()).unwrap_or_default();
        if named.is_some() && !all.iter().any(|channel| channel.name == name) {
            self.error(&component, named, declared, &no_such_channel(&name, all));
        }
        let channel = channels.iter().find(|candidate| candidate.name == name);
        let fitting = built
            .zip(channel)
            .filter(|((_, sink), channel)| self.batch_fits(&component, declared, sink.batch_size(), channel));
        let Some(((alias, sink), channel)) = fitting else {
            self.dropped.push(component);
            return None;
        };
        if let Some(lost) = sink.lost_without_durable_channel().filter(|_| !channel.channel.is_durable()) {
            self.findings.push(Finding {
                severity: Severity::Notice,
                place: named.map(|setting| setting.place.clone()),
                component: Some(component.clone()),
                message: format!("{}.{component}.channel: channel {name} is not durable: {lost}", self.options.agent),
            });
        }
        Some(SinkPlan { name: declared.name.clone(), alias, channel: name, sink })
    }

    fn source(&mut self, declared: &Declared, all: &[Declared], channels: &[ChannelPlan]) -> Option<SourcePlan> {
        let component = format!("sources.{}", declared.name);
        let built =
            self.entry(&component, "sources", declared.setting("type"), declared, sources::TABLE).and_then(|entry| {
                let settings = self.settings(&component, declared, declared.settings.clone(), entry.keys);
                settings.check(SOURCE_KEYS);
                self.built(&settings, (entry.build)(&settings)).map(|source| (entry.alias, source))
            });
        let list = declared.setting("channels");
        let mut names: Vec<String> = Vec::new();
        for name in list.map(|setting| setting.value.as_str()).unwrap_or_default().split_whitespace() {
            if !all.iter().any(|channel| channel.name == name) {
                self.error(&component, list, declared, &no_such_channel(name, all));
            }
            if channels.iter().any(|channel| channel.name == name) && !names.iter().any(|earlier| earlier == name) {
                names.push(name.to_owned());
            }
        }
        let interceptors = self.interceptors(&component, declared);
        // Without a channel there is nothing to select from, and the channels' own errors say why.
        let selector = if names.is_empty() { None } else { self.selector(&component, declared, &names) };
        let mut fits = true;
        if let Some((_, source)) = &built {
            for channel in channels.iter().filter(|channel| names.contains(&channel.name)) {
                fits &= self.batch_fits(&component, declared, source.batch_size(), channel);
            }
        }
        let (Some((alias, source)), Some(interceptors), Some(selector), true) = (built, interceptors, selector, fits)
        else {
            self.dropped.push(component);
            return None;
        };
        Some(SourcePlan { name: declared.name.clone(), alias, channels: names, interceptors, selector, source })
    }

    fn interceptors(&mut self, source: &str, declared: &Declared) -> Option<Vec<Box<dyn Interceptor>>> {
        let names = declared.setting("interceptors").map(|setting| setting.value.as_str()).unwrap_or_default();
        let mut built = Some(Vec::new());
        for name in names.split_whitespace() {
            let component = format!("{source}.interceptors.{name}");
            let settings = below(declared, &format!("interceptors.{name}."));
            let kind = settings.iter().find(|setting| setting.name == "type").cloned();
            let entry = self.entry(&component, "interceptors", kind.as_ref(), declared, interceptors::TABLE);
            let one = entry.and_then(|entry| {
                let settings = self.settings(&component, declared, settings, entry.keys);
                settings.check(INTERCEPTOR_KEYS);
                self.built(&settings, (entry.build)(&settings))
            });
            match (&mut built, one) {
                (Some(built), Some(one)) => built.push(one),
                (_, None) => built = None,
                (None, Some(_)) => {}
            }
        }
        let stray = declared.settings.iter().find_map(|setting| {
            let name = setting.name.strip_prefix("interceptors.")?.split('.').next()?;
            (!names.split_whitespace().any(|listed| listed == name)).then_some((setting, name))
        });
        if let Some((setting, name)) = stray {
            let message =
                format!("{source}.interceptors.{name} is not in the list {source}.interceptors, so it does nothing");
            self.findings.push(Finding {
                severity: Severity::Warning,
                place: Some(setting.place.clone()),
                component: Some(source.to_owned()),
                message: format!("{}.{message}", self.options.agent),
            });
        }
        built
    }

    fn selector(&mut self, source: &str, declared: &Declared, channels: &[String]) -> Option<Box<dyn Selector>> {
        let component = format!("{source}.selector");
        let settings = below(declared, "selector.");
        let entry = match settings.iter().find(|setting| setting.name == "type").cloned() {
            Some(kind) => self.entry(&component, "selectors", Some(&kind), declared, selectors::TABLE)?,
            None => selectors::TABLE.first().copied()?,
        };
        let settings = self.settings(&component, declared, settings, entry.keys);
        settings.check(SELECTOR_KEYS);
        self.built(&settings, (entry.build)(&settings, channels))
    }

    /// The line of `table` that the type names. What is wrong with the type is found here.
    fn entry<E: Line>(
        &mut self,
        component: &str,
        kind: &str,
        named: Option<&Setting>,
        declared: &Declared,
        table: &[&'static E],
    ) -> Option<&'static E> {
        let Some(setting) = named else {
            self.error(&format!("{component}.type"), None, declared, "missing: the type of the component");
            return None;
        };
        let value = setting.value.as_str();
        let matches = |entry: &&&'static E| {
            let (alias, class) = entry.names();
            alias.eq_ignore_ascii_case(value) || class == value
        };
        let found = table.iter().find(matches).copied();
        if found.is_none() {
            let aliases = || table.iter().map(|entry| entry.names().0);
            let message = match (refused::instead_of(kind, value), nearest(value, aliases())) {
                (Some(instead), _) => format!("{value} is not built yet. {instead}"),
                (None, Some(near)) => format!("`{value}` is no type of {kind}; did you mean {near}?"),
                (None, None) => {
                    format!("`{value}` is no type of {kind}; there are {}", aliases().collect::<Vec<_>>().join(", "))
                }
            };
            self.error(&format!("{component}.type"), named, declared, &message);
        }
        found
    }

    fn settings(&self, component: &str, declared: &Declared, settings: Vec<Setting>, keys: &'static [Key]) -> Settings {
        Settings::new(self.options.agent, component, keys, settings)
            .declared_at(declared.place.clone())
            .with_conf_dir(self.options.conf_dir)
    }

    /// What was built, unless something wrong was found on the way.
    fn built<T>(&mut self, settings: &Settings, outcome: Result<T, Refused>) -> Option<T> {
        let found = settings.take_findings();
        let wrong = found.iter().any(|finding| finding.severity == Severity::Error);
        self.findings.extend(found);
        outcome.ok().filter(|_| !wrong)
    }

    fn batch_fits(
        &mut self,
        component: &str,
        declared: &Declared,
        batch: Option<(&'static str, usize)>,
        channel: &ChannelPlan,
    ) -> bool {
        let Some((key, events)) = batch else { return true };
        let limit = channel.channel.transaction_capacity();
        if events > limit {
            let message = format!(
                "{events} events are more than one transaction of channel {} takes; lower it to {limit}, or raise \
                 {}.channels.{}.transactionCapacity",
                channel.name, self.options.agent, channel.name
            );
            self.error(&format!("{component}.{key}"), declared.setting(key), declared, &message);
        }
        events <= limit
    }

    /// Leaves out channels that nobody uses, as Flume does.
    fn connected(
        &mut self,
        channels: Vec<ChannelPlan>,
        sources: &[SourcePlan],
        sinks: &[SinkPlan],
        all: &[Declared],
    ) -> Vec<ChannelPlan> {
        let (used, unused): (Vec<_>, Vec<_>) = channels.into_iter().partition(|channel| {
            sources.iter().any(|source| source.channels.contains(&channel.name))
                || sinks.iter().any(|sink| sink.channel == channel.name)
        });
        for channel in unused {
            // When its source or sink has an error, that error is the thing to read.
            if self.dropped.is_empty() {
                let place =
                    all.iter().find(|declared| declared.name == channel.name).map(|declared| declared.place.clone());
                let message = format!(
                    "{}.channels.{}: no source or sink uses it, so it is not opened",
                    self.options.agent, channel.name
                );
                self.findings.push(Finding { severity: Severity::Warning, place, component: None, message });
            }
        }
        used
    }

    fn error(&mut self, key: &str, setting: Option<&Setting>, declared: &Declared, message: &str) {
        let place = setting.map_or_else(|| declared.place.clone(), |setting| setting.place.clone());
        let component = key.split('.').take(2).collect::<Vec<_>>().join(".");
        self.findings.push(Finding {
            severity: Severity::Error,
            place: Some(place),
            component: Some(component),
            message: format!("{}.{key}: {message}", self.options.agent),
        });
    }
}

fn no_such_channel(name: &str, all: &[Declared]) -> String {
    let names: Vec<&str> = all.iter().map(|channel| channel.name.as_str()).collect();
    format!("there is no channel {name}; the agent has: {}", names.join(" "))
}

/// The settings that begin with `prefix`, without it.
fn below(declared: &Declared, prefix: &str) -> Vec<Setting> {
    let cut = |setting: &Setting| {
        let name = setting.name.strip_prefix(prefix)?.to_owned();
        Some(Setting { name, ..setting.clone() })
    };
    declared.settings.iter().filter_map(cut).collect()
}

#[cfg(test)]
mod tests;
