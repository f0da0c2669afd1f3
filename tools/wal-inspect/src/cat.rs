//! The verb `cat`: events as JSON lines, in channel order, one transaction in memory at a time.
//!
//! Bodies that are UTF-8 are text, all others base64, and `encoding` says which: nothing is replaced or cut. Findings
//! go to standard error, for standard output is one event a line and nothing else.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use channel::EventRef;
use channel::inspect::{Unreadable, Which};
use serde_json::{Map, Value, json};
use wal::recover::scan::Depth;

use crate::cli::{Place, State};
use crate::exit::{Exit, Failure};
use crate::facts;
use crate::places::look;
use crate::say;
use crate::text::{json_line, uuid};

const EVENT_SCHEMA: &str = "penstock.event/1";

pub(crate) fn cat(place: &Place, state: State, limit: Option<u64>, out: &mut dyn Write) -> Result<Exit, Failure> {
    let seen = look(place, Depth::Bodies, false)?;
    let inspection = &seen.inspection;
    let facts = facts::gather(&seen, true);
    if let Some(fact) = facts.iter().find(|fact| fact.exit == Exit::Keys) {
        let text = format!("{}: {}; name the key file of the channel with --key-file", fact.dir, fact.text);
        return Err(Failure::Locked(text));
    }
    for fact in facts.iter().filter(|fact| fact.exit != Exit::Clean) {
        let separator = if fact.dir.is_empty() { "" } else { ": " };
        say(&format!("{}{separator}{}", fact.dir, fact.text));
    }
    let mut exit = facts::exit_of(&facts);
    let which = match state {
        State::Pending => Which::Pending,
        State::Settled => Which::Settled,
        State::All => Which::All,
    };
    let channel = uuid(inspection.channel);
    let mut left = limit.unwrap_or(u64::MAX);
    let mut transactions = inspection.events(which);
    while left > 0
        && let Some(transaction) = transactions.next()
    {
        let slice = match transaction {
            Ok(slice) => slice,
            Err(problem) => {
                say(&problem.to_string());
                // What its writer gives back while we read was settled.
                if !(seen.is_live() && matches!(problem, Unreadable::Rest(_))) {
                    exit = exit.max(Exit::Findings);
                }
                continue;
            }
        };
        for (seq, event) in (slice.first_seq..).zip(slice.events.iter()) {
            let pending = inspection.is_pending(seq);
            let wanted = match state {
                State::All => true,
                State::Pending => pending,
                State::Settled => !pending,
            };
            if wanted && left > 0 {
                left -= 1;
                json_line(out, &line(&channel, seq, pending, event))?;
            }
        }
    }
    Ok(exit)
}

fn line(channel: &str, seq: u64, pending: bool, event: EventRef<'_>) -> Value {
    let headers: Map<String, Value> = event.headers().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let (encoding, body) = match std::str::from_utf8(event.body()) {
        Ok(text) => ("utf-8", text.to_owned()),
        Err(_) => ("base64", STANDARD.encode(event.body())),
    };
    json!({
        "schema": EVENT_SCHEMA,
        "type": "event",
        "channel": channel,
        "seq": seq,
        "state": if pending { "pending" } else { "settled" },
        "headers": headers,
        "encoding": encoding,
        "body": body,
    })
}
