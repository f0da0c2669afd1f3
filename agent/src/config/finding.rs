//! What was found while reading a configuration, and where.
//!
//! A finding always says what is wrong and what to do; who prints it and whether the agent may start is decided by
//! the caller from its [`Severity`].

use std::fmt;
use std::sync::Arc;

/// A position in a configuration file. Line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What a finding means for the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The agent refuses to start (or drops the component, with `--drop-broken`).
    Error,
    /// A key that nobody reads, probably misspelt: a warning for `agent`, an error for `validate`.
    UnknownKey,
    /// Legal, but probably not what is wanted.
    Warning,
    /// Accepted without effect, said once.
    Notice,
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Severity::Error => "error",
            Severity::UnknownKey => "unknown key",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        })
    }
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub place: Option<Place>,
    /// The component it concerns, for `--drop-broken`: `sources.r1`.
    pub component: Option<String>,
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(formatter, "{place}: ")?;
        }
        write!(formatter, "{}: {}", self.severity, self.message)
    }
}
