//! Reads the files of a configuration, and everything around them that Flume reads.
//!
//! One call from paths to a plan, for the start, for a reload and for `validate`. It keeps the bytes that were read,
//! so that a reload sees whether anything changed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::finding::{Finding, Severity};
use super::lookup::{World, resolve};
use super::model;
use super::plan::{Plan, PlanOptions, plan};
use super::properties::{FILE_BYTES_MAX, Properties};

/// Where a configuration is.
#[derive(Debug, Clone, Default)]
pub struct Location {
    /// Read in this order; later ones win.
    pub files: Vec<PathBuf>,
    pub conf_dir: Option<PathBuf>,
    pub agent: String,
    /// `-Dk=v`.
    pub system: HashMap<String, String>,
    pub drop_broken: bool,
}

/// The bytes of every file, in order.
pub type Contents = Vec<Vec<u8>>;

/// A configuration that was read and built, not started.
pub struct Loaded {
    pub plan: Plan,
    pub findings: Vec<Finding>,
}

/// Reads all files. The error names the file that cannot be read.
pub fn read(location: &Location) -> Result<Contents, String> {
    location.files.iter().map(|file| read_file(file).map_err(|cause| format!("{}: {cause}", file.display()))).collect()
}

fn read_file(file: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the parser refuses the file instead of reading a part of it.
    std::fs::File::open(file)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Builds what `contents` say. No side effects.
pub fn build(location: &Location, contents: &Contents) -> Loaded {
    let mut properties = Properties::default();
    for (file, bytes) in location.files.iter().zip(contents) {
        properties.add_file(&file.display().to_string(), bytes);
    }
    let environment = |name: &str| std::env::var(name).ok();
    let world = World { system: &location.system, environment: &environment, now: jiff::Zoned::now() };
    let referenced = resolve(&mut properties, &world);
    let model = model::read(&properties, &location.agent, &referenced);
    let options = PlanOptions {
        agent: &location.agent,
        conf_dir: location.conf_dir.as_deref(),
        drop_broken: location.drop_broken,
    };
    let (plan, mut findings) = plan(model, options);
    findings.extend(environment_script(location));
    Loaded { plan, findings }
}

/// `flume-env.sh` sets up a JVM, so that nothing of it applies; but options may be meant for us.
fn environment_script(location: &Location) -> Option<Finding> {
    let script = location.conf_dir.as_ref()?.join("flume-env.sh");
    let bytes = read_file(&script).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = || text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let options: Vec<&str> = lines()
        .flat_map(|line| line.split(['"', '\'', ' ', '\t']))
        .filter(|word| word.starts_with("-Dflume."))
        .collect();
    let advice = if options.is_empty() {
        "there is no JVM to set up".to_owned()
    } else {
        format!("give {} on the command line", options.join(" "))
    };
    let message = format!("{} is accepted without effect: {advice}", script.display());
    Some(Finding { severity: Severity::Notice, place: None, component: None, message })
}
