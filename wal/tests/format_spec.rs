//! `docs/format.md` and the code say the same, field by field, in both directions.

use wal::format::{Field, frame, identity, incarnation};

const DOCUMENT: &str = include_str!("../../docs/format.md");

/// The first byte table under a heading.
fn table(heading: &str) -> Vec<(usize, usize, String)> {
    let start = DOCUMENT.find(&format!("## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let lines = DOCUMENT[start..].lines().skip_while(|line| !line.starts_with("| offset")).skip(2);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].parse().unwrap(), cells[1].parse().unwrap(), cells[2].to_owned())
        })
        .collect()
}

fn check(heading: &str, layout: &[Field]) {
    let code: Vec<_> = layout.iter().map(|field| (field.offset, field.size, field.name.to_owned())).collect();
    assert_eq!(table(heading), code, "{heading}");
}

#[test]
fn the_byte_tables_are_the_layouts() {
    check("Identity", identity::LAYOUT);
    check("Incarnation header", incarnation::LAYOUT);
    check("Frame header", frame::LAYOUT);
}

#[test]
fn fields_follow_each_other_without_gaps() {
    for layout in [identity::LAYOUT, incarnation::LAYOUT, frame::LAYOUT] {
        assert_eq!(layout[0].offset, 0);
        for pair in layout.windows(2) {
            assert_eq!(pair[0].offset + pair[0].size, pair[1].offset, "{} and {}", pair[0].name, pair[1].name);
        }
    }
}

#[test]
fn each_field_of_a_frame_lands_where_the_table_says() {
    let header = frame::FrameHeader {
        encrypted: false,
        witness: true,
        incarnation: 0x1112_1314_1516_1718,
        ordinal: 0x2122_2324_2526_2728,
        offset: 0x3000,
        number: 0x41,
        stored_len: 4096,
        body_len: 5,
        first_seq: 0x61,
        seq_count: 0x71,
        durable: frame::Mark { ordinal: 0x81, offset: 0x91 },
        previous_end: 0xa1,
        durable_seq: 0xb1,
        floor: 0xc1,
        oldest_ordinal: 0xd1,
        written_ms: 0xe1,
    };
    let mut bytes = vec![0; 4096];
    header.encode_into(&mut bytes);
    frame::FrameHeader::seal_checksums(&mut bytes);
    let expected: [(&str, u64); 19] = [
        ("magic", u64::from(u32::from_le_bytes(*b"PNSF"))),
        ("version", 1),
        ("flags", 2),
        ("incarnation", 0x1112_1314_1516_1718),
        ("ordinal", 0x2122_2324_2526_2728),
        ("offset", 0x3000),
        ("number", 0x41),
        ("stored_len", 4096),
        ("body_len", 5),
        ("first_seq", 0x61),
        ("seq_count", 0x71),
        ("features", 0),
        ("durable_ordinal", 0x81),
        ("durable_offset", 0x91),
        ("previous_end", 0xa1),
        ("durable_seq", 0xb1),
        ("floor", 0xc1),
        ("oldest_ordinal", 0xd1),
        ("written_ms", 0xe1),
    ];
    for (offset, size, name) in table("Frame header") {
        let mut number = [0; 8];
        number[..size].copy_from_slice(&bytes[offset..offset + size]);
        let found = u64::from_le_bytes(number);
        match expected.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => assert_eq!(found, *value, "{name}"),
            None => assert!(name.ends_with("_checksum") && found != 0, "{name}"),
        }
    }
}
