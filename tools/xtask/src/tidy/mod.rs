//! All checks of `cargo xtask tidy`. Each gives findings; a finding names the file, the line and what to do. Warnings are
//! printed and do not fail.

mod arrows;
mod documents;
mod sources;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The repository as the checks see it.
struct Tree {
    root: PathBuf,
    /// Tracked files and new ones that are not ignored, relative to `root`.
    files: Vec<PathBuf>,
}

impl Tree {
    fn with_extension(&self, extension: &str) -> impl Iterator<Item = &Path> {
        let files = self.files.iter().map(PathBuf::as_path);
        files.filter(move |path| path.extension().is_some_and(|found| found == extension))
    }

    fn read(&self, path: &Path) -> Result<String, String> {
        fs::read_to_string(self.root.join(path)).map_err(|error| format!("{}: cannot read: {error}", path.display()))
    }
}

#[derive(Default)]
struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
}

pub(crate) fn run() -> ExitCode {
    let mut findings = Findings::default();
    match tree() {
        Ok(tree) => {
            arrows::check(&tree, &mut findings);
            sources::check(&tree, &mut findings);
            tables::check(&tree, &mut findings);
            documents::check(&tree, &mut findings);
            for warning in &findings.warnings {
                println!("warning: {warning}");
            }
            for error in &findings.errors {
                println!("error: {error}");
            }
            println!(
                "tidy: {} files, {} to fix, {} warnings",
                tree.files.len(),
                findings.errors.len(),
                findings.warnings.len()
            );
        }
        Err(error) => {
            println!("error: {error}");
            findings.errors.push(error);
        }
    }
    if findings.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tree() -> Result<Tree, String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.ancestors().nth(2).ok_or("xtask does not lie two folders deep in the repository")?.to_path_buf();
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .map_err(|error| format!("cannot run git: {error}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut files: Vec<PathBuf> = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    files.retain(|path| root.join(path).is_file());
    files.sort();
    files.dedup();
    Ok(Tree { root, files })
}
