//! Key files: text, one key a line, `<id> <base64 of 32 bytes>`; `#` starts a comment.
//!
//! A key file is only ever made on request and never replaced, with mode 0600. A missing one is an error: making a
//! new key in silence would make the old events unreadable.
//!
//! A rotation adds a line and takes none away. The key after `k1` is called `k1.2`, then `k1.3`: whoever seals with `k1` means
//! the newest of them, and whatever was sealed with an older one stays readable.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::seal::{ChannelKey, OsRandom, Random};

/// A key file is a few lines; more is another file given by mistake.
const KEY_FILE_MAX: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("key file {path}: {cause}; make one with `penstock keys generate {path}` or name the right one")]
    Missing { path: String, cause: io::Error },
    #[error("key file {path} can be read by others (mode {mode:o}); run `chmod 600 {path}`")]
    Exposed { path: String, mode: u32 },
    #[error("key file {path}, line {line}: {what}")]
    Malformed { path: String, line: usize, what: String },
    #[error("key file {path} has no key `{id}`; it has: {present}")]
    Unknown { path: String, id: String, present: String },
    #[error("key file {path} exists already and is never replaced: the data sealed with it would be lost")]
    Exists { path: String },
    #[error("cannot write key file {path}: {cause}")]
    Write { path: String, cause: io::Error },
}

/// The keys of a file, in its order.
#[derive(Debug, Clone)]
pub struct KeyFile {
    path: String,
    keys: Vec<ChannelKey>,
}

impl KeyFile {
    pub fn read(path: &Path) -> Result<KeyFile, KeyError> {
        let name = path.display().to_string();
        let missing = |cause| KeyError::Missing { path: name.clone(), cause };
        let metadata = fs::metadata(path).map_err(missing)?;
        if !metadata.is_file() || metadata.len() > KEY_FILE_MAX {
            return Err(missing(io::Error::other("not a key file")));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: name, mode });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(missing)?);
        let mut keys: Vec<ChannelKey> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_text = line.split('#').next().unwrap_or_default().trim();
            if line_text.is_empty() {
                continue;
            }
            let malformed =
                |what: &str| KeyError::Malformed { path: name.clone(), line: index + 1, what: what.to_owned() };
            let (id, encoded) = line_text
                .split_once(char::is_whitespace)
                .ok_or_else(|| malformed("expected `<id> <base64 of 32 bytes>`"))?;
            let mut secret = Zeroizing::new([0; 32]);
            let len = STANDARD
                .decode_slice(encoded.trim(), &mut secret[..])
                .map_err(|_| malformed("not base64 of 32 bytes"))?;
            if len != 32 {
                return Err(malformed("a key has 32 bytes"));
            }
            if keys.iter().any(|key| key.id() == id) {
                return Err(malformed("this id is there already"));
            }
            keys.push(ChannelKey::new(id, *secret).map_err(|what| malformed(&what))?);
        }
        Ok(KeyFile { path: name, keys })
    }

    /// The key with this id.
    pub fn key(&self, id: &str) -> Result<&ChannelKey, KeyError> {
        self.keys.iter().find(|key| key.id() == id).ok_or_else(|| KeyError::Unknown {
            path: self.path.clone(),
            id: id.to_owned(),
            present: self.keys.iter().map(ChannelKey::id).collect::<Vec<_>>().join(", "),
        })
    }

    /// What seals new data when `id` is the active key: the newest of `id`, `id.2`, `id.3` and so on.
    pub fn newest(&self, id: &str) -> Result<&ChannelKey, KeyError> {
        let of_id = self.keys.iter().filter_map(|key| Some((generation(key.id(), id)?, key)));
        of_id.max_by_key(|(generation, _)| *generation).map_or_else(|| self.key(id), |(_, key)| Ok(key))
    }

    /// Adds the key after the newest of `id`; says what it is called. The file is replaced by a longer one with the same
    /// mode and owner, so that whoever reads it meanwhile has one of the two.
    ///
    /// The longer one is made beside it, as `<path>.new`. What a rotation that died has left there is made anew: nobody has
    /// sealed with its key, because nobody looks for it there. A file of another content is refused.
    pub fn rotate(path: &Path, id: &str) -> Result<String, KeyError> {
        let name = path.display().to_string();
        let failed = |cause| KeyError::Write { path: name.clone(), cause };
        KeyFile::read(path)?;
        // Where it is a link, the link stays.
        let path = &fs::canonicalize(path).map_err(failed)?;
        let locked = lock(path).map_err(failed)?;
        let file = KeyFile::read(path)?;
        let newest = generation(file.newest(id)?.id(), id).unwrap_or(1);
        let next = format!("{id}.{}", u64::from(newest) + 1);
        let secret = Zeroizing::new(OsRandom.bytes::<32>());
        let malformed = |what| KeyError::Malformed { path: name.clone(), line: file.keys.len() + 1, what };
        ChannelKey::new(&next, *secret).map_err(malformed)?;
        let write = || {
            let mut text = Zeroizing::new(fs::read_to_string(path)?);
            if !text.ends_with('\n') {
                text.push('\n');
            }
            let mut beside = path.clone().into_os_string();
            beside.push(".new");
            let beside = Path::new(&beside);
            if locked.is_some() && file.is_unfinished_rotation(&text, beside) {
                fs::remove_file(beside)?;
            }
            text.push_str(&Zeroizing::new(format!("{next} {}\n", *Zeroizing::new(STANDARD.encode(&secret[..])))));
            let metadata = fs::metadata(path)?;
            let mut new = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(beside)
                .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", beside.display())))?;
            let written = (|| {
                fchown(&new, Some(metadata.uid()), Some(metadata.gid()))?;
                new.set_permissions(metadata.permissions())?;
                new.write_all(text.as_bytes())?;
                new.sync_all()?;
                fs::rename(beside, path)
            })();
            if written.is_err() {
                fs::remove_file(beside)?;
            }
            written?;
            fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(failed)?;
        Ok(next)
    }

    /// Whether the file `beside` this one holds what a rotation writes: all of `text`, and a line with a successor of a key that
    /// is here; or the beginning of that. Anything else somebody else has put there.
    fn is_unfinished_rotation(&self, text: &str, beside: &Path) -> bool {
        let is_small = fs::symlink_metadata(beside).is_ok_and(|found| found.is_file() && found.len() <= KEY_FILE_MAX);
        if !is_small {
            return false;
        }
        let Ok(found) = fs::read_to_string(beside).map(Zeroizing::new) else { return false };
        let Some(line) = found.strip_prefix(text) else { return text.starts_with(&**found) };
        let Some((id, rest)) = line.split_once(' ') else { return !line.contains('\n') };
        let is_one_line = rest.find('\n').is_none_or(|end| end + 1 == rest.len());
        let is_new = self.keys.iter().all(|key| key.id() != id);
        is_one_line && is_new && self.keys.iter().any(|key| generation(id, key.id()).is_some())
    }

    pub fn keys(&self) -> &[ChannelKey] {
        &self.keys
    }

    /// Makes a new file with one random key, mode 0600. Refuses to replace a file.
    pub fn generate(path: &Path, id: &str) -> Result<(), KeyError> {
        let name = path.display().to_string();
        let secret = Zeroizing::new(OsRandom.bytes::<32>());
        ChannelKey::new(id, *secret).map_err(|what| KeyError::Malformed { path: name.clone(), line: 1, what })?;
        let line = Zeroizing::new(format!("{id} {}\n", *Zeroizing::new(STANDARD.encode(&secret[..]))));
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(line.as_bytes())?;
            file.sync_all()?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(parent)?.sync_all()
        };
        write().map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: name },
            _ => KeyError::Write { path: name, cause },
        })
    }
}

/// Keeps other rotations of this file away while it is open; none where the file system knows no locks.
fn lock(path: &Path) -> io::Result<Option<fs::File>> {
    let file = fs::File::open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(io::Error::other("another rotation of it is under way")),
        Err(fs::TryLockError::Error(_)) => return Ok(None),
    }
    // The lock is that of a file, not of its name: it may have been replaced since it was opened.
    let (opened, there) = (file.metadata()?, fs::metadata(path)?);
    if (opened.dev(), opened.ino()) != (there.dev(), there.ino()) {
        return Err(io::Error::other("another rotation of it has just ended"));
    }
    Ok(Some(file))
}

/// The how manieth key of `id` this is, if it is one.
fn generation(key: &str, id: &str) -> Option<u32> {
    if key == id {
        return Some(1);
    }
    let number = key.strip_prefix(id)?.strip_prefix('.')?;
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    number.parse().ok().filter(|number| is_plain && *number >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_file_is_private_is_never_replaced_and_reads_back() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("keys");
        KeyFile::generate(&path, "k1").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(KeyFile::generate(&path, "k1"), Err(KeyError::Exists { .. })));
        let file = KeyFile::read(&path).unwrap();
        assert_eq!(file.key("k1").unwrap().id(), "k1");
        assert!(matches!(file.key("k2"), Err(KeyError::Unknown { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(KeyFile::read(&path), Err(KeyError::Exposed { .. })));
        assert!(matches!(KeyFile::read(&scratch.path().join("none")), Err(KeyError::Missing { .. })));
    }

    #[test]
    fn a_rotation_adds_a_key_keeps_the_others_and_the_mode() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("keys");
        assert!(matches!(KeyFile::rotate(&path, "k1"), Err(KeyError::Missing { .. })));
        KeyFile::generate(&path, "k1").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let first = KeyFile::read(&path).unwrap().key("k1").unwrap().derive(&[1; 32]).1;
        for expected in ["k1.2", "k1.3"] {
            assert_eq!(KeyFile::rotate(&path, "k1").unwrap(), expected);
            let file = KeyFile::read(&path).unwrap();
            assert_eq!(file.newest("k1").unwrap().id(), expected);
            assert_eq!(file.key("k1").unwrap().derive(&[1; 32]).1, first, "the old key is as it was");
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
        assert!(matches!(KeyFile::rotate(&path, "k2"), Err(KeyError::Unknown { .. })));
        assert_eq!(KeyFile::read(&path).unwrap().newest("k1.2").unwrap().id(), "k1.2", "a generation can be named");
    }

    #[test]
    fn a_rotation_that_died_is_made_anew_wherever_it_died() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, beside) = (scratch.path().join("keys"), scratch.path().join("keys.new"));
        KeyFile::generate(&path, "k1").unwrap();
        let before = fs::read_to_string(&path).unwrap();
        KeyFile::rotate(&path, "k1").unwrap();
        let after = fs::read_to_string(&path).unwrap();
        for len in 0..=after.len() {
            fs::write(&beside, &after[..len]).unwrap();
            fs::write(&path, &before).unwrap();
            assert_eq!(KeyFile::rotate(&path, "k1").unwrap(), "k1.2", "{len} bytes were written");
            assert!(!beside.exists());
            let file = fs::read_to_string(&path).unwrap();
            assert!(file.starts_with(&before) && file.len() == after.len() && file != after, "with a key of its own");
        }
    }

    #[test]
    fn what_somebody_else_has_put_beside_a_key_file_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, beside) = (scratch.path().join("keys"), scratch.path().join("keys.new"));
        KeyFile::generate(&path, "k1").unwrap();
        let own = fs::read_to_string(&path).unwrap();
        let encoded = own.split_once(' ').unwrap().1.to_owned();
        let of = |rest: &str| format!("{own}{rest}");
        for other in [
            "another file".to_owned(),
            format!("k2 {encoded}"),
            of(&format!("k2 {encoded}")),
            of(&format!("k1 {encoded}")),
            of(&format!("k1.2 {encoded}k1.3 {encoded}")),
            of("# mine\n"),
        ] {
            fs::write(&beside, &other).unwrap();
            let refused = KeyFile::rotate(&path, "k1").unwrap_err().to_string();
            assert!(refused.contains("keys.new"), "{refused}");
            assert_eq!(
                (fs::read_to_string(&beside).unwrap(), fs::read_to_string(&path).unwrap()),
                (other, own.clone())
            );
        }
    }

    #[test]
    fn of_two_rotations_at_once_one_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("keys");
        KeyFile::generate(&path, "k1").unwrap();
        let held = lock(&path).unwrap().unwrap();
        let refused = KeyFile::rotate(&path, "k1").unwrap_err().to_string();
        assert!(refused.contains("under way"), "{refused}");
        drop(held);
        assert_eq!(KeyFile::rotate(&path, "k1").unwrap(), "k1.2");
    }

    #[test]
    fn generations_are_told_from_other_names() {
        for (key, expected) in
            [("k1", Some(1)), ("k1.2", Some(2)), ("k1.10", Some(10)), ("k1.1", None), ("k1.02", None), ("k11", None)]
        {
            assert_eq!(generation(key, "k1"), expected, "{key}");
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("keys");
        for bad in ["k1", "k1 !!!!", "k1 AAAA", "k/1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
            fs::write(&path, format!("# keys\n{bad}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(KeyFile::read(&path), Err(KeyError::Malformed { line: 2, .. })), "{bad}");
        }
    }
}
