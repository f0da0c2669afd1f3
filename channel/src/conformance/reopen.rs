//! Stories of durable channels: what a restart keeps and what it forgets.

use super::*;
use crate::{NoteUpdate, Outcome};

type DurableStory = fn(MakePlace<'_>);

pub(super) const STORIES: &[(&str, DurableStory)] = &[
    ("a restart keeps what is not settled, in order", a_restart_keeps_what_is_not_settled_in_order),
    ("a restart counts what it finds", a_restart_counts_what_it_finds),
    ("numbers are never given twice", numbers_are_never_given_twice),
    ("the latest note wins and survives", the_latest_note_wins_and_survives),
    ("a settlement and its note survive together", a_settlement_and_its_note_survive_together),
    ("notes have a limit that a restart keeps", notes_have_a_limit_that_a_restart_keeps),
    ("any kind of event survives", any_kind_of_event_survives),
];

#[track_caller]
fn close(channel: Box<dyn Channel>) {
    answer(channel.close()).expect("it closes");
}

fn note(key: &str, note: Option<&str>) -> NoteUpdate {
    let note = note.map(|text| Bytes::copy_from_slice(text.as_bytes()));
    NoteUpdate { owner: "sink".to_owned(), key: key.to_owned(), note }
}

#[track_caller]
fn assert_notes(channel: &dyn Channel, expected: &[(&str, &str)]) {
    let found = channel.notes("sink");
    let found: Vec<(&str, &str)> =
        found.iter().map(|(key, note)| (key.as_str(), std::str::from_utf8(note).expect("text"))).collect();
    assert_eq!(found, expected);
}

fn a_restart_keeps_what_is_not_settled_in_order(make: MakePlace<'_>) {
    let place = make(Setup::of(100));
    let mut expected = Vec::new();
    for round in 0..5u64 {
        let channel = place.open();
        assert!(channel.is_durable());
        let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
        for part in 0..2 {
            let first = (round * 2 + part) * 5;
            put(&mut *producer, first..first + 5);
            expected.extend(first..first + 5);
        }
        let lease = take_exactly(&mut *consumer, 6);
        assert_eq!(taken(&lease), expected[..6], "round {round}");
        let seqs = seqs(&lease);
        answer(consumer.settle(vec![
            Settlement::delivered(singles([seqs[1], seqs[2]])),
            Settlement::returned(singles([seqs[3]])),
            Settlement::new(singles([seqs[4]]), Outcome::Dropped { reason: "by hand".to_owned() }),
        ]))
        .expect("all are leased");
        // Leased and not settled: 0 and 5.
        expected = expected.iter().enumerate().filter(|(at, _)| ![1, 2, 4].contains(at)).map(|(_, &n)| n).collect();
        close(channel);
    }
    let channel = place.open();
    let mut consumer = channel.consumer("sink");
    let lease = take_exactly(&mut *consumer, expected.len());
    assert_eq!(taken(&lease), expected);
    assert_empty(&mut *consumer);
    deliver(&mut *consumer, &lease);
    drop(consumer);
    close(channel);
    assert_empty(&mut *place.open().consumer("sink"));
}

fn a_restart_counts_what_it_finds(make: MakePlace<'_>) {
    let place = make(Setup::of(4));
    let channel = place.open();
    put(&mut *channel.producer(), 0..3);
    let mut consumer = channel.consumer("sink");
    let lease = take_exactly(&mut *consumer, 1);
    deliver(&mut *consumer, &lease);
    take_exactly(&mut *consumer, 1);
    close(channel);

    let channel = place.open();
    let stats = channel.stats();
    assert_eq!((stats.size_events, stats.leased_events), (2, 0));
    assert_eq!((stats.put_success_events, stats.take_success_events), (0, 0), "counters start with the channel");
    let mut producer = channel.producer();
    assert_full(answer(producer.put(numbers(90..93))));
    put(&mut *producer, 3..5);
    assert_eq!(taken(&take_exactly(&mut *channel.consumer("sink"), 4)), [1, 2, 3, 4]);
    close(channel);
}

fn numbers_are_never_given_twice(make: MakePlace<'_>) {
    let place = make(Setup::of(100));
    let mut last = None;
    for round in 0..4 {
        let channel = place.open();
        let range = put(&mut *channel.producer(), round..round + 1).range.expect("an event");
        assert!(last.is_none_or(|last: SeqRange| last.end <= range.start), "{last:?} and then {range}");
        last = Some(range);
        // Also when nothing is left that would show how far the numbers went.
        let mut consumer = channel.consumer("sink");
        let lease = take_exactly(&mut *consumer, 1);
        deliver(&mut *consumer, &lease);
        drop(consumer);
        close(channel);
    }
}

fn the_latest_note_wins_and_survives(make: MakePlace<'_>) {
    let place = make(Setup::of(10));
    let channel = place.open();
    let (mut consumer, mut other) = (channel.consumer("sink"), channel.consumer("other"));
    assert_notes(&*channel, &[]);
    answer(consumer.note(vec![note("b", Some("1")), note("a", Some("1")), note("c", Some("1"))])).expect("kept");
    let foreign = NoteUpdate { owner: "other".to_owned(), ..note("a", Some("not mine")) };
    answer(other.note(vec![foreign])).expect("kept");
    answer(consumer.note(vec![note("b", Some("2")), note("c", None)])).expect("kept");
    answer(consumer.note(vec![note("d", Some("1")), note("d", Some("")), note("e", Some("1")), note("e", None)]))
        .expect("kept");
    let expected = [("a", "1"), ("b", "2"), ("d", "")];
    assert_notes(&*channel, &expected);
    close(channel);
    for _ in 0..2 {
        let channel = place.open();
        assert_notes(&*channel, &expected);
        assert_eq!(channel.notes("other").len(), 1);
        assert_eq!(channel.notes("nobody"), []);
        close(channel);
    }
    let channel = place.open();
    answer(channel.consumer("next").note(vec![note("a", None), note("b", Some("3"))])).expect("kept");
    close(channel);
    assert_notes(&*place.open(), &[("b", "3"), ("d", "")]);
}

fn a_settlement_and_its_note_survive_together(make: MakePlace<'_>) {
    let place = make(Setup::of(10));
    let channel = place.open();
    put(&mut *channel.producer(), 0..4);
    let mut consumer = channel.consumer("sink");
    let lease = take_exactly(&mut *consumer, 3);
    let seqs = seqs(&lease);
    let with = |ranges, notes| Settlement { notes, ..Settlement::delivered(ranges) };
    answer(consumer.settle(vec![
        with(singles([seqs[0]]), vec![note("file", Some("length 1")), note("old", Some("x"))]),
        with(Vec::new(), vec![note("old", None)]),
    ]))
    .expect("it is leased");
    assert_notes(&*channel, &[("file", "length 1")]);
    // What is refused leaves no note either.
    let refused = with(singles([seqs[0]]), vec![note("file", Some("never"))]);
    assert_not_leased(answer(consumer.settle(vec![refused])));
    assert_notes(&*channel, &[("file", "length 1")]);
    // Nothing is written for a rollback, but its note is.
    let returned =
        Settlement { notes: vec![note("file", Some("length 2"))], ..Settlement::returned(singles([seqs[1]])) };
    settle(&mut *consumer, returned);
    close(channel);

    let channel = place.open();
    assert_notes(&*channel, &[("file", "length 2")]);
    assert_eq!(taken(&take_exactly(&mut *channel.consumer("sink"), 3)), [1, 2, 3]);
    close(channel);
}

fn notes_have_a_limit_that_a_restart_keeps(make: MakePlace<'_>) {
    const NOTES_MAX: usize = 16_384;
    let place = make(Setup::of(10));
    let channel = place.open();
    let mut consumer = channel.consumer("sink");
    let keys: Vec<String> = (0..NOTES_MAX).map(|index| format!("{index:05}")).collect();
    for keys in keys.chunks(1024) {
        answer(consumer.note(keys.iter().map(|key| note(key, Some("n"))).collect())).expect("there is room");
    }
    let refused = |consumer: &mut dyn Consumer| {
        let result = answer(consumer.note(vec![note("one more", Some("n"))]));
        assert!(matches!(result, Err(SettleError::NoteRefused(_))), "{result:?}");
    };
    refused(&mut *consumer);
    answer(consumer.note(vec![note(&keys[0], Some("replaced"))])).expect("that is not one more");
    drop(consumer);
    close(channel);

    let channel = place.open();
    let mut consumer = channel.consumer("sink");
    assert_eq!(channel.notes("sink").len(), NOTES_MAX);
    refused(&mut *consumer);
    answer(consumer.note(vec![note(&keys[0], None)])).expect("fewer");
    answer(consumer.note(vec![note("one more", Some("n"))])).expect("there is room again");
    assert_eq!(channel.notes("sink").len(), NOTES_MAX);
    close(channel);
}

fn any_kind_of_event_survives(make: MakePlace<'_>) {
    let place = make(Setup::of(100));
    let channel = place.open();
    let mut events = EventBatch::new();
    events.push_body(b"");
    events.push([("größe", "七 🦀"), ("", "")], &[0xff, 0x00, 0xfe]);
    events.push_body(&vec![0xab; 200_000]);
    events.set_common("host", "collector", crate::Existing::Keep);
    let expected: Vec<_> = events.iter().map(|event| (headers(event), event.body().to_vec())).collect();
    answer(channel.producer().put(events)).expect("it fits");
    close(channel);
    let channel = place.open();
    let lease = take_exactly(&mut *channel.consumer("sink"), expected.len());
    let found: Vec<_> = lease.iter().map(|(_, event)| (headers(event), event.body().to_vec())).collect();
    assert!(found == expected, "headers and bodies are the same");
    close(channel);
}
