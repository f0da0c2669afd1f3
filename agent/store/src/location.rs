//! `file:///logs`, `hdfs://nameservice/logs`, `/logs`: which file system, and which path on it.

/// A path with the file system it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub system: System,
    /// Absolute, with a leading `/`, escape sequences still in it.
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum System {
    Local,
    /// A name service or `host:port`; empty for the default of Hadoop's configuration.
    Hdfs {
        authority: String,
    },
    /// No scheme: whatever Hadoop's `fs.defaultFS` says, the local file system without one.
    Default,
}

/// Why a path cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("{0}:// is not a file system of this build; there are file:// and hdfs://")]
    UnknownScheme(String),
    #[error("the path must be absolute: file:///dir, hdfs://nameservice/dir or /dir")]
    NotAbsolute,
    #[error("file:// takes no host name; write file:///dir with three slashes")]
    HostOnLocal,
    #[error("escape sequences may stand in the path only, not in the name of the file system")]
    EscapeInSystem,
}

impl Location {
    pub fn parse(text: &str) -> Result<Location, LocationError> {
        let colon = text.find(':').filter(|&at| at > 0 && !text[..at].contains(['/', '%']));
        let Some(colon) = colon else {
            if text.starts_with('/') {
                return Ok(Location { system: System::Default, path: text.to_owned() });
            }
            return Err(LocationError::NotAbsolute);
        };
        let (scheme, rest) = (text[..colon].to_ascii_lowercase(), &text[colon + 1..]);
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        if authority.contains('%') {
            return Err(LocationError::EscapeInSystem);
        }
        let path = match path {
            "" if !authority.is_empty() => "/",
            path if path.starts_with('/') => path,
            _ => return Err(LocationError::NotAbsolute),
        };
        let system = match scheme.as_str() {
            "file" if authority.is_empty() => System::Local,
            "file" => return Err(LocationError::HostOnLocal),
            "hdfs" => System::Hdfs { authority: authority.to_owned() },
            _ => return Err(LocationError::UnknownScheme(scheme)),
        };
        Ok(Location { system, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_file_system_or_take_the_default() {
        let hdfs = |authority: &str| System::Hdfs { authority: authority.to_owned() };
        for (text, system, path) in [
            ("file:///a/%Y", System::Local, "/a/%Y"),
            ("file:/a", System::Local, "/a"),
            ("hdfs://nn:8020/a/%{x}", hdfs("nn:8020"), "/a/%{x}"),
            ("hdfs://ns", hdfs("ns"), "/"),
            ("hdfs:///a", hdfs(""), "/a"),
            ("/a:b", System::Default, "/a:b"),
        ] {
            assert_eq!(Location::parse(text).unwrap(), Location { system, path: path.to_owned() }, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_path_is_refused_by_name() {
        for (text, error) in [
            ("logs", LocationError::NotAbsolute),
            ("file:logs", LocationError::NotAbsolute),
            ("file://host/a", LocationError::HostOnLocal),
            ("s3a://bucket/a", LocationError::UnknownScheme("s3a".to_owned())),
            ("hdfs://%{nn}/a", LocationError::EscapeInSystem),
            ("%{a}://x/", LocationError::NotAbsolute),
        ] {
            assert_eq!(Location::parse(text).unwrap_err(), error, "{text}");
        }
    }
}
