//! Flume's protocol `AvroSourceProtocol`: its text, its hash, and which other versions of it are the same in effect.
//!
//! A client names its protocol by the MD5 of the protocol's text, and that text includes comments: clients built with
//! different Avro compilers have different hashes and say the same. A text that a peer sends is therefore compared
//! by shape. What is known is a set of hashes, bounded, and nothing of a peer's text is kept.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The MD5 of the protocol text inside Flume 1.11.0. Its clients and servers expect it from each other, and a match
/// spares both sides the texts.
pub const PROTOCOL_HASH: [u8; 16] =
    [0x86, 0xaa, 0xda, 0xe2, 0xc4, 0x54, 0x74, 0xc0, 0xfe, 0x93, 0xff, 0xd0, 0xf2, 0x35, 0x0a, 0x65];

/// The protocol as we send it to peers with another hash.
pub const PROTOCOL_TEXT: &str = concat!(
    r#"{"protocol":"AvroSourceProtocol","namespace":"org.apache.flume.source.avro","types":["#,
    r#"{"type":"enum","name":"Status","symbols":["OK","FAILED","UNKNOWN"]},"#,
    r#"{"type":"record","name":"AvroFlumeEvent","fields":[{"name":"headers","type":{"type":"map","values":"string"}},"#,
    r#"{"name":"body","type":"bytes"}]}],"messages":{"#,
    r#""append":{"request":[{"name":"event","type":"AvroFlumeEvent"}],"response":"Status"},"#,
    r#""appendBatch":{"request":[{"name":"events","type":{"type":"array","items":"AvroFlumeEvent"}}],"response":"Status"}"#,
    r#"}}"#
);

/// What a server answers to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Failed,
    Unknown,
}

impl Status {
    /// In the order of the protocol's enum.
    pub(super) const ALL: [Status; 3] = [Status::Ok, Status::Failed, Status::Unknown];
}

/// Hashes of clients' protocols that were seen and found to be ours in effect. Shared by all connections of a source.
#[derive(Debug)]
pub struct KnownProtocols {
    hashes: Mutex<VecDeque<[u8; 16]>>,
}

impl KnownProtocols {
    /// Flume had a dozen releases. A forgotten hash costs its client one more round trip.
    const LIMIT: usize = 64;

    pub fn new() -> KnownProtocols {
        KnownProtocols { hashes: Mutex::new(VecDeque::from([PROTOCOL_HASH])) }
    }

    pub(super) fn contains(&self, hash: &[u8; 16]) -> bool {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).contains(hash)
    }

    pub(super) fn insert(&self, hash: [u8; 16]) {
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if hashes.contains(&hash) {
            return;
        }
        if hashes.len() == KnownProtocols::LIMIT {
            // The first is Flume 1.11's own, which stays.
            hashes.remove(1);
        }
        hashes.push_back(hash);
    }
}

impl Default for KnownProtocols {
    fn default() -> KnownProtocols {
        KnownProtocols::new()
    }
}

/// The messages of the protocol in `text` that are ours; what else it has is of no interest. An error where a message
/// has our name and other bytes: it would be read wrongly.
pub(super) fn common_messages(text: &str) -> Result<Vec<&'static str>, String> {
    let protocol: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
    if !protocol.is_object() {
        return Err("it is no JSON object".to_owned());
    }
    let types = protocol["types"].as_array().map(Vec::as_slice).unwrap_or_default();
    let event = |schema: &Value| is_event(types, schema);
    let batch = |schema: &Value| schema["type"] == "array" && is_event(types, &schema["items"]);
    let mut common = Vec::new();
    for (name, is_argument) in [("append", &event as &dyn Fn(&Value) -> bool), ("appendBatch", &batch)] {
        let Some(message) = protocol["messages"].get(name) else { continue };
        let arguments = message["request"].as_array().map(Vec::as_slice).unwrap_or_default();
        let same = matches!(arguments, [argument] if is_argument(&argument["type"]));
        if !same || !is_status(types, &message["response"]) {
            return Err(format!("its message {name} is not the one of Flume's AvroSourceProtocol"));
        }
        common.push(name);
    }
    Ok(common)
}

/// The definition of a named type, or the schema itself when it is written out in place.
fn resolve<'a>(types: &'a [Value], schema: &'a Value) -> &'a Value {
    let Some(full_name) = schema.as_str() else { return schema };
    let name = full_name.rsplit('.').next().unwrap_or(full_name);
    types.iter().find(|definition| definition["name"] == name).unwrap_or(schema)
}

fn is_event(types: &[Value], schema: &Value) -> bool {
    let record = resolve(types, schema);
    let fields = record["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [headers, body] = fields else { return false };
    let map = &headers["type"];
    record["type"] == "record"
        && map["type"] == "map"
        && is_primitive(&map["values"], "string")
        && is_primitive(&body["type"], "bytes")
}

fn is_status(types: &[Value], schema: &Value) -> bool {
    let status = resolve(types, schema);
    status["type"] == "enum" && status["symbols"] == serde_json::json!(["OK", "FAILED", "UNKNOWN"])
}

/// `"string"`, or `{"type": "string", …}` as Avro's compiler writes it with `stringType`.
fn is_primitive(schema: &Value, name: &str) -> bool {
    schema == name || schema["type"] == name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_text_is_the_same_in_effect() {
        assert_eq!(common_messages(PROTOCOL_TEXT), Ok(vec!["append", "appendBatch"]));
    }

    #[test]
    fn comments_string_types_and_full_names_make_no_difference() {
        let other = PROTOCOL_TEXT
            .replace(r#""values":"string""#, r#""values":{"type":"string","avro.java.string":"String"}"#)
            .replace(r#""response":"Status""#, r#""response":"org.apache.flume.source.avro.Status""#)
            .replace(r#""types""#, r#""doc":"a comment","types""#);
        assert_ne!(other, PROTOCOL_TEXT);
        assert_eq!(common_messages(&other), Ok(vec!["append", "appendBatch"]));
        let unrelated = r#"{"protocol":"Mail","messages":{"send":{"request":[],"response":"null"}}}"#;
        assert_eq!(common_messages(unrelated), Ok(vec![]));
    }

    #[test]
    fn what_would_be_read_wrongly_is_refused() {
        let swapped = PROTOCOL_TEXT.replace(r#""OK","FAILED""#, r#""FAILED","OK""#);
        let another_type = PROTOCOL_TEXT.replace(r#""name":"body","type":"bytes""#, r#""name":"body","type":"int""#);
        for text in [&swapped, &another_type, "not json!", "[]", "null"] {
            assert!(common_messages(text).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(common_messages(&deep).is_err());
    }

    #[test]
    fn a_flood_of_hashes_is_forgotten_but_never_our_own() {
        let known = KnownProtocols::new();
        for number in 0..1000_u128 {
            known.insert(number.to_be_bytes());
        }
        assert_eq!(known.hashes.lock().unwrap().len(), KnownProtocols::LIMIT);
        assert!(known.contains(&PROTOCOL_HASH));
        assert!(known.contains(&999_u128.to_be_bytes()));
        assert!(!known.contains(&1_u128.to_be_bytes()));
    }
}
