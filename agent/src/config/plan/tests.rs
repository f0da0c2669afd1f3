//! Whole configurations in, findings and verdicts out.

use super::super::properties::Properties;
use super::super::report::{Strictness, lines, to_fix, verdict};
use super::super::{lookup, model};
use super::*;

fn check(text: &str, drop_broken: bool) -> (Plan, Vec<Finding>) {
    let mut properties = Properties::parse("f", text.as_bytes());
    let system = std::collections::HashMap::new();
    let world = lookup::World { system: &system, environment: &|_| None, now: jiff::Zoned::now() };
    let referenced = lookup::resolve(&mut properties, &world);
    let model = model::read(&properties, "a1", &referenced);
    plan(model, PlanOptions { agent: "a1", conf_dir: None, drop_broken })
}

const CHANNEL: &str = "a1.channels = c\na1.channels.c.type = memory\n";

#[test]
fn every_type_of_flume_that_is_not_built_is_refused_with_what_to_use() {
    for refused in refused::TYPES.iter().filter(|refused| !["interceptors", "selectors"].contains(&refused.kind)) {
        let text = format!("{CHANNEL}a1.{kind} = x c\na1.{kind}.x.type = {}\n", refused.alias, kind = refused.kind);
        let (plan, findings) = check(&text, false);
        let found = lines(&findings);
        assert!(
            found.iter().any(|line| line.contains("is not built yet. ") && line.contains(refused.instead)),
            "{found:?}"
        );
        assert!(plan.dropped.contains(&format!("{}.x", refused.kind)));
    }
}

#[test]
fn a_type_is_never_both_built_and_refused() {
    let aliases = |kind: &str| -> Vec<&str> {
        match kind {
            "sources" => sources::TABLE.iter().flat_map(|entry| [entry.alias, entry.class]).collect(),
            "sinks" => sinks::TABLE.iter().flat_map(|entry| [entry.alias, entry.class]).collect(),
            "channels" => channels::TABLE.iter().flat_map(|entry| [entry.alias, entry.class]).collect(),
            "interceptors" => interceptors::TABLE.iter().flat_map(|entry| [entry.alias, entry.class]).collect(),
            _ => selectors::TABLE.iter().flat_map(|entry| [entry.alias, entry.class]).collect(),
        }
    };
    for kind in ["sources", "sinks", "channels", "interceptors", "selectors"] {
        for name in aliases(kind) {
            assert_eq!(refused::instead_of(kind, name), None, "{kind} {name}");
        }
    }
}

#[test]
fn a_batch_above_the_transaction_capacity_refuses_to_start() {
    let text = format!(
        "{CHANNEL}a1.channels.c.transactionCapacity = 10\na1.sinks = k\na1.sinks.k.type = null\na1.sinks.k.channel = c\n\
         a1.sinks.k.batchSize = 11\n"
    );
    let (_, findings) = check(&text, false);
    if sinks::TABLE.iter().any(|entry| entry.alias == "null") {
        let found = lines(&findings);
        assert!(
            found.iter().any(|line| line.starts_with("f:7:1: error: a1.sinks.k.batchSize: 11 events")),
            "{found:?}"
        );
    }
}

#[test]
fn all_findings_come_at_once_each_with_its_line_and_a_verdict() {
    let text = "a1.channels = c d\na1.channels.c.type = memory\na1.channels.c.capacity = many\na1.channels.d.kapacity = 1\n\
                a1.sinkgroups = g\na1.sinkgroups.g.sinks = k\na1.configfilters = f\na1.configfilters.f.type = env\n\
                a1.channels.c.transactionkapacity = 1\n";
    let (_, findings) = check(text, false);
    assert_eq!(to_fix(&findings, Strictness::Run), 4, "{:?}", lines(&findings));
    assert_eq!(verdict(&findings, Strictness::Validate), "5 to fix");
    let found = lines(&findings);
    assert!(found[0].starts_with("f:1:1: error: a1.channels.d.type: missing"), "{found:?}");
    assert!(
        found.iter().any(|line| line.contains("f:3:1: error: a1.channels.c.capacity: `many` is not a whole number"))
    );
    assert!(found.iter().any(|line| line.contains("did you mean transactionCapacity?")), "{found:?}");
}

#[test]
fn dropping_broken_components_keeps_the_rest_and_says_which() {
    let text = "a1.channels = c d\na1.channels.c.type = memory\na1.channels.d.type = memory\na1.channels.d.capacity = x\n\
                a1.sinks = k\na1.sinks.k.type = null\na1.sinks.k.channel = c\n";
    let (plan, findings) = check(text, true);
    assert_eq!(plan.dropped, ["channels.d"]);
    assert_eq!(verdict(&findings, Strictness::DropBroken), "runs");
    assert_eq!(verdict(&findings, Strictness::Run), "1 to fix");
    assert_eq!(plan.channels.len(), 1);
    assert_eq!(plan.sinks.len(), 1);
}

#[test]
fn an_agent_that_the_file_does_not_describe_is_an_error_that_no_dropping_hides() {
    let (_, findings) = check("a2.channels = c\n", true);
    assert_eq!(verdict(&findings, Strictness::DropBroken), "1 to fix");
    assert!(lines(&findings)[0].ends_with("nothing about agent a1; it describes a2"));
}

#[test]
fn a_reference_to_a_channel_that_does_not_exist_is_an_error() {
    let text = format!("{CHANNEL}a1.sinks = k\na1.sinks.k.type = null\na1.sinks.k.channel = nosuch\n");
    let found = lines(&check(&text, false).1);
    assert!(found.iter().any(|line| line.ends_with("there is no channel nosuch; the agent has: c")), "{found:?}");
}
