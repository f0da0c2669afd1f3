//! Whether a configuration runs, and how that is said.
//!
//! All findings at once, in the order of the file, ending in `runs` or `N to fix`.

use super::finding::{Finding, Severity};

/// Who asks: the same finding may be fatal for one and not for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// `penstock agent`: an unknown key is a warning.
    Run,
    /// `penstock agent --drop-broken`: as `Run`, and a broken component is left out.
    DropBroken,
    /// `penstock validate`: an unknown key is an error.
    Validate,
}

impl Strictness {
    pub fn refuses(self, finding: &Finding) -> bool {
        match finding.severity {
            Severity::Error => self != Strictness::DropBroken || finding.component.is_none(),
            Severity::UnknownKey => self == Strictness::Validate,
            Severity::Warning | Severity::Notice => false,
        }
    }
}

/// What is to be fixed before the agent may start.
pub fn to_fix(findings: &[Finding], strictness: Strictness) -> usize {
    findings.iter().filter(|finding| strictness.refuses(finding)).count()
}

/// The findings, one per line, in the order of the files.
pub fn lines(findings: &[Finding]) -> Vec<String> {
    let mut ordered: Vec<&Finding> = findings.iter().collect();
    // Stable: findings without a place come first, and those of one line keep their order.
    ordered.sort_by(|left, right| left.place.cmp(&right.place));
    ordered.into_iter().map(ToString::to_string).collect()
}

/// The last line.
pub fn verdict(findings: &[Finding], strictness: Strictness) -> String {
    match to_fix(findings, strictness) {
        0 => "runs".to_owned(),
        count => format!("{count} to fix"),
    }
}
