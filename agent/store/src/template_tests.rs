//! Stories about path templates, most of them recorded from Flume 1.11.

use super::*;
use channel::EventBatch;

const THEN: &str = "1334315471123";

fn host() -> HostNames {
    HostNames { name: "box".to_owned(), address: "10.0.0.7".to_owned(), full_name: "box.example.com".to_owned() }
}

fn rules(rounding: Rounding) -> TimeRules {
    TimeRules { zone: Zone::gmt(), rounding, use_local_time: false }
}

fn place(path: &str, prefix: &str, headers: &[(&str, &str)]) -> Result<Place, NoPath> {
    place_with(path, prefix, headers, rules(Rounding::None))
}

fn place_with(path: &str, prefix: &str, headers: &[(&str, &str)], time: TimeRules) -> Result<Place, NoPath> {
    let templates = PathTemplates::new(path, prefix, &host(), time, false).unwrap();
    let mut batch = EventBatch::new();
    batch.push(headers.iter().copied(), b"x");
    templates.expand(batch.get(0), 1_000)
}

fn directory(path: &str, headers: &[(&str, &str)]) -> String {
    place(path, "FlumeData", headers).unwrap().directory
}

#[test]
fn every_time_tag_prints_what_flume_prints() {
    for (tag, expected) in [
        ("%a", "Fri"),
        ("%A", "Friday"),
        ("%b", "Apr"),
        ("%B", "April"),
        ("%c", "Fri Apr 13 11:11:11 2012"),
        ("%d", "13"),
        ("%e", "13"),
        ("%H", "11"),
        ("%I", "11"),
        ("%j", "104"),
        ("%k", "11"),
        ("%l", "11"),
        ("%m", "04"),
        ("%M", "11"),
        ("%n", "4"),
        ("%p", "AM"),
        ("%s", "1334315471"),
        ("%S", "11"),
        ("%t", THEN),
        ("%y", "12"),
        ("%Y", "2012"),
        ("%z", "+0000"),
        ("%D", "04/13/12"),
        ("%q", ""),
        ("%%", "%"),
    ] {
        assert_eq!(directory(&format!("/out/v-{tag}-w"), &[("timestamp", THEN)]), format!("/out/v-{expected}-w"));
    }
    assert_eq!(directory("/out/%Y%m%d%H", &[("timestamp", "-86400000")]), "/out/1969123100");
}

#[test]
fn headers_and_half_escapes_are_taken_as_flume_takes_them() {
    for (path, expected) in [
        ("/out/x%{nope}y", "/out/xy"),
        ("/out/x%{empty}y", "/out/xy"),
        ("/out/%{b.c-d}", "/out/B"),
        ("/out/a%", "/out/a%"),
        ("/out/a%{b", "/out/a%{b"),
        ("/out/%{}", "/out/%{}"),
        ("/out/%{a b}", "/out/%{a b}"),
        ("/out/h-%[localhost]-%[ip]-%[FQDN]", "/out/h-box-10.0.0.7-box.example.com"),
        ("/out//%{nope}//x/", "/out/x"),
        ("/out/%{u}", "/out/grüße 日本"),
    ] {
        let headers = [("b.c-d", "B"), ("empty", ""), ("u", "grüße 日本")];
        assert_eq!(directory(path, &headers), expected, "{path}");
    }
    assert_eq!(
        Template::parse("%[nonsense]", &host()).unwrap_err(),
        TemplateError::UnknownHostTag("nonsense".to_owned())
    );
}

#[test]
fn rounding_changes_every_tag_but_the_raw_milliseconds() {
    let print = |rounding| {
        let place = place_with("/%Y%m%d-%H%M%S-%s-%t", "f", &[("timestamp", THEN)], rules(rounding));
        place.unwrap().directory
    };
    assert_eq!(print(Rounding::Seconds(10)), "/20120413-111110-1334315470-1334315471123");
    assert_eq!(print(Rounding::Minutes(7)), "/20120413-110700-1334315220-1334315471123");
    assert_eq!(print(Rounding::Minutes(60)), "/20120413-110000-1334314800-1334315471123");
    assert_eq!(print(Rounding::Hours(1)), "/20120413-110000-1334314800-1334315471123");
}

#[test]
fn header_values_never_leave_the_root() {
    for (value, expected) in [
        ("../up", "/out/sub/__/up"),
        ("..", "/out/sub/__"),
        (".", "/out/sub/_"),
        ("/etc/passwd", "/out/sub/etc/passwd"),
        ("a/../../../b", "/out/sub/a/__/__/__/b"),
        ("a\0b\nc", "/out/sub/a_b_c"),
        ("", "/out/sub"),
    ] {
        assert_eq!(directory("/out/sub/%{a}", &[("a", value)]), expected);
    }
    // Dots put together from two headers.
    assert_eq!(directory("/out/%{a}%{a}", &[("a", ".")]), "/out/__");
    assert_eq!(place("/out", "%{a}", &[("a", "../x")]).unwrap().directory, "/out/__");
    assert_eq!(place("/out", "%{a}", &[("a", "..")]).unwrap().name, "__");
}

#[test]
fn the_operators_own_dots_count_only_before_the_first_escape() {
    assert_eq!(directory("/out/../logs", &[]), "/out/../logs");
    let refused = |path| PathTemplates::new(path, "f", &host(), rules(Rounding::None), false).unwrap_err();
    assert_eq!(refused("/out/%{a}/../x"), TemplateError::DotsAfterEscape("..".to_owned()));
}

#[test]
fn the_prefix_may_lead_into_a_directory_of_its_own() {
    let found = place("/out", "sub/%{a}-%Y", &[("a", "A"), ("timestamp", THEN)]).unwrap();
    assert_eq!(found, Place { directory: "/out/sub".to_owned(), name: "A-2012".to_owned() });
    assert_eq!(place("/out", "%{none}", &[]).unwrap(), Place { directory: "/out".to_owned(), name: String::new() });
    assert_eq!(place("/", "f", &[]).unwrap(), Place { directory: String::new(), name: "f".to_owned() });
}

#[test]
fn an_event_without_a_usable_timestamp_has_no_path_and_says_so() {
    assert_eq!(place("/%Y", "f", &[]).unwrap_err(), NoPath::NoTimestamp);
    assert_eq!(place("/%Y", "f", &[("timestamp", "abc")]).unwrap_err(), NoPath::TimestampNotANumber);
    // Nothing prints the time, so nothing is needed.
    assert_eq!(directory("/100%%%q", &[]), "/100%");
    let local = TimeRules { use_local_time: true, ..rules(Rounding::None) };
    assert_eq!(place_with("/%Y-%t", "f", &[], local).unwrap().directory, "/1970-1000");
}

#[test]
fn paths_that_no_store_takes_are_refused_by_length() {
    let long = "x".repeat(300);
    assert_eq!(place("/%{a}", "f", &[("a", &long)]).unwrap_err(), NoPath::ComponentTooLong(300));
    let deep = "x/".repeat(1000);
    assert!(matches!(place("/%{a}", "f", &[("a", &deep)]).unwrap_err(), NoPath::PathTooLong(_)));
}

proptest::proptest! {
    #[test]
    fn no_template_and_no_header_escapes_the_root(path in "[a-z%{}./\\[\\]YmdHt]{0,20}", prefix in "[a-z%{}./]{0,8}", value in "[./a\\PC]{0,12}") {
        let path = format!("/root/{path}");
        if let Ok(templates) = PathTemplates::new(&path, &prefix, &host(), rules(Rounding::None), true) {
            let mut batch = EventBatch::new();
            batch.push([("a", value.as_str()), ("timestamp", THEN)], b"x");
            if let Ok(place) = templates.expand(batch.get(0), 0) {
                let whole = format!("{}/{}", place.directory, place.name);
                proptest::prop_assert!(lies_below(&whole, templates.root()), "{whole} leaves {}", templates.root());
            }
        }
    }
}

#[test]
fn what_is_printed_over_another_event_is_what_a_fresh_one_says() {
    let later = "1334319071123";
    let events: [&[(&str, &str)]; 7] = [
        &[("timestamp", THEN), ("host", "a")],
        &[("timestamp", THEN), ("host", "b")],
        &[("timestamp", later), ("host", "b")],
        &[("host", "b")],
        &[("timestamp", later), ("host", "b")],
        &[("timestamp", later)],
        &[("timestamp", THEN), ("host", "x/a")],
    ];
    for path in ["/out", "/out/%Y-%H", "/out/%{host}", "/out/%{host}/%H", "/out/%t"] {
        let templates = PathTemplates::new(path, "f-%M", &host(), rules(Rounding::None), false).unwrap();
        let mut expanded = Expanded::default();
        for headers in events {
            let mut batch = EventBatch::new();
            batch.push(headers.iter().copied(), b"x");
            let before = expanded.clone();
            let printed = templates.print(batch.get(0), 0, &mut expanded).and_then(|()| templates.place(&expanded));
            assert_eq!(printed, templates.expand(batch.get(0), 0), "{path} {headers:?}");
            if expanded == before
                && let Ok(place) = printed
            {
                assert_eq!(templates.place(&before), Ok(place), "the same text is the same place");
            }
        }
    }
}
