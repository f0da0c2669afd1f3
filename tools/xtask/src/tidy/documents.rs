//! Links between documents: each relative link leads to a file, and the index of decisions names every decision.

use std::path::Path;

use super::{Findings, Tree};

const DECISIONS: &str = "docs/decisions";

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    for path in tree.with_extension("md") {
        let Ok(text) = tree.read(path) else { continue };
        for (line, target) in links(&text) {
            let folder = path.parent().unwrap_or(Path::new(""));
            if !tree.root.join(folder).join(&target).exists() {
                findings.errors.push(format!("{}:{line}: the link leads nowhere: {target}", path.display()));
            }
        }
    }
    let index = tree.read(&Path::new(DECISIONS).join("README.md")).unwrap_or_default();
    for path in tree.with_extension("md").filter(|path| path.starts_with(DECISIONS)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name != "README.md" && !index.contains(&format!("({name})")) {
            findings.errors.push(format!("{DECISIONS}/README.md: the index does not name {name}"));
        }
    }
}

/// Relative targets of `[text](target)` with their line numbers, without the part behind `#`. Code blocks are left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number, target.to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_links_are_found_and_others_are_not() {
        let text = "See [a](docs/a.md#part) and [b](https://b.org/x).\n```\n[c](c.md)\n```\n[d](#here) [e](e.md)\n";
        assert_eq!(links(text), [(1, "docs/a.md".to_owned()), (5, "e.md".to_owned())]);
    }
}
