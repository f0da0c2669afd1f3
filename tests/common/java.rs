//! Class paths of the Java peers, resolved once by Maven, and the flags every JVM of the tests gets.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::repository;

/// One module of `tests/peers/pom.xml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    Hdfs,
    Kdc,
    FlumeAgent,
    FlumeClient,
}

impl Module {
    fn folder(self) -> &'static str {
        match self {
            Module::Hdfs => "hdfs",
            Module::Kdc => "kdc",
            Module::FlumeAgent => "flume-agent",
            Module::FlumeClient => "flume-client",
        }
    }
}

pub fn program() -> PathBuf {
    PathBuf::from("java")
}

/// The module's class path. Maven runs only when a `pom.xml` is newer than its last answer: its own start costs 5 s.
pub fn class_path(module: Module) -> String {
    let peers = repository().join("tests/peers");
    let folder = peers.join(module.folder());
    let answer = folder.join("target/classpath");
    let poms = [peers.join("pom.xml"), folder.join("pom.xml")];
    // Two test processes may want the same module at once; the second finds the first one's answer.
    let lock = File::create(peers.join(".lock")).expect("create tests/peers/.lock");
    lock.lock().expect("lock tests/peers/.lock");
    if !is_fresh(&answer, &poms) {
        let output = Command::new("mvn")
            .args(["-q", "-B", "-ntp", "-pl", module.folder(), "process-resources"])
            .current_dir(&peers)
            .output()
            .expect("run mvn: is Maven installed? tools/test installs it");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "mvn cannot resolve tests/peers/{}:\n{text}", module.folder());
    }
    fs::read_to_string(&answer).expect("read the class path that Maven wrote").trim().to_owned()
}

fn is_fresh(answer: &Path, sources: &[PathBuf]) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { fs::metadata(path).and_then(|meta| meta.modified()).ok() };
    let Some(answered) = changed(answer) else { return false };
    sources.iter().all(|source| changed(source).is_some_and(|time| time <= answered))
}

/// Arguments of `java` for a test: quick to start, small, no second garbage collector thread.
pub fn small(heap_mib: u32) -> Vec<String> {
    vec![
        "-XX:TieredStopAtLevel=1".to_owned(),
        "-XX:+UseSerialGC".to_owned(),
        "-Xshare:auto".to_owned(),
        format!("-Xmx{heap_mib}m"),
    ]
}

/// Arguments of `java` for a test, up to and with the class path.
pub fn arguments(heap_mib: u32, system_properties: &[String], class_path: &str) -> Vec<String> {
    let mut arguments = small(heap_mib);
    arguments.extend(system_properties.iter().cloned());
    arguments.extend(["-cp".to_owned(), class_path.to_owned()]);
    arguments
}
