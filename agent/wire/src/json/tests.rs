//! What is read as Flume reads it, what is refused, and with which of the two answers.

use super::*;
use proptest::prelude::*;

/// `Ok` as `name=value,name=value|body` per event, or the status that Flume answers with.
fn read(text: &str) -> Result<Vec<String>, u16> {
    match read_events(text, Charset::UTF_8) {
        Ok(batch) => Ok(batch
            .iter()
            .map(|event| {
                let headers: Vec<String> = event.headers().map(|(name, value)| format!("{name}={value}")).collect();
                format!("{}|{}", headers.join(","), String::from_utf8_lossy(event.body()))
            })
            .collect()),
        Err(JsonError::Syntax { .. }) => Err(400),
        Err(JsonError::NotEvents(_)) => Err(500),
    }
}

fn reads(text: &str, events: &[&str]) {
    assert_eq!(read(text), Ok(events.iter().map(|event| event.to_string()).collect()), "{text}");
}

fn refuses(status: u16, texts: &[&str]) {
    for text in texts {
        assert_eq!(read(text), Err(status), "{text}");
    }
}

#[test]
fn events_are_read_with_their_headers_in_order() {
    reads("[]", &[]);
    reads(r#"[{"headers":{"b":"1","a":"2"},"body":"x"},{"body":"y"},{}]"#, &["b=1,a=2|x", "|y", "|"]);
    reads(r#"[{"headers":null,"body":null}]"#, &["|"]);
    reads(r#"[{"body":"1","headers":{"a":"1"},"headers":{},"body":"2"}]"#, &["|2"]);
}

#[test]
fn lenient_forms_are_read_as_gson_reads_them() {
    reads("\u{feff}[{'body':'x'}]", &["|x"]);
    reads(")]}'\n[{body=x;headers=>{a:b}}]", &["a=b|x"]);
    reads("[/* c */{body:x // c\n}# c\n;{}]\n \r\t", &["|x", "|"]);
    reads(r#"[{"body":12.50},{"body":TRUE},{"body":0x1f},{"body":-0}]"#, &["|12.50", "|true", "|0x1f", "|-0"]);
    reads(r#"[{"headers":[["a","1"],[true,2]]}]"#, &["a=1,true=2|"]);
    reads(r#"[{"other":[{"a":[[]]},null,,],"null":{},"body":"x"}]"#, &["|x"]);
    reads("[{\"body\":\"two\nlines\"}]", &["|two\nlines"]);
}

#[test]
fn escapes_are_resolved_and_halves_of_pairs_become_question_marks() {
    reads(r#"[{"body":"\u00fc\n\t\/\\\"\'\ud83d\ude00"}]"#, &["|ü\n\t/\\\"'😀"]);
    reads(r#"[{"headers":{"\ud800":"\udc00\ud83dx"},"body":"a\ud800\u0041"}]"#, &["?=??x|a?A"]);
    let batch = read_events(r#"[{"body":"\ud800"}]"#, Charset::UTF_16).unwrap();
    assert_eq!(batch.get(0).body(), b"\xfe\xff\xff\xfd");
}

#[test]
fn a_header_without_a_value_is_left_out() {
    reads(r#"[{"headers":{"a":null,"b":"1"}}]"#, &["b=1|"]);
    reads(r#"[{"headers":{"a":null,"b":"1","a":"2"}}]"#, &["a=2,b=1|"]);
}

#[test]
fn bad_syntax_is_the_senders_mistake() {
    refuses(
        400,
        &[
            "hello",
            "12",
            "{}",
            "[",
            "[{]",
            "[{}",
            "[1]",
            "[[]]",
            "[true]",
            r#"["a"]"#,
            r#"[{"body":"x"}"#,
            r#"[{"body":"x"#,
            r#"[{"body":"x\q"}]"#,
            r#"[{"body":{}}]"#,
            r#"[{"body":}]"#,
            r#"[{"body" "x"}]"#,
            r#"[{"a":1,}]"#,
            r#"[{"headers":{"a":["1"]}}]"#,
            r#"[{"headers":{"a":"1","a":"2"}}]"#,
            r#"[{"headers":"a"}]"#,
            r#"[{"headers":[["a","1","2"]]}]"#,
            "[] garbage",
            "[][]",
            "[] // c",
            "[null] garbage",
            "[{}/*]",
            r#"["\u12g4"]"#,
        ],
    );
}

#[test]
fn what_gson_lets_pass_and_flume_fails_on_is_told_apart() {
    refuses(
        500,
        &["", "  \n", "# only a comment", "null", "null garbage", "[null]", "[{},]", "[,]", r#"[{"body":"\u12g4"}]"#],
    );
}

#[test]
fn depth_and_headers_have_limits() {
    let nested = |depth: usize| format!("[{{\"x\":{}{}}}]", "[".repeat(depth), "]".repeat(depth));
    reads(&nested(reader::DEPTH_MAX - 2), &["|"]);
    refuses(400, &[&nested(reader::DEPTH_MAX - 1), &"[".repeat(1 << 20)]);
    let headers = |count: usize| {
        let all: Vec<String> = (0..count).map(|index| format!("\"{index}\":\"v\"")).collect();
        format!("[{{\"headers\":{{{}}}}}]", all.join(","))
    };
    assert_eq!(read(&headers(EVENT_HEADERS_MAX)).map(|events| events.len()), Ok(1));
    refuses(400, &[&headers(EVENT_HEADERS_MAX + 1)]);
    let mut twice = headers(100).replace("\"99\"", "\"7\"");
    refuses(400, &[&twice]);
    twice = headers(100).replace("\"7\":\"v\"", "\"99\":null");
    assert_eq!(read(&twice).map(|events| events.len()), Ok(1));
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in r#"[\[\]{}:,;=>"'\\/#* a-u0-9\n]{0,40}"#) {
        // The outcome is checked against Gson elsewhere; here it has to come at all, and be stable.
        prop_assert_eq!(read(&text), read(&text));
    }

    #[test]
    fn a_written_event_is_read_back(name in ".*", value in ".*", body in ".*") {
        let quote = |text: &str| {
            let mut quoted = String::from("\"");
            for unit in text.encode_utf16() {
                quoted.push_str(&format!("\\u{unit:04x}"));
            }
            quoted + "\""
        };
        let text = format!("[{{\"headers\":{{{}:{}}},\"body\":{}}}]", quote(&name), quote(&value), quote(&body));
        prop_assert_eq!(read(&text), Ok(vec![format!("{name}={value}|{body}")]));
    }
}

#[test]
fn the_end_of_a_text_is_found_wherever_it_is() {
    for length in 0..200 {
        let text = "x".repeat(length);
        reads(
            &format!(r#"[{{"body":"{text}"}},{{"body":"{text}\"{text}"}}]"#),
            &[&format!("|{text}"), &format!("|{text}\"{text}")],
        );
    }
}
