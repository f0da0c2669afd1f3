//! Key files: text, one key a line, `<id> <base64 of 32 bytes>`; `#` starts a comment.
//!
//! A key file is only ever made on request and never replaced, with mode 0600. A missing one is an error: making a
//! new key in silence would make the old events unreadable.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
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
