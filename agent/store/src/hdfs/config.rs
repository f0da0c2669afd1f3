//! Hadoop's `core-site.xml` and `hdfs-site.xml`.
//!
//! Each of the two files is taken whole from the first directory that has it, as Java takes it from its class path.
//! `${other.key}` is replaced. Defaults of Hadoop itself are not here: the client library and the servers have them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::limits::HADOOP_XML_BYTES_MAX;

/// Keys and values of Hadoop's files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HadoopConfig {
    values: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: String },
    #[error("{}: {cause}", path.display())]
    Malformed { path: PathBuf, cause: String },
}

const FILES: [&str; 2] = ["core-site.xml", "hdfs-site.xml"];

/// Replacements within replacements, as deep as Hadoop goes.
const REPLACEMENTS_MAX: usize = 20;

impl HadoopConfig {
    /// Reads the files; a directory without them is none.
    pub fn read(directories: &[PathBuf]) -> Result<HadoopConfig, ConfigError> {
        let mut config = HadoopConfig::default();
        for name in FILES {
            let Some(path) = directories.iter().map(|directory| directory.join(name)).find(|path| path.exists()) else {
                continue;
            };
            let unreadable = |cause: String| ConfigError::Unreadable { path: path.clone(), cause };
            let bytes = fs::metadata(&path).map_err(|error| unreadable(error.to_string()))?.len();
            if bytes > HADOOP_XML_BYTES_MAX {
                return Err(unreadable(format!("it has {bytes} bytes; at most {HADOOP_XML_BYTES_MAX} are read")));
            }
            let text = fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
            config.add_file(&path, &text)?;
        }
        Ok(config)
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let malformed = |cause: String| ConfigError::Malformed { path: path.to_owned(), cause };
        let document = roxmltree::Document::parse(text).map_err(|error| malformed(error.to_string()))?;
        for element in document.root_element().children().filter(roxmltree::Node::is_element) {
            match element.tag_name().name() {
                "property" => {
                    let child = |name: &str| {
                        let found = element.children().find(|child| child.has_tag_name(name));
                        found.map(|found| found.text().unwrap_or_default().trim().to_owned())
                    };
                    let name = child("name").or_else(|| element.attribute("name").map(str::to_owned));
                    let value = child("value").or_else(|| element.attribute("value").map(str::to_owned));
                    if let (Some(name), Some(value)) = (name, value) {
                        self.values.insert(name, value);
                    }
                }
                "include" => {
                    return Err(malformed("<include> is not supported; put the properties into this file".to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The value of a key, `${…}` replaced.
    pub fn get(&self, key: &str) -> Option<String> {
        let mut value = self.values.get(key)?.clone();
        for _ in 0..REPLACEMENTS_MAX {
            let Some(replaced) = self.replace_one(&value) else { break };
            value = replaced;
        }
        Some(value)
    }

    fn replace_one(&self, value: &str) -> Option<String> {
        let start = value.find("${")?;
        let end = start + value[start..].find('}')?;
        let inner = self.values.get(&value[start + 2..end])?;
        Some(format!("{}{inner}{}", &value[..start], &value[end + 1..]))
    }

    pub fn set(&mut self, key: &str, value: &str) {
        self.values.insert(key.to_owned(), value.to_owned());
    }

    /// Every key with its value.
    pub fn entries(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.values.keys().filter_map(|key| Some((key.clone(), self.get(key)?)))
    }

    pub fn kerberos(&self) -> bool {
        self.get("hadoop.security.authentication").is_some_and(|value| value.eq_ignore_ascii_case("kerberos"))
    }

    /// A size as Hadoop writes it: `134217728`, `128m`.
    pub(super) fn size(&self, key: &str) -> Option<u64> {
        let value = self.get(key)?.to_ascii_lowercase();
        let shift = match value.chars().last()? {
            'k' => 10,
            'm' => 20,
            'g' => 30,
            't' => 40,
            _ => 0,
        };
        let digits = if shift > 0 { &value[..value.len() - 1] } else { &value };
        digits.parse::<u64>().ok()?.checked_mul(1 << shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        fs::write(directory.join(name), text).unwrap();
    }

    #[test]
    fn each_file_comes_from_the_first_directory_that_has_it() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(
            first.path(),
            "core-site.xml",
            "<configuration><property><name>fs.defaultFS</name><value>hdfs://${ns}/</value></property>\
             <property><name>ns</name><value> one </value><final>true</final></property></configuration>",
        );
        write(
            second.path(),
            "core-site.xml",
            "<configuration><property><name>only.here</name><value>x</value></property></configuration>",
        );
        write(
            second.path(),
            "hdfs-site.xml",
            "<!-- sizes --><configuration><property><name>dfs.blocksize</name><value>64m</value></property></configuration>",
        );
        let config = HadoopConfig::read(&[first.path().to_owned(), second.path().to_owned()]).unwrap();
        assert_eq!(config.get("fs.defaultFS").as_deref(), Some("hdfs://one/"));
        assert_eq!(config.get("only.here"), None);
        assert_eq!(config.size("dfs.blocksize"), Some(64 << 20));
    }

    #[test]
    fn a_broken_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["<configuration>", "<configuration><include href='x'/></configuration>"] {
            write(directory.path(), "core-site.xml", text);
            let error = HadoopConfig::read(&[directory.path().to_owned()]).unwrap_err();
            assert!(error.to_string().contains("core-site.xml: "), "{error}");
        }
    }

    #[test]
    fn a_value_that_replaces_itself_ends() {
        let mut config = HadoopConfig::default();
        config.set("a", "${a}x");
        assert!(config.get("a").unwrap().len() <= 5 + REPLACEMENTS_MAX);
    }
}
