//! `penstock keys generate FILE`: the only way a key file comes into being.
//!
//! ```text
//! # comment
//! k1 <base64 of 32 random bytes>
//! ```
//!
//! Promises a new file that only its owner can read, never an existing one overwritten, and no key in a message.
//! Reading key files belongs to `wal`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

pub const KEY_BYTES: usize = 32;

/// The id of the key in a new file.
pub const DEFAULT_KEY_ID: &str = "k1";

/// Why no key file was written.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("key id `{0}` is not usable: 1 to 64 letters, digits, `-`, `_` or `.`")]
    BadId(String),
    #[error("{path} exists already, and a key file is never overwritten: the data sealed with it would be lost")]
    Exists { path: String },
    #[error("the operating system gives no random bytes")]
    NoRandomness,
    #[error("cannot write {path}: {cause}")]
    Io { path: String, cause: std::io::Error },
}

/// Writes a new key file with one fresh key and makes it durable.
pub fn generate(path: &Path, key_id: &str) -> Result<(), GenerateError> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if key_id.is_empty() || key_id.len() > 64 || !key_id.chars().all(allowed) {
        return Err(GenerateError::BadId(key_id.to_owned()));
    }
    let mut key = Zeroizing::new([0u8; KEY_BYTES]);
    SystemRandom::new().fill(&mut *key).map_err(|_| GenerateError::NoRandomness)?;
    let line = Zeroizing::new(format!("{key_id} {}\n", Zeroizing::new(BASE64_STANDARD.encode(*key)).as_str()));
    let io = |cause| GenerateError::Io { path: path.display().to_string(), cause };
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(GenerateError::Exists { path: path.display().to_string() });
        }
        Err(cause) => return Err(io(cause)),
    };
    file.write_all(b"# Penstock key file. Whoever has it can read the data; whoever loses it has lost the data.\n")
        .and_then(|()| file.write_all(line.as_bytes()))
        .and_then(|()| file.sync_all())
        .map_err(io)?;
    // The entry must survive as well: the first data sealed with this key may be durable a moment later.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_file_is_private_well_formed_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        generate(&path, DEFAULT_KEY_ID).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().find(|line| !line.starts_with('#')).unwrap();
        let (id, key) = line.split_once(' ').unwrap();
        assert_eq!(id, "k1");
        assert_eq!(BASE64_STANDARD.decode(key).unwrap().len(), KEY_BYTES);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(generate(&path, "k2"), Err(GenerateError::Exists { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn two_files_have_two_keys_and_a_bad_id_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, three) = (dir.path().join("1"), dir.path().join("2"), dir.path().join("3"));
        generate(&one, "a").unwrap();
        generate(&two, "a").unwrap();
        assert_ne!(std::fs::read_to_string(one).unwrap(), std::fs::read_to_string(two).unwrap());
        assert!(matches!(generate(&three, "a b"), Err(GenerateError::BadId(_))));
        assert!(!three.exists());
    }
}
