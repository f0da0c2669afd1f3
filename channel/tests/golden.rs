//! Golden directories: what was written once in format 1 gives the same events, settlements and notes for ever.
//!
//! Each folder below `golden/` has the directories of one channel, `expected.txt` with everything that they must give, and
//! `plan.txt` with the history that wrote them. They are never edited. When the writer changes on purpose, they stay, their
//! names go to [`WRITTEN_EARLIER`], and new ones are added: `cargo run -p channel --features sim --example golden NAME`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use channel::simulation::{Plan, golden};
use wal::format::Classified;
use wal::format::frame::{FrameHeader, HEADER};
use wal::format::incarnation::IncarnationHeader;
use wal::format::section::sections;
use wal::keys::KeyFile;
use wal::limits::PAGE;
use wal::seal::ChannelKey;

/// Golden directories that the writer of today would write otherwise.
const WRITTEN_EARLIER: [&str; 1] = ["compressed"];

type Files = Vec<(String, String, Vec<u8>)>;

fn folders() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

/// The files of its directories.
fn files(golden: &Path) -> Files {
    let mut files = Vec::new();
    for dir in fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        for file in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            files.push((name(&dir), name(&file), fs::read(&file).unwrap()));
        }
    }
    files.sort();
    files
}

fn plan(golden: &Path) -> Plan {
    Plan::parse(&fs::read_to_string(golden.join("plan.txt")).unwrap()).unwrap()
}

#[test]
fn they_give_what_they_gave_when_they_were_written() {
    for golden in folders() {
        let expected = fs::read_to_string(golden.join("expected.txt")).unwrap();
        let copy = tempfile::tempdir().unwrap();
        golden::write(copy.path(), &files(&golden)).unwrap();
        let found =
            golden::describe(copy.path(), &plan(&golden)).unwrap_or_else(|why| panic!("{}: {why}", golden.display()));
        assert!(found == expected, "{}: expected\n{expected}\nfound\n{found}", golden.display());
    }
}

#[test]
fn the_writer_of_today_writes_the_same_bytes() {
    for golden in folders().iter().filter(|golden| !WRITTEN_EARLIER.iter().any(|name| golden.ends_with(name))) {
        let mut written = golden::leave(&plan(golden)).unwrap();
        written.retain(|(_, _, bytes)| !bytes.is_empty());
        written.sort();
        let kept = files(golden);
        let names = |files: &Files| files.iter().map(|(dir, name, _)| format!("{dir}/{name}")).collect::<Vec<_>>();
        assert_eq!(names(&written), names(&kept), "{}", golden.display());
        for ((dir, name, bytes), (_, _, kept)) in written.iter().zip(&kept) {
            let first = bytes.iter().zip(kept).position(|(new, old)| new != old);
            assert!(bytes == kept, "{}: {dir}/{name} differs from byte {first:?} on", golden.display());
        }
    }
}

#[test]
fn the_keys_beside_them_are_theirs() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/keys.txt")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("keys");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = KeyFile::read(&path).unwrap();
    let named = |keys: &[ChannelKey]| -> Vec<_> {
        keys.iter().map(|key| (key.id().to_owned(), key.derive(&[1; 32]).1)).collect()
    };
    assert_eq!(named(file.keys()), named(&golden::keys()));
}

/// What is in all of them together, from the bytes.
#[derive(Debug, Default)]
struct Seen {
    sections: BTreeSet<u16>,
    encrypted_frames: usize,
    /// Whole frames of an earlier use of their file.
    old_frames: usize,
    fences: usize,
    keys: BTreeSet<String>,
    /// Files in which more than one run wrote.
    several_incarnations: usize,
    /// Whether a checkpoint names a key.
    checkpoints: BTreeSet<bool>,
    identities: usize,
    /// Identities that say how their disk is best written.
    measured: usize,
}

impl Seen {
    fn look(&mut self, name: &str, bytes: &[u8]) {
        if name == "identity" {
            self.identities += 1;
            self.measured += usize::from(bytes[64..128] != [0; 64]);
        }
        if name.starts_with("checkpoint-") {
            self.checkpoints.insert(bytes[60..92] != [0; 32]);
        }
        let headers = bytes.chunks_exact(PAGE).map(|page| IncarnationHeader::classify(page.first_chunk().unwrap()));
        let headers: Vec<IncarnationHeader> = headers
            .filter_map(|header| if let Classified::Present(header) = header { Some(header) } else { None })
            .collect();
        let newest = headers.iter().map(|header| header.ordinal).max().unwrap_or_default();
        self.keys.extend(headers.iter().filter_map(|header| header.key.as_ref()).map(|key| key.id.clone()));
        self.fences += headers.iter().map(|header| header.fences.len()).sum::<usize>();
        let runs: BTreeSet<u64> = headers.iter().map(|header| header.incarnation).collect();
        self.several_incarnations += usize::from(runs.len() > 1);
        for at in (0..bytes.len()).step_by(PAGE) {
            let Ok(frame) = FrameHeader::decode(&bytes[at..]) else { continue };
            let whole =
                bytes.get(at..at + frame.stored_len as usize).filter(|frame| FrameHeader::body_is_intact(frame));
            let Some(whole) = whole.filter(|_| frame.offset == at as u64) else { continue };
            self.old_frames += usize::from(frame.ordinal < newest);
            self.encrypted_frames += usize::from(frame.encrypted);
            if !frame.encrypted {
                let body = &whole[HEADER..HEADER + frame.body_len as usize];
                self.sections.extend(sections(body).unwrap().into_iter().map(|section| section.kind));
            }
        }
    }
}

#[test]
fn together_they_have_everything_that_the_format_describes() {
    let mut seen = Seen::default();
    for (_, name, bytes) in folders().iter().flat_map(|golden| files(golden)) {
        seen.look(&name, &bytes);
    }
    assert_eq!(seen.sections, BTreeSet::from([1, 2, 16, 17, 18, 19, 32]), "{seen:?}");
    assert_eq!(seen.checkpoints, BTreeSet::from([false, true]), "{seen:?}");
    assert!(seen.encrypted_frames > 3 && seen.old_frames > 0 && seen.fences > 0, "{seen:?}");
    assert!(
        seen.keys.len() > 1 && seen.several_incarnations > 0 && seen.identities > folders().len() && seen.measured > 0,
        "{seen:?}"
    );
}
