//! Exit codes, and the failures that end a run before there is an answer.

use std::io;

use channel::inspect::InspectError;
use wal::keys::KeyError;

/// How a run ended. The worst reason counts: what could not be asked outranks what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    Clean,
    Findings,
    Keys,
    Io,
    Version,
    Usage,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Clean => 0,
            Exit::Findings => 1,
            Exit::Usage => 2,
            Exit::Io => 3,
            Exit::Keys => 4,
            Exit::Version => 7,
        }
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Exit::Clean => "clean",
            Exit::Findings => "findings",
            Exit::Usage => "usage",
            Exit::Io => "io",
            Exit::Keys => "keys",
            Exit::Version => "version",
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The reader of our output went away, or its disk is full.
    Output(io::Error),
    Key(KeyError),
    /// Events are encrypted, and their key is missing or wrong.
    Locked(String),
    Channel(InspectError),
    /// Nothing is where the arguments say.
    Nowhere(String),
    /// No directory could be read.
    Io(String),
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Output(_) | Failure::Io(_) => Exit::Io,
            Failure::Key(_) | Failure::Locked(_) => Exit::Keys,
            Failure::Channel(_) | Failure::Nowhere(_) => Exit::Usage,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Output(error) => write!(formatter, "cannot write the answer: {error}"),
            Failure::Key(error) => error.fmt(formatter),
            Failure::Channel(error) => error.fmt(formatter),
            Failure::Locked(what) | Failure::Nowhere(what) | Failure::Io(what) => formatter.write_str(what),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}
