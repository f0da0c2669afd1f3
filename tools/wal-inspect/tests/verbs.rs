//! Stories about the binary: channels that are whole, written, locked, damaged or partly gone, and what it says.

mod setup;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use channel::{Channel, EventBatch};
use serde_json::Value;
use setup::{Fixture, Ran, frames, inspect, key, write_key_file};

fn kinds(ran: &Ran) -> Vec<&str> {
    ran.of_type("finding").map(|line| line["kind"].as_str().unwrap()).collect()
}

fn bodies(ran: &Ran) -> Vec<&str> {
    ran.of_type("event").map(|line| line["body"].as_str().unwrap()).collect()
}

/// Changes one byte of the file.
fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset as usize] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_clean_channel_is_clean_in_every_verb() {
    let fixture = Fixture::new(1, None);
    fixture.fill(10, 4, 3);
    let dir = fixture.dirs[0].to_str().unwrap();
    for arguments in [
        vec!["info", dir],
        vec!["verify", "--level", "structure", dir],
        vec!["verify", "--level", "checksum", dir],
        vec!["verify", "--level", "full", dir],
    ] {
        let ran = inspect(&arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        assert_eq!(kinds(&ran), Vec::<&str>::new(), "{arguments:?}");
        let summary = ran.summary();
        assert_eq!((&summary["exit_reason"], &summary["verdict"]), (&"clean".into(), &"CLEAN".into()));
        assert_eq!(summary["stored_events"], 40, "{arguments:?}");
        assert_eq!(summary["writer"], "none");
        let structure_only = arguments.contains(&"structure");
        assert_eq!(summary["pending_events"], if structure_only { Value::Null } else { 37.into() });
        let directory = ran.of_type("directory").next().unwrap();
        assert_eq!((&directory["state"], &directory["events"]), (&"ok".into(), &40.into()));
        assert_eq!(directory["keys"][0]["access"], "plain");
        assert!(directory["newest"].as_str().unwrap().starts_with("20"));
        assert!(ran.lines.iter().all(|line| line["schema"] == "penstock.inspect/1"));
    }
    let ran = inspect(&["cat", "--output", "jsonl", dir]);
    assert_eq!((ran.code, bodies(&ran).len()), (0, 37));
    assert_eq!(bodies(&ran)[..2], ["3", "4"], "the first three are settled");
    assert!(ran.lines.iter().all(|line| line["schema"] == "penstock.event/1" && line["state"] == "pending"));
}

#[test]
fn a_table_is_for_people_and_prints_no_payload() {
    let fixture = Fixture::new(2, None);
    fixture.put(&[([("secret-header", "secret-value")], b"secret-body".as_slice())]);
    let mut arguments = vec!["info", "--table"];
    arguments.extend(fixture.dirs.iter().map(|dir| dir.to_str().unwrap()));
    let ran = inspect(&arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    for wanted in ["channel ", "writer: none", "stored 1 ", "pending 1 ", "verdict: CLEAN   [exit 0]"] {
        assert!(ran.stdout.contains(wanted), "{wanted:?} in {}", ran.stdout);
    }
    assert!(ran.stdout.lines().all(|line| line.chars().count() <= 80), "{}", ran.stdout);
    let json = inspect(&["verify", "--level", "full", arguments[2], arguments[3]]);
    for output in [&ran.stdout, &json.stdout] {
        assert!(!output.contains("secret"), "{output}");
    }
}

#[test]
fn events_are_printed_whole_whatever_they_hold() {
    let fixture = Fixture::new(1, None);
    fixture.put(&[
        ([("ü", "\u{1b}[2J")], "text\u{202e}\n\u{7f}".as_bytes()),
        ([("k", "v")], b"\xff\x00\xfe".as_slice()),
        ([("k", "v")], b"".as_slice()),
    ]);
    let dir = fixture.dirs[0].to_str().unwrap();
    let ran = inspect(&["cat", dir]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let [text, binary, empty] = &ran.lines[..] else { panic!("{ran:?}") };
    assert_eq!((&text["encoding"], &text["body"]), (&"utf-8".into(), &"text\u{202e}\n\u{7f}".into()));
    assert_eq!(text["headers"]["ü"], "\u{1b}[2J");
    assert_eq!((&binary["encoding"], &binary["body"]), (&"base64".into(), &"/wD+".into()));
    assert_eq!((&empty["encoding"], &empty["body"], &empty["seq"]), (&"utf-8".into(), &"".into(), &2.into()));
    for dangerous in ['\u{1b}', '\u{202e}', '\u{7f}'] {
        assert!(!ran.stdout.contains(dangerous), "{:?}", ran.stdout);
    }
}

#[test]
fn state_and_limit_choose_events() {
    let fixture = Fixture::new(2, None);
    fixture.fill(10, 10, 25);
    let dirs: Vec<&str> = fixture.dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let cat = |options: &[&str]| {
        let ran = inspect(&[&["cat"], options, &dirs[..]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(cat(&[]), (25..100).collect::<Vec<_>>(), "in order over both directories");
    assert_eq!(cat(&["--limit", "3"]), [25, 26, 27]);
    assert_eq!(cat(&["--limit", "0"]), Vec::<u64>::new());
    assert_eq!(cat(&["--state", "settled"]), (0..25).collect::<Vec<_>>());
    assert_eq!(cat(&["--state", "all"]), (0..100).collect::<Vec<_>>());
}

#[test]
fn without_keys_structure_counts_and_checksums_still_work() {
    let fixture = Fixture::new(2, Some(key(1)));
    fixture.fill(6, 5, 4);
    let dirs: Vec<&str> = fixture.dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let run = |options: &[&str]| inspect(&[options, &dirs[..]].concat());
    for options in [&["info"][..], &["verify", "--level", "structure"], &["verify", "--level", "checksum"]] {
        let ran = run(options);
        assert_eq!(ran.code, 0, "{ran:?}");
        let summary = ran.summary();
        assert_eq!((&summary["stored_events"], &summary["pending_events"]), (&30.into(), &Value::Null));
        assert_eq!(summary["verdict"], "CLEAN, EVENTS LOCKED");
        assert!(ran.of_type("remark").any(|line| line["kind"] == "locked" && line["key"] == "k1"));
    }
    let full = run(&["verify", "--level", "full"]);
    assert_eq!((full.code, &full.summary()["exit_reason"]), (4, &"keys".into()));
    let cat = run(&["cat"]);
    assert_eq!((cat.code, cat.stdout.as_str()), (4, ""));
    assert!(cat.stderr.contains("--key-file") && cat.stderr.contains("k1"), "{}", cat.stderr);
}

#[test]
fn the_right_key_opens_and_a_wrong_one_is_called_wrong() {
    let fixture = Fixture::new(1, Some(key(1)));
    fixture.fill(6, 5, 4);
    let dir = fixture.dirs[0].to_str().unwrap();
    let (right, wrong) = (write_key_file(fixture.root.path(), 1), write_key_file(fixture.root.path(), 2));
    for verb in [&["info"][..], &["verify", "--level", "full"], &["cat"]] {
        let opened = inspect(&[verb, &["--key-file", right.to_str().unwrap(), dir]].concat());
        assert_eq!(opened.code, 0, "{opened:?}");
        if verb == ["cat"] {
            assert_eq!(bodies(&opened).len(), 26);
        } else {
            assert_eq!(
                (&opened.summary()["pending_events"], &opened.summary()["verdict"]),
                (&26.into(), &"CLEAN".into())
            );
        }
        let refused = inspect(&[verb, &["--key-file", wrong.to_str().unwrap(), dir]].concat());
        assert_eq!(refused.code, 4, "{refused:?}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains("is not the key"), "{said}");
        let absent = inspect(&[verb, &["--key-file", "/nowhere/keys", dir]].concat());
        assert_eq!(absent.code, 4, "{absent:?}");
    }
}

#[test]
fn a_flipped_byte_in_an_acknowledged_frame_is_found_and_the_rest_is_printed() {
    let fixture = Fixture::new(1, None);
    fixture.fill(5, 3, 0);
    let all = frames(&fixture.dirs[0]);
    // The third frame with events; others after it say that it was durable.
    let (path, offset, _) = all.iter().filter(|(_, _, header)| header.seq_count > 0).nth(2).unwrap().clone();
    flip(&path, offset + 200);
    let dir = fixture.dirs[0].to_str().unwrap();

    let structure = inspect(&["verify", "--level", "structure", dir]);
    assert_eq!(structure.code, 0, "headers are whole: {structure:?}");
    for options in [&["info"][..], &["verify"], &["verify", "--level", "full"]] {
        let ran = inspect(&[options, &[dir]].concat());
        assert_eq!(ran.code, 1, "{ran:?}");
        assert_eq!(kinds(&ran), ["place", "lost"]);
        let place = ran.of_type("finding").next().unwrap();
        assert_eq!((&place["case"], &place["start"]), (&"corrupt".into(), &offset.into()));
        let lost = ran.of_type("finding").nth(1).unwrap();
        assert_eq!((&lost["start"], &lost["end"]), (&6.into(), &9.into()));
        assert_eq!(
            (&ran.summary()["verdict"], &ran.summary()["lost_events"]),
            (&"RECOVERABLE WITH LOSS".into(), &3.into())
        );
        assert_eq!(ran.of_type("directory").next().unwrap()["state"], "damaged");
    }
    let cat = inspect(&["cat", dir]);
    assert_eq!((cat.code, bodies(&cat).len()), (1, 12), "{cat:?}");
    assert!(cat.stderr.contains("corrupt"), "{}", cat.stderr);
}

#[test]
fn a_flipped_byte_under_encryption_shows_without_keys() {
    let fixture = Fixture::new(1, Some(key(1)));
    fixture.fill(5, 3, 0);
    let all = frames(&fixture.dirs[0]);
    let (path, offset, _) = all.iter().find(|(_, _, header)| header.seq_count > 0).unwrap().clone();
    flip(&path, offset + 200);
    let ran = inspect(&["verify", fixture.dirs[0].to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(kinds(&ran), ["place"]);
    assert_eq!((&ran.summary()["verdict"], &ran.summary()["lost_events"]), (&"DAMAGED".into(), &Value::Null));
}

#[test]
fn a_cut_segment_is_found() {
    let fixture = Fixture::new(1, None);
    fixture.fill(8, 2, 0);
    let all = frames(&fixture.dirs[0]);
    let (path, offset, _) = all.iter().filter(|(_, _, header)| header.seq_count > 0).nth(4).unwrap().clone();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(offset).unwrap();
    // The frames behind the cut are gone, and their evidence with them; the missing length is not.
    let ran = inspect(&["verify", "--level", "full", fixture.dirs[0].to_str().unwrap()]);
    assert_eq!((ran.code, kinds(&ran)), (1, vec!["short_segment"]), "{ran:?}");
    assert_eq!(ran.summary()["stored_events"], 8);

    // Two directories: the other one witnesses.
    let fixture = Fixture::new(2, None);
    fixture.fill(30, 2, 0);
    let dirs: Vec<&str> = fixture.dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let all = frames(&fixture.dirs[0]);
    let (path, offset, _) = all.iter().find(|(_, _, header)| header.seq_count > 0).unwrap().clone();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(offset + 100).unwrap();
    let ran = inspect(&[&["verify"], &dirs[..]].concat());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(kinds(&ran).contains(&"lost"), "{ran:?}");
}

#[test]
fn a_removed_directory_is_missed_by_name_and_the_rest_is_printed() {
    let fixture = Fixture::new(2, None);
    fixture.fill(30, 2, 0);
    let kept = fixture.dirs[1].to_str().unwrap();
    let gone = fixture.dirs[0].to_str().unwrap();
    let in_kept = frames(&fixture.dirs[1]).iter().map(|(_, _, header)| u64::from(header.seq_count)).sum::<u64>();
    assert!(in_kept > 0 && in_kept < 60, "both directories got some: {in_kept}");
    fs::remove_dir_all(gone).unwrap();
    for arguments in [vec!["info", kept], vec!["info", gone, kept]] {
        let ran = inspect(&arguments);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(kinds(&ran).contains(&"missing_member") && kinds(&ran).contains(&"lost"), "{ran:?}");
        assert_eq!(ran.summary()["verdict"], "RECOVERABLE WITH LOSS");
        assert_eq!(ran.of_type("directory").filter(|line| line["state"] == "missing").count(), 1, "{ran:?}");
    }
    // An empty mount point is no empty queue.
    fs::create_dir(gone).unwrap();
    let ran = inspect(&["info", gone, kept]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.of_type("remark").any(|line| line["kind"] == "empty_directory"), "{ran:?}");
    let cat = inspect(&["cat", gone, kept]);
    assert_eq!((cat.code, bodies(&cat).len() as u64), (1, in_kept), "{cat:?}");
    assert!(cat.stderr.contains("may hold pending events"), "{}", cat.stderr);
}

#[test]
fn a_damaged_identity_is_a_finding_and_segments_stand_in() {
    let fixture = Fixture::new(1, None);
    fixture.fill(3, 2, 0);
    let dir = fixture.dirs[0].to_str().unwrap();
    flip(&fixture.dirs[0].join("identity"), 40);
    let ran = inspect(&["info", dir]);
    assert_eq!((ran.code, kinds(&ran)), (1, vec!["identity"]), "{ran:?}");
    assert_eq!(ran.summary()["pending_events"], 6);
    fs::remove_file(fixture.dirs[0].join("identity")).unwrap();
    let cat = inspect(&["cat", dir]);
    assert_eq!((cat.code, bodies(&cat).len()), (1, 6), "{cat:?}");
}

#[test]
fn a_newer_version_is_refused_with_both_versions() {
    let fixture = Fixture::new(1, None);
    fixture.fill(3, 2, 0);
    let path = fixture.dirs[0].join("identity");
    let mut page = fs::read(&path).unwrap();
    page[8..10].copy_from_slice(&77_u16.to_le_bytes());
    let sum = wal::checksum::crc32c(&page[..4092]);
    page[4092..4096].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, page).unwrap();
    for verb in ["info", "verify", "cat"] {
        let ran = inspect(&[verb, fixture.dirs[0].to_str().unwrap()]);
        assert_eq!(ran.code, 7, "{ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains("version 77") && said.contains("reads version 1"), "{said}");
    }
}

#[test]
fn what_is_no_channel_is_a_usage_error_that_says_so() {
    let scratch = tempfile::tempdir().unwrap();
    let empty = scratch.path().to_str().unwrap();
    for arguments in [vec!["info"], vec!["frobnicate", empty], vec!["info", empty], vec!["info", "/nowhere/at/all"]] {
        let ran = inspect(&arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
        assert!(!ran.stderr.is_empty());
    }
    fs::write(scratch.path().join("log-1"), b"").unwrap();
    let ran = inspect(&["info", empty]);
    assert!(ran.code == 2 && ran.stderr.contains("Flume's own file channel"), "{ran:?}");
    let (one, other) = (Fixture::new(1, None), Fixture::new(1, None));
    one.fill(1, 1, 0);
    other.fill(1, 1, 0);
    let ran = inspect(&["info", one.dirs[0].to_str().unwrap(), other.dirs[0].to_str().unwrap()]);
    assert!(ran.code == 2 && ran.stderr.contains("another channel"), "{ran:?}");
}

#[test]
fn a_data_directory_and_what_is_ours_in_it_are_the_same() {
    let fixture = Fixture::new(1, None);
    fixture.fill(2, 2, 0);
    let data = fixture.dirs[0].parent().unwrap();
    assert_eq!(fixture.dirs[0].file_name().unwrap(), "penstock");
    let ran = inspect(&["cat", data.to_str().unwrap()]);
    assert_eq!((ran.code, bodies(&ran).len()), (0, 4), "{ran:?}");
    let twice = inspect(&["cat", data.to_str().unwrap(), fixture.dirs[0].to_str().unwrap()]);
    assert_eq!(twice.code, 2, "{twice:?}");
}

#[test]
fn a_running_writer_is_live_and_its_flow_is_no_damage() {
    let fixture = Fixture::new(2, None);
    let dirs: Vec<&str> = fixture.dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let open = fixture.open();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut producer = open.producer();
            let mut consumer = open.consumer("k1");
            let mut put = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let mut batch = EventBatch::new();
                (0..20).for_each(|_| batch.push_body(&[b'x'; 300]));
                producer.put(batch).wait().unwrap();
                put += 20;
                if put.is_multiple_of(40) {
                    setup::settle(&mut *consumer, 40);
                }
            }
            put
        });
        let mut runs = Vec::new();
        for _ in 0..6 {
            runs.push(inspect(&[&["info"], &dirs[..]].concat()));
            runs.push(inspect(&[&["verify", "--level", "full"], &dirs[..]].concat()));
            runs.push(inspect(&[&["cat", "--limit", "50"], &dirs[..]].concat()));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
        for ran in runs {
            assert_eq!(ran.code, 0, "{ran:?}");
            if let Some(summary) = ran.lines.last().filter(|line| line["type"] != "event") {
                assert_eq!((&summary["writer"], &summary["pid"]), (&"live".into(), &std::process::id().into()));
            }
        }
    });
    drop(open);
    let ran = inspect(&[&["info", "--table"], &dirs[..]].concat());
    assert!(ran.stdout.contains("writer: none"), "{}", ran.stdout);
}

#[test]
fn nothing_is_ever_opened_for_writing() {
    let fixture = Fixture::new(2, Some(key(1)));
    fixture.fill(6, 5, 4);
    let dirs: Vec<&str> = fixture.dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let key_file = write_key_file(fixture.root.path(), 1);
    let key_file = key_file.to_str().unwrap();
    let before = setup::tree(fixture.root.path());
    for verb in
        [&["info"][..], &["verify", "--level", "structure"], &["verify"], &["verify", "--level", "full"], &["cat"]]
    {
        let trace = fixture.root.path().parent().unwrap().join(format!("wal-inspect-trace-{}", std::process::id()));
        let status = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-e",
                "trace=file,ftruncate,fallocate,write,pwrite64,pwritev,pwritev2,flock,fcntl,fsync,fdatasync",
                "-o",
            ])
            .arg(&trace)
            .arg(env!("CARGO_BIN_EXE_wal-inspect"))
            .args(verb)
            .args(["--key-file", key_file])
            .args(&dirs)
            .stdout(Stdio::null())
            .status()
            .expect("strace is installed by tools/test");
        let calls = fs::read_to_string(&trace).unwrap();
        fs::remove_file(&trace).unwrap();
        assert!(status.success(), "{verb:?}: {calls}");
        assert!(calls.lines().any(|call| call.contains("segment-") && call.contains("O_RDONLY")), "{calls}");
        let forbidden = [
            "O_WRONLY",
            "O_RDWR",
            "O_CREAT",
            "O_TRUNC",
            "O_APPEND",
            "rename",
            "unlink",
            "mkdir",
            "rmdir",
            "truncate",
            "fallocate",
            "pwrite",
            "flock(",
            "F_SETLK",
            "F_OFD_SETLK",
            "fsync",
            "fdatasync",
            "chmod",
            "chown",
            "utime",
            "link(",
            "linkat",
            "mknod",
            "setxattr",
        ];
        for call in calls.lines() {
            // `readlink` only reads.
            let call = call.replace("readlink", "");
            assert!(!forbidden.iter().any(|word| call.contains(word)), "{verb:?}: {call}");
            if call.contains("write(") {
                assert!(call.contains("write(1,") || call.contains("write(2,"), "{verb:?}: {call}");
            }
        }
    }
    assert_eq!(setup::tree(fixture.root.path()), before);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fixture = Fixture::new(1, None);
    // More than a pipe holds.
    fixture.fill(40, 200, 0);
    let mut child = Command::new(env!("CARGO_BIN_EXE_wal-inspect"))
        .args(["cat", fixture.dirs[0].to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    drop(reader);
    assert!(first.contains("\"body\":\"0\""), "{first}");
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn cases_and_layout_print_what_the_code_says() {
    let cases = inspect(&["cases"]);
    assert_eq!((cases.code, cases.lines.len()), (0, wal::recover::cases::all_evidence().len()));
    assert!(cases.lines.iter().any(|line| line["case"] == "corrupt" && line["is_loss"] == true));
    let table = inspect(&["cases", "--table"]);
    assert!(table.stdout.starts_with("| position | fence |"), "{}", table.stdout);
    let layout = inspect(&["layout"]);
    let fields = [wal::format::identity::LAYOUT, wal::format::incarnation::LAYOUT, wal::format::frame::LAYOUT];
    assert_eq!((layout.code, layout.lines.len()), (0, fields.iter().map(|fields| fields.len()).sum()));
    assert!(inspect(&["layout", "--table"]).stdout.contains("| 0 | 4 | magic |"));
}
