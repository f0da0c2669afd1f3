//! Client against server, and both against bytes recorded from Flume 1.11's client and source.

use channel::{EventBatch, EventRef};
use proptest::prelude::*;

use super::*;

const LIMITS: FrameLimits = FrameLimits { payload_bytes: 1 << 20, pieces: 1000 };

/// The bytes of a line of hexadecimal digits.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn frame(bytes: &[u8]) -> Frame {
    let mut rest = bytes;
    let frame = FrameDecoder::new(LIMITS).feed(&mut rest).unwrap().unwrap();
    assert!(rest.is_empty());
    frame
}

/// Headers and body.
type Written<'a> = (&'a [(&'a str, &'a str)], &'a [u8]);

fn batch(events: &[Written<'_>]) -> EventBatch {
    let mut batch = EventBatch::new();
    for (headers, body) in events {
        batch.push(headers.iter().copied(), body);
    }
    batch
}

type Plain = (Vec<(String, String)>, Vec<u8>);

fn plain(event: EventRef<'_>) -> Plain {
    (event.headers().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(), event.body().to_vec())
}

fn call(request: Request) -> Call {
    match request {
        Request::Call(call) => call,
        other => panic!("a call was expected: {other:?}"),
    }
}

fn refusal(request: Request) -> String {
    match request {
        Request::Refused(_, text) => text,
        other => panic!("a refusal was expected: {other:?}"),
    }
}

const FIRST_CALL: &str =
    "00000001 00000002 0000002b 86aadae2c45474c0fe93ffd0f2350a65 00 86aadae2c45474c0fe93ffd0f2350a65
    0200 00 0c617070656e64 0000000c 02 026b 0276 00 0a68656c6c6f";
const FIRST_ANSWER: &str = "00000001 00000003 00000004 00000000 00000001 00 00000002 0000";
const SECOND_CALL: &str = "00000002 00000002 0000000d 00 16617070656e644261746368 00000008 04 00 0261 00 0262 00";
const SECOND_ANSWER: &str = "00000002 00000003 00000000 00000001 00 00000002 0000";

#[test]
fn the_server_reads_and_answers_flumes_client_byte_for_byte() {
    let known = KnownProtocols::new();
    let mut session = ServerSession::new();
    let first = frame(&hex(FIRST_CALL));
    let one = call(session.request(&first.payload, &known));
    assert_eq!((one.message, one.events.len()), (Message::Append, 1));
    assert_eq!(plain(one.events.get(0)), (vec![("k".into(), "v".into())], b"hello".to_vec()));
    let mut answer = Vec::new();
    one.reply.put_status(first.serial, Status::Ok, &mut answer);
    assert_eq!(answer, hex(FIRST_ANSWER));

    let second = frame(&hex(SECOND_CALL));
    let two = call(session.request(&second.payload, &known));
    assert_eq!((two.message, two.events.len()), (Message::AppendBatch, 2));
    assert_eq!(plain(two.events.get(1)), (vec![], b"b".to_vec()));
    answer.clear();
    two.reply.put_status(second.serial, Status::Ok, &mut answer);
    assert_eq!(answer, hex(SECOND_ANSWER));
}

#[test]
fn the_client_writes_and_reads_what_flumes_source_does_byte_for_byte() {
    let mut session = ClientSession::new();
    let mut sent = Vec::new();
    session.put_append(1, batch(&[(&[("k", "v")], b"hello")]).get(0), &mut sent);
    assert_eq!(sent, hex(FIRST_CALL));
    assert_eq!(session.response(&frame(&hex(FIRST_ANSWER)).payload), Ok(Response::Status(Status::Ok)));
    sent.clear();
    let events = batch(&[(&[], b"a"), (&[], b"b")]);
    session.put_append_batch(2, (0..2).map(|index| events.get(index)), &mut sent);
    assert_eq!(sent, hex(SECOND_CALL));
    assert_eq!(session.response(&frame(&hex(SECOND_ANSWER)).payload), Ok(Response::Status(Status::Ok)));
}

/// A handshake request for the first frame of a client with another hash than Flume 1.11's.
fn stranger(text: Option<&str>, server_hash: [u8; 16], rest: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    handshake::HandshakeRequest { client_hash: [7; 16], client_text: text.map(Into::into), server_hash }
        .put(&mut payload);
    payload.extend_from_slice(rest);
    payload
}

const APPEND_X: &[u8] = b"\x00\x0cappend\x00\x02x";

fn handshake_of(request: Request) -> (handshake::Match, bool) {
    let reply = match request {
        Request::Handshake(reply) | Request::Call(Call { reply, .. }) => reply,
        Request::Refused(_, text) => panic!("{text}"),
    };
    let mut answer = Vec::new();
    reply.put_handshake(1, &mut answer);
    let payload = frame(&answer).payload;
    let found = handshake::HandshakeResponse::read(&mut DatumReader::new(&payload)).unwrap();
    assert_eq!(found.server_text.is_some(), found.server_hash.is_some());
    (found.matched, found.server_text.as_deref() == Some(PROTOCOL_TEXT))
}

#[test]
fn an_unknown_client_is_asked_for_its_protocol_and_known_from_then_on() {
    use handshake::Match;
    let known = KnownProtocols::new();
    let mut session = ServerSession::new();
    let unknown = session.request(&stranger(None, PROTOCOL_HASH, APPEND_X), &known);
    assert!(matches!(unknown, Request::Handshake(_)), "its call must not be executed");
    assert_eq!(handshake_of(unknown), (Match::None, true));
    assert!(!session.is_established());
    let again = session.request(&stranger(Some(PROTOCOL_TEXT), PROTOCOL_HASH, APPEND_X), &known);
    assert!(matches!(&again, Request::Call(call) if call.events.get(0).body() == b"x"));
    assert_eq!(handshake_of(again), (Match::Both, false));
    // On its next connection the hash is enough.
    let next = ServerSession::new().request(&stranger(None, PROTOCOL_HASH, APPEND_X), &known);
    assert_eq!(handshake_of(next), (Match::Both, false));
    let wrong_server = ServerSession::new().request(&stranger(None, [9; 16], APPEND_X), &known);
    assert!(matches!(&wrong_server, Request::Call(_)));
    assert_eq!(handshake_of(wrong_server), (Match::Client, true));
}

#[test]
fn an_unusable_protocol_of_a_client_is_refused_and_not_remembered() {
    let known = KnownProtocols::new();
    let mut session = ServerSession::new();
    let text = refusal(session.request(&stranger(Some("not json!"), PROTOCOL_HASH, APPEND_X), &known));
    assert!(text.starts_with("the client's protocol is refused: it is not JSON"), "{text}");
    assert!(!session.is_established());
    let next = session.request(&stranger(None, PROTOCOL_HASH, APPEND_X), &known);
    assert_eq!(handshake_of(next).0, handshake::Match::None);
}

#[test]
fn a_client_of_another_protocol_gets_its_handshake_and_an_error_for_each_call() {
    let known = KnownProtocols::new();
    let mut session = ServerSession::new();
    let mail = r#"{"protocol":"Mail","messages":{"send":{"request":[],"response":"null"}}}"#;
    let call = session.request(&stranger(Some(mail), PROTOCOL_HASH, b"\x00\x08send"), &known);
    assert!(refusal(call).starts_with("No such message: send"));
    assert!(session.is_established());
}

#[test]
fn a_refused_call_is_answered_and_the_connection_lives_on() {
    let known = KnownProtocols::new();
    let mut session = ServerSession::new();
    let first = frame(&hex(FIRST_CALL)).payload;
    assert!(matches!(session.request(&first, &known), Request::Call(_)));
    let unknown = session.request(b"\x00\x0cnosuch", &known);
    assert_eq!(refusal(unknown), "No such message: nosuch. This server has append and appendBatch.");
    // A body of -1 bytes.
    assert!(refusal(session.request(b"\x00\x0cappend\x00\x01", &known)).contains("a length is negative"));
    assert!(refusal(session.request(b"", &known)).contains("malformed"));
    // A handshake where none is due is no metadata map.
    assert!(refusal(session.request(&first, &known)).contains("malformed"));
    assert!(matches!(session.request(b"\x00\x00", &known), Request::Handshake(_)), "a ping");
    assert!(matches!(session.request(APPEND_X, &known), Request::Call(_)));
}

#[test]
fn the_client_understands_an_error_answer() {
    let (known, mut server, mut client) = (KnownProtocols::new(), ServerSession::new(), ClientSession::new());
    let Request::Call(first) = server.request(&frame(&hex(FIRST_CALL)).payload, &known) else { panic!() };
    let mut answer = Vec::new();
    first.reply.put_error(1, "why not", &mut answer);
    assert_eq!(client.response(&frame(&answer).payload), Ok(Response::Error("why not".into())));
}

#[test]
fn the_client_sends_its_protocol_to_a_server_that_does_not_know_it() {
    let mut session = ClientSession::new();
    let events = batch(&[(&[], b"x")]);
    let mut answer = Vec::new();
    let none = handshake::HandshakeResponse {
        matched: handshake::Match::None,
        server_text: Some(PROTOCOL_TEXT.into()),
        server_hash: Some([5; 16]),
    };
    none.put(&mut answer);
    assert_eq!(session.response(&answer), Ok(Response::SendAgain));
    let mut sent = Vec::new();
    session.put_append_batch(1, [events.get(0)].into_iter(), &mut sent);
    let payload = frame(&sent).payload;
    let request = handshake::HandshakeRequest::read(&mut DatumReader::new(&payload)).unwrap();
    assert_eq!((request.client_text.as_deref(), request.server_hash), (Some(PROTOCOL_TEXT), [5; 16]));
    // A server that asks twice would ask for ever.
    assert_eq!(session.response(&answer), Err(ResponseError::NotUnderstood));
}

#[test]
fn a_server_of_another_protocol_is_refused() {
    let mut answer = Vec::new();
    let other = handshake::HandshakeResponse {
        matched: handshake::Match::Client,
        server_text: Some(r#"{"protocol":"Mail","messages":{"send":{"request":[],"response":"null"}}}"#.into()),
        server_hash: Some([5; 16]),
    };
    other.put(&mut answer);
    assert!(matches!(ClientSession::new().response(&answer), Err(ResponseError::OtherProtocol(_))));
}

#[test]
fn many_headers_keep_the_last_of_equal_keys_in_time_that_grows_with_their_number() {
    let mut payload = b"\x00\x0cappend".to_vec();
    const COUNT: usize = 100_000;
    put_long(&mut payload, 2 * COUNT as i64);
    for round in 0..2 {
        for number in 0..COUNT {
            put_bytes(&mut payload, number.to_string().as_bytes());
            put_bytes(&mut payload, if round == 0 { b"first" } else { b"last" });
        }
    }
    payload.extend_from_slice(b"\x00\x02x");
    let (known, mut session) = (KnownProtocols::new(), ServerSession::new());
    assert!(matches!(session.request(&frame(&hex(FIRST_CALL)).payload, &known), Request::Call(_)));
    let call = call(session.request(&payload, &known));
    let event = call.events.get(0);
    assert_eq!(event.body(), b"x");
    assert_eq!((event.header("0"), event.header("99999")), (Some("last"), Some("last")));
}

#[test]
fn a_flood_of_empty_events_is_cut_off() {
    let mut payload = b"\x00\x16appendBatch".to_vec();
    let count = ServerSession::EVENTS_MAX + 1;
    put_long(&mut payload, count as i64);
    payload.resize(payload.len() + 2 * count + 1, 0);
    let (known, mut session) = (KnownProtocols::new(), ServerSession::new());
    assert!(matches!(session.request(&frame(&hex(FIRST_CALL)).payload, &known), Request::Call(_)));
    assert!(refusal(session.request(&payload, &known)).contains("more than 1,048,576 events"));
}

proptest! {
    #[test]
    fn events_arrive_as_they_were_sent(
        events in proptest::collection::vec(
            (proptest::collection::btree_map(".{0,9}", ".{0,50}", 0..30), proptest::collection::vec(any::<u8>(), 0..200)),
            0..10,
        ),
    ) {
        let mut sent = EventBatch::new();
        for (headers, body) in &events {
            sent.push(headers.iter().map(|(key, value)| (key.as_str(), value.as_str())), body);
        }
        let sent = sent.freeze();
        let mut bytes = Vec::new();
        ClientSession::new().put_append_batch(1, (0..sent.len()).map(|index| sent.get(index)), &mut bytes);
        let call = call(ServerSession::new().request(&frame(&bytes).payload, &KnownProtocols::new()));
        prop_assert_eq!(call.message, Message::AppendBatch);
        let found: Vec<Plain> = call.events.iter().map(plain).collect();
        let expected: Vec<Plain> = sent.iter().map(plain).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn arbitrary_requests_and_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), established: bool) {
        let known = KnownProtocols::new();
        let (mut server, mut client) = (ServerSession::new(), ClientSession::new());
        if established {
            drop(server.request(&frame(&hex(FIRST_CALL)).payload, &known));
            drop(client.response(&frame(&hex(FIRST_ANSWER)).payload));
        }
        drop(server.request(&bytes, &known));
        drop(client.response(&bytes));
    }
}
