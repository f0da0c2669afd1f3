//! A Kerberos key distribution centre in a JVM of its own, with one key table for all its principals.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::java::{self, Module};
use crate::process::Process;

const REALM: &str = "EXAMPLE.COM";

pub struct MiniKdc {
    _process: Process,
    directory: TempDir,
}

impl MiniKdc {
    /// Starts a centre that knows `principals`, each without its realm (`hdfs/localhost`).
    pub fn start(principals: &[&str]) -> MiniKdc {
        let directory = TempDir::with_prefix("penstock-kdc-").expect("create a directory for the KDC");
        let root = directory.path();
        let properties = "org.name=EXAMPLE\norg.domain=COM\nkdc.bind.address=127.0.0.1\nkdc.port=0\n\
             instance=DefaultKrbServer\nmax.ticket.lifetime=86400000\nmax.renewable.lifetime=604800000\n\
             transport=TCP\ndebug=false\n";
        let file = root.join("kdc.properties");
        fs::write(&file, properties).expect("write kdc.properties");
        let mut arguments = java::arguments(96, &[], &java::class_path(Module::Kdc));
        arguments.push("org.apache.hadoop.minikdc.MiniKdc".to_owned());
        for path in [root.to_path_buf(), file, root.join("hdfs.keytab")] {
            arguments.push(path.display().to_string());
        }
        arguments.extend(principals.iter().map(|name| (*name).to_owned()));
        let mut process = Process::start("kdc", root, &java::program(), &arguments, &[]);
        process.await_log("Standalone MiniKdc Running", 0, Duration::from_secs(60));
        MiniKdc { _process: process, directory }
    }

    /// For `KRB5_CONFIG` of a client; the port is inside.
    pub fn krb5_conf(&self) -> PathBuf {
        self.directory.path().join("krb5.conf")
    }

    pub fn keytab(&self) -> PathBuf {
        self.directory.path().join("hdfs.keytab")
    }

    pub fn principal(&self, name: &str) -> String {
        format!("{name}@{REALM}")
    }
}
